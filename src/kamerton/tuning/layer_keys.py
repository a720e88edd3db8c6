"""Keys and values of every layer as numbers that can be trained: where they start, and in which units they move."""

from __future__ import annotations

import torch
from torch import Tensor

from kamerton.base.attention import LayerKeys


def stacked(layers: LayerKeys) -> Tensor:
    """Per layer two (H_kv, n, D), all of one shape → (L, 2, H_kv, n, D) float32."""
    return torch.stack([torch.stack(pair) for pair in layers]).float()


def spread(start: Tensor) -> Tensor:
    """(L, 2, H_kv, n, D): the root of the mean square of each layer's keys and of its values.

    The first positions are left out: models park attention there (Xiao et al. 2023), with keys and values unlike all
    others.
    """
    some = start[..., min(2, start.shape[3] - 1) :, :]
    return some.pow(2).mean((2, 3, 4), keepdim=True).sqrt().expand_as(start)


def as_computed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in the type that a model of this type computes in here: autocast's, where that is on."""
    kind = numbers.device.type
    return numbers.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype)


def flat(x: Tensor) -> Tensor:
    """(L, 2, H_kv, n, D) → (n, L · 2 · H_kv · D), peft's layout."""
    return x.permute(3, 0, 1, 2, 4).flatten(1)


def slots(layers: int) -> list[int]:
    """Which layer of peft's file each of a decoder's layers reads in an encoder–decoder.

    peft writes its layers' keys and values one behind another twice over, cuts the row into as many pieces of four as
    there are layers, gives the first two of each piece to a decoder's layer, and drops the other two (`get_prompt` with
    `num_transformer_submodules=2`; peft 0.21). So decoder layer i reads file layer 2 i, counted round. An odd number of
    file layers gives every decoder layer one of its own. With an even number, which peft takes by itself where the
    decoder has one, layers would share theirs and half of what is trained would never be read.
    """
    return [2 * i % file_layers(layers) for i in range(layers)]


def file_layers(layers: int) -> int:
    """How many layers peft's file has for a decoder of so many: the next odd number; one that nobody reads is zeros."""
    return layers + 1 - layers % 2


def by_layer(x: Tensor, layers: int, heads: int) -> LayerKeys:
    """(…, n, L · 2 · H_kv · D) → per layer keys and values, each (…, H_kv, n, D)."""
    x = x.unflatten(-1, (layers, 2, heads, -1)).movedim((-4, -3), (0, 1)).transpose(-3, -2)
    x = x.contiguous()  # once here, not in every layer's products
    return [(layer[0], layer[1]) for layer in x]

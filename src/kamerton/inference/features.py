"""States of a frozen model as features for small networks: a middle layer's and the last one's, remembered.

The model reads a text with nothing attached to it. Each position's features are the states of a layer in the middle
and of the last one, each brought to mean 0 and variance 1 over its own numbers, side by side: what small networks
(a prompt generator, a discriminator) read in place of a model of their own. They never change while the model is
frozen, so what was asked for once is kept, as far as there is room.

What it leaves out: gradients into the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kamerton.base.frozen import SHARE_OF_MEMORY, decoder_layers, free_bytes
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.base.work import flops
from kamerton.errors import ModelError
from kamerton.inference.prefix import common_prefix, fill

PASS_TOKENS = 4096
"""Tokens of one pass."""

Key = tuple[tuple[int, ...], int, bool]
"""A sequence, its first position that is wanted, and whether it is read alone."""


class Features:
    """Features of token sequences under a frozen causal model.

    Args:
        hf: the transformers model, with nothing attached that changes it.
        middle: the share of its layers below the middle one that is read.
        limit: bytes that remembered features may take; default: a quarter of what is free.

    Attributes:
        width: numbers at each position, twice the hidden size.
        bytes: what remembered features take; `computed`, `replayed`: sequences that were read, and that were known.
    """

    def __init__(self, hf: Any, *, middle: float = 0.5, limit: int | None = None) -> None:
        layers = decoder_layers(hf)
        if layers is None:
            raise ModelError("its layers are in no list, so states in their middle cannot be read")
        self._model = CausalModel(hf)
        self._layer = layers[max(0, min(len(layers) - 1, round(len(layers) * middle) - 1))]
        self.width = 2 * int(self._model.config.hidden_size)
        self.limit = int(SHARE_OF_MEMORY * free_bytes(self._model.device)) if limit is None else limit
        self._known: dict[Key, Tensor] = {}
        self.bytes = self.computed = self.replayed = 0

    @property
    def flops(self) -> float:
        """Operations that were computed so far, where they are counted for no other model."""
        return flops(self._model.work, self._model.hf)

    def count_for(self, model: LanguageModel) -> None:
        """Count what is computed from now on as the work of a model."""
        self._model.work = model.work

    def __call__(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None, *, alone: bool = False
    ) -> list[Tensor]:
        """Features of sequences.

        Args:
            sequences: token ids, each at least one.
            starts: the first position of each sequence that is wanted; default: all of them.
            alone: read each sequence by itself, so that not a bit depends on what else is asked for (training that is
                stopped and resumed reads in another order); else what they share is read once.

        Returns:
            For each sequence (L − start, width) float32 on the model's device, without gradient.
        """
        first = [0] * len(sequences) if starts is None else list(starts)
        keys = [(tuple(s), start, alone) for s, start in zip(sequences, first, strict=True)]
        missing = sorted({k for k in keys if k not in self._known}, key=lambda k: (len(k[0]), k))
        self.computed += len(missing)
        self.replayed += len(keys) - len(missing)
        found: dict[Key, Tensor] = {}
        # what is kept is asked for again under gradient, where tensors of inference mode are refused
        with torch.inference_mode(False), torch.no_grad():
            for batch in fill([len(k[0]) for k in missing], 1 if alone else PASS_TOKENS):
                part = [missing[i] for i in batch]
                for key, states in zip(part, self._read(part), strict=True):
                    found[key] = states
                    size = states.numel() * states.element_size()
                    if self.bytes + size <= self.limit:
                        self._known[key] = states
                        self.bytes += size
        return [found[k] if k in found else self._known[k] for k in keys]

    def once(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Tensor]:
        """Features of sequences that will not be asked for again: read in one pass, and not remembered.

        What they share is read once. Nothing that was read before decides a bit of it.
        """
        self.computed += len(sequences)
        with torch.inference_mode(False), torch.no_grad():
            return self._read([(tuple(s), start, False) for s, start in zip(sequences, starts, strict=True)])

    def _read(self, keys: Sequence[Key]) -> list[Tensor]:
        rows = [list(key[0]) for key in keys]
        shared = common_prefix(rows)
        grabbed: list[Tensor] = []

        def grab(_module: object, _args: object, out: Tensor | tuple[Tensor, ...]) -> None:
            grabbed.append((out[0] if isinstance(out, tuple) else out)[0])

        handle = self._layer.register_forward_hook(grab)
        try:
            last = self._model.forward([row[shared:] for row in rows], prefix=rows[0][:shared])
        finally:
            handle.remove()
        middle = grabbed[0]  # (P + T, H), the prefix first
        whole = torch.cat([_normed(middle), _normed(torch.cat([last.prefix, last.rows]))], dim=1)
        head, own = whole[:shared], whole[shared:].split(list(last.lengths))
        return [torch.cat([head, part])[start:].clone() for part, (_, start, _) in zip(own, keys, strict=True)]


def _normed(states: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the numbers of each position, in float32."""
    return F.layer_norm(states.float(), states.shape[-1:])

"""What stands in the place of peft's prompt encoders while a prompt is trained, and what remains of it afterwards.

A prompt is trained as its distance from where it starts, in units of the spread of the numbers that it stands for: an
optimiser such as Adam moves every number by about the learning rate, whatever its gradient, and embeddings of one model
are fifty times as large as those of another (so are the values of a model's last layer and of its first). In these
units one learning rate fits all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Moved(nn.Module):
    """Start + scale × distance; the distance is trained, or comes out of a network that is.

    Args:
        start: (n, W) numbers of the prompt at the start; kept as they are.
        scale: (n, W) or (), the unit of the distance.
        network: (B, n) places → (B, n, W), giving zeros at first; None: one trained number for each of the prompt's.
    """

    def __init__(self, start: Tensor, scale: Tensor, network: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(start.detach().clone(), freeze=True)  # where peft looks
        self.scale: Tensor
        self.register_buffer("scale", scale.detach().to(start).expand_as(start), persistent=False)
        self.network = network
        if network is None:
            self.distance = nn.Parameter(torch.zeros_like(start))

    def forward(self, places: Tensor) -> Tensor:
        """(…, n) places → (…, n, W)."""
        distance = self.distance[places] if self.network is None else self.network(places)
        return self.embedding(places) + self.scale[places] * distance


class Placed(nn.Module):
    """Numbers of some layers, at their places among more layers, between which there are zeros.

    Args:
        inside: (…, n) places → (…, n, len(layers) · W).
        layers: the place of each of its layers.
        count: places in all.
    """

    def __init__(self, inside: nn.Module, layers: Sequence[int], count: int) -> None:
        super().__init__()
        self.inside, self.count = inside, count
        self.layers: Tensor
        self.register_buffer("layers", torch.tensor(layers), persistent=False)

    @property
    def embedding(self) -> Any:
        """Where peft looks for a device."""
        return self.inside if isinstance(self.inside, nn.Embedding) else self.inside.embedding

    def forward(self, places: Tensor) -> Tensor:
        """(…, n) places → (…, n, count · W)."""
        given = self.inside(places).unflatten(-1, (len(self.layers), -1))
        empty = given.new_zeros(*given.shape[:-2], self.count, given.shape[-1])
        return empty.index_copy(-2, self.layers, given).flatten(-2)


def fold(peft: Any) -> None:
    """After training: what the encoder gives, which is all that peft saves, takes its place.

    Afterwards the prompt is read, not computed, at every pass.
    """
    flat = peft.get_prompt_embedding_to_save("default")
    plain = nn.Module()
    plain.embedding = nn.Embedding.from_pretrained(flat.to(peft.device), freeze=True)
    peft.prompt_encoder["default"] = plain
    peft.peft_config["default"].inference_mode = True

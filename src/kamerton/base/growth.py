"""What the numbers of a stand-in's shapes stand for.

A stand-in (`stand_in.py`) is a narrow model in place of a wide one: as many layers, the same tokenizer, and widths
that are unlike each other and unlike what options say, so that every dimension of a tensor says which width of the
wide model it stands for. Its configuration carries the pairs, and whoever counts (`work.py`) reads them there; of
every other model the numbers stand for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kamerton.base.quantise import shape

FIELD = "stands_for"
"""The field of a stand-in's configuration."""


@dataclass(frozen=True)
class Growth:
    """The widths of a stand-in and of what it stands for.

    Attributes:
        sizes: of the dimensions of weights and activations, the narrow model's → the wide one's.
        heads: of dimensions that count heads.
        head: the narrow model's size of a head.
        width: the wide model's query heads × their size; 0 where nothing grows.
    """

    sizes: Mapping[int, int] = field(default_factory=dict)
    heads: Mapping[int, int] = field(default_factory=dict)
    head: int = 0
    width: int = 0

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The shape of a weight, every dimension of which may be a width."""
        return tuple(self.sizes.get(n, n) for n in dims)

    def numel(self, weight: Tensor) -> int:
        """How many numbers a weight stands for."""
        return math.prod(self.shape(shape(weight)))

    def activation(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is computed: its last dimension is a width, one in front of it may count heads."""
        grown = list(dims)
        if grown:
            grown[-1] = self.sizes.get(grown[-1], grown[-1])
        for place in (-3, -2, -4):
            if len(grown) >= max(3, -place) and grown[place] in self.heads:
                grown[place] = self.heads[grown[place]]
                break
        return tuple(grown)


_NONE = Growth()


def growth_of(config: Any) -> Growth:
    """What a model's configuration says of it; of a model that stands for itself one that changes nothing."""
    told = getattr(config, FIELD, None)
    if not told:
        return _NONE
    pairs = {name: {int(k): int(v) for k, v in told[name].items()} for name in ("sizes", "heads")}
    return Growth(pairs["sizes"], pairs["heads"], int(told["head"]), int(told["width"]))

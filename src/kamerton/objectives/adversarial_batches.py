"""Batches of adversarial training: reference answers with what is read of them, and sampled answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kamerton.training.batches import Batch


@dataclass(frozen=True, slots=True)
class References:
    """Reference answers with what the discriminator reads of them.

    Attributes:
        batch: the rows; `owners`: (N,) the number of each target's example.
        features: (N, F); `start`: (N, H) hidden states of the supervised start there.
    """

    batch: Batch
    owners: np.ndarray
    features: Tensor
    start: Tensor

    @property
    def count(self) -> float:
        return self.batch.count

    @property
    def examples(self) -> int:
        return self.batch.examples

    @property
    def tokens(self) -> int:
        return self.batch.tokens


@dataclass(frozen=True, slots=True)
class Sampled:
    """Sampled answers: `advantages` (N,) of their tokens; `share` turns their sum into that of the references."""

    batch: Batch
    advantages: np.ndarray
    share: float
    count: float = 0.0

    @property
    def examples(self) -> int:
        return self.batch.examples

    @property
    def tokens(self) -> int:
        return self.batch.tokens

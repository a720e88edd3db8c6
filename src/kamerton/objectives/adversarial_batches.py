"""Batches of adversarial training: reference answers with what is read of them, and sampled answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kamerton.training.batches import Rows


@dataclass(frozen=True, slots=True)
class References(Rows):
    """Reference answers with what the discriminator reads of them.

    Attributes:
        batch: the rows; `owners`: (N,) the number of each target's example.
        features: (N, F); `rows`: (N,) the number of each target's row in the batch.
        start: (N, H) hidden states of the supervised start there.
    """

    owners: np.ndarray
    features: Tensor
    rows: Tensor
    start: Tensor


@dataclass(frozen=True, slots=True)
class Sampled(Rows):
    """Sampled answers: `advantages` (N,) of their tokens; `share` turns their sum into that of the references.

    They count for nothing beside the references, whose number the step's loss is divided by.
    """

    advantages: np.ndarray
    share: float

    @property
    def count(self) -> float:
        return 0.0

"""What a reward is: examples and answers in, one number an answer out, higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kamerton.tasks.example import Example


class Reward(Protocol):
    """Says how good answers are.

    Attributes:
        name: for reports.
        range: lowest and highest value, infinite where there is none.
    """

    @property
    def name(self) -> str: ...
    @property
    def range(self) -> tuple[float, float]: ...

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        """(B,) float64 rewards of answers, each to the example beside it.

        Raises:
            RewardError: a value that is not a number, or not one for each answer; names the example.
        """
        ...

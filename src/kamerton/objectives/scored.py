"""A reward asked for answers, and what it said checked: one finite number for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kamerton.errors import RewardError
from kamerton.rewards.reward import Reward
from kamerton.tasks.example import Example


def scored(reward: Reward, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
    """(B,) float64 rewards of answers, each to the example beside it.

    Raises:
        RewardError: not one number for each answer, or one that is not finite; names the example.
    """
    values = np.asarray(reward(examples, answers), dtype=np.float64)
    if values.shape != (len(answers),):
        raise RewardError(
            f"gave {values.size} numbers in the shape {values.shape} for {len(answers)} answers", where=reward.name,
            mend="return one number for each answer",
        )  # fmt: skip
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        i = int(bad[0])
        raise RewardError(
            f"gave {values[i]} for an answer to {examples[i].id}: {answers[i][:80]!r}", where=reward.name,
            mend="return a finite number for every answer",
        )  # fmt: skip
    return values

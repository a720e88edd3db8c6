"""Choosing the best of several answers by a reward that reads no reference answers.

At inference nobody knows the right answer. A reward that compares with the accepted ones (a metric, an exact verifier)
would let the test set choose, and what it reports then is no score of the model. So a reward says for itself whether it
reads them: its attribute `needs_references` is False where it does not (a pattern, a format, a length, a reward model,
a judge). One that says nothing is taken to read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.inference import Answer
from kamerton.rewards import build_reward
from kamerton.rewards.reward import Reward, checked
from kamerton.tasks.example import Conversation, Example, Task

LOG_PROBABILITY = "log-probability"
"""The name of the choice by the model's own mean log-probability of a token, reasoning included: no reward is asked."""
NEEDS_REFERENCES = "needs_references"
"""The attribute of a reward that says whether it reads an example's accepted answers."""


def reads_references(reward: Reward) -> bool:
    """Whether a reward needs to know the accepted answers; one that does not say so does."""
    return bool(getattr(reward, NEEDS_REFERENCES, True))


def answer_reward(spec: Any, base: Base, metric: str, where: str) -> Reward | None:
    """The reward that chooses among answers; None for `log-probability`.

    Args:
        spec: as recipes name rewards.
        base: for rewards that are models.
        metric: the task's first one; there are no examples at inference, and the reward is told of none.
        where: of the option, for the error.

    Raises:
        RecipeError: the reward reads reference answers, or there is none of that name.
    """
    if spec == LOG_PROBABILITY:
        return None
    reward = build_reward(spec, base, Task("", (), (), (), (metric,)))
    if reads_references(reward):
        raise RecipeError(
            f"{reward.name} compares with the accepted answers, which nobody has at inference: it would let the test "
            "set choose",
            where=where, mend=f"use {LOG_PROBABILITY}, or a reward that reads the answer alone (a format, a judge, …)",
        )  # fmt: skip
    return reward


def scores_of(
    reward: Reward | None, conversations: Sequence[Conversation], answers: Sequence[Answer],
    choices: Sequence[Sequence[str]] = (),
) -> np.ndarray:  # fmt: skip
    """(B,) scores of answers, each to the conversation beside it."""
    if reward is None:
        return np.array([log_probability(a) for a in answers], dtype=np.float64)
    known = choices or [()] * len(conversations)
    examples = [
        Example(f"conversation {i}", c, (), tuple(options))
        for i, (c, options) in enumerate(zip(conversations, known, strict=True))
    ]
    texts = [a.text for a in answers]
    return checked(reward.name, examples, texts, reward(examples, texts))


def log_probability(a: Answer) -> float:
    """Mean log-probability of a token in nats; where something was thought before the answer, of both together."""
    return float(a.details.get("log_prob", np.mean(a.logprobs) if a.logprobs else 0.0))

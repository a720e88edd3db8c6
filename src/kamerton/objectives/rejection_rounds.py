"""What one round of rejection sampling came to, kept for the report; all of it is in checkpoints as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kamerton.evaluation.best_of import best, expected_best
from kamerton.objectives.rollouts import Rollout

SHOWN = 3
"""Questions of a round whose best and worst answers are kept as texts."""


@dataclass
class Round:
    """A round's answers in figures.

    Attributes:
        step: of the optimiser at which they were sampled.
        questions, samples: how many were answered, K answers to each.
        mean, spread: of all rewards: mean, and standard deviation inside questions in the mean.
        best: K expected rewards of the best of 1 … K answers.
        error: standard error of the mean reward over questions.
        distinct: different answers to a question over K, in the mean.
        length: tokens of an answer; `ended`: share that ends inside the limit.
        kept, below, equal: questions of which an answer is trained on; whose best one is below `least`; whose rewards
            are all the same.
        tokens: that were read (prompts once for all answers at a temperature) and written.
        texts: (question, best answer, its reward, worst answer, its reward) of some questions.
    """

    step: int
    questions: int
    samples: int
    mean: float
    spread: float
    best: list[float]
    error: float
    distinct: float
    length: float
    ended: float
    kept: int
    below: int
    equal: int
    tokens: int
    texts: list[list[Any]] = field(default_factory=list)


def round_of(
    step: int, questions: Sequence[str], answers: Sequence[Sequence[Rollout]], rewards: np.ndarray, *, kept: int,
    below: int, equal: int, tokens: int,
) -> Round:  # fmt: skip
    """The figures of a round from its (Q, K) answers and rewards."""
    flat = [a for group in answers for a in group]
    texts = []
    for question, group, row in list(zip(questions, answers, rewards, strict=True))[:SHOWN]:
        top, low = best(row), best(-row)
        texts.append([question, group[top].text, float(row[top]), group[low].text, float(row[low])])
    means = rewards.mean(1)
    return Round(
        step, len(answers), rewards.shape[1], float(means.mean()), float(rewards.std(1).mean()),
        [float(expected_best(rewards, k).mean()) for k in range(1, rewards.shape[1] + 1)],
        float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0,
        float(np.mean([len({a.text for a in group}) / len(group) for group in answers])),
        float(np.mean([len(a.said) for a in flat])), float(np.mean([a.ended for a in flat])),
        kept, below, equal, tokens, texts,
    )  # fmt: skip


def rounds_state(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Rounds as plain values."""
    return [asdict(r) for r in rounds]

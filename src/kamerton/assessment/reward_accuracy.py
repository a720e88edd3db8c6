"""How good a reward model is on judged answers that it never saw: accuracy, calibration, distributions of scores.

A pair is right where the better answer has the higher reward. σ of the rewards' difference is the model's probability
that it is right about a pair, which calibration holds against the share that it is right about (`evaluation/
confidence.py`). Intervals resample examples, so the pairs of one ranking count as what they are: not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamerton.errors import TaskError
from kamerton.evaluation import confidence
from kamerton.evaluation.figures import Figure, interval, ratio
from kamerton.inference.reward_model import RewardModel
from kamerton.objectives.reward_modeling import in_order
from kamerton.tasks.example import Example, Task

Result = dict[str, Any]
BINS = 24
"""Of the histogram of scores."""
SHOWN = 4
"""Pairs that are shown as text: those about which the model is most wrong."""


@dataclass(frozen=True)
class Scored:
    """An example's judged answers, best first, and what the model says of them."""

    example: Example
    answers: tuple[str, ...]
    judged: tuple[float, ...]
    rewards: np.ndarray


def score_examples(
    model: RewardModel, examples: Sequence[Example], progress: Callable[[int, int], None] | None = None
) -> list[Scored]:
    """Rewards of all judged answers of all examples that have any."""
    graded = [(e, sorted(e.graded, key=lambda g: -g.score)) for e in examples if e.graded]
    asked = [(e.messages, g.answer) for e, found in graded for g in found]
    rewards = np.array(model.score([m for m, _ in asked], [a for _, a in asked], progress=progress))
    out, place = [], 0
    for e, found in graded:
        own = rewards[place : place + len(found)]
        out.append(Scored(e, tuple(g.answer for g in found), tuple(g.score for g in found), own))
        place += len(found)
    return out


def measure(
    model: RewardModel, task: Task, split: str, *, bins: int = 10, progress: Callable[[int, int], None] | None = None
) -> Result:
    """Everything that is reported of a split, as JSON.

    Raises:
        TaskError: no two answers of it have different scores.
    """
    examples: Sequence[Example] = getattr(task, split)
    scored = score_examples(model, examples, progress)
    told = [s for s in scored if len(set(s.judged)) > 1]
    if not told:
        raise TaskError(f"no {split} example has two answers with different scores", where=task.name,
                        mend="choose another split, or give pairs")  # fmt: skip
    sums = [in_order(s.rewards, s.judged) for s in told]
    figure = ratio([right for right, _ in sums], [pairs for _, pairs in sums], better="higher")
    assert figure is not None
    gaps = np.concatenate([_gaps(s) for s in told])
    right = 0.5 * (1 + np.sign(gaps))
    sure = 1 / (1 + np.exp(-np.abs(gaps)))
    calibration = confidence.ece(sure, right, bins)
    best, worst = (np.array([s.rewards[i] for s in told]) for i in (0, -1))
    return {
        "task": task.name, "split": split, "examples": len(told), "pairs": len(gaps),
        "without": len(examples) - len(told), "cut": model.cut, "accuracy": _estimate(figure),
        "log_loss": float(np.logaddexp(0, -gaps).mean()),
        "calibration": {
            "ece": calibration.value, "if_calibrated": confidence.floor(sure, bins),
            "brier": confidence.brier(sure, right).value, "sure": float(sure.mean()),
            "diagram": confidence.diagram(calibration),
        },
        "margin": _spread(gaps), "scores": {"chosen": _spread(best), "rejected": _spread(worst)},
        "histogram": _histogram(best, worst), "wrong": _wrong(told),
    }  # fmt: skip


def _gaps(s: Scored) -> np.ndarray:
    """Reward of the better answer less that of the worse one, of each pair with different judgements."""
    k = range(len(s.judged))
    return np.array([s.rewards[i] - s.rewards[j] for i in k for j in k if s.judged[i] > s.judged[j]])


def _estimate(figure: Figure) -> dict[str, float]:
    found = interval(figure)
    return {"value": found.value, "low": found.low, "high": found.high}


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("lowest", "lower_quartile", "median", "upper_quartile", "highest")
    at = dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))
    return {"mean": float(values.mean()), "deviation": float(values.std()), **at}


def _histogram(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), BINS)
    counts = [np.histogram(values, edges)[0].tolist() for values in (chosen, rejected)]
    return {"edges": edges.tolist(), "chosen": counts[0], "rejected": counts[1]}


def _wrong(told: Sequence[Scored]) -> list[dict[str, Any]]:
    """The examples in which the model puts the worst answer highest above the best one."""
    ordered = sorted(told, key=lambda s: float(s.rewards[0] - s.rewards[-1]))
    return [
        {
            "id": s.example.id, "question": s.example.messages[-1].content if s.example.messages else "",
            "chosen": s.answers[0], "rejected": s.answers[-1], "rewards": [float(s.rewards[0]), float(s.rewards[-1])],
        }
        for s in ordered[:SHOWN] if s.rewards[0] < s.rewards[-1]
    ]  # fmt: skip

"""Validation by answers: how far the task's metric on a model's greedy answers is from its best value.

For objectives whose own loss says nothing about the answers (a game between two networks, a reward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kamerton.base.model import LanguageModel
from kamerton.evaluation.answering import answer, judge, values
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Engine, Sampling
from kamerton.rendering import Renderer
from kamerton.tasks.example import Example, Task
from kamerton.training.objective import Loss


@dataclass(frozen=True, slots=True)
class Judged:
    """Validation examples whose answers are judged by the task's metric."""

    held_out: tuple[Example, ...]
    tokens: int = 0

    @property
    def count(self) -> float:
        return float(len(self.held_out))

    @property
    def examples(self) -> int:
        return len(self.held_out)


def judged(model: LanguageModel, renderer: Renderer, task: Task, batch: Judged) -> np.ndarray:
    """(N, S) statistics of a model's greedy answers under the task's first metric."""
    examples, name = batch.held_out, task.metrics[0]
    said = answer(Engine(model, renderer), examples, Sampling(max_tokens=task.max_answer_tokens))
    return judge(said.texts, examples, [name])[name]


def judged_loss(statistics: np.ndarray, task: Task, batch: Judged) -> Loss:
    """The distance of the task's first metric from its best value, times the number of examples."""
    examples, name = batch.held_out, task.metrics[0]
    value = values({name: statistics}, examples)[name]
    return Loss(torch.tensor(_regret(name, value, examples) * batch.count))


def _regret(name: str, value: float, examples: Sequence[Example]) -> float:
    """How far a metric's value is from its best; of a metric without bounds, its value with the sign turned."""
    metric = get_metric(name, examples)
    low, high = metric.range
    if metric.higher_is_better:
        return (high - value) if np.isfinite(high) else -value
    return (value - low) if np.isfinite(low) else value

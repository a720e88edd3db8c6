"""Validation by answers: how far the task's metric on a model's greedy answers is from its best value.

For objectives whose own loss says nothing about the answers (a game between two networks, a reward). Closed sets are
ranked, everything else is generated, as in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kamerton.base.model import LanguageModel
from kamerton.evaluation.answering import judge, values
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


def judged_loss(model: LanguageModel, renderer: Renderer, task: Task, batch: Judged) -> Loss:
    """The distance of the task's first metric from its best value, times the number of examples."""
    engine, name = Engine(model, renderer), task.metrics[0]
    room = model.prompt_limit(task.max_answer_tokens)
    asked = [renderer.fit(e.messages, room)[0] for e in batch.held_out]
    closed = [i for i, e in enumerate(batch.held_out) if e.choices]
    free = [i for i, e in enumerate(batch.held_out) if not e.choices]
    texts = [""] * len(asked)
    if closed:
        choices = [batch.held_out[i].choices for i in closed]
        for i, best in zip(closed, engine.rank([asked[i] for i in closed], choices), strict=True):
            texts[i] = batch.held_out[i].choices[best]
    if free:
        answers = engine.generate([asked[i] for i in free], Sampling(max_tokens=task.max_answer_tokens))
        for i, answer in zip(free, answers, strict=True):
            texts[i] = answer.text
    value = values(judge(texts, batch.held_out, [name]), batch.held_out)[name]
    return Loss(torch.tensor(_regret(name, value, batch.held_out) * batch.count))


def _regret(name: str, value: float, examples: Sequence[Example]) -> float:
    """How far a metric's value is from its best; of a metric without bounds, its value with the sign turned."""
    metric = get_metric(name, examples)
    low, high = metric.range
    if metric.higher_is_better:
        return (high - value) if np.isfinite(high) else -value
    return (value - low) if np.isfinite(low) else value

"""A metric of the task as a reward: of each answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.evaluation.answering import judge
from kamerton.evaluation.metrics import FunctionMetric, MeanMetric, get_metric
from kamerton.rewards.reward import checked
from kamerton.rewards.verifier import Thought, behind_thought
from kamerton.tasks.example import Example, Task
from kamerton.tuning.parameterisation import Options


class MetricOptions(Options):
    """Options of `metric`."""

    metric: str | None = Field(None, description="its name; none: the task's first")
    thought: Thought = Field(
        "kept", description="kept: the whole answer is judged, as in the report; cut, required: as of `exact`"
    )


class MetricReward:
    """What a metric says of each answer; with the sign turned where less is better.

    Args:
        metric: its name.
        task: whose examples it is for.
        thought: what is looked at of an answer.

    Raises:
        TaskError: it is no mean over examples (macro F1, BLEU), so one answer has no value.
    """

    summary: ClassVar[str] = "a metric of the task that is a mean over examples"
    options: ClassVar[type[Options]] = MetricOptions
    short: ClassVar[str] = "metric"

    def __init__(self, metric: str, task: Task, thought: Thought = "kept") -> None:
        self.name, self._thought, found = metric, thought, get_metric(metric, task.train)
        own = isinstance(found, FunctionMetric) and not found.has_aggregate
        if not isinstance(found, MeanMetric) and not own:
            raise TaskError(
                f"{metric} is no mean over examples, so one answer has no reward", where=task.name,
                mend="name another metric or reward",
            )  # fmt: skip
        self._sign = 1.0 if found.higher_is_better else -1.0
        low, high = sorted(self._sign * end for end in found.range)
        self.range = (low, high)

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> MetricReward:  # noqa: ARG003
        return cls(options.metric or task.metrics[0], task, options.thought)

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:
        cls.build(base, task, options)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        seen = [behind_thought(answer, self._thought) for answer in answers]
        found = judge([text or "" for text in seen], examples, [self.name])[self.name]
        scores = self._sign * found[:, 0].astype(np.float64)
        scores[[text is None for text in seen]] = self.range[0]
        return checked(self.name, examples, answers, scores)

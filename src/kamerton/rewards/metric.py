"""A metric of the task as a reward: of each answer alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kamerton.errors import TaskError
from kamerton.evaluation.answering import judge
from kamerton.evaluation.metrics import MeanMetric, get_metric
from kamerton.tasks.example import Example, Task


class MetricReward:
    """What a metric says of each answer.

    Args:
        metric: its name.
        task: whose examples it is for.

    Raises:
        TaskError: it is no mean over examples (macro F1, BLEU), so one answer has no value.
    """

    def __init__(self, metric: str, task: Task) -> None:
        self.name, found = metric, get_metric(metric, task.train)
        if not isinstance(found, MeanMetric):
            raise TaskError(
                f"{metric} is no mean over examples, so one answer has no reward", where=task.name,
                mend="name another metric or reward",
            )  # fmt: skip
        self.range = found.range

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        return judge(list(answers), examples, [self.name])[self.name][:, 0].astype(np.float64)

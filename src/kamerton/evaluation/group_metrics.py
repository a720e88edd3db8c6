"""`by-group`: the mean over groups of examples of each group's own metric, where a test set holds several tasks.

Tasks are judged by different metrics, and their sizes should not decide which of them counts; so every task's own score
is computed first, and their mean is taken, as FLAN and T0 report it. Still a sum of per-example statistics: those of
each group stand in columns of their own, with a count, so that bootstraps and permutation tests are exact on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

from kamerton.errors import TaskError
from kamerton.tasks.example import Example

if TYPE_CHECKING:  # metrics.py makes this metric
    from kamerton.evaluation.metrics import Metric

PREFIX = "by-group:"


class ByGroup:
    """The mean over groups of each group's metric; groups without examples do not count. S = Σ (1 + S of the group).

    Args:
        name: `by-group:sst2=accuracy,snips=json-f1`; in names `,`, `=` and `%` are percent-encoded.
        examples: those that will be judged; the metrics of the groups are made for them.
        get: makes a metric by name.

    Raises:
        TaskError: the name cannot be read, or a group's metric is not a score from 0 to 1 (they have to add up).
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def __init__(self, name: str, examples: Sequence[Example] | None, get: Callable[..., Metric]) -> None:
        self.name = name
        parts = [part.partition("=") for part in name.removeprefix(PREFIX).split(",")]
        if not all(group and equals and metric for group, equals, metric in parts):
            mend = "write by-group:GROUP=METRIC,GROUP=METRIC"
            raise TaskError(f"{name!r} names no metric for each group", where="metrics", mend=mend)
        self.groups = {unquote(group): unquote(metric) for group, _, metric in parts}
        self._metrics: dict[str, Metric] = {}
        self._width: dict[str, int] = {}
        for group, metric in self.groups.items():
            own = [e for e in examples or () if e.group == group]
            made = self._metrics[group] = get(metric, own or None)
            if made.range != (0.0, 1.0) or not made.higher_is_better:
                mend = f"give {group} another first metric, such as accuracy"
                raise TaskError(
                    f"{metric} is no score from 0 to 1 and has no mean with others", where="metrics", mend=mend
                )
            if own:
                self._width[group] = self._of(group, [own[0].answers[0]], own[:1]).shape[1]
        self.files = tuple(file for made in self._metrics.values() for file in getattr(made, "files", ()))
        there = {metric: None for group, metric in self.groups.items() if group in self._width or not self._width}
        self.title = f"mean over tasks ({', '.join(there)})"

    def _of(self, group: str, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        return self._metrics[group].statistics(answers, examples)

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, S): for each group a 1 and its metric's statistics in the rows of its examples, zeros elsewhere."""
        table = np.zeros((len(answers), sum(1 + width for width in self._width.values())))
        unknown = {e.group for e in examples} - set(self._width)
        if unknown:
            raise TaskError(f"no metric for group {sorted(unknown)[0]!r}", where=self.name, mend="name one for it")
        start = 0
        for group, width in self._width.items():
            rows = [i for i, e in enumerate(examples) if e.group == group]
            table[rows, start] = 1.0
            if rows:
                found = self._of(group, [answers[i] for i in rows], [examples[i] for i in rows])
                table[rows, start + 1 : start + 1 + width] = found
            start += 1 + width
        return table

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:  # noqa: ARG002 (contract)
        """The mean over the groups that are there."""
        sums = np.asarray(sums, dtype=np.float64)
        total, present, start = np.zeros(sums.shape[:-1]), np.zeros(sums.shape[:-1]), 0
        for group, width in self._width.items():
            n = sums[..., start]
            own = sums[..., start + 1 : start + 1 + width]
            value = self._metrics[group].aggregate(own, np.maximum(n, 1.0))
            total += np.where(n > 0, value, 0.0)
            present += n > 0
            start += 1 + width
        return total / np.maximum(present, 1.0)

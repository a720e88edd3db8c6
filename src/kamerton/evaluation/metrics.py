"""Metrics: linear statistics of each example, and an aggregate of their sum.

Every metric here is `aggregate(sum of statistics, count)`. So the value on any resample of the examples is one weighted
sum away, and bootstraps and permutation tests are exact and vectorised even for corpus metrics (BLEU, macro F1).
Spearman's correlation, whose ranks depend on the whole sample, goes by pseudo-values (`rank_metrics.py`).

`accuracy`, `exact-match`, `macro-f1`, `f1`, `matthews` and functions of the user's own are in this file, metrics that
compare texts in `text_metrics.py`, metrics that read a value out of the answer (numbers, JSON, dates) in
`value_metrics.py`, of tagged words in `tag_metrics.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kamerton.errors import KamertonError, TaskError
from kamerton.functions import function_file, import_function, is_function
from kamerton.recipe import TaskSpec
from kamerton.recipe_errors import closest
from kamerton.tasks.example import Example, Task


class Metric(Protocol):
    """What judges answers.

    Attributes:
        name: as recipes write it.
        higher_is_better: whether more is better.
        range: lowest and highest value.
    """

    name: str
    higher_is_better: bool
    range: tuple[float, float]

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """Sufficient statistics of each example. (N answers, N examples) -> (N, S) float64."""
        ...

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
        """The value of the metric from summed statistics and the number of examples. (..., S), (...) -> (...)."""
        ...


def evaluate(metric: Metric, answers: Sequence[str], examples: Sequence[Example]) -> float:
    """The value of a metric on some answers.

    Raises:
        ValueError: there are no examples, or not one answer for each.
    """
    if len(answers) != len(examples) or not examples:
        raise ValueError(f"{len(answers)} answers for {len(examples)} examples")
    return float(metric.aggregate(metric.statistics(answers, examples).sum(0), float(len(examples))))


def normalise(text: str) -> str:
    """A text as exact match compares it: Unicode NFKC, case folded, spaces collapsed, ends stripped."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def class_name(text: str) -> str:
    """A text as a class: normalised, without quotes around it and a full stop after it."""
    return normalise(text).strip("\"'`«»“”‘’*").rstrip(".").strip()


class MeanMetric:
    """A metric that is the mean of a score between 0 and 1 for each example. S = 1."""

    higher_is_better = True
    range = (0.0, 1.0)

    def __init__(self, name: str, score: Callable[[str, Example], float]) -> None:
        self.name = name
        self._score = score

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 1): the score of each answer."""
        scores = [float(self._score(answer, example)) for answer, example in zip(answers, examples, strict=True)]
        return np.array(scores, dtype=np.float64).reshape(-1, 1)

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
        """The mean."""
        return np.asarray(sums)[..., 0] / count


class MicroF1:
    """F1 over what is counted in all answers together, 0 where there is nothing. S = 3: right, answered, true."""

    higher_is_better = True
    range = (0.0, 1.0)

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:  # noqa: ARG002 (contract)
        """2 · right / (answered + true)."""
        sums = np.asarray(sums, dtype=np.float64)
        size = sums[..., 1] + sums[..., 2]
        return np.divide(2 * sums[..., 0], size, out=np.zeros_like(size), where=size > 0)


def best_of(score: Callable[[str, str], float]) -> Callable[[str, Example], float]:
    """A score of (answer, reference) as one of (answer, example): the best over the accepted answers."""
    return lambda answer, example: max(score(answer, reference) for reference in example.answers)


def exact_match(answer: str, example: Example) -> float:
    """1 where the answer equals an accepted one after `normalise`, else 0."""
    return float(normalise(answer) in {normalise(reference) for reference in example.answers})


def accuracy(answer: str, example: Example) -> float:
    """1 where the answer is an accepted class after `class_name`, else 0."""
    return float(class_name(answer) in {class_name(reference) for reference in example.answers})


class _ClassMetric:
    """A metric over classes: what the examples' choices and accepted answers are. Answers outside are no class."""

    higher_is_better = True

    def __init__(self, name: str, examples: Sequence[Example] | None) -> None:
        self.name = name
        self._classes = self._collect(examples) if examples else None

    @staticmethod
    def _collect(examples: Sequence[Example]) -> dict[str, int]:
        names = {class_name(example.answers[0]) for example in examples}
        if len({example.choices for example in examples}) == 1:  # one closed set for all: classes never seen count too
            names |= {class_name(choice) for choice in examples[0].choices}
        return {name: index for index, name in enumerate(sorted(names))}

    def _indices(self, answers: Sequence[str], examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray, int]:
        """True and predicted class of each example, (N,) each; C, the number of classes, stands for none of them."""
        classes = self._classes if self._classes is not None else self._collect(examples)
        true, predicted = [], []
        for answer, example in zip(answers, examples, strict=True):
            name = class_name(answer)
            accepted = [class_name(reference) for reference in example.answers]
            if accepted[0] not in classes:
                message = f"class {accepted[0]!r} is unknown to {self.name}"
                raise TaskError(message, where=example.id, mend="pass all examples to get_metric")
            predicted.append(classes.get(name, len(classes)))
            true.append(classes[name if name in accepted and name in classes else accepted[0]])
        return np.array(true, dtype=np.int64), np.array(predicted, dtype=np.int64), len(classes)


class MacroF1(_ClassMetric):
    """Mean F1 over the classes that occur as truth or as answer. S = 3C: true positives, false positives, misses.

    As scikit-learn's `f1_score(average="macro")`, except that answers outside the classes count as misses of the true
    class and make no class of their own.
    """

    range = (0.0, 1.0)

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 3C)."""
        true, predicted, classes = self._indices(answers, examples)
        table = np.zeros((len(true), 3, classes + 1))
        rows = np.arange(len(true))
        right = true == predicted
        table[rows[right], 0, true[right]] = 1
        table[rows[~right], 1, predicted[~right]] = 1
        table[rows[~right], 2, true[~right]] = 1
        return table[:, :, :classes].reshape(len(true), 3 * classes)

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:  # noqa: ARG002 (contract)
        """2 tp / (2 tp + fp + fn), averaged over the classes that occur; 0 where none does."""
        sums = np.asarray(sums)
        hits, false, missed = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        size = 2 * hits + false + missed
        f1 = np.divide(2 * hits, size, out=np.zeros_like(size, dtype=np.float64), where=size > 0)
        return f1.sum(-1) / np.maximum((size > 0).sum(-1), 1)


class ClassF1(_ClassMetric):
    """F1 of one class, as GLUE counts it for MRPC and QQP. S = 3: true positives, false positives, misses.

    As scikit-learn's `f1_score(pos_label=…)`. 0 where the class is neither true nor answered.
    """

    range = (0.0, 1.0)

    def __init__(self, name: str, positive: str, examples: Sequence[Example] | None) -> None:
        super().__init__(name, examples)
        self._positive = class_name(positive)
        known = self._classes or {}
        if not positive or (known and self._positive not in known):
            message = f"{positive!r} is no class of the task" if positive else "f1 needs the class that it counts"
            raise TaskError(
                message, where="metrics", mend=f"write f1:CLASS, one of: {', '.join(known) or 'its labels'}"
            )

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 3)."""
        rows = np.zeros((len(answers), 3))
        for row, answer, example in zip(rows, answers, examples, strict=True):
            given = class_name(answer) == self._positive
            true = self._positive in {class_name(reference) for reference in example.answers}
            row[:] = given and true, given and not true, true and not given
        return rows

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:  # noqa: ARG002 (contract)
        """2 tp / (2 tp + fp + fn)."""
        hits, false, missed = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
        size = 2 * hits + false + missed
        return np.divide(2 * hits, size, out=np.zeros_like(size), where=size > 0)


class Matthews(_ClassMetric):
    """Matthews correlation, for two classes or more (Gorodkin 2004). S = 1 + 2C + 1.

    Needs only the number of right answers and how often each class is true and answered. 0 where it is not defined.
    """

    range = (-1.0, 1.0)

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 1 + C + C + 1): right, true class, answered class or none."""
        true, predicted, classes = self._indices(answers, examples)
        right = (true == predicted).astype(np.float64)[:, None]
        return np.concatenate([right, np.eye(classes)[true], np.eye(classes + 1)[predicted]], axis=1)

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
        """(right·N - Σ p t) / sqrt((N² - Σ p²)(N² - Σ t²))."""
        sums, total = np.asarray(sums, dtype=np.float64), np.asarray(count, dtype=np.float64)
        classes = (sums.shape[-1] - 2) // 2
        true, predicted = sums[..., 1 : 1 + classes], sums[..., 1 + classes :]
        covariance = sums[..., 0] * total - (true * predicted[..., :classes]).sum(-1)
        spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1))
        safe = spread > 1e-12 * total**4
        return np.where(safe, covariance / np.sqrt(np.where(safe, spread, 1.0)), 0.0)


class FunctionMetric:
    """A function of the user's own: (answer, example) -> float, or -> list of floats with an `aggregate` of its own.

    The function may carry attributes: `higher_is_better` (True), `range` ((0, 1)), and, needed for lists,
    `aggregate(sums, count)` with the shapes of `Metric.aggregate`. `files` is where it is written.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = import_function(name)
        file = function_file(name)
        self.files = (file,) if file is not None else ()
        self.higher_is_better = bool(getattr(self._function, "higher_is_better", True))
        low, high = getattr(self._function, "range", (0.0, 1.0))
        self.range = (float(low), float(high))

    @property
    def has_aggregate(self) -> bool:
        """Whether its value is something else than a mean over examples."""
        return hasattr(self._function, "aggregate")

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, S): what the function returns for each answer."""
        rows: list[np.ndarray] = []
        for answer, example in zip(answers, examples, strict=True):
            try:
                row = np.atleast_1d(np.asarray(self._function(answer, example), dtype=np.float64))
            except KamertonError:
                raise
            except Exception as error:  # the user's code can raise anything
                message = f"fails on example {example.id}: {type(error).__name__}: {error}"
                raise TaskError(message, where=self.name, mend="mend the function") from error
            if row.ndim != 1 or not np.isfinite(row).all() or (rows and row.shape != rows[0].shape):
                message = f"returns {row.tolist()!r} for example {example.id}"
                raise TaskError(message, where=self.name, mend="return one number, or always as many finite ones")
            rows.append(row)
        if rows and rows[0].size > 1 and not self.has_aggregate:
            mend = "give it an attribute: function.aggregate = lambda sums, count: …"
            raise TaskError("returns a list and has no aggregate", where=self.name, mend=mend)
        return np.stack(rows) if rows else np.zeros((0, 1))

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
        """The function's own aggregate, or the mean."""
        own: Any = getattr(self._function, "aggregate", None)
        return np.asarray(own(sums, count)) if own is not None else np.asarray(sums)[..., 0] / count


def metric_names() -> list[str]:
    """The names of the metrics that are built in."""
    own = ["accuracy", "exact-match", "f1", "macro-f1", "matthews"]
    return sorted([*own, *(name for table in _tables() for name in table)])


def _tables() -> list[dict[str, Callable[..., Metric]]]:
    from kamerton.evaluation import rank_metrics, tag_metrics, text_metrics, value_metrics

    return [text_metrics.METRICS, value_metrics.METRICS, tag_metrics.METRICS, rank_metrics.METRICS]


def get_metric(name: str, examples: Sequence[Example] | None = None) -> Metric:
    """A metric by name.

    Args:
        name: a built-in one; one with a parameter, such as `numeric:0.01` (tolerance), `bleu:zh` (sacrebleu's
            tokenizer) or `by-group:GROUP=METRIC,…` (the mean of each group's own metric); or a function,
            `package.module:function` or `file.py:function`.
        examples: those that will be judged. Metrics over classes take their classes from them, `pearson` its centre;
            without them, from the examples of each call.

    Raises:
        TaskError: there is no such metric (the closest name is given), or its parameter is wrong.
    """
    plain: dict[str, Callable[[], Metric]] = {
        "accuracy": lambda: MeanMetric("accuracy", accuracy),
        "exact-match": lambda: MeanMetric("exact-match", exact_match),
        "macro-f1": lambda: MacroF1("macro-f1", examples),
        "matthews": lambda: Matthews("matthews", examples),
    }
    base, _, parameter = name.partition(":")
    if name in plain:
        return plain[name]()
    if base == "by-group":
        from kamerton.evaluation.group_metrics import ByGroup

        return ByGroup(name, examples, get_metric)
    if base == "f1":
        return ClassF1(name, parameter, examples)
    for table in _tables():
        if base in table:
            return table[base](name, parameter, examples)
    if is_function(name) and base not in plain:
        return FunctionMetric(name)
    raise TaskError(f"unknown metric {name!r}", where="metrics", mend=closest(name, metric_names()))


def task_metrics(task: Task, spec: TaskSpec | None = None) -> list[Metric]:
    """The metrics of a task, made for its test examples; an unknown one is an error at its line of the recipe.

    Args:
        task: the task.
        spec: the `task` of the recipe, where there is one.

    Raises:
        TaskError: there is no such metric.
    """
    metrics = []
    for index, name in enumerate(task.metrics):
        try:
            metrics.append(get_metric(name, task.test))
        except TaskError as error:
            if spec is None or index >= len(spec.metrics):
                raise
            message = error.message if error.where in (None, "metrics") else f"{error.where}: {error.message}"
            raise spec.error(("metrics", index), message, mend=error.mend) from error
    return metrics


def metric_files(task: Task) -> list[Path]:
    """The files with functions of the user's own that judge a task."""
    return [file for metric in task_metrics(task) for file in getattr(metric, "files", ())]

"""Figures of a model's answers that can be resampled: a number as additive statistics of each question.

What `metrics.py` is for the metrics of a task, this is for everything else that is measured of answers: a `Figure`
holds the statistics of each question and says how their sum becomes the number, so that intervals and paired
differences are those of `statistics.py`, and all of them resample questions. A figure that is no function of a sum (the
share of distinct n-grams of a whole set) comes in through its jackknife pseudo-values, whose mean is the figure and
whose spread is its uncertainty (Tukey 1958; Efron and Tibshirani 1993, section 11.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from kamerton.evaluation.resampling import AdditiveMetric
from kamerton.evaluation.statistics import Difference, Estimate, compare, estimate

Array = np.ndarray[Any, Any]
Better = Literal["higher", "lower", "reference", ""]

RESAMPLES = 2_000


@dataclass(frozen=True)
class Mean:
    """The mean of a number for each question. S = 1."""

    range: tuple[float, float] = (-math.inf, math.inf)

    def aggregate(self, sums: Array, count: Array | float) -> Array:
        return np.asarray(sums)[..., 0] / count


@dataclass(frozen=True)
class Ratio:
    """One sum over another, times a factor: S = 2, numerator and denominator. 0 where the denominator is 0."""

    range: tuple[float, float] = (-math.inf, math.inf)
    factor: float = 1.0

    def aggregate(self, sums: Array, count: Array | float) -> Array:  # noqa: ARG002 (contract)
        over, under = np.asarray(sums, dtype=np.float64)[..., 0], np.asarray(sums, dtype=np.float64)[..., 1]
        return self.factor * np.divide(over, under, out=np.zeros_like(over), where=under != 0)


@dataclass(frozen=True)
class Averaged:
    """A metric of a task over several answers to each question; statistics are summed over the answers.

    Attributes:
        metric: of one answer a question.
        answers: how many there are.
    """

    metric: AdditiveMetric
    answers: int

    @property
    def range(self) -> tuple[float, float]:
        return self.metric.range

    def aggregate(self, sums: Array, count: Array | float) -> Array:
        return np.asarray(self.metric.aggregate(sums, np.asarray(count, dtype=np.float64) * self.answers))


@dataclass(frozen=True)
class Figure:
    """A number about a model's answers.

    Attributes:
        metric: makes the number from summed statistics.
        statistics: (N, S), of each question.
        better: which way is better; "reference": towards what references have; "": it only describes.
    """

    metric: AdditiveMetric
    statistics: Array
    better: Better = ""

    @property
    def value(self) -> float:
        return float(self.metric.aggregate(self.statistics.sum(0), float(len(self.statistics))))

    def take(self, rows: Sequence[int]) -> Figure:
        """The same of some questions."""
        return Figure(self.metric, self.statistics[list(rows)], self.better)


def ratio(over: Sequence[float], under: Sequence[float], *, factor: float = 1.0, high: float = 1.0,
          low: float = 0.0, better: Better = "") -> Figure | None:  # fmt: skip
    """A `Ratio` of two numbers for each question; None where there is nothing in any denominator."""
    statistics = np.stack([np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)], axis=1)
    return Figure(Ratio((low, high), factor), statistics, better) if statistics[:, 1].any() else None


def mean(values: Sequence[float] | Array, *, low: float = -math.inf, high: float = math.inf,
         better: Better = "") -> Figure:  # fmt: skip
    """A mean of one number for each question."""
    return Figure(Mean((low, high)), np.asarray(values, dtype=np.float64).reshape(-1, 1), better)


def jackknifed(
    value: float, without: Sequence[float] | Array, *, low: float, high: float, better: Better = ""
) -> Figure:
    """A figure from its value on all questions and its values without each of them, (N,).

    Pseudo-values shifted by a constant, so that their mean is the value itself (and not its estimate without bias).
    """
    left = np.asarray(without, dtype=np.float64)
    return mean(value + (len(left) - 1) * (left.mean() - left), low=low, high=high, better=better)


def interval(figure: Figure, *, seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES) -> Estimate:
    """The figure with its interval over new questions, the model and its samples' number held."""
    found = estimate({0: figure.statistics}, figure.metric, resamples=resamples, level=level, seed=seed)
    low, high = getattr(figure.metric, "bounds", (-math.inf, math.inf))
    return replace(found, low=max(low, found.low), high=min(high, found.high))


def difference(first: Figure, second: Figure, *, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """First minus second, paired by question."""
    both = {"first": {0: first.statistics}, "second": {0: second.statistics}}
    found = compare(both, first.metric, resamples=resamples, permutations=resamples, seed=seed)
    return found.differences["first", "second"]

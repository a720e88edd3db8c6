"""Quality against diversity over temperatures, and two models compared at equal diversity.

A generator that sharpens its distribution gains quality and loses diversity, and so does any model at a lower
temperature. So a gain at one temperature says little; the curve of (diversity, quality) over temperatures is compared
(Caccia et al. 2020, "Language GANs falling short", arXiv 1811.02549, section 4). Diversity here is 100 − self-BLEU
within questions. Between two temperatures a curve is interpolated linearly in diversity; where two curves do not share
a range of diversity nothing is said. The gain is the mean difference over the shared range. Its interval is a bootstrap
of questions, the same ones for both models and all temperatures; each draw has its own two curves and shared range.

What is left out: temperatures between the measured ones (interpolation takes their place), and noise of sampling itself
beyond what resampling questions shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamerton.evaluation.figures import RESAMPLES, Figure

Array = np.ndarray[Any, Any]

GRID = 41
"""Levels of diversity at which two curves are compared."""
LEVELS = (0.1, 0.5, 0.9)
"""Places in the shared range that are written out."""
NARROW = 0.05
"""Share of draws without a shared range from which on no gain is stated."""


@dataclass(frozen=True)
class Point:
    """One temperature: quality in the task's metric, diversity as 100 − self-BLEU; statistics of the same questions."""

    temperature: float
    quality: Figure
    diversity: Figure


@dataclass(frozen=True)
class Gain:
    """First model minus second, in the metric's units; positive is better for the first, whichever way the metric goes.

    Attributes:
        shared: the range of diversity that both curves have, None where there is none.
        value, low, high, p: mean difference over it with its 95% interval and two-sided p-value; None without a range
            or where more than a twentieth of the draws have none.
        levels: (diversity, difference, low, high) at some places in the range.
        same: (temperature, difference, low, high, p) at equal temperature.
        without: share of draws in which there was no shared range.
    """

    shared: tuple[float, float] | None
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    levels: list[tuple[float, float, float, float]]
    same: list[tuple[float, float, float, float, float]]
    without: float


def diversity_of(self_bleu: Array | float) -> Array:
    """100 − self-BLEU."""
    return 100.0 - np.asarray(self_bleu, dtype=np.float64)


def compare_frontiers(
    first: Sequence[Point], second: Sequence[Point], *, higher_is_better: bool = True, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:  # fmt: skip
    """Compare two curves over the same questions. See `Gain`."""
    n = len(first[0].quality.statistics)
    if any(len(p.quality.statistics) != n or len(p.diversity.statistics) != n for p in (*first, *second)):
        raise ValueError("the curves are of different questions")
    rng = np.random.default_rng([seed, 1811])
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    weights = np.concatenate([np.ones((1, n)), weights])  # row 0: as measured
    sign = 1.0 if higher_is_better else -1.0
    a, b = (_curves(points, weights, sign) for points in (first, second))
    differences, at, levels, bounds = _over_range(a, b)
    same = []
    other = {p.temperature: i for i, p in enumerate(second)}
    for i, point in enumerate(first):
        if point.temperature in other:
            j = other[point.temperature]
            drawn = a[1][:, i] - b[1][:, j]
            same.append((point.temperature, *_summary(drawn)))
    without = float(np.isnan(differences[1:]).mean())
    if bounds is None or without > NARROW:
        return Gain(bounds, None, None, None, None, [], same, without)
    value, low, high, p = _summary(differences)
    shown = [(float(x), *_summary(column)[:3]) for x, column in zip(at, levels.T, strict=True)]
    return Gain(bounds, value, low, high, p, shown, same, without)


def _curves(points: Sequence[Point], weights: Array, sign: float) -> tuple[Array, Array]:
    """(R, T) diversity and (R, T) quality of each draw, in the order given."""

    def drawn(figure: Figure) -> Array:
        return np.asarray(figure.metric.aggregate(weights @ figure.statistics, float(weights.shape[1])))

    diversity = np.stack([diversity_of(drawn(p.diversity)) for p in points], axis=1)
    return diversity, sign * np.stack([drawn(p.quality) for p in points], axis=1)


def _over_range(
    a: tuple[Array, Array], b: tuple[Array, Array]
) -> tuple[Array, Array, Array, tuple[float, float] | None]:
    """Mean difference of each draw (R,), the levels' diversity (L,) as measured, differences there (R, L), the range.

    NaN where a draw has no shared range; a level outside a draw's own range is NaN there.
    """
    means, bounds = np.full(len(a[0]), np.nan), None
    at: Array = np.full(len(LEVELS), np.nan)
    levels = np.full((len(a[0]), len(LEVELS)), np.nan)
    for r in range(len(a[0])):
        low = max(a[0][r].min(), b[0][r].min())
        high = min(a[0][r].max(), b[0][r].max())
        if r == 0 and high > low:
            bounds = (float(low), float(high))
            at = low + np.array(LEVELS) * (high - low)
        if bounds is None or high <= low:
            continue
        grid = np.linspace(low, high, GRID)
        apart = _at(a[0][r], a[1][r], grid) - _at(b[0][r], b[1][r], grid)
        means[r] = ((apart[1:] + apart[:-1]) / 2).mean()
        inside = (at >= low) & (at <= high)
        levels[r, inside] = np.interp(at[inside], grid, apart)
    return means, at, levels, bounds


def _at(diversity: Array, quality: Array, grid: Array) -> Array:
    order = np.argsort(diversity, kind="stable")
    return np.interp(grid, diversity[order], quality[order])


def _summary(drawn: Array) -> tuple[float, float, float, float]:
    """(value, low, high, p): row 0 is as measured, the rest are bootstrap draws; percentile interval, two-sided p."""
    value, rest = float(drawn[0]), drawn[1:][~np.isnan(drawn[1:])]
    if not len(rest):
        return value, float("nan"), float("nan"), 1.0
    low, high = np.quantile(rest, [0.025, 0.975])
    tail = min((rest <= 0).sum(), (rest >= 0).sum())
    return value, float(low), float(high), float(min(1.0, 2 * (tail + 1) / (len(rest) + 1)))


def verdict(gain: Gain, names: tuple[str, str], unit: Mapping[str, Any] | None = None) -> str:
    """The comparison in a sentence or two. `unit`: `factor` and `name` of what differences are written in."""
    first, second = names
    factor, unit_name = (unit or {}).get("factor", 1.0), (unit or {}).get("name", "")

    def shown(*values: float) -> list[str]:
        return [f"{factor * v:+.2f}".replace("-", "\N{MINUS SIGN}") for v in values]

    better = [s for s in gain.same if s[1] > 0 and s[4] < 0.05]
    if gain.value is None or gain.low is None or gain.high is None:
        text = f"The curves of {first} and {second} share no range of diversity"
        if gain.shared is not None:
            text = f"The curves of {first} and {second} share hardly any range of diversity"
        return f"{text}, so nothing can be said at equal diversity; measure other temperatures."
    value, low, high = shown(gain.value, gain.low, gain.high)
    text = f"At equal diversity {first} is {value}{unit_name} [{low}, {high}] against {second}"
    if gain.low > 0:
        return f"{text}: a gain that {second} does not reach by another temperature."
    if gain.high < 0:
        text += f": {second} is better."
    else:
        text += ": no difference beyond noise."
    if better:
        top = max(better, key=lambda s: s[1])
        text += (
            f" Its gain at temperature {top[0]:g} ({shown(top[1])[0]}{unit_name}) is no evidence of more: at another "
            f"temperature {second} is not told apart from it."
        )
    return text

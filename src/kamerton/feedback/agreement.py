"""How far labellers agree beyond chance: Cohen's kappa of two, Krippendorff's alpha of any number.

Kappa: Cohen 1960; weighted by squared or absolute distance: Cohen 1968. Alpha for nominal, ordinal and interval data
with missing values: Krippendorff 2011, "Computing Krippendorff's alpha-reliability". Intervals are percentiles of a
bootstrap over items: everything that was said about an item stays together, because its questions are alike.

What is left out: kappa of more than two (Fleiss); alpha covers it, and missing values too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]

RESAMPLES = 1000
_CELLS = 2_000_000
"""Numbers held at once while resampling."""


@dataclass(frozen=True, slots=True)
class Rating:
    """One value that one labeller gave.

    Attributes:
        item: what is resampled; several units may belong to one item.
        unit: what was judged.
        labeller: by whom.
        value: a number; of nominal data its size means nothing.
    """

    item: Hashable
    unit: Hashable
    labeller: str
    value: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient with its interval.

    Attributes:
        value: 1 is full agreement, 0 is chance, below 0 is worse; None where it is not defined, because all values are
            the same or nothing was judged twice.
        low, high: 95 % interval; None likewise, or where every resample lacks a value.
        units: what was judged at least twice; `values`: how many judgements of these there are.
        items: items that the units belong to.
        lost: share of resamples in which the coefficient is not defined.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int
    values: int
    items: int
    lost: float = 0.0


def krippendorff_alpha(
    ratings: Sequence[Rating], level: Level = "nominal", *, resamples: int = RESAMPLES, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha of any number of labellers, each of whom may have judged any part.

    Args:
        ratings: the values; of one labeller on one unit the last one counts.
        level: what values mean: names, an order, or distances.
    """
    values, coincidences, units, count = _coincidences(ratings)

    def alpha(weights: Array) -> Array:
        return _alpha(np.tensordot(weights, coincidences, axes=1), values, level)

    return _with_interval(alpha, coincidences, units, count, resamples, seed)


def cohen_kappa(
    ratings: Sequence[Rating], first: str, second: str, *, weights: Literal["linear", "quadratic"] | None = None,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Cohen's kappa of two labellers over what both judged.

    Args:
        first, second: their names.
        weights: None for names; by distance of values otherwise.
    """
    by_unit: dict[Hashable, dict[str, float]] = defaultdict(dict)
    items = {}
    for one in ratings:
        if one.labeller in (first, second):
            by_unit[one.unit][one.labeller] = one.value
            items[one.unit] = one.item
    both = [(items[u], said[first], said[second]) for u, said in by_unit.items() if len(said) == 2]
    values = np.unique([v for _, *pair in both for v in pair])
    places = {item: i for i, item in enumerate(dict.fromkeys(item for item, *_ in both))}
    tables = np.zeros((len(places), len(values), len(values)))
    for item, a, b in both:
        tables[places[item], np.searchsorted(values, a), np.searchsorted(values, b)] += 1
    gap = np.abs(values[:, None] - values[None, :])
    cost = (gap > 0).astype(float) if weights is None else gap if weights == "linear" else gap**2

    def kappa(drawn: Array) -> Array:
        table = np.tensordot(drawn, tables, axes=1)  # (R, V, V)
        total = table.sum((1, 2))
        by_chance = table.sum(2)[:, :, None] * table.sum(1)[:, None, :]
        expected = (by_chance * cost).sum((1, 2)) / np.maximum(total, 1)
        observed = (table * cost).sum((1, 2))
        return _one_minus(observed, expected)

    return _with_interval(kappa, tables, len(both), 2 * len(both), resamples, seed)


def labellers_of(ratings: Sequence[Rating]) -> list[str]:
    """Who judged, in alphabetical order."""
    return sorted({one.labeller for one in ratings})


def pairs_of_labellers(ratings: Sequence[Rating]) -> list[tuple[str, str]]:
    """Pairs of labellers who judged something in common."""
    seen: dict[str, set[Hashable]] = defaultdict(set)
    for one in ratings:
        seen[one.labeller].add(one.unit)
    return [(a, b) for a, b in combinations(sorted(seen), 2) if seen[a] & seen[b]]


def _coincidences(ratings: Sequence[Rating]) -> tuple[Array, Array, int, int]:
    """Values (V), each item's coincidence matrix (I, V, V), units with two values or more, and their values."""
    by_unit: dict[Hashable, dict[str, float]] = defaultdict(dict)
    items = {}
    for one in ratings:
        by_unit[one.unit][one.labeller] = one.value
        items[one.unit] = one.item
    twice = {unit: list(said.values()) for unit, said in by_unit.items() if len(said) > 1}
    values = np.unique([value for said in twice.values() for value in said])
    places = {item: i for i, item in enumerate(dict.fromkeys(items[unit] for unit in twice))}
    found = np.zeros((len(places), len(values), len(values)))
    for unit, said in twice.items():
        counts = np.bincount(np.searchsorted(values, said), minlength=len(values)).astype(float)
        # each ordered pair of values of a unit, so that a unit counts as often as it has values
        found[places[items[unit]]] += (np.outer(counts, counts) - np.diag(counts)) / (len(said) - 1)
    return values, found, len(twice), sum(map(len, twice.values()))


def _alpha(coincidences: Array, values: Array, level: Level) -> Array:
    """Alpha of R coincidence matrices (R, V, V)."""
    margins = coincidences.sum(2)  # (R, V)
    total = margins.sum(1)
    if level == "ordinal":
        # the distance of two values is how many lie between them, the halves of both included
        middle = np.cumsum(margins, 1) - margins / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    elif level == "interval":
        distance = ((values[:, None] - values[None, :]) ** 2)[None]
    else:
        distance = (values[:, None] != values[None, :]).astype(float)[None]
    observed = (coincidences * distance).sum((1, 2))
    by_chance = margins[:, :, None] * margins[:, None, :]  # its diagonal has no distance
    expected = (by_chance * distance).sum((1, 2)) / np.maximum(total - 1, 1e-9)
    return _one_minus(observed, expected)


def _one_minus(observed: Array, expected: Array) -> Array:
    defined = expected > 1e-12
    return np.where(defined, 1 - observed / np.where(defined, expected, 1), np.nan)


def _with_interval(
    coefficient: Callable[[Array], Array], tables: Array, units: int, count: int, resamples: int, seed: int
) -> Agreement:
    """The coefficient of all items, and its percentiles over resamples; `tables`: (I, V, V)."""
    items = len(tables)
    if not items:
        return Agreement(None, None, None, 0, 0, 0)
    value = float(coefficient(np.ones((1, items)))[0])
    if np.isnan(value):
        return Agreement(None, None, None, units, count, items)
    drawn = resampled(coefficient, items, resamples, seed, tables[0].size)
    kept = drawn[~np.isnan(drawn)]
    if len(kept) == 0 or items < 2:
        return Agreement(value, None, None, units, count, items, 1.0)
    low, high = np.quantile(kept, (0.025, 0.975))
    return Agreement(value, float(low), float(high), units, count, items, 1 - len(kept) / len(drawn))


def resampled(statistic: Callable[[Array], Array], items: int, resamples: int, seed: int, cells: int = 1) -> Array:
    """A statistic of weights (R, items) over resamples of the items, drawn with replacement; a part at a time.

    Args:
        cells: numbers that the statistic holds for each resample, or for each item.
    """
    rng, parts = np.random.default_rng(seed), []
    chunk = max(1, _CELLS // max(items, cells))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        weights = rng.multinomial(items, np.full(items, 1 / items), size=size).astype(float)
        parts.append(statistic(weights))
    return np.concatenate(parts)

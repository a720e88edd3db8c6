"""Resampling of test examples: a bootstrap that all methods share, and swaps between two methods.

Metrics come as statistics that add up over examples (see evaluation/metrics.py), so a resample is a product of a matrix
of weights with the statistics, and any metric is exact on it. Every method's sums are formed once; pairs only combine
them. What the draws mean (intervals, p-values) is decided in evaluation/statistics.py.

Sources: Efron and Tibshirani 1993 (bootstrap); Phipson and Smyth 2010 (permutation p-values are never zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse
from scipy import stats

Array = np.ndarray[Any, Any]
SeedScores = Mapping[int, Array]

_CELLS_A_CHUNK = 4_000_000  # numbers held at once while resampling: 32 MB


class AdditiveMetric(Protocol):
    """What this module needs of a metric: a value from summed per-example statistics (see evaluation/metrics.py)."""

    @property
    def range(self) -> tuple[float, float]: ...

    def aggregate(self, sums: Array, count: Array | float) -> Array: ...


@dataclass(frozen=True, slots=True)
class Resampled:
    """One method's metric: by seed (K,), and by bootstrap resample and seed (R, K)."""

    seeds: tuple[int, ...]
    values: Array
    draws: Array
    statistics: Array  # (N, K, S)
    deterministic: bool

    def pick(self, seeds: Sequence[int]) -> Resampled:
        index = [self.seeds.index(seed) for seed in seeds]
        statistics = self.statistics[:, index]
        return Resampled(tuple(seeds), self.values[index], self.draws[:, index], statistics, same(statistics))

    def seed_variance(self) -> tuple[float, float]:
        """Variance of the metric between seeds, and the part of it that is interaction with the examples drawn."""
        if len(self.seeds) < 2 or self.deterministic:
            return 0.0, 0.0
        n = len(self.statistics)
        between = float(np.var(self.values, ddof=1))
        apart = self.draws - self.draws.mean(1, keepdims=True)
        interaction = float(apart.var(0).sum() / (len(self.seeds) - 1)) * n / max(n - 1, 1)
        return between, interaction


def stack(label: str, by_seed: SeedScores) -> tuple[tuple[int, ...], Array]:
    """Seeds in order and statistics (N, K, S)."""
    if not by_seed:
        raise ValueError(f"no seeds for {label!r}")
    seeds = tuple(sorted(by_seed))
    arrays = [np.asarray(by_seed[s], dtype=np.float64) for s in seeds]
    if any(a.ndim != 2 or a.shape != arrays[0].shape or not len(a) for a in arrays):
        raise ValueError(f"statistics of {label!r} must be (N, S) with the same N > 0 for all seeds")
    return seeds, np.stack(arrays, axis=1)


def same(statistics: Array) -> bool:
    return statistics.shape[1] > 1 and bool((statistics == statistics[:, :1]).all())


def _weigh(weights: Array, statistics: Array) -> Array:
    """weights (R, N) and statistics (N, K, S) -> weighted sums (R, K, S)."""
    n, k, s = statistics.shape
    flat = statistics.reshape(n, k * s)
    if s > 8 and np.count_nonzero(flat) < 0.2 * flat.size:  # counts by class are nearly all zero
        sums = (scipy.sparse.csr_array(flat.T) @ weights.T).T
    else:
        sums = weights @ flat
    return sums.reshape(len(weights), k, s)


def _chunks(total: int, cells: int) -> Iterator[int]:
    size = max(1, min(total, _CELLS_A_CHUNK // max(cells, 1)))
    for start in range(0, total, size):
        yield min(size, total - start)


def bootstrap(
    arrays: Mapping[str, tuple[tuple[int, ...], Array]],
    metric: AdditiveMetric,
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Resampled]:
    """Resample examples, the same ones for all methods and seeds."""
    if not arrays:
        return {}
    n = next(iter(arrays.values()))[1].shape[0]
    cells = max([n, *(a.shape[1] * a.shape[2] for _, a in arrays.values())])
    draws: dict[str, list[Array]] = {label: [] for label in arrays}
    for rows in _chunks(resamples, cells):
        picks = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        for label, (_, statistics) in arrays.items():
            draws[label].append(metric.aggregate(_weigh(weights, statistics), float(n)))
    return {
        label: Resampled(
            seeds,
            np.asarray(metric.aggregate(statistics.sum(0), float(n)), dtype=float),
            np.concatenate(draws[label]),
            statistics,
            same(statistics),
        )
        for label, (seeds, statistics) in arrays.items()
    }


def permutation_p_values(
    methods: Mapping[str, Resampled],
    pairs: Sequence[tuple[str, str, tuple[int, ...]]],
    metric: AdditiveMetric,
    permutations: int,
    rng: np.random.Generator,
) -> list[tuple[float, str]]:
    """P-value and name of the test for each pair; two-sided, swapping an example's answers for all seeds together."""
    results: list[tuple[float, str] | None] = []
    for a, b, seeds in pairs:
        first, second = methods[a].pick(seeds), methods[b].pick(seeds)
        single = len(seeds) == 1 or (first.deterministic and second.deterministic)
        x, y = first.statistics[:, 0], second.statistics[:, 0]
        if single and x.shape[1] == 1 and np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all():
            up, down = int((x > y).sum()), int((x < y).sum())
            p = float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0
            results.append((p, "mcnemar"))
        else:
            results.append(None)
    todo = [i for i, result in enumerate(results) if result is None]
    labels = sorted({label for i in todo for label in pairs[i][:2]})
    if todo:
        n = methods[labels[0]].statistics.shape[0]
        sums = {label: methods[label].statistics.sum(0) for label in labels}
        cells = max([n, *(2 * sums[label].size for label in labels)])
        extreme = dict.fromkeys(todo, 0)
        for rows in _chunks(permutations, cells):
            swaps = rng.integers(0, 2, size=(rows, n), dtype=np.int8).astype(np.float64)
            moved = {label: _weigh(swaps, methods[label].statistics) for label in labels}
            for i in todo:
                a, b, seeds = pairs[i]
                ka = [methods[a].seeds.index(s) for s in seeds]
                kb = [methods[b].seeds.index(s) for s in seeds]
                shift = moved[b][:, kb] - moved[a][:, ka]
                drawn = (
                    metric.aggregate(sums[a][ka] + shift, float(n)) - metric.aggregate(sums[b][kb] - shift, float(n))
                ).mean(1)
                observed = float((methods[a].values[ka] - methods[b].values[kb]).mean())
                # sums in another order differ in the last bits: ties must count as ties
                slack = 1e-9 * max(1.0, float(np.abs(methods[a].values).max()))
                extreme[i] += int((np.abs(drawn) >= abs(observed) - slack).sum())
        for i in todo:
            results[i] = ((extreme[i] + 1) / (permutations + 1), "permutation")
    return [result for result in results if result is not None]

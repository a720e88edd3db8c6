"""Spearman's rank correlation, which is no sum over examples, by jackknife pseudo-values (Miller 1974).

Ranks depend on the whole sample. What stands for an example is therefore how much the correlation moves without it:
N·ρ − (N − 1)·ρ without it, shifted so that their mean over the whole sample is ρ itself. On the sample the value is
exact; on resamples of it, and so in intervals, it is the jackknife's linear approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kamerton.evaluation.metrics import Metric
from kamerton.evaluation.value_metrics import answered_numbers, reference_numbers
from kamerton.tasks.example import Example

_CHUNK = 512


def midranks(x: np.ndarray) -> np.ndarray:
    """(N,) ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(…, N), (…, N) → (…) Pearson's correlation; 0 where one side does not vary."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), spread, out=np.zeros_like(spread), where=spread > 1e-12)


def leave_one_out(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,) Spearman's correlation without each of the N pairs."""
    n = len(x)
    ranks = [midranks(v) for v in (x, y)]
    out = np.zeros(n)
    for start in range(0, n, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, n))
        left = []
        for v, r in zip((x, y), ranks, strict=True):
            # whoever is above the one that is gone moves down by one, whoever equals it by a half
            less = r[None, :] - (v[None, :] > v[rows, None]) - 0.5 * (v[None, :] == v[rows, None])
            keep = np.arange(n)[None, :] != rows[:, None]
            left.append(less[keep].reshape(len(rows), n - 1))
        out[rows] = _correlation(*left)
    return out


class Spearman:
    """Spearman's correlation of the answer's last number with the reference's. S = 1, a pseudo-value.

    An answer without a number counts as the mean of the references, as in `pearson`. 0 where it is not defined.
    """

    name = "spearman"
    higher_is_better = True
    range = (-1.0, 1.0)

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 1)."""
        y, n = reference_numbers(examples), len(examples)
        if not n:
            return np.zeros((0, 1))
        x = answered_numbers(answers, float(y.mean()))
        value = float(_correlation(midranks(x), midranks(y)))
        if n < 3:
            return np.full((n, 1), value)
        without = leave_one_out(x, y)
        return (value + (n - 1) * (without.mean() - without))[:, None]

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
        """The mean, within the range."""
        return np.clip(np.asarray(sums, dtype=np.float64)[..., 0] / count, -1.0, 1.0)


METRICS: dict[str, Callable[[str, str, Sequence[Example] | None], Metric]] = {
    "spearman": lambda _name, _parameter, _examples: Spearman(),
}

"""What n answers of K sampled ones would have given, without bias: the best of n, pass@n, votes of n.

From K samples of a question the expectation over all subsets of n is exact where what is taken depends on an order
alone: the sample that is i-th from below (i = 1 … K) is the highest of a random subset of n with probability
C(i − 1, n − 1) / C(K, n). So the expected reward of the best of n, or any statistics of the answer with the best score,
are one weighted sum. With rewards 0 and 1 it is pass@n = 1 − C(K − c, n) / C(K, n) of Chen et al. 2021 (arXiv
2107.03374). A vote depends on more than an order: there subsets are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def weights(samples: int, n: int) -> Array:
    """(K,) probabilities that the sample at each place, lowest first, is the highest of a random subset of n.

    Raises:
        ValueError: n is not in 1 … K.
    """
    if not 1 <= n <= samples:
        raise ValueError(f"a subset of {n} of {samples}")
    whole = comb(samples, n)
    return np.array([comb(i, n - 1) / whole for i in range(samples)])


def expected_best(rewards: Array, n: int) -> Array:
    """(..., K) rewards of samples → (...) expected reward of the best of n."""
    ordered = np.sort(np.asarray(rewards, dtype=np.float64), axis=-1)
    return np.asarray(ordered @ weights(ordered.shape[-1], n))


def expected_chosen(scores: Array, statistics: Array, n: int) -> Array:
    """Statistics of the answer that has the best score among n; of equal scores the first sample is taken.

    Args:
        scores: (N, K) by which an answer is chosen.
        statistics: (N, K, S) of every answer.
        n: answers that are chosen from.

    Returns:
        (N, S), expected over all subsets of n.
    """
    rising = ranking(scores)
    ordered = np.take_along_axis(np.asarray(statistics, dtype=np.float64), rising[:, :, None], axis=1)
    return np.asarray(np.einsum("nks,k->ns", ordered, weights(ordered.shape[1], n)))


def ranking(scores: Array) -> Array:
    """(N, K) scores → (N, K) numbers of the samples, worst first; of equal ones the first sample is the better one."""
    backwards = np.asarray(scores)[:, ::-1]
    rising = np.argsort(backwards, axis=1, kind="stable")
    return np.asarray(backwards.shape[1] - 1 - rising)


def best(scores: Sequence[float]) -> int:
    """The number of the best score; of equal ones the first."""
    return int(np.argmax(scores))


def pass_at(samples: int, right: int, n: int) -> float:
    """The chance that one of n answers is right, from `right` of `samples` that are."""
    return 1.0 - comb(samples - right, n) / comb(samples, n)


def subsets(samples: int, n: int, most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All subsets of n numbers below `samples`, in order; where there are more than `most`, so many that are drawn."""
    if comb(samples, n) <= most:
        return list(combinations(range(samples), n))
    return [tuple(sorted(rng.choice(samples, n, replace=False).tolist())) for _ in range(most)]


def sizes(most: int) -> list[int]:
    """1, 2, 4, … and the number itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]

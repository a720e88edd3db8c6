"""The order of shots by entropy (Lu et al. 2022, arXiv 2104.08786), from what a model answers to unlabelled questions.

A bad order makes a model say the same label to everything. *GlobalE* is the entropy of the labels that it predicts over
many questions; *LocalE* the mean entropy of its probabilities for each question. The order with the highest one is
taken. No answer key is read. Both lean on labels being about equally common.

What it leaves out: the paper lets the model write the questions itself; here they are the validation questions.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Order = tuple[int, ...]


def orders(count: int, most: int, seed: int) -> list[Order]:
    """Different permutations of `count` shots, the given one first: all if they are at most `most`, else drawn."""
    if math.factorial(count) <= most:
        return list(itertools.permutations(range(count)))
    rng = np.random.default_rng([seed, 23])
    found = [tuple(range(count))]
    while len(found) < most:
        drawn = tuple(int(i) for i in rng.permutation(count))
        if drawn not in found:
            found.append(drawn)
    return found


def probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, K) log-probabilities of choices → their probabilities among themselves."""
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def global_entropy(p: NDArray[np.float64]) -> float:
    """Entropy in nats of the labels predicted over N questions, from (N, K) probabilities."""
    share = np.bincount(p.argmax(-1), minlength=p.shape[1]) / len(p)
    return _entropy(share)


def local_entropy(p: NDArray[np.float64]) -> float:
    """Mean over N questions of the entropy in nats of their (N, K) probabilities."""
    return float(np.mean([_entropy(row) for row in p]))


def _entropy(p: NDArray[np.float64]) -> float:
    seen = p[p > 0]
    return float(-(seen * np.log(seen)).sum()) + 0.0

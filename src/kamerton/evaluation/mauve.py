"""MAUVE: how far the distribution of sampled answers is from the references' (Pillutla et al. 2021, arXiv 2102.01454).

Both sets of texts become histograms P and Q over the same buckets (features of a frozen model, quantised:
`clusters.py`). With R_w = w P + (1 − w) Q, the divergence curve is {(exp(−c KL(Q ‖ R_w)), exp(−c KL(P ‖ R_w))) : 0 < w
< 1} (section 2, equation 1 with c = 5), and MAUVE is the area under it: 1 where P = Q, near 0 where they have nothing
in common. KL(Q ‖ R) grows where the model says what references never do, KL(P ‖ R) where it never says what they do.

Histograms are means over questions, so that a resample of questions is a resample of both, and the number is a function
of a sum. The buckets are held fixed in it. A finite sample of the references themselves does not reach 1: the fewer
questions for each bucket, the lower; compare it with other models on the same questions, not with other papers'
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamerton.evaluation.figures import Figure

Array = np.ndarray[Any, Any]

SCALING = 5.0
"""c of the paper."""
WEIGHTS = 25
"""Points of the curve that are computed."""
PER_BUCKET = 10
"""Texts of the smaller set for each bucket; the paper has between 5 and 20 (appendix C)."""
MOST_BUCKETS = 500


def buckets_for(texts: int) -> int:
    """Buckets for a smaller set of so many texts."""
    return min(max(2, round(texts / PER_BUCKET)), MOST_BUCKETS)


def _divergence(first: Array, second: Array) -> Array:
    """KL(first ‖ second) in nats over the last axis; second is positive wherever first is (but for underflow)."""
    ratio = np.divide(first, second, out=np.ones_like(first), where=(first > 0) & (second > 0))
    return (first * np.log(ratio)).sum(-1)


def curve(p: Array, q: Array, *, scaling: float = SCALING, weights: int = WEIGHTS) -> Array:
    """The divergence curve of histograms p and q, (…, K) each: (weights + 2, 2, …), with its ends (1, 0) and (0, 1).

    Points are (exp(−c KL(q ‖ r)), exp(−c KL(p ‖ r))), from r = q to r = p.
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    shape = p.shape[:-1]
    points = [np.stack([np.ones(shape), np.zeros(shape)])]
    for w in np.linspace(1e-6, 1 - 1e-6, weights):
        r = w * p + (1 - w) * q
        points.append(np.exp(-scaling * np.stack([_divergence(q, r), _divergence(p, r)])))
    points.append(np.stack([np.zeros(shape), np.ones(shape)]))
    return np.stack(points)


def area(points: Array) -> Array:
    """Area under a curve as `curve` gives it, by trapezes: (T, 2, …) → (…)."""
    x, y = points[:, 0], points[:, 1]
    return ((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2).sum(0)


def mauve(p: Array, q: Array, *, scaling: float = SCALING) -> Array:
    """MAUVE of two histograms (…, K) that sum to 1."""
    return area(curve(p, q, scaling=scaling))


@dataclass(frozen=True)
class Mauve:
    """MAUVE from summed histograms. S = 2K: the references' buckets, then the samples'.

    `range` is infinite for the statistics: Wilson's interval takes a score's variance for that of a share, which near 1
    MAUVE's is not (0.9996 would get an interval down to 0.04). `bounds` cut the symmetric interval instead.
    """

    range: tuple[float, float] = (-np.inf, np.inf)
    bounds: tuple[float, float] = (0.0, 1.0)

    def aggregate(self, sums: Array, count: Array | float) -> Array:  # noqa: ARG002 (contract)
        p, q = np.split(np.asarray(sums, dtype=np.float64), 2, axis=-1)
        return mauve(p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True))


def histograms(labels: Sequence[Sequence[int]], buckets: int) -> Array:
    """(N, K): for each question the share of its texts in each bucket; `labels` are the buckets of its texts."""
    rows = np.zeros((len(labels), buckets))
    for row, own in zip(rows, labels, strict=True):
        np.add.at(row, list(own), 1 / len(own))
    return rows


def figure(references: Array, samples: Array) -> Figure:
    """The figure from `histograms` of both, (N, K) each, of the same questions."""
    return Figure(Mauve(), np.concatenate([references, samples], axis=1), "higher")

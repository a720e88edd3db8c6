"""Quantisation of features: principal components, then k-means, so that clouds of points become histograms.

Points carry weights: a text that was sampled a hundred times is one point of weight 100, and references may weigh as
much as all samples together. k-means++ starts (Arthur and Vassilvitskii 2007), Lloyd's steps until nothing moves, the
best of several starts. NumPy alone; exact and the same for the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Quantiser:
    """From features to buckets.

    Attributes:
        mean: (D,); `components`: (C, D); `centres`: (K, C), in the space of the components.
    """

    mean: Array
    components: Array
    centres: Array

    @property
    def buckets(self) -> int:
        return len(self.centres)

    def __call__(self, features: Array) -> Array:
        """(M, D) features → (M,) the bucket of each."""
        return _squared((unit(features) - self.mean) @ self.components.T, self.centres).argmin(1)


def unit(features: Array) -> Array:
    """Features at length 1, (M, D); zero stays zero."""
    features = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1.0)


def quantiser(
    features: Array, weights: Array, buckets: int, *, explained: float = 0.9, starts: int = 5, seed: int = 0
) -> Quantiser:
    """Fit components that explain this share of the variance, and at most `buckets` centres.

    Args:
        features: (M, D); each is scaled to length 1.
        weights: (M,), positive.
    """
    points, weights = unit(features), np.asarray(weights, dtype=np.float64)
    centre = weights @ points / weights.sum()
    _, values, rows = np.linalg.svd((points - centre) * np.sqrt(weights)[:, None], full_matrices=False)
    share = np.cumsum(values**2) / max(float((values**2).sum()), 1e-300)
    kept = int(np.searchsorted(share, explained)) + 1
    components = rows[:kept]
    low = (points - centre) @ components.T
    rng = np.random.default_rng([seed, 2102])
    found = [_lloyd(low, weights, _start(low, weights, buckets, rng)) for _ in range(starts)]
    return Quantiser(centre, components, min(found, key=lambda one: one[0])[1])


def _squared(points: Array, centres: Array) -> Array:
    """Squared distances (M, K)."""
    far = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
    return np.maximum(far, 0.0)


def _start(points: Array, weights: Array, buckets: int, rng: np.random.Generator) -> Array:
    """k-means++: each centre is drawn in proportion to weight times squared distance; fewer where points repeat."""
    chosen = [points[rng.choice(len(points), p=weights / weights.sum())]]
    nearest = ((points - chosen[0]) ** 2).sum(1)
    while len(chosen) < buckets:
        mass = weights * np.where(nearest > 1e-12, nearest, 0.0)
        if not mass.any():
            break
        chosen.append(points[rng.choice(len(points), p=mass / mass.sum())])
        nearest = np.minimum(nearest, ((points - chosen[-1]) ** 2).sum(1))
    return np.stack(chosen)


def _lloyd(points: Array, weights: Array, centres: Array, most: int = 300) -> tuple[float, Array]:
    """(weighted inertia, centres) once no point changes its bucket. A centre that lost all points stays where it is."""
    labels = np.full(len(points), -1)
    for _ in range(most):
        far = _squared(points, centres)
        new = far.argmin(1)
        if (new == labels).all():
            break
        labels = new
        mass = np.bincount(labels, weights, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points * weights[:, None])
        centres = np.where(mass[:, None] > 0, sums / np.where(mass > 0, mass, 1.0)[:, None], centres)
    return float((weights * _squared(points, centres).min(1)).sum()), centres

"""Intervals of a fit by a parametric bootstrap.

Sizes and tokens of a grid are chosen, not drawn, so it is the noise of the losses that is drawn anew: each replicate
has the law's losses times the exponential of normal noise. Its variance is the sum of squares of the K residuals by
K − P for a law with P numbers, and is drawn too (from its χ² distribution), because few points tell little about it.
Resampling the residuals themselves would not do: a fit by (nearly) absolute values passes exactly through P points, and
residuals of zero make intervals much too narrow. What the intervals do not hold is that the law may have another form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kamerton.pretraining.scaling.law import Array, Fit, fit

Watch = Callable[[int, int], None]
LEVEL = 0.95


def losses_again(of: Fit, losses: Array, count: int, seed: int) -> Array:
    """(R, K) losses as they might have come out.

    Args:
        of: the fit of them; losses: (K,) nats a token.
        count: R replicates.

    Raises:
        ValueError: as many numbers as points or more, so that nothing is known about the noise.
    """
    k, p = len(losses), len(of.law.parameters)
    if k <= p:
        raise ValueError(f"{k} points say nothing about the noise of a law with {p} numbers")
    random = np.random.default_rng(seed)
    variance = float((of.residuals**2).sum()) / random.chisquare(k - p, size=(count, 1))
    at_law = np.log(losses) - of.residuals
    return np.asarray(np.exp(at_law + np.sqrt(variance) * random.normal(size=(count, k))))


def refitted(of: Fit, sizes: Array, tokens: Array, again: Array, watch: Watch | None = None) -> list[Fit]:
    """The law fitted to each replicate (R, K), from where the fit of the data is."""
    out = []
    for i, losses in enumerate(again):
        out.append(fit(of.law, sizes, tokens, losses, near=of))
        if watch is not None:
            watch(i + 1, len(again))
    return out


def interval(value: float, replicates: Sequence[float]) -> dict[str, Any]:
    """A value with the percentile interval of its replicates; those that are nan are left out.

    What is infinite is None, as JSON has no number for it: the value, or an end of the interval.
    """
    found = np.asarray([v for v in replicates if not np.isnan(v)], float)
    ends: Sequence[float] = (math.inf, math.inf)
    if len(found) > 1:
        with np.errstate(invalid="ignore"):  # between inf and inf is nan
            ends = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    told = zip(("value", "low", "high"), (value, *ends), strict=True)
    return {name: v if math.isfinite(v) else None for name, v in told}

"""IsoFLOP profiles: approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556).

At one amount of compute the losses of models of several sizes lie on a parabola over log N; its lowest point is the
best size for that compute. A power law through the lowest points gives N_opt ∝ C^a without any assumption about the
form of L(N, D). Where the grid has no runs of equal compute, each size's loss is read off between its runs, along lines
between logarithms of compute and loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ALIKE = 0.03
"""Relative difference of compute below which runs belong to one profile (a run ends with a whole step)."""
LEVELS = 5
"""Profiles that are read off between runs."""


@dataclass(frozen=True)
class Profile:
    """Losses at one amount of compute.

    Attributes:
        flops: C.
        sizes, losses: (K,) in rising order of size; loss in nats a token.
        curve: (3,) of log L = c₀ x² + c₁ x + c₂, x = log N.
        best: size at the lowest point; None where the parabola has none among the sizes (its ends included).
        read: whether losses were read off between runs.
    """

    flops: float
    sizes: Array
    losses: Array
    curve: Array
    best: float | None
    read: bool

    @property
    def loss(self) -> float | None:
        """At the lowest point."""
        return None if self.best is None else float(np.exp(np.polyval(self.curve, math.log(self.best))))


def profiles(
    sizes: Sequence[float] | Array, flops: Sequence[float] | Array, losses: Sequence[float] | Array
) -> list[Profile]:
    """The profiles of measured runs, by rising compute; those with three sizes or more.

    Args:
        sizes, flops, losses: (K,) parameters, training FLOPs, nats a token of each run.
    """
    n, c, y = (np.asarray(v, float) for v in (sizes, flops, losses))
    out = [_profile(float(np.exp(np.log(c[rows]).mean())), n[rows], y[rows], read=False) for rows in _alike(n, c)]
    if not out:
        out = [_profile(level, *at, read=True) for level, at in _between(n, c, y)]
    return out


def _alike(n: Array, c: Array) -> list[Array]:
    """Rows of runs that cost the same."""
    order, groups = np.argsort(c), []
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or c[order[i]] > c[order[start]] * (1 + ALIKE):
            rows = order[start:i]
            if len(set(n[rows])) >= 3:
                groups.append(rows)
            start = i
    return groups


def _between(n: Array, c: Array, y: Array) -> list[tuple[float, tuple[Array, Array]]]:
    """Amounts of compute that three sizes or more have runs around, each with those sizes and their losses."""
    lines = []
    for size in np.unique(n):
        rows = np.flatnonzero(n == size)
        costs = np.unique(c[rows])
        # several seeds of one run: their mean
        lines.append((size, np.log(costs), np.array([np.log(y[rows][c[rows] == one]).mean() for one in costs])))
    lines = [line for line in lines if len(line[1]) > 1]
    if len(lines) < 3:
        return []
    # the third lowest start and the third highest end: between them three sizes are known, if not everywhere
    low = sorted(line[1][0] for line in lines)[2]
    high = sorted((line[1][-1] for line in lines), reverse=True)[2]
    out = []
    for level in np.linspace(low, high, LEVELS) if high > low else []:
        at = [(s, np.interp(level, x, v)) for s, x, v in lines if x[0] - 1e-9 <= level <= x[-1] + 1e-9]
        if len(at) >= 3:
            found = np.array([s for s, _ in at]), np.exp(np.array([v for _, v in at]))
            out.append((float(np.exp(level)), found))
    return out


def _profile(flops: float, sizes: Array, losses: Array, *, read: bool) -> Profile:
    order = np.argsort(sizes)
    n, y = sizes[order], losses[order]
    curve = np.polyfit(np.log(n), np.log(y), 2)
    best = None
    if curve[0] > 0:
        lowest = math.exp(min(max(-curve[1] / (2 * curve[0]), -700.0), 700.0))
        best = lowest if n[0] <= lowest <= n[-1] else None
    return Profile(flops, n, y, curve, best, read)


def power(found: Sequence[Profile]) -> tuple[float, float] | None:
    """(a, log k) of N_opt = k C^a through the lowest points; None for fewer than two of them."""
    points = [(math.log(p.flops), math.log(p.best)) for p in found if p.best is not None]
    if len(points) < 2:
        return None
    slope, at_one = np.polyfit([c for c, _ in points], [n for _, n in points], 1)
    return float(slope), float(at_one)

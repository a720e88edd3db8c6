"""How strong models are, from which of two answers was better: win rates, and Bradley–Terry scores.

P(i beats j) = 1 / (1 + exp(s_j − s_i)), Bradley and Terry 1952; a tie is half a win of both. The likelihood is
maximised by Newton's method with step halving, for all resamples of a bootstrap at once. Hunter 2004, "MM algorithms
for generalized Bradley–Terry models", says when a maximum exists: when no set of models won (or lost) everything
against the others, in graph words, when the graph of wins is strongly connected.

* Models that no chain of comparisons connects cannot be compared. They fall into groups; each has a mean score of 0.
* Where a group has no maximum, every model is given one tie against an imaginary model of score 0, and that is said.
  Resamples of the bootstrap without a maximum get the same; the end of an interval is then a cautious one.

What is left out: an effect of the side (sides are random, and how often the left one won is reported), and ties as an
outcome of their own (Davidson 1970).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from kamerton.feedback.agreement import RESAMPLES, resampled

Array = NDArray[np.float64]

STEPS = 60
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models' answers to one item, compared by somebody.

    Attributes:
        item: what is resampled.
        won: of the first model: 1, 0.5 for a tie, 0.
    """

    item: Hashable
    first: str
    second: str
    won: float


@dataclass(frozen=True, slots=True)
class Strength:
    """One model among others.

    Attributes:
        comparisons: how many it took part in; `wins`, `losses`: of these; the rest are ties.
        rate, rate_low, rate_high: share won, ties as half, with a 95 % interval.
        score, low, high: Bradley–Terry score in log-odds, with a 95 % interval; None where there is only one item.
        group: models of different groups cannot be compared; groups count from 0.
    """

    model: str
    comparisons: int
    wins: int
    losses: int
    rate: float
    rate_low: float
    rate_high: float
    score: float
    low: float | None
    high: float | None
    group: int


@dataclass(frozen=True, slots=True)
class Strengths:
    """All models, those of a group together, best first.

    Attributes:
        models: their strengths.
        wins: (M, M) share-weighted wins of the row's model over the column's, ties as half; `counts`: comparisons.
        groups: how many groups there are.
        bounded: groups whose likelihood has no maximum; their scores are those with a tie added to each model.
        added: share of resamples where that was done.
    """

    models: tuple[Strength, ...]
    wins: Array
    counts: Array
    groups: int
    bounded: tuple[int, ...]
    added: float


def strengths(comparisons: Sequence[Comparison], *, resamples: int = RESAMPLES, seed: int = 0) -> Strengths:
    """Win rates and Bradley–Terry scores with intervals from a bootstrap over items.

    Args:
        comparisons: of different models each.
        seed: of the resampling.
    """
    names = sorted({m for c in comparisons for m in (c.first, c.second)})
    number, size = {name: i for i, name in enumerate(names)}, len(names)
    places = {item: i for i, item in enumerate(dict.fromkeys(c.item for c in comparisons))}
    wins = np.zeros((len(places), size, size))  # (I, M, M)
    decided = np.zeros((size, 2), dtype=int)
    for c in comparisons:
        a, b = number[c.first], number[c.second]
        wins[places[c.item], a, b] += c.won
        wins[places[c.item], b, a] += 1 - c.won
        decided[a] += (c.won == 1, c.won == 0)
        decided[b] += (c.won == 0, c.won == 1)
    total = wins.sum(0)
    count, group = connected_components(total + total.T, directed=False) if size else (0, np.zeros(0, dtype=int))
    scores, bounded = np.zeros(size), []
    for g in range(count):
        inside = np.flatnonzero(group == g)
        part = total[np.ix_(inside, inside)]
        if len(inside) > 1:
            if not has_maximum(part):
                bounded.append(g)
            scores[inside] = fit(part[None], prior=float(g in bounded))[0]
    drawn, added = _resample(wins, group, bounded, resamples, seed) if size else (np.zeros((1, 2, 0)), 0.0)
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0) if size else np.zeros((2, 2, 0))
    played, alone = (total + total.T).sum(1), len(places) < 2
    found = []
    for i, name in enumerate(names):
        rate = float(total[i].sum() / played[i])
        items = int(((wins[:, i] + wins[:, :, i]).sum(1) > 0).sum())
        # where each item went the same way, all resamples are alike and say nothing
        rates = wilson(rate, items) if low[0, i] == high[0, i] else (float(low[0, i]), float(high[0, i]))
        ends: tuple[float | None, float | None] = (None, None) if alone else (float(low[1, i]), float(high[1, i]))
        counts = int(played[i]), int(decided[i, 0]), int(decided[i, 1])
        found.append(Strength(name, *counts, rate, *rates, float(scores[i]), *ends, int(group[i])))
    order = sorted(range(size), key=lambda i: (group[i], -scores[i], names[i]))
    ranked = tuple(found[i] for i in order)
    return Strengths(ranked, total[np.ix_(order, order)], (total + total.T)[np.ix_(order, order)], count,
                     tuple(bounded), added)  # fmt: skip


def _resample(
    wins: Array, group: NDArray[np.int_], bounded: Sequence[int], resamples: int, seed: int
) -> tuple[Array, float]:
    """Win rates and scores of resamples (R, 2, M), and the share of resamples that needed ties added."""
    items, size = wins.shape[:2]
    flat = wins.reshape(items, -1)
    needed: list[Array] = []

    def statistic(weights: Array) -> Array:
        table = (weights @ flat).reshape(-1, size, size)
        played = (table + table.transpose(0, 2, 1)).sum(2)
        # a model that a resample does not have: the resample says nothing about it
        rates = np.where(played > 0, table.sum(2) / np.maximum(played, 1e-9), np.nan)
        scores = np.zeros_like(rates)
        needs = np.zeros(len(table), dtype=bool)
        for g in np.unique(group):
            inside = np.flatnonzero(group == g)
            part = table[:, inside[:, None], inside]
            if len(inside) > 1:
                short = np.array([not has_maximum(one) for one in part]) | (g in bounded)
                needs |= short
                scores[:, inside] = fit(part, prior=short.astype(float))
        needed.append(needs)
        return np.stack([rates, np.where(played > 0, scores, np.nan)], 1)

    drawn = resampled(statistic, items, resamples, seed, cells=size * size * 4)
    return drawn, float(np.concatenate(needed).mean())


def wilson(rate: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share of `count` independent outcomes (Wilson 1927)."""
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def has_maximum(wins: Array) -> bool:
    """Whether the likelihood of wins (M, M) has a finite maximum: the graph of wins is strongly connected."""
    return bool(connected_components(wins > 0, directed=True, connection="strong")[0] == 1)


def fit(wins: Array, prior: float | Array = 0.0) -> Array:
    """Bradley–Terry scores, their mean 0 in each table.

    Args:
        wins: (R, M, M) wins of the row's model over the column's; fractions are fine. Each table has a maximum, or a
            prior.
        prior: (R) or one for all: how many ties against a model of score 0 each model is given.

    Returns:
        (R, M) in log-odds.
    """
    tables, size = wins.shape[:2]
    extra = np.broadcast_to(np.asarray(prior, dtype=float), (tables,))[:, None]  # (R, 1)
    counts = wins + wins.transpose(0, 2, 1)
    won = wins.sum(2) + extra / 2
    scores = np.zeros((tables, size))

    def likelihood(s: Array) -> Array:
        gap = s[:, :, None] - s[:, None, :]
        bound = extra / 2 * (np.logaddexp(0, s) + np.logaddexp(0, -s))
        return -(wins * np.logaddexp(0, -gap)).sum((1, 2)) - bound.sum(1)

    best = likelihood(scores)
    for _ in range(STEPS):
        chance = _logistic(scores[:, :, None] - scores[:, None, :])
        own = _logistic(scores)
        gradient = won - (counts * chance).sum(2) - extra * own
        if np.abs(gradient).max(initial=0) < _TOLERANCE * max(1.0, float(counts.max(initial=0))):
            break
        curvature = counts * chance * (1 - chance)
        hessian = -curvature
        diagonal = curvature.sum(2) + extra * own * (1 - own)
        hessian[:, range(size), range(size)] += diagonal
        # a constant added to all scores changes nothing; this fixes it, and the mean of a step is 0
        step = np.linalg.solve(hessian + 1 / size, gradient[:, :, None])[:, :, 0]
        step *= np.minimum(1, 3 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))
        length = np.ones(tables)
        for _halving in range(30):
            tried = likelihood(scores + length[:, None] * step)
            worse = tried < best - 1e-12 * np.abs(best)
            if not worse.any():
                break
            length = np.where(worse, length / 2, length)
        scores = scores + length[:, None] * step
        best = likelihood(scores)
    return scores - scores.mean(1, keepdims=True)


def _logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))

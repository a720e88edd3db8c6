"""What is best for an amount of compute: the size N and the tokens D at which a fitted law has its smallest loss.

Hoffmann et al. 2022 take C = 6 N D, and then N_opt = G (C/6)^a and D_opt = (C/6)^b / G with a = β/(α+β), b = α/(α+β),
G = (αA/βB)^(1/(α+β)). A small model's FLOPs are not 6 N D (its output layer and its attention weigh as much as the
rest), and seconds are not FLOPs; for these the smallest loss is sought over N with a cost of a token that was counted
or measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kamerton.pretraining.scaling.law import BOTH, Array, Fit

Cost = Callable[[Array], Array]
"""What training on one token costs models of so many parameters."""


def six(size: Array) -> Array:
    """The usual estimate of the FLOPs of a token: two for a multiplication, three passes."""
    return 6.0 * np.asarray(size, float)


@dataclass(frozen=True)
class Optimum:
    """The best for a budget: parameters, tokens, and the loss that the law foretells (nats a token)."""

    budget: float
    size: float
    tokens: float
    loss: float


def exponents(fit: Fit) -> tuple[float, float]:
    """(a, b) of N_opt ∝ C^a and D_opt ∝ C^b where C = 6 N D.

    For Kaplan's formula 1.5 the powers αN/αD and 1 inside the brackets have the part of α and β.
    """
    x = fit.numbers
    alpha, beta = (x["α"], x["β"]) if fit.law is BOTH else (x["αN"] / x["αD"], 1.0)
    return beta / (alpha + beta), alpha / (alpha + beta)


def closed(fit: Fit, flops: float) -> Optimum:
    """The optimum for C = 6 N D from the formula; for the sum of power laws."""
    x, (a, b) = fit.numbers, exponents(fit)
    # in logarithms: A and B may be far from 1
    g = math.log(x["α"] * x["A"] / (x["β"] * x["B"])) / (x["α"] + x["β"])
    size, tokens = math.exp(g + a * math.log(flops / 6)), math.exp(b * math.log(flops / 6) - g)
    return Optimum(flops, size, tokens, fit.loss(size, tokens))


def optimum(fit: Fit, budget: float, cost: Cost = six, *, low: float = 1.0, high: float = 1e15) -> Optimum:
    """The optimum for a budget by search.

    Args:
        budget: FLOPs, seconds, whatever `cost` counts.
        cost: of a token, by parameters (an array of them).
        low, high: sizes between which it is sought.
    """
    grid = np.linspace(math.log(low), math.log(high), 400)
    for _ in range(4):  # costs that were counted or measured are not smooth: a grid, and finer ones about its best
        sizes = np.exp(grid)
        losses = fit.loss(sizes, budget / cost(sizes))
        best = int(np.argmin(losses))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 100)
    size = float(sizes[best])
    return Optimum(budget, size, float(budget / cost(np.array([size]))[0]), float(losses[best]))


def between(sizes: Sequence[float], costs: Sequence[float]) -> Cost:
    """A cost that is known at some sizes: along lines between the logarithms, and along the outer ones beyond them."""
    order = np.argsort(sizes)
    x, y = np.log(np.asarray(sizes, float)[order]), np.log(np.asarray(costs, float)[order])
    slopes = np.diff(y) / np.diff(x) if len(x) > 1 else np.ones(1)

    def cost(size: Array) -> Array:
        at = np.log(size)
        i = np.clip(np.searchsorted(x, at) - 1, 0, len(slopes) - 1)
        return np.asarray(np.exp(y[i] + slopes[i] * (at - x[i])))

    return cost

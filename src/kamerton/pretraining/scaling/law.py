"""Scaling laws as functions of model size N and tokens D, and their fit to measured losses.

The sum of power laws is that of Hoffmann et al. 2022 (arXiv 2203.15556), L = E + A/N^α + B/D^β, and is fitted as in
their approach 3: the Huber loss (δ = 1e-3) of log L, minimised by L-BFGS from a grid of starts. Its parts are the laws
of one variable. Kaplan et al. 2020 (arXiv 2001.08361) have no offset: L = A/N^α, and for both variables their formula
1.5, L = [(Nc/N)^(αN/αD) + Dc/D]^αD.

Two changes against the paper, neither of which moves the minimum. Sizes, tokens and losses are taken relative to their
geometric means, where A and B are of the order of 1, so the grid of starts is over what is said at the middle of the
data. And the objective is divided by δ², because L-BFGS would else take a loss of 1e-6 for zero (what went wrong with
the published intervals: Besiroglu et al. 2024, arXiv 2404.10102). A wide δ goes before the narrow one, because the
narrow one is nearly the absolute value, which has corners.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from kamerton.errors import KamertonError

Array = np.ndarray[Any, Any]
DELTA = 1e-3
"""Where the Huber loss of log L goes from a square to a line."""
WIDE = 0.03
STARTS = 12
"""Starts that L-BFGS goes on from: the best of the grid."""
STEEPEST = 4.0
"""Largest exponent."""


def coefficient(log: float) -> float:
    """A coefficient from its logarithm; inf where no number is so large (an exponent near 0 makes it so)."""
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Law:
    """A form that a scaling law may have.

    Attributes:
        name: as results have it.
        formula: for people.
        parameters: names of its numbers, in order.
        terms: what it has: an offset E, a term of the size N, one of the tokens D.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    terms: str

    def log_loss(self, theta: Array, n: Array, d: Array) -> tuple[Array, Array]:
        """Logarithm of the loss and its gradient.

        Args:
            theta: (P,) numbers of the law, coefficients as logarithms.
            n, d: (K,) logarithms of size and tokens.

        Returns:
            (K,) and (K, P).
        """
        raise NotImplementedError

    def starts(self) -> list[list[float]]:
        """Starts, where sizes, tokens and losses have a geometric mean of 1."""
        raise NotImplementedError

    def bounds(self) -> list[tuple[float, float]]:
        """Of each number."""
        raise NotImplementedError

    def shifted(self, theta: Array, n: float, d: float, loss: float) -> Array:
        """Numbers for data whose logarithms are larger by so much."""
        raise NotImplementedError

    def numbers(self, theta: Array) -> dict[str, float]:
        """The numbers by name, coefficients as they are; inf where one is larger than numbers can be."""
        raise NotImplementedError


@dataclass(frozen=True)
class Powers(Law):
    """E + A/N^α + B/D^β, or a part of it. Numbers: log E, log A, α, log B, β."""

    def _parts(self, theta: Array, n: Array, d: Array) -> Array:
        values, rows = list(theta), []
        for term in self.terms:
            if term == "E":
                rows.append(np.full(len(n), values.pop(0)))
            else:
                rows.append(values.pop(0) - values.pop(0) * (n if term == "N" else d))
        return np.stack(rows)

    def log_loss(self, theta: Array, n: Array, d: Array) -> tuple[Array, Array]:
        parts = self._parts(theta, n, d)  # (terms, K)
        top = parts.max(0)
        raised = np.exp(parts - top)
        total = raised.sum(0)
        share, columns = raised / total, []
        for row, term in zip(share, self.terms, strict=True):
            columns += [row] if term == "E" else [row, -row * (n if term == "N" else d)]
        return top + np.log(total), np.stack(columns, axis=1)

    def starts(self) -> list[list[float]]:
        powers = [t for t in self.terms if t != "E"]
        offsets = (0.05, 0.4, 0.75) if "E" in self.terms else (0.0,)
        out = []
        for offset in offsets:
            for first in (0.2, 0.5, 0.8) if len(powers) == 2 else (1.0,):
                shares = [first, 1 - first][: len(powers)]
                for slopes in itertools.product((0.1, 0.3, 0.6, 1.0), repeat=len(powers)):
                    theta = [math.log(offset)] if offset else []
                    for share, slope in zip(shares, slopes, strict=True):
                        theta += [math.log(share * (1 - offset)), slope]
                    out.append(theta)
        return out

    def bounds(self) -> list[tuple[float, float]]:
        # an offset of e^-12 of the loss is none
        of = {"E": [(-12.0, 0.5)], "N": [(-25.0, 5.0), (1e-3, STEEPEST)], "D": [(-25.0, 5.0), (1e-3, STEEPEST)]}
        return [b for term in self.terms for b in of[term]]

    def shifted(self, theta: Array, n: float, d: float, loss: float) -> Array:
        values, out = list(theta), []
        for term in self.terms:
            out.append(values.pop(0) + loss)
            if term != "E":
                slope = values.pop(0)
                out[-1] += slope * (n if term == "N" else d)
                out.append(slope)
        return np.array(out)

    def numbers(self, theta: Array) -> dict[str, float]:
        told = zip(self.parameters, theta, strict=True)
        return {name: float(v) if name in ("α", "β") else coefficient(v) for name, v in told}


@dataclass(frozen=True)
class Kaplan(Law):
    """[(Nc/N)^(αN/αD) + Dc/D]^αD. Numbers: (αN/αD) log Nc, log Dc, αN, αD."""

    def log_loss(self, theta: Array, n: Array, d: Array) -> tuple[Array, Array]:
        p, q, x, y = theta
        u, v = p - (x / y) * n, q - d
        m = np.logaddexp(u, v)
        w = np.exp(u - m)  # the share of the first term
        return y * m, np.stack([y * w, y * (1 - w), -w * n, m + w * x * n / y], axis=1)

    def starts(self) -> list[list[float]]:
        slopes = (0.05, 0.1, 0.3, 0.6)
        return [
            [math.log(share), math.log(1 - share), x, y]
            for share in (0.2, 0.5, 0.8) for x, y in itertools.product(slopes, slopes)
        ]  # fmt: skip

    def bounds(self) -> list[tuple[float, float]]:
        return [(-40.0, 40.0), (-40.0, 40.0), (1e-3, STEEPEST), (1e-2, STEEPEST)]

    def shifted(self, theta: Array, n: float, d: float, loss: float) -> Array:
        p, q, x, y = theta
        return np.array([p + (x / y) * n + loss / y, q + d + loss / y, x, y])

    def numbers(self, theta: Array) -> dict[str, float]:
        p, q, x, y = (float(v) for v in theta)
        return {"Nc": coefficient(p * y / x), "Dc": coefficient(q), "αN": x, "αD": y}


BOTH = Powers("L(N, D)", "E + A/N^α + B/D^β", ("E", "A", "α", "B", "β"), "END")
BOTH_KAPLAN = Kaplan("L(N, D), Kaplan", "[(Nc/N)^(αN/αD) + Dc/D]^αD", ("Nc", "Dc", "αN", "αD"), "ND")
OF_SIZE = Powers("L(N)", "E + A/N^α", ("E", "A", "α"), "EN")
OF_SIZE_KAPLAN = Powers("L(N), Kaplan", "A/N^α", ("A", "α"), "N")
OF_TOKENS = Powers("L(D)", "E + B/D^β", ("E", "B", "β"), "ED")
OF_TOKENS_KAPLAN = Powers("L(D), Kaplan", "B/D^β", ("B", "β"), "D")


@dataclass(frozen=True)
class Fit:
    """A law with its numbers.

    Attributes:
        law: its form.
        theta: (P,) as `Law.log_loss` takes them, for logarithms of size and tokens.
        residuals: (K,) log of the measured loss less log of the law's.
    """

    law: Law
    theta: Array
    residuals: Array

    @property
    def numbers(self) -> dict[str, float]:
        return self.law.numbers(self.theta)

    @property
    def error(self) -> float:
        """Root of the mean square of the residuals: the relative error of the loss, about."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def loss(self, size: Any, tokens: Any) -> Any:
        """The law's loss, in nats a token, at sizes and tokens (numbers or arrays that broadcast)."""
        n, d = np.broadcast_arrays(np.log(np.asarray(size, float)), np.log(np.asarray(tokens, float)))
        value = np.exp(self.law.log_loss(self.theta, n.ravel(), d.ravel())[0]).reshape(n.shape)
        return float(value) if value.ndim == 0 else value


def huber(residuals: Array, delta: float) -> tuple[float, Array]:
    """The summed Huber loss divided by δ², and its derivative."""
    r = residuals / delta
    small = np.abs(r) <= 1
    return float(np.where(small, 0.5 * r * r, np.abs(r) - 0.5).sum()), np.clip(r, -1.0, 1.0) / delta


def fit(
    law: Law, sizes: Sequence[float] | Array, tokens: Sequence[float] | Array, losses: Sequence[float] | Array, *,
    near: Fit | None = None, delta: float = DELTA,
) -> Fit:  # fmt: skip
    """Fit a law to measured losses.

    Args:
        sizes, tokens, losses: (K,) each, above 0; a law of one variable does not look at the other.
        near: a fit whose numbers are the only start (the bootstrap starts at the fit of the data).

    Raises:
        KamertonError: fewer points than the law has numbers.
    """
    n, d, y = (np.log(np.asarray(v, float)) for v in (sizes, tokens, losses))
    if len(y) < len(law.parameters):
        raise KamertonError(
            f"{len(y)} runs are too few for {law.formula}, which has {len(law.parameters)} numbers", where="scaling",
            mend="train more sizes or token counts",
        )  # fmt: skip
    middle = (float(n.mean()), float(d.mean()), float(y.mean()))
    a, b, c = n - middle[0], d - middle[1], y - middle[2]
    bounds = law.bounds()

    def objective(theta: Array, width: float) -> tuple[float, Array]:
        value, gradient = law.log_loss(theta, a, b)
        total, slope = huber(value - c, width)
        return total, slope @ gradient

    def improve(theta: Array, width: float) -> tuple[float, Array]:
        inside = np.clip(theta, [low for low, _ in bounds], [high for _, high in bounds])
        how = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-7, "maxls": 50}
        found = minimize(objective, inside, args=(width,), jac=True, method="L-BFGS-B", bounds=bounds, options=how)
        return float(found.fun), np.asarray(found.x)

    if near is not None:
        starts = [near.law.shifted(near.theta, -middle[0], -middle[1], -middle[2])]
    else:
        grid = [np.array(s) for s in law.starts()]
        starts = sorted(grid, key=lambda s: objective(s, WIDE)[0])[:STARTS]
    best: tuple[float, Array] | None = None
    for start in starts:
        theta = start
        for width in (WIDE, math.sqrt(WIDE * delta), delta):
            value, theta = improve(theta, width)
        if best is None or value < best[0]:
            best = value, theta
    assert best is not None
    theta = law.shifted(best[1], *middle)
    return Fit(law, theta, y - law.log_loss(theta, n, d)[0])

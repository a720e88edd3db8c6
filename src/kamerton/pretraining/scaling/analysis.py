"""What the runs of a grid say: the fits with their intervals, the compute-optimal sizes, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kamerton.pretraining.scaling.bootstrap import interval, losses_again, refitted
from kamerton.pretraining.scaling.grid import Run
from kamerton.pretraining.scaling.law import (
    BOTH,
    BOTH_KAPLAN,
    OF_SIZE,
    OF_SIZE_KAPLAN,
    OF_TOKENS,
    OF_TOKENS_KAPLAN,
    Array,
    Fit,
    Law,
    fit,
)
from kamerton.pretraining.scaling.optimum import Cost, between, exponents, optimum
from kamerton.pretraining.scaling.profiles import Profile, power, profiles
from kamerton.recipe_scaling import COLUMN, Counted

Row = Mapping[str, Any]
Tell = Callable[[str, float, str], None]
BEYOND = (1.0, 10.0, 100.0)
"""Multiples of the largest run's compute at which the optimum is told."""
NOTHING = 0.002
"""Share of the loss; where it falls by less over a whole grid, or by less than twice what the law is off by, nothing
is said to be gained."""


@dataclass(frozen=True)
class Points:
    """Measured runs as arrays (K,): parameters as they are counted, tokens, training FLOPs, loss in nats a token."""

    sizes: Array
    tokens: Array
    flops: Array
    losses: Array

    @classmethod
    def of(cls, rows: Sequence[Row], counted: Counted) -> Points:
        return cls(*(np.array([r[k] for r in rows], float) for k in (COLUMN[counted], "tokens", "flops", "loss")))

    @classmethod
    def planned(cls, runs: Sequence[Run]) -> Points:
        """Runs before they are trained: their losses are nan."""
        columns = [[r.sized.parameters, r.tokens, r.flops, np.nan] for r in runs]
        return cls(*np.array(columns, float).reshape(-1, 4).T)

    def where(self, rows: Array) -> Points:
        return Points(self.sizes[rows], self.tokens[rows], self.flops[rows], self.losses[rows])

    def hold(self, law: Law) -> bool:
        """Whether they are enough for a law: a number more than it has, and three values of what it is a law of."""
        of = {"N": self.sizes, "D": self.tokens}
        spread = all(len(set(of[term])) >= 3 for term in law.terms if term in of)
        return len(self.losses) > len(law.parameters) and spread


@dataclass
class Fitted:
    """A law fitted to some runs, and the same for its replicates (none where nothing is known about the noise)."""

    fit: Fit
    points: Points
    replicates: list[Fit] = field(default_factory=list)
    again: Array | None = None

    def told(self) -> dict[str, Any]:
        """For `scaling.json`."""
        numbers = self.fit.numbers
        return {
            "formula": self.fit.law.formula, "runs": len(self.points.losses), "error": self.fit.error,
            "numbers": {
                name: interval(value, [r.numbers[name] for r in self.replicates]) for name, value in numbers.items()
            },
        }  # fmt: skip


@dataclass
class Analysis:
    """All that was found; `told` is what is written.

    Attributes:
        laws: by name, those that the runs are enough for.
        profiles: IsoFLOP profiles.
        cost: FLOPs of a token by N.
        low, high: N between which optima are sought.
        told: for `scaling.json`.
    """

    laws: dict[str, Fitted]
    profiles: list[Profile]
    cost: Cost
    low: float
    high: float
    told: dict[str, Any]

    @property
    def both(self) -> Fitted | None:
        """The law of both variables."""
        return self.laws.get(BOTH.name)

    @property
    def flat(self) -> list[str]:
        """What brings nothing in this grid: `size`, `tokens`."""
        return [name for name, gain in self.told["gains"].items() if gain["nothing"]]


def analyse(
    rows: Sequence[Row], counted: Counted, models: Sequence[tuple[float, float]], replicates: int, seed: int, tell: Tell
) -> Analysis:
    """Fit everything.

    Args:
        rows: finished runs, as they were written; those without a loss are left out.
        models: (N, training FLOPs of a token) of the models that there are, by rising N.
        replicates: of the bootstrap.
    """
    rows = [r for r in rows if r["loss"] is not None]
    points = Points.of(rows, counted)
    laws = _laws(points, replicates, seed, tell)
    cost = between(*zip(*models, strict=True))
    low, high = models[0][0], models[-1][0]
    out = Analysis(laws, profiles(points.sizes, points.flops, points.losses), cost, low, high, {})
    told = out.told
    told["fits"] = {name: one.told() for name, one in laws.items()}
    told["gains"] = _gains(out, points)
    # where size or tokens bring nothing, the law's best size is that of a term that is not there
    told["optimum"] = _optima(out, points) if out.both and not out.flat else []
    told["exponents"] = [] if out.flat else _exponents(out, points)
    told["profiles"] = [
        {"flops": p.flops, "sizes": p.sizes.tolist(), "losses": p.losses.tolist(), "curve": p.curve.tolist(),
         "best": p.best, "loss": p.loss, "read": p.read}
        for p in out.profiles
    ]  # fmt: skip
    told["smallest"] = low
    told["check"] = _check(points)
    return out


def _laws(points: Points, replicates: int, seed: int, tell: Tell) -> dict[str, Fitted]:
    largest, most = points.where(points.sizes == points.sizes.max()), _at_most_tokens(points)
    asked = [(BOTH, points), (BOTH_KAPLAN, points), (OF_SIZE, most), (OF_SIZE_KAPLAN, most), (OF_TOKENS, largest),
             (OF_TOKENS_KAPLAN, largest)]  # fmt: skip
    out: dict[str, Fitted] = {}
    for law, some in asked:
        if some is None or not some.hold(law):
            continue
        tell("fitting", 0.0, law.formula)
        one = Fitted(fit(law, some.sizes, some.tokens, some.losses), some)
        if len(some.losses) > len(law.parameters) + 1:
            one.again = losses_again(one.fit, some.losses, replicates, seed)
            watch = lambda i, n, law=law: tell("intervals", i / n, law.formula)  # noqa: E731
            one.replicates = refitted(one.fit, some.sizes, some.tokens, one.again, watch)
        out[law.name] = one
    return out


def _at_most_tokens(points: Points) -> Points | None:
    """The runs on the largest token count that all sizes have (within a step)."""
    counts = [set(points.tokens[points.sizes == n]) for n in np.unique(points.sizes)]
    shared = set.intersection(*counts)
    return points.where(points.tokens == max(shared)) if shared else None


def _optima(found: Analysis, points: Points) -> list[dict[str, Any]]:
    """The optimum at the compute of runs and beyond it."""
    both = found.both
    assert both is not None
    low, high = np.log10(points.flops.min()), np.log10(points.flops.max())
    levels = [m * 10.0**v for v in np.arange(np.floor(low), np.ceil(high)) for m in (1, 3)]
    levels = [v for v in levels if points.flops.min() <= v < 0.7 * points.flops.max()]
    out = []
    for flops in sorted({*levels, *(points.flops.max() * k for k in BEYOND)}):
        best = [optimum(f, flops, found.cost, low=found.low, high=found.high) for f in (both.fit, *both.replicates)]
        row: dict[str, Any] = {"flops": flops, "beyond": flops / points.flops.max()}
        for name in ("size", "tokens", "loss"):
            row[name] = interval(getattr(best[0], name), [getattr(b, name) for b in best[1:]])
        ratios = [b.tokens / b.size for b in best]
        row["ratio"] = interval(ratios[0], ratios[1:])
        out.append(row)
    return out


def _gains(found: Analysis, points: Points) -> dict[str, dict[str, Any]]:
    """By how much the law's loss falls from the least size to the largest (tokens in the middle), and for tokens."""
    if found.both is None:
        return {}
    out, middle = {}, {"size": points.sizes, "tokens": points.tokens}
    for name, values in middle.items():
        ends = [
            {k: np.exp(np.log(v).mean()) for k, v in middle.items()} | {name: end(values)} for end in (np.min, np.max)
        ]
        before, after = (found.both.fit.loss(e["size"], e["tokens"]) for e in ends)
        falls = 1 - after / before
        out[name] = {
            "least": float(values.min()), "most": float(values.max()), "falls": falls,
            "nothing": falls < max(NOTHING, 2 * found.both.fit.error),
        }  # fmt: skip
    return out


def _exponents(found: Analysis, points: Points) -> list[dict[str, Any]]:
    """a of N_opt ∝ C^a and b of D_opt ∝ C^b, by each way of finding them."""
    out = []

    def add(name: str, pairs: Iterable[tuple[float, float] | None]) -> None:
        first, *others = list(pairs)
        if first is not None:
            known = [p for p in others if p is not None]
            a, b = (interval(first[i], [p[i] for p in known]) for i in (0, 1))
            out.append({"by": name, "a": a, "b": b})

    if both := found.both:
        fits = [both.fit, *both.replicates]
        add(f"{BOTH.formula}, C = 6 N D", map(exponents, fits))
        add(f"{BOTH.formula}, FLOPs of the models", (_slope(f, found, points) for f in fits))
    if kaplan := found.laws.get(BOTH_KAPLAN.name):
        add(f"{BOTH_KAPLAN.formula}, C = 6 N D", map(exponents, (kaplan.fit, *kaplan.replicates)))
    if found.profiles:
        again = both.again if both is not None and both.again is not None else ()
        lines = (power(profiles(points.sizes, points.flops, y)) for y in (points.losses, *again))
        add("IsoFLOP profiles", ((line[0], 1 - line[0]) if line else None for line in lines))
    return out


def _slope(of: Fit, found: Analysis, points: Points) -> tuple[float, float]:
    """Exponents between the compute of the smallest run and the largest one, with costs as they are."""
    ends = points.flops.min(), points.flops.max()
    a, b = (optimum(of, c, found.cost, low=found.low, high=found.high) for c in ends)
    span = np.log(ends[1] / ends[0])
    return float(np.log(b.size / a.size) / span), float(np.log(b.tokens / a.tokens) / span)


def _check(points: Points) -> dict[str, Any] | None:
    """The law fitted without the dearest runs (a fifth of them), against what these gave."""
    out = np.argsort(points.flops)[-max(1, len(points.losses) // 5) :]
    rest = points.where(np.setdiff1d(np.arange(len(points.losses)), out))
    if not rest.hold(BOTH):
        return None
    law, left = fit(BOTH, rest.sizes, rest.tokens, rest.losses), points.where(out)
    said = law.loss(left.sizes, left.tokens)
    return {
        "runs": len(out), "beyond": float(points.flops.max() / rest.flops.max()),
        "measured": left.losses.tolist(), "foretold": said.tolist(),
        "error": float(np.sqrt(np.mean(np.log(said / left.losses) ** 2))),
    }  # fmt: skip

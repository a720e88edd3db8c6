"""Intervals and tests for scores that vary with the test examples and with the seeds.

The estimand is the expected score (or the expected difference of two methods) over new test examples *and* new seeds,
in the two-way random model

    theta[seed, example] = mu + a[seed] + b[example] + e[seed, example].

Methods answer the same examples, so examples are paired: every resample draws the same examples for all methods. Seeds
of two methods are independent training runs that share only a number, so their variances add up, with
Welch-Satterthwaite degrees of freedom. (If runs with one number do share something, such as a subset of the training
data, the interval is wider than it need be, never too narrow.)

Three seeds cannot be resampled: a bootstrap of three values underestimates their variance by a third and knows
nothing of its own uncertainty. So the two sources are handled apart and then joined:

1. Examples: a percentile bootstrap of the metric itself (exact for F1, BLEU, ..., from sufficient statistics), the
   seeds held fixed; widened by sqrt(n / (n - 1)) and from normal to t quantiles.
2. Seeds: s^2 / K for each method, less a share of the part that resampling examples already holds (the interaction e,
   estimated from the same bootstrap), times the t quantile with the Welch-Satterthwaite degrees of freedom.
3. Both half-widths are joined as root of the sum of squares (MOVER; Zou and Donner 2008, who follow Howe 1974).

Why a share: taking away all of the interaction gives an unbiased variance whose interval still covers too little
with 2 degrees of freedom (90.8% at worst), taking away nothing covers too much when seeds do not matter. The share
max(0.4, 1 - 1.4 / df^2) was chosen by simulation; docs/statistics.md has the figures and the command that gives them.
Below alpha = 0.05, where Holm's correction looks, p-values take half of it: many comparisons of few seeds stay safe.

A difference is tested twice, and the larger p-value counts: the interval inverted (which knows that seeds vary), and a
permutation test that swaps the two methods' answers example by example, all seeds together (exact for few examples,
but conditional on the seeds; McNemar's exact test where scores are right or wrong and there is one run). Where the
permutation test cannot exclude zero, the interval is stretched to hold it. So p < 0.05 if and only if the interval
leaves out zero.

With one seed nothing is known of other seeds: such results are conditional on it, and say so (`conditional`).

What is left out: multiple metrics at once, unequal test sets, pairing of seeds, Bayesian comparison.

Sources: Efron and Tibshirani 1993 (bootstrap); Satterthwaite 1946; Zou and Donner 2008; Agresti and Min 2005 (one more
discordant pair, so that few changes do not give an interval without width); Korn and Graubard 1998 (Wilson's interval
with an effective sample size); Phipson and Smyth 2010 (permutation p-values are never zero); Holm 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import special

from kamerton.evaluation.resampling import (
    AdditiveMetric,
    Resampled,
    SeedScores,
    bootstrap,
    permutation_p_values,
    stack,
)

MAX_EXAMPLES = 1_000_000
MAX_SEEDS = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A method's expected score, in the metric's units.

    Attributes:
        value: mean over seeds of the metric on all examples.
        low, high: 95% interval over new examples and new seeds.
        seeds, examples: how many there were.
        seed_deviation: standard deviation of the metric between seeds (0 with one seed).
        deterministic: all of several seeds gave identical results.
        conditional: one seed only; the interval speaks of that seed's run.
    """

    value: float
    low: float
    high: float
    seeds: int
    examples: int
    seed_deviation: float
    deterministic: bool
    conditional: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """First method minus second, on their common seeds, in the metric's units.

    Attributes:
        value: difference of the means over seeds.
        low, high: 95% interval over new examples and new seeds.
        p: the larger of the two p-values below; p < 0.05 if and only if the interval leaves out zero.
        p_interval: from the interval inverted. p_permutation: from swaps by example (or McNemar's exact test).
        test: "permutation" or "mcnemar".
        seeds: the common seeds. examples: how many test examples.
        conditional: one seed only and nothing is known of others.
        variance_examples: squared standard error from examples (seeds held fixed).
        variance_interaction: the part of it that goes down with more seeds.
        variance_seeds: unbiased squared standard error from seeds, not below zero.
        seed_df: Welch-Satterthwaite degrees of freedom of the seeds (0: seeds do not vary or there is one).
    """

    value: float
    low: float
    high: float
    p: float
    p_interval: float
    p_permutation: float
    test: str
    seeds: tuple[int, ...]
    examples: int
    conditional: bool
    variance_examples: float
    variance_interaction: float
    variance_seeds: float
    seed_df: float

    def reversed(self) -> Difference:
        """Second method minus first."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return Difference(**{**fields, "value": -self.value, "low": -self.high, "high": -self.low})


@dataclass(frozen=True, slots=True)
class Analysis:
    """Estimates by label, and differences by pair of labels in the order given (first minus second)."""

    estimates: dict[str, Estimate]
    differences: dict[tuple[str, str], Difference]


def compare(
    scores: Mapping[str, SeedScores],
    metric: AdditiveMetric,
    *,
    resamples: int = 10_000,
    permutations: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Analysis:
    """Every method's estimate and every pair's difference.

    Args:
        scores: label -> seed -> statistics (N, S) of the same N test examples in the same order.
        metric: gives the metric's value from summed statistics.
        resamples, permutations: of the bootstrap and of the permutation test.
        level: confidence of the intervals.
        seed: of the resampling; the same input and seed give the same output.
        pairs: those to compare; default: all.

    Raises:
        ValueError: no seeds, no examples, or shapes that do not agree.
    """
    arrays = {label: stack(label, by_seed) for label, by_seed in scores.items()}
    if len({array.shape[::2] for _, array in arrays.values()}) > 1:
        raise ValueError("methods were scored on different numbers of examples or statistics")
    rng = np.random.default_rng(seed)
    methods = bootstrap(arrays, metric, resamples, rng)
    estimates = {label: _estimate(method, metric, level) for label, method in methods.items()}
    matched = [
        (a, b, common)
        for a, b in (combinations(methods, 2) if pairs is None else pairs)
        if (common := tuple(s for s in methods[a].seeds if s in methods[b].seeds))
    ]
    p_values = permutation_p_values(methods, matched, metric, permutations, rng)
    differences = {}
    for (a, b, common), p in zip(matched, p_values, strict=True):
        first, second = methods[a].pick(common), methods[b].pick(common)
        differences[a, b] = _difference(first, second, metric, p, level)
    return Analysis(estimates, differences)


def estimate(
    scores: SeedScores, metric: AdditiveMetric, *, resamples: int = 2_000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """One method's expected score with its interval. Args as in `compare`."""
    methods = bootstrap({"": stack("", scores)}, metric, resamples, np.random.default_rng(seed))
    return _estimate(methods[""], metric, level)


def p_with_seeds(distance: float, variance_examples: float, examples: int, variance_seeds: float, df: float) -> float:
    """Two-sided p-value of a difference whose squared standard errors are known.

    Args:
        variance_examples: from `examples` of them. variance_seeds: with `df` degrees of freedom; 0: seeds do not vary.
    """
    error, part = float(np.sqrt(variance_examples)), _SeedPart(variance_seeds, variance_seeds, variance_seeds, 0.0, df)
    half = _join(_quantile(examples - 1, 0.05) * error, df, variance_seeds, 0.05)
    return _invert(distance, half, error, part, examples, 0.05)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): below 0.05 keeps the chance of any false one at most 5%."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    return [float(x) for x in adjusted]


def examples_for_power(difference: Difference, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Size of a test set that would tell the two methods apart with this power, if the difference is as observed.

    None where the answer is above a million, or where no number of examples would do because seeds vary too much.
    """

    return _smallest(lambda n: _detects(difference, n, len(difference.seeds), power, alpha), 2, MAX_EXAMPLES)


def plan_for_power(difference: Difference, *, power: float = 0.8, alpha: float = 0.05) -> tuple[int, int] | None:
    """Test examples and seeds for each method that would tell the two apart, with the fewest answers to be written.

    Neither is fewer than now. None where there was one seed (their variance is not known), or where a million
    examples and a hundred seeds would not do.
    """
    runs = len(difference.seeds)
    if runs < 2:
        return None
    plans = []
    for k in [k for k in range(runs, MAX_SEEDS + 1) if k <= runs + 7 or k % 10 == 0]:

        def enough(n: int, k: int = k) -> bool:
            return _detects(difference, n, k, power, alpha)

        n = _smallest(enough, difference.examples, MAX_EXAMPLES)
        if n is not None:
            plans.append((n * k, n, k))
    return min(plans)[1:] if plans else None


# --- intervals ----------------------------------------------------------------------------------------------------


def seed_share(df: float) -> float:
    """Share of the interaction to take from the variance between seeds; chosen by simulation, docs/statistics.md."""
    return max(0.4, 1.0 - 1.4 / df**2)


@dataclass(frozen=True, slots=True)
class _SeedPart:
    """Squared standard errors of a mean over seeds.

    Attributes:
        interval: as the interval takes it. tail: as smaller alphas do. unbiased: without the whole interaction.
        interaction: of the interaction alone. df: Welch-Satterthwaite degrees of freedom, 0 where seeds do not vary.
    """

    interval: float
    tail: float
    unbiased: float
    interaction: float
    df: float


def _seed_part(methods: Sequence[Resampled]) -> _SeedPart:
    between, interaction, below = 0.0, 0.0, 0.0
    for method in methods:
        s2, inner = method.seed_variance()
        k = len(method.seeds)
        between += s2 / k
        interaction += inner / k
        below += (s2 / k) ** 2 / max(k - 1, 1)
    if below <= 0.0:
        return _SeedPart(0.0, 0.0, 0.0, interaction, 0.0)
    df = between**2 / below
    interval = max(0.0, between - seed_share(df) * interaction)
    tail = max(interval, between - 0.5 * seed_share(df) * interaction)
    return _SeedPart(interval, tail, max(0.0, between - interaction), interaction, df)


def _quantile(df: float, alpha: float) -> float:
    """Two-sided quantile of Student's t; of the normal distribution where df is 0."""
    return float(-special.stdtrit(df, alpha / 2) if df > 0 else -special.ndtri(alpha / 2))


def _estimate(method: Resampled, metric: AdditiveMetric, level: float) -> Estimate:
    n, k = len(method.statistics), len(method.seeds)
    value = float(method.values.mean())
    variance = float(method.draws.mean(1).var()) * n / max(n - 1, 1)
    part = _seed_part([method])
    alpha = 1 - level
    half = _join(_quantile(n - 1, alpha) * np.sqrt(variance), part.df, part.interval, alpha)
    low, high = _wilson(value, half, n, metric.range, _quantile(n - 1, alpha))
    deviation = float(np.std(method.values, ddof=1)) if k > 1 and not method.deterministic else 0.0
    return Estimate(value, low, high, k, n, deviation, method.deterministic, k == 1)


def _wilson(value: float, half: float, n: int, bounds: tuple[float, float], z: float) -> tuple[float, float]:
    """Interval inside the metric's range, with width at its ends (there n, the number of examples, gives it)."""
    bottom, top = bounds
    if not (np.isfinite(bottom) and np.isfinite(top)):
        return value - half, value + half
    span = top - bottom
    p = min(max((value - bottom) / span, 0.0), 1.0)
    # effective sample size over squared quantile: what a binomial score would need to be this uncertain
    size = p * (1 - p) / (half / span) ** 2 if half > 0 and 0 < p < 1 else n / z**2
    centre = (p + 0.5 / size) / (1 + 1 / size)
    reach = float(np.sqrt(p * (1 - p) / size + 0.25 / size**2)) / (1 + 1 / size)
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return bottom + span * min(low, p), bottom + span * max(high, p)


def _difference(
    first: Resampled, second: Resampled, metric: AdditiveMetric, permutation: tuple[float, str], level: float
) -> Difference:
    n = len(first.statistics)
    alpha = 1 - level
    value = float((first.values - second.values).mean())
    draws = first.draws.mean(1) - second.draws.mean(1)
    widen = float(np.sqrt(n / max(n - 1, 1)) * _quantile(n - 1, alpha) / _quantile(0, alpha))
    bottom, top = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    reach = np.maximum(np.array([value - bottom, top - value]), 0.0) * widen
    variance = float(draws.var()) * n / max(n - 1, 1)
    # one more example that changes, as large as the others (Agresti and Min): few changes are not no doubt
    changed = int((first.statistics != second.statistics).any(axis=(1, 2)).sum())
    span = metric.range[1] - metric.range[0]
    extra = variance / changed if changed else ((span / n) ** 2 if np.isfinite(span) else 0.0)
    z = _quantile(n - 1, alpha)
    reach = np.sqrt(reach**2 + z**2 * extra)
    part = _seed_part([first, second])
    halves = [_join(r, part.df, part.interval, alpha) for r in reach]
    low, high = value - halves[0], value + halves[1]
    side = 0 if value > 0 else 1
    p_interval = _invert(abs(value), halves[side], float(reach[side]) / z, part, n, alpha)
    p_permutation, test = permutation
    if p_permutation >= alpha:  # the two tests must not contradict one another
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(
        value=value,
        low=low,
        high=high,
        p=max(p_interval, p_permutation),
        p_interval=p_interval,
        p_permutation=p_permutation,
        test=test,
        seeds=first.seeds,
        examples=n,
        conditional=len(first.seeds) == 1,
        variance_examples=variance + extra,
        variance_interaction=part.interaction,
        variance_seeds=part.unbiased,
        seed_df=part.df,
    )


def _join(examples: float, df: float, seeds: float, alpha: float) -> float:
    """Half-width from examples and squared standard error from seeds, joined (MOVER)."""
    return float(np.hypot(examples, _quantile(df, alpha) * np.sqrt(seeds))) if seeds > 0 else float(examples)


def _invert(distance: float, half: float, error: float, part: _SeedPart, n: int, level_alpha: float) -> float:
    """The alpha at which the interval just touches zero: bisection on the logarithm of alpha.

    At `level_alpha` the half-width is `half`; at other levels it goes with an interval that subtracts half as much.
    """
    if distance <= 0.0:
        return 1.0
    if half <= 0.0:
        return 0.0

    def reach(alpha: float) -> float:
        return _join(_quantile(n - 1, alpha) * error, part.df, part.tail, alpha)

    scale = half / reach(level_alpha)
    bottom, top = -16.0, 0.0
    for _ in range(60):
        middle = (bottom + top) / 2
        bottom, top = (bottom, middle) if reach(10.0**middle) * scale < distance else (middle, top)
    return float(10.0**top)


# --- planning -----------------------------------------------------------------------------------------------------


def _detects(difference: Difference, examples: int, seeds: int, power: float, alpha: float) -> bool:
    """Whether a difference like this one would be found with this power, with other numbers of examples and seeds."""
    shrink = len(difference.seeds) / seeds
    spread = difference.variance_examples - difference.variance_interaction * (1 - shrink)
    spread = max(spread, 0.0) * difference.examples / examples
    between = difference.variance_seeds * shrink
    df = difference.seed_df * (seeds - 1) / max(len(difference.seeds) - 1, 1)
    # what the test will see as variance between seeds: with the interaction that it does not subtract
    inner = difference.variance_interaction * shrink * difference.examples / examples
    seen = between + (1 - 0.5 * seed_share(df)) * inner if df > 0 else 0.0
    threshold = _join(_quantile(examples - 1, alpha) * np.sqrt(spread), df, seen, alpha)
    return bool(abs(difference.value) >= threshold + special.ndtri(power) * np.sqrt(spread + between))


def _smallest(enough: Callable[[int], bool], bottom: int, top: int) -> int | None:
    """Smallest number in [bottom, top] that is enough; None where the largest is not. Assumes monotony."""
    if not enough(top):
        return None
    while bottom < top:
        middle = (bottom + top) // 2
        bottom, top = (bottom, middle) if enough(middle) else (middle + 1, top)
    return top

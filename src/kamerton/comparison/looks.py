"""One look of a race: which methods are so clearly behind that they need not be run to the end.

What is looked at are answers to validation questions; the test set plays no part. Each method is compared, question by
question, with the leader of that moment: a method that is still training with the best of those that are (at the same
share of their training), one that is not with the best of all. What is stopped is behind with a p-value below the
look's alpha after Holm's correction over the methods. The race's alpha is shared between its looks (Bonferroni), so
that over the whole race the chance of stopping the truly best method is below alpha, if curves do not cross.

Two things cannot be tested and are assumed, so that one moment of one run is not taken for the whole. Methods learn at
different speeds: what each will still gain differs by `curve_deviation` times the share that is left (a standard
deviation, as a share of the metric's range), and a gap between two that are paused must be beyond that too. And after
one seed nothing is known of how much other seeds would differ: a deviation between seeds is assumed (`seed_deviation`),
worth `PRIOR_DF` degrees of freedom, and pooled with what the seeds show once there are several (as Smyth 2004 does for
variances of many genes).

Follows racing by paired tests: Maron & Moore 1994 (Hoeffding races), Birattari et al. 2002 (F-Race). F-Race's rank test
over all methods is left out: answers are right or wrong, so that ranks are mostly ties, and metrics here can be corpus
metrics, which the paired bootstrap and permutation test handle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kamerton.comparison.verdict import DecidingMetric
from kamerton.evaluation.resampling import SeedScores
from kamerton.evaluation.statistics import Difference, compare, holm, p_with_seeds

PRIOR_DF = 10
"""What the assumed deviation between seeds is worth, in seeds seen."""


@dataclass(frozen=True)
class Standing:
    """A method at a look.

    Attributes:
        label: the method.
        scores: seed -> statistics (N, S) of the deciding metric on the validation questions.
        training: whether it was paused, and would go on.
        seeded: whether seeds change anything.
    """

    label: str
    scores: SeedScores
    training: bool = False
    seeded: bool = True


@dataclass(frozen=True, slots=True)
class Behind:
    """A method that a look stops: its score and its leader's (metric's units), and the corrected p-value."""

    label: str
    leader: str
    value: float
    leader_value: float
    p: float


def look(
    standings: Sequence[Standing], metric: DecidingMetric, *, alpha: float, seed_deviation: float,
    curve_deviation: float = 0.0, resamples: int = 10_000, seed: int = 0,
) -> list[Behind]:  # fmt: skip
    """The methods to stop.

    Args:
        standings: all methods that are in the race, on the same seeds.
        metric: gives the metric's value from summed statistics.
        alpha: of this look, over all methods.
        seed_deviation: assumed standard deviation between seeds, as a share of the metric's range.
        curve_deviation: likewise of what methods that were paused will still gain, from here on.
        resamples: of the bootstrap and of the permutation test; `seed`: of both.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    value = {s.label: _value(s, metric) for s in standings}
    pairs = []
    for standing in standings:
        rivals = [s for s in standings if s.training] if standing.training else list(standings)
        leader = max(rivals, key=lambda s: sign * value[s.label])
        if sign * value[leader.label] > sign * value[standing.label]:
            pairs.append((leader.label, standing.label))
    if not pairs:
        return []
    by_label = {s.label: s for s in standings}
    scores = {s.label: s.scores for s in standings}
    found = compare(scores, metric, resamples=resamples, permutations=resamples, seed=seed, pairs=pairs).differences
    span = metric.range[1] - metric.range[0]
    scale = span if np.isfinite(span) else max(abs(v) for v in value.values())
    p_values = []
    for pair in pairs:
        two = [by_label[label] for label in pair]
        gain = sum(s.training for s in two if two[1].training) * (curve_deviation * scale) ** 2
        p_values.append(_p(found[pair], sum(s.seeded for s in two) * (seed_deviation * scale) ** 2, gain))
    return [
        Behind(label, leader, value[label], value[leader], p)
        for (leader, label), p in zip(pairs, holm(p_values), strict=True)
        if p < alpha
    ]


def _value(standing: Standing, metric: DecidingMetric) -> float:
    """Mean over seeds of the metric."""
    values = [metric.aggregate(np.asarray(x).sum(0), float(len(x))) for x in standing.scores.values()]
    return float(np.mean(values))


def _p(difference: Difference, assumed: float, gain: float) -> float:
    """P-value of a pair.

    Args:
        assumed: variance between seeds, one run each, to be pooled with the observed one.
        gain: variance of what both will still gain.
    """
    count = len(difference.seeds)
    df = PRIOR_DF + difference.seed_df
    between = (PRIOR_DF * assumed / count + difference.seed_df * difference.variance_seeds) / df
    joined = p_with_seeds(
        abs(difference.value), difference.variance_examples + gain, difference.examples, between,
        df if between > 0 else 0.0,
    )  # fmt: skip
    return max(joined, difference.p_permutation)

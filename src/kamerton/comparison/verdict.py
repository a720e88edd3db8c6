"""The verdict of a comparison: who is ahead, who cannot be told apart, what would decide it.

Rules, all of them stated in the report too:

- Two methods are told apart if the p-value of their difference, after Holm's correction over all pairs, is below 0.05.
- A method's rank is 1 + the number of methods that are significantly better than it. Rank 1 is the leading group.
- Contenders are the leading group without those that the highest mean beats before the correction (p < 0.05): what is
  probably worse is not recommended for being cheap.
- Best for its cost: of the contenders, the one with the fewest FLOPs for fitting and 1,000 answers.
- Forgets least: of the contenders, the smallest divergence (KL) from the base on general prompts.
- The Pareto front holds every method that no other one beats in both mean score and those FLOPs.
- Methods that a race stopped are named with what they had, and are not ranked.

The sentence never depends on seconds, so that a repeated comparison says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from kamerton.comparison.sentences import notes, race_notes, sentences
from kamerton.comparison.units import Scale
from kamerton.evaluation.resampling import AdditiveMetric, SeedScores
from kamerton.evaluation.statistics import Difference, compare, examples_for_power, holm, plan_for_power

ANSWERS = 1000
ALPHA = 0.05
POWER = 0.8

RULES = {
    "told apart": "The p-value of the difference is below 0.05 after Holm's correction over all pairs.",
    "rank": "1 + the number of methods that are significantly better.",
    "contenders": "The leading group (rank 1) without those that the highest mean beats with p below 0.05 uncorrected.",
    "best for its cost": f"Of the contenders, the fewest FLOPs for fitting and {ANSWERS:,} answers.",
    "forgets least": "Of the contenders, the smallest divergence (KL) from the base on general prompts.",
    "Pareto front": f"No other method has a higher mean score for fewer FLOPs (fitting and {ANSWERS:,} answers).",
    "interval": "95%, over new test examples and new seeds; methods are paired by example.",
    "more examples": "What would tell a pair apart with 80% power, if its difference is as observed.",
}
RACE_RULE = (
    "Stopped early: clearly behind the leader of that moment on validation questions (paired test, Holm's correction "
    "over methods, alpha shared between looks). Not ranked."
)


class DecidingMetric(AdditiveMetric, Protocol):
    name: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One method: its score with interval (metric's units), its rank, and its mean costs over seeds."""

    label: str
    rank: int
    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    seed_deviation: float
    deterministic: bool
    conditional: bool
    worse_than: tuple[str, ...]
    cost_flops: float | None
    kl: float | None
    bits_per_byte_change: float | None
    pareto: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two methods: first minus second (metric's units), tests, and what would decide it where nothing does.

    Attributes:
        examples_needed, more_examples: test examples, with the same seeds; None where they alone would not do.
        plan: then (test examples, seeds for each method), in all; None where that is not known or out of reach.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str
    decided: bool
    better: str | None
    seeds: tuple[int, ...]
    conditional: bool
    examples_needed: int | None
    more_examples: int | None
    plan: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """A method that a race stopped: where it stood, and on which validation scores (metric's units).

    Attributes:
        seed, share: the seed that ran last, and how much of its training was done; `seeds`: it had answered with.
        value, leader_value: scores on `examples` validation questions; `p`: of the difference, corrected over methods.
    """

    label: str
    leader: str
    seed: int
    share: float
    seeds: int
    value: float
    leader_value: float
    examples: int
    p: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that the report says; `to_dict` is plain JSON."""

    metric: str
    higher_is_better: bool
    examples: int
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    best: tuple[str, ...]
    contenders: tuple[str, ...]
    best_for_cost: tuple[str, ...]
    forgets_least: tuple[str, ...]
    pareto: tuple[str, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    stopped: tuple[Stopped, ...] = ()
    rules: dict[str, str] = field(default_factory=lambda: dict(RULES))

    @property
    def sentence(self) -> str:
        return " ".join(self.sentences)

    def row(self, label: str) -> Row:
        return next(row for row in self.rows if row.label == label)

    def pair(self, first: str, second: str) -> Pair:
        """The pair in either order, turned so that `first` comes first.

        Raises:
            KeyError: the two have no common seed.
        """
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return Pair(
                    **{
                        **{name: getattr(pair, name) for name in pair.__slots__},
                        "first": first,
                        "second": second,
                        "difference": -pair.difference,
                        "low": -pair.high,
                        "high": -pair.low,
                    }
                )
        raise KeyError((first, second))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def decide(
    scores: Mapping[str, SeedScores],
    metric: DecidingMetric,
    cells: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    planned_seeds: Sequence[int] = (),
    name: str | None = None,
    stopped: Sequence[Stopped] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """Compare all methods.

    Args:
        scores: label -> seed -> statistics (N, S) of the deciding metric; labels without seeds are left out.
        metric: the deciding metric.
        cells: label -> finished cell records (`cell.json`), for costs and forgetting.
        planned_seeds: seeds that every method was to have; missing ones are noted.
        name: the metric's name for people; default: its own.
        stopped: methods that a race stopped; they are named and not compared.
        resamples: of the bootstrap and of the permutation test.
        seed: of the resampling.
    """
    out = {one.label for one in stopped}
    scores = {label: by_seed for label, by_seed in scores.items() if by_seed and label not in out}
    rules = {**RULES, "stopped early": RACE_RULE} if stopped else dict(RULES)
    scale = Scale((name or metric.name).replace("-", " "), *metric.range, metric.higher_is_better)
    if not scores:
        return Verdict(
            metric.name, metric.higher_is_better, 0, (), (), (), (), (), (), (), ("No cell has finished yet.",), (),
            tuple(stopped), rules,
        )  # fmt: skip
    analysis = compare(scores, metric, resamples=resamples, permutations=resamples, seed=seed)
    sign = 1.0 if metric.higher_is_better else -1.0
    pairs = _pairs(analysis.differences, sign)
    worse_than = {
        label: tuple(p.better for p in pairs if p.better not in (None, label) and label in (p.first, p.second))
        for label in scores
    }
    examples = next(iter(analysis.estimates.values())).examples
    cost = {label: _mean(cells.get(label, ()), lambda c: _flops(c, examples)) for label in scores}
    kl = {label: _mean(cells.get(label, ()), lambda c: _forgetting(c, "kl")) for label in scores}
    bits = {label: _mean(cells.get(label, ()), _bits_change) for label in scores}
    value = {label: e.value for label, e in analysis.estimates.items()}
    pareto = _pareto({label: (sign * value[label], cost[label]) for label in scores})
    rows = [
        Row(
            label=label,
            rank=1 + len(worse_than[label]),
            value=e.value,
            low=e.low,
            high=e.high,
            seeds=tuple(sorted(scores[label])),
            seed_deviation=e.seed_deviation,
            deterministic=e.deterministic,
            conditional=e.conditional,
            worse_than=tuple(str(other) for other in worse_than[label]),
            cost_flops=cost[label],
            kl=kl[label],
            bits_per_byte_change=bits[label],
            pareto=label in pareto,
        )
        for label, e in analysis.estimates.items()
    ]
    rows.sort(key=lambda row: -sign * row.value)
    leaders = [row for row in rows if row.rank == 1]
    doubtful = _probably_worse(leaders, pairs)
    contenders = [row for row in leaders if row.label not in doubtful]
    cheapest = _least(contenders, "cost_flops")
    faithful = _least(contenders, "kl")
    return Verdict(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        examples=examples,
        rows=tuple(rows),
        pairs=tuple(pairs),
        best=tuple(row.label for row in leaders),
        contenders=tuple(row.label for row in contenders),
        best_for_cost=cheapest,
        forgets_least=faithful,
        pareto=tuple(row.label for row in rows if row.pareto),
        sentences=tuple(
            sentences(
                rows,
                pairs,
                scale,
                examples=examples,
                answers=ANSWERS,
                doubtful=doubtful,
                cheapest=cheapest,
                faithful=faithful,
                stopped=stopped,
            )
        ),
        notes=tuple([*notes(scores, pairs, planned_seeds), *race_notes(stopped, scale)]),
        stopped=tuple(stopped),
        rules=rules,
    )


def _pairs(differences: Mapping[tuple[str, str], Difference], sign: float) -> list[Pair]:
    adjusted = holm([d.p for d in differences.values()])
    undecided = sum(p >= ALPHA for p in adjusted)
    pairs = []
    for ((first, second), d), p_holm in zip(differences.items(), adjusted, strict=True):
        decided = p_holm < ALPHA
        # Holm's next step asks this much of the most promising pair that is still open
        alpha = ALPHA / max(undecided, 1)
        needed = None if decided else examples_for_power(d, power=POWER, alpha=alpha)
        if needed is not None and needed <= d.examples:
            # the plan is easier than what was seen (a permutation test or few changes held it back): a bit more
            needed = d.examples + max(1, d.examples // 10)
        pairs.append(
            Pair(
                first=first,
                second=second,
                difference=d.value,
                low=d.low,
                high=d.high,
                p=d.p,
                p_holm=p_holm,
                test=d.test,
                decided=decided,
                better=(first if sign * d.value > 0 else second) if decided else None,
                seeds=d.seeds,
                conditional=d.conditional,
                examples_needed=needed,
                more_examples=None if needed is None else needed - d.examples,
                plan=None if decided or needed is not None else plan_for_power(d, power=POWER, alpha=alpha),
            )
        )
    return pairs


def _probably_worse(leaders: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """Leaders that the highest mean beats before, but not after, the correction; in their order."""
    top = leaders[0].label
    worse = {
        p.second if p.first == top else p.first
        for p in pairs
        if top in (p.first, p.second) and not p.decided and p.p < ALPHA
    }
    return [row.label for row in leaders if row.label in worse]


def _flops(cell: Mapping[str, Any], examples: int) -> float | None:
    """FLOPs of fitting and of `ANSWERS` answers, from those of fitting and of all test examples."""
    flops = cell.get("flops") or {}
    if flops.get("fit") is None or flops.get("evaluate") is None:
        return None
    return float(flops["fit"]) + ANSWERS * float(flops["evaluate"]) / examples


def _forgetting(cell: Mapping[str, Any], key: str) -> float | None:
    found = (cell.get("forgetting") or {}).get(key)
    return None if found is None else float(found)


def _bits_change(cell: Mapping[str, Any]) -> float | None:
    after, before = _forgetting(cell, "bits_per_byte"), _forgetting(cell, "bits_per_byte_base")
    return None if after is None or before is None else after - before


def _mean(cells: Sequence[Mapping[str, Any]], value: Any) -> float | None:
    """Mean over the cells; None where any of them lacks the value."""
    found = [value(cell) for cell in cells]
    return None if not found or any(x is None for x in found) else sum(found) / len(found)


def _least(rows: Sequence[Row], attribute: str) -> tuple[str, ...]:
    """Labels of the rows with the smallest value (all of them on a tie); empty where any row lacks it."""
    values = [getattr(row, attribute) for row in rows]
    if not values or any(value is None for value in values):
        return ()
    least = min(values)
    return tuple(row.label for row, value in zip(rows, values, strict=True) if value <= least + 1e-12 * abs(least))


def _pareto(points: Mapping[str, tuple[float, float | None]]) -> set[str]:
    """Labels that no other one beats in quality (higher is better) and cost (lower is better) together."""
    known = {label: (q, c) for label, (q, c) in points.items() if c is not None}
    return {
        label
        for label, (q, c) in known.items()
        if not any(q2 >= q and c2 <= c and (q2 > q or c2 < c) for q2, c2 in known.values())
    }

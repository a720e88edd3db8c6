"""The verdict in plain words: one honest sentence after another, the most important one first.

No leader is named where the data do not tell it apart; what would decide is said with numbers. Nothing here depends on
seconds, so that a repeated comparison says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kamerton.comparison.units import Scale, listing, quantity
from kamerton.evaluation.resampling import SeedScores

if TYPE_CHECKING:  # verdict.py makes these records and calls this module
    from kamerton.comparison.verdict import Pair, Row


def sentences(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    scale: Scale,
    *,
    examples: int,
    answers: int,
    doubtful: Sequence[str],
    cheapest: Sequence[str],
    faithful: Sequence[str],
) -> list[str]:
    """The verdict's sentences.

    Args:
        rows: methods, best first; at least one.
        pairs: all pairs.
        scale: units of the deciding metric.
        examples: test examples. answers: those that the cost in FLOPs counts.
        doubtful: leaders that are probably worse than the first one.
        cheapest, faithful: best for its cost, forgets least.
    """
    leaders = [row for row in rows if row.rank == 1]
    top = leaders[0]
    interval = f"{scale.name} {scale.score(top.value)}, 95% interval {_span(top, scale)}"
    if len(rows) == 1:
        return [f"Only {top.label} has been scored ({interval}); there is nothing to compare it with."]
    said: list[str] = []
    if len(leaders) == 1:
        said.append(_single_lead(rows, pairs, interval))
        said.append(_for_less(rows, scale))
    else:
        said.append(_shared_lead(rows, leaders, scale))
        said.append(_what_would_decide(leaders, pairs, scale, examples))
        said.append(_probably_behind(leaders, pairs, doubtful))
    said.append(_cost_and_forgetting(leaders, doubtful, answers, cheapest, faithful))
    if all(row.conditional for row in rows):
        seed = rows[0].seeds[0]
        said.append(f"There is one seed only: this holds for the runs of seed {seed}, and other seeds may change it.")
    return [sentence for sentence in said if sentence]


def _for_less(rows: Sequence[Row], scale: Scale) -> str:
    cheaper = [f"{row.label} ({scale.score(row.value)})" for row in rows if row.pareto and row.rank > 1]
    return f"For less compute, but worse: {listing(cheaper[:3])}." if cheaper else ""


def _cost_and_forgetting(
    leaders: Sequence[Row], doubtful: Sequence[str], answers: int, cheapest: Sequence[str], faithful: Sequence[str]
) -> str:
    """Who costs least and who forgets least, of those that are not behind."""
    spent = next((f"{quantity(row.cost_flops, 'FLOP')}" for row in leaders if row.label in cheapest), "")
    cost = f"({spent} for fitting and {answers:,} answers)"
    kl = next((row.kl for row in leaders if row.label in faithful), None)
    moved = f"KL to the base {kl:.2g} nats a token on general prompts" if kl else "not at all on general prompts"
    if len(leaders) == 1:
        if kl is None:
            return ""
        return f"It moved away from the base: {moved}." if kl else "It forgets nothing: the base is as it was."
    among = "Of those not behind" if doubtful else "Of these"
    s = {True: "s", False: ""}
    if cheapest and tuple(cheapest) == tuple(faithful):
        one = s[len(cheapest) == 1]
        return f"{among}, {listing(cheapest)} cost{one} least {cost} and forget{one} least ({moved})."
    parts = []
    if cheapest:
        parts.append(f"{listing(cheapest)} cost{s[len(cheapest) == 1]} least {cost}")
    if faithful:
        parts.append(f"{listing(faithful)} forget{s[len(faithful) == 1]} least ({moved})")
    return f"{among}, {listing(parts)}." if parts else ""


def _span(row: Row, scale: Scale) -> str:
    return f"{scale.number(row.low)} to {scale.score(row.high)}"


def _single_lead(rows: Sequence[Row], pairs: Sequence[Pair], interval: str) -> str:
    top = rows[0].label
    beaten = {p.first if p.better == p.second else p.second for p in pairs if p.better == top}
    rest = [row.label for row in rows[1:] if row.label not in beaten]
    if rest:  # "better than" need not carry over: the rest lost to another method only
        return f"{top} leads ({interval}), but these data do not tell it apart from {listing(rest, 'or')}."
    others = rows[1].label if len(rows) == 2 else f"all {len(rows) - 1} others"
    return f"{top} is best ({interval}): significantly better than {others}."


def _shared_lead(rows: Sequence[Row], leaders: Sequence[Row], scale: Scale) -> str:
    if len(leaders) <= 4:
        named = listing([f"{row.label} ({scale.score(row.value)})" for row in leaders])
    else:
        ends = [f"{row.label} ({scale.score(row.value)})" for row in (leaders[0], leaders[-1])]
        named = f"{len(leaders)} methods, from {ends[0]} to {ends[1]},"
    if len(leaders) == len(rows):
        return f"No method can be called best: in {scale.name}, {named} are not told apart by these data."
    others = len(rows) - len(leaders)
    behind = f"{rows[-1].label} is behind" if others == 1 else f"the other {others} are behind"
    return f"No single method can be called best: in {scale.name}, {named} share the lead; {behind}."


def _what_would_decide(leaders: Sequence[Row], pairs: Sequence[Pair], scale: Scale, examples: int) -> str:
    """For the first two of the leading group that differ at all."""
    first, second = leaders[0].label, leaders[1].label
    pair = next((p for p in pairs if {p.first, p.second} == {first, second}), None)
    if pair is None:
        return f"{first} and {second} have no seed in common and were not compared."
    name, start = ("the two", "The two") if len(leaders) == 2 else (f"{first} and {second}",) * 2
    if pair.difference == 0:
        return f"{start} have the same score."
    gap = scale.points(abs(pair.difference)).lstrip("+")
    if pair.more_examples is not None:
        return (
            f"If {name} differ by {gap}, as observed, about {round_up(pair.more_examples):,} more test examples "
            f"would show it (80% power)."
        )
    if pair.plan is not None:
        return f"To show a difference between {name} of {gap}, as observed, takes {_plan(pair, examples)} (80% power)."
    return f"{start} differ by {gap} as observed, too little for any test set of reasonable size."


def _plan(pair: Pair, now: int) -> str:
    """What to run, where more examples alone would not do: runs differ between seeds."""
    examples, seeds = pair.plan or (0, 0)
    more = f" and about {round_up(examples):,} test examples" if examples > now else ""
    return f"about {seeds} seeds for each method{more}"


def _probably_behind(leaders: Sequence[Row], pairs: Sequence[Pair], names: Sequence[str]) -> str:
    """Leaders that the highest mean beats before, but not after, the correction for many comparisons."""
    if not names:
        return ""
    top = leaders[0].label
    shown = listing(names) if len(names) <= 4 else f"{len(names)} methods, {names[0]} to {names[-1]},"
    verb = "is" if len(names) == 1 else "are"
    theirs = [p for p in pairs if top in (p.first, p.second) and {p.first, p.second} & set(names)]
    remedy = " More seeds would settle it." if any(p.more_examples is None for p in theirs) else ""
    compared = f"{len(pairs)} comparisons" if len(pairs) > 1 else "one comparison"
    return f"{shown} {verb} probably behind {top}, but not beyond doubt after the correction for {compared}.{remedy}"


def round_up(count: int) -> int:
    """Two leading digits: a plan is not more exact than that."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def notes(scores: Mapping[str, SeedScores], pairs: Sequence[Pair], planned: Sequence[int]) -> list[str]:
    notes = []
    for label, by_seed in scores.items():
        missing = [seed for seed in planned if seed not in by_seed]
        if missing:
            left = listing([str(seed) for seed in sorted(by_seed)])
            gone = listing([str(seed) for seed in missing])
            notes.append(f"{label} has no result for seed {gone}; it is compared with the others on seed {left}.")
    labels = list(scores)
    compared = {frozenset((p.first, p.second)) for p in pairs}
    for i, first in enumerate(labels):
        for second in labels[i + 1 :]:
            if frozenset((first, second)) not in compared:
                notes.append(f"{first} and {second} have no seed in common and were not compared.")
    single = [label for label in labels if len(scores[label]) == 1]
    if single and len(single) < len(labels):
        notes.append(f"One seed only for {listing(single)}: what is said of it holds for that run.")
    return notes

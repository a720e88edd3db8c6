"""The verdict in plain words: one honest sentence after another, the most important one first.

No leader is named where the data do not tell it apart; what would decide is said with numbers. Nothing here depends on
seconds, so that a repeated comparison says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kamerton.comparison.units import Scale, listing, p_value, quantity
from kamerton.evaluation.resampling import SeedScores

if TYPE_CHECKING:  # verdict.py makes these records and calls this module
    from kamerton.comparison.verdict import Pair, Row, Stopped


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
    stopped: Sequence[Stopped] = (),
) -> list[str]:
    """The verdict's sentences.

    Args:
        rows: methods, best first; at least one.
        pairs: all pairs.
        scale: units of the deciding metric.
        examples: test examples. answers: those that the cost in FLOPs counts.
        doubtful: leaders that are probably worse than the first one.
        cheapest, faithful: best for its cost, forgets least.
        stopped: methods that a race stopped; they have no row.
    """
    leaders = [row for row in rows if row.rank == 1]
    top = leaders[0]
    interval = f"{scale.name} {scale.score(top.value)}, 95% interval {_span(top, scale)}"
    if len(rows) == 1 and stopped:
        left = f"{top.label} is best ({interval}): the race stopped everything else, clearly behind."
        return [sentence for sentence in (left, race_sentence(stopped, scale), _one_seed(rows)) if sentence]
    if len(rows) == 1:
        return [f"Only {top.label} has been scored ({interval}); there is nothing to compare it with."]
    said: list[str] = []
    contenders = [row for row in leaders if row.label not in doubtful]
    if len(leaders) == 1:
        said.append(_single_lead(rows, pairs, interval, " that finished" if stopped else ""))
        said.append(_for_less(rows, scale))
    else:
        if len(contenders) == 1:
            said.append(_probable_lead(leaders, pairs, interval, doubtful))
        else:
            said.append(_shared_lead(rows, contenders, pairs, scale, doubtful))
        others = contenders[1:] or [row for row in leaders if row.label in doubtful]
        said.append(_what_would_decide(top, others, len(leaders) == 2, pairs, scale, examples))
    said.append(_cost_and_forgetting(leaders, doubtful, answers, cheapest, faithful))
    said += [race_sentence(stopped, scale), _one_seed(rows)]
    return [sentence for sentence in said if sentence]


def _one_seed(rows: Sequence[Row]) -> str:
    if not all(row.conditional for row in rows):
        return ""
    return f"There is one seed only: this holds for the runs of seed {rows[0].seeds[0]}, and other seeds may change it."


def stood(stop: Stopped) -> str:
    """Where a race stopped a method: "at 25% of its training", "after 2 seeds"."""
    if stop.share < 1:
        return f"at {stop.share:.0%} of its training"
    return f"after {stop.seeds} seed{'s' if stop.seeds > 1 else ''}"


def race_sentence(stopped: Sequence[Stopped], scale: Scale) -> str:
    """What a race stopped and when; the three best of many are named."""
    if not stopped:
        return ""
    best = sorted(stopped, key=lambda s: -s.value if scale.higher_is_better else s.value)
    named = [f"{s.label} ({stood(s)}: {scale.score(s.value)}, {s.leader} {scale.score(s.leader_value)})" for s in best]
    shown = named if len(named) <= 4 else [*named[:3], f"{len(named) - 3} more"]
    verb = "was" if len(stopped) == 1 else "were"
    return f"On validation questions, {listing(shown)} {verb} clearly behind, stopped early and not ranked."


def race_notes(stopped: Sequence[Stopped], scale: Scale) -> list[str]:
    """One line for each method that a race stopped."""
    return [
        f"{s.label} was stopped {stood(s)} (seed {s.seed}): {scale.score(s.value)} on {s.examples} validation "
        f"questions, {s.leader} {scale.score(s.leader_value)} (p {p_value(s.p)})"
        + (". It might have caught up." if s.share < 1 else ".")
        for s in stopped
    ]


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
    if len(leaders) - len(doubtful) == 1:
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


def _single_lead(rows: Sequence[Row], pairs: Sequence[Pair], interval: str, which: str) -> str:
    top = rows[0].label
    beaten = {p.first if p.better == p.second else p.second for p in pairs if p.better == top}
    rest = [row.label for row in rows[1:] if row.label not in beaten]
    if rest:  # "better than" need not carry over: the rest lost to another method only
        return f"{top} leads ({interval}), but these data do not tell it apart from {listing(rest, 'or')}."
    others = rows[1].label if len(rows) == 2 else "both others" if len(rows) == 3 else f"all {len(rows) - 1} others"
    return f"{top} is best ({interval}): significantly better than {others}{which}."


def _named(rows: Sequence[Row], scale: Scale) -> str:
    shown = [f"{row.label} ({scale.score(row.value)})" for row in rows]
    return listing(shown) if len(rows) <= 4 else f"{len(rows)} methods, from {shown[0]} to {shown[-1]},"


def _compared(pairs: Sequence[Pair]) -> str:
    return f"{len(pairs)} comparisons" if len(pairs) > 1 else "one comparison"


def _probable_lead(leaders: Sequence[Row], pairs: Sequence[Pair], interval: str, doubtful: Sequence[str]) -> str:
    """All other leaders are beaten before, but not after, the correction for many comparisons."""
    shown = listing(doubtful) if len(doubtful) <= 4 else f"{len(doubtful)} methods"
    return (
        f"{leaders[0].label} is probably best ({interval}), but its lead over {shown} is not beyond doubt after the "
        f"correction for {_compared(pairs)}."
    )


def _shared_lead(
    rows: Sequence[Row], contenders: Sequence[Row], pairs: Sequence[Pair], scale: Scale, doubtful: Sequence[str]
) -> str:
    said = f"No single method can be called best: in {scale.name}, {_named(contenders, scale)} are not told apart"
    behind = [row for row in rows if row.rank > 1]
    if doubtful:
        verb = "is" if len(doubtful) == 1 else "are"
        maybe = _named([row for row in rows if row.label in doubtful], scale)
        said += f"; {maybe} {verb} probably behind, but not beyond doubt after the correction for {_compared(pairs)}"
    if behind:
        who = f"{behind[0].label} is" if len(behind) == 1 else f"the other {len(behind)} are"
        said += f"; {who} behind"
    return f"{said}."


def _what_would_decide(
    top: Row, others: Sequence[Row], two: bool, pairs: Sequence[Pair], scale: Scale, examples: int
) -> str:
    """For the best and the first of those that it is not told apart from."""
    first, second = top.label, others[0].label
    pair = next((p for p in pairs if {p.first, p.second} == {first, second}), None)
    if pair is None:
        return f"{first} and {second} have no seed in common and were not compared."
    name, start = ("the two", "The two") if two else (f"{first} and {second}",) * 2
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

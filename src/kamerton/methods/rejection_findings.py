"""A rejection-sampling stage for a reader of the report: best reward against K, reward by round, answers; warnings.

Rounds answer different questions, so a step from one round to the next is a matter of chance too; the warnings compare
the first and the last round and heed the standard errors of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kamerton.methods.method import Finding
from kamerton.methods.stage_findings import LONGEST, short
from kamerton.objectives.rejection_rounds import Round
from kamerton.rewards.reward import notes_of

SHOWN_ROUNDS = 4
"""Rounds whose answers are shown as text, the first and the last among them."""
LONG, SHORT = 1.5, 0.5
"""Length over that of the first round: running away, collapsing."""
ALIKE = 0.9
"""Share of questions whose answers all have the same reward, from which there is nothing to choose."""
DISTINCT = 0.4
"""Share of the first round's distinct answers below which answers have collapsed while there was reward to gain."""


def rejection_findings(objective: Any, curve: Sequence[dict[str, float]]) -> list[Finding]:  # noqa: ARG001 (contract)
    """Everything that is shown of a stage."""
    rounds: list[Round] = objective.rounds
    if not rounds:
        return []
    return [_against_k(rounds, objective.reward.name), _by_round(rounds, objective.reward.name), _counts(rounds),
            _texts(rounds)]  # fmt: skip


def _against_k(rounds: Sequence[Round], reward: str) -> Finding:
    first, last = rounds[0], rounds[-1]
    several = len(rounds) > 1
    rows = [(k + 1, *(r.best[k] for r in ((first, last) if several else (first,)))) for k in range(first.samples)]
    columns = ("K", "round 1", f"round {len(rounds)}") if several else ("K", "round 1")
    note = (
        f"Expected reward ({reward}) of the best of K answers, from the {first.samples} that were sampled to each "
        "question, over all subsets of K (order statistics)."
    )
    return Finding("Best reward against K", columns, tuple(rows), curve=True, note=note)


def _by_round(rounds: Sequence[Round], reward: str) -> Finding:
    rows = tuple((i, r.mean, r.best[-1]) for i, r in enumerate(rounds, 1))
    note = (
        f"Reward ({reward}) of the sampled answers: of all of them, and of the best one of each question. Rounds "
        "answer different questions."
    )
    return Finding("Reward by round", ("round", "mean", f"best of {rounds[0].samples}"), rows, curve=True, note=note)


def _counts(rounds: Sequence[Round]) -> Finding:
    rows = tuple(
        (i, r.step, r.questions, r.kept, r.below, r.equal, r.spread, r.distinct, r.length, r.ended)
        for i, r in enumerate(rounds, 1)
    )
    columns = ("round", "step", "questions", "kept", "below least", "all equal", "spread", "distinct", "tokens",
               "ended")  # fmt: skip
    note = (
        "Kept: questions whose best answer is trained on. All equal: their answers have one reward, so nothing was "
        "chosen. Spread: standard deviation of rewards inside a question. Distinct: different answers over K. Tokens "
        "of an answer; ended: share that ends inside the limit."
    )
    return Finding("Rounds", columns, rows, note=note)


def _texts(rounds: Sequence[Round]) -> Finding:
    count = min(SHOWN_ROUNDS, len(rounds))
    picked = sorted({round(i * (len(rounds) - 1) / max(count - 1, 1)) for i in range(count)})
    rows = tuple(
        (f"round {n + 1}", *(short(v) if isinstance(v, str) else v for v in row))
        for n in picked
        for row in rounds[n].texts
    )
    columns = ("", "question", "best answer", "reward", "worst answer", "its reward")
    note = f"Of the first questions of a round. Texts of more than {LONGEST} characters are cut; they end in … then."
    return Finding("Sampled answers", columns, rows, note=note, texts=True)


def rejection_warnings(objective: Any, curve: Sequence[dict[str, float]], kept: int) -> list[str]:  # noqa: ARG001
    """What was left out, one line; then one line for each thing that went wrong."""
    rounds: list[Round] = objective.rounds
    if not rounds:
        return []
    notes = [_told(rounds, objective)]
    if objective.cut:
        asked = sum(r.questions for r in rounds)
        notes.append(f"{objective.cut} of {asked} questions that were sampled had to be cut to fit")
    notes += notes_of(objective.reward)  # of its own work: what it skipped, what was off its format
    found = [*_nothing_to_choose(rounds), *_changed(rounds, objective)]
    return [*notes, *(f"warning: {line}" for line in found)]


def _told(rounds: Sequence[Round], objective: Any) -> str:
    questions, below, equal = (sum(getattr(r, name) for r in rounds) for name in ("questions", "below", "equal"))
    least = f"{below} left out with a best reward below {objective.o.least:g}" if objective.o.least is not None else ""
    done = "left out" if objective.o.ties == "leave-out" else "their first answer kept, unless it was below least"
    parts = [p for p in (least, f"{equal} with one reward for all answers ({done})" if equal else "") if p]
    return (
        f"rejection-sampling: {_count(len(rounds), 'round')}, {questions} questions of {rounds[0].samples} answers"
        + (f"; {', '.join(parts)}" if parts else "")
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _nothing_to_choose(rounds: Sequence[Round]) -> list[str]:
    first = rounds[0]
    if first.equal < ALIKE * first.questions:
        return []
    return [
        f"in the first round the answers to {first.equal} of {first.questions} questions have one reward each, so "
        "there was nothing to choose; raise rejection_sampling.samples or rejection_sampling.temperature, or name a "
        "reward with more values"
    ]


def _changed(rounds: Sequence[Round], objective: Any) -> list[str]:
    """The first round against the last one: length, variety, and a reward that rises while the metric falls."""
    first, last = rounds[0], rounds[-1]
    if len(rounds) < 2:
        return []
    out = []
    error = (first.error**2 + last.error**2) ** 0.5
    rises = last.mean - first.mean > 2 * error and last.mean > first.mean
    if rises and last.length > LONG * first.length:
        out.append(
            f"reward hacking: the reward rose from {first.mean:.3g} to {last.mean:.3g} while answers grew from "
            f"{first.length:.1f} to {last.length:.1f} tokens; add a reward for length, or train for fewer rounds"
        )
    elif last.length < SHORT * first.length:
        out.append(
            f"length collapse: answers fell from {first.length:.1f} to {last.length:.1f} tokens; see whether the "
            "reward favours short answers"
        )
    looks = objective.looks
    if rises and len(looks) > 1 and looks[-1][1] > looks[0][1] + 0.02 * (1 + abs(looks[0][1])):
        metric = objective.task.metrics[0]
        out.append(
            f"reward hacking: the reward rose from {first.mean:.3g} to {last.mean:.3g} while {metric} on validation "
            f"became worse by {looks[-1][1] - looks[0][1]:.3g}; change the reward, or train for fewer rounds"
        )
    top = objective.reward.range[1]
    gain = last.mean < first.mean + 0.5 * (top - first.mean) if top < float("inf") else not rises
    if last.distinct < DISTINCT * first.distinct and gain:
        out.append(
            f"answers became alike: {first.distinct:.0%} of the answers to a question were different in the first "
            f"round, {last.distinct:.0%} in the last, and the reward gained little; raise "
            "rejection_sampling.temperature, or lower rejection_sampling.rate"
        )
    return out

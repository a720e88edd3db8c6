"""What can go wrong in a game between two networks, told from its figures, with the option to change.

Each rule compares the last look with the start (the supervised start answers the same questions with the same random
numbers) and, where it is about wording, with the references. The thresholds are coarse on purpose: a warning is for
what a person would see in the samples too. The rules stand in docs/adversarial.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kamerton.evaluation.figures import Figure, difference, interval
from kamerton.evaluation.metrics import get_metric
from kamerton.methods.stage_figures import Shape, gain, reference_shape, shape
from kamerton.objectives.looks import Looks

FEWEST = 4
"""Questions below which diversity across them says nothing."""
BLEU_ABOVE = 15.0
"""Points of self-BLEU across questions above the references and the start: collapse."""
BLEU_FULL = 85.0
"""Self-BLEU of references or start from which it cannot rise enough to say anything."""
DISTINCT_REFERENCES, DISTINCT_START = 0.5, 0.7
"""Shares of the references' and the start's distinct n-grams, below which it is collapse."""
SHORT, LONG = 0.5, 2.0
"""Length over that of the references: too short, too long; `…_START`: over that of the start."""
SHORT_START, LONG_START = 0.7, 1.5
ENDED, ENDED_FELL = 0.5, 0.3
"""Share of answers that end inside the limit, and its fall from the start: running on."""
GAP = 0.15
"""Trained AUC above the held-out AUC, over the last quarter of the steps: the discriminator memorises."""


def stage_warnings(objective: Any, curve: Sequence[dict[str, float]], kept: int) -> list[str]:
    """One line for each thing that went wrong. `kept`: the step whose weights are kept, below 0 for the last."""
    looks: Looks = objective.looks
    found: list[str] = []
    if len(looks.taken) > 1 and looks.taken[0].step == 0:
        first, last = looks.taken[0], looks.taken[-1]
        start, now = shape(looks, first), shape(looks, last)
        found += collapse(reference_shape(looks), start, now) if len(looks.examples) >= FEWEST else []
        found += length(start, now)
        found += hacking(looks)
        if found and 0 <= kept < last.step:
            where = f"step {kept}" if kept else "the start"
            found = [f"{line} (so it is at step {last.step}; the weights that are kept are those of {where})"
                     for line in found]  # fmt: skip
    if objective.judges.folds > 1 and objective.o.weight:
        found += memorising(curve)
    return [f"warning: {line}" for line in found]


def collapse(references: Shape, start: Shape, now: Shape) -> list[str]:
    """One answer for all questions: n-grams across questions repeat as they do neither in references nor at the start.

    Distinct-1 or distinct-2 has fallen, and self-BLEU across questions agrees. Either will do: answers that have become
    single words have few 2-grams left, and long ones repeat their words anyway.
    """
    shapes = references, start, now
    bleu = _all(s.across for s in shapes)
    if not bleu or (max(bleu[:2]) < BLEU_FULL and bleu[2] < max(bleu[:2]) + BLEU_ABOVE):
        return []
    for name, found in (
        ("distinct-2", _all(s.distinct_2 for s in shapes)), ("distinct-1", _all(s.distinct_1 for s in shapes)),
    ):  # fmt: skip
        if found and found[2] <= min(DISTINCT_REFERENCES * found[0], DISTINCT_START * found[1]):
            return [
                "mode collapse: answers to different questions repeat each other (self-BLEU across questions "
                f"{bleu[2]:.0f}, references {bleu[0]:.0f}, start {bleu[1]:.0f}; {name} {found[2]:.2f}, references "
                f"{found[0]:.2f}, start {found[1]:.2f}); raise adversarial.kl or adversarial.anchor, or lower "
                "adversarial.weight"
            ]
    return []


def length(start: Shape, now: Shape) -> list[str]:
    """Answers that have become much shorter or longer than references are, or do not end."""
    a, b = start.length, now.length
    if a is None or b is None:
        return []
    said = f"the samples have {b:.2f} times the references' tokens, at the start {a:.2f} times"
    if b <= SHORT and b <= SHORT_START * a:
        return [f"length collapse: {said}; raise adversarial.anchor or adversarial.kl, or lower adversarial.weight"]
    ends = _all(s.ended for s in (start, now))
    if ends and ends[1] <= ENDED and ends[1] <= ends[0] - ENDED_FELL:
        said += f"; {ends[1]:.0%} end inside the limit, at the start {ends[0]:.0%}"
    elif b < LONG or b < LONG_START * a:
        return []
    return [f"running on: {said}; raise adversarial.anchor or adversarial.kl, or lower adversarial.weight"]


def hacking(looks: Looks) -> list[str]:
    """The reward is above the start's and the metric on validation below it, both beyond their 95% intervals."""
    first, last = looks.taken[0], looks.taken[-1]
    reward = gain(last)
    if reward is None or len(reward.statistics) < FEWEST or not first.statistics or not last.statistics:
        return []
    name = looks.task.metrics[0]
    metric = get_metric(name, looks.task.validation)
    before, after = (Figure(metric, np.array(look.statistics)) for look in (first, last))
    moved = difference(after, before)
    worse = moved.high < 0 if metric.higher_is_better else moved.low > 0
    if not worse or interval(reward).low <= 0:
        return []
    return [
        f"reward hacking: the discriminator scores a token of the samples {reward.value:.2f} above the start's, and "
        f"{name} on validation went from {before.value:.3g} to {after.value:.3g}; raise adversarial.kl or "
        "adversarial.anchor, or lower adversarial.weight or adversarial.rate"
    ]


def memorising(curve: Sequence[dict[str, float]]) -> list[str]:
    """The discriminators know the references that they were trained on, and much less of others."""
    rows = [row for row in curve[-max(1, len(curve) // 4) :] if "auc" in row and "trained_auc" in row]
    if not rows:
        return []
    held_out, trained = (sum(row[name] for row in rows) / len(rows) for name in ("auc", "trained_auc"))
    if trained - held_out < GAP:
        return []
    return [
        f"the discriminator memorises: AUC {trained:.2f} on references that it was trained on, {held_out:.2f} on "
        "others; raise adversarial.decay or adversarial.penalty, lower adversarial.rank or "
        "adversarial.discriminator_rate, or give more training examples"
    ]


def _all(values: Iterable[float | None]) -> list[float]:
    """The numbers; none at all where one is not known."""
    found = list(values)
    return [value for value in found if value is not None] if None not in found else []

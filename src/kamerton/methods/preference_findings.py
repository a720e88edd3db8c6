"""A preference stage as a reader of the report sees it, and what can go wrong in it, told from the same figures.

For `objectives/dpo.py`: curves over its steps, and what its validations saw of held-out pairs. The thresholds of the
warnings are coarse on purpose; they stand in docs/preference-optimisation.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kamerton.methods.method import Finding
from kamerton.methods.stage_findings import thinned
from kamerton.objectives.dpo import Dpo, Look

Curve = Sequence[dict[str, float]]

FELL, FELL_TOKEN = 1.0, 0.05
"""Nats an answer, and a token of it, by which the chosen answers' log-probability has fallen: displacement."""
ROSE = 0.05
"""Rise of the accuracy beside it."""
FAR = 0.5
"""KL to the reference in nats a token, at positions of chosen answers: the model runs away from its start."""
GAP = 0.2
"""Accuracy on training pairs above that on held-out pairs: they are learned by heart."""


def preference_findings(objective: Dpo, curve: Curve) -> list[Finding]:
    """What is shown of a stage: `curve` has a row for each of its steps."""
    return [*_steps(curve), *_held_out(objective)]


def _steps(curve: Curve) -> list[Finding]:
    if not any("accuracy" in row for row in curve):
        return []
    out = []
    for title, names, note in (
        ("DPO stage: loss and accuracy", ("loss", "accuracy"),
         "Of each step's training pairs: the loss, and the share in which the better answer has the higher reward."),
        ("DPO stage: reward margin", ("margin",),
         "β times the log-ratio of the better answer less that of the worse one, mean over a step's pairs."),
        ("DPO stage: log-probabilities", ("chosen", "rejected"),
         "Of whole answers in nats, better and worse ones of each step's pairs. Both may fall while the margin grows."),
        ("DPO stage: moved from the start", ("chosen_ratio", "rejected_ratio"),
         "Log-probability less that at the start, in nats an answer."),
    ):  # fmt: skip
        columns = ("step", *(name.removesuffix("_ratio") for name in names))
        out.append(Finding(title, columns, tuple(thinned(curve, names)), True, note))
    return out


def _held_out(objective: Dpo) -> list[Finding]:
    out = []
    seen = [look for look in objective.looks if look.sums[0]]
    if seen:
        note = (
            f"Of {seen[0].sums[0]:.0f} held-out pairs, at every validation: accuracy; chosen and rejected: the "
            "log-probability of the better and of the worse answer less that at the start, in nats an answer."
        )
        columns = ("step", "accuracy", "margin", "chosen", "rejected")
        rows = tuple((look.step, *(look.mean(name) for name in columns[1:])) for look in seen)
        out.append(Finding("DPO stage: held-out pairs", columns, rows, note=note))
    known = [look for look in objective.looks if math.isfinite(look.kl)]
    if known:
        note = "KL divergence of the model to its start in nats a token, exact over the vocabulary, at chosen answers."
        out.append(Finding("DPO stage: KL", ("step", "KL"), tuple((k.step, k.kl) for k in known), True, note))
    return out


def preference_warnings(objective: Dpo, curve: Curve, kept: int) -> list[str]:
    """One line for each thing that went wrong, and one for the held-out accuracy at the step that is kept."""
    looks = objective.looks
    first, last = (looks[0], looks[-1]) if looks else (None, None)
    tail = [row for row in curve[-max(1, len(curve) // 4) :] if "accuracy" in row]
    found: list[str] = []
    if first is not None and last is not None and last.step > first.step:
        found += _displaced(objective, first, last)
        if last.kl >= FAR:
            found.append(
                f"the model is {last.kl:.2f} nats a token away from its start (KL at chosen answers); raise dpo.beta, "
                "lower dpo.rate or the budget"
            )
        held_out = last.mean("accuracy")
        trained = sum(row["accuracy"] for row in tail) / len(tail) if tail else 0.0
        if held_out is not None and trained - held_out >= GAP:
            found.append(
                f"training pairs are learned by heart: accuracy {trained:.2f} on them, {held_out:.2f} on held-out "
                "ones; raise dpo.beta or dpo.label_smoothing, lower the budget, or give more pairs"
            )
        if found and 0 <= kept < last.step:
            where = f"step {kept}" if kept else "the start"
            found = [f"{line} (so it is at step {last.step:.0f}; the weights that are kept are those of {where})"
                     for line in found]  # fmt: skip
    lines = [f"warning: {line}" for line in found]
    known = {round(look.step): accuracy for look in looks if (accuracy := look.mean("accuracy")) is not None}
    if known and kept in known:
        lines.append(f"accuracy on {first.sums[0]:.0f} held-out pairs: {known[kept]:.3f}")  # type: ignore[union-attr]
    return lines


def _displaced(objective: Dpo, first: Look, last: Look) -> list[str]:
    """The better answers have become less likely than they were, while the model tells pairs apart better."""
    fell, before, after = last.mean("chosen"), first.mean("accuracy"), last.mean("accuracy")
    if fell is None or before is None or after is None or after - before < ROSE:
        return []
    length = sum(len(p.chosen.tokens) - p.chosen.prompt_length for p in objective.held_out) / len(objective.held_out)
    if -fell < FELL or -fell / length < FELL_TOKEN:
        return []
    return [
        f"chosen answers have become less likely: {-fell:.1f} nats an answer below the start, while the accuracy on "
        f"held-out pairs went from {before:.2f} to {after:.2f}; raise dpo.beta, lower dpo.rate, or use loss: ipo"
    ]

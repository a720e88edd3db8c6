"""The second stage of a fit as a reader of the report sees it: curves, samples, what convinces the discriminator.

For objectives that are a game (`objectives/adversarial.py`) and look at their samples as training goes on
(`objectives/looks.py`). The warnings that the same figures give are in `stage_warnings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kamerton.evaluation.answering import values
from kamerton.methods.method import Finding
from kamerton.methods.stage_figures import gain, reference_shape, shape
from kamerton.objectives.looks import Look, Looks
from kamerton.tasks.example import Example

POINTS = 90
"""Points of a curve over steps; a longer one is shown as means of neighbours."""
SHOWN = 4
"""Questions whose samples are shown as text."""
LONGEST = 600
"""Characters of a text that are shown."""
EXTREMES = 3
"""Most and least convincing answers that are shown."""


def stage_findings(objective: Any, curve: Sequence[dict[str, float]]) -> list[Finding]:
    """Everything that is shown of a stage: `curve` has a row for each of its steps."""
    looks: Looks = objective.looks
    return [
        *_curves(objective, curve),
        *_diversity(looks),
        *sampled(looks),
        *_rewards(looks, looks.task.metrics[0]),
        *_convincing(looks, one_judge=objective.judges.folds == 1),
    ]


def thinned(curve: Sequence[dict[str, float]], names: Sequence[str]) -> list[tuple[float | None, ...]]:
    """(step, …) of a curve, neighbours joined by their means."""
    size = max(1, -(-len(curve) // POINTS))
    rows: list[tuple[float | None, ...]] = []
    for i in range(0, len(curve), size):
        part = curve[i : i + size]
        found = [[row[name] for row in part if name in row] for name in names]
        rows.append((part[-1]["step"], *(sum(x) / len(x) if x else None for x in found)))
    return rows


def _curves(objective: Any, curve: Sequence[dict[str, float]]) -> list[Finding]:
    title, control = objective.name.capitalize(), objective.judges.control
    out = []
    names = [n for n in ("auc", "trained_auc", "trust", "scale") if any(n in row for row in curve)]
    if names and objective.o.weight:
        shown = {"auc": "AUC, held out", "trained_auc": "AUC, trained", "trust": "trust", "scale": "scale"}
        band = "" if control.fixed else " The dashed lines are the band that the held-out AUC is kept in."
        note = (
            "AUC: the chance that the discriminator puts the reference's token above the model's; held out: on "
            "references that it never saw, trained: on those that it was trained on. Trust: share of the adversarial "
            "weight that is used; scale: what the discriminators' scores are multiplied by, for the least loss on "
            f"references that they never saw.{band}"
        )
        levels = () if control.fixed else (("band, low", control.low), ("band, high", control.high))
        rows = tuple(thinned(curve, names))
        out.append(Finding(f"{title} stage: AUC", ("step", *(shown[n] for n in names)), rows, True, note, levels))
    names = [n for n in ("reward", "kl", "entropy", "supervised") if any(n in row for row in curve)]
    if names:
        shown = {"reward": "reward", "kl": "KL", "entropy": "entropy", "supervised": "supervised"}
        note = (
            "At the positions of references: the mean score that the discriminator gives to what the model would say, "
            "the KL divergence to the supervised start, entropy and supervised loss in nats a token."
        )
        columns = ("step", *(shown[n] for n in names))
        out.append(Finding(f"{title} stage", columns, tuple(thinned(curve, names)), True, note))
    return out


def _diversity(looks: Looks) -> list[Finding]:
    if not looks.taken:
        return []
    known, shapes = reference_shape(looks), [(look.step, shape(looks, look)) for look in looks.taken]
    of = f"Of {len(looks.taken[0].texts[0])} answers to each of {len(looks.examples)} {_questions(looks)}, at T = 1."
    note = (
        f"{of} Within: answers to one question against each other; across: answers to different questions. 100: they "
        "are all the same. Dashed: across the references."
    )
    levels = () if known.across is None else (("references", known.across),)
    rows = tuple((step, s.within, s.across) for step, s in shapes)
    bleu = Finding("Self-BLEU of samples", ("step", "within", "across"), rows, True, note, levels)
    note = (
        f"{of} Distinct-n: distinct n-grams over all n-grams, across questions; dashed: of the references. Length: "
        "tokens over the references' tokens. Ended: share that ends inside the limit."
    )
    columns = ("step", "distinct-1", "distinct-2", "length", "ended")
    rows2 = tuple((step, s.distinct_1, s.distinct_2, s.length, s.ended) for step, s in shapes)
    found = (("distinct-1, ref.", known.distinct_1), ("distinct-2, ref.", known.distinct_2))
    at = tuple((name, value) for name, value in found if value is not None)
    return [bleu, Finding("Distinct n-grams and length of samples", columns, rows2, True, note, at)]


def sampled(looks: Looks) -> list[Finding]:
    """The same questions at every look; time runs downwards."""
    if not looks.taken:
        return []
    count = min(SHOWN, len(looks.examples))
    picked = [i * len(looks.examples) // count for i in range(count)]
    examples = [looks.examples[i] for i in picked]
    rows = [("question", *(_question(e) for e in examples)), ("reference", *(short(e.answers[0]) for e in examples))]
    for look in looks.taken:
        rows.append((when(look), *(short(look.texts[i][0]) for i in picked)))
    note = (
        f"One answer to each of {count} {_questions(looks)}, sampled at T = 1 with the same random numbers each time. "
        f"{_cut_note()}"
    )
    columns = ("", *(f"{n}." for n in range(1, count + 1)))
    return [Finding("Samples as training goes on", columns, tuple(rows), note=note, texts=True)]


def _rewards(looks: Looks, metric: str) -> list[Finding]:
    """The reward, by the same judges at both ends, beside what the task's metric says."""
    if not any(look.scores for look in looks.taken):
        return []
    rows = []
    for look in looks.taken:
        figure = gain(look)
        value = values({metric: np.array(look.statistics)}, looks.task.validation)[metric] if look.statistics else None
        rows.append((when(look), figure.value if figure else None, value))
    note = (
        "Reward: mean score a token of the samples less that of the start's samples, both by the discriminators of "
        "that step. The metric is that of greedy answers to the validation questions."
    )
    return [Finding("Reward and metric", ("", "reward over the start's", metric), tuple(rows), note=note)]


def _convincing(looks: Looks, *, one_judge: bool) -> list[Finding]:
    """The answers of the last look with the highest and the lowest score, and references that convince least."""
    last = looks.taken[-1] if looks.taken else None
    if last is None or not last.scores:
        return []
    said = {}  # an answer that was sampled twice is shown once
    for example, texts, scores in zip(looks.examples, last.texts, last.scores, strict=True):
        for text, score in zip(texts, scores, strict=True):
            said[example.id, text] = ("sampled answer", example, text, score)
    ordered = sorted(said.values(), key=lambda row: row[3], reverse=True)
    top = ordered[:EXTREMES]
    bottom = ordered[len(top) :][-EXTREMES:]
    known = [
        ("reference", e, e.answers[0], s) for e, s in zip(looks.examples, last.reference_scores, strict=True)
    ]  # fmt: skip
    least = sorted(known, key=lambda row: row[3])[:EXTREMES]
    rows = [
        (f"{how} {what}", _question(e), short(text), score)
        for how, part in (("most convincing", top), ("least convincing", bottom[::-1]), ("least convincing", least))
        for what, e, text, score in part
    ]
    who = "the one discriminator, which was trained on them" if one_judge else "discriminators that never saw them"
    judged = "by all discriminators, which never saw these questions" if looks.held_out else f"by {who}"
    note = (
        f"Mean score a token, {judged}, of the {_questions(looks)} at the stage's end. Higher: more like a reference. "
        f"{_cut_note()}"
    )
    columns = ("", "question", "answer", "score a token")
    return [Finding("What convinces the discriminator", columns, tuple(rows), note=note, texts=True)]


def _questions(looks: Looks) -> str:
    return "validation questions" if looks.held_out else "training questions (there are no validation examples)"


def when(look: Look) -> str:
    return "start" if look.step == 0 else f"step {look.step}"


def _question(example: Example) -> str:
    return short(example.messages[-1].content if example.messages else "")


def short(text: str) -> str:
    """A text as it is shown: of one that is too long the beginning."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _cut_note() -> str:
    return f"Texts of more than {LONGEST} characters are cut; they end in … then."

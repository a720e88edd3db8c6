"""Labels of a store ↔ preference data, in the form that `import` writes and recipes read: answers with scores.

Out: what was judged together is one question with graded answers, best first; a score is the mean over labellers.
Comparisons and rankings stay apart, because what won one pair may be worse than what lost another; ratings (and thumbs)
of an item are joined, because a number means the same everywhere. What teaches nothing is left out and counted.

In: lines that people filled in, or a file of preferences, as labels of a named labeller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kamerton.errors import KamertonError
from kamerton.feedback.items import item_of
from kamerton.feedback.lines import Judged, Line, judged_of, label_of, read_lines
from kamerton.feedback.records import Candidate, Item, Kind, Label, labeller_name, make_item
from kamerton.feedback.store import FeedbackStore
from kamerton.tasks.example import Conversation, Graded
from kamerton.tasks.preference_shape import averaged
from kamerton.tasks.readers import shown

_COMPARED = ({1.0, 0.0}, {0.5})
"""Scores of two answers that are a comparison."""


@dataclass(frozen=True)
class FromStore:
    """Preference data of a store.

    Attributes:
        judged: the questions with graded answers.
        labels: how many labels they are made of.
        skipped: labels without scores, left out.
        bad: questions left out because people called all their answers bad and none better.
    """

    judged: tuple[Judged, ...]
    labels: int
    skipped: int
    bad: int


@dataclass(frozen=True)
class IntoStore:
    """What an import into a store did: labels that were added, changed, and there already; lines without a label."""

    new: int
    changed: int
    same: int
    unlabelled: int


def from_store(store: FeedbackStore, *, kind: Kind | None = None, labellers: Sequence[str] = ()) -> FromStore:
    """The standing labels as preference data.

    Args:
        kind: only these; None: all.
        labellers: only theirs; none named: everybody's.

    Raises:
        KamertonError: a labeller has no labels, or there is no label with scores.
    """
    where, names = shown(store.path), {labeller_name(name) for name in labellers}
    every = store.labels(kind=kind)
    missing = names - {label.labeller for label in every}
    if missing:
        raise KamertonError(f"has no labels of {sorted(missing)[0]}", where=where, mend="check the name")
    chosen = [label for label in every if not names or label.labeller in names]
    given = [label for label in chosen if label.scores is not None]
    if not given:
        raise KamertonError("has no labels yet", where=where, mend="give some with: kamerton label")
    together: dict[tuple[int, Kind, tuple[int, ...]], list[Label]] = defaultdict(list)
    for label in given:
        alone = label.kind in ("rating", "thumbs")
        together[label.item, label.kind, () if alone else tuple(sorted(label.shown))].append(label)
    items = {item.id: item for item in store.items()}
    judged, bad = [], 0
    for (number, what, answers), labels in together.items():
        made = _judged(items[number], answers, labels)
        if what in ("comparison", "thumbs") and made.graded[0].score == made.graded[-1].score == 0:
            bad += 1  # the best of them would be a reference, and nobody likes it
        else:
            judged.append(made)
    return FromStore(tuple(judged), len(given), len(chosen) - len(given), bad)


def _judged(item: Item, answers: tuple[int, ...], labels: Sequence[Label]) -> Judged:
    graded = averaged(Graded(item.answers[i].text, score) for label in labels for i, score in label.by_answer.items())
    # questions about two of several answers need names of their own
    part = "" if len(answers) in (0, len(item.answers)) else "#" + "-".join(map(str, answers))
    return Judged(f"{item.name or item.key}{part}", item.prompt, graded)


def import_labels(files: Sequence[str | Path], store: FeedbackStore, labeller: str) -> IntoStore:
    """Put labels of files into a store: what `export` wrote and people filled in, or preferences.

    Everything is read before anything is stored. The same question with the same answers by the same labeller is one
    label; the newer one wins and the older one is kept as undone.

    Raises:
        KamertonError: a line is broken (nothing is stored then), or there is no label at all.
    """
    name = labeller_name(labeller)
    lines = [line for file in files for line in read_lines(Path(file))]
    found = [(line, judged_of(line) if "graded" in line.record else label_of(line)) for line in lines]
    if all(one is None for _, one in found):
        mend = 'fill in "chosen" (the number of the best answer, from 0) or "scores" in some of them'
        raise KamertonError(f"none of the {len(lines)} lines has a label", where=shown(Path(files[0])), mend=mend)
    counts = {"new": 0, "changed": 0, "same": 0}
    with store.writing():
        there = {_texts(item): item for item in store.items("label")}
        for line, one in found:
            if one is not None:
                item = _item_for(line, one, there, store)
                for label in _scores(item, one):
                    counts[_give(store, item, name, *label)] += 1
    return IntoStore(**counts, unlabelled=sum(one is None for _, one in found))


def _texts(item: Item) -> tuple[Conversation, frozenset[str]]:
    return item.prompt, frozenset(answer.text for answer in item.answers)


def _item_for(
    line: Line, judged: Judged, there: dict[tuple[Conversation, frozenset[str]], Item], store: FeedbackStore
) -> Item:
    """The item with the same prompt and answers, which is added where it is not there."""
    graded = make_item(judged.prompt, [Candidate(one.answer) for one in judged.graded], name=judged.id)
    made = graded if "graded" in line.record else item_of(line)
    found = there.get(_texts(made))
    if found is None:
        store.add([made])
        there |= {_texts(item): item for item in store.items("label", max((i.id for i in there.values()), default=0))}
        found = there[_texts(made)]
    return found


def _scores(item: Item, judged: Judged) -> list[tuple[Kind, tuple[int, ...], tuple[float, ...]]]:
    """The labels that a line is: a comparison where two answers have its scores, a rating of each answer otherwise."""
    texts = [answer.text for answer in item.answers]
    given = {texts.index(one.answer): one.score for one in judged.graded}
    if len(given) == 2 and set(given.values()) in _COMPARED:
        return [("comparison", tuple(given), tuple(given.values()))]
    return [("rating", (answer,), (score,)) for answer, score in given.items()]


def _give(
    store: FeedbackStore, item: Item, name: str, kind: Kind, answers: tuple[int, ...], scores: tuple[float, ...]
) -> str:
    """Store one label; says whether it is new, changed or the same as before."""
    before = next(
        (
            label for label in store.labels(kind=kind, item=item.id)
            if label.labeller == name and set(label.shown) == set(answers)
        ), None,
    )  # fmt: skip
    if before is not None and before.by_answer == dict(zip(answers, scores, strict=True)):
        return "same"
    store.label(item.id, name, kind, answers, scores, replace=True)
    return "new" if before is None else "changed"

"""Who is asked what, in which order: random for each labeller, sides too, and stored, so that a restart keeps it.

Every labeller is asked about every item. Items that come later are put behind those that are there, in random order
among themselves. A question whose label was undone keeps its place, so it is asked next.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from kamerton.feedback.records import Item, Kind, Label, labeller_name, questions_of
from kamerton.feedback.store import FeedbackStore


@dataclass(frozen=True, slots=True)
class Assignment:
    """One question to a labeller.

    Attributes:
        id: its number.
        shown: numbers of the item's answers, in the order in which this labeller sees them.
    """

    id: int
    item: Item
    labeller: str
    kind: Kind
    shown: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a labeller is: questions with a label, skipped ones, and all of them."""

    done: int
    skipped: int
    total: int


def assign(store: FeedbackStore, labeller: str, kind: Kind, *, seed: int | None = None) -> int:
    """Give a labeller what they have not been given yet; returns how many questions that is.

    Args:
        seed: of the order; None: another one each time.
    """
    name = labeller_name(labeller)
    query = "SELECT coalesce(max(item), 0), coalesce(max(place), 0) FROM assignments WHERE labeller = ? AND kind = ?"
    if store.db.execute(query, (name, kind)).fetchone()[0] >= store.newest_item("label"):
        return 0
    rng = random.Random(f"{seed}|{name}|{kind}") if seed is not None else random.SystemRandom()
    with store.writing() as db:
        newest, place = db.execute(query, (name, kind)).fetchone()
        asked = [(item.id, answers) for item in store.items("label", newest) for answers in questions_of(item, kind)]
        rng.shuffle(asked)
        for number, (item, answers) in enumerate(asked, start=place + 1):
            shown = rng.sample(answers, len(answers))
            db.execute(
                "INSERT INTO assignments (labeller, kind, place, item, shown, answers) VALUES (?, ?, ?, ?, ?, ?)",
                (name, kind, number, item, json.dumps(shown), ",".join(map(str, answers))),
            )
    return len(asked)


def next_assignment(store: FeedbackStore, labeller: str, kind: Kind) -> Assignment | None:
    """The first question without a label; None where there is none."""
    row = store.db.execute(
        "SELECT id FROM assignments AS a WHERE labeller = ? AND kind = ? AND NOT EXISTS (SELECT 1 FROM labels AS l "
        "WHERE l.labeller = a.labeller AND l.kind = a.kind AND l.item = a.item AND l.answers = a.answers "
        "AND l.undone IS NULL) ORDER BY place LIMIT 1",
        (labeller_name(labeller), kind),
    ).fetchone()
    return assignment(store, row[0]) if row else None


def assignment(store: FeedbackStore, number: int) -> Assignment | None:
    """A question by its number."""
    row = store.db.execute("SELECT labeller, kind, item, shown FROM assignments WHERE id = ?", (number,)).fetchone()
    if row is None:
        return None
    labeller, kind, item, shown = row
    found = store.item(item)
    assert found is not None  # the file's own rule: an assignment refers to an item
    return Assignment(number, found, labeller, kind, tuple(json.loads(shown)))


def answer(
    store: FeedbackStore, asked: Assignment, scores: tuple[float, ...] | None, *,
    seconds: float | None = None, token: str | None = None,
) -> Label:  # fmt: skip
    """Store what a labeller said to a question; `scores` as they stood on the page. As `FeedbackStore.label`."""
    return store.label(
        asked.item.id, asked.labeller, asked.kind, asked.shown, scores, seconds=seconds, token=token
    )  # fmt: skip


def progress(store: FeedbackStore, labeller: str, kind: Kind) -> Progress:
    """How far a labeller is."""
    name = labeller_name(labeller)
    where = (name, kind)
    (total,) = store.db.execute("SELECT count(*) FROM assignments WHERE labeller = ? AND kind = ?", where).fetchone()
    done, all_ = store.db.execute(
        "SELECT count(scores), count(*) FROM labels JOIN assignments USING (labeller, kind, item, answers) "
        "WHERE labeller = ? AND kind = ? AND undone IS NULL",
        where,
    ).fetchone()
    return Progress(done, all_ - done, total)

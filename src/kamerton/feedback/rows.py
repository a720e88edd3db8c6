"""The tables of a feedback store, and what stands in their rows as records. Transactions are `store.py`'s."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from kamerton.errors import KamertonError
from kamerton.feedback.records import Candidate, Item, Kind, Label, check_scores, labeller_name, prompt_from

SCHEMA = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, source TEXT NOT NULL,
    prompt TEXT NOT NULL, answers TEXT NOT NULL, added REAL NOT NULL
);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES items, labeller TEXT NOT NULL,
    kind TEXT NOT NULL, shown TEXT NOT NULL, answers TEXT NOT NULL, scores TEXT, given REAL NOT NULL, seconds REAL,
    undone REAL, token TEXT, UNIQUE (labeller, token)
);
-- a labeller has one standing label on a question
CREATE UNIQUE INDEX standing ON labels (labeller, kind, item, answers) WHERE undone IS NULL;
CREATE TABLE assignments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, labeller TEXT NOT NULL, kind TEXT NOT NULL, place INTEGER NOT NULL,
    item INTEGER NOT NULL REFERENCES items, shown TEXT NOT NULL, answers TEXT NOT NULL,
    UNIQUE (labeller, kind, item, answers)
);
CREATE UNIQUE INDEX places ON assignments (labeller, kind, place);
"""


LABEL = "id, item, labeller, kind, shown, scores, given, seconds, undone"


class StoreError(KamertonError):
    """A store that cannot be read or written: it is damaged, on a full disk, or another process holds it."""


class Outdated(KamertonError):
    """What somebody goes by is not what is stored any more: the question has a label, or a label is not the last."""


def answers_text(shown: Iterable[int]) -> str:
    """The judged answers whatever their order, as text."""
    return ",".join(map(str, sorted(shown)))


def item_row(db: sqlite3.Connection, number: int) -> Any:
    query = "SELECT id, key, name, source, prompt, answers FROM items WHERE id = ?"
    return db.execute(query, (number,)).fetchone()


def item_from(row: Any) -> Item:
    """A row of `items` as a record.

    Raises:
        StoreError: it is not what was written there.
    """
    number, key, name, source, prompt, answers = row
    with _whole(f"item {number}"):
        found = tuple(Candidate(**answer) for answer in json.loads(answers))
        turns = prompt_from(json.loads(prompt))
        texts = (key, name, source, *(turn.content for turn in turns), *(one.text for one in found))
        if not found or not all(isinstance(text, str) for text in texts):
            raise TypeError
        return Item(key, name, turns, found, source, number)


def add_item(db: sqlite3.Connection, item: Item) -> tuple[int, bool]:
    """The number of an item, and whether it is new."""
    row = db.execute("SELECT id FROM items WHERE key = ?", (item.key,)).fetchone()
    if row is not None:
        return int(row[0]), False
    prompt, answers = (_written([asdict(part) for part in parts]) for parts in (item.prompt, item.answers))
    values = (item.key, item.name, item.source, prompt, answers, time.time())
    made = db.execute("INSERT INTO items (key, name, source, prompt, answers, added) VALUES (?, ?, ?, ?, ?, ?)", values)
    return int(made.lastrowid or 0), True


def _written(value: object) -> str:
    """As JSON that people can read; escaped where a setting holds half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() or text.encode(errors="ignore").decode() == text else json.dumps(value)


def label_from(row: Any) -> Label:
    """A row of `labels` as a record.

    Raises:
        StoreError: it is not what was written there.
    """
    number, item, labeller, kind, shown, scores, given, seconds, undone = row
    with _whole(f"label {number}"):
        found = None if scores is None else tuple(map(float, json.loads(scores)))
        places = tuple(map(int, json.loads(shown)))
        float(given), float(seconds or 0), float(undone or 0)
        if not places or (found is not None and len(found) != len(places)) or not isinstance(labeller, str):
            raise TypeError
        return Label(number, item, labeller, kind, places, found, given, seconds, undone)


@contextmanager
def _whole(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StoreError(
            f"the store cannot be used: {what} is damaged", mend="take a copy of it that is whole"
        ) from None


def last_label(db: sqlite3.Connection, name: str, kind: Kind) -> Label | None:
    fields = ", ".join(f"labels.{field.strip()}" for field in LABEL.split(","))
    row = db.execute(
        f"SELECT {fields} FROM labels JOIN assignments USING (labeller, kind, item, answers) "
        "WHERE labeller = ? AND kind = ? AND undone IS NULL ORDER BY labels.id DESC LIMIT 1",
        (name, kind),
    ).fetchone()
    return label_from(row) if row else None


def undo_label(db: sqlite3.Connection, label: Label) -> Label:
    db.execute("UPDATE labels SET undone = ? WHERE id = ?", (time.time(), label.id))
    return label_from(db.execute(f"SELECT {LABEL} FROM labels WHERE id = ?", (label.id,)).fetchone())


def add_label(
    db: sqlite3.Connection, item: int, labeller: str, kind: Kind, shown: Sequence[int],
    scores: Sequence[float] | None, seconds: float | None, token: str | None, replace: bool,
) -> Label:  # fmt: skip
    name = labeller_name(labeller)
    if token is not None:
        row = db.execute(f"SELECT {LABEL} FROM labels WHERE labeller = ? AND token = ?", (name, token)).fetchone()
        if row is not None:
            return label_from(row)
    found = item_row(db, item)
    if found is None:
        raise KamertonError(f"there is no item {item}", mend="load the page again")
    check_scores(kind, shown, scores, len(json.loads(found[-1])))
    where = (name, kind, item, answers_text(shown))
    standing = "labeller = ? AND kind = ? AND item = ? AND answers = ? AND undone IS NULL"
    if replace:
        db.execute(f"UPDATE labels SET undone = ? WHERE {standing}", (time.time(), *where))
    elif db.execute(f"SELECT 1 FROM labels WHERE {standing}", where).fetchone():
        raise Outdated(f"{name} has labelled this already", mend="load the page again")
    written = None if scores is None else json.dumps([float(score) for score in scores])
    made = db.execute(
        "INSERT INTO labels (item, labeller, kind, shown, answers, scores, given, seconds, token) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (item, name, kind, json.dumps(list(shown)), answers_text(shown), written, time.time(), seconds, token),
    )
    return label_from(db.execute(f"SELECT {LABEL} FROM labels WHERE id = ?", (made.lastrowid,)).fetchone())

"""People's feedback in one SQLite file: items with answers, and labels.

Labels are never deleted: undoing one writes down when it was taken back. A label counts as given only after its commit,
and a commit is on the disk (write-ahead log, `synchronous=FULL`), so what a page acknowledged is there after a crash.
Threads have a connection each; several processes may use the file at once, and wait for each other.

What is left out: accounts. A labeller is a name, and whoever can open the file can label under any.
"""

from __future__ import annotations

import functools
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from kamerton.errors import KamertonError, ResourceError
from kamerton.feedback.records import Candidate, Item, Kind, Label, Source, labeller_name, make_item
from kamerton.feedback.rows import (
    LABEL,
    SCHEMA,
    Outdated,
    StoreError,
    add_item,
    add_label,
    answers_text,
    item_from,
    item_row,
    label_from,
    last_label,
    undo_label,
)
from kamerton.tasks.example import Conversation
from kamerton.tasks.readers import shown as shown_path

__all__ = ["FeedbackStore", "Outdated", "StoreError", "is_store"]

VERSION = 1
APPLICATION = 0x4B414D45
"""Written into the file's head, so that another program's database is told from ours."""
WAIT = 20.0
"""Seconds to wait for another process that writes."""


_REFUSED = re.compile("disk is full|disk I/O error|readonly database|unable to open database")
"""What SQLite says of a disk that takes nothing more; who asked again later may be luckier."""
P = ParamSpec("P")
R = TypeVar("R")


def _told(method: Callable[Concatenate[FeedbackStore, P], R]) -> Callable[Concatenate[FeedbackStore, P], R]:
    """What SQLite cannot do is a `StoreError` that names the file."""

    @functools.wraps(method)
    def call(self: FeedbackStore, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            message, mend = f"the store cannot be used: {error}", "try again, or take a copy of it that is whole"
            raise StoreError(message, where=shown_path(self.path), mend=mend) from error

    return call


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly, so that those of threads that ended are not kept."""


class FeedbackStore:
    """A file of feedback; made where it is not there.

    Args:
        path: the file.
        create: make it; otherwise a missing file is an error.

    Raises:
        KamertonError: it cannot be opened, is another program's, or of a newer version.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        if not create and not self.path.is_file():
            raise KamertonError("is not there", where=shown_path(self.path), mend="check the path")
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where SQLite's words quote the file
            self.close()
            mend = "name a store of kamerton, or a new file"
            raise KamertonError(f"cannot be used: {error}", where=shown_path(self.path), mend=mend) from None

    def _prepare(self) -> None:
        # looked at before anything is changed, the journal's mode included: it may be another program's
        with self.writing() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            where, mend = shown_path(self.path), "name a store of kamerton, or a new file"
            if application != APPLICATION and (tables or version or application):
                raise KamertonError("is a database of another program", where=where, mend=mend)
            if version > VERSION:
                raise KamertonError(
                    f"is of version {version}, newer than {VERSION}", where=where, mend="update kamerton"
                )
            if not tables:
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {VERSION}")
        self.db.execute("PRAGMA journal_mode = WAL")

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: _Connection | None = getattr(self._local, "db", None)
        if found is None:
            # close() runs in another thread than those that serve
            found = sqlite3.connect(
                self.path, timeout=WAIT, isolation_level=None, factory=_Connection, check_same_thread=False
            )
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA foreign_keys = ON")
            self._local.db = found
            self._open.add(found)
        return found

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that other writers wait for; committed at its end, or rolled back on an error.

        Inside another one it is a part of that.
        """
        db = self.db
        if db.in_transaction:
            yield db
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and _REFUSED.search(str(error)):
                raise ResourceError(
                    f"cannot be written: {error}", where=shown_path(self.path), mend="make room, or name another file"
                ) from None
            raise

    def close(self) -> None:
        """Close the connections of all threads; call it when none of them works any more."""
        for db in list(self._open):
            db.close()
        self._local = threading.local()

    # items

    @_told
    def add(self, items: Iterable[Item]) -> int:
        """Store items; those that are there already stay as they are. Returns how many are new."""
        with self.writing() as db:
            return sum(add_item(db, item)[1] for item in items)

    @_told
    def items(self, source: Source | None = None, after: int = 0) -> list[Item]:
        """All items (of a source), in the order in which they were added, with numbers above `after`."""
        rows = self.db.execute(
            "SELECT id, key, name, source, prompt, answers FROM items "
            "WHERE id > ? AND (? IS NULL OR source = ?) ORDER BY id",
            (after, source, source),
        )
        return [item_from(row) for row in rows]

    @_told
    def item(self, number: int) -> Item | None:
        """One item by its number."""
        query = "SELECT id, key, name, source, prompt, answers FROM items WHERE id = ?"
        row = self.db.execute(query, (number,)).fetchone()
        return item_from(row) if row else None

    @_told
    def keys(self) -> set[str]:
        """The keys of all items."""
        return {key for (key,) in self.db.execute("SELECT key FROM items")}

    @_told
    def newest_item(self, source: Source) -> int:
        """The highest number of an item of a source; 0 where there is none."""
        return int(self.db.execute("SELECT coalesce(max(id), 0) FROM items WHERE source = ?", (source,)).fetchone()[0])

    # labels

    @_told
    def label(
        self, item: int, labeller: str, kind: Kind, shown: Sequence[int], scores: Sequence[float] | None, *,
        seconds: float | None = None, token: str | None = None, replace: bool = False,
    ) -> Label:  # fmt: skip
        """Store a label; when this returns, it is on the disk.

        Args:
            item: the item's number.
            labeller: their name.
            shown: numbers of the judged answers, in the order shown.
            scores: see `records.py`; None: skipped.
            seconds: how long it took.
            token: a word of the caller's; the same one again gives the label that is there, and stores nothing.
            replace: undo the labeller's standing label on the same question.

        Raises:
            Outdated: there is a standing label, and `replace` is not given.
            KamertonError: no such item, or scores that the kind does not have.
        """
        with self.writing() as db:
            return add_label(db, item, labeller, kind, shown, scores, seconds, token, replace)

    @_told
    def judge(
        self, prompt: Conversation, answers: Sequence[Candidate], labeller: str, kind: Kind,
        scores: Sequence[float] | None, *, token: str | None = None,
    ) -> Label:  # fmt: skip
        """Store answers of a chat and what somebody said of them, in one step: a thumb, or which one is better.

        The same judgement again replaces the one before; None takes it back.

        Args:
            prompt: the conversation up to the answers.
            answers: one for thumbs, two for a comparison, in the order shown.

        Returns:
            The label; with scores of None the one that was taken back.

        Raises:
            KamertonError: scores that the kind does not have, or nothing to take back.
        """
        with self.writing() as db:
            number, _ = add_item(db, make_item(prompt, answers, source="chat"))
            stored = [(a.text, a.model) for a in item_from(item_row(db, number)).answers]
            # the item may be there with its answers the other way round
            shown = [stored.index((answer.text, answer.model)) for answer in answers]
            if scores is not None:
                return add_label(db, number, labeller, kind, shown, scores, None, token, True)
            where = (labeller_name(labeller), kind, number, answers_text(shown))
            row = db.execute(
                f"SELECT {LABEL} FROM labels WHERE labeller = ? AND kind = ? AND item = ? AND answers = ? "
                "AND undone IS NULL", where
            ).fetchone()  # fmt: skip
            if row is None:
                raise KamertonError("there is no judgement to take back", mend="give one first")
            return undo_label(db, label_from(row))

    @_told
    def undo(self, labeller: str, number: int) -> Label:
        """Take back a labeller's last standing label, which must be this one; done again it changes nothing.

        Raises:
            Outdated: it is not their last one.
            KamertonError: it is not theirs.
        """
        name = labeller_name(labeller)
        with self.writing() as db:
            row = db.execute(f"SELECT {LABEL} FROM labels WHERE id = ? AND labeller = ?", (number, name)).fetchone()
            if row is None:
                raise KamertonError(f"{name} has no label {number}", mend="load the page again")
            label = label_from(row)
            if label.undone is not None:
                return label
            last = last_label(db, name, label.kind)
            if last is None or last.id != number:
                raise Outdated(f"label {number} is not the last one of {name}", mend="load the page again")
            return undo_label(db, label)

    @_told
    def last(self, labeller: str, kind: Kind) -> Label | None:
        """A labeller's last standing label of a kind; what was imported or judged in a chat does not count."""
        return last_label(self.db, labeller_name(labeller), kind)

    @_told
    def undo_skipped(self, labeller: str, kind: Kind) -> int:
        """Take back all that a labeller skipped, so that it is asked again. Returns how many."""
        with self.writing() as db:
            return db.execute(
                "UPDATE labels SET undone = ? WHERE labeller = ? AND kind = ? AND scores IS NULL AND undone IS NULL",
                (time.time(), labeller_name(labeller), kind),
            ).rowcount

    @_told
    def labels(
        self, *, kind: Kind | None = None, source: Source | None = None, item: int | None = None, undone: bool = False
    ) -> list[Label]:
        """Labels in the order given, skipped ones too.

        Args:
            kind, source, item: only those.
            undone: those that were taken back too.
        """
        fields = ", ".join(f"labels.{name.strip()}" for name in LABEL.split(","))
        rows = self.db.execute(
            f"SELECT {fields} FROM labels JOIN items ON items.id = labels.item "
            "WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR source = ?2) AND (?3 IS NULL OR item = ?3) "
            "AND (?4 OR undone IS NULL) ORDER BY labels.id",
            (kind, source, item, undone),
        )
        return [label_from(row) for row in rows]

    @_told
    def state(self) -> tuple[int, int, int]:
        """Three numbers that change whenever what is stored changes: for whoever keeps something computed from it."""
        query = (
            "SELECT (SELECT coalesce(max(id), 0) FROM labels), (SELECT count(undone) FROM labels), "
            "(SELECT coalesce(max(id), 0) FROM items)"
        )
        labels, undone, items = self.db.execute(query).fetchone()
        return labels, undone, items


def is_store(path: str | Path) -> bool:
    """Whether a file is an SQLite database."""
    try:
        with Path(path).open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False

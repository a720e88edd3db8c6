"""Keeping an index up with its files: add, update, and what went wrong on the way.

A file that was named and cannot be read ends the command with its one line. A file that was found in a folder, or that
the index knows, is told of and passed over: the others go on, and the count is in the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kamerton.files import expanded
from kamerton.retrieval.documents import Document, DocumentError, find, read
from kamerton.retrieval.index import Changes, PassageIndex

Watch = Callable[[str, float, str], None]
"""Called with a stage's name, its share done (0 … 1) and a few words."""


@dataclass
class Outcome:
    """What a command did.

    Attributes:
        changes: what was done to documents.
        failed: one line for each file that was passed over.
        gone: sources whose files are no longer there.
        pruned: how many of these were removed.
        note: files of other kinds that were left out.
    """

    changes: Changes = field(default_factory=Changes)
    failed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    pruned: int = 0
    note: str = ""

    def __str__(self) -> str:
        c = self.changes
        parts = [f"{c.added} added", f"{c.updated} updated", f"{c.unchanged} unchanged"]
        parts += [f"{self.pruned} removed"] if self.pruned else []
        parts += [f"{len(self.failed)} passed over"] if self.failed else []
        return f"documents: {', '.join(parts)}; {c.passages} passages embedded"


def add(index: PassageIndex, paths: Iterable[str | Path], *, watch: Watch | None = None) -> Outcome:
    """Put files and folders into an index; those that are there with the same content are left as they are.

    Raises:
        DocumentError: a path does not exist, a file that was named cannot be read, or there is nothing to read.
    """
    found = find(paths)
    if not found.files:
        where = ", ".join(map(str, paths))
        raise DocumentError("no documents here", where=where or index.folder, mend=found.note() or "name files")
    outcome = Outcome(note=found.note())
    outcome.changes = _put(index, found.files, found.named, outcome.failed, watch)
    return outcome


def put(index: PassageIndex, documents: Sequence[Document], *, watch: Watch | None = None) -> Outcome:
    """Put documents that are read already into an index."""
    share = _Share(len(documents), watch)
    return Outcome(index.put(share.over(documents), watch=share.tell))


def update(
    index: PassageIndex, paths: Iterable[str | Path] = (), *, prune: bool = False, watch: Watch | None = None
) -> Outcome:
    """Read again what changed: the files that the index knows, or those of them under `paths` with new ones there.

    Args:
        prune: remove documents whose files are gone; without, they are only told of.

    Raises:
        DocumentError: a path does not exist, or a file that was named cannot be read.
    """
    given = [expanded(p) for p in paths]
    known = [Path(e.source) for e in index.entries() if Path(e.source).is_absolute()]
    if given:
        # a path may be gone: then the index must know it, or something under it
        readable = [p for p in given if p.exists() or not any(k.is_relative_to(p.absolute()) for k in known)]
        found = find(readable)
        known = [k for k in known if any(k.is_relative_to(p.resolve()) for p in given)]
        files, named, note = list(dict.fromkeys([*found.files, *known])), found.named, found.note()
    else:
        files, named, note = known, set(), ""
    outcome = Outcome(note=note)
    outcome.gone = [file.as_posix() for file in files if not file.exists()]
    there = [file for file in files if file.exists()]
    outcome.changes = _put(index, there, named, outcome.failed, watch)
    if prune and outcome.gone:
        index.remove(outcome.gone)
        outcome.pruned = len(outcome.gone)
    return outcome


def _put(
    index: PassageIndex, files: Sequence[Path], named: set[Path], failed: list[str], watch: Watch | None
) -> Changes:
    def documents() -> Iterator[Document]:
        for file in share.over(files):
            try:
                yield read(file)
            except DocumentError as error:
                if file in named:
                    raise
                failed.append(str(error))

    share = _Share(len(files), watch)
    return index.put(documents(), watch=share.tell)


class _Share:
    """The share of documents that are done, from what is read and how much of that is embedded."""

    def __init__(self, total: int, watch: Watch | None) -> None:
        self._total, self._watch = total, watch
        self._read = self._done = 0

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._read += 1
            yield item

    def tell(self, text: str, share: float) -> None:
        done = self._done + (self._read - self._done) * share
        if share >= 1:
            self._done = self._read
        if self._watch is not None:
            self._watch("embedding", done / max(self._total, 1), f"{self._read} of {self._total} documents, {text}")

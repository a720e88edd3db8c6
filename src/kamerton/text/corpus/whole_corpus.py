"""Steps that must see the whole corpus before they judge a document: duplicates, repeated lines, shares of domains.

Such a step cuts the work into stages. At the end of the stage before it, its `sketch` notes a few bytes of every
document; then `decide` looks at all notes at once; its `judging` step begins the next stage. Documents of a piece of
work are numbered from 0 in the order in which they are kept, and pieces follow each other in the order of the input,
so "the first" is the first of the input whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from kamerton.files import whole
from kamerton.text.corpus.executor import Pool, Report
from kamerton.text.corpus.files import line, lines
from kamerton.text.corpus.step import Step

Place = tuple[int, int]
"""A document: piece of work, number in it."""


class WholeStep:
    """A step that sees the whole corpus.

    Args:
        label: names it in files and tables.
        options: the recipe's.
    """

    def __init__(self, label: str, options: Any) -> None:
        self.label, self.options = label, options

    def sketch(self, folder: Path) -> PipelineStep:
        """What notes documents while they are kept; its notes go to `folder`."""
        raise NotImplementedError

    def decide(self, folder: Path, tasks: int, pool: Pool, report: Report) -> None:
        """Read all notes, and write the decisions, to `folder`."""
        raise NotImplementedError

    def judging(self, stage: Path, folder: Path) -> PipelineStep:
        """The step that carries the decisions out, with its tally in `stage`."""
        raise NotImplementedError


class Numbers(PipelineStep):
    """Notes some numbers of each document, by a function, as one array for each piece of work."""

    type, name = "corpus", "notes"

    def __init__(self, folder: str, note: Callable[[Document], Any], dtype: Any) -> None:
        super().__init__()
        self.folder, self.note, self.dtype = folder, note, dtype

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        rows, names = [], []
        for doc in data or ():
            rows.append(self.note(doc))
            names.append(doc.id)
            yield doc
        save(Path(self.folder) / f"{rank:05d}.npy", np.array(rows, dtype=self.dtype))
        save_names(Path(self.folder), rank, names)


def save(path: Path, array: np.ndarray) -> None:
    """An array as a file, whole or not at all."""
    with whole(path, lasting=False) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def save_names(folder: Path, rank: int, names: list[str]) -> None:
    """The documents' ids of a piece of work."""
    with whole(folder / f"{rank:05d}.ids.jsonl", lasting=False) as file:
        for name in names:
            file.write(line(name))


def drop(folder: Path, tasks: int, copies: dict[Place, Place], reason: str) -> None:
    """Write which documents are copies of which, for `Copies`."""
    wanted: dict[int, set[int]] = {}
    for rank, number in copies.values():
        wanted.setdefault(rank, set()).add(number)
    names: dict[Place, str] = {}
    for rank, numbers in wanted.items():
        for number, name in enumerate(lines(folder / f"{rank:05d}.ids.jsonl")):
            if number in numbers:
                names[rank, number] = name
    by_rank: dict[int, list[tuple[int, str]]] = {}
    for (rank, number), first in sorted(copies.items()):
        by_rank.setdefault(rank, []).append((number, names[first]))
    for rank in range(tasks):
        with whole(folder / f"{rank:05d}.drop.jsonl", lasting=False) as file:
            for number, first_name in by_rank.get(rank, ()):
                file.write(line([number, reason, first_name]))


class Copies(Step):
    """Rejects what `drop` wrote; says of which document each is a copy."""

    def __init__(self, stage: str, label: str, folder: str) -> None:
        super().__init__(stage, label)
        self.notes = folder

    def begin(self, rank: int) -> None:
        self.at = -1
        self.drops = {
            number: (reason, first) for number, reason, first in lines(Path(self.notes) / f"{rank:05d}.drop.jsonl")
        }

    def judge(self, doc: Document) -> str | None:
        self.at += 1
        if self.at not in self.drops:
            return None
        reason, doc.metadata["copy_of"] = self.drops[self.at]
        return reason

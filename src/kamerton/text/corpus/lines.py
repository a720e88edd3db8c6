"""Lines or paragraphs that stand in many documents: menus, notices, advertising (as CCNet does it with paragraphs,
Wenzek et al. 2020). They are cut from all documents but the first, or from all.

A line is compared without case, digits and punctuation, as CCNet does. 64 bits of every line are sorted: 16 bytes a
line in memory while it is decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from kamerton.text.corpus.executor import Pool, Report
from kamerton.text.corpus.options import RepeatedLines
from kamerton.text.corpus.step import Step, domain_of
from kamerton.text.corpus.whole_corpus import WholeStep, save

_FOLDED = re.compile(r"[\W\d_]+")


def cut(text: str, unit: str) -> list[str]:
    """The lines or paragraphs of a text; joined by `joint(unit)` they are the text."""
    return text.split(joint(unit))


def joint(unit: str) -> str:
    """What stands between two."""
    return "\n" if unit == "line" else "\n\n"


def digests(parts: Iterable[str], characters: int) -> np.ndarray:
    """64 bits of each part, 0 for those that are not compared (too short, or without letters)."""
    import xxhash

    folded = (_FOLDED.sub("", part.casefold()) for part in parts)
    return np.fromiter(
        (xxhash.xxh3_64_intdigest(f.encode()) | 1 if len(f) >= characters else 0 for f in folded), np.uint64
    )


class Lines(WholeStep):
    """Repeated lines or paragraphs."""

    options: RepeatedLines

    def sketch(self, folder: Path) -> PipelineStep:
        return LineNotes(str(folder), self.options)

    def decide(self, folder: Path, tasks: int, pool: Pool, report: Report) -> None:  # noqa: ARG002
        # every piece's lines are there once for each document that has them
        parts = [np.load(folder / f"{rank:05d}.npy", allow_pickle=False) for rank in range(tasks)]
        found, counts = np.unique(np.concatenate(parts), return_counts=True)
        frequent = found[counts >= self.options.documents]
        # in which piece each of them comes first: only that piece may leave it once
        home = np.full(len(frequent), -1, np.int64)
        for rank, part in reversed(list(enumerate(parts))):
            home[np.isin(frequent, part)] = rank
        save(folder / "frequent.npy", frequent)
        save(folder / "home.npy", home)

    def judging(self, stage: Path, folder: Path) -> PipelineStep:
        return CutLines(str(stage), self.label, str(folder), self.options)


class LineNotes(PipelineStep):
    """Notes the lines of every document, each once."""

    type, name = "corpus", "line notes"

    def __init__(self, folder: str, options: RepeatedLines) -> None:
        super().__init__()
        self.folder, self.options = folder, options

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        rows = [np.empty(0, np.uint64)]
        for doc in data or ():
            found = np.unique(digests(cut(doc.text, self.options.unit), self.options.characters))
            rows.append(found[found != 0])
            yield doc
        save(Path(self.folder) / f"{rank:05d}.npy", np.concatenate(rows))


class CutLines(Step):
    """Cuts the lines that were found too often, and counts them."""

    def __init__(self, stage: str, label: str, folder: str, options: RepeatedLines) -> None:
        super().__init__(stage, label)
        self.notes, self.options = folder, options

    def begin(self, rank: int) -> None:
        self.frequent = np.load(Path(self.notes) / "frequent.npy", allow_pickle=False)
        home = np.load(Path(self.notes) / "home.npy", allow_pickle=False)
        self.left = set(self.frequent[home == rank].tolist()) if self.options.keep == "first" else set()

    def judge(self, doc: Document) -> str | None:
        unit = self.options.unit
        parts = cut(doc.text, unit)
        marks = digests(parts, self.options.characters)
        hits = np.isin(marks, self.frequent) & (marks != 0)
        if not hits.any():
            return None
        here = {mark for mark in marks[hits].tolist() if mark in self.left}  # this document is the first that has them
        self.left -= here
        kept = [part for part, mark, hit in zip(parts, marks.tolist(), hits, strict=True) if not hit or mark in here]
        if len(kept) < len(parts):
            self.tally.note(domain_of(doc), f"{unit}s cut", len(parts) - len(kept))
            doc.text = joint(unit).join(kept).strip("\n")
        return None if doc.text.strip() else f"only repeated {unit}s"

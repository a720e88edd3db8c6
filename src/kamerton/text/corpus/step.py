"""What every step shares: documents go through one by one, and everything that happens to them is counted.

A step's `judge` returns None for a document that stays (its text may have changed) or the reason why it does not. A
rejected document is written aside with that reason. Sizes are bytes of UTF-8. For every step, domain by domain,
documents in = documents out + rejected, and bytes in = bytes out + bytes rejected + bytes cut; the step behind it
gets what this one lets out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from kamerton.files import whole, write_json
from kamerton.text.corpus.files import line, lines
from kamerton.text.corpus.progress import advance

# its own messages go to the terminal, over the progress bar; what they say is in the tallies
logger.disable("datatrove")

SIZE = "kamerton_bytes"
"""The key of a document's size in its metadata, kept up by the steps so that it is not counted again."""
COPIES = "copies"
"""The key of how often a document is in the finished corpus, where a mix repeats it."""
MOST_ASIDE = 100_000
"""A rejected document is kept up to so many characters; one that is cut there says so."""


class Tally:
    """What a step did, by domain."""

    def __init__(self) -> None:
        self.domains: dict[str, dict[str, Any]] = {}

    def of(self, domain: str) -> dict[str, Any]:
        """The counts of a domain."""
        if domain not in self.domains:
            self.domains[domain] = {
                "in": [0, 0],
                "out": [0, 0],
                "added": [0, 0],
                "rejected": {},
                "changed": 0,
                "notes": {},
            }
        return self.domains[domain]

    def came(self, domain: str, size: int) -> None:
        """A document came in."""
        self._add(self.of(domain)["in"], size)

    def stays(self, domain: str, size: int, changed: bool, copies: int = 1) -> None:
        """A document stays, with its size now, perhaps several times."""
        entry = self.of(domain)
        for copy in range(copies):
            self._add(entry["out"], size)
            if copy:
                self._add(entry["added"], size)
        entry["changed"] += changed

    def reject(self, domain: str, size: int, reason: str) -> None:
        """A document is rejected, with its size as it came."""
        self._add(self.of(domain)["rejected"].setdefault(reason, [0, 0]), size)

    def note(self, domain: str, what: str, count: int = 1) -> None:
        """Something that happened to a document that stays."""
        notes = self.of(domain)["notes"]
        notes[what] = notes.get(what, 0) + count

    @staticmethod
    def _add(pair: list[int], size: int) -> None:
        pair[0] += 1
        pair[1] += size


class Aside:
    """The file of documents that one step rejects in one piece of work."""

    def __init__(self, folder: Path, label: str, rank: int) -> None:
        self._whole = whole(folder / "rejected" / label / f"{rank:05d}.jsonl", lasting=False)
        self._label = label

    def __enter__(self) -> Aside:
        self._file = self._whole.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._whole.__exit__(*raised)

    def write(self, doc: Document, reason: str, size: int, text: str | None = None) -> None:
        """Keep a document; `text` as it came into the step."""
        text = doc.text if text is None else text
        about = {key: value for key, value in doc.metadata.items() if key != SIZE}
        record = {"id": doc.id, "step": self._label, "reason": reason, "bytes": size, **about, "text": text}
        if len(text) > MOST_ASIDE:
            record |= {"text": text[:MOST_ASIDE], "cut": True}
        self._file.write(line(record))


def domain_of(doc: Document) -> str:
    """The domain of a document."""
    return str(doc.metadata.get("domain", ""))


class Step(PipelineStep):
    """A step over single documents.

    Args:
        folder: of the stage; the tally and the rejected documents go there.
        label: names the step in files and tables.
    """

    type = "corpus"

    def __init__(self, folder: str, label: str) -> None:
        super().__init__()
        self.folder, self.label, self.name = folder, label, label

    def begin(self, rank: int) -> None:
        """Before a piece of work."""

    def judge(self, doc: Document) -> str | None:
        """Keep a document (None), perhaps with another text, or give the reason why it is rejected."""
        raise NotImplementedError

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        self.tally = Tally()
        self.begin(rank)
        with Aside(Path(self.folder), self.label, rank) as aside:
            for doc in data or ():
                before, size, domain = doc.text, doc.metadata[SIZE], domain_of(doc)
                self.tally.came(domain, size)
                reason = self.judge(doc)
                if reason is None and not doc.text.strip():
                    reason = "nothing is left"
                if reason is not None:
                    self.tally.reject(domain, size, reason)
                    aside.write(doc, reason, size, before)
                    continue
                if doc.text is not before:
                    doc.metadata[SIZE] = len(doc.text.encode())
                changed = doc.text is not before and doc.text != before
                self.tally.stays(domain, doc.metadata[SIZE], changed, doc.metadata.get(COPIES, 1))
                yield doc
        write_json(Path(self.folder) / "tally" / self.label / f"{rank:05d}.json", self.tally.domains, lasting=False)


class Keep(PipelineStep):
    """Writes the documents of a piece of work, whole or not at all, and lets them through."""

    type, name = "corpus", "keep"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        with whole(Path(self.folder) / "documents" / f"{rank:05d}.jsonl", lasting=False) as file:
            for doc in data or ():
                file.write(line({"id": doc.id, "text": doc.text, "metadata": doc.metadata}))
                yield doc


class Take(PipelineStep):
    """Reads what a stage kept."""

    type, name = "corpus", "take"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        for row in lines(Path(self.folder) / "documents" / f"{rank:05d}.jsonl"):
            yield Document(text=row["text"], id=row["id"], metadata=row["metadata"])
            advance(1)

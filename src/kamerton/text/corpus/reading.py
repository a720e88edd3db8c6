"""The first step: files → documents. Whatever a file holds, the run goes on; what is not taken is counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from kamerton.files import write_json
from kamerton.text.corpus.files import Input
from kamerton.text.corpus.kinds import READERS, Found
from kamerton.text.corpus.opening import BROKEN, HEAD, Unreadable, found_kind, named_kind, unpack
from kamerton.text.corpus.progress import advance
from kamerton.text.corpus.step import SIZE, Aside, Tally

ONE = ("text", "html", "xml")
"""Kinds whose files are one document."""


class Reader(PipelineStep):
    """Reads the files of a piece of work.

    Args:
        folder: of the stage; the tally and what was rejected go there.
        pieces: the files of every piece of work.
        limit: the largest document, in bytes.
    """

    type, name = "corpus", "read"

    def __init__(self, folder: str, pieces: list[list[Input]], limit: int, label: str = "00-read") -> None:
        super().__init__()
        self.folder, self.pieces, self.limit, self.label = folder, pieces, limit, label

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        tally = Tally()
        with Aside(Path(self.folder), self.label, rank) as aside:
            for file in self.pieces[rank]:
                for number, found in enumerate(documents(file, self.limit, tally)):
                    tally.came(file.domain, found.size)
                    doc = _document(found, file, number)
                    reason = found.reason or ("is empty" if not doc.text.strip() else None)
                    if reason is not None:
                        tally.reject(file.domain, found.size, reason)
                        aside.write(doc, reason, found.size)
                        continue
                    if found.note:
                        tally.note(file.domain, found.note)
                    tally.stays(file.domain, doc.metadata[SIZE], False)
                    yield doc
        write_json(Path(self.folder) / "tally" / self.label / f"{rank:05d}.json", tally.domains, lasting=False)


def _document(found: Found, file: Input, number: int) -> Document:
    text = found.text
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # halves of surrogate pairs, which JSON can hold
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        size = len(text.encode())
    name = f"{file.domain}/{file.name}"
    about: dict[str, Any] = {key: _clean(value) for key, value in found.about.items() if value is not None}
    about |= {"domain": file.domain, "file": file.name, "kind": found.kind, SIZE: size}
    single = number == 0 and found.about.get("single", False)
    about.pop("single", None)
    return Document(text=text, id=_clean(found.id) or (name if single else f"{name}#{number}"), metadata=about)


def _clean(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def documents(file: Input, limit: int, tally: Tally) -> Iterator[Found]:
    """What stands in a file; where it cannot be read (further), the last one says why."""
    counted = 0
    try:
        with file.path.open("rb") as raw:
            try:
                stream, kind = _open(raw, file, tally)
                for found in READERS[kind](stream, file.source, limit):
                    if kind in ONE and file.source.separator is None:
                        found.about["single"] = True
                    yield found
                    if not raw.closed:
                        at = min(raw.tell(), file.size)
                        advance(at - counted)
                        counted = at
            except Unreadable as error:
                yield Found("", 0 if counted else file.size, reason=str(error))
            except BROKEN as error:
                yield Found("", 0, reason=f"broken file ({type(error).__name__})")
    except OSError as error:
        yield Found("", 0, reason=f"cannot be opened ({error.strerror})")
    advance(file.size - counted)


def _open(raw: BufferedReader, file: Input, tally: Tally) -> tuple[BufferedReader, str]:
    """The unpacked stream of a file and its kind."""
    stream, layers = unpack(raw)
    named, packed = named_kind(file.path)
    head = b""
    while len(head) < HEAD and len(peeked := stream.peek(HEAD)) > len(head):
        head = peeked[:HEAD]
    if not head:
        raise Unreadable("is empty")
    if packed is not None and packed not in layers:
        tally.note(file.domain, f"not packed, though named .{packed}")
    found, asked = found_kind(head), file.source.kind
    kind = asked if asked != "auto" else found if found in ("parquet", "warc", "html", "xml") else named or found
    kind = kind or "text"
    if kind in ("parquet", "warc") and found != kind:
        raise Unreadable(f"is not {'Parquet' if kind == 'parquet' else 'a WARC file'}, as its name says")
    if kind == "jsonl" and found != "jsonl":
        raise Unreadable("is a JSON list, not JSON lines" if head.lstrip()[:1] == b"[" else "is not JSON lines")
    if asked == "auto" and named is not None and kind != named and (named, kind) != ("html", "xml"):
        tally.note(file.domain, f"read as {kind}, though named {file.path.suffix}")
    return stream, kind

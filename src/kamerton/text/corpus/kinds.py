"""One generator for each kind of file: a stream → what stands in it, one `Found` for each document.

A document that cannot be taken is a `Found` with a reason; an error that ends the file is `Unreadable`. No document
larger than the limit is ever held: lines are skipped in pieces, members of archives are read up to the limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any

from kamerton.errors import MissingExtra
from kamerton.text.corpus.opening import PACKED, Unreadable, decode
from kamerton.text.corpus.recipe import SourceSpec

PIECE = 1 << 16
SHOWN = 2000
"""Characters of a document that is too large which are kept aside."""


@dataclass(slots=True)
class Found:
    """A document as it stands in a file, or (with a `reason`) what is there in its place.

    Attributes:
        size: bytes as they were read.
        kind: of its content: `text`, `html` or `xml`.
    """

    text: str
    size: int
    kind: str = "text"
    id: str | None = None
    reason: str | None = None
    note: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


def too_large(head: bytes, size: int, limit: int) -> Found:
    """What stands for a document above the limit."""
    return Found(head[:SHOWN].decode("utf-8", "replace"), size, reason=f"longer than {limit:,} bytes")


def _decoded(data: bytes, source: SourceSpec, kind: str, **more: Any) -> Found:
    try:
        text, note = decode(data, source.encoding)
    except Unreadable as error:
        return Found(data[:SHOWN].decode("utf-8", "replace"), len(data), kind, reason=str(error), **more)
    return Found(text, len(data), kind, note=note, **more)


def _all(stream: BufferedReader, limit: int) -> tuple[bytes, int]:
    """The content up to the limit, and the whole size."""
    data = stream.read(limit + 1)
    size = len(data)
    if size > limit:
        while piece := stream.read(PIECE):
            size += len(piece)
        return data[:SHOWN], size
    return data, size


def read_text(stream: BufferedReader, source: SourceSpec, limit: int) -> Iterator[Found]:
    """A plain text: one document, or as many as its separator makes."""
    if source.separator is None:
        data, size = _all(stream, limit)
        yield too_large(data, size, limit) if size > limit else _decoded(data, source, "text")
        return
    encoding = "utf-8" if source.encoding == "auto" else source.encoding
    for data, size in _pieces(stream, source.separator.encode(encoding), limit):
        yield too_large(data, size, limit) if size > limit else _decoded(data, source, "text")


def _pieces(stream: BufferedReader, mark: bytes, limit: int) -> Iterator[tuple[bytes, int]]:
    """What stands between separators, with its size, without blank pieces; of one above the limit only its head."""
    held, head, skipped = b"", b"", 0
    while piece := stream.read(PIECE * 16):
        *done, held = (held + piece).split(mark)
        for part in done:
            if part.strip() or skipped:
                yield (head if skipped else part), skipped + len(part)
            skipped = 0
        if skipped + len(held) > limit:
            head = head if skipped else held[:SHOWN]
            tail = len(held) - len(mark) + 1  # a separator may be cut in two here
            skipped, held = skipped + tail, held[tail:]
    if held.strip() or skipped:
        yield (head if skipped else held), skipped + len(held)


def read_html(stream: BufferedReader, source: SourceSpec, limit: int) -> Iterator[Found]:
    """A page; its encoding is found as trafilatura does it (its own mark, then a guess)."""
    data, size = _all(stream, limit)
    yield too_large(data, size, limit) if size > limit else page(data, source)


def page(data: bytes, source: SourceSpec, **more: Any) -> Found:
    """The bytes of a page as a document."""
    if source.encoding != "auto":
        return _decoded(data, source, "html", **more)
    if data.startswith(tuple(PACKED)):  # trafilatura would unpack it, to any size
        return Found("", len(data), "html", reason="is packed inside", **more)
    try:
        from trafilatura.utils import decode_file
    except ImportError:
        raise MissingExtra("trafilatura", "corpus") from None
    return Found(decode_file(data), len(data), "html", **more)


def read_xml(stream: BufferedReader, source: SourceSpec, limit: int) -> Iterator[Found]:  # noqa: ARG001
    """An XML file: one document. It says its own encoding."""
    data, size = _all(stream, limit)
    if size > limit:
        yield too_large(data, size, limit)
        return
    from kamerton.text.corpus.xml_text import as_text

    yield as_text(data)


def read_jsonl(stream: BufferedReader, source: SourceSpec, limit: int) -> Iterator[Found]:
    """JSON lines. A line above the limit is skipped in pieces."""
    while data := stream.readline(limit + 1):
        size = len(data)
        if size > limit and not data.endswith(b"\n"):
            while rest := stream.readline(PIECE):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield too_large(data, size, limit)
            continue
        if not data.strip():
            continue
        found = _decoded(data, source, "text")
        if found.reason is not None:
            yield found
            continue
        try:
            record = json.loads(found.text)
        except (ValueError, RecursionError):
            yield Found(found.text[:SHOWN], size, reason="is not JSON")
            continue
        if not isinstance(record, Mapping):
            yield Found(found.text[:SHOWN], size, reason="is not a JSON object")
            continue
        yield _record(record, source, size, found.note, found.text)


def _record(record: Mapping[str, Any], source: SourceSpec, size: int, note: str | None, shown: str) -> Found:
    text, name = record.get(source.text), record.get(source.id)
    if source.text not in record:
        return Found(shown[:SHOWN], size, reason=f"has no field {source.text!r}")
    if not isinstance(text, str):
        return Found(shown[:SHOWN], size, reason=f"field {source.text!r} is not text")
    about = {key: record[key] for key in source.keep if key in record}
    return Found(
        text, size, source.content, id=str(name) if isinstance(name, (str, int)) else None, note=note, about=about
    )


def read_parquet(stream: BufferedReader, source: SourceSpec, limit: int) -> Iterator[Found]:
    """Parquet, a few rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(stream)
        names = table.schema_arrow.names
        if source.text not in names:
            raise Unreadable(f"has no column {source.text!r}")
        columns = [name for name in dict.fromkeys((source.text, source.id, *source.keep)) if name in names]
        for batch in table.iter_batches(batch_size=64, columns=columns):
            for record in batch.to_pylist():
                text = record.get(source.text)
                size = len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
                if size > limit:
                    yield too_large(text[:SHOWN].encode("utf-8", "replace"), size, limit)
                else:
                    yield _record(record, source, size, None, "")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"broken Parquet ({type(error).__name__})") from None


def read_warc(stream: BufferedReader, source: SourceSpec, limit: int) -> Iterator[Found]:
    """Pages of a WARC file (responses with HTML) or the texts of a WET file (conversions)."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise MissingExtra("warcio", "corpus") from None
    try:
        for record in ArchiveIterator(stream):
            if record.rec_type not in ("response", "conversion"):
                continue
            kind = (record.http_headers.get_header("Content-Type") if record.http_headers else None) or "text/plain"
            name = record.rec_headers.get_header("WARC-Record-ID") or ""
            about = {"url": record.rec_headers.get_header("WARC-Target-URI")}
            if record.rec_type == "response" and "html" not in kind.lower():
                yield Found("", 0, id=name, reason="is not a page", about={**about, "content_type": kind})
                continue
            content = record.content_stream()
            data = content.read(limit + 1)
            if len(data) > limit:
                yield too_large(data, len(data), limit)
            elif record.rec_type == "response":
                yield page(data, source, id=name, about=about)
            else:
                yield _decoded(data, source, "text", id=name, about=about)
    except (ArchiveLoadFailed, ValueError, AttributeError, KeyError) as error:
        raise Unreadable(f"broken WARC ({type(error).__name__})") from None


READERS: dict[str, Callable[[BufferedReader, SourceSpec, int], Iterator[Found]]] = {
    "text": read_text, "html": read_html, "xml": read_xml, "jsonl": read_jsonl, "parquet": read_parquet,
    "warc": read_warc,
}  # fmt: skip

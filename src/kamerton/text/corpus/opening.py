"""What a file is, by its content: unpacking while it is read, its kind, its encoding. Names are asked last.

Nothing here reads more than it is asked for, so that a packed file of any size passes through bounded memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from kamerton.errors import MissingExtra
from kamerton.text.corpus.files import buffered

HEAD = 8192
"""Bytes of a file's beginning that its kind is found from."""

PACKED = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
}
OTHER = {
    b"%PDF": "PDF", b"PK\x03\x04": "a ZIP archive", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image", b"\x7fELF": "a program", b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Office file", b"RIFF": "audio or video", b"ID3": "audio", b"OggS": "audio",
    b"Rar!": "a RAR archive", b"7z\xbc\xaf": "a 7z archive",
}  # fmt: skip
SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text", ".rst": "text", ".csv": "text", ".tsv": "text",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".xml": "xml", ".tei": "xml", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".warc": "warc", ".wet": "warc",
}  # fmt: skip
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What unpacking raises where the data are broken (zstandard's own error is an OSError's stand-in; see `unpack`)."""
_PACKED_SUFFIXES = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
_LAYERS = 3


class Unreadable(Exception):
    """A file, or the rest of it, that cannot be read; its text is the reason that is counted."""


class Zstd(io.RawIOBase):
    """A zstandard stream whose errors are OSErrors."""

    def __init__(self, stream: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("zstandard", "corpus") from None
        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            stream, read_across_frames=True
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._reader.read(len(buffer))
        except self._error as error:
            raise OSError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)


def unpack(stream: BinaryIO) -> tuple[io.BufferedReader, list[str]]:
    """The unpacked stream, and how it was packed, by content; errors come while it is read (`BROKEN`)."""
    opened, layers = buffered(stream), []
    for _ in range(_LAYERS):
        head = opened.peek(6)[:6]
        packed = next((name for mark, name in PACKED.items() if head.startswith(mark)), None)
        if packed is None:
            break
        layers.append(packed)
        if packed == "zst":
            opened = buffered(Zstd(opened))
        else:
            kinds: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
            opened = buffered(kinds[packed](opened, "rb"))
    return opened, layers


def named_kind(path: Path) -> tuple[str | None, str | None]:
    """The kind and the packing that a file's name promises."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = _PACKED_SUFFIXES.get(suffixes[-1]) if suffixes else None
    inner = suffixes[:-1] if packed else suffixes
    return (SUFFIXES.get(inner[-1]) if inner else None), packed


_HTML = re.compile(rb"<(?:!doctype\s+html|html[\s>]|head[\s>]|body[\s>])", re.I)
_XHTML = re.compile(rb"<(?:!doctype\s+html|html[\s>])", re.I)  # TEI has a <body> too
_XML = re.compile(rb"\s*(?:<\?xml[\s>]|<(?:\w+:)?TEI[\s>])")
_RECORD = re.compile(rb"\s*\{\s*(?:\"|\}|$)")


def found_kind(head: bytes) -> str:
    """The kind that a beginning shows: one of `SUFFIXES`' kinds, or "" where nothing shows.

    Raises:
        Unreadable: it is something else, or not text at all.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"WARC/"):
        return "warc"
    for mark, name in OTHER.items():
        if head.startswith(mark):
            raise Unreadable(f"is {name}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ""  # UTF-16
    if b"\0" in head:
        raise Unreadable("is not text (it has zero bytes)")
    start = head.removeprefix(b"\xef\xbb\xbf")
    if _XML.match(start):
        return "html" if _XHTML.search(start[:1024]) else "xml"
    if start.lstrip().startswith(b"<") and _HTML.search(start):
        return "html"
    if _RECORD.match(start):
        return "jsonl"
    return ""


def decode(data: bytes, encoding: str) -> tuple[str, str | None]:
    """Bytes as text, and a note where they were not plain UTF-8.

    `auto`: a byte order mark, else UTF-8; where at most one character in 200 is broken, those are replaced; else what
    charset-normalizer finds.

    Raises:
        Unreadable: no encoding fits.
    """
    if encoding != "auto":
        try:
            return data.decode(encoding), None
        except UnicodeDecodeError:
            raise Unreadable(f"is not {encoding}") from None
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            text = data.decode(name, "replace")
            return text, "broken characters replaced" if "\ufffd" in text else None
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") * 200 <= len(text):
        return text, "broken characters replaced"
    from charset_normalizer import from_bytes

    best = from_bytes(data[: 1 << 16]).best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        raise Unreadable("is in no known encoding")
    text = data.decode(best.encoding, "replace")
    if text.count("\ufffd") * 200 > len(text):
        raise Unreadable("is in no known encoding")
    return text, f"read as {best.encoding}"

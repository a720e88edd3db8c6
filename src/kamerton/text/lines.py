"""Lines of text files, compressed or not, with bounded memory; and their documents, one in memory at a time."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from codecs import BOM_UTF8 as BOM
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from kamerton.errors import KamertonError
from kamerton.files import read_all

LONGEST = 1 << 20
"""Bytes of a line that are read as one; a longer line is cut there, and counted."""
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a file raises where it is not whole or not what its name says."""
PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def lines(files: Sequence[Path], cut: list[int] | None = None) -> Iterator[bytes]:
    """Lines without their ends; empty ones are left out.

    Args:
        files: text, or JSON lines (`.jsonl`) whose `text` is read; `.gz`, `.bz2` and `.xz` of them.
        cut: its first number is raised for every line that was longer than `LONGEST` and cut.

    Raises:
        KamertonError: a file that cannot be read, is not what its name says, or a record without text.
    """
    for file in files:
        packed = file.suffix in PACKED
        records = (file.with_suffix("") if packed else file).suffix == ".jsonl"
        try:
            with _opened(file) as stream:
                if records:
                    yield from _records(stream, file)
                    continue
                if stream.read(len(BOM)) != BOM:  # some editors mark UTF-8 by it; it is no letter of the text
                    stream.seek(0)
                while line := stream.readline(LONGEST):
                    if cut is not None and len(line) == LONGEST and not line.endswith(b"\n"):
                        cut[0] += 1
                    line = line.rstrip(b"\r\n")
                    if line.strip():
                        yield line
        except BROKEN as error:
            raise _unreadable(error, file) from None


def documents(files: Sequence[Path]) -> Iterator[bytes]:
    """Whole texts with their ends of lines: each file is one, of JSON lines each `text`; empty ones are left out.

    Raises:
        KamertonError: as `lines`.
    """
    for file in files:
        packed = file.suffix in PACKED
        records = (file.with_suffix("") if packed else file).suffix == ".jsonl"
        try:
            with _opened(file) as stream:
                yield from (
                    t for t in (_texts(stream, file) if records else [read_all(stream).removeprefix(BOM)]) if t.strip()
                )
        except BROKEN as error:
            raise _unreadable(error, file) from None


def no_text(files: Sequence[Path], otherwise: str = "") -> KamertonError:
    """The error of files that hold nothing to read; `otherwise`: the place where no files are given."""
    where = ", ".join(map(str, files)) or otherwise
    return KamertonError("there is no text in it", where=where, mend="give files with lines of text")


def _unreadable(error: Exception, file: Path) -> Exception:
    if isinstance(error, OSError) and error.filename is not None:
        return error
    what = f"cannot be read: {str(error).splitlines()[0]}"
    return KamertonError(what, where=str(file), mend="give a text file, or one that is whole")


def _records(stream: IO[bytes], file: Path) -> Iterator[bytes]:
    for text in _texts(stream, file):
        yield from (line for line in text.splitlines() if line.strip())


def _texts(stream: IO[bytes], file: Path) -> Iterator[bytes]:
    for number, record in enumerate(stream, start=1):
        if not record.strip():
            continue
        try:
            yield json.loads(record)["text"].encode("utf-8", "replace")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            mend = 'write {"text": "…"} on each line, or name the file .txt'
            raise KamertonError("is no record with a text", where=f"{file}:{number}", mend=mend) from None


def _opened(file: Path) -> IO[bytes]:
    stream: IO[bytes] = PACKED.get(file.suffix, open)(file, "rb")
    return stream

"""Lines of text files, compressed or not, with bounded memory; and their documents, one in memory at a time.

Text is UTF-8. What plainly is none (zero bytes, a mark of UTF-16) is refused; single characters that are broken are
given as they are, and counted.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from codecs import BOM_UTF8 as BOM
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from kamerton.errors import KamertonError
from kamerton.files import read_all

LONGEST = 1 << 20
"""Bytes of a line that are read as one; a longer line is cut there, before a character, and counted."""
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a file raises where it is not whole or not what its name says."""
HEAD = 4096
"""Bytes of a file's beginning that what it looks like is told from."""


def _zstandard(file: Path, _mode: str) -> BufferedReader:
    from kamerton.text.corpus.opening import Zstd

    return BufferedReader(Zstd(file.open("rb")), 1 << 16)


PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}


@dataclass
class Seen:
    """What was wrong in texts as they were read.

    Attributes:
        cut: lines that were longer than `LONGEST`.
        broken: characters that are not UTF-8.
    """

    cut: int = 0
    broken: int = 0

    def notes(self, *, read_as: str = "each was read as \ufffd") -> list[str]:
        """It in words; `read_as`: what became of broken characters."""
        notes = [f"{self.cut} lines of more than a megabyte were cut into several sentences"] if self.cut else []
        if self.broken:
            are = "character is" if self.broken == 1 else "characters are"
            notes.append(f"{self.broken:,} {are} not UTF-8: {read_as}; convert the text to UTF-8 where that is wrong")
        return notes

    def look(self, text: bytes) -> None:
        """Count the broken characters of a text."""
        try:
            text.decode()
        except UnicodeDecodeError:
            self.broken += text.decode("utf-8", "replace").count("\ufffd") - text.count("\ufffd".encode())


def lines(files: Sequence[Path], seen: Seen | None = None) -> Iterator[bytes]:
    """Lines without their ends; empty ones are left out.

    Args:
        files: text, or JSON lines (`.jsonl`) whose `text` is read; `.gz`, `.bz2`, `.xz` and `.zst` of them.
        seen: told what was wrong.

    Raises:
        KamertonError: a file that cannot be read, is not what its name says or not UTF-8, or a record without text.
    """
    for file in files:
        try:
            with opened(file) as stream:
                for line in _records(stream, file) if kind_of(file) == ".jsonl" else _lines(stream, file, seen):
                    if seen is not None:
                        seen.look(line)
                    yield line
        except BROKEN as error:
            raise unreadable(error, file) from None


def documents(files: Sequence[Path], seen: Seen | None = None) -> Iterator[bytes]:
    """Whole texts with their ends of lines: each file is one, of JSON lines each `text`; empty ones are left out.

    Raises:
        KamertonError: as `lines`.
    """
    for file in files:
        try:
            with opened(file) as stream:
                for text in _texts(stream, file) if kind_of(file) == ".jsonl" else [_whole(stream, file)]:
                    if seen is not None:
                        seen.look(text)
                    if text.strip():
                        yield text
        except BROKEN as error:
            raise unreadable(error, file) from None


def opened(file: Path) -> IO[bytes]:
    """A file's bytes, unpacked where its name says that it is packed; what reading may raise is in `BROKEN`."""
    stream: IO[bytes] = PACKED.get(file.suffix, open)(file, "rb")
    return stream


def kind_of(file: Path) -> str:
    """A file's suffix, that of packing aside: `.txt` of `a.txt.gz`."""
    return (file.with_suffix("") if file.suffix in PACKED else file).suffix


def no_text(files: Sequence[Path], otherwise: str = "") -> KamertonError:
    """The error of files that hold nothing to read; `otherwise`: the place where no files are given."""
    where = ", ".join(map(str, files)) or otherwise
    return KamertonError("there is no text in it", where=where, mend="give files with lines of text")


def unreadable(error: Exception, file: Path) -> Exception:
    """What of `BROKEN` was raised, as an error that a user can mend."""
    if isinstance(error, OSError) and error.filename is not None:
        return error
    what = f"cannot be read: {str(error).splitlines()[0]}"
    return KamertonError(what, where=str(file), mend="give a text file, or one that is whole")


def _lines(stream: IO[bytes], file: Path, seen: Seen | None) -> Iterator[bytes]:
    start, cut, rest = True, False, b""
    while line := rest + stream.readline(LONGEST - len(rest)):
        if cut and seen is not None and line.strip(b"\r\n"):  # else only its end was left
            seen.cut += 1
        cut, rest = False, b""
        if b"\0" in line or (start and line.startswith((BOM_UTF16_LE, BOM_UTF16_BE))):
            raise _no_text_at_all(file)
        if len(line) == LONGEST and not line.endswith(b"\n"):
            at = _before_character(line)
            cut, line, rest = True, line[:at], line[at:]
        if start:
            line, start = line.removeprefix(BOM), False  # some editors mark UTF-8 by it; it is no letter of the text
        line = line.rstrip(b"\r\n")
        if line.strip():
            yield line


def _before_character(line: bytes) -> int:
    """Where the last character of a line begins, if bytes of it are missing; else the line's end."""
    for back in range(1, 4):
        byte = line[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            return len(line) - back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(line)
    return len(line)


def _whole(stream: IO[bytes], file: Path) -> bytes:
    text = read_all(stream)
    if b"\0" in text or text.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise _no_text_at_all(file)
    return text.removeprefix(BOM)


def _records(stream: IO[bytes], file: Path) -> Iterator[bytes]:
    for text in _texts(stream, file):
        yield from (line for line in text.splitlines() if line.strip())


def _texts(stream: IO[bytes], file: Path) -> Iterator[bytes]:
    for number, record in enumerate(stream, start=1):
        if not record.strip():
            continue
        if b"\0" in record:
            raise _no_text_at_all(file)
        try:
            yield json.loads(record)["text"].encode("utf-8", "replace")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            mend = 'write {"text": "…"} on each line, or name the file .txt'
            raise KamertonError("is no record with a text", where=f"{file}:{number}", mend=mend) from None


def _no_text_at_all(file: Path) -> KamertonError:
    """What a file with zero bytes looks like, and what to do about it."""
    from kamerton.text.corpus.opening import OTHER

    with opened(file) as stream:
        head = stream.read(HEAD)
    other = next((name for mark, name in OTHER.items() if head.startswith(mark)), None)
    if other is not None:
        return KamertonError(f"is {other}, no text", where=file, mend="leave it out, or give the text that is in it")
    # in UTF-16 a space and an end of a line have a zero as their second byte (LE) or as their first one (BE)
    first, second = head[::2].count(0), head[1::2].count(0)
    name = "UTF-16LE" if second > 3 * first + 2 else "UTF-16BE" if first > 3 * second + 2 else ""
    name = "UTF-16" if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else name
    if name:
        mend = f"convert it to UTF-8: iconv -f {name} -t UTF-8 {file.name}"
        return KamertonError("looks like UTF-16, not UTF-8", where=file, mend=mend)
    what = "is not text (it has zero bytes)"
    return KamertonError(what, where=file, mend="leave it out, or convert it to UTF-8 if it is text")

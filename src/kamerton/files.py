"""Files that must be whole or absent: written under another name and renamed; and what tells their content."""

from __future__ import annotations

import errno
import glob
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from kamerton.errors import KamertonError

MOST_UNPACKED = 1 << 30
"""Bytes that a packed file is unpacked to where all of it is held in memory: a small one can hold any number."""


def expanded(name: str | Path) -> Path:
    """A path that somebody wrote: `~` is the home folder, `~name` that of a user where there is one.

    Raises:
        KamertonError: no file can have this name (zero bytes, a name of more than 255 bytes), so that asking whether
            it is there would be an error of the system's.
    """
    text = os.fspath(name)
    try:
        size = max(len(os.fsencode(part)) for part in text.split("/"))
    except UnicodeEncodeError:
        size = 256  # half of a surrogate pair
    if "\0" in text or size > 255 or len(text) > 4000:
        raise KamertonError("no file can have this name", where=ascii(text[:40]), mend="check the path")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is nobody of that name
        return Path(text)


def is_path(name: str) -> bool:
    """Whether a name that may be a folder's or a hub id (`owner/name`) can only be that of a folder, there or not."""
    first, *rest = name.split("/")
    return name.startswith((".", "/", "~")) or len(rest) > 1 or (bool(rest) and expanded(first).is_dir())


REFUSED = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS)
"""What a disk refuses; nothing can be written until somebody mends it."""
PARTIAL = re.compile(r"\.(partial|former)-(\d+)-(.+)")
"""A name under which a process of that number writes, or keeps what it replaces for a moment."""


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What a disk refuses is an OSError that names its place, whoever raises it.

    A write to an open file fails without a name, numpy says only how much was written, and libraries in Rust
    (safetensors, Lance) have errors of their own with the system's number in the text.
    """
    try:
        yield
    except Exception as error:
        number = refused_by(error)
        if number is None or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def refused_by(error: BaseException) -> int | None:
    """The system's number for what a disk refused (of `REFUSED`); None where an error is about something else."""
    number = None
    if isinstance(error, OSError) and error.errno is not None:
        number = error.errno
    elif isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC
    elif found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    return number if number in REFUSED else None


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written anywhere in a folder, whose only writer is the caller.

    A folder that was being replaced when its process was killed is put back.
    """
    import psutil

    for path in sorted(folder.rglob(".*-*")):
        found = PARTIAL.fullmatch(path.name)
        if found is None or psutil.pid_exists(int(found[2])):
            continue
        with suppress(OSError):
            if found[1] == "former" and not path.with_name(found[3]).exists():
                os.replace(path, path.with_name(found[3]))
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole(path: Path, *, compressed: bool = False, lasting: bool = True) -> Iterator[BinaryIO]:
    """A binary file that is there when the block has ended well, and else is not.

    Args:
        path: its folder is made where it is not there.
        compressed: by gzip, without name and time, so that the same content makes the same bytes.
        lasting: even after a power cut; dear where there are many small files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with refusals(path):
            with partial.open("wb") as raw:
                if compressed:
                    with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                        yield packed  # type: ignore[misc]
                else:
                    yield raw
                raw.flush()
                if lasting:
                    os.fsync(raw.fileno())
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # on a disk that refuses all, the first refusal is what is told
            partial.unlink(missing_ok=True)


@contextmanager
def moved_into(folder: Path, *, last: str = "") -> Iterator[Path]:
    """A folder to write files into, which are moved to `folder` one by one when the block has ended well.

    Args:
        folder: made where it is not there; other files in it stay.
        last: the file that is moved last, whose presence means that the others are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".partial-{os.getpid()}-files"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with refusals(folder):
            yield partial
            for file in sorted(partial.iterdir(), key=lambda p: (p.name == last, p.name)):
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that takes its place when the block has ended well, and else leaves nothing.

    Args:
        folder: not there yet, or empty.
        replace: it may hold something, which is removed once the new one is in its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".partial-{os.getpid()}-{folder.name}")
    former = folder.with_name(f".former-{os.getpid()}-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for left in folder.parent.glob(f".former-*-{glob.escape(folder.name)}"):  # of one that was killed in between
        if not folder.exists():
            os.replace(left, folder)
    partial.mkdir()
    try:
        with refusals(folder):
            yield partial
        if folder.is_dir() and not replace:
            folder.rmdir()  # an error where somebody has put something there meanwhile
        elif folder.is_dir():
            os.replace(folder, former)
        try:
            os.replace(partial, folder)
        except OSError:
            if former.is_dir():
                os.replace(former, folder)
            raise
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write a text file as UTF-8, whole or not at all."""
    with whole(path, lasting=lasting) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, *, lasting: bool = True) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n", lasting=lasting)


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """Write one JSON line for each row, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_all(stream: IO[bytes]) -> bytes:
    """The rest of a stream, at most `MOST_UNPACKED` bytes of it.

    Raises:
        OSError: it has more.
    """
    parts, size = [], 0
    while part := stream.read(1 << 20):  # a buffered stream makes room at once for all that it is asked for
        parts.append(part)
        size += len(part)
        if size > MOST_UNPACKED:
            raise OSError(f"it holds more than {MOST_UNPACKED:,} bytes, and all of it is held in memory")
    return b"".join(parts)


def gunzip(data: bytes) -> bytes:
    """What is packed by gzip, at most `MOST_UNPACKED` bytes of it.

    Raises:
        OSError, EOFError, zlib.error: it is broken, or more.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        return read_all(stream)  # type: ignore[arg-type]


def parse_json(text: str) -> Any:
    """A value from JSON. A number of more digits than Python reads is an error with its place, as any other is.

    Raises:
        json.JSONDecodeError: it is not JSON, or holds such a number.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        most = sys.get_int_max_str_digits()
        found = re.search(rf"\d{{{most + 1},}}", text)
        message = f"a number of more than {most:,} digits"
        raise json.JSONDecodeError(message, text, found.start() if found else 0) from None


def read_jsonl(path: Path) -> list[Any]:
    """Read what `write_jsonl` wrote."""
    # not splitlines(): strings may hold U+2028, U+0085 and other separators unescaped
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]

"""The header of a GGUF file, looked through before anything is built from it.

The readers of the ecosystem take a file's counts at their word: an array that says it has 2⁶⁰ items is gone
through item by item, past the end of the file. Here every count and length is held against the bytes that are
there. Nothing of the weights is read. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from kamerton.errors import ModelError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type's number; 8 is a text, 9 an array."""
_TEXT, _ARRAY, _LEVELS = 8, 9, 4
_MOST_DIMENSIONS = 8
_LEAST_BITS = 1
"""Of a weight, in the tightest of ggml's formats."""


class _Broken(ValueError):
    pass


class _Reading:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.size = data, 0, len(data)

    def number(self, kind: str) -> int:
        width = struct.calcsize(kind)
        if self.at + width > self.size:
            raise _Broken("it ends within its header")
        (value,) = struct.unpack_from(kind, self.data, self.at)
        self.at += width
        return int(value)

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise _Broken("it ends within its header")
        self.at += count

    def text(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int, level: int = 0) -> None:
        if kind == _TEXT:
            self.text()
        elif kind == _ARRAY:
            if level == _LEVELS:
                raise _Broken("its arrays are nested too deeply")
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _SIZES:
                self.skip(count * _SIZES[inner])
            elif count * 8 > self.size - self.at:  # a text or an array takes at least its length
                raise _Broken(f"an array says it has {count:,} items, more than the file holds")
            else:
                for _ in range(count):
                    self.value(inner, level + 1)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise _Broken(f"a value is of the unknown type {kind}")


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file whose header says more than the file holds.

    Raises:
        ModelError: it is none, ends within its header, or has counts, lengths or shapes that cannot be.
    """
    mend = "download it again, or use a folder of safetensors"
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise _Broken("it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _look_through(_Reading(data))
    except _Broken as error:
        raise ModelError(f"not a GGUF file that can be read: {error}", where=path, mend=mend) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"not a GGUF file that can be read ({error})", where=path, mend=mend) from None


def _look_through(header: _Reading) -> None:
    header.skip(4)
    version = header.number("<I")
    if version not in (2, 3):
        raise _Broken(f"it is of version {version}, 2 and 3 are read")
    tensors, fields = header.number("<Q"), header.number("<Q")
    if (tensors + fields) * 12 > header.size:
        raise _Broken(f"it says it has {tensors:,} tensors and {fields:,} fields, more than the file holds")
    names, kind_of_model = set(), b""
    for _ in range(fields):
        start = header.at + 8
        header.text()
        name, kind = header.data[start : header.at], header.number("<I")
        names.add(name)
        if name == b"general.architecture" and kind == _TEXT:
            before = header.at
            header.text()
            kind_of_model, header.at = header.data[before + 8 : header.at], before
        if name.endswith(b".block_count") and kind in (4, 5):  # a reader makes names for so many layers
            (layers,) = struct.unpack_from("<I", header.data, header.at) if header.at + 4 <= header.size else (0,)
            if layers > tensors:
                raise _Broken(f"it says it has {layers:,} layers, and has {tensors:,} tensors")
        header.value(kind)
    numbers = 0
    for _ in range(tensors):
        header.text()
        dimensions = header.number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise _Broken(f"a tensor has {dimensions:,} dimensions")
        shape = 1
        for _ in range(dimensions):
            shape *= header.number("<Q")
        numbers += shape
        header.number("<I")
        if header.number("<Q") > header.size:
            raise _Broken("a tensor lies behind the end of the file")
    if numbers * _LEAST_BITS > header.size * 8:
        raise _Broken(f"its tensors have {numbers:,} numbers, more than the file holds")
    if kind_of_model + b".block_count" not in names:  # a reader takes a large model's shape where none is said
        raise _Broken("it does not say how many layers it has")

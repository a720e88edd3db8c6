"""Counts of n-grams over more text than fits into memory.

Text is read in batches. The n-grams of a batch are packed into whole numbers of 64 bits, as few as hold them, sorted
and counted; when what was counted takes more memory than allowed it is written to disk as a sorted run, and in the end
the runs are merged in blocks. What stays in memory is the table of different n-grams, not the text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from kamerton.errors import KamertonError
from kamerton.text.lines import Seen, documents, lines, no_text
from kamerton.text.ngrams.units import BOS, LINES, Units


@dataclass
class Packing:
    """N-grams of one order as rows of 64-bit numbers that sort as the n-grams do.

    Attributes:
        order: n.
        bits: of one unit; `each`: units in one number; `columns`: numbers in a row.
    """

    order: int
    bits: int
    each: int = field(init=False)
    columns: int = field(init=False)

    def __post_init__(self) -> None:
        self.each = min(self.order, 64 // self.bits)
        self.columns = -(-self.order // self.each)

    def pack(self, units: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """(T,) numbers of units and (N,) places where an n-gram begins → (columns, N) uint64."""
        out = np.zeros((self.columns, len(starts)), dtype=np.uint64)
        for i in range(self.order):
            column = i // self.each
            out[column] = (out[column] << np.uint64(self.bits)) | units[starts + i].astype(np.uint64)
        return out

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """(columns, N) → (N, order) uint32."""
        out = np.empty((packed.shape[1], self.order), dtype=np.uint32)
        mask = np.uint64((1 << self.bits) - 1)
        for column in range(self.columns):
            first, last = column * self.each, min(self.order, (column + 1) * self.each)
            left = packed[column].copy()
            for i in range(last - 1, first - 1, -1):
                out[:, i] = (left & mask).astype(np.uint32)
                left >>= np.uint64(self.bits)
        return out


def tally(packed: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Different rows in order, and how often each is there: (columns, N) → (columns, M), (M,) int64."""
    if packed.shape[1] == 0:
        return packed, np.zeros(0, dtype=np.int64)
    if len(packed) == 1 and counts is None:
        ordered = np.sort(packed[0], kind="stable")[None]
        weights = None
    else:
        order = np.lexsort(packed[::-1]) if len(packed) > 1 else np.argsort(packed[0], kind="stable")
        ordered, weights = packed[:, order], None if counts is None else counts[order]
    new = np.empty(ordered.shape[1], dtype=bool)
    new[0] = True
    new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(0)
    firsts = np.flatnonzero(new)
    found = np.diff(np.append(firsts, ordered.shape[1])) if weights is None else np.add.reduceat(weights, firsts)
    return ordered[:, firsts], found.astype(np.int64)


@dataclass
class Counts:
    """N-grams of one order in sorted order.

    Attributes:
        grams: (N, order) uint32.
        counts: (N,) int64.
    """

    grams: np.ndarray
    counts: np.ndarray


class _Counter:
    """Counts of one order, on disk where memory is too small."""

    def __init__(self, packing: Packing, room: int, folder: Path) -> None:
        self.packing, self._room, self._folder = packing, room, folder
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = 0
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, units: np.ndarray) -> None:
        """Count the n-grams of whole sentences."""
        n = self.packing.order
        if len(units) < n:
            return
        # an n-gram stays in its sentence: no <s> but at its beginning
        later = np.zeros(len(units) - n + 1, dtype=bool)
        for i in range(1, n):
            later |= units[i : i + len(later)] == BOS
        found = tally(self.packing.pack(units, np.flatnonzero(~later)))
        self._parts.append(found)
        self._held += found[0].nbytes + found[1].nbytes
        if self._held > self._room:
            self._squeeze()
            if self._held > self._room // 2:
                self._spill()

    def _squeeze(self) -> None:
        packed = np.concatenate([p for p, _ in self._parts], axis=1)
        counts = np.concatenate([c for _, c in self._parts])
        self._parts = [tally(packed, counts)]
        self._held = sum(p.nbytes + c.nbytes for p, c in self._parts)

    def _spill(self) -> None:
        (packed, counts), name = self._parts[0], f"{self.packing.order}-{len(self._runs)}"
        out = []
        for kind, array in (("grams", packed), ("counts", counts)):
            path = self._folder / f"{name}-{kind}.npy"
            np.save(path, array)
            out.append(np.load(path, mmap_mode="r"))
        self._runs.append((out[0], out[1]))
        self._parts, self._held = [], 0

    def done(self) -> Counts:
        """All of it, in order."""
        if self._parts:
            self._squeeze()
        runs = [*self._runs, *self._parts]
        if not runs:
            return Counts(np.zeros((0, self.packing.order), np.uint32), np.zeros(0, np.int64))
        if len(runs) == 1:
            return Counts(self.packing.unpack(runs[0][0]), runs[0][1])
        parts = list(merged(runs, block=max(1024, self._room // (32 * len(runs)))))
        return Counts(np.concatenate([self.packing.unpack(p) for p, _ in parts]), np.concatenate([c for _, c in parts]))


def merged(runs: Sequence[tuple[np.ndarray, np.ndarray]], block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sorted runs as one, in sorted pieces.

    Args:
        runs: (columns, N) rows in order and their (N,) counts.
        block: rows of each run that are in memory at a time.
    """
    places = [0] * len(runs)
    while any(place < run[0].shape[1] for place, run in zip(places, runs, strict=True)):
        windows = [run[0][:, place : place + block] for place, run in zip(places, runs, strict=True)]
        # rows up to the smallest last row of a window that is not its run's end are complete
        lasts = [
            tuple(w[:, -1].tolist())
            for w, place, run in zip(windows, places, runs, strict=True)
            if w.shape[1] and place + w.shape[1] < run[0].shape[1]
        ]
        bound, taken = min(lasts) if lasts else None, []
        for i, window in enumerate(windows):
            take = window.shape[1] if bound is None else _up_to(window, bound)
            if take:
                taken.append((np.asarray(window[:, :take]), np.asarray(runs[i][1][places[i] : places[i] + take])))
                places[i] += take
        yield tally(np.concatenate([p for p, _ in taken], axis=1), np.concatenate([c for _, c in taken]))


def _up_to(window: np.ndarray, bound: tuple[int, ...]) -> int:
    """How many rows of a sorted window are at most the bound."""
    low, high = 0, window.shape[1]
    for column, value in enumerate(bound):
        part = window[column, low:high]
        start = low + int(np.searchsorted(part, np.uint64(value), side="left"))
        end = low + int(np.searchsorted(part, np.uint64(value), side="right"))
        if column == len(bound) - 1:
            return end
        low, high = start, end
        if start == end:
            return start
    return high


def sentences_of(
    files: Sequence[Path], units: Units, *, seen: Seen | None = None, whole: bool = False
) -> Iterator[list[bytes]]:
    """What is counted and scored, in batches.

    Args:
        seen, whole: as `count`.

    Raises:
        KamertonError: no text, or whole documents of units that lose their ends of lines.
    """
    if whole and not units.lossless:
        mend = "count bytes, or the tokens of a tokenizer that loses nothing"
        raise KamertonError(f"{units.kind} cannot write the ends of lines in documents", mend=mend)
    return _some(batches(documents(files, seen) if whole else lines(files, seen)), files)


def _some(found: Iterator[list[bytes]], files: Sequence[Path]) -> Iterator[list[bytes]]:
    """Batches, of which there has to be one."""
    first = next(found, None)
    if first is None:
        raise no_text(files)
    yield first
    yield from found


def count(
    files: Sequence[Path], units: Units, order: int, *, memory: int = 1 << 30,
    progress: Callable[[int], None] | None = None, seen: Seen | None = None, whole: bool = False,
) -> list[Counts]:  # fmt: skip
    """Counts of all orders up to one.

    Args:
        files: text, a sentence a line.
        units: what is counted.
        order: the longest n-gram.
        memory: bytes that counts may take before they are written to disk, about, over all orders.
        progress: told the bytes of each batch of lines that was read.
        seen: told of lines that were cut and of characters that are not UTF-8.
        whole: a sentence is a whole document, its ends of lines included, in place of a line.

    Returns:
        Counts of order 1, 2, …; those of `<s>` alone are among order 1.

    Raises:
        KamertonError: as `sentences_of`.
    """
    bits = max(1, int(units.size - 1).bit_length())
    with tempfile.TemporaryDirectory(prefix="kamerton-ngrams-") as folder:
        counters = [_Counter(Packing(n, bits), memory // order, Path(folder)) for n in range(1, order + 1)]
        for batch in sentences_of(files, units, seen=seen, whole=whole):
            read = units.sentences(batch)
            for counter in counters:
                counter.add(read)
            if progress is not None:
                progress(sum(map(len, batch)) + len(batch))
        return [counter.done() for counter in counters]


def batches(source: Iterable[bytes], size: int = 8 << 20) -> Iterator[list[bytes]]:
    """Lines in batches of at most `LINES` and about `size` bytes."""
    stream = iter(source)
    while batch := list(islice(stream, 1)):
        held = len(batch[0])
        for line in islice(stream, LINES - 1):
            batch.append(line)
            held += len(line)
            if held > size:
                break
        yield batch

"""Exact duplicates: the first of equal texts stays. 128 bits of each text are compared, 16 bytes a document in memory.

datatrove's exact deduplication is not used: it keeps any one of equal documents and does not say which.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from kamerton.text.corpus.executor import Pool, Report
from kamerton.text.corpus.options import ExactDuplicates
from kamerton.text.corpus.whole_corpus import Copies, Numbers, Place, WholeStep, drop

_FOLDED = re.compile(r"[\W_]+")


class Exact(WholeStep):
    """Equal documents."""

    options: ExactDuplicates

    def sketch(self, folder: Path) -> PipelineStep:
        return Numbers(str(folder), Digest(self.options.fold), np.dtype("S16"))

    def decide(self, folder: Path, tasks: int, pool: Pool, report: Report) -> None:  # noqa: ARG002
        parts = [np.load(folder / f"{rank:05d}.npy", allow_pickle=False) for rank in range(tasks)]
        digests = np.concatenate(parts) if parts else np.empty(0, "S16")
        ranks = np.repeat(np.arange(tasks), [len(part) for part in parts])
        numbers = np.concatenate([np.arange(len(part)) for part in parts]) if parts else np.empty(0, int)
        # the first of each run of equal digests; a stable sort keeps the input's order within a run
        order = np.argsort(digests, kind="stable")
        new = np.ones(len(order), bool)
        new[1:] = digests[order][1:] != digests[order][:-1]
        firsts = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        copies: dict[Place, Place] = {}
        for at in np.flatnonzero(~new):
            copies[_place(ranks, numbers, order[at])] = _place(ranks, numbers, firsts[at])
        drop(folder, tasks, copies, "equal to an earlier document")

    def judging(self, stage: Path, folder: Path) -> PipelineStep:
        return Copies(str(stage), self.label, str(folder))


def _place(ranks: np.ndarray, numbers: np.ndarray, at: int) -> Place:
    return int(ranks[at]), int(numbers[at])


class Digest:
    """128 bits of a text; numpy's byte strings drop trailing zeros, so the last byte is never one."""

    def __init__(self, fold: bool) -> None:
        self.fold = fold

    def __call__(self, doc: Document) -> bytes:
        import xxhash

        text = _FOLDED.sub("", doc.text.casefold()) if self.fold else doc.text
        digest = xxhash.xxh128_digest(text.encode())
        return digest if digest[-1] else digest[:-1] + b"\x01"

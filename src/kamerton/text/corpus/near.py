"""Near duplicates: MinHash with banding (Broder 1997; Leskovec, Rajaraman & Ullman 2020, chapter 3).

A document is the set of its sequences of `words` words. Two documents are candidates where all `rows` hashes of one of
`bands` bands are equal: with Jaccard similarity s that happens with probability 1 - (1 - s^rows)^bands. Candidates are
then compared on all their hashes, and stay candidates from an estimated `similarity` on (standard error
sqrt(s (1 - s) / (bands · rows)), 0.025 at most with the defaults). Connected documents are one group; its first stays.

datatrove computes the signatures and finds the candidates. Its last two stages are replaced: they take every candidate
for a duplicate, which with bands that are short enough for 20% of edited words would remove unrelated texts; they keep
an arbitrary document of a group; and they do not say of which document another one is a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    HashConfig,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
)
from datatrove.utils.text import simplify_text

from kamerton.files import write_json
from kamerton.text.corpus.executor import Pool, Report, run_stage
from kamerton.text.corpus.hashing import grams, word_hashes
from kamerton.text.corpus.options import NearDuplicates
from kamerton.text.corpus.whole_corpus import Copies, Place, WholeStep, drop, save, save_names
from kamerton.text.corpus.words import Words

SEED = 1


def config(options: NearDuplicates) -> MinhashConfig:
    """datatrove's settings: 32-bit hashes, of which hundreds are needed for each document."""
    return MinhashConfig(
        options.words, options.bands, options.rows, SEED, hash_config=HashConfig(precision=32, hash_fc="sha1")
    )


def caught(similarity: float, options: NearDuplicates) -> float:
    """The probability that two documents of this Jaccard similarity are candidates."""
    return 1 - (1 - similarity**options.rows) ** options.bands


class Signatures(MinhashDedupSignature):
    """datatrove's signatures; beside its sorted bands, every document's whole signature and id are kept.

    Sequences of words are hashed all at once; datatrove hashes them one by one, with xxhash as it was before version 4.
    """

    def __init__(self, folder: str, options: NearDuplicates) -> None:
        super().__init__(f"{folder}/bands", config(options), language=Words())
        self.notes, self.fewest = folder, options.fewest

    def get_shingles(self, text: str) -> np.ndarray:
        self.at += 1
        words = self.word_tokenizer.word_tokenize(simplify_text(text, self.config.norm_config))
        if len(words) < self.fewest:
            words = []
        found = grams(word_hashes(words), self.config.n_grams, self.config.n_grams)
        return np.unique(found[0]).reshape(-1, 1) if found else np.empty((0, 1), np.uint64)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        bands = super().get_signature(shingles)
        self.rows.append(np.array(bands, np.uint32).ravel())
        self.numbers.append(self.at)
        return bands

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        self.at, names = -1, []
        self.rows: list[np.ndarray] = []
        self.numbers: list[int] = []

        def named() -> Iterator[Document]:
            for doc in data:
                names.append(doc.id)
                yield doc

        super().run(named(), rank, world_size)
        folder, size = Path(self.notes), self.num_hashes
        save(folder / f"{rank:05d}.signatures.npy", np.array(self.rows, np.uint32).reshape(-1, size))
        save(folder / f"{rank:05d}.numbers.npy", np.array(self.numbers, np.int64))
        save_names(folder, rank, names)


class Near(WholeStep):
    """Nearly equal documents."""

    options: NearDuplicates

    def sketch(self, folder: Path) -> PipelineStep:
        return Signatures(str(folder), self.options)

    def decide(self, folder: Path, tasks: int, pool: Pool, report: Report) -> None:
        finder = MinhashDedupBuckets(
            str(folder / "bands"), str(folder / "pairs"), config=config(self.options), lines_to_buffer=1000
        )
        run_stage(pool, [finder], self.options.bands, folder / "finding", report)
        estimate = Estimate(folder, tasks)
        groups = Groups()
        compared = 0
        for band in range(self.options.bands):
            pairs = np.fromfile(folder / "pairs" / f"{band:05d}_00.dups", np.uint32).reshape(-1, 4)
            for group in _runs(pairs):
                compared += _join(group, groups, estimate, self.options.similarity)
        drop(folder, tasks, groups.copies(), "nearly equal to an earlier document")
        write_json(folder / "near.json", {"compared": compared, "copies": len(groups.copies())}, lasting=False)

    def judging(self, stage: Path, folder: Path) -> PipelineStep:
        return Copies(str(stage), self.label, str(folder))


def _runs(pairs: np.ndarray) -> Iterator[list[Place]]:
    """datatrove writes a band's equal documents as a chain of neighbours: each chain as one list."""
    run: list[Place] = []
    for rank_a, number_a, rank_b, number_b in pairs.tolist():
        a, b = (rank_a, number_a), (rank_b, number_b)
        if run and run[-1] == a:
            run.append(b)
            continue
        if run:
            yield run
        run = [a, b]
    if run:
        yield run


MOST_COMPARED = 64
"""In a band's group, a document is compared with so many others before it; other bands give it other company."""


def _join(group: list[Place], groups: Groups, estimate: Estimate, least: float) -> int:
    """Join what is similar in a band's group; returns how many pairs were compared."""
    compared = 0
    for at in range(1, len(group)):
        others = [p for p in group[max(0, at - MOST_COMPARED) : at] if groups.root(p) != groups.root(group[at])]
        if not others:
            continue
        found = estimate(group[at], others)
        compared += len(others)
        for other, similarity in zip(others, found, strict=True):
            if similarity >= least:
                groups.join(other, group[at])
    return compared


class Estimate:
    """Similarities from whole signatures, which are read from disk where they are asked for."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self.signatures = [np.load(folder / f"{rank:05d}.signatures.npy", mmap_mode="r") for rank in range(tasks)]
        numbers = [np.load(folder / f"{rank:05d}.numbers.npy") for rank in range(tasks)]
        self.row = [dict(zip(found.tolist(), range(len(found)), strict=True)) for found in numbers]

    def _of(self, place: Place) -> np.ndarray:
        return self.signatures[place[0]][self.row[place[0]][place[1]]]

    def __call__(self, place: Place, others: list[Place]) -> np.ndarray:
        """The share of equal hashes of a document and each of others, (N,)."""
        return (np.stack([self._of(other) for other in others]) == self._of(place)).mean(axis=1)


class Groups:
    """Connected documents; the root of each group is its first document."""

    def __init__(self) -> None:
        self.above: dict[Place, Place] = {}

    def root(self, place: Place) -> Place:
        """The first document of a document's group."""
        path = []
        while (up := self.above.get(place, place)) != place:
            path.append(place)
            place = up
        for passed in path:
            self.above[passed] = place
        return place

    def join(self, a: Place, b: Place) -> None:
        """The two are in one group."""
        first, second = sorted((self.root(a), self.root(b)))
        if first != second:
            self.above[second] = first

    def copies(self) -> dict[Place, Place]:
        """Every document but the first of each group, with that first one."""
        return {place: self.root(place) for place in list(self.above)}

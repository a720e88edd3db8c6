"""What a search finds, and several searches' findings joined into one ranking by reciprocal rank fusion (Cormack et al.
2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamerton.retrieval.passages import Passage

RRF = 60
"""The constant of reciprocal rank fusion."""
COLUMNS = ["source", "title", "heading", "page", "number", "text"]
"""The columns of the index's table that make a hit."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        passage: the passage.
        source: its document's identity.
        score: similarity (vector), BM25 (full-text) or the sum of reciprocal ranks (hybrid); higher is better.
    """

    passage: Passage
    source: str
    score: float

    @property
    def place(self) -> str:
        """Where it stands, in few words: title and headings, or the file's name, and the page."""
        name = self.passage.context or Path(self.source).name.partition("#")[0]
        return f"{name}, page {self.passage.page}" if self.passage.page else name


def hit_of(row: dict[str, Any], score: float) -> Hit:
    """A row of `COLUMNS` as a hit."""
    return Hit(Passage(**{name: row[name] for name in COLUMNS[1:]}), row["source"], float(score))


def fuse(*rankings: Sequence[Hit]) -> list[Hit]:
    """Reciprocal rank fusion: a passage scores the sum of 1 / (60 + its rank) over the rankings that hold it."""
    scores: dict[tuple[str, int], float] = {}
    found: dict[tuple[str, int], Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            key = hit.source, hit.passage.number
            found.setdefault(key, hit)
            scores[key] = scores.get(key, 0.0) + 1 / (RRF + rank)
    return [
        Hit(found[key].passage, found[key].source, scores[key])
        for key in sorted(scores, key=lambda key: (-scores[key], key))
    ]

"""Documents → passages: pieces of at most so many tokens of the encoder, cut where a reader would pause.

The end of a paragraph is the best place, then the end of a sentence, then a space; only what has none of these in
reach (a table of numbers, a language without spaces) is cut between two tokens. Neighbours share `overlap` tokens, so
that a sentence on a border stands whole in one of them. A passage never crosses a page or a heading, and never holds
more than the encoder reads: nothing is cut silently.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kamerton.retrieval.documents import Document

Offsets = Callable[[str], Sequence[tuple[int, int]]]
"""Text → the (start, end) of each of its tokens in characters, in order."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document.

    Attributes:
        text: what it says, as it stands in the document.
        title, heading, page: where it stands.
        number: its place among the passages of its document, from 0.
    """

    text: str
    title: str
    heading: str
    page: int
    number: int

    @property
    def context(self) -> str:
        """Title and heading: what tells the search what the passage is about when its own words do not."""
        return " › ".join(part for part in (self.title, self.heading) if part)


@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents are cut.

    Attributes:
        size: the longest passage, in tokens of the encoder.
        overlap: tokens that neighbours share.
    """

    size: int = 160
    overlap: int = 32


def cut(document: Document, cutting: Cutting, offsets: Offsets) -> list[Passage]:
    """The passages of a document, in order; together they hold all its text."""
    passages: list[Passage] = []
    for part in document.parts:
        for start, end in spans(part.text, cutting, offsets):
            text = part.text[start:end].strip()
            if text:
                passages.append(Passage(text, document.title, part.heading, part.page, len(passages)))
    return passages


def spans(text: str, cutting: Cutting, offsets: Offsets) -> list[tuple[int, int]]:
    """Where a text is cut: (start, end) in characters. Spans cover all of it, and overlap.

    A span ends at the last good place in its second half. The next one starts at the first good place among the last
    `overlap` tokens of this one, or at its end where there is none.
    """
    tokens = offsets(text)
    if len(tokens) <= cutting.size:
        return [(0, len(text))]
    starts = [start for start, _ in tokens]
    # a place is the number of the first token behind it
    levels = [sorted({bisect_left(starts, m.end()) for m in re.finditer(p, text)}) for p in _PLACES]
    out: list[tuple[int, int]] = []
    first = 0
    while first < len(tokens):
        last = first + cutting.size
        if last >= len(tokens):
            out.append((starts[first] if out else 0, len(text)))
            break
        end = _last(levels, first + (cutting.size + 1) // 2, last) or last
        out.append((starts[first] if out else 0, starts[end]))
        first = _first(levels[:2], max(end - cutting.overlap, first + 1), end) or end
    return out


_PLACES = (r"\n\s*\n\s*", r"(?:[.!?…][\"'»”’)\]]*\s+|[。！？]\s*|\n\s*)", r"\s+")
"""Where a reader pauses, best first: behind a paragraph, behind a sentence or line, behind a word."""


def _last(levels: Sequence[Sequence[int]], low: int, high: int) -> int | None:
    """The last place in [low, high] of the best level that has one."""
    for places in levels:
        i = bisect_right(places, high)
        if i and places[i - 1] >= low:
            return places[i - 1]
    return None


def _first(levels: Sequence[Sequence[int]], low: int, high: int) -> int | None:
    """The first place in [low, high) of any level."""
    found = [places[i] for places in levels if (i := bisect_left(places, low)) < len(places) and places[i] < high]
    return min(found, default=None)

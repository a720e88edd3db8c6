"""Metrics of tagged sentences: entity F1 as conlleval and seqeval count it, and the share of right tags.

An entity is a run of words with one type; it is right only if its first word, its last word and its type all are. The
default reads tags as conlleval does (Tjong Kim Sang & De Meulder 2003), which takes IOB1, IOB2, IOBES and BILOU as they
come and begins an entity wherever one can begin. `entity-f1:iob2` (or iobes) is strict: what breaks the scheme is
no entity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from kamerton.errors import TaskError
from kamerton.evaluation.metrics import Metric, MicroF1
from kamerton.recipe_errors import closest
from kamerton.tasks.example import Example

Entity = tuple[int, int, str]
"""First word, last word, type."""

_TAG = re.compile(r"([BIOESLUM])(?:[-_](.*))?", re.DOTALL)
_CONLL = {"L": "E", "U": "S", "M": "I"}  # BILOU's letters, and BMES's


def split_tag(tag: str) -> tuple[str, str]:
    """`B-person` → ("B", "person"); a tag without a scheme's letter is inside of its own type."""
    match = _TAG.fullmatch(tag)
    if match is None:
        return "I", tag
    letter = _CONLL.get(match.group(1), match.group(1))
    return letter, "" if letter == "O" else match.group(2) or "_"


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a sentence as conlleval reads its tags."""
    found: set[Entity] = set()
    begin, before = 0, ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        letter, kind = split_tag(tag)
        last, of = before
        ends = last in "ES" or (last in "BI" and letter in "BSO") or (last != "O" and of != kind)
        if last != "O" and ends:
            found.add((begin, place - 1, of))
        if letter in "BS" or (letter != "O" and (last in "ESO" or of != kind)):
            begin = place
        before = (letter, kind)
    return found


def _strict(scheme: str) -> Callable[[Sequence[str]], set[Entity]]:
    """Entities that follow a scheme to the letter."""

    def read(tags: Sequence[str]) -> set[Entity]:
        found: set[Entity] = set()
        begin: int | None = None
        pairs = [*(split_tag(tag) for tag in tags), ("O", "")]
        for place, (letter, kind) in enumerate(pairs):
            last, of = pairs[place - 1] if place else ("O", "")
            goes_on = letter in ("I", "E") and of == kind and last in ("B", "I") and begin is not None
            if scheme == "iobes":
                if letter == "S":
                    found.add((place, place, kind))
                if goes_on and letter == "E" and begin is not None:
                    found.add((begin, place, kind))
                begin = place if letter == "B" else begin if goes_on and letter == "I" else None
                continue
            if begin is not None and not (goes_on and letter == "I"):
                found.add((begin, place - 1, of))
                begin = None
            if begin is None and letter == "B":
                begin = place
        return found

    return read


SCHEMES: dict[str, Callable[[Sequence[str]], set[Entity]]] = {
    "": entities, "iob2": _strict("iob2"), "iobes": _strict("iobes"),
}  # fmt: skip
"""How tags are read, by name."""


def said(answer: str, example: Example) -> tuple[list[str], list[str]]:
    """The tags of an answer and of its example; an answer that is too short or too long is filled with O, or cut."""
    wanted = example.answers[0].split()
    given = answer.split()[: len(wanted)]
    return [*given, *(["O"] * (len(wanted) - len(given)))], wanted


class EntityF1(MicroF1):
    """F1 over the entities of all sentences (micro), 0 where none is right. S = 3: right, answered, true entities."""

    def __init__(self, name: str, scheme: str) -> None:
        if scheme.lower() not in SCHEMES:
            mend = closest(scheme.lower(), [s for s in SCHEMES if s])
            raise TaskError(f"unknown scheme {scheme!r} of entity-f1", where="metrics", mend=mend)
        self.name, self._read = name, SCHEMES[scheme.lower()]

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 3)."""
        rows = np.zeros((len(answers), 3))
        for row, answer, example in zip(rows, answers, examples, strict=True):
            given, wanted = (self._read(tags) for tags in said(answer, example))
            row[:] = len(given & wanted), len(given), len(wanted)
        return rows


class TagAccuracy:
    """The share of words with the right tag, over all sentences. S = 2: right words, words."""

    name = "tag-accuracy"
    higher_is_better = True
    range = (0.0, 1.0)

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 2)."""
        pairs = [said(answer, example) for answer, example in zip(answers, examples, strict=True)]
        right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
        return np.array([(r, len(wanted)) for r, (_, wanted) in zip(right, pairs, strict=True)], dtype=np.float64)

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:  # noqa: ARG002 (contract)
        """Right over all."""
        sums = np.asarray(sums, dtype=np.float64)
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)


METRICS: dict[str, Callable[[str, str, Sequence[Example] | None], Metric]] = {
    "entity-f1": lambda name, parameter, _examples: EntityF1(name, parameter),
    "tag-accuracy": lambda _name, _parameter, _examples: TagAccuracy(),
}

"""What people judge and what they say of it, as plain records.

A label holds numbers, one for each answer that was shown, in the order in which they were shown; more is better:

| kind | shown | scores |
| --- | --- | --- |
| `comparison` | two answers | 1 0, or 0 1; a tie is 0.5 0.5; both bad is 0 0 |
| `ranking` | k answers | how many of the others are worse, ties as half: k − 1 … 0 |
| `rating` | one answer | 1 to 10 on the page; any finite number where it was imported |
| `thumbs` | one answer | 1 (up) or 0 (down) |

A skipped question is a label without scores.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Literal, get_args

from kamerton.errors import KamertonError
from kamerton.tasks.example import Conversation, Message, fingerprint

Kind = Literal["comparison", "ranking", "rating", "thumbs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Source = Literal["label", "chat"]
"""Where an item comes from: it was put there to be labelled, or it happened in a chat."""

NAME_LENGTH = 60
RATINGS = range(1, 11)
TIE, BAD = (0.5, 0.5), (0.0, 0.0)
"""Scores of a comparison in which neither answer won."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that people judge.

    Attributes:
        text: what they see.
        model: what wrote it, which they do not see; None where that is not known.
        about: what else is known (settings, tokens), as JSON.
    """

    text: str
    model: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation up to the model's turn, with answers to judge.

    Attributes:
        key: the same for the same item, so that adding it twice adds it once.
        name: its id in the file that it came from.
        id: its number in the store; 0 before it is stored.
    """

    key: str
    name: str
    prompt: Conversation
    answers: tuple[Candidate, ...]
    source: Source = "label"
    id: int = 0


@dataclass(frozen=True, slots=True)
class Label:
    """What one labeller said of the answers of one item.

    Attributes:
        id: its number in the store.
        item: the item's number.
        shown: numbers of the item's answers, in the order in which they were shown.
        scores: one for each of `shown`; None: skipped.
        given: when, in seconds since 1970.
        seconds: how long it took, where that is known.
        undone: when it was taken back; None where it stands.
    """

    id: int
    item: int
    labeller: str
    kind: Kind
    shown: tuple[int, ...]
    scores: tuple[float, ...] | None
    given: float
    seconds: float | None = None
    undone: float | None = None

    @property
    def by_answer(self) -> dict[int, float]:
        """The scores by the answer's number in its item; empty where it was skipped."""
        return dict(zip(self.shown, self.scores or (), strict=False))


def make_item(
    prompt: Conversation, answers: Sequence[Candidate], *, name: str = "", source: Source = "label",
    key: str | None = None,
) -> Item:  # fmt: skip
    """An item whose key is made of its prompt, its answers and their models, unless another is given.

    Raises:
        KamertonError: a text holds half of a surrogate pair, which no file can store.
    """
    texts = [name, *(turn.content for turn in prompt), *(part for a in answers for part in (a.text, a.model or ""))]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        mend = "write the whole character"
        raise KamertonError("has half of a surrogate pair", where=ascii(name) if name else None, mend=mend) from None
    said = sorted((a.text, a.model or "") for a in answers)
    key = key or fingerprint([source, [asdict(turn) for turn in prompt], said])[:32]
    return Item(key, name, prompt, tuple(answers), source)


def prompt_from(record: Sequence[Mapping[str, Any]]) -> Conversation:
    """A conversation from what `asdict` and JSON made of it."""
    return tuple(Message(**turn) for turn in record)


def questions_of(item: Item, kind: Kind) -> list[tuple[int, ...]]:
    """What is asked about an item: the numbers of the answers that stand together, each set once.

    Answers with the same text are one answer: of two there is nothing to compare.
    """
    texts = [answer.text.strip() for answer in item.answers]
    different = [i for i, text in enumerate(texts) if text not in texts[:i]]
    if kind == "comparison":
        return list(combinations(different, 2))
    if kind == "ranking":
        return [tuple(different)] if len(different) > 1 else []
    return [(i,) for i in different]


def ranked(groups: Sequence[Sequence[int]]) -> dict[int, float]:
    """Scores of a ranking, best group first: for each answer the number of worse ones, ties as half."""
    scores: dict[int, float] = {}
    left = sum(map(len, groups))
    for group in groups:
        left -= len(group)
        scores |= dict.fromkeys(group, left + (len(group) - 1) / 2)
    return scores


def check_scores(kind: Kind, shown: Sequence[int], scores: Sequence[float] | None, answers: int) -> None:
    """Refuse a label that its kind does not have.

    Args:
        answers: how many the item has.

    Raises:
        KamertonError: another number of answers, numbers out of range, an answer twice, or one that is not there.
    """

    def check(fine: bool, what: str) -> None:
        if not fine:
            raise KamertonError(what, where=f"a label of kind {kind}", mend="send one that the kind has")

    check(kind in KINDS, f"there is no kind {kind!r}")
    check(len(set(shown)) == len(shown) and all(0 <= i < answers for i in shown), "names answers that are not there")
    sizes = {"comparison": len(shown) == 2, "ranking": len(shown) >= 2}
    check(sizes.get(kind, len(shown) == 1), f"does not judge {len(shown)} answers")
    if scores is None:
        return
    check(len(scores) == len(shown) and all(map(math.isfinite, scores)), "has not one number for each answer")
    if kind == "comparison":
        check(tuple(scores) in {(1.0, 0.0), (0.0, 1.0), TIE, BAD}, f"cannot be {list(scores)}")
    elif kind == "thumbs":
        check(scores[0] in (0.0, 1.0), f"cannot be {scores[0]}")
    elif kind == "ranking":
        worse = [sum((b < a) + (b == a) / 2 for b in scores) - 0.5 for a in scores]
        check(worse == list(scores), f"cannot be {list(scores)}")


def labeller_name(text: str) -> str:
    """A labeller's name as it is stored: spaces evened out, in Unicode's composed form.

    Raises:
        KamertonError: it is empty, too long, or has characters that cannot be seen.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        mend = f"give one of 1 to {NAME_LENGTH} letters, digits and signs"
        raise KamertonError("is no name for a labeller", where=ascii(text[:NAME_LENGTH]), mend=mend)
    return name

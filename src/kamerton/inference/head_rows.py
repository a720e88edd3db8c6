"""Examples → rows of tokens for an encoder's head: pairs of segments, choices, windows over long texts.

One text or a pair is one row; a question with choices one row for each choice; a context or a sentence that is longer
than the window several rows that share `stride` tokens, so that everything in it stands in one of them. Tokens remember
the characters they come from, so that spans are exact pieces of the context and words get their first token's tag.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kamerton.base.encoder import Head, Padded, pad
from kamerton.base.task_head import texts_of
from kamerton.errors import ModelError
from kamerton.tasks.example import Example

WINDOW = 384
"""Tokens of a window over a context, as in Devlin et al. 2019; the model's positions bound it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence that the encoder reads.

    Attributes:
        ids, types: T token ids, and 0 or 1 for the segment (empty where the model has none).
        spans: of a span head, T pairs of characters of the context, None outside of it; of tagging likewise of the
            sentence.
        words: of tagging, for each token the number of the word whose first token in this row it is, else -1.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    spans: tuple[tuple[int, int] | None, ...] = ()
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of one example; `cut` says whether some of its text is in none of them."""

    rows: tuple[Row, ...]
    cut: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


class Rows:
    """Makes rows of examples.

    Args:
        tokenizer: of the encoder; a fast one.
        head: what reads them.
        limit: longest row in tokens; None: no bound but the window of a span head.
        window, stride: of a span head the tokens of a row; of both kinds of windows those that neighbours share.

    Raises:
        ModelError: the tokenizer is not a fast one, which alone knows characters.
    """

    def __init__(self, tokenizer: Any, head: Head, *, limit: int | None, window: int = WINDOW, stride: int = 128):
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError("the encoder has no fast tokenizer", where="base", mend="use another encoder")
        # a fast tokenizer keeps how it cut last, which would change the renderer's fingerprint
        self.tokenizer, self.head, self.limit = copy.deepcopy(tokenizer), head, limit
        self.window = window if limit is None else min(window, limit)
        self.stride = stride

    def example(self, example: Example) -> Encoded:
        """The rows of an example; what it answers is not looked at."""
        texts = texts_of(example)
        if self.head.kind == "choice":
            *first, last = texts
            # SWAG: the second segment is the beginning of the sentence with the choice behind it
            pairs = [(first[0], f"{last} {c}") if first else (last, c) for c in example.choices]
            made = [self._whole(*pair) for pair in pairs]
            return Encoded(tuple(row for row, _ in made), any(cut for _, cut in made))
        if self.head.kind == "span":
            return self._windows(*(texts if len(texts) == 2 else ("", texts[0])))
        if self.head.kind == "tagging":
            return self._sentence(example.words or tuple(texts[0].split()))
        row, cut = self._whole(*texts)
        return Encoded((row,), cut)

    def _whole(self, first: str, second: str | None = None) -> tuple[Row, bool]:
        """One text or a pair; the longer of a pair is cut first where they are too long."""
        made = self._tokenise(first, second)
        cut = self.limit is not None and len(made["input_ids"]) > self.limit
        if cut:
            made = self._tokenise(first, second, truncation="longest_first", max_length=self.limit)
        return Row(tuple(made["input_ids"]), tuple(made.get("token_type_ids", ()))), cut

    def _tokenise(self, first: str, second: str | None, **how: Any) -> Any:
        return self.tokenizer(first, second, verbose=False, **how)

    def _overlap(self, room: int) -> int:
        """Tokens that windows with so much room for text share: as asked, and less than the room."""
        return max(0, min(self.stride, room // 2))

    def _windows(self, question: str, context: str) -> Encoded:
        """A question before each window over its context; a question that takes more than half of one is cut."""
        asked = self._tokenise(question, None, add_special_tokens=False, return_offsets_mapping=True)
        cut = len(asked["input_ids"]) > self.window // 2
        if cut:
            question = question[: asked["offset_mapping"][self.window // 2 - 1][1]]
            asked = self._tokenise(question, None, add_special_tokens=False)  # may come back as a token more
        room = self.window - len(asked["input_ids"]) - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 2:
            raise ModelError(f"a window of {self.window} tokens has no room for a context", where="window",
                             mend="raise limit or head.window")  # fmt: skip
        made = self._tokenise(
            question, context, truncation="only_second", max_length=self.window, stride=self._overlap(room),
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        rows = []
        for i, ids in enumerate(made["input_ids"]):
            places = [
                (start, end) if which == 1 and end > start else None
                for which, (start, end) in zip(made.sequence_ids(i), made["offset_mapping"][i], strict=True)
            ]
            rows.append(Row(tuple(ids), _types(made, i), tuple(places)))
        return Encoded(tuple(rows), cut)

    def _sentence(self, words: Sequence[str]) -> Encoded:
        """A sentence that is tagged, its words with spaces between; several windows where it is too long."""
        of_character = [n for n, word in enumerate(words) for _ in range(len(word) + 1)]  # the space behind included
        how: dict[str, Any] = {}
        if self.limit is not None:
            room = self.limit - self.tokenizer.num_special_tokens_to_add(pair=False)
            how = {"truncation": True, "max_length": self.limit, "stride": self._overlap(room)}
        made = self._tokenise(
            " ".join(words), None, return_overflowing_tokens=True, return_offsets_mapping=True, **how
        )  # fmt: skip
        rows = []
        for i, ids in enumerate(made["input_ids"]):
            numbers, seen = [], set[int]()
            for which, (start, end) in zip(made.sequence_ids(i), made["offset_mapping"][i], strict=True):
                # some tokenizers count the space before a word to its token: a token's last character is its word's
                word = of_character[end - 1] if which == 0 and end > start else -1
                numbers.append(word if word not in seen else -1)
                seen.add(word)
            rows.append(Row(tuple(ids), _types(made, i), words=tuple(numbers)))
        return Encoded(tuple(rows))


def _types(made: Any, place: int) -> tuple[int, ...]:
    return tuple(made["token_type_ids"][place]) if "token_type_ids" in made else ()


def padded(rows: Sequence[Row], pad_id: int) -> Padded:
    """Rows as one rectangle."""
    return pad([r.ids for r in rows], [r.types for r in rows] if rows[0].types else None, pad_id)


def groups(encoded: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
    """Numbers of examples in groups of at most so many tokens, padding counted; about equally long ones together."""

    def longest(i: int) -> int:
        return max(len(row.ids) for row in encoded[i].rows)

    out: list[list[int]] = []
    rows = 0
    for i in sorted(range(len(encoded)), key=lambda i: (longest(i), i)):
        rows += len(encoded[i].rows)
        if not out or rows * longest(i) > max_tokens:
            out.append([])
            rows = len(encoded[i].rows)
        out[-1].append(i)
    return out


def run(
    encoded: Sequence[Encoded], logits: Callable[[Padded], Tensor], pad_id: int, max_tokens: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """The head's logits for every example: its number, and one tensor for each of its rows, padding cut off.

    They come to the processor a pass at a time: answers are read from them number by number.
    """
    for group in groups(encoded, max_tokens):
        rows = [row for i in group for row in encoded[i].rows]
        out = logits(padded(rows, pad_id)).cpu()
        place = 0
        for i in group:
            mine = encoded[i].rows
            found = out[place : place + len(mine)]
            place += len(mine)
            yield i, [x[: len(row.ids)] if out.ndim == 3 else x for x, row in zip(found, mine, strict=True)]

"""What tokenizers make of a text: tokens a word, bytes a token, what is unknown, what comes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kamerton.text.lines import Seen, lines, no_text

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass
class Measures:
    """Figures of one tokenizer on one text.

    Attributes:
        tokenizer, text: their names.
        vocabulary: tokens that the tokenizer has.
        fertility: tokens a word (letters and digits; its punctuation counts as tokens but as no word).
        bytes_per_token, characters_per_token: of the text, line ends left out.
        unknown: share of tokens that stand for unknown text.
        split_words: share of words that are more than one token.
        round_trip: share of lines that come back letter for letter.
        notes: what was wrong in the text as it was read.
    """

    tokenizer: str
    text: str
    vocabulary: int
    fertility: float
    bytes_per_token: float
    characters_per_token: float
    unknown: float
    split_words: float
    round_trip: float
    notes: list[str] = field(default_factory=list)


def measure(name: str, tokenizer: Any, label: str, files: Sequence[Path]) -> Measures:
    """One tokenizer on one text.

    Raises:
        KamertonError: there is no text.
    """
    tokens = unknown = words = split = size = characters = count = back = 0
    unk = tokenizer.unk_token_id
    known: dict[str, bool] = {}
    # a tokenizer that writes ▁ before every text makes a word of its own accord one behind a space
    gap = "" if tokenizer.tokenize("a")[:1] in (["▁"], ["▁a"]) else " "
    seen = Seen()
    for line in lines(files, seen):
        text = line.decode("utf-8", "replace")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens += len(ids)
        unknown += sum(i == unk for i in ids) if unk is not None else 0
        found = _WORD.findall(text)
        words += len(found)
        for word in found:
            if word not in known:
                known[word] = len(tokenizer(f"{gap}{word}", add_special_tokens=False)["input_ids"]) > 1
            split += known[word]
        size, characters, count = size + len(line), characters + len(text), count + 1
        back += tokenizer.decode(ids) == text
    if not count:
        raise no_text(files)
    return Measures(
        name, label, len(tokenizer), tokens / max(words, 1), size / max(tokens, 1), characters / max(tokens, 1),
        unknown / max(tokens, 1), split / max(words, 1), back / count, seen.notes(),
    )  # fmt: skip

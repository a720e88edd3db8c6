"""Long documents in pieces for the tokenizer, which keeps about 150 bytes for each byte that it reads at once.

A document is cut only where its tokens stay what they are. That is known of byte-level tokenizers that split text as
GPT-2 does (Radford et al. 2019): between a character that is not white and a space or an end of a line they always
split, and look neither back nor further. Documents of other tokenizers are not cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

PIECE = 1 << 16
"""Characters of a piece, and as many more as there are before the next place to cut at."""
BATCH = 1 << 20
"""Bytes of text that the tokenizer reads at once, where it is not one piece that has more."""
# U+180E was white in older versions of Unicode
_CUT = re.compile("[^\\s\u180e](?=[ \n])")


class Piece(NamedTuple):
    """A part of a document; `held`: of one that is held out; `last`: the document ends with it."""

    text: str
    held: bool
    last: bool


def can_be_cut(tokenizer: Any) -> bool:
    """Whether the tokens of a text are those of its pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    about = json.loads(backend.to_str())
    steps = about["pre_tokenizer"] or {}
    *before, bytes_ = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    # tokens that a text may name outright reach over no white, nor take any with them
    named = all(
        not (token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]))
        for token in about["added_tokens"]
    )
    return (
        named and about["normalizer"] is None and about["model"]["type"] == "BPE" and not about["model"]["dropout"]
        and bytes_.get("type") == "ByteLevel" and bytes_["use_regex"] and not bytes_["add_prefix_space"]
        and all(step["type"] == "Digits" for step in before)
    )  # fmt: skip


def cut(text: str, least: int = PIECE) -> Iterator[str]:
    """A text in pieces of at least so many characters, the last one of fewer."""
    start = 0
    while found := _CUT.search(text, start + least - 1):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def batches(documents: Iterable[tuple[str, bool]], cutting: bool, size: int = BATCH) -> Iterator[list[Piece]]:
    """Documents, each with whether it is held out, in batches of about so many bytes.

    Args:
        cutting: long documents are cut into pieces.
    """
    batch, count = list[Piece](), 0
    for text, held in documents:
        parts = list(cut(text)) if cutting and len(text) > PIECE else [text]
        for number, part in enumerate(parts, start=1):
            batch.append(Piece(part, held, number == len(parts)))
            count += len(part.encode("utf-8", "surrogatepass"))
            if count >= size:
                yield batch
                batch, count = [], 0
    if batch:
        yield batch

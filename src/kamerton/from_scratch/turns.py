"""Conversations from a corpus: a passage is what the user says, the one behind it is the answer.

In a play, where passages are speeches, that is a dialogue: who is given a speaker and a line answers with the next
speaker and the next line. Training and validation conversations come from the training part of the text, the test ones
from what is held out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kamerton.errors import RecipeError
from kamerton.files import moved_into, write_jsonl
from kamerton.from_scratch.recipe import TurnsSpec
from kamerton.pretraining.tokens import drawn
from kamerton.text.lines import documents

Conversation = list[dict[str, str]]


def passages(text: str, spec: TurnsSpec) -> Iterator[str | None]:
    """The passages of a document in their order; None where one does not fit and a conversation ends."""
    pattern = None if spec.speaker is None else re.compile(spec.speaker)
    for part in text.split(spec.separator):
        passage = part.strip()
        fits = spec.fewest_characters <= len(passage) <= spec.most_characters
        yield passage if fits and (pattern is None or pattern.match(passage)) else None


def conversations(texts: Iterable[str], spec: TurnsSpec) -> Iterator[Conversation]:
    """Every passage that has one behind it asks once: conversations begin at each, and end with an answer."""
    for text in texts:
        said = list(passages(text, spec))
        for start in range(len(said) - 1):
            run: list[str] = []
            for passage in said[start : start + spec.turns]:
                if passage is None:
                    break
                run.append(passage)
            run = run[: len(run) // 2 * 2]
            if run:
                yield [{"role": ("user", "assistant")[i % 2], "content": passage} for i, passage in enumerate(run)]


def write_turns(text: Path, folder: Path, spec: TurnsSpec) -> dict[str, int]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, chat messages a line; gives how many there are.

    Args:
        text: the folder with `train.jsonl` and `held_out.jsonl`.

    Raises:
        RecipeError: there are none in one of the two.
    """
    rows: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    for part in ("train", "held_out"):
        for number, one in enumerate(conversations((t.decode() for t in documents([text / f"{part}.jsonl"])), spec)):
            split = "test" if part == "held_out" else "validation" if drawn(number, spec.validation) else "train"
            rows[split].append({"messages": one})
    empty = [split for split, found in rows.items() if not found]
    if empty:
        mend = "try another separator or speaker, or larger most_characters"
        raise RecipeError(f"no conversations for {' and '.join(empty)}", mend=mend)
    with moved_into(folder, last="train.jsonl") as partial:
        partial.mkdir(exist_ok=True)
        for split, found in rows.items():
            write_jsonl(partial / f"{split}.jsonl", found)
    return {split: len(found) for split, found in rows.items()}

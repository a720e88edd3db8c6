"""The corpus in two parts: what is learned from and what judges, the same for every model of a path.

Held out are whole documents, of a single one its end (`kamerton.pretraining.tokens`). A passage of the training part
(between empty lines; where a document has none, a line) that shares words in a row with the held-out part is left out
of it, by the test that decontaminates corpora. Passages of fewer words stay: everybody says "Ay, my lord".
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import moved_into
from kamerton.pretraining.tokens import split_documents
from kamerton.text.lines import documents

_GAP = re.compile(r"(\n[ \t]*\n\s*)")


@dataclass
class Counts:
    """Documents and bytes of a part; passages that were left out of it, and their bytes."""

    documents: int = 0
    bytes: int = 0
    left_out: int = 0
    left_out_bytes: int = 0


def divide(
    corpus: Path, folder: Path, share: float, words: int, watch: Callable[[float, str], None]
) -> tuple[Counts, Counts]:
    """Write `train.jsonl` and `held_out.jsonl`.

    Args:
        corpus: JSON lines of documents.
        share: that is held out.
        words: in a row, that no passage of the training part may share with the held-out part.
        watch: told the share that is done, and words.

    Returns:
        The training part and the held-out part in numbers.

    Raises:
        TaskError: there is too little text for two parts.
    """
    train, held = Counts(), Counts()
    kept: list[str] = []
    for text, out in _marked(corpus, share):
        if out:
            held.documents, held.bytes = held.documents + 1, held.bytes + len(text.encode())
            kept.append(text)
    with tempfile.TemporaryDirectory() as place, moved_into(folder, last="train.jsonl") as partial:
        partial.mkdir()
        (partial / "held_out.jsonl").write_text("".join(map(_line, kept)), encoding="utf-8")
        shares = _shared(kept, words, Path(place))
        size, done = corpus.stat().st_size, 0
        with (partial / "train.jsonl").open("w", encoding="utf-8") as file:
            for text, out in _marked(corpus, share):
                done += len(text.encode())
                if out:
                    continue
                left = _without(text, shares, train)
                if left.strip():
                    train.documents, train.bytes = train.documents + 1, train.bytes + len(left.encode())
                    file.write(_line(left))
                watch(
                    min(done / max(size, 1), 1.0),
                    f"{train.documents:,} documents, {train.left_out:,} passages left out",
                )
        if not train.documents or not held.documents:
            part = "learn from" if not train.documents else "hold out"
            raise TaskError(
                f"no text is left to {part}", where=corpus, mend="give more texts, or another held_out share"
            )
    return train, held


def _line(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False) + "\n"


def _marked(corpus: Path, share: float) -> Iterator[tuple[str, bool]]:
    return split_documents((text.decode() for text in documents([corpus])), share)


def _shared(texts: list[str], words: int, place: Path) -> Callable[[str], bool]:
    """Whether a passage shares words in a row with one of the texts."""
    from datatrove.data import Document

    from kamerton.text.corpus.decontamination import DecontaminateStep
    from kamerton.text.corpus.options import Decontaminate

    options = Decontaminate.model_validate({"recipes": "held out", "words": words})
    step = DecontaminateStep(str(place), "held-out", options, {"held out": texts}, place / "index")

    def shares(passage: str) -> bool:
        document: Any = Document(text=passage, id="passage", metadata={})
        return step.judge(document) is not None

    return shares


def _without(text: str, shares: Callable[[str], bool], counts: Counts) -> str:
    """A document without the passages that are shared."""
    parts = _GAP.split(text)
    if len(parts) == 1:
        parts = re.split(r"(\n)", text)
    out: list[str] = []
    for i in range(0, len(parts), 2):  # a passage, and the gap behind it
        if shares(parts[i]):
            counts.left_out, counts.left_out_bytes = counts.left_out + 1, counts.left_out_bytes + len(parts[i].encode())
            continue
        out += parts[i : i + 2]
    return "".join(out) if len(out) < len(parts) else text

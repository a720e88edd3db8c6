"""Raw texts for language modelling: from files, or from a task's examples; and their pieces as tokens.

A `.txt` or `.md` file is one text; a `.jsonl` file has one in the field `text` of each line. A folder stands for all of
these below it. Each may be packed (`.txt.gz`, `.jsonl.zst`, …). What it leaves out: cleaning and removal of duplicates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kamerton.errors import TaskError
from kamerton.files import read_all
from kamerton.rendering import Rendered, Renderer
from kamerton.tasks.example import Example
from kamerton.text.lines import BROKEN, PACKED, kind_of, opened, unreadable

SUFFIXES = (".txt", ".md", ".jsonl")
HELD_OUT = 0.05
"""The share of texts that validation is computed on, where they come from files."""


def read_texts(path: str | Path) -> list[str]:
    """All texts of a file or folder, in the order of the files' names.

    Raises:
        KamertonError: as `iter_texts`.
    """
    return list(iter_texts(path))


def iter_texts(path: str | Path) -> Iterator[str]:
    """The texts of a file or folder one by one, in the order of the files' names; one file is in memory at a time.

    Raises:
        KamertonError: nothing there, a file that is not UTF-8 or not what its name says, a line that has no text, or
            no text at all.
    """
    found = False
    for file in text_files(path):
        for text in _read(file):
            found = True
            yield text
    if not found:
        raise TaskError("has no text", where=path, mend="give texts that are not empty")


def text_files(path: str | Path) -> list[Path]:
    """The files that `iter_texts` reads.

    Raises:
        TaskError: nothing there, or a file of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise TaskError("no such file or folder", where=path, mend="give texts: FILE, or texts: FOLDER")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if kind_of(p) in SUFFIXES and p.is_file())
    if not files or any(kind_of(p) not in SUFFIXES for p in files):
        message = "is not a file of texts" if files else "has no files of texts"
        raise TaskError(message, where=path, mend=f"give {', '.join(SUFFIXES)}, packed ({', '.join(PACKED)}) or not")
    return files


def skipped_note(path: str | Path) -> list[str]:
    """How many files of a folder `iter_texts` passes over, in words; hidden ones are not counted."""
    path = Path(path)
    others = [
        p for p in path.rglob("*")
        if kind_of(p) not in SUFFIXES and p.is_file() and not any(n.startswith(".") for n in p.relative_to(path).parts)
    ]  # fmt: skip
    if not others:
        return []
    kinds = sorted({p.suffix or "no suffix" for p in others})
    shown = ", ".join([*kinds[:5], *(["…"] if len(kinds) > 5 else [])])
    files = "1 file was" if len(others) == 1 else f"{len(others):,} files were"
    return [f"{files} not read ({shown}): texts are {', '.join(SUFFIXES)}, packed or not; folder {path}"]


def _read(file: Path) -> Iterator[str]:
    at = 0
    try:
        with opened(file) as stream:
            if kind_of(file) != ".jsonl":
                content = (read_all(stream) if file.suffix in PACKED else stream.read()).decode()
                if content.strip():
                    yield content.replace("\r\n", "\n").replace("\r", "\n")
                return
            for number, line in enumerate(stream, start=1):
                if text := _text(line.decode(), f"{file}:{number}"):
                    yield text
                at += len(line)
    except UnicodeDecodeError as error:
        raise TaskError(f"is not UTF-8 (byte {at + error.start})", where=file, mend="save it as UTF-8") from None
    except BROKEN as error:
        raise unreadable(error, file) from None


def _text(line: str, where: str) -> str:
    """The text of a record; "" where it or its line is empty."""
    if not line.strip():
        return ""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise TaskError("has no field text", where=where, mend='write {"text": "…"}')
    return text if text.strip() else ""


def example_text(example: Example) -> str:
    """A training example as plain text: what was said, turn by turn, and the answer; instructions are left out."""
    turns = [m.content for m in example.messages if m.role != "system"]
    return "\n".join([*turns, example.answers[0]])


def pieces(renderer: Renderer, text: str, length: int | None) -> list[Rendered]:
    """A text as rows of at most `length` ≥ 2 tokens, with its end token.

    A row starts with the last token of the one before it, so that every token of the text but the first is a target
    exactly once.
    """
    end = renderer.tokenizer.eos_token_id
    tokens = [*renderer.raw(text), renderer.end_id if end is None else int(end)]
    step = len(tokens) if length is None else length - 1
    rows = [tokens[i : i + step + 1] for i in range(0, len(tokens) - 1, step)]
    return [Rendered(tuple(row), (0.0,) + (1.0,) * (len(row) - 1)) for row in rows]


def hold_out(texts: Sequence[list[Rendered]]) -> tuple[list[Rendered], list[Rendered]]:
    """Rows for training and for validation: whole texts where there are several, else the end of the only one.

    The same for every seed of a comparison, so that all are judged by the same texts.
    """
    if len(texts) > 1:
        count = max(1, round(HELD_OUT * len(texts)))
        picked = set(np.random.default_rng(0).permutation(len(texts))[:count].tolist())
        train = [row for i, rows in enumerate(texts) if i not in picked for row in rows]
        return train, [row for i in sorted(picked) for row in texts[i]]
    rows = texts[0]
    count = max(1, round(HELD_OUT * len(rows))) if len(rows) > 1 else 0
    return rows[: len(rows) - count], rows[len(rows) - count :]

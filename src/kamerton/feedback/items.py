"""Files of prompts and answers → items to label.

| field | is |
| --- | --- |
| `prompt` | text, or turns that end with the user's; `messages` is another name for it |
| `answers` | texts, or objects with `text` and `model`, or one object that maps models to texts |
| `id` | a name, which comes back in exports |

What `kamerton feedback export` writes is such a file; its model is the one that the answers were sampled from. Labels
that people wrote into its lines are not read here, only counted: `kamerton feedback import` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamerton.errors import KamertonError, TaskError
from kamerton.feedback.lines import Line, prompt_of, read_lines
from kamerton.feedback.records import Candidate, Item, make_item
from kamerton.tasks.example import Conversation, Message
from kamerton.tasks.readers import shown

_SHAPE = '"answers": [{"text": "…", "model": "…"}, …]'
_TEXT = ("text", "answer", "content", "completion")


@dataclass(frozen=True)
class ReadItems:
    """Items of a file; `repeated`: lines that said the same again; `labelled`: lines that hold a label."""

    items: tuple[Item, ...]
    repeated: int
    labelled: int


def read_items(path: str | Path) -> ReadItems:
    """The items of a file of JSON lines.

    Raises:
        TaskError: a line is broken, with its place; or there is none.
    """
    lines = read_lines(Path(path))
    found = {item.key: item for item in map(item_of, lines)}
    if not found:
        raise TaskError("has no records", where=shown(Path(path)), mend="check the file, or name another one")
    labelled = sum(any(line.record.get(name) is not None for name in ("chosen", "scores")) for line in lines)
    return ReadItems(tuple(found.values()), len(lines) - len(found), labelled)


def item_of(line: Line) -> Item:
    """One line as an item.

    Raises:
        TaskError: it has no prompt or no answers, with its place.
    """
    answers = line.record.get("answers")
    sampled = line.record.get("sampled")
    whole = sampled.get("model") if isinstance(sampled, Mapping) else None
    if isinstance(answers, Mapping):
        answers = [{"text": text, "model": model} for model, text in answers.items()]
    if not isinstance(answers, list) or not answers:
        raise TaskError("answers is not a list of answers", where=line.place, mend=f"write {_SHAPE}")
    found = tuple(_candidate(answer, whole, line.place) for answer in answers)
    name = line.record.get("id")
    prompt = question_of(line)
    try:
        return make_item(prompt, found, name="" if name is None else str(name))
    except KamertonError as error:
        raise TaskError(error.message, where=line.place, mend=error.mend) from None


def question_of(line: Line) -> Conversation:
    """The conversation of a line, whose `prompt` (or `messages`) may be text or turns.

    Raises:
        TaskError: it has none that ends with a user's turn.
    """
    given = line.record.get("prompt", line.record.get("messages"))
    if isinstance(given, str) and given.strip():
        return (Message("user", given),)
    return prompt_of(Line({"prompt": given}, line.place))


def read_questions(path: str | Path) -> list[Conversation]:
    """Prompts to sample answers to: JSON lines with `prompt` or `messages`, or a text file with a prompt a line.

    Raises:
        TaskError: a line is broken, or there is none.
    """
    file = Path(path)
    if file.suffix in (".jsonl", ".ndjson", ".json"):
        found = [question_of(line) for line in read_lines(file)]
    else:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise TaskError(f"cannot be read: {error.strerror}", where=shown(file), mend="check the path") from None
        except UnicodeDecodeError:
            raise TaskError("is not UTF-8", where=shown(file), mend="save the file as UTF-8") from None
        found = [(Message("user", line.strip()),) for line in text.split("\n") if line.strip()]
    if not found:
        raise TaskError("has no prompts", where=shown(file), mend="check the file, or name another one")
    return list(dict.fromkeys(found))


def _candidate(answer: Any, whole: Any, place: str) -> Candidate:
    model, about = whole, {}
    text = answer
    if isinstance(answer, Mapping):
        key = next((name for name in _TEXT if name in answer), None)
        text = None if key is None else answer[key]
        model = answer.get("model", whole)
        about = {name: value for name, value in answer.items() if name not in (key, "model")}
    if not isinstance(text, str) or not text.strip():
        raise TaskError("an answer is not a text", where=place, mend=f"write {_SHAPE}")
    if model is not None and not isinstance(model, str):
        raise TaskError("the model of an answer is not a name", where=place, mend=f"write {_SHAPE}")
    return Candidate(text, model, about)

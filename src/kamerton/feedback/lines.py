"""The lines of the two files of feedback, checked one by one.

| file | a line |
| --- | --- |
| for labelling | id, prompt (turns), answers, chosen, scores; `sampled`: where the answers come from |
| preferences | id, prompt, graded: a list of answers with scores, best first |

People fill in `chosen`, the number of the best answer from 0, or `scores`, a number for each answer (`null` for none).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import parse_json
from kamerton.tasks.example import Conversation, Graded
from kamerton.tasks.halves import replace_halves
from kamerton.tasks.preference_shape import averaged, number
from kamerton.tasks.readers import Row, shown
from kamerton.tasks.turns import message_of


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: its object and its place."""

    record: dict[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers to a question as people judged them, best first."""

    id: str
    prompt: Conversation
    graded: tuple[Graded, ...]

    @property
    def key(self) -> tuple[Conversation, frozenset[str]]:
        """What a newer label replaces: the same question with the same answers."""
        return self.prompt, frozenset(one.answer for one in self.graded)

    def record(self) -> dict[str, Any]:
        """As a line of the file of preferences."""
        return {
            "id": self.id, "prompt": [asdict(turn) for turn in self.prompt],
            "graded": [asdict(one) for one in self.graded],
        }  # fmt: skip


def read_lines(path: Path) -> list[Line]:
    """The objects of a file of JSON lines.

    Raises:
        TaskError: it cannot be read, or a line is no JSON object; with its place.
    """
    name = shown(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"cannot be read: {error.strerror}", where=name, mend="check the path") from None
    lines = []
    for index, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        place = f"{name}:{index}"
        try:
            text = raw.decode("utf-8")
            if not text.strip():
                continue
            record = parse_json(text)
        except UnicodeDecodeError:
            raise TaskError("is not UTF-8", where=place, mend="save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            message = f"broken JSON at column {error.colno}: {error.msg}"
            raise TaskError(message, where=place, mend="write one complete JSON object a line") from None
        except RecursionError:
            raise TaskError("is nested too deeply", where=place, mend="write it with fewer levels") from None
        if b"\\ud" in raw.lower() and replace_halves(record)[1]:
            raise TaskError("has half of a surrogate pair", where=place, mend="write the whole character")
        if not isinstance(record, dict):
            mend = 'write each line as {"prompt": …, "answers": …}'
            raise TaskError("is not an object", where=place, mend=mend)
        lines.append(Line(record, place))
    return lines


def prompt_of(line: Line) -> Conversation:
    """The question of a line.

    Raises:
        TaskError: it has none that is a list of turns ending with the user's.
    """
    turns = line.record.get("prompt")
    mend = 'write "prompt": [{"role": "user", "content": "…"}]'
    if not isinstance(turns, list) or not turns:
        raise TaskError("prompt is not a list of turns", where=line.place, mend=mend)
    row = Row({}, line.place)
    made = tuple(message_of(turn, row) for turn in turns)
    if made[-1].role != "user" or not made[-1].content.strip():
        raise TaskError("prompt does not end with a user's turn", where=line.place, mend=mend)
    return made


def answers_of(line: Line) -> list[str]:
    """The answers of a line for labelling.

    Raises:
        TaskError: they are not at least two different texts.
    """
    answers = line.record.get("answers")
    mend = "leave the answers as they were exported"
    if not isinstance(answers, list) or not all(isinstance(text, str) and text.strip() for text in answers):
        raise TaskError("answers is not a list of texts", where=line.place, mend=mend)
    if len(answers) < 2 or len(set(answers)) < len(answers):
        raise TaskError("answers are not at least two different texts", where=line.place, mend=mend)
    return answers


def label_of(line: Line) -> Judged | None:
    """What people said of a line's answers; None where they said nothing.

    Raises:
        TaskError: a field is missing or wrong, with its place.
    """
    prompt, answers = prompt_of(line), answers_of(line)
    chosen, scores = line.record.get("chosen"), line.record.get("scores")
    if chosen is not None and scores is not None:
        raise TaskError("has both chosen and scores", where=line.place, mend="fill in one of them")
    graded: list[Graded] = []
    if chosen is not None:
        if not isinstance(chosen, int) or isinstance(chosen, bool) or not 0 <= chosen < len(answers):
            mend = f"write the number of the best answer, 0 to {len(answers) - 1}"
            raise TaskError(f"chosen is {json.dumps(chosen, ensure_ascii=False)}", where=line.place, mend=mend)
        # the others are not told apart, so they make no pairs with each other
        graded = [Graded(text, float(i == chosen)) for i, text in enumerate(answers)]
    elif scores is not None:
        if not isinstance(scores, list) or len(scores) != len(answers):
            mend = f"write {len(answers)} numbers, null for an answer without one"
            raise TaskError("scores is not a list of one number for each answer", where=line.place, mend=mend)
        given = [(text, score) for text, score in zip(answers, scores, strict=True) if score is not None]
        graded = [Graded(text, _score(score, line.place)) for text, score in given]
    return Judged(str(line.record.get("id", "")), prompt, averaged(graded)) if graded else None


def judged_of(line: Line) -> Judged:
    """A line of the file of preferences.

    Raises:
        TaskError: it is not in that format, with its place.
    """
    graded, mend = line.record.get("graded"), "give another file with --into"
    if "graded" not in line.record:
        raise TaskError("has no graded answers, so it is no file of labels", where=line.place, mend=mend)
    items = graded if isinstance(graded, list) else []
    if not items or not all(isinstance(item, dict) and isinstance(item.get("answer"), str) for item in items):
        raise TaskError("graded is not a list of answers with scores", where=line.place, mend=mend)
    found = averaged(Graded(item["answer"], _score(item.get("score"), line.place)) for item in items)
    return Judged(str(line.record.get("id", "")), prompt_of(line), found)


def _score(value: Any, place: str) -> float:
    if isinstance(value, str):  # a number in quotes is a slip of the hand
        raise TaskError(f"a score is {value!r}, not a number", where=place, mend="write it without quotes")
    return number(value, place, "score")

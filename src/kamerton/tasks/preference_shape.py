"""Rows with judged answers → the conversation, the answers best first, and by how much the first one is better.

| form | fields |
| --- | --- |
| pairs | chosen and rejected, perhaps margin; prompt, or what both have in common at their start |
| ranked | prompt, ranked (a list of answers, best first) |
| graded | prompt, graded (a list of `{"answer": …, "score": …}`) |
| scores | prompt, completion (or answer), score: a row for each answer |
| thumbs | prompt, completion (or answer), label (true: thumb up): a row for each answer |

An answer is text, or the assistant's turns. Of whole conversations the last turn is the answer.

Rows of scores and thumbs with the same prompt are one example, because a score means the same in every row. Pairs and
lists stay as they are: what won one pair may be worse than what lost another.

A record that breaks its form (a key is missing, a score is no number) is an error at its line. One that is whole and
teaches nothing (equal answers, an empty answer, no common start) is left out: big sets have a few, and nobody can mend
a set on the hub. How many and where is a note.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import parse_json
from kamerton.recipe import TaskSpec
from kamerton.tasks.columns import Columns, text_of
from kamerton.tasks.example import Graded, Message
from kamerton.tasks.readers import Row
from kamerton.tasks.turns import message_of

QUESTION = ("prompt", "question", "instruction")
"""Fields that can hold the prompt."""
_ANSWER = ("completion", "answer")
_THUMBS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "up": 1.0, "down": 0.0}
_ITEM = ("answer", "completion", "text", "content")


class LeftOut(Exception):
    """A record that is whole and teaches nothing; its text says why."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a row says.

    Attributes:
        turns: the conversation up to the answer, without the task's instruction.
        graded: the answers, best first.
        accepted: those of them that are good enough to be references; a row of thumbs down has none.
        margin: by how much the first of two answers is better, where the row says so.
    """

    turns: list[Message]
    graded: tuple[Graded, ...]
    accepted: tuple[str, ...]
    margin: float | None = None


def find_form(columns: Columns, known: Iterable[str], rows: Sequence[Row], *, stated: bool = False) -> str | None:
    """The form of rows whose fields are `known`; None where they hold no judged answers.

    Unless the shape is stated, scores and thumbs are taken for such only where nothing else is likely: with a column
    `prompt`, and labels that are all true or false.
    """
    fields = set(known)
    if {"chosen", "rejected"} <= fields:
        return "pairs"
    for name in ("ranked", "graded"):
        if name in fields:
            return name
    if not fields & set(_ANSWER) or not (stated or "prompt" in fields):
        return None
    if "score" in fields:
        return "scores"
    if "label" in fields and (stated or _all_true_or_false(columns, rows)):
        return "thumbs"
    return None


def _all_true_or_false(columns: Columns, rows: Sequence[Row]) -> bool:
    values = [columns.value(row, "label") for row in rows[:1000]]
    return all(isinstance(v, bool) or (isinstance(v, str) and v.strip().lower() in ("true", "false")) for v in values)


class Judgements:
    """Reads the judged answers of rows.

    Args:
        spec: the task of the recipe.
        columns: which column is which.
        rows: rows that tell the form.

    Attributes:
        form: see the table above.
        joined: whether rows with the same prompt are one example.
        question: the field that holds the prompt; None where it is the common start of chosen and rejected.

    Raises:
        TaskError: the columns make no form, or the recipe asks for what judged answers do not have.
    """

    def __init__(self, spec: TaskSpec, columns: Columns, rows: Sequence[Row]) -> None:
        self._spec, self._columns = spec, columns
        known = {*columns.mapped, *columns.guessed}
        found = find_form(columns, known, rows, stated=True)
        have = f"the file has: {', '.join(columns.available)}"
        if found is None:
            message = "preference needs chosen and rejected, ranked, graded, or an answer with its score or label"
            mend = f"map them: columns: {{chosen: …, rejected: …}}; {have}"
            raise spec.error(("shape",), message, mend=mend)
        self.form = found
        self.joined = found in ("scores", "thumbs")
        self.question = self._question()
        if self.question is None and spec.template is None and found != "pairs":
            raise spec.error(("shape",), "preference needs a prompt", mend=f"map it: columns: {{prompt: …}}; {have}")
        if spec.merge_answers:
            mend = "leave it out; rows of scores and labels with the same prompt are one example already"
            raise spec.error(("merge_answers",), "is not for judged answers", mend=mend)

    def _question(self) -> str | None:
        columns = self._columns
        mapped = next((name for name in QUESTION if name in columns.mapped), None)
        if mapped is not None:
            return mapped
        # Alpaca's input is no prompt where there is an instruction
        names = [n for n in QUESTION if n in columns.guessed]
        if "instruction" in names and "prompt" in names and columns.guessed["prompt"].source == ("input",):
            names.remove("prompt")
        return names[0] if names else None

    def read(self, row: Row, asked: Callable[[Row], list[Message]], system: Callable[[Row], list[Message]]) -> Judged:
        """What a row says.

        Args:
            row: the row.
            asked: the conversation that its question fields and the template make.
            system: its system message, put before a whole conversation that has none.

        Raises:
            TaskError: the record breaks its form, with its place.
            LeftOut: it teaches nothing.
        """
        if self.form == "pairs":
            turns, answers = self._pair(row, asked, system)
            scores, margin = [1.0, 0.0], self._margin(row)
            accepted = answers[:1]
        else:
            turns, margin = _prompt(row, asked), None
            answers, scores = getattr(self, f"_{self.form}")(row)
            accepted = []
        if self.form in ("pairs", "ranked") and len(set(answers)) < len(answers):
            raise LeftOut("the two answers are equal" if len(answers) == 2 else "two answers are equal")
        graded = averaged(Graded(answer, score) for answer, score in zip(answers, scores, strict=True))
        return Judged(turns, graded, tuple(accepted) or self.accepted(graded), margin)

    def accepted(self, graded: Sequence[Graded]) -> tuple[str, ...]:
        """The answers that are references: those with the best score; of thumbs those with more up than down."""
        if self.form == "thumbs":
            return tuple(g.answer for g in graded if g.score > 0.5)
        return tuple(g.answer for g in graded if g.score == graded[0].score)

    # the forms, each: the answers and their scores

    def _pair(
        self, row: Row, asked: Callable[[Row], list[Message]], system: Callable[[Row], list[Message]]
    ) -> tuple[list[Message], list[str]]:
        sides = [self._given(row, name) for name in ("chosen", "rejected")]
        sides = [[side] if isinstance(side, Mapping) else side for side in sides]
        explicit = self.question is not None or self._spec.template is not None
        if isinstance(sides[0], list) != isinstance(sides[1], list):
            mend = "write both as text, or both as turns"
            raise TaskError("of chosen and rejected one is text and one is turns", where=row.place, mend=mend)
        if not isinstance(sides[0], list):
            texts = [text_of(side, row, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True)]
            if explicit:
                return _prompt(row, asked), [self._answer(text) for text in texts]
            return self._common_text(texts, row, system)
        made = [[message_of(turn, row) for turn in side] for side in sides]
        if all(turn.role == "assistant" for turns in made for turn in turns):
            if not explicit:
                mend = "name the prompt's column: columns: {prompt: …}, or begin both with the user's turn"
                raise TaskError("chosen and rejected have no user's turn", where=row.place, mend=mend)
            return _prompt(row, asked), [self._answer(_joined(turns)) for turns in made]
        return self._common_turns(made, row, asked, system)

    def _common_text(
        self, texts: list[str], row: Row, system: Callable[[Row], list[Message]]
    ) -> tuple[list[Message], list[str]]:
        if all(text.startswith(("\n\nHuman:", "Human:")) for text in texts):
            message = r"chosen and rejected are conversations of \n\nHuman: … \n\nAssistant: … turns"
            raise self._spec.error(("reader",), f"is not given, and {message}", mend="set reader: hh-rlhf")
        if not all(text.strip() for text in texts):
            raise LeftOut("an answer is empty")
        if texts[0].strip() == texts[1].strip():
            raise LeftOut("the two answers are equal")
        start = common_start(*texts)
        prompt = texts[0][:start].strip()
        if not prompt:
            raise LeftOut("chosen and rejected have no common start to be the prompt")
        return [*system(row), Message("user", prompt)], [self._answer(text[start:]) for text in texts]

    def _common_turns(
        self, made: list[list[Message]], row: Row, asked: Callable[[Row], list[Message]],
        system: Callable[[Row], list[Message]],
    ) -> tuple[list[Message], list[str]]:  # fmt: skip
        (head, answer), (other, worse) = (_last_turn(turns) for turns in made)
        if answer is None or worse is None:
            raise LeftOut("a conversation does not end with the assistant's turn")
        if head != other:
            raise LeftOut("the conversations differ before their last turn")
        if self._spec.template is not None:
            mend = "leave the template out, or map chosen and rejected to the answers alone"
            raise self._spec.error(("template",), "has nothing to write: the conversations are whole", mend=mend)
        if self.question is not None:
            # beside whole conversations some sets repeat the question, or the turns before the answer, as the prompt
            said = [t for t in asked(row) if t.role != "system"]
            if [t for t in head if t.role != "system"][-len(said) :] != said:
                raise LeftOut("the prompt is not the end of what the conversations have in common")
        turns = head if head and head[0].role == "system" else [*system(row), *head]
        return turns, [self._answer(answer), self._answer(worse)]

    def _ranked(self, row: Row) -> tuple[list[str], list[float]]:
        answers = [
            self._answer(_text(item, row, "ranked")) for item in self._listed(row, "ranked", '["best", "worse"]')
        ]
        if len(answers) < 2:
            raise LeftOut("ranked has fewer than two answers")
        return answers, [float(n) for n in reversed(range(len(answers)))]

    def _graded(self, row: Row) -> tuple[list[str], list[float]]:
        shape = '[{"answer": "…", "score": 4}, …]'
        answers, scores = [], []
        for item in self._listed(row, "graded", shape):
            key = next((k for k in _ITEM if isinstance(item, Mapping) and item.get(k) is not None), None)
            if key is None or item.get("score") is None:
                missing = "answer" if key is None else "score"
                raise TaskError(f"an item of graded has no {missing}", where=row.place, mend=f"write {shape}")
            answers.append(self._answer(_text(item[key], row, "answer")))
            scores.append(number(item["score"], row.place, "score"))
        if not answers:
            raise LeftOut("graded has no answers")
        return answers, scores

    def _scores(self, row: Row) -> tuple[list[str], list[float]]:
        answer = self._one_answer(row)
        return [answer], [number(self._given(row, "score"), row.place, "score")]

    def _thumbs(self, row: Row) -> tuple[list[str], list[float]]:
        answer = self._one_answer(row)
        given = text_of(self._given(row, "label"), row, "label").strip().lower()
        if given not in _THUMBS:
            message = f"label is {given!r}, which is neither a thumb up nor down"
            raise TaskError(message, where=row.place, mend="write true or false (1 or 0, up or down)")
        return [answer], [_THUMBS[given]]

    # values

    def _given(self, row: Row, field: str) -> Any:
        value = self._columns.value(row, field)
        if value is None:
            raise TaskError(f"{field} is missing", where=row.place, mend="write it, or remove the record")
        return value

    def _one_answer(self, row: Row) -> str:
        field = next(name for name in _ANSWER if name in self._columns)
        return self._answer(_text(self._given(row, field), row, field))

    def _answer(self, text: str) -> str:
        text = text.strip() or self._spec.empty_answer or ""
        if not text:
            raise LeftOut("an answer is empty")
        return text

    def _margin(self, row: Row) -> float | None:
        value = self._columns.value(row, "margin") if "margin" in self._columns else None
        if value is None or value == "":
            return None
        margin = number(value, row.place, "margin")
        if margin < 0:
            mend = "swap chosen and rejected, or write 0"
            raise TaskError(f"margin is {margin:g}, below 0", where=row.place, mend=mend)
        return margin

    def _listed(self, row: Row, field: str, shape: str) -> list[Any]:
        value = self._given(row, field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = parse_json(value)
            except (json.JSONDecodeError, RecursionError):
                raise TaskError(f"{field} is not JSON", where=row.place, mend=f"write {shape}") from None
        if not isinstance(value, list):
            raise TaskError(f"{field} is not a list", where=row.place, mend=f"write {shape}")
        return value


def number(value: Any, place: str, field: str) -> float:
    """A finite number, perhaps written as text.

    Raises:
        TaskError: it is none, with its place.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        mend = rf"write a number, or take it out of the text: {field}: {{from: …, pattern: '(\d+)'}}"
        raise TaskError(f"{field} is {value!r}, not a number", where=place, mend=mend)
    return found


def averaged(graded: Iterable[Graded]) -> tuple[Graded, ...]:
    """The answers best first, each once, with the mean of its scores; of equal ones the earlier comes first."""
    scores: dict[str, list[float]] = defaultdict(list)
    for one in graded:
        scores[one.answer].append(one.score)
    return tuple(sorted((Graded(a, math.fsum(s) / len(s)) for a, s in scores.items()), key=lambda g: -g.score))


def common_start(first: str, second: str) -> int:
    """How many characters two texts have in common at their start, without cutting a word that goes on in either."""
    pairs = enumerate(zip(first, second, strict=False))
    end = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    while end and first[end - 1].isalnum() and any(text[end : end + 1].isalnum() for text in (first, second)):
        end -= 1
    return end


def _prompt(row: Row, asked: Callable[[Row], list[Message]]) -> list[Message]:
    turns = asked(row)
    if turns and turns[-1].role == "assistant":
        mend = "end it with the user's turn"
        raise TaskError("the prompt ends with the assistant's turn", where=row.place, mend=mend)
    return turns


def _last_turn(turns: Sequence[Message]) -> tuple[list[Message], str | None]:
    """The turns before the last answer, and that answer, which may stand in several turns of the assistant's."""
    end = len(turns)
    while end and turns[end - 1].role == "assistant":
        end -= 1
    return list(turns[:end]), _joined(turns[end:]) if end < len(turns) else None


def _joined(turns: Sequence[Message]) -> str:
    return "\n\n".join(text for turn in turns if (text := turn.content.strip()))


def _text(value: Any, row: Row, field: str) -> str:
    """An answer: text, a turn, or a list of the assistant's turns."""
    turns = [value] if isinstance(value, Mapping) and "role" in value else value
    if isinstance(turns, Mapping):
        return text_of(next((turns[key] for key in _ITEM if key in turns), None), row, field)
    if isinstance(turns, list):
        made = [message_of(turn, row) for turn in turns]
        if any(turn.role != "assistant" for turn in made):
            mend = "keep the assistant's turns there, and the others in the prompt"
            raise TaskError(f"{field} has turns that are not the assistant's", where=row.place, mend=mend)
        return _joined(made)
    return text_of(turns, row, field)

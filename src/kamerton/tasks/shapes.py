"""Rows → examples, in the shapes that people have their data in.

| shape | fields |
| --- | --- |
| messages | messages (`role`/`content`, or ShareGPT's `from`/`value`); the last assistant turn is the answer |
| choice | question (or text, prompt) and choices (a list), answer (the right one: its text, letter or index) |
| label | text and label; the labels of the task become the choices |
| question | question, answer (one, a list, or SQuAD's object of texts), context |
| instruction | instruction, input, output (Alpaca) |
| prompt | prompt, completion (text, or lists of messages as TRL has them) |
| tags | tokens (a list of words) and tags (as many) |
| preference | answers that were judged: pairs, rankings, scores, thumbs; see preference_shape.py |

A `template` writes the question from any columns and takes the place of the question's field. The shape is found from
the fields that are there (those that the recipe maps come first), or stated by `shape`. `reasoning`, `system`, `group`
and `id` can go with any shape.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import parse_json
from kamerton.recipe import TaskSpec
from kamerton.tasks.columns import Columns, text_of
from kamerton.tasks.example import Example, Message, SplitName
from kamerton.tasks.judged import judged_examples
from kamerton.tasks.preference_shape import Judgements, find_form
from kamerton.tasks.readers import Row
from kamerton.tasks.segments import Segments, words_and_tags
from kamerton.tasks.turns import message_of

METRICS: dict[str, tuple[str, ...]] = {
    "messages": ("rouge-l", "token-f1"),
    "choice": ("accuracy",),
    "label": ("accuracy", "macro-f1"),
    "question": ("squad-em", "token-f1"),
    "instruction": ("rouge-l", "token-f1"),
    "prompt": ("exact-match", "token-f1"),
    "preference": ("rouge-l", "token-f1"),
    "tags": ("entity-f1", "tag-accuracy"),
}
_QUESTION = {"choice": ("question", "text", "prompt"), "label": ("text",), "question": ("question",)}
_QUESTION |= {"instruction": ("instruction",), "prompt": ("prompt",), "tags": ("tokens",)}
_ANSWER = {"label": "label", "choice": "answer", "question": "answer", "instruction": "output", "prompt": "completion"}
_ANSWER |= {"tags": "tags"}


@dataclass(frozen=True, slots=True)
class Asked:
    """An example on its way into a split, with the value of the column that keeps groups together."""

    example: Example
    by: str


class Shaper:
    """Turns rows into examples.

    Args:
        spec: the task of the recipe.
        rows: all rows of all splits; labels that are not given are collected from them.

    Attributes:
        shape: the shape that was found.
        labels: raw label → readable name, in the order of the choices; empty for other shapes.

    Raises:
        TaskError: the columns make no shape, or a label is outside the given ones (with its line).
    """

    def __init__(self, spec: TaskSpec, rows: list[Row]) -> None:
        self.spec = spec
        available = dict.fromkeys(name for row in rows[:1000] for name in row.values)
        self.columns = Columns(spec, available)
        self.shape = spec.shape or self._find_shape(rows)
        self.judgements = Judgements(spec, self.columns, rows) if self.shape == "preference" else None
        if self.judgements is None:
            self._require()
        if spec.split.by is not None and spec.split.by not in available:
            mend = f"the file has: {', '.join(available)}"
            raise spec.error(("split", "by"), f"no column {spec.split.by!r}", mend=mend)
        self.labels = self._find_labels(rows) if self.shape == "label" else {}
        self.segments = Segments(spec, self.columns, self.shape)
        self.readable = tuple(dict.fromkeys(self.labels.values()))
        if "{labels}" in (spec.instruction or "") and not self.labels:
            raise spec.error(("instruction",), "has {labels}, and the task has none", mend="write the labels out")
        self.instruction = (spec.instruction or "").replace("{labels}", ", ".join(self.readable)).strip()

    def example(self, row: Row) -> Asked:
        """One row as an example.

        Raises:
            TaskError: the question or the answer is empty, or a value has the wrong type; with the row's place.
            LeftOut: the row's judged answers teach nothing.
        """
        make: dict[str, Callable[[Row], tuple[list[Message], list[str], tuple[str, ...]]]] = {
            "messages": self._messages,
            "choice": self._choice,
            "label": self._label,
            "tags": self._tags,
        }
        judged = None if self.judgements is None else self.judgements.read(row, self._asked, self._system)
        if judged is None:
            turns, answers, choices = make.get(self.shape, self._plain)(row)
        else:
            turns, answers, choices = judged.turns, list(judged.accepted), ()
        answers = list(dict.fromkeys(answer for answer in answers if answer))
        if not answers and judged is None:
            if self.spec.empty_answer is None:
                mend = "write the answer, or set empty_answer: to the text that stands for none"
                raise TaskError("the answer is empty", where=row.place, mend=mend)
            answers = [self.spec.empty_answer]
        if not any(turn.content.strip() for turn in turns if turn.role == "user"):
            raise TaskError("the question is empty", where=row.place, mend="write it, or remove the record")
        by = self.spec.split.by
        messages = tuple(self._instruct(turns))
        example = Example(
            id=self.columns.text(row, "id") or PurePath(row.place).name,
            messages=messages,
            answers=tuple(answers),
            choices=choices,
            reasoning=self.columns.text(row, "reasoning") or None,
            group=self.columns.text(row, "group"),
            graded=() if judged is None else judged.graded,
            margin=None if judged is None else judged.margin,
            **self.segments.read(row, messages, answers),
        )
        return Asked(example, "" if by is None else text_of(row.values.get(by), row, by))

    # shapes, each: the conversation without the task's instruction, the accepted answers, the choices

    def _plain(self, row: Row) -> tuple[list[Message], list[str], tuple[str, ...]]:
        return self._asked(row), self._answers(self.columns.value(row, _ANSWER[self.shape]), row), ()

    def _asked(self, row: Row) -> list[Message]:
        """The conversation up to the answer, of shapes that have a question and no choices."""
        listed = self.shape in ("prompt", "preference") and not self.spec.template
        prompt = self.columns.value(row, "prompt") if listed else None
        if isinstance(prompt, list):
            return [message_of(turn, row) for turn in prompt]
        return [*self._system(row), Message("user", self._question(row))]

    def _label(self, row: Row) -> tuple[list[Message], list[str], tuple[str, ...]]:
        raw = self.columns.text(row, "label")
        if raw == "":
            raise TaskError("the label is empty", where=row.place, mend="write one, or remove the record")
        if raw not in self.labels:
            mend = f"use one of them, or add {raw!r} to labels: {_few(list(self.labels))}"
            raise TaskError(f"label {raw!r} is not among the given ones", where=row.place, mend=mend)
        turns = [*self._system(row), Message("user", self._question(row))]
        return turns, [self.labels[raw]], self.readable if self.spec.choices else ()

    def _choice(self, row: Row) -> tuple[list[Message], list[str], tuple[str, ...]]:
        choices, letters = _choices(self.columns.value(row, "choices"), row)
        given = self.columns.value(row, "answer")
        if given is None or given == "":
            return [Message("user", "?")], [], choices  # the caller reports the empty answer
        first = self.spec.first_choice
        index = next((n for n, c in enumerate(choices) if isinstance(given, str) and c == given.strip()), None)
        if index is None and str(given).strip() in letters:
            index = letters.index(str(given).strip())
        if index is None and re.fullmatch(r"-?\d+(\.0+)?", str(given).strip()):
            index = int(float(str(given))) - first
        if index is None or not 0 <= index < len(choices):
            message = f"answer {given!r} is none of the {len(choices)} choices"
            mend = "give its text, letter or index; first_choice: 1 if they count from one"
            raise TaskError(message, where=row.place, mend=mend)
        listed = "\n".join(f"{letters[n]}. {choice}" for n, choice in enumerate(choices))
        turns = [*self._system(row), Message("user", self._question(row, {"choices": listed}))]
        return turns, [choices[index]], choices if self.spec.choices else ()

    def _tags(self, row: Row) -> tuple[list[Message], list[str], tuple[str, ...]]:
        words, tags = words_and_tags(self.columns, row, self.spec)
        return [*self._system(row), Message("user", " ".join(words))], [" ".join(tags)], ()

    def _messages(self, row: Row) -> tuple[list[Message], list[str], tuple[str, ...]]:
        turns = self.columns.value(row, "messages")
        if isinstance(turns, str):
            try:
                turns = parse_json(turns)
            except (json.JSONDecodeError, RecursionError):
                mend = 'write [{"role": "user", "content": "…"}, …]'
                raise TaskError("messages is not JSON", where=row.place, mend=mend) from None
        if not isinstance(turns, list) or not turns:
            mend = 'write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
            raise TaskError("messages is not a list of turns", where=row.place, mend=mend)
        made = [message_of(turn, row) for turn in turns]
        if made[-1].role != "assistant":
            message = f"the last turn is the {made[-1].role}'s, so there is no answer"
            raise TaskError(message, where=row.place, mend="end the conversation with an assistant turn")
        system = [] if made[0].role == "system" else self._system(row)
        return [*system, *made[:-1]], [made[-1].content.strip()], ()

    def _system(self, row: Row) -> list[Message]:
        text = self.columns.text(row, "system")
        return [Message("system", text)] if text else []

    def _question(self, row: Row, extra: Mapping[str, str] | None = None) -> str:
        if self.spec.template is not None:
            return self.columns.fill(self.spec.template, row, extra or {})
        if self.judgements is not None:
            field = str(self.judgements.question)
        else:
            field = next(name for name in _QUESTION[self.shape] if name in self.columns)
        text = self.columns.text(row, field)
        with_context = field == "question" or self.shape == "choice"
        more = "input" if field == "instruction" else "context" if with_context else None
        second = self.columns.text(row, more) if more and more in self.columns else ""
        parts = [second, text] if more == "context" else [text, second]
        return "\n\n".join(part for part in parts if part)

    def _answers(self, value: Any, row: Row) -> list[str]:
        """One answer, a list of them, SQuAD's `{"text": […]}`, objects with a text, or an assistant message."""
        if isinstance(value, Mapping):
            value = value.get("text", value.get("content", value.get("value")))
        items = value if isinstance(value, list) else [value]
        texts = []
        for item in items:
            inner = item.get("text", item.get("content", item.get("value"))) if isinstance(item, Mapping) else item
            texts.append(text_of(inner, row, _ANSWER[self.shape]).strip())
        return texts

    def _instruct(self, turns: list[Message]) -> list[Message]:
        given = next((t.content for t in turns if t.role == self.spec.instruct_in), "")
        # people's judgements come back with the conversation that was asked, the instruction in it
        there = given == self.instruction or given.startswith(f"{self.instruction}\n\n")
        if not self.instruction or (self.judgements is not None and there):
            return turns
        if self.spec.instruct_in == "user":
            first = next(n for n, turn in enumerate(turns) if turn.role == "user")
            asked = Message("user", f"{self.instruction}\n\n{turns[first].content}")
            return [*turns[:first], asked, *turns[first + 1 :]]
        if turns[0].role == "system":
            return [Message("system", f"{self.instruction}\n\n{turns[0].content}"), *turns[1:]]
        return [Message("system", self.instruction), *turns]

    # what the columns mean

    def _find_shape(self, rows: list[Row]) -> str:
        for known in (set(self.columns.mapped), {*self.columns.mapped, *self.columns.guessed}):
            if find_form(self.columns, known, rows) is not None:
                return "preference"
            if "messages" in known:
                return "messages"
            for shape in ("choice", "label", "question", "instruction", "prompt", "tags"):
                asked = self.spec.template is not None or known & set(_QUESTION[shape])
                if asked and _ANSWER[shape] in known and (shape != "choice" or "choices" in known):
                    return shape
        listed = ", ".join(self.columns.available)
        mend = f"map them with columns: (the file has: {listed}), such as columns: {{prompt: …, completion: …}}"
        if len(self.columns.available) == 1 and any(mark in listed for mark in "\t;|,"):
            mend = f"set delimiter: to what separates them (the file has one column: {listed})"
        raise self.spec.error(("columns",), "cannot tell the question's and the answer's column", mend=mend)

    def _require(self) -> None:
        needed: list[tuple[str, ...]] = [("messages",)] if self.shape == "messages" else [(_ANSWER[self.shape],)]
        if self.shape == "choice":
            needed.append(("choices",))
        if self.shape != "messages" and self.spec.template is None:
            needed.append(_QUESTION[self.shape])
        for names in needed:
            if not any(name in self.columns for name in names):
                mend = f"map it: columns: {{{names[0]}: …}}; the file has: {', '.join(self.columns.available)}"
                raise self.spec.error(("shape",), f"{self.shape} needs {' or '.join(names)}", mend=mend)

    def _find_labels(self, rows: list[Row]) -> dict[str, str]:
        given = self.spec.labels
        if isinstance(given, dict):
            names = list(given.values())
            if len({name.casefold() for name in names}) < len(names):
                mend = "give each label a name of its own"
                raise self.spec.error(("labels",), "two labels have the same readable name", mend=mend)
            return dict(given)
        raw = list(given) if isinstance(given, tuple) else []
        if not raw:
            found = {self.columns.text(row, "label") for row in rows} - {""}
            numbers = all(re.fullmatch(r"-?\d+", label) for label in found)
            raw = sorted(found, key=lambda label: (int(label), label) if numbers else (0, label))
        if len(raw) < 2:
            listed = ", ".join(raw) or "none"
            raise self.spec.error(("labels",), f"needs at least two labels, found {listed}", mend="check columns.label")
        readable = {label: " ".join(re.sub(r"[_-]+", " ", label).split()) or label for label in raw}
        # names that would fall together stay as they are
        return (
            readable if len({r.casefold() for r in readable.values()}) == len(raw) else {label: label for label in raw}
        )


class Phrased:
    """Turns rows into examples, each in one of the task's phrasings; with none, a `Shaper` and nothing more.

    Which one is decided by a hash of the row as the first phrasing puts it, so that the same row is asked alike in
    every split, and duplicates are still found.
    """

    def __init__(self, spec: TaskSpec, rows: list[Row]) -> None:
        self._shapers = [Shaper(one, rows) for one in spec.phrased()]
        self._seed = spec.seed
        self.shape, self.labels, self.readable = (getattr(self._shapers[0], n) for n in ("shape", "labels", "readable"))

    def examples(self, rows: list[Row], split: SplitName) -> tuple[list[Asked], list[str]]:
        """The examples of a split, and notes on records that were left out or joined.

        Raises:
            TaskError: as `Shaper.example`; or every record was left out.
        """
        judgements = self._shapers[0].judgements
        if judgements is None:
            return [self.example(row) for row in rows], []
        return judged_examples(rows, self.example, judgements, split)

    def example(self, row: Row) -> Asked:
        """As `Shaper.example`."""
        first = self._shapers[0].example(row)
        if len(self._shapers) == 1:
            return first
        key = " ".join(f"{turn.role} {turn.content}" for turn in first.example.messages).casefold()
        key = " ".join(unicodedata.normalize("NFKC", key).split())
        digest = hashlib.sha256(f"phrasing\x1f{self._seed}\x1f{key}".encode()).digest()
        pick = int.from_bytes(digest[:8], "big") % len(self._shapers)
        return first if pick == 0 else self._shapers[pick].example(row)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")


def _choices(value: Any, row: Row) -> tuple[tuple[str, ...], list[str]]:
    """The choices of one example and their letters; ARC's `{"text": […], "label": […]}` brings its own letters."""
    letters: list[str] | None = None
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        given = value.get("label")
        letters = [str(letter) for letter in given] if isinstance(given, list) else None
        value = value["text"]
    elif isinstance(value, Mapping):
        letters, value = [str(key) for key in value], list(value.values())
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except (json.JSONDecodeError, RecursionError):
            raise TaskError("choices is not JSON", where=row.place, mend='write ["one", "two"]') from None
    if not isinstance(value, list) or len(value) < 2:
        mend = "name a column with a list, several columns, or one to split: {from: …, split: '|'}"
        raise TaskError("choices is not a list of at least two", where=row.place, mend=mend)
    texts = tuple(text_of(item, row, "choices").strip() for item in value)
    if "" in texts:
        raise TaskError("a choice is empty", where=row.place, mend="write it, or give fewer choices")
    if letters is None or len(letters) != len(texts):
        letters = [*string.ascii_uppercase[: len(texts)], *(str(n + 1) for n in range(26, len(texts)))]
    return texts, letters

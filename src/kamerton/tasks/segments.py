"""What an encoder reads of a row, and where the answer stands in it: segments, spans, words.

A causal model is asked in a conversation, an encoder reads one text or a pair of them. Both come from one recipe: the
segments are the fields of the template in its order, or what `segments` in the recipe names; without a template the
question, and the context that it is about. Answers of a question that stand in its context are found there: at the
offsets that the data give, which must be right, else at their first occurrence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import parse_json
from kamerton.recipe import TaskSpec
from kamerton.recipe_errors import closest
from kamerton.tasks.columns import Columns, text_of
from kamerton.tasks.example import Message
from kamerton.tasks.readers import Row

_ASKED = {"choice": (("context",), ("question", "text", "prompt")), "label": (("text",),)}


class Segments:
    """Reads the fields of an example that only an encoder needs.

    Args:
        spec: the task of the recipe.
        columns: what its columns mean.
        shape: of the task.

    Raises:
        TaskError: `segments` names more than two fields, or one that is not there.
    """

    def __init__(self, spec: TaskSpec, columns: Columns, shape: str) -> None:
        self.spec, self.columns, self.shape = spec, columns, shape
        if len(spec.segments) > 2:
            raise spec.error(("segments",), "has more than two fields", mend="name one or two")
        for place, name in enumerate(spec.segments):
            if name not in columns and name not in columns.available:
                mend = closest(name, [*columns.mapped, *columns.available])
                raise spec.error(("segments", place), f"no field or column {name!r}", mend=mend)

    def read(self, row: Row, turns: Sequence[Message], answers: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """`segments`, `spans` and `words` of an example, those that it has.

        Args:
            row: the record.
            turns: the conversation that was made of it.
            answers: the accepted answers.

        Raises:
            TaskError: an answer is not at its offset.
        """
        if self.shape == "tags":
            return {"words": tuple(words_and_tags(self.columns, row, self.spec)[0])}
        if self.shape in ("messages", "instruction", "preference"):
            return {}
        if self.shape == "question" and "context" in self.columns:
            return self._span(row, answers)
        names = self.spec.segments or self._named()
        texts = tuple(text for name in names if (text := self._text(row, name)))
        if len(texts) > 2:  # an encoder has two kinds of segments
            texts = (texts[0], " ".join(texts[1:]))
        return {} if len(texts) == 1 and texts[0] == turns[-1].content else {"segments": texts}

    def _named(self) -> list[str]:
        """Fields of the template, else of the shape; none where the question's text is read as it stands."""
        if self.spec.template is not None:
            return [name for name in dict.fromkeys(Columns.placeholders(self.spec.template)) if name != "choices"]
        found = (next((n for n in names if n in self.columns), None) for names in _ASKED.get(self.shape, ()))
        return [name for name in found if name is not None]

    def _text(self, row: Row, name: str) -> str:
        return self.columns.text(row, name) if name in self.columns else text_of(row.values.get(name), row, name)

    def _span(self, row: Row, answers: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        context = text_of(self.columns.value(row, "context"), row, "context")
        question = self.columns.text(row, "question")
        value = self.columns.value(row, "answer")
        starts = value.get("answer_start") if isinstance(value, Mapping) else self.columns.value(row, "answer_start")
        texts = value.get("text") if isinstance(value, Mapping) else value
        texts, starts = _listed(texts), _listed(starts)
        given: dict[str, int] = {}
        for text, start in zip(texts, starts, strict=False):
            if not isinstance(text, str) or start is None or start == -1:
                continue
            if not str(start).lstrip("-").isdigit() or context[int(start) : int(start) + len(text)] != text:
                there = context[max(0, int(start)) :][: len(text)] if str(start).isdigit() else ""
                message = (
                    f"the answer {text[:40]!r} is not at character {start} of its context, where {there[:40]!r} is"
                )
                raise TaskError(message, where=row.place, mend="mend answer_start, or leave it out")
            given.setdefault(text.strip(), int(start) + len(text) - len(text.lstrip()))
        spans = [given.get(answer, context.find(answer)) for answer in answers]
        # the text that stands for "no answer" may happen to be in the context
        found = any(s >= 0 for s in spans) and (bool(given) or self.spec.empty_answer not in answers)
        return {"segments": (question, context), **({"spans": tuple(spans)} if found else {})}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def words_and_tags(columns: Columns, row: Row, spec: TaskSpec) -> tuple[list[str], list[str]]:
    """A sentence's words and as many tags; a list, JSON of one, or text with spaces between.

    Raises:
        TaskError: they are of different length, empty, or have a tag that is not among the given labels.
    """
    words, tags = (_texts(columns.value(row, name), row, name) for name in ("tokens", "tags"))
    if len(words) != len(tags):
        message = f"has {len(words)} words and {len(tags)} tags"
        raise TaskError(message, where=row.place, mend="give each word one tag")
    if not words:
        raise TaskError("has no words", where=row.place, mend="remove the record")
    if "" in tags:
        message = f"the word {words[tags.index('')]!r} has no tag"
        raise TaskError(message, where=row.place, mend="give each word one tag")
    if spec.labels == "auto":
        return words, tags
    known = dict(spec.labels) if isinstance(spec.labels, Mapping) else {name: name for name in spec.labels}
    strange = next((tag for tag in tags if tag not in known), None)
    if strange is not None:
        mend = f"use one of them, or add {strange!r} to labels: {', '.join(list(known)[:8])}"
        raise TaskError(f"tag {strange!r} is not among the given ones", where=row.place, mend=mend)
    return words, [known[tag] for tag in tags]


def _texts(value: Any, row: Row, field: str) -> list[str]:
    if isinstance(value, str):
        text = value.strip()
        try:
            value = parse_json(text) if text.startswith("[") else text.split()
        except (json.JSONDecodeError, RecursionError):
            raise TaskError(f"{field} is not JSON", where=row.place, mend='write ["one", "two"]') from None
    if not isinstance(value, list):
        raise TaskError(f"{field} is not a list", where=row.place, mend='write ["one", "two"]')
    texts = [text_of(item, row, field).strip() for item in value]
    return ["_".join(text.split()) for text in texts] if field == "tags" else texts

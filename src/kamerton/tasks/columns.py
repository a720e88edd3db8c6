"""Columns of a file → the fields that Kamerton knows: which column is which, and its value as text or a list.

The names that other tools use are found by themselves (`conversations` for messages, `response` for output, …), in
upper or lower case; anything else is mapped in the recipe under `columns`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from kamerton.errors import TaskError
from kamerton.recipe import Column, TaskSpec
from kamerton.recipe_errors import closest, nearest
from kamerton.tasks.readers import Row

# our field: the columns that are taken for it without a mapping, in order of preference
ALIASES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output", "response"),
    "prompt": ("prompt", "input"),
    "completion": ("completion", "response", "output"),
    "text": ("text", "sentence"),
    "label": ("label", "category"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "context": ("context",),
    "choices": ("choices", "options"),
    "reasoning": ("reasoning",),
    "system": ("system",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "margin": ("margin",),
    "ranked": ("ranked",),
    "graded": ("graded",),
    "score": ("score", "rating"),
    "answer_start": ("answer_start", "answer_starts"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags"),
}
_NEVER_GUESSED = ("id", "group")
_BIO = ("tokens", "tags", "intent")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


class Columns:
    """What the recipe and the first row say about the columns; gives the value of a field for each row.

    Args:
        spec: the task of the recipe.
        available: the columns that the rows have.

    Raises:
        TaskError: `columns` maps an unknown field, or to a column that is not there; the template names one.
    """

    def __init__(self, spec: TaskSpec, available: Mapping[str, Any]) -> None:
        self.spec = spec
        self.available = list(available)
        self.mapped: dict[str, Column] = {}
        placeholders = set(self.placeholders(spec.template or ""))
        for field, column in spec.columns.items():
            if spec.reader == "bio" and field in _BIO:
                continue
            if field not in ALIASES and field not in _NEVER_GUESSED and field not in placeholders:
                mend = closest(field, [*ALIASES, *_NEVER_GUESSED])
                raise spec.error(("columns", field), f"unknown field {field!r}", mend=mend)
            for name in column.source:
                self._check(name, available, ("columns", field))
            for part in ("pattern", "remove"):
                self._compile(getattr(column, part), ("columns", field, part))
            self.mapped[field] = column
        self.guessed: dict[str, Column] = {}
        in_any_case = {name.strip().casefold(): name for name in reversed(self.available)}
        for field, names in ALIASES.items():
            exact = (name for name in names if name in available)
            found = next(exact, None) or next((in_any_case[n] for n in names if n in in_any_case), None)
            if field not in self.mapped and found is not None:
                self.guessed[field] = Column.model_validate(found)
        for name in placeholders - {"choices"}:
            if name not in self.mapped and name not in self.guessed:
                self._check(name, available, ("template",))

    def __contains__(self, field: str) -> bool:
        return field in self.mapped or field in self.guessed

    def value(self, row: Row, field: str) -> Any:
        """The field's value in a row: as the file has it, or what the mapping makes of it."""
        column = self.mapped.get(field) or self.guessed.get(field)
        if column is None:
            return None
        values = [_dig(row.values, name) for name in column.source]
        value = values[0] if len(values) == 1 else values
        if column.pattern is not None:
            match = re.search(column.pattern, text_of(value, row, field))
            if match is None:
                mend = f"mend the record, or the pattern of columns.{field}"
                raise TaskError(f"the pattern of {field} does not match", where=row.place, mend=mend)
            value = match.group(1) if match.re.groups else match.group(0)
        if column.remove is not None:
            value = re.sub(column.remove, "", text_of(value, row, field))
        if column.split is not None:
            value = [part.strip() for part in text_of(value, row, field).split(column.split)]
        return value

    def text(self, row: Row, field: str) -> str:
        """The field's value as stripped text, "" where it is not there."""
        return text_of(self.value(row, field), row, field).strip()

    def fill(self, template: str, row: Row, extra: Mapping[str, str]) -> str:
        """A template with `{name}` replaced by a field or, failing that, a column; `{{` and `}}` are braces."""

        def put(match: re.Match[str]) -> str:
            name = match.group(1)
            if name is None:
                return match.group(0)[0]
            if name in extra:
                return extra[name]
            if name in self:
                return self.text(row, name)
            return text_of(_dig(row.values, name), row, name).strip()

        return _PLACEHOLDER.sub(put, template).strip()

    @staticmethod
    def placeholders(template: str) -> list[str]:
        """The names between braces in a template."""
        return [match.group(1) for match in _PLACEHOLDER.finditer(template) if match.group(1)]

    def _check(self, name: str, available: Mapping[str, Any], path: tuple[str, ...]) -> None:
        if name in available or name.split(".")[0] in available:
            return
        listed = ", ".join(self.available)
        near = nearest(name, self.available)
        mend = f"did you mean {near}? the file has: {listed}" if near is not None else f"the file has: {listed}"
        if len(self.available) == 1 and any(mark in listed for mark in "\t;|,"):
            mend += "; set delimiter: to what separates them"
        raise self.spec.error(path, f"no column {name!r}", mend=mend)

    def _compile(self, pattern: str | None, path: tuple[str, ...]) -> None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise self.spec.error(path, f"is not a regular expression: {error}", mend="mend the pattern") from None


def text_of(value: Any, row: Row, field: str) -> str:
    """A scalar as text; numbers without a needless `.0`. A list or an object is an error at the row's place."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):  # Parquet has them as such
        return value.isoformat()
    kind = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__
    raise TaskError(
        f"{field} is {kind} where text is needed", where=row.place, mend="name an inner field: column.field"
    )


def _dig(values: Mapping[str, Any], name: str) -> Any:
    """A column, or a field inside one by a dotted name."""
    if name in values:
        return values[name]
    value: Any = values
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value

"""`format`: the answer is written as it was asked for, such as one `<think>…</think>` and the answer behind it."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from kamerton.rewards.regex import compiles
from kamerton.rewards.verifier import CLOSE, OPEN, Verifier
from kamerton.tasks.example import Example
from kamerton.tuning.parameterisation import Options

NAMED: dict[str, tuple[str, ...]] = {
    "think": (OPEN, CLOSE),
    "think-answer": (OPEN, CLOSE, "<answer>", "</answer>"),
    "thought": (CLOSE,),
}
"""Tags in their order, each exactly once. `thought`: the chat template has opened the thought already."""


class FormatOptions(Options):
    """Options of `format`."""

    pattern: str = Field(
        "think", description="think: <think>…</think> and then an answer; think-answer: the answer in "
        "<answer>…</answer>; thought: …</think> and then an answer; or a regular expression that the whole answer "
        "matches (a dot matches every character)",
    )  # fmt: skip

    _compiles = field_validator("pattern")(compiles)


class Format(Verifier):
    """1 where the whole answer is in the form, else 0."""

    name = "format"
    needs_references = False
    summary = "the answer has the form that was asked for, such as a thought in tags"
    options = FormatOptions
    short = "pattern"
    o: FormatOptions

    def __init__(self, options: FormatOptions) -> None:
        super().__init__(options)
        self._tags = NAMED.get(options.pattern)
        self._pattern = re.compile(options.pattern, re.DOTALL)

    def score(self, answer: str, example: Example) -> float:  # noqa: ARG002 - the form is the same for all
        if self._tags is None:
            return float(self._pattern.fullmatch(answer.strip()) is not None)
        parts, rest = [], answer
        for tag in self._tags:
            before, found, rest = rest.partition(tag)
            if not found or answer.count(tag) != 1:
                return 0.0
            parts.append(before.strip())
        parts.append(rest.strip())
        # what is between opening tags must be empty, what is inside tags and behind the thought must not
        filled = {"think": (0, 1, 1), "think-answer": (0, 1, 0, 1, 0), "thought": (1, 1)}[self.o.pattern]
        others = any(tag in answer for tag in (OPEN, CLOSE) if tag not in self._tags)
        return float(not others and all(bool(part) == bool(full) for part, full in zip(parts, filled, strict=True)))

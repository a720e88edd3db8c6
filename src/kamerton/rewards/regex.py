"""`regex`: the answer matches a regular expression, or what the expression catches is an accepted answer."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from kamerton.evaluation.metrics import normalise
from kamerton.rewards.verifier import Verifier, VerifierOptions
from kamerton.tasks.example import Example


def compiles(pattern: str) -> str:
    """A pattern, if it is a regular expression; for validators."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}); mend the pattern") from None
    return pattern


class RegexOptions(VerifierOptions):
    """Options of `regex`."""

    pattern: str = Field(description="a regular expression of Python's; needed")
    whole: bool = Field(False, description="it must match the whole answer; else any part of it")
    ignore_case: bool = Field(False, description="upper and lower case are the same")
    absent: bool = Field(False, description="1 where it does not match")
    answer: bool = Field(
        False, description="what its first group (or all of it) catches last must be an accepted answer"
    )

    _compiles = field_validator("pattern")(compiles)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.absent and self.answer:
            raise ValueError("absent and answer cannot both be set; leave one of them out")
        return self


class Regex(Verifier):
    """1 where the answer matches, else 0."""

    name = "regex"
    summary = "the answer matches a regular expression"
    options = RegexOptions
    short = "pattern"
    o: RegexOptions

    def __init__(self, options: RegexOptions) -> None:
        super().__init__(options)
        self.needs_references = options.answer
        self._pattern = re.compile(options.pattern, re.IGNORECASE if options.ignore_case else 0)

    def score(self, answer: str, example: Example) -> float:
        if self.o.whole:
            whole = self._pattern.fullmatch(answer.strip())
            matches = [whole] if whole else []
        else:
            matches = list(self._pattern.finditer(answer))
        if not self.o.answer:
            return float(bool(matches) != self.o.absent)
        if not matches:
            return 0.0
        caught = matches[-1][1 if self._pattern.groups else 0] or ""
        return float(normalise(caught) in {normalise(reference) for reference in example.answers})

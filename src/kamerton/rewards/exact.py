"""`exact`: the answer is an accepted one, after Unicode NFKC, case and spaces are made even."""

from __future__ import annotations

import unicodedata

from pydantic import Field

from kamerton.rewards.verifier import Verifier, VerifierOptions
from kamerton.tasks.example import Example


class ExactOptions(VerifierOptions):
    """Options of `exact`."""

    after: str | None = Field(
        None, min_length=1, description="the answer is what stands behind the last of these (`####`); none: all of it"
    )
    ignore_case: bool = Field(True, description="upper and lower case are the same")
    bare: bool = Field(False, description="quotes around and a full stop behind are taken off, on both sides")


class Exact(Verifier):
    """1 where the answer is an accepted one, else 0."""

    name = "exact"
    summary = "the answer is an accepted one"
    options = ExactOptions
    o: ExactOptions

    def score(self, answer: str, example: Example) -> float:
        if self.o.after is not None:
            _, marked, answer = answer.rpartition(self.o.after)
            if not marked:
                return 0.0
        return float(self._even(answer) in {self._even(reference) for reference in example.answers})

    def _even(self, text: str) -> str:
        text = " ".join(unicodedata.normalize("NFKC", text).split())
        if self.o.bare:
            text = text.strip("\"'`«»“”‘’*").rstrip(".").strip()
        return text.casefold() if self.o.ignore_case else text

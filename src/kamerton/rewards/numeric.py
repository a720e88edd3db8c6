r"""`numeric`: a number of the answer is an accepted one, within a tolerance.

Read are 1,234.5, −3, 1e-4, 3/4, LaTeX's `\frac{3}{4}` and `1{,}234`; commas and narrow spaces between groups of three
digits separate thousands. Units, currencies and percent signs are not read.
"""

from __future__ import annotations

import math
import re

from pydantic import Field

from kamerton.evaluation.value_metrics import last_number, numbers_in
from kamerton.rewards.verifier import Verifier, VerifierOptions
from kamerton.tasks.example import Example

_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([-+\u2212]?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}")
_LATEX = (
    (re.compile(r"\{,\}|\\,(?=\d)"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile("[\u2009\u2007](?=\\d{3})"), ","),
)


class NumericOptions(VerifierOptions):
    """Options of `numeric`."""

    absolute: float = Field(1e-6, ge=0, description="largest difference")
    relative: float = Field(1e-6, ge=0, description="largest difference as a share of the accepted number")
    after: str | None = Field(
        None, min_length=1, description="the first number behind the last of these counts (`####`, `\\boxed{`), and an "
        "answer without it has none; none: the last number",
    )  # fmt: skip


def plain(text: str) -> str:
    """A text with LaTeX's fractions and separators as plain numbers have them."""
    for pattern, by in _LATEX:
        text = pattern.sub(by, text)
    return _FRACTION.sub(lambda m: f"{m[1]}/{m[2]}".replace(",", ""), text)


class Numeric(Verifier):
    """1 where |a − b| ≤ max(absolute, relative · |b|) for an accepted number b, else 0."""

    name = "numeric"
    summary = "the answer's number is an accepted one, within a tolerance"
    options = NumericOptions
    o: NumericOptions

    def fits(self, example: Example) -> None:
        if not self._wanted(example):
            what = f"the answer {example.answers[0][:60]!r} has no number"
            raise self.refusal(example, what, "use another reward, or mend the answer")

    def score(self, answer: str, example: Example) -> float:
        wanted, given = self._wanted(example), self.number(answer)
        if not wanted:
            self.fits(example)
        if given is None:
            return 0.0
        return float(any(abs(given - b) <= max(self.o.absolute, self.o.relative * abs(b)) for b in wanted))

    def number(self, text: str) -> float | None:
        """The number that counts in an answer."""
        found = last_number(plain(text)) if self.o.after is None else None
        if self.o.after is not None:
            _, marked, behind = text.rpartition(self.o.after)
            first = numbers_in(plain(behind))[:1] if marked else []
            found = last_number(first[0]) if first else None
        return found if found is not None and math.isfinite(found) else None

    def _wanted(self, example: Example) -> list[float]:
        """The accepted numbers: behind the marker where a reference has it, else its last one."""
        found = (
            self.number(r) if self.o.after and self.o.after in r else last_number(plain(r)) for r in example.answers
        )
        return [number for number in found if number is not None and math.isfinite(number)]

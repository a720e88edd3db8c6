"""The answer behind a chain of thought, by a stated rule, and worked solutions written so that the rule finds theirs.

The rule, in this order:

1. what stands behind the last marker ("The answer is"): for tasks judged by numbers the first number there, else all up
   to the end of its line (to the end of the text where the task's own answers have several lines);
2. for tasks judged by numbers, the last number;
3. the last line that is not empty.

Quotes, asterisks, backticks and a full stop around it are taken off, unless the task's own answers have them there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kamerton.evaluation.value_metrics import numbers_in
from kamerton.tasks.example import Example

EDGES = ".\"'`*“”«»"
NUMERIC = ("numeric", "pearson")
"""Metrics that read a number out of the answer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How an answer is read out of a text.

    Attributes:
        marker: what stands before the answer.
        numeric: the task is judged by numbers.
        lines: the task's answers have several lines.
        edges: characters that are taken off both ends.
    """

    marker: str
    numeric: bool = False
    lines: bool = False
    edges: str = EDGES

    def __call__(self, text: str) -> Extracted:
        """The answer in a text."""
        found = list(re.finditer(re.escape(self.marker.strip()) + r"\s*:?", text, re.IGNORECASE))
        if found:
            behind = text[found[-1].end() :]
            if self.numeric:
                bare = next(iter(numbers_in(behind)), "")
            else:
                bare = self._bare(behind if self.lines else behind.strip().partition("\n")[0])
            if bare:
                return Extracted(bare, text[: found[-1].start()].rstrip(), "marker", found[-1].end())
        numbers = numbers_in(text) if self.numeric else []
        if numbers:
            return Extracted(numbers[-1], text.rstrip(), "last number", text.rindex(numbers[-1]))
        lines = [line for line in text.split("\n") if line.strip()]
        line = lines[-1] if lines else ""
        return Extracted(self._bare(line), text.rstrip(), "last line", text.rindex(line) if line else len(text))

    def _bare(self, text: str) -> str:
        return text.strip().strip(self.edges + " ").strip() if self.edges else text.strip()


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer, the chain before it, which part of the rule found it, and where in the text it begins."""

    answer: str
    reasoning: str
    found: str
    start: int


def rule_for(marker: str, examples: Sequence[Example], metric: str) -> Rule:
    """The rule of a task: its answers say what must not be taken off."""
    answers = {a for e in examples for a in (*e.answers, *e.choices) if a}
    kept = {c for a in answers for c in (a[0], a[-1])}
    return Rule(
        marker, metric.partition(":")[0] in NUMERIC, any("\n" in a.strip() for a in answers),
        "".join(c for c in EDGES if c not in kept),
    )  # fmt: skip


def worked(reasoning: str, marker: str, answer: str) -> str:
    """A solution and its answer, as the rule reads it."""
    return f"{reasoning.strip()}\n{marker} {answer}"

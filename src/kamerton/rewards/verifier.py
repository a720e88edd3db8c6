"""What verifiers share: each is a score of one answer against its example, of what stands behind the thought.

A thought that was opened (`<think>`) and never closed has no answer behind it: a number that stands in it is not
one. Where a chat template opens the thought itself, an answer has only the closing tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kamerton.base.load import Base
from kamerton.errors import KamertonError, RewardError
from kamerton.rewards.reward import checked
from kamerton.tasks.example import Example, Task
from kamerton.tuning.parameterisation import Options

OPEN, CLOSE = "<think>", "</think>"

Thought = Literal["cut", "required", "kept"]


class VerifierOptions(Options):
    """Options that every verifier of an answer has."""

    thought: Thought = Field(
        "cut", description="cut: what stands up to the last </think> is not looked at, where there is one; required: "
        "an answer without one gets the lowest reward; kept: all of it is looked at",
    )  # fmt: skip


def behind_thought(text: str, thought: Thought) -> str | None:
    """What is looked at of an answer; None where there is nothing to look at."""
    if thought == "kept":
        return text
    _, closed, behind = text.rpartition(CLOSE)
    if closed:
        return behind.strip()
    return None if thought == "required" or OPEN in text else text


class Verifier:
    """A reward of each answer alone; a subclass has the `score` of one, and what an example must have (`fits`).

    Args:
        options: of the verifier.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Options]]
    short: ClassVar[str] = ""
    range: tuple[float, float] = (0.0, 1.0)
    needs_references: bool = True

    def __init__(self, options: Any) -> None:
        self.o = options

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> Verifier:  # noqa: ARG003 - some need the base
        return cls(options)

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:
        verifier = cls.build(base, task, options)
        for example in task.train:
            verifier.fits(example)

    def fits(self, example: Example) -> None:
        """Refuse an example whose answers this verifier cannot check."""

    def score(self, answer: str, example: Example) -> float:
        """The reward of an answer, or of what stands behind its thought."""
        raise NotImplementedError

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        values = []
        for example, answer in zip(examples, answers, strict=True):
            seen = behind_thought(answer, getattr(self.o, "thought", "kept"))
            try:
                values.append(self.range[0] if seen is None else self.score(seen, example))
            except KamertonError:
                raise
            except Exception as error:  # whatever an answer can hold
                raise self.refusal(example, f"raises {type(error).__name__}: {error}", "set another reward") from error
        return checked(self.name, examples, answers, values)

    def refusal(self, example: Example, what: str, mend: str) -> RewardError:
        """The error of an example."""
        return RewardError(f"example {example.id}: {what}", where=f"reward {self.name}", mend=mend)

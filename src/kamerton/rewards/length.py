"""`length`: a soft penalty on answers that are too long, or off a target length.

With `maximum` it is DAPO's overlong punishment (Yu et al. 2025, arXiv 2503.14476, equation 13): 0 up to maximum −
buffer, falling evenly to −1 at the maximum, −1 beyond. With `target` it is −min(1, |length − target| / buffer).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kamerton.base.load import Base
from kamerton.rewards.verifier import Thought, Verifier, VerifierOptions
from kamerton.tasks.example import Example, Task


class LengthOptions(VerifierOptions):
    """Options of `length`."""

    thought: Thought = Field("kept", description="kept: the whole answer is measured; cut, required: as of `exact`")
    maximum: int | None = Field(None, gt=0, description="longest answer; this or `target` is needed")
    target: int | None = Field(None, gt=0, description="length that answers should have")
    buffer: int | None = Field(
        None, gt=0, description="over how much the penalty grows from 0 to −1; none: a fifth of maximum, all of target"
    )
    unit: Literal["tokens", "words", "characters"] = Field("tokens", description="what is counted")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.maximum is None) == (self.target is None):
            raise ValueError("length needs either maximum or target; write length: {maximum: 200}")
        if self.maximum is not None and (self.buffer or 0) > self.maximum:
            raise ValueError(f"buffer is {self.buffer}, more than maximum {self.maximum}; lower buffer")
        return self


class Length(Verifier):
    """0 for a good length, down to −1."""

    name = "length"
    needs_references = False
    summary = "a soft penalty on answers that are too long, or off a target length"
    options = LengthOptions
    short = "maximum"
    range = (-1.0, 0.0)
    o: LengthOptions

    def __init__(self, options: LengthOptions, renderer: Any = None) -> None:
        super().__init__(options)
        self._renderer = renderer

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> Length:  # noqa: ARG003
        return cls(options, base.renderer)

    def score(self, answer: str, example: Example) -> float:  # noqa: ARG002
        if self.o.unit == "tokens":
            n = len(self._renderer.answer(answer, end=False))
        else:
            n = len(answer.split()) if self.o.unit == "words" else len(answer)
        if self.o.maximum is not None:
            buffer = self.o.buffer or max(1, self.o.maximum // 5)
            return -min(1.0, max(0.0, (n - (self.o.maximum - buffer)) / buffer))
        assert self.o.target is not None
        return -min(1.0, abs(n - self.o.target) / (self.o.buffer or self.o.target))

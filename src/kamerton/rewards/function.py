"""`function`: a function of the user's own, on plain data.

    def concise(question: str, answer: str, references: list[str]) -> float: ...

`question` is the text of the last user message, `references` are the accepted answers. With `batch: true` it is called
once with a list of each, and returns a list of numbers. It may carry an attribute `range`, (lowest, highest), and
`needs_references = False` where it does not read them, so that it can choose among answers at inference.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kamerton.base.load import Base
from kamerton.errors import KamertonError, RewardError
from kamerton.functions import import_function
from kamerton.rewards.reward import checked
from kamerton.tasks.example import Example, Task
from kamerton.tuning.parameterisation import Options


class FunctionOptions(Options):
    """Options of `function`."""

    function: str = Field(description="`file.py:function` or `package.module:function`; needed")
    batch: bool = Field(False, description="it takes lists and returns a list")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="where it raises, or returns what is no finite number; skip: that answer gets `lowest`, "
        "and is counted",
    )  # fmt: skip
    lowest: float | None = Field(
        None, description="reward of an answer that is skipped; none: the low end of the function's `range`, else 0"
    )


def question_of(example: Example) -> str:
    """The text of the last user message of an example."""
    return next((m.content for m in reversed(example.messages) if m.role == "user"), "")


class FunctionReward:
    """What a function says of each answer.

    Raises:
        TaskError: there is no such file, module or function.
    """

    summary: ClassVar[str] = "a Python function of your own"
    options: ClassVar[type[Options]] = FunctionOptions
    short: ClassVar[str] = "function"

    def __init__(self, options: FunctionOptions) -> None:
        self.o, self._function = options, import_function(options.function)
        module, _, function = options.function.rpartition(":")
        self.name = f"{Path(module).name}:{function}"
        low, high = getattr(self._function, "range", (-np.inf, np.inf))
        self.range = (float(low), float(high))
        self.needs_references = bool(getattr(self._function, "needs_references", True))
        self._called = self._skipped = 0
        self._first = ""

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> FunctionReward:  # noqa: ARG003
        return cls(options)

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:  # noqa: ARG003
        cls(options)

    @property
    def notes(self) -> list[str]:
        first = f"; first, {self._first}" if self._first else ""
        if not self._skipped:
            return []
        return [f"reward {self.name}: {self._skipped} of {self._called} answers skipped and given {self._low:g}{first}"]

    def state(self) -> dict[str, Tensor]:
        """What was counted."""
        return {"counts": torch.tensor([self._called, self._skipped])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._called, self._skipped = state["counts"].tolist()

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        self._called += len(answers)
        said = [(question_of(e), a, list(e.answers)) for e, a in zip(examples, answers, strict=True)]
        if self.o.batch:
            return self._batch(examples, answers, said)
        values = []
        for example, arguments in zip(examples, said, strict=True):
            try:
                returned = self._function(*arguments)
            except Exception as error:  # the user's code can raise anything
                values.append(self._failed(example, _raised(error), error))
            else:
                values.append(self._number(example, returned))
        return checked(self.name, examples, answers, values)

    def _batch(self, examples: Sequence[Example], answers: Sequence[str], said: list[Any]) -> np.ndarray:
        if not said:
            return np.zeros(0)
        try:
            returned = self._function(*map(list, zip(*said, strict=True)))
        except Exception as error:
            values = [self._failed(example, _raised(error), error) for example in examples]
            return checked(self.name, examples, answers, values)
        if isinstance(returned, np.ndarray | Tensor):
            returned = returned.tolist()
        if not isinstance(returned, list | tuple):
            raise self._error(examples[0], f"returns {_shown(returned)}", "return a list with a number for each answer")
        if len(returned) != len(said):
            what = f"returns {len(returned)} values for {len(said)} answers"
            raise self._error(examples[0], what, "return a list with a number for each answer")
        return checked(self.name, examples, answers, list(map(self._number, examples, returned)))

    def _number(self, example: Example, returned: Any) -> float:
        if isinstance(returned, np.ndarray | Tensor) and returned.ndim == 0:
            returned = returned.item()
        if isinstance(returned, numbers.Real | np.bool_):
            with suppress(OverflowError):  # a whole number beyond the largest float
                if math.isfinite(float(returned)):
                    return float(returned)
        return self._failed(example, f"returns {_shown(returned)}", None)

    @property
    def _low(self) -> float:
        return self.o.lowest if self.o.lowest is not None else self.range[0] if np.isfinite(self.range[0]) else 0.0

    def _failed(self, example: Example, what: str, error: Exception | None) -> float:
        if self.o.on_error == "stop":
            mend = "return one finite number" if error is None else "mend the function"
            raise self._error(example, what, f"{mend}, or set on_error: skip") from error
        self._skipped += 1
        self._first = self._first or f"example {example.id}: {what}"
        return self._low

    def _error(self, example: Example, what: str, mend: str) -> RewardError:
        return RewardError(f"example {example.id}: {what}", where=f"reward {self.name}", mend=mend)


def _raised(error: Exception) -> str:
    return f"raises {error if isinstance(error, KamertonError) else f'{type(error).__name__}: {error}'}"


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else f'{text[:60]} …'} ({type(value).__name__})"

"""What a reward is: examples and answers in, one number an answer out, higher is better.

Some rewards have more. One that computes with a model says how much in `flops` (`flops_of`). One that counts what it
sees is `Stateful` (training/objective.py): an objective keeps its state in checkpoints. One that learns beside the
policy is `Learning`. Any may have `notes`, lines for the report, which are read at the end (`notes_of`), and a weighted
sum has the `means` of its parts. One that does not read an example's accepted answers says `needs_references = False`:
only such a reward may choose among answers at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from kamerton.base.load import Base
from kamerton.errors import RewardError
from kamerton.tasks.example import Example, Task
from kamerton.tuning.parameterisation import Options


class Reward(Protocol):
    """Says how good answers are.

    Attributes:
        name: for reports.
        range: lowest and highest value, infinite where there is none.
    """

    @property
    def name(self) -> str: ...
    @property
    def range(self) -> tuple[float, float]: ...

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        """(B,) float64 rewards of answers, each to the example beside it.

        Raises:
            RewardError: a value that is not a number, or not one for each answer; names the example.
        """
        ...


@runtime_checkable
class Learning(Protocol):
    """A reward that changes as the policy is trained.

    Objectives call `observe` once for each batch of answers, after it was rewarded and before the next one, and keep
    `state` in their checkpoints: what is resumed then ends with the same bits.
    """

    def observe(self, examples: Sequence[Example], answers: Sequence[str], step: int) -> None:
        """Learn from a batch of rollouts that was rewarded.

        Args:
            examples, answers: as they were rewarded.
            step: of the optimiser; decides, with the reward's seed, everything that is drawn.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what happens next, as tensors."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...


class Kind(Protocol):
    """A kind of reward, as the table REWARDS names it.

    Attributes:
        name, summary: for lists.
        options: its options.
        short: the option that a plain value sets (`regex: "[0-9]+"`); "" for none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Options]]
    short: ClassVar[str]

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> Reward:
        """One for a base that is trained, as it was before, and the task whose questions are answered."""
        ...

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:
        """Refuse what cannot work, before anything is computed.

        Raises:
            KamertonError: what is wrong, and the mend.
        """
        ...


def checked(name: str, examples: Sequence[Example], answers: Sequence[str], values: Any) -> np.ndarray:
    """What a reward gives, if it is one finite number for each answer: (B,) float64.

    Raises:
        RewardError: it is not; names the reward and the example.
    """
    where = f"reward {name}"
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise RewardError("gives no numbers", where=where, mend="give one number for each answer") from None
    if found.shape != (len(answers),) or len(examples) != len(answers):
        size = " × ".join(map(str, found.shape))
        first = f", the first to example {examples[0].id}" if examples else ""
        message = f"gives {f'{size} values' if size else 'no list'} for {len(answers)} answers{first}"
        raise RewardError(message, where=where, mend="give one number for each answer")
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        message = f"gives {found[wrong[0]]} for an answer to example {examples[wrong[0]].id}"
        raise RewardError(message, where=where, mend="give a finite number")
    return found


def flops_of(reward: Any) -> float:
    """Floating-point operations that a reward's models took so far; 0 for a reward without a model."""
    return float(getattr(reward, "flops", 0.0))


def notes_of(reward: Any) -> list[str]:
    """What the user should know of a reward's work, at the end of it."""
    return list(getattr(reward, "notes", ()))

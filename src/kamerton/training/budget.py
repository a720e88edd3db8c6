"""What a method may spend, and how much of it is spent.

Every limit is optional; whichever is reached first ends the run. The share of the budget that is spent drives the
learning-rate schedule too, so that a run limited by seconds still ends with its learning rate at the bottom.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from kamerton.errors import BudgetError


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one training run; None means no limit of that kind.

    Attributes:
        examples: training examples seen, repetitions counted.
        tokens: tokens seen, prompts included, counted before any prefix is shared.
        steps: optimiser steps.
        seconds: wall-clock seconds of training (results then differ between machines and runs).
        epochs: passes over the training examples.
    """

    examples: int | None = None
    tokens: int | None = None
    steps: int | None = None
    seconds: float | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value <= 0:
                raise BudgetError(f"{field.name} must be positive, not {value}", where="budget", mend="raise it")

    @property
    def unlimited(self) -> bool:
        return all(value is None for value in asdict(self).values())

    def share(self, *, examples: int, tokens: int, steps: int, seconds: float, epoch_examples: int) -> float:
        """The share of the budget that is spent, 0 … 1 and beyond; `epoch_examples` is one epoch's size."""
        spent = [
            (examples, self.examples),
            (tokens, self.tokens),
            (steps, self.steps),
            (seconds, self.seconds),
            (examples / epoch_examples, self.epochs),
        ]
        return max((used / limit for used, limit in spent if limit is not None), default=0.0)

    def scaled(self, factor: float) -> Budget:
        """All limits times a factor (a budget shared between the candidates of a search)."""
        return replace(
            self,
            examples=_scale(self.examples, factor),
            tokens=_scale(self.tokens, factor),
            steps=_scale(self.steps, factor),
            seconds=None if self.seconds is None else self.seconds * factor,
            epochs=None if self.epochs is None else self.epochs * factor,
        )

    def __str__(self) -> str:
        named = [f"{value:,} {name}" for name, value in asdict(self).items() if value is not None]
        return ", ".join(named) if named else "no limit"


def _scale(value: int | None, factor: float) -> int | None:
    return None if value is None else max(1, round(value * factor))

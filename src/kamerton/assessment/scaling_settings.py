"""What `kamerton eval --scaling` measures, and how much of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kamerton.errors import KamertonError


@dataclass(frozen=True)
class ScalingSettings:
    """What `scaling` measures.

    Attributes:
        samples: K, answers to each question; fewer are taken from among them.
        temperature: at which they are sampled.
        rewards: names of rewards that choose among them, beside the model's own log-probability.
        budgets: of thought, in tokens, from 0 up; none: those of a method that has a budget, else nothing.
        continuations: times that a thought which was closed early goes on, at most; None: as the method does.
        seed: of samples, drawn subsets and resampling.

    Raises:
        KamertonError: a value outside its range.
    """

    samples: int = 16
    temperature: float = 0.7
    rewards: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    continuations: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise KamertonError(f"samples is {self.samples}", where="--samples", mend="use 2 or more")
        if not math.isfinite(self.temperature) or self.temperature <= 0:
            raise KamertonError(
                f"temperature is {self.temperature:g}", where="--temperature", mend="use a number above 0"
            )
        if any(b < 0 for b in self.budgets) or len(set(self.budgets)) != len(self.budgets):
            raise KamertonError(
                f"budgets {', '.join(map(str, self.budgets))} do not do", where="--budgets",
                mend="give different whole numbers from 0 up: 0,32,64,128",
            )  # fmt: skip
        for name in ("continuations", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise KamertonError(f"{name} is {value}", where=f"--{name}", mend="use 0 or more")


def budgets(text: str) -> tuple[int, ...]:
    """Budgets as the command line has them, in rising order: `0,32,64`."""
    try:
        return tuple(sorted(int(part) for part in text.split(",")))
    except ValueError:
        raise KamertonError(f"{text!r} is no list of whole numbers", where="--budgets", mend="write 0,32,64") from None

"""A weighted sum of rewards: Σ weight · reward, each in its own units."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kamerton.rewards.reward import Learning, Reward, checked, flops_of, notes_of
from kamerton.tasks.example import Example
from kamerton.training.objective import Stateful


class Total:
    """The sum of several rewards.

    Args:
        parts: the rewards with their weights; one of weight 0 is only watched.

    Attributes:
        name, range: of the sum.
        means: mean of each part over the answers of the last call, by name and without its weight; for diagnostics.
    """

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        self._parts, seen = list(parts), Counter[str]()
        self.names: list[str] = []
        for reward, _ in parts:
            seen[reward.name] += 1
            self.names.append(reward.name if seen[reward.name] == 1 else f"{reward.name} ({seen[reward.name]})")
        shown = [n if w == 1 else f"{w:g} {n}" for n, (_, w) in zip(self.names, parts, strict=True)]
        self.name = " + ".join(shown).replace("+ -", "− ")
        self.means: dict[str, float] = {}

    @property
    def range(self) -> tuple[float, float]:
        ends = [sorted((w * low, w * high)) for r, w in self._parts if w for low, high in [r.range]]
        return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)

    @property
    def needs_references(self) -> bool:
        """Whether one of them reads accepted answers."""
        return any(getattr(reward, "needs_references", True) for reward, _ in self._parts)

    @property
    def notes(self) -> list[str]:
        return [note for reward, _ in self._parts for note in notes_of(reward)]

    @property
    def flops(self) -> float:
        return math.fsum(flops_of(reward) for reward, _ in self._parts)

    def parts(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, np.ndarray]:
        """(B,) rewards of each part, by name and without its weight."""
        return {n: r(examples, answers) for n, (r, _) in zip(self.names, self._parts, strict=True)}

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        parts = self.parts(examples, answers)
        self.means = {name: float(values.mean()) if len(values) else 0.0 for name, values in parts.items()}
        weighted = [w * values for (_, w), values in zip(self._parts, parts.values(), strict=True)]
        return checked(self.name, examples, answers, np.sum(weighted, axis=0))

    def observe(self, examples: Sequence[Example], answers: Sequence[str], step: int) -> None:
        """Those that learn do so."""
        for reward, _ in self._parts:
            if isinstance(reward, Learning):
                reward.observe(examples, answers, step)

    def state(self) -> dict[str, Tensor]:
        """Of all parts that have one."""
        found = ((i, reward.state()) for i, (reward, _) in enumerate(self._parts) if isinstance(reward, Stateful))
        return {f"{i}/{name}": value for i, state in found for name, value in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for i, (reward, _) in enumerate(self._parts):
            if isinstance(reward, Stateful):
                reward.restore({k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{i}/")})

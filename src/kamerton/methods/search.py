"""The search for hyperparameters inside the budget: what is tried, for how long, and who goes on.

A trained method declares a small space, option → values, the first value of each being the default. Candidates are
drawn from it in a fixed order: the defaults, then the other learning rates (they matter most), then further settings at
random from the whole space (Bergstra & Bengio 2012). Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943)
trains all of them for a first part of their schedule and keeps a third, until one is left: every rung costs the same.
Options that the recipe gives are not searched.

Left out: models of the response surface; a handful of candidates is too few to fit one.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kamerton.tasks.example import fingerprint

Space = Mapping[str, tuple[Any, ...]]
Values = dict[str, Any]

ETA = 3
"""Of so many candidates one goes on to the next rung."""


def space_of(method: Any) -> dict[str, tuple[Any, ...]]:
    """The search space of a method: option → values, the first one the default; {} where it searches nothing.

    A class that declares only `learning_rates` searches those; of a class and its bases the nearest declaration holds.
    """
    for owner in type(method).__mro__:
        if "space" in vars(owner):
            return {name: tuple(values) for name, values in vars(owner)["space"].items()}
        if "learning_rates" in vars(owner):
            return {"learning_rate": tuple(vars(owner)["learning_rates"])}
    return {}


def shown(value: Any) -> str:
    """A value of a space as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw(space: Space, fixed: Mapping[str, Any], count: int | None, seed: int) -> list[Values]:
    """The candidates of one search.

    Args:
        space: option → values, the first one the default.
        fixed: options that are not searched, with their values.
        count: how many at most; None: as many as there are learning rates to try.
        seed: decides what is drawn beyond the learning rates.

    Returns:
        Values of all options of the space, for each candidate; the defaults first.
    """
    free = {name: (fixed[name],) if name in fixed else values for name, values in space.items()}
    default = {name: values[0] for name, values in free.items()}
    first = [{**default, "learning_rate": rate} for rate in free.get("learning_rate", ())] or [default]
    rest = [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]
    rest = [values for values in rest if values not in first]
    random.Random(seed).shuffle(rest)
    return [*first, *rest][: len(first) if count is None else count]


def label(values: Values, default: Values) -> str:
    """A folder's name for a candidate: its learning rate, then whatever else is not the default."""
    others = {name: value for name, value in values.items() if name != "learning_rate" and value != default[name]}
    text = f"learning-rate-{values['learning_rate']:g}" if "learning_rate" in values else "default"
    for name, value in others.items():
        plain = shown(value)
        if re.fullmatch(r"[A-Za-z0-9._-]{1,24}", plain) is None:
            plain = fingerprint(json.loads(json.dumps(value)))[:12]
        text += f"+{name.replace('_', '-')}-{plain}"
    return text


@dataclass(frozen=True)
class Halving:
    """How `count` candidates share a part of the budget in rungs that cost the same.

    Attributes:
        count: candidates. share: part of the budget that all rungs together take, the winner's own part included.
    """

    count: int
    share: float

    @property
    def sizes(self) -> list[int]:
        """Candidates in each rung: 9, 3; the one that is left after the last rung is trained to the end."""
        sizes = []
        left = self.count
        while left > 1:
            sizes.append(left)
            left = -(-left // ETA)
        return sizes

    def _trained(self) -> list[Fraction]:
        """What one candidate has spent at the end of each rung, as a part of `share`."""
        each = [Fraction(1, len(self.sizes) * size) for size in self.sizes]
        return list(itertools.accumulate(each))

    @property
    def others(self) -> float:
        """The part of the budget that all but the winner spend."""
        after = [*self.sizes[1:], 1]
        spent = sum(
            (size - left) * each for size, left, each in zip(self.sizes, after, self._trained(), strict=True)
        )  # fmt: skip
        spent = Fraction(spent)
        return self.share * spent.numerator / spent.denominator

    @property
    def untils(self) -> list[float]:
        """Where each rung ends, as a share of the schedule that the winner runs to its end."""
        return [self.share * t.numerator / t.denominator / (1 - self.others) for t in self._trained()]


def survivors(losses: Sequence[float], size: int) -> list[int]:
    """Places of the `size` lowest losses, in their order; on a tie the earlier candidate."""
    return sorted(sorted(range(len(losses)), key=lambda i: losses[i])[:size])

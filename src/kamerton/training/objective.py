"""What the training loop asks of an objective, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from kamerton.base.model import LanguageModel


@dataclass
class Loss:
    """A summed loss with what it is a sum over.

    Attributes:
        total: () the sum over targets (or pairs, or whatever the batch counts), with gradient.
        metrics: sums to report, divided by the count like the loss.
    """

    total: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class AnyBatch(Protocol):
    """What the loop needs to know of a microbatch."""

    @property
    def count(self) -> float: ...
    @property
    def examples(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class Objective(Protocol):
    """What is optimised. Knows neither the parameterisation nor the loop.

    For several processes (`distribution.py`) it may say more: `dealt` names what may be computed in different ones,
    `"steps"` and `"validation"`, because the loss of its microbatches leaves nothing in the objective; `accumulation`
    is the least number of microbatches of a step, which the loop raises to the number of processes (it is not there
    where the loss would depend on it).
    """

    name: str
    notes: list[str]

    @property
    def epoch_examples(self) -> int:
        """Training examples in one epoch."""
        ...

    def batches(self, step: int, model: LanguageModel) -> Sequence[Any]:
        """The microbatches of an optimiser step: from data, or from rollouts of the model as it is now."""
        ...

    def validation(self) -> Sequence[Any]:
        """Microbatches of the validation set; empty where there is none."""
        ...

    def loss(self, model: LanguageModel, batch: Any) -> Loss:
        """The summed loss of a microbatch."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An objective with something of its own that changes as it trains (a discriminator, a buffer of answers)."""

    def state(self) -> dict[str, Tensor]:
        """All of it, as tensors; kept in checkpoints."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A microbatch that can be made smaller where memory runs out."""

    def halves(self) -> Sequence[Any]:
        """Two microbatches whose summed losses are that of this one; () where nothing is left to divide."""
        ...


@runtime_checkable
class Naming(Protocol):
    """An objective that can tell people which examples a microbatch was made of."""

    def named(self, batch: Any) -> list[str]:
        """One name for each of its rows or pieces, in order."""
        ...


@runtime_checkable
class Observant(Protocol):
    """An objective that looks at the model at every validation, also where there is nothing to validate on."""

    def look(self, step: int, model: LanguageModel) -> None:
        """Look at the model that is about to be validated (the average, where one is kept)."""
        ...

"""`prefix-tuning`: trained keys and values × supervised loss (Li & Liang 2021, arXiv 2101.00190)."""

from __future__ import annotations

from pydantic import Field

from kamerton.base.load import Base
from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning import Tuned
from kamerton.tuning.encoders import fold
from kamerton.tuning.prefix import Prefix, PrefixOptions


class PrefixTuningMethodOptions(TrainingOptions, PrefixOptions):
    """Options of the method `prefix-tuning`."""

    batch_size: int = Field(4, gt=0, description="examples in an optimiser step")  # a prefix needs many steps


class PrefixTuningMethod(TrainedMethod):
    """Trained keys and values in front of every sequence, all weights frozen."""

    name = "prefix-tuning"
    summary = "trained keys and values in front of every sequence"
    trains = "n keys and values in each layer"
    paper = "Li & Liang 2021, arXiv 2101.00190"
    options = PrefixTuningMethodOptions
    parameterisation = Prefix
    space = {"learning_rate": (2e-2, 1e-2, 4e-2), "tokens": (100, 50, 200)}  # noqa: RUF012 (read only)

    def front(self, options: PrefixTuningMethodOptions) -> int:
        return options.tokens

    def finish(self, base: Base, tuned: Tuned) -> None:  # noqa: ARG002
        fold(tuned.peft)

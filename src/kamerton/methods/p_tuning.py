"""`p-tuning`: soft tokens out of a small network × supervised loss (Liu et al. 2021, arXiv 2103.10385)."""

from __future__ import annotations

from pydantic import Field

from kamerton.base.load import Base
from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning import Tuned
from kamerton.tuning.encoders import fold
from kamerton.tuning.p_tuning import PTuning, PTuningOptions


class PTuningMethodOptions(TrainingOptions, PTuningOptions):
    """Options of the method `p-tuning`."""

    batch_size: int = Field(4, gt=0, description="examples in an optimiser step")  # a prompt needs many steps


class PTuningMethod(TrainedMethod):
    """Soft tokens computed by a network that is trained with them, all weights of the model frozen."""

    name = "p-tuning"
    summary = "soft tokens that a small network computes while they are trained"
    trains = "n embeddings and a small network"
    paper = "Liu et al. 2021, arXiv 2103.10385"
    options = PTuningMethodOptions
    parameterisation = PTuning
    space = {"learning_rate": (1e-3, 3e-4, 3e-3), "tokens": (100, 20, 50)}  # noqa: RUF012 (read only)

    def front(self, options: PTuningMethodOptions) -> int:
        return options.tokens

    def finish(self, base: Base, tuned: Tuned) -> None:  # noqa: ARG002
        fold(tuned.peft)

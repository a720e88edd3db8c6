"""`prompt-tuning`: soft tokens × supervised loss (Lester et al. 2021, arXiv 2104.08691)."""

from __future__ import annotations

from pydantic import Field

from kamerton.base.load import Base
from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning import Tuned
from kamerton.tuning.encoders import fold
from kamerton.tuning.prompt import PromptOptions, PromptTuning


class PromptTuningMethodOptions(TrainingOptions, PromptOptions):
    """Options of the method `prompt-tuning`."""

    batch_size: int = Field(4, gt=0, description="examples in an optimiser step")  # a prompt needs many steps


class PromptTuningMethod(TrainedMethod):
    """Trained embeddings in front of every sequence, all weights frozen."""

    name = "prompt-tuning"
    summary = "trained embeddings in front of every sequence"
    trains = "n embeddings"
    paper = "Lester et al. 2021, arXiv 2104.08691"
    options = PromptTuningMethodOptions
    parameterisation = PromptTuning
    space = {"learning_rate": (5e-2, 1e-1, 2e-2), "tokens": (100, 20, 50)}  # noqa: RUF012 (read only)

    def front(self, options: PromptTuningMethodOptions) -> int:
        return options.tokens

    def finish(self, base: Base, tuned: Tuned) -> None:  # noqa: ARG002
        fold(tuned.peft)

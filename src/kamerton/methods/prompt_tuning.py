"""`prompt-tuning`: soft tokens × supervised loss (Lester et al. 2021, arXiv 2104.08691)."""

from __future__ import annotations

from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning.prompt import PromptOptions, PromptTuning


class PromptTuningMethodOptions(TrainingOptions, PromptOptions):
    """Options of the method `prompt-tuning`."""


class PromptTuningMethod(TrainedMethod):
    """Trained embeddings in front of every sequence, all weights frozen."""

    name = "prompt-tuning"
    summary = "trained embeddings in front of every sequence"
    trains = "n embeddings"
    paper = "Lester et al. 2021, arXiv 2104.08691"
    options = PromptTuningMethodOptions
    parameterisation = PromptTuning
    space = {"learning_rate": (3e-2, 1e-2, 1e-1), "tokens": (20, 5, 50), "batch_size": (16, 8)}  # noqa: RUF012 (read only)

    def front(self, options: PromptTuningMethodOptions) -> int:
        return options.tokens

"""`prompt-generator`: soft tokens that a small network makes of the query × supervised loss (IDPG, Wu et al. 2022)."""

from __future__ import annotations

from pydantic import Field

from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning.prompt_generator import PromptGenerator, PromptGeneratorOptions


class PromptGeneratorMethodOptions(TrainingOptions, PromptGeneratorOptions):
    """Options of the method `prompt-generator`."""

    batch_size: int = Field(4, gt=0, description="examples in an optimiser step")  # a prompt needs many steps


class PromptGeneratorMethod(TrainedMethod):
    """Soft tokens of which some are made of the query by a small network, all weights frozen."""

    name = "prompt-generator"
    summary = "soft tokens that a small network makes of the query"
    trains = "embeddings and a small network"
    paper = "Wu et al. 2022, arXiv 2204.04497"
    options = PromptGeneratorMethodOptions
    parameterisation = PromptGenerator
    space = {"learning_rate": (5e-2, 1e-1, 2e-2), "generated": (8, 4, 16)}  # noqa: RUF012 (read only)

    def front(self, options: PromptGeneratorMethodOptions) -> int:
        return options.tokens + options.generated

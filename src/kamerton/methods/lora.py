"""`lora`: LoRA matrices × supervised loss (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any, ClassVar

from kamerton.methods.injected import InjectedMethod
from kamerton.methods.trained import TrainingOptions
from kamerton.tuning.lora import Lora, LoraOptions


class LoraMethodOptions(TrainingOptions, LoraOptions):
    """Options of the method `lora`."""


class LoraMethod(InjectedMethod):
    """Low-rank matrices on all linear layers."""

    name = "lora"
    summary = "low-rank matrices beside frozen weights"
    trains = "two matrices of rank r for each linear layer"
    paper = "Hu et al. 2021, arXiv 2106.09685"
    options = LoraMethodOptions
    parameterisation: ClassVar[Any] = Lora
    space = {"learning_rate": (1e-3, 3e-4, 3e-3), "rank": (16, 4, 64), "batch_size": (8, 16)}  # noqa: RUF012 (read only)

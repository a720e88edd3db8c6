"""`full`: all weights × supervised loss."""

from __future__ import annotations

from kamerton.base.load import Base
from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning import Tuned
from kamerton.tuning.full import Full, FullOptions


class FullMethodOptions(TrainingOptions, FullOptions):
    """Options of the method `full`."""


class FullMethod(TrainedMethod):
    """Every weight, kept in float32 while it trains."""

    name = "full"
    summary = "full fine-tuning of every weight"
    trains = "all weights"
    paper = "Howard & Ruder 2018, arXiv 1801.06146"
    options = FullMethodOptions
    parameterisation = Full
    space = {"learning_rate": (1e-4, 3e-5, 3e-4), "batch_size": (8, 16)}  # noqa: RUF012 (read only)

    def finish(self, base: Base, tuned: Tuned) -> None:
        if tuned.model.frozen is not None:
            note = tuned.model.frozen.note()
            tuned.notes += [note] if note else []
            tuned.model.frozen = None
        # evaluated in the base's data type, like every other method; buffers (rotary frequencies) keep their own
        for parameter in tuned.module.parameters():
            parameter.data = parameter.data.to(base.model.dtype)

"""`head`: the head of an encoder × its loss, the encoder frozen."""

from __future__ import annotations

from kamerton.base.load import Base
from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.tuning import Tuned
from kamerton.tuning.head import HeadOnly, HeadOnlyOptions


class HeadMethodOptions(TrainingOptions, HeadOnlyOptions):
    """Options of the method `head`."""


class HeadMethod(TrainedMethod):
    """Only the head is trained."""

    name = "head"
    summary = "a trained head on a frozen encoder"
    trains = "the head's weights"
    paper = "Devlin et al. 2019, arXiv 1810.04805"
    options = HeadMethodOptions
    parameterisation = HeadOnly
    space = {"learning_rate": (1e-3, 1e-2, 1e-4), "batch_size": (8, 16)}  # noqa: RUF012 (read only)

    def finish(self, base: Base, tuned: Tuned) -> None:
        for parameter in tuned.module.parameters():  # evaluated in the base's data type, like every other method
            parameter.data = parameter.data.to(base.model.dtype)

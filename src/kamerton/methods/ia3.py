"""`ia3`: factors on activations × supervised loss (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

from kamerton.base.load import Base
from kamerton.methods.injected import InjectedMethod
from kamerton.methods.trained import TrainingOptions
from kamerton.tasks.example import Task
from kamerton.tuning.ia3 import Ia3, Ia3Options
from kamerton.tuning.modules import keys_and_values, last_projections
from kamerton.tuning.targets import check_targets


class Ia3MethodOptions(TrainingOptions, Ia3Options):
    """Options of the method `ia3`."""


class Ia3Method(InjectedMethod):
    """Trained factors on keys, values and the MLP's hidden units."""

    name = "ia3"
    summary = "trained factors on keys, values and hidden units"
    trains = "one number for each key, value and hidden unit"
    paper = "Liu et al. 2022, arXiv 2205.05638"
    options = Ia3MethodOptions
    parameterisation = Ia3
    space = {"learning_rate": (3e-2, 1e-2, 1e-1)}  # noqa: RUF012 (read only)

    def check(self, base: Base, task: Task, options: Ia3MethodOptions) -> None:  # noqa: ARG002
        if options.targets is None:
            keys_and_values(base, "ia3.targets")
        elif options.targets:  # one of the two may be left out
            check_targets(base, options.targets, "ia3.targets")
        if options.feedforward is None:
            last_projections(base, "mlp", "ia3.feedforward")
        elif options.feedforward:
            check_targets(base, options.feedforward, "ia3.feedforward")

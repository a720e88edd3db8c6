"""`adapter`: bottleneck adapters × supervised loss (Houlsby et al. 2019, arXiv 1902.00751)."""

from __future__ import annotations

from kamerton.base.load import Base
from kamerton.methods.injected import InjectedMethod
from kamerton.methods.trained import TrainingOptions
from kamerton.tasks.example import Task
from kamerton.tuning.adapter import Adapter, AdapterOptions
from kamerton.tuning.modules import last_projections
from kamerton.tuning.targets import check_targets


class AdapterMethodOptions(TrainingOptions, AdapterOptions):
    """Options of the method `adapter`."""


class AdapterMethod(InjectedMethod):
    """Small networks behind the layers' last projections."""

    name = "adapter"
    summary = "small trained networks behind attention and MLP"
    trains = "two matrices and two biases for each adapter"
    paper = "Houlsby et al. 2019, arXiv 1902.00751"
    options = AdapterMethodOptions
    parameterisation = Adapter
    space = {"learning_rate": (1e-3, 3e-4, 3e-3), "width": (48, 16, 128)}  # noqa: RUF012 (read only)

    def check(self, base: Base, task: Task, options: AdapterMethodOptions) -> None:  # noqa: ARG002
        if options.targets is not None:
            check_targets(base, options.targets, "adapter.targets")
            return
        for kind in ("mlp", "attention") if options.placement == "houlsby" else ("mlp",):
            last_projections(base, kind, "adapter.targets")

"""Bottleneck adapters: a small network with a residual connection behind a layer's output (Houlsby et al. 2019, arXiv
1902.00751; Pfeiffer et al. 2020, arXiv 2005.00247), through peft.

h becomes h + U σ(D h) with U zero at the start, so that at step 0 the model is the base. Houlsby places them behind the
last projections of attention and of the MLP in every layer, Pfeiffer behind the MLP's only; in both before the layer's
own residual connection is added. peft's side of it is in `bottleneck.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from kamerton.base.load import Base
from kamerton.tasks.example import Task
from kamerton.tuning.modules import last_projections
from kamerton.tuning.parameterisation import Options, Tuned, injected, load_injected
from kamerton.tuning.targets import check_targets


class AdapterOptions(Options):
    """Options of bottleneck adapters."""

    width: int = Field(48, gt=0, description="dimensions of the bottleneck")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="behind attention and MLP (houlsby), or behind the MLP only (pfeiffer)"
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field("relu", description="nonlinearity of the bottleneck")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input")
    targets: list[str] | None = Field(
        None, description="linear layers behind which adapters stand; none: by the placement"
    )


class Adapter:
    """Adapters behind layers."""

    name = "adapter"
    options = AdapterOptions
    encoder_decoder = True

    @staticmethod
    def attach(base: Base, options: AdapterOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        from peft import get_peft_model

        from kamerton.tuning.bottleneck import BottleneckConfig

        where, targets = "adapter.targets", options.targets
        if targets is None:
            targets = last_projections(base, "mlp", where)
            if options.placement == "houlsby":
                targets = [*last_projections(base, "attention", where), *targets]
        check_targets(base, targets, where)
        fresh = base.reload(frozen=True)
        torch.manual_seed(seed)
        config = BottleneckConfig(
            task_type=fresh.model.task_type, target_modules=targets, width=options.width, activation=options.activation,
            dropout=options.dropout,
        )  # fmt: skip
        return injected(fresh, get_peft_model(fresh.model.hf, config))

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        import kamerton.tuning.bottleneck  # noqa: F401 - makes it known to peft

        return injected(*load_injected(base, folder))

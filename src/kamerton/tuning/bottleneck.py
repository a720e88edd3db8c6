"""Bottleneck adapters: a small network with a residual connection behind a layer's output (Houlsby et al. 2019, arXiv
1902.00751; Pfeiffer et al. 2020, arXiv 2005.00247).

h becomes h + U σ(D h): D projects down to a few dimensions, σ is a nonlinearity, U projects up again. U starts at
zero, so that at step 0 the model is the base. Houlsby places them behind the last projections of attention and of the
MLP in every layer, Pfeiffer behind the MLP's only; in both before the layer's own residual connection is added.

peft has no such tuner. This module registers one under the name `bottleneck`, so that peft's own saving, loading and
switching between adapters work with it; a program that loads such an adapter with peft alone imports this module
first. Adapters cannot be merged into the weights: σ stands in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType
from pydantic import Field
from torch import Tensor, nn

from kamerton.base.load import Base
from kamerton.base.model import CausalModel
from kamerton.tasks.example import Task
from kamerton.tuning.modules import check_targets, last_projections
from kamerton.tuning.parameterisation import Options, Tuned, load_peft, settle

NAME = "bottleneck"

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
"""σ by name."""


def _enter(name: str) -> Any:
    """Make `name` a member of peft's enumeration of methods, which is closed but asked for every adapter."""
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = member._value_ = value
        type.__setattr__(PeftType, value, member)
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
    return PeftType[value]


_TYPE = _enter(NAME)


@dataclass
class BottleneckConfig(PeftConfig):
    """What peft keeps of an adapter in `adapter_config.json`.

    Attributes:
        target_modules: names (or ends of names) of the modules behind whose outputs the adapters stand.
        width: dimensions of the bottleneck.
        activation: a name of `ACTIVATIONS`.
        dropout: on the adapter's input while training.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    width: int = field(default=48)
    activation: str = field(default="relu")
    dropout: float = field(default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _TYPE
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; use one of: {', '.join(ACTIVATIONS)}")


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A layer of the base with any number of adapters behind it, of which the active ones add to its output."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module, size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.size = size
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.activations: dict[str, nn.Module] = {}
        self.dropouts: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        self.bottleneck_down[name] = nn.Linear(self.size, config.width)
        self.bottleneck_up[name] = nn.Linear(config.width, self.size)
        nn.init.zeros_(self.bottleneck_up[name].weight)
        nn.init.zeros_(self.bottleneck_up[name].bias)
        self.activations[name] = ACTIVATIONS[config.activation]()
        self.dropouts[name] = config.dropout
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.base_layer(*args, **kwargs)  # (…, size)
        if self.disable_adapters:
            return out
        moved = out
        for name in self.active_adapters:
            if name not in self.bottleneck_down:
                continue
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            x = nn.functional.dropout(out, self.dropouts[name], self.training).to(down.weight.dtype)
            moved = moved + up(self.activations[name](down(x))).to(out.dtype)
        return moved

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        raise ValueError("bottleneck adapters cannot be merged into the weights: a nonlinearity stands in between")

    def unmerge(self) -> None:
        raise ValueError("bottleneck adapters are never merged")


class BottleneckModel(BaseTuner):
    """peft's side of it: puts a `BottleneckLayer` in the place of every targeted module."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - an attribute that peft reads from the class

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, _outputs(target, current_key))
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is switched to
        self._replace_module(parent, target_name, layer, target)


def _outputs(module: nn.Module, name: str) -> int:
    """The width of a linear layer's output."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer, weights transposed
        return int(module.nf)  # type: ignore[arg-type]
    raise TypeError(f"an adapter stands behind a linear layer, and {name} is a {type(module).__name__}")


register_peft_method(name=NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel)


class BottleneckOptions(Options):
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


class Bottleneck:
    """Adapters behind layers."""

    name = "adapter"
    options = BottleneckOptions

    @staticmethod
    def attach(base: Base, options: BottleneckOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        where, targets = "adapter.targets", options.targets
        if targets is None:
            targets = last_projections(base, "mlp", where)
            if options.placement == "houlsby":
                targets = [*last_projections(base, "attention", where), *targets]
        check_targets(base, targets, where)
        fresh = base.reload()
        torch.manual_seed(seed)
        config = BottleneckConfig(
            task_type="CAUSAL_LM", target_modules=targets, width=options.width, activation=options.activation,
            dropout=options.dropout,
        )  # fmt: skip
        peft = get_peft_model(fresh.model.hf, config)
        return Tuned(CausalModel(fresh.model.hf), peft, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        fresh, peft = load_peft(base, folder)
        settle(peft, base)
        return Tuned(CausalModel(fresh.model.hf), peft, peft)

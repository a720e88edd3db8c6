"""Bottleneck adapters as a tuner of peft's: h becomes h + U σ(D h) behind a layer (Houlsby et al. 2019, arXiv
1902.00751).

D projects down to a few dimensions, σ is a nonlinearity, U projects up again. peft has no such tuner. This module
registers one under the name `bottleneck`, so that peft's own saving, loading and switching between adapters work with
it; a program that loads such an adapter with peft alone imports this module first. Adapters cannot be merged into the
weights: σ stands in between. Which layers they stand behind is decided in `adapter.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

from kamerton.tuning.peft_types import enter

NAME = "bottleneck"

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
"""σ by name."""


_TYPE = enter(NAME)


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
        self.bottleneck_down: Any = nn.ModuleDict()
        self.bottleneck_up: Any = nn.ModuleDict()
        self.activations: dict[str, nn.Module] = {}
        self.dropouts: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        up = nn.Linear(config.width, self.size)
        nn.init.zeros_(up.weight)  # so that the adapter starts as nothing
        nn.init.zeros_(up.bias)
        self.bottleneck_down[name], self.bottleneck_up[name] = nn.Linear(self.size, config.width), up
        self.activations[name] = ACTIVATIONS[config.activation]()
        self.dropouts[name] = config.dropout
        BaseTunerLayer._move_adapter_to_device_of_base_layer(self, name)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.base_layer(*args, **kwargs)  # (…, size)
        if self.disable_adapters:
            return out
        moved, active = out, cast(list[str], self.active_adapters)
        for name in active:
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
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, parameter_name: str | None = None,  # noqa: ARG002 - peft's signature
    ) -> None:  # fmt: skip
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, _outputs(target, current_key))
        layer._active_adapter = adapter_name  # type: ignore[assignment]
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

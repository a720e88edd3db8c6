"""Linear layers for inference on a CPU in bfloat16: weights laid out once as the matrix unit wants them.

PyTorch's own linear layer brings a bfloat16 weight into that layout again at every call, which for a few tokens costs
more than the product. Here it is done once, and as long as `active` lasts the layers compute with the copy. The copy
takes as much memory as the weights, so it is made only where four times as much is free.

What it leaves out: float32 (no gain, and its results stay bit for bit PyTorch's), GPUs, and anything with a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

_SMALLEST = 2**15
"""Weights with fewer elements (LoRA's) are left alone: their products are cheap as they are."""


class PackedLinears:
    """Packed copies of a model's linear layers, made again for weights that changed.

    Args:
        model: the module whose `nn.Linear` layers are sped up.
        like: the packs of another model that shares some of the weights; theirs are not made a second time.
    """

    def __init__(self, model: nn.Module, like: PackedLinears | None = None) -> None:
        self._model, self._like = model, like
        self._packs: dict[int, tuple[Any, Callable[[Tensor], Tensor]]] = {}
        self._layers: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = []

    @torch.no_grad()
    def refresh(self) -> None:
        """Pack what is not packed yet or changed since; call it before a run of passes."""
        layers: list[Any] = [m for m in self._model.modules() if _packable(m)]
        shared = self._like.by_state() if self._like is not None else {}
        missing = sum(
            m.weight.numel() * m.weight.element_size()
            for m in layers
            if id(m) not in self._packs and _state(m) not in shared
        )
        self._layers = []
        if missing and 4 * missing > psutil.virtual_memory().available:
            return
        packs = {}
        for module in layers:
            state = _state(module)
            known = self._packs.get(id(module))
            if known is None or known[0] != state:
                known = (state, shared[state] if state in shared else _packed(module))
            packs[id(module)] = known
            self._layers.append((module.__dict__, packs[id(module)][1]))
        self._packs = packs

    def by_state(self) -> dict[Any, Callable[[Tensor], Tensor]]:
        """The packs by the state of their weights, made where they are not there yet."""
        self.refresh()
        return dict(self._packs.values())

    @contextmanager
    def active(self) -> Iterator[None]:
        """The layers compute with their packed weights, unless gradients are on."""
        if torch.is_grad_enabled():
            yield
            return
        for attributes, forward in self._layers:
            attributes["forward"] = forward
        try:
            yield
        finally:
            for attributes, _ in self._layers:
                attributes.pop("forward", None)


def _packable(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__  # something else (a hook of accelerate) has taken it
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.bfloat16
        and module.weight.numel() >= _SMALLEST
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _state(module: nn.Linear) -> tuple[Any, ...]:
    """Differs where a weight was replaced, stepped by an optimiser, or merged into through `.data`."""
    out: list[Any] = []
    for tensor in (module.weight, module.bias):
        if tensor is not None:
            sample = tensor.detach().flatten()[:: max(1, tensor.numel() // 512)]
            out += [tensor.data_ptr(), tensor._version, tuple(tensor.shape), float(sample.float().sum())]
    return tuple(out)


def _packed(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
    bias = None if module.bias is None else module.bias.detach().to(weight.dtype)  # one that is trained is float32
    linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(x: Tensor) -> Tensor:
        return linear(x, weight, bias, "none", [], "")

    return forward

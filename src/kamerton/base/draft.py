"""A model's own rough copy, which guesses the tokens that the model then checks.

Decoding one answer on a CPU takes as long as reading the weights from memory. The copy has the layers' weights in 4
bits (groups of 32 with a scale and a zero each, rounded to nearest) and the output layer's in 8, so that it reads an
eighth or a quarter of that; what LoRA adds is merged into it. It keeps its keys and values in the model's own cache,
where the check overwrites them. How guesses are checked is in `inference/drafting.py` (Leviathan et al. 2023, arXiv
2211.17192; that a model's own quantised copy may be what guesses: Zhang et al. 2023, arXiv 2309.08168, in another
form).

What it leaves out: GPUs, models that `lean.py` does not know, and copies smaller than the model in layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from kamerton.base.lean import Lean, Projects, lean, lora_parts

_GROUP = 32
_INNER = 1
"""Tiles of the packed layout; the CPU's kernel knows this one."""


class Draft:
    """The rough copy.

    Args:
        layers: its layers, which compute in bfloat16.
        head: (V, H) int8 weights of the output layer.
        scales: (V,) bfloat16.
    """

    def __init__(self, layers: Lean, head: Tensor, scales: Tensor) -> None:
        self.layers, self._head, self._scales = layers, head, scales

    @classmethod
    @torch.no_grad()
    def of(cls, hf: Any, backbone: Any) -> Draft | None:
        """A model's copy; None where it cannot be made, or would take more than a quarter of the free memory."""
        output = hf.get_output_embeddings()
        if type(output) is not nn.Linear or output.weight.device.type != "cpu" or output.bias is not None:
            return None
        bytes_ = sum(p.numel() for p in hf.parameters())
        if 4 * bytes_ > psutil.virtual_memory().available:
            return None
        layers = lean(backbone, _in_four_bits, torch.bfloat16)
        if layers is None:
            return None
        weight = output.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_(min=1e-8) / 127
        return cls(layers, (weight / scale).round_().to(torch.int8), scale[:, 0].to(torch.bfloat16))

    def output(self, hidden: Tensor) -> Tensor:
        """(N, H) bfloat16 hidden states → (N, V) logits."""
        return torch._weight_int8pack_mm(hidden, self._head, self._scales)


def state(hf: nn.Module) -> tuple[Any, ...]:
    """Differs where a weight was replaced, stepped by an optimiser, or merged into."""
    out: list[Any] = []
    for weight in hf.parameters():
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 512)]
        out += [weight.data_ptr(), weight._version, float(sample.float().sum())]
    return tuple(out)


def _in_four_bits(modules: Sequence[Any]) -> Projects | None:
    """Projections of the same vectors as one product with weights of 4 bits."""
    weights, biases = [], []
    for module in modules:
        parts = [] if type(module) is nn.Linear else lora_parts(module)
        if parts is None:
            return None
        base = module if type(module) is nn.Linear else module.base_layer
        weight = base.weight.detach().float()
        for down, up, scale in parts:
            weight = torch.addmm(weight, up.detach().float(), down.detach().float(), alpha=scale)
        weights.append(weight)
        biases.append(base.bias)
    sizes = [w.shape[0] for w in weights]
    if weights[0].shape[1] % _GROUP or sum(sizes) % 16 or (len({b is None for b in biases}) > 1):
        return None
    packed, grid = _packed(torch.cat(weights))
    bias = None if biases[0] is None else torch.cat([b.detach() for b in biases]).to(torch.bfloat16)

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        out = torch._weight_int4pack_mm_for_cpu(x, packed, _GROUP, grid)
        return (out if bias is None else out + bias).split(sizes, dim=-1)

    return forward


def _packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) → codes in the kernel's layout, and (K / 32, N, 2) scales and middles: w ≈ (code − 8) · scale + middle."""
    n, k = weight.shape
    groups = weight.view(n, -1, _GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_(min=1e-8)
    codes = ((groups - low) / scale).round_().clamp_(0, 15).to(torch.int32).view(n, k)
    grid = torch.cat([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return torch._convert_weight_to_int4pack_for_cpu(codes, _INNER), grid

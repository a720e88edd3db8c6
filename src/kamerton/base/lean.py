"""The layers of a LLaMA-like model without the machinery around them, for passes without gradient.

transformers' modules ask, at every layer of every pass, for hooks, caches, masks and outputs that nobody wants here.
For one token of a small model on a CPU that asking takes longer than the numbers. `Lean` does the same operations in
the same order, so that its results are those of the modules, and leaves the asking out. It is made only of layers
whose code is LLaMA's (Mistral's and many others' is, word for word) and whose projections are plain linear layers or
peft's LoRA; a model with anything else in it, or with hooks, goes through its modules as before.

What it leaves out: gradients, quantised weights, DoRA, and layers that are no LLaMA's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kamerton.base.attention import Layout, packed_attention
from kamerton.base.kernels import rotates_as_llama, same_code

Project = Callable[[Tensor], Tensor]
"""(T, in) → (T, out)."""
Projects = Callable[[Tensor], tuple[Tensor, ...]]
"""Several projections of the same vectors."""


class Place:
    """What attention asks of its module: the layer's number."""

    __slots__ = ("layer_idx",)

    def __init__(self, layer_idx: int) -> None:
        self.layer_idx = layer_idx


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's parts. The norms are their weights and what is added to the variance."""

    place: Place
    first_norm: tuple[Tensor, float]
    second_norm: tuple[Tensor, float]
    qkv: Projects
    out: Projects
    gate_up: Projects
    down: Projects
    activation: Project
    width: int
    """Of a head."""
    scaling: float
    window: int | None = None
    head_norms: tuple[tuple[Tensor, float], tuple[Tensor, float]] | None = None
    """Of queries and of keys, where a model has them."""


class Lean:
    """The layers and the final norm.

    Args:
        layers: in their order.
        norm: the final one.
        rotary: the module that gives cosines and sines of positions.
    """

    def __init__(self, layers: Sequence[Layer], norm: tuple[Tensor, float], rotary: nn.Module) -> None:
        self.layers, self.norm, self.rotary = layers, norm, rotary

    def __call__(self, hidden: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """(T, H) embeddings at positions (T,) → (T, H) hidden states behind the final norm."""
        cos, sin = self.rotary(hidden, positions[None])
        half = cos.shape[-1] // 2
        cos = cos[0][:, None]  # (T, 1, D)
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)[:, None]
        kept = _kept(layout, hidden.dtype)
        for layer in self.layers:
            hidden = hidden + self._attend(layer, rms_norm(hidden, *layer.first_norm), cos, sin, layout, kept)
            gate, up = layer.gate_up(rms_norm(hidden, *layer.second_norm))
            hidden = hidden + layer.down(layer.activation(gate) * up)[0]
        return rms_norm(hidden, *self.norm)

    @staticmethod
    def _attend(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, kept: torch.dtype) -> Tensor:
        query, key, value = (y.view(len(x), -1, layer.width) for y in layer.qkv(x))  # (T, H, D)
        if layer.head_norms is not None:
            query, key = rms_norm(query, *layer.head_norms[0]), rms_norm(key, *layer.head_norms[1])
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        dtype = query.dtype
        if kept != dtype:
            query, key, value = query.to(kept), key.to(kept), value.to(kept)
        query, key, value = (y.transpose(0, 1)[None] for y in (query, key, value))
        out, _ = packed_attention(
            layer.place, query, key, value, None, scaling=layer.scaling, sliding_window=layer.window,  # type: ignore[arg-type]
            layout=layout,
        )  # fmt: skip
        return layer.out(out.reshape(len(x), -1).to(dtype))[0]


def _kept(layout: Layout, own: torch.dtype) -> torch.dtype:
    """The type of the keys and values that are there already: a draft computes in another one than its model."""
    if layout.shared:
        return layout.shared[0][0].dtype
    return layout.cache.keys[0].dtype if layout.cache is not None and layout.cache.keys else own


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """LLaMA's: in float32, the weight applied in the model's own type."""
    wide = x.float()
    scale = wide.mul(wide).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return weight * (wide * scale).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotation of (T, H, D) by position; the first half of (T, 1, D) sines stands there negated."""
    return x * cos + x.view(*x.shape[:-1], 2, -1).flip(-2).view(x.shape) * sin


def lean(
    backbone: Any, project: Callable[[Sequence[nn.Module]], Projects | None], dtype: torch.dtype | None = None
) -> Lean | None:  # fmt: skip
    """A model's layers, or None where they are not LLaMA's.

    Args:
        backbone: the decoder inside a transformers model.
        project: how projections of the same vectors are computed; None for some that it does not know.
        dtype: what the layers compute in where that is not the model's own type.
    """
    stack, final, rotary = (getattr(backbone, name, None) for name in ("layers", "norm", "rotary_emb"))
    if stack is None or final is None or rotary is None or not _is_model(type(backbone)) or not _is_norm(type(final)):
        return None

    def norm(module: Any) -> tuple[Tensor, float]:
        return module.weight if dtype is None else module.weight.detach().to(dtype), module.variance_epsilon

    layers = []
    for i, layer in enumerate(stack[: backbone.config.num_hidden_layers]):
        if not _known(layer):
            return None
        attention, mlp = layer.self_attn, layer.mlp
        inputs = ([attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj],
                  [mlp.gate_proj, mlp.up_proj], [mlp.down_proj])  # fmt: skip
        qkv, out, gate_up, down = (project(modules) for modules in inputs)
        if qkv is None or out is None or gate_up is None or down is None:
            return None
        heads = (norm(attention.q_norm), norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
        layers.append(Layer(
            Place(i), norm(layer.input_layernorm), norm(layer.post_attention_layernorm), qkv, out, gate_up, down,
            mlp.act_fn, attention.head_dim, attention.scaling, _window(attention), heads,
        ))  # fmt: skip
    return Lean(layers, norm(final), rotary)


def _window(attention: Any) -> int | None:
    """How far back a layer looks, where it is bound: Mistral's asks the configuration, Qwen's knows."""
    holder = attention.config if type(attention).__name__.startswith("Mistral") else attention
    return getattr(holder, "sliding_window", None)


def _known(layer: Any) -> bool:
    parts = [layer, layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm]
    parts += [part for name in ("q_norm", "k_norm") if (part := getattr(layer.self_attn, name, None)) is not None]
    types = tuple(type(part) for part in parts)
    return _same_layer(types) and not any("forward" in part.__dict__ for part in parts)


_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Models of transformers whose attention is LLaMA's, but for a window and for norms of heads."""


def _same_layer(types: tuple[type[nn.Module], ...]) -> bool:
    from transformers.models.llama import modeling_llama as llama

    layer, attention, mlp, *norms = types
    return (
        (same_code(attention, llama.LlamaAttention) or _of_family(attention, "Attention"))
        and rotates_as_llama(attention.__module__)
        and same_code(layer, llama.LlamaDecoderLayer)
        and same_code(mlp, llama.LlamaMLP)
        and all(map(_is_norm, norms))
    )


def _is_model(kind: type[nn.Module]) -> bool:
    from transformers.models.llama import modeling_llama as llama

    return same_code(kind, llama.LlamaModel) or _of_family(kind, "Model")


def _is_norm(kind: type[nn.Module]) -> bool:
    from transformers.models.llama import modeling_llama as llama

    return same_code(kind, llama.LlamaRMSNorm)


def _of_family(kind: type[nn.Module], part: str) -> bool:
    return any(
        kind.__module__ == f"transformers.models.{name}.modeling_{name}" and kind.__name__ == name.capitalize() + part
        for name in _FAMILIES
    )


def own_projections(modules: Sequence[Any]) -> Projects | None:
    """Layers as they are, one after another."""
    found = [projection for m in modules if (projection := _own(m)) is not None]
    return (lambda x: tuple(projection(x) for projection in found)) if len(found) == len(modules) else None


def _own(module: Any) -> Project | None:
    """A linear layer as it is (packed, where `linears.py` has packed it), with LoRA where peft put it there."""
    if type(module) is nn.Linear:
        return lambda x: module.forward(x)  # looked up at every pass: packing replaces it
    return _with_lora(module)


def lora_parts(module: Any) -> list[tuple[Tensor, Tensor, float]] | None:
    """The active matrices A (r, in) and B (out, r) with their scale of a layer that peft gave LoRA; None for others.

    Empty where its adapters are switched off or merged.
    """
    from peft.tuners.lora.layer import Linear as LoraLinear

    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear:
        return None
    if module.disable_adapters or module.merged:
        return None if module.disable_adapters and module.merged else []
    parts = []
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        dropout = module.lora_dropout[name]
        down, up = module.lora_A[name], module.lora_B[name]
        if name in module.lora_variant or (dropout.training and not isinstance(dropout, nn.Identity)):
            return None
        if up.bias is not None:
            return None
        parts.append((down.weight, up.weight, module.scaling[name]))
    return parts


def _with_lora(module: Any) -> Project | None:
    """A linear layer with LoRA, computed as peft does."""
    parts = lora_parts(module)
    if parts is None:
        return None
    base = module.base_layer

    def forward(x: Tensor) -> Tensor:
        result = base.forward(x)
        dtype = result.dtype
        for down, up, scale in parts:
            x = x.to(down.dtype)
            result = result + F.linear(F.linear(x, down), up) * scale
        return result.to(dtype)

    return forward


def hooked(backbone: nn.Module) -> Callable[[], bool]:
    """A question, quick to ask, whether anything inside a model has hooks now."""
    hooks = [h for m in backbone.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    return lambda: any(hooks)

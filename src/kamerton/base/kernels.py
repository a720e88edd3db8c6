"""RMSNorm, rotation by position and log-probability, in fewer passes over memory.

In a small model on a CPU what stands between the matrix products takes half of a training step. As written in
transformers each of these is five to ten operations forward and as many backward, every one of which reads and writes
all tokens; here each is a function with its own backward pass. The numbers are the same up to the order of additions.

A layer is replaced only where its code in transformers is, word for word, the code that is computed here, and only for
the length of a pass with gradient (`active`); the model stays an ordinary one to everybody else. What it leaves out:
gradients of gradients, layers that somebody else has wrapped, and all other kinds of norms and rotations.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RmsNorm(torch.autograd.Function):
    """`weight · x / sqrt(mean(x²) + ε)` (Zhang and Sennrich 2019), computed in float32: (…, H), (H,) → (…, H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        normed = (wide * scale).to(x.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return weight * normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        normed, scale, weight = ctx.saved_tensors
        by_x = by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            wide, own = (grad * weight).float(), normed.float()
            along = (wide * own).mean(-1, keepdim=True)
            by_x = torch.addcmul(wide, own, along, value=-1).mul_(scale).to(normed.dtype)
        return by_x, by_weight, None


class Rotate(torch.autograd.Function):
    """Rotation by position (Su et al. 2021), the halves of a head's dimensions being a pair's two coordinates.

    x (…, D) with cos and sin that broadcast to it → (…, D) in the type of x, computed in the wider type of the two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # the transpose: what the second half gave to the first comes back with the second half's sine
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    dtype, half = torch.promote_types(x.dtype, cos.dtype), x.shape[-1] // 2
    wide = x.to(dtype)
    first, second = wide[..., :half], wide[..., half:]
    low, high = (sin[..., :half], sin[..., half:]) if sign > 0 else (sin[..., half:], sin[..., :half])
    out = wide * cos
    out[..., :half].addcmul_(second, low, value=-sign)
    out[..., half:].addcmul_(first, high, value=sign)
    return out.to(x.dtype)


class TargetLogProbs(torch.autograd.Function):
    """Logits (N, V) and targets (N,) → log-probabilities (N,) in float32.

    What the backward pass needs of the softmax is computed while its exponentials are at hand, and kept in the type of
    the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.to(torch.float32, copy=True)
        most = wide.amax(1, keepdim=True)
        own = (wide.gather(1, targets[:, None]) - most)[:, 0]
        total = wide.sub_(most).exp_().sum(1, keepdim=True)
        if ctx.needs_input_grad[0]:
            slope = wide.div_(-total).scatter_add_(1, targets[:, None], torch.ones_like(total))
            ctx.save_for_backward(slope.to(logits.dtype))
        return own - total.log()[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None].to(slope.dtype), None


class Kernels:
    """The layers of a model that can be computed this way."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [(m, forward) for m in model.modules() if (forward := _quicker(m)) is not None]

    @contextmanager
    def active(self) -> Iterator[None]:
        """The layers compute this way, where gradients are on."""
        layers = [layer for layer in self._layers if "forward" not in layer[0].__dict__]
        if not torch.is_grad_enabled():
            layers = []
        for module, forward in layers:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, _ in layers:
                module.__dict__.pop("forward", None)


def _quicker(module: nn.Module) -> Callable[..., Any] | None:
    from transformers.models.llama import modeling_llama as llama

    name, own = type(module).__name__, type(module).__module__
    if not own.startswith("transformers."):
        return None
    if name.endswith("RMSNorm") and same_code(type(module), llama.LlamaRMSNorm):
        return lambda hidden_states: RmsNorm.apply(hidden_states, module.weight, module.variance_epsilon)
    if name.endswith("Attention") and same_code(type(module), llama.LlamaAttention) and rotates_as_llama(own):
        return _attention(module)
    return None


@functools.cache
def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # a program without its sources
        return ""


def same_code(kind: type[nn.Module], known: type[nn.Module]) -> bool:
    """Whether a class computes by the very code of another one (transformers copies code from model to model)."""
    return kind is known or (bool(ours := _source(kind.forward)) and ours == _source(known.forward))


def rotates_as_llama(module: str) -> bool:
    """Whether a file of transformers rotates as LLaMA's does."""
    import sys

    from transformers.models.llama import modeling_llama as llama

    there = getattr(sys.modules[module], "apply_rotary_pos_emb", None)
    return there is llama.apply_rotary_pos_emb or _source(there) == _source(llama.apply_rotary_pos_emb) != ""


def _attention(module: Any) -> Callable[..., Any]:
    """LLaMA's attention, rotated here; heads are not moved in front of positions and back."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(
        hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None = None,
        past_key_values: Any = None, **kwargs: Any,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        if past_key_values is not None:
            return type(module).forward(
                module, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )  # fmt: skip
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        cos, sin = (x[:, :, None] for x in position_embeddings)  # (B, T, 1, D)
        query, key = (Rotate.apply(p(hidden_states).view(shape), cos, sin) for p in (module.q_proj, module.k_proj))
        value = module.v_proj(hidden_states).view(shape)
        attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
        out, weights = attend(
            module, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attention_mask,
            dropout=module.attention_dropout if module.training else 0.0, scaling=module.scaling, **kwargs,
        )  # fmt: skip
        return module.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights

    return forward

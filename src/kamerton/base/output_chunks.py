"""The output layer in chunks: what is computed of it, with gradient, never holds the logits of all positions.

Where its weights are frozen, the gradient of each log-probability by its own hidden state is computed in the forward
pass and kept in place of logits, (N, H) in place of (N, V); nothing is then computed twice. Where they are trained,
chunks are computed again in the backward pass (Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

OUTPUT_CHUNK = 256
"""Positions that go through the output layer at once: 256 × 49,152 logits are 50 MB in float32."""

Computed = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def in_chunks(one: Computed, hidden: Tensor, targets: Tensor, chunk: int, *, layer: Any) -> list[Tensor]:
    """What `one` gives for (N, H) hidden states and (N,) targets, chunk by chunk.

    Args:
        one: gives (n,) log-probabilities, each a function of its own hidden state alone, and any number of other
            figures, (n,) each, without gradient.
        layer: the output layer.
    """

    def linearised(h: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inside = h.detach().requires_grad_()
            log_p, *others = one(inside, t)
        log_p.sum().backward()  # not autograd.grad, in which hooks of profilers on the layer do not work
        assert inside.grad is not None
        return log_p.detach() + ((h - h.detach()) * inside.grad).float().sum(1), *others

    learns = torch.is_grad_enabled() and hidden.requires_grad
    frozen = not any(p.requires_grad for p in layer.parameters())
    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    if not learns or (not frozen and len(pieces) == 1):
        found = [one(h, t) for h, t in pieces]
    elif frozen:
        found = [linearised(h, t) for h, t in pieces]
    else:
        found = [checkpoint(one, h, t, use_reentrant=False) for h, t in pieces]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]

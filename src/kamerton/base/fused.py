"""Attention without gradient on a CPU: PyTorch's fused kernel, called so that nothing is repeated, padded or masked
that need not be.

The kernel gives the normaliser beside the result, so attention over a shared front and over a row's own tokens are
computed apart and joined by their normalisers (the cascade of Ye et al. 2024, Hydragen of Juravsky et al. 2024): the
front is read once for all rows and never copied. Grouped queries of a decoding step stand in the place of positions.

What it leaves out: soft caps on scores, dropout, gradients and GPUs; `attention.py` computes those plainly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kamerton.base.attention import Layout

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def usable(query: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether the fused kernel can compute this pass."""
    return query.device.type == "cpu" and softcap is None and not dropout and not torch.is_grad_enabled()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention within rows.

    Args:
        query: (B, H, S, D).
        key, value: (B, H_kv, K, D).
        mask: (B, S, K) to be added to the scores; None: causal.
        scaling: factor of the scores.

    Returns:
        (B, H, S, D) and the logarithm of the normaliser, (B, H, S) float32.
    """
    added = None if mask is None else mask[:, None]
    return _flash(query, key, value, 0.0, mask is None, attn_mask=added, scale=scaling)


def over_front(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """What packed tokens see of a front.

    Args:
        query: (T, H, D), the rows' tokens without padding.
        key, value: (H_kv, P, D) of the front.
        mask: (T, P) to be added to the scores, or None.
        scaling: factor of the scores.

    Returns:
        (T, H, D) and its normalisers, (T, H).
    """
    added = None if mask is None else mask[None, None]
    front, norms = _flash(query.transpose(0, 1)[None], key[None], value[None], attn_mask=added, scale=scaling)
    return front[0].transpose(0, 1), norms[0].transpose(0, 1)


def joined(front: Tensor, front_norms: Tensor, own: Tensor, own_norms: Tensor) -> Tensor:
    """(T, H, D), attention over the front and the own rows, from that over each and its (T, H) normalisers."""
    return torch.lerp(front, own, torch.sigmoid(own_norms - front_norms)[..., None].to(own.dtype))


def decode(
    query: Tensor, row_keys: Tensor, row_values: Tensor, layout: Layout, layer: int, scaling: float, window: int | None
) -> Tensor:
    """One token a row: (B, H, D) queries over (B, H_kv, columns, D) own keys and the shared prefix → (B, H, D)."""
    b, h, d = query.shape
    hk = row_keys.shape[1]
    groups = h // hk
    grouped = query.view(b, hk, groups, d)
    mask = layout.added("decode", window, query.dtype)
    added = None if mask is None else mask[:, None, None]
    out, norms = _flash(grouped, row_keys, row_values, attn_mask=added, scale=scaling)
    if layout.shared:
        key, value = layout.shared[layer]
        mask = layout.added("front", window, query.dtype, groups)  # (B · G, P)
        flat = grouped.transpose(0, 1).reshape(1, hk, b * groups, d)
        added = None if mask is None else mask[None, None]
        front, front_norms = _flash(flat, key[None], value[None], attn_mask=added, scale=scaling)
        front = front[0].view(hk, b, groups, d).transpose(0, 1)
        front_norms = front_norms[0].view(hk, b, groups).transpose(0, 1)
        out = torch.lerp(front, out, torch.sigmoid(norms - front_norms)[..., None].to(out.dtype))
    return out.reshape(b, h, d)

"""The step of generation in plain products: one new token a row, on top of a cache and a front that all rows see.

Where PyTorch's fused kernel can be used, `fused.py` takes the place of `decode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kamerton.base.attention import Layout


def append(key: Tensor, value: Tensor, layout: Layout, layer: int) -> tuple[Tensor, Tensor]:
    """Write one new (B, H_kv, D) key and value a row into the cache; the rows' (B, H_kv, columns, D) with them."""
    assert layout.cache is not None
    keys, values = layout.cache.layer(layer, key)
    b, columns = key.shape[0], layout.cached_columns + 1
    if layout.slots is None and layout.even is not None:
        keys[:b, :, layout.even] = key
        values[:b, :, layout.even] = value
    else:
        slots, lengths = layout.slot_index(), layout.cached()
        keys[slots, :, lengths] = key
        values[slots, :, lengths] = value
    if layout.slots is None:
        return keys[:b, :, :columns], values[:b, :, :columns]
    return keys[layout.slot_index(), :, :columns], values[layout.slot_index(), :, :columns]


def decode(
    query: Tensor, row_keys: Tensor, row_values: Tensor, layout: Layout, layer: int, scaling: float,
    softcap: float | None, window: int | None,
) -> Tensor:  # fmt: skip
    """One token a row: (B, H, D) queries against the shared prefix, read once for all rows, and the rows' columns."""
    b, h, d = query.shape
    hk = row_keys.shape[1]
    front = layout.shared_length
    grouped = query.view(b, hk, h // hk, d)
    scores = torch.matmul(grouped, row_keys.transpose(2, 3))  # (B, H_kv, G, C)
    if front:
        assert layout.shared is not None
        shared_keys, shared_values = layout.shared[layer]
        flat = grouped.permute(1, 0, 2, 3).reshape(hk, -1, d)  # all rows' queries against one copy of the prefix
        shared = torch.matmul(flat, shared_keys.transpose(1, 2)).view(hk, b, h // hk, front).permute(1, 0, 2, 3)
        scores = torch.cat([shared, scores], dim=3)
    scores = scores * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask, seen = layout.added("decode", window, scores.dtype), layout.added("front", window, scores.dtype)
    if mask is not None:
        scores[..., front:] += mask[:, None, None, :]
    if front and seen is not None:
        scores[..., :front] += seen[:, None, None, :]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.matmul(weights[..., front:], row_values)
    if front:
        part = weights[..., :front].permute(1, 0, 2, 3).reshape(hk, -1, front)
        out = out + torch.matmul(part, shared_values).view(hk, b, h // hk, d).permute(1, 0, 2, 3)
    return out.reshape(b, h, d)

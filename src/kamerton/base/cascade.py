"""Attention with gradient over short rows behind a shared front: plain products, the front never copied.

PyTorch's fused kernel is made for long sequences; its backward pass over a few dozen positions takes several times as
long as the products themselves, and it wants the shared front copied into every row. Here the front's scores are one
product of all rows' queries with one copy of its keys. Scores and weights are float32 whatever the model computes in.

What it leaves out: long rows, whose scores would fill the memory (`fits` says which).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST = 2**20
"""Scores of one layer (rows × heads × queries × keys) up to which they are kept for the backward pass: 4 MB."""


def fits(rows: int, heads: int, queries: int, keys: int) -> bool:
    """Whether a pass is small enough, and wants a gradient."""
    return torch.is_grad_enabled() and rows * heads * queries * keys <= _LARGEST


def attend(
    query: Tensor, key: Tensor, value: Tensor, front_key: Tensor | None, front_value: Tensor | None, mask: Tensor,
    scaling: float, softcap: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """Attention of rows over a shared front and their own tokens.

    Args:
        query: (B, H, S, D).
        key, value: (B, H_kv, K, D), the rows' own.
        front_key, front_value: (H_kv, P, D), or None.
        mask: (B, 1, S, P + K) float32, to be added to the scores.
        scaling: factor of the scores; softcap: their soft cap, or None.
        dropout: on the weights.

    Returns:
        (B, H, S, D) in the query's data type.
    """
    b, h, s, d = query.shape
    hk = key.shape[1]
    groups = h // hk
    with torch.autocast(query.device.type, enabled=False):
        q = (query.float() * scaling).reshape(b, hk, groups * s, d)
        scores = torch.matmul(q, key.float().transpose(2, 3))  # (B, H_kv, G·S, K)
        front = 0
        if front_key is not None and front_value is not None:
            front = front_key.shape[1]
            flat = q.transpose(0, 1).reshape(hk, b * groups * s, d)
            seen = torch.matmul(flat, front_key.float().transpose(1, 2))
            scores = torch.cat([seen.view(hk, b, groups * s, front).transpose(0, 1), scores], dim=3)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.view(b, hk, groups, s, -1) + mask[:, :, None]
        weights = F.dropout(torch.softmax(scores, dim=-1), dropout).view(b, hk, groups * s, -1)
        before, own = weights.split([front, weights.shape[-1] - front], dim=-1)
        out = torch.matmul(own, value.float())
        if front_value is not None:
            part = before.transpose(0, 1).reshape(hk, b * groups * s, front)
            out = out + torch.matmul(part, front_value.float()).view(hk, b, groups * s, d).transpose(0, 1)
    return out.view(b, h, s, d).to(query.dtype)

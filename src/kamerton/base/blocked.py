"""Attention with gradient over long rows on a CPU: row by row without padding, with a backward pass of plain products.

The forward pass is PyTorch's fused kernel, on each row's own tokens and on the front that all rows see, joined by their
normalisers (as in `fused.py`). Of it only the result and the normalisers are kept. The backward pass computes the
weights again from them, as flash attention does (Dao et al. 2022, arXiv 2205.14135, algorithm 4), a block of queries at
a time: five matrix products over what a block sees, in float32, instead of the kernel's own backward pass, which knows
no matrix tiles. Query heads that share keys stand in one product, and nothing is repeated for them.

What it leaves out: sliding windows, trees, caches, soft caps, dropout, second derivatives, and all devices but a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kamerton.base import fused

BLOCK = 64
"""Queries of a row that are taken together: what stands behind the last of them is not computed."""
LONG = 1024
"""Tokens of a row from which on PyTorch's backward pass is the quicker one, where nothing is padded or masked."""
_LARGEST = 2**20
"""Weights of all heads in a block, above which it has fewer queries: 4 MB, about what a core's cache holds."""


def usable(query: Tensor, value: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether a pass wants a gradient that can be computed here."""
    plain = softcap is None and not dropout and query.shape[-1] == value.shape[-1]
    return plain and query.device.type == "cpu" and torch.is_grad_enabled()


def worth(lengths: Sequence[int], front: int) -> bool:
    """Whether rows of these lengths behind a front of so many tokens are quicker here.

    Long rows of one length that see nothing but themselves are what PyTorch's kernel was made for
    (`benchmarks/attention.py` measures both).
    """
    return front > 0 or min(lengths) < max(lengths) or max(lengths) < LONG


def attend(
    query: Tensor, key: Tensor, value: Tensor, front_key: Tensor | None, front_value: Tensor | None,
    lengths: Sequence[int], scaling: float,
) -> Tensor:  # fmt: skip
    """Causal attention within packed rows, each behind the same front.

    Args:
        query: (T, H, D), the rows' tokens one row after another.
        key, value: (T, H_kv, D).
        front_key, front_value: (H_kv, P, D), or None.
        lengths: tokens of each row; their sum is T.
        scaling: factor of the scores.

    Returns:
        (T, H, D).
    """
    if front_key is not None and not front_key.shape[1]:
        front_key = front_value = None
    return _Blocked.apply(query, key, value, front_key, front_value, list(lengths), scaling)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, front_key: Tensor | None, front_value: Tensor | None,
        lengths: list[int], scaling: float,
    ) -> Tensor:  # fmt: skip
        with torch.autocast("cpu", enabled=False):
            out, norms = [], []
            for row in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
                q, k, v = (x.transpose(0, 1)[None] for x in row)
                own, norm = fused.attend(q, k, v, None, scaling)
                out.append(own[0].transpose(0, 1))
                norms.append(norm[0].transpose(0, 1))
            attended, norm = torch.cat(out), torch.cat(norms)  # (T, H, D), (T, H)
            if front_key is not None and front_value is not None:
                front, front_norm = fused.over_front(query, front_key, front_value, None, scaling)
                attended = fused.joined(front, front_norm, attended, norm)
                norm = torch.logaddexp(norm, front_norm)
        ctx.save_for_backward(query, key, value, front_key, front_value, attended, norm)
        ctx.lengths, ctx.scaling = lengths, scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, front_key, front_value, out, norm = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            queries = _Queries(query, gradient, out, norm, ctx.scaling, key.shape[1])
            keys = _Keys(key.transpose(0, 1), value.transpose(0, 1), queries.dtype)
            start = 0
            for length in ctx.lengths:
                for first, last in _blocks(length, query.shape[1]):
                    queries.meet(slice(start + first, start + last), keys, slice(start, start + last), causal=True)
                start += length
            front = None
            if front_key is not None:
                front = _Keys(front_key, front_value, queries.dtype)
                seen, step = front_key.shape[1], max(1, _LARGEST // (query.shape[1] * front_key.shape[1]))
                for first in range(0, len(query), step):
                    queries.meet(slice(first, min(first + step, len(query))), front, slice(0, seen), causal=False)
            of_front = (
                (None, None) if front is None else (x.to(front_key.dtype) for x in (front.of_key, front.of_value))
            )
            of_own = (x.transpose(0, 1).to(key.dtype) for x in (keys.of_key, keys.of_value))
            return queries.wanted(), *of_own, *of_front, None, None


def _blocks(length: int, heads: int) -> Iterator[tuple[int, int]]:
    """(first, behind the last) query of each block of a row."""
    first = 0
    while first < length:
        size = min(BLOCK, max(1, _LARGEST // (heads * (first + BLOCK))))
        yield first, min(first + size, length)
        first += size


class _Keys:
    """(H_kv, K, D) keys and values, and their gradients as they grow."""

    def __init__(self, key: Tensor, value: Tensor, dtype: torch.dtype) -> None:
        self.key, self.value = (x.to(dtype, copy=True, memory_format=torch.contiguous_format) for x in (key, value))
        self.of_key, self.of_value = torch.zeros_like(self.key), torch.zeros_like(self.value)


class _Queries:
    """Queries, what came back to them, and their gradient as it grows: the heads of a key side by side.

    Args:
        query, gradient, out: (T, H, D) queries, the gradient of the result, and the result.
        norm: (T, H) normalisers.
        scaling: factor of the scores.
        heads: H_kv.
    """

    def __init__(self, query: Tensor, gradient: Tensor, out: Tensor, norm: Tensor, scaling: float, heads: int) -> None:
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.like, self.scaling, self.heads = query, scaling, heads
        self.groups = query.shape[1] // heads
        self.query, self.gradient = self._sorted(query), self._sorted(gradient)
        self.norm = self._sorted(norm[..., None])
        # Σ_k weight · its gradient is this product for every query, so no row of weights is needed whole
        self.through = (self.gradient * self._sorted(out)).sum(-1, keepdim=True)
        self.of_query = torch.zeros_like(self.query)

    def _sorted(self, x: Tensor) -> Tensor:
        """(T, H, D) → (H_kv, T, G, D), in memory too, so that the tokens of a block and their heads are one axis."""
        return x.unflatten(1, (self.heads, self.groups)).transpose(0, 1).to(
            self.dtype, copy=True, memory_format=torch.contiguous_format
        )  # fmt: skip

    def meet(self, at: slice, keys: _Keys, seen: slice, *, causal: bool) -> None:
        """Add what some queries give to the gradients; `causal`: they are the last ones of what they see."""
        query, gradient, norm, through, of_query = (
            x[:, at].flatten(1, 2) for x in (self.query, self.gradient, self.norm, self.through, self.of_query)
        )
        key, value, of_key, of_value = (x[:, seen] for x in (keys.key, keys.value, keys.of_key, keys.of_value))
        weights = torch.baddbmm(norm, query, key.transpose(1, 2), beta=-1, alpha=self.scaling)
        if causal:
            count = at.stop - at.start
            seen_there = torch.ones(count, count, dtype=self.dtype).tril_()[:, None]
            ends = weights.unflatten(1, (count, self.groups))[..., -count:]
            ends.mul_(seen_there)  # what is not seen could overflow, and exp is slow where it does
            weights.exp_()
            ends.mul_(seen_there)
        else:
            weights.exp_()
        of_value.baddbmm_(weights.transpose(1, 2), gradient)
        of_scores = torch.baddbmm(through, gradient, value.transpose(1, 2), beta=-1).mul_(weights)
        of_key.baddbmm_(of_scores.transpose(1, 2), query, alpha=self.scaling)
        of_query.baddbmm_(of_scores, key, alpha=self.scaling)

    def wanted(self) -> Tensor:
        """(T, H, D) gradient of the queries."""
        return self.of_query.transpose(0, 1).flatten(1, 2).to(self.like.dtype)

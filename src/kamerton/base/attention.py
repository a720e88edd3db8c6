"""Packed attention: the one place where tokens of different rows meet.

All tokens of a batch go through the model as one row of length T, without padding: first a *prefix* that every row sees
(a system text, few-shot examples, soft prompts), then the rows one after another. Every layer but attention works on
single tokens, so nothing there is computed twice and nothing is computed on padding. Only attention needs to know who
sees whom. transformers lets a program register its own attention function (`AttentionInterface`) and hands it the
keyword arguments of the forward call; ours receives a `Layout` that way. The model's own code stays untouched.

What it leaves out: attention sinks, position biases inside attention (ALiBi) and cross-attention. A model that needs
them is refused when it is loaded (`model.py` compares our output with the model's own on a probe).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

NAME = "kamerton"
"""The name under which the attention function is registered with transformers."""

LayerKeys = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values of a prefix, each (H_kv, P, D)."""


class _Take(torch.autograd.Function):
    """`x[index]` along dimension 0 whose backward is another take, not a scatter.

    Each row of x is taken at most once for real (padding takes are masked out of the loss), so the gradient of row t
    is the incoming gradient at `inverse[t]`. A scatter-add does the same several times slower on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


class RowCache:
    """Preallocated keys and values of up to `capacity` rows of at most `columns` own tokens each, for all layers.

    Row i's tokens stand left-aligned in columns 0 … lengths[i] − 1; whatever stands behind is never looked at. Rows are
    written in place, moved when another row leaves, and never concatenated.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        self.capacity, self.columns = capacity, columns
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.lengths = torch.zeros(capacity, dtype=torch.long)

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Buffers of one layer, (capacity, H_kv, columns, D); made on first use. `like` is (…, H_kv, D)."""
        while len(self.keys) <= index:
            shape = (self.capacity, like.shape[-2], self.columns, like.shape[-1])
            # zeros, not empty: a masked column has weight 0, and 0 × NaN from uninitialised memory would be NaN
            self.keys.append(torch.zeros(shape, dtype=like.dtype, device=like.device))
            self.values.append(torch.zeros(shape, dtype=like.dtype, device=like.device))
        return self.keys[index], self.values[index]

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target` (a finished row's place is taken by the last one)."""
        self.copy(source, target, int(self.lengths[source]))

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of row `source` over row `target` (a further sample of one prompt)."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length


@dataclass
class Layout:
    """Who sees whom among the packed tokens of one forward pass.

    The pack is `prefix` tokens that all rows see, then the rows' new tokens, row after row.

    Attributes:
        prefix: P, tokens at the start of the pack that all rows see.
        lengths: new tokens of each row, B numbers ≥ 1.
        shared: keys and values of a prefix that went through the model before; stands in front of everything.
        cache: the rows' own earlier tokens; this pass appends to it. Rows are its slots `slots`.
        tree: (B, S, S) booleans: which of its row's new tokens a new token sees (S = the longest row), in place of
            "all that stand before it". Used to score many continuations of one prompt in one pass.
        positions: (T,) positions of the packed tokens.
        record: a list that receives the prefix's keys and values, layer by layer (what `shared` is made of).
    """

    prefix: int
    lengths: Sequence[int]
    positions: Tensor
    shared: LayerKeys | None = None
    cache: RowCache | None = None
    slots: Sequence[int] | None = None
    tree: Tensor | None = None
    record: LayerKeys | None = None
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)
    _index: tuple[Tensor, Tensor] | None = None
    _slots: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def decoding(self) -> bool:
        """One new token a row on top of a cache: the step of generation."""
        return self.cache is not None and self.prefix == 0 and self.longest == 1 and self.tree is None

    @property
    def shared_length(self) -> int:
        return self.shared[0][0].shape[1] if self.shared else 0

    def index(self) -> tuple[Tensor, Tensor]:
        """(B·S,) the packed token in each padded place (0 where padding), and (T − P,) its inverse."""
        if self._index is None:
            device, s = self.positions.device, self.longest
            lengths = torch.as_tensor(list(self.lengths), device=device)
            places = torch.arange(s, device=device)
            real = places[None, :] < lengths[:, None]  # (B, S)
            starts = torch.cumsum(lengths, 0) - lengths
            index = torch.where(real, starts[:, None] + places[None, :], 0)
            inverse = real.flatten().nonzero().flatten()
            self._index = index.flatten(), inverse
        return self._index

    def slot_index(self) -> Tensor:
        """(B,) the cache slots of the rows: `slots`, or the first B."""
        if self._slots is None:
            slots = self.slots if self.slots is not None else range(self.rows)
            self._slots = torch.as_tensor(list(slots), device=self.positions.device)
        return self._slots

    def prefix_mask(self, window: int | None) -> Tensor | None:
        """(P, shared + P) booleans for the prefix's own attention; None where plain causal attention says the same."""
        if not self.shared_length and (window is None or self.prefix <= window):
            return None
        key = ("prefix", window)
        if key not in self._masks:
            device, past = self.positions.device, self.shared_length
            query = torch.arange(past, past + self.prefix, device=device)[:, None]
            keys = torch.arange(past + self.prefix, device=device)[None, :]
            self._masks[key] = _causal(query, keys, window)
        return self._masks[key]

    def row_mask(self, window: int | None) -> Tensor:
        """(B, 1, S, K) booleans, K = shared + prefix + cached columns + S."""
        key = ("rows", window)
        mask = self._masks.get(key)
        if mask is not None:
            return mask
        device, b, s = self.positions.device, self.rows, self.longest
        index, _ = self.index()
        query = self.positions[self.prefix :][index].view(b, s)  # (B, S)
        front = self.shared_length + self.prefix
        parts = []
        if front:
            keys = torch.arange(front, device=device)
            parts.append(_causal(query[:, :, None], keys[None, None, :], window).expand(b, s, front))
        if self.cache is not None:
            lengths = self.cache.lengths.to(device)[self.slot_index()]  # (B,)
            columns = torch.arange(int(lengths.max()), device=device)
            seen = (columns[None, :] < lengths[:, None])[:, None, :].expand(b, s, len(columns))
            if window is not None:
                seen = seen & (query[:, :, None] - (front + columns)[None, None, :] < window)
            parts.append(seen)
        if self.tree is None:
            places = torch.arange(s, device=device)
            own = (places[None, :] <= places[:, None]).expand(b, s, s)
        else:
            own = self.tree
        if window is not None:
            own = own & (query[:, :, None] - query[:, None, :] < window)
        parts.append(own)
        mask = torch.cat(parts, dim=2)[:, None]
        self._masks[key] = mask
        return mask

    def decode_mask(self, window: int | None) -> Tensor:
        """(B, shared + columns) booleans for a decoding step, the new token already in its column."""
        key = ("decode", window)
        mask = self._masks.get(key)
        if mask is None:
            assert self.cache is not None
            device, front = self.positions.device, self.shared_length
            slots = self.slot_index()
            lengths = self.cache.lengths.to(device)[slots] + 1
            columns = torch.arange(int(lengths.max()), device=device)
            mask = columns[None, :] < lengths[:, None]
            if front:
                mask = torch.cat([mask.new_ones(self.rows, front), mask], dim=1)
            if window is not None:
                keys = torch.arange(front + len(columns), device=device)
                mask = mask & (self.positions[:, None] - keys[None, :] < window)
            self._masks[key] = mask
        return mask


def _causal(query: Tensor, keys: Tensor, window: int | None) -> Tensor:
    seen = keys <= query
    return seen if window is None else seen & (query - keys < window)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, dropout: float
) -> Tensor:
    """(B, H, S, D) × (B, H_kv, K, D) → (B, H, S, D). No mask: causal."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), dropout)
    return torch.matmul(weights, value)


def _decode(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, layer: int, scaling: float, softcap: float | None,
    window: int | None,
) -> Tensor:
    """One token a row: (B, H, D) queries against the shared prefix, read once for all rows, and the rows' columns."""
    assert layout.cache is not None
    cache = layout.cache
    b, h, d = query.shape
    hk = key.shape[1]
    keys, values = cache.layer(layer, key)
    slots = layout.slot_index()
    lengths = cache.lengths.to(query.device)[slots]
    keys[slots, :, lengths] = key
    values[slots, :, lengths] = value
    mask = layout.decode_mask(window)
    front = layout.shared_length
    columns = mask.shape[1] - front
    if layout.slots is None:
        row_keys, row_values = keys[:b, :, :columns], values[:b, :, :columns]
    else:
        row_keys, row_values = keys[slots, :, :columns], values[slots, :, :columns]
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
    scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.matmul(weights[..., front:], row_values)
    if front:
        part = weights[..., :front].permute(1, 0, 2, 3).reshape(hk, -1, front)
        out = out + torch.matmul(part, shared_values).view(hk, b, h // hk, d).permute(1, 0, 2, 3)
    return out.reshape(b, h, d)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - part of transformers' calling convention
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one packed row: query (1, H, T, D), key and value (1, H_kv, T, D) → (1, T, H, D).

    Registered with transformers under the name `kamerton`; `layout` arrives through the forward call's arguments.
    """
    if layout is None:
        raise RuntimeError("the attention function 'kamerton' needs a layout; call the model through CausalModel")
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases are not supported")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D), a view of what the projections gave
    if layout.decoding:
        return _decode(q, k, v, layout, layer, scaling, softcap, sliding_window)[None], None

    p = layout.prefix
    out = []
    shared_k, shared_v = layout.shared[layer] if layout.shared else (None, None)  # (H_kv, P₀, D)
    front_k, front_v = shared_k, shared_v
    if p:
        own_k, own_v = k[:p].transpose(0, 1), v[:p].transpose(0, 1)  # (H_kv, P, D)
        front_k = own_k if shared_k is None else torch.cat([shared_k, own_k], dim=1)
        front_v = own_v if shared_v is None else torch.cat([shared_v, own_v], dim=1)
        if layout.record is not None:
            layout.record.append((front_k, front_v))
        mask = layout.prefix_mask(sliding_window)
        attended = _attend(
            q[:p].transpose(0, 1)[None], front_k[None], front_v[None], mask, scaling, softcap, dropout
        )
        out.append(attended[0].transpose(0, 1))  # (P, H, D)
    if layout.rows:
        b, s = layout.rows, layout.longest
        index, inverse = layout.index()
        ragged = len(inverse) != b * s

        def pad(x: Tensor) -> Tensor:  # (T − P, H, D) → (B, H, S, D)
            x = x[p:]
            x = _Take.apply(x, index, inverse) if ragged else x
            return x.view(b, s, *x.shape[1:]).transpose(1, 2)

        row_q, row_k, row_v = pad(q), pad(k), pad(v)
        keys, values = [], []
        if front_k is not None and front_v is not None:
            keys.append(front_k[None].expand(b, -1, -1, -1))
            values.append(front_v[None].expand(b, -1, -1, -1))
        mask = layout.row_mask(sliding_window)
        if layout.cache is not None:
            cache_k, cache_v = layout.cache.layer(layer, k)
            slots = layout.slot_index()
            lengths = layout.cache.lengths.to(q.device)[slots]
            columns = mask.shape[-1] - s - (front_k.shape[1] if front_k is not None else 0)
            if columns:
                keys.append(cache_k[slots, :, :columns])
                values.append(cache_v[slots, :, :columns])
            places = lengths[:, None] + torch.arange(s, device=q.device)  # (B, S); room for padding is the caller's
            cache_k[slots[:, None], :, places] = row_k.transpose(1, 2)
            cache_v[slots[:, None], :, places] = row_v.transpose(1, 2)
        keys.append(row_k)
        values.append(row_v)
        attended = _attend(
            row_q,
            torch.cat(keys, dim=2) if len(keys) > 1 else row_k,
            torch.cat(values, dim=2) if len(values) > 1 else row_v,
            mask, scaling, softcap, dropout,
        )  # (B, H, S, D)
        flat = attended.transpose(1, 2).reshape(b * s, *q.shape[1:])
        out.append(_Untake.apply(flat, inverse) if ragged else flat)
    return (torch.cat(out) if len(out) > 1 else out[0])[None], None


class _Untake(torch.autograd.Function):
    """(B·S, …) → (T, …): the real places only; the backward leaves zeros in padded places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.size = x.shape[0]
        return x.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.size, *grads[0].shape[1:])
        out[inverse] = grads[0]
        return out, None


AttentionInterface.register(NAME, packed_attention)

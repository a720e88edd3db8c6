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

from kamerton.base import blocked, cascade, decoding, fused
from kamerton.base.inserts import Placed

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
        cache: the rows' own earlier tokens; this pass appends to it. Rows are its slots `slots`. Several rows may read
            one slot; what they append to it is then worthless.
        tree: (B, S, S) booleans: which of its row's new tokens a new token sees (S = the longest row), in place of
            "all that stand before it". Used to score many continuations of one prompt in one pass.
        positions: (T,) positions of the packed tokens.
        placed: what stands among the rows' tokens, with keys and values of its own.
        record: a list that receives the prefix's keys and values, layer by layer (what `shared` is made of).
        used: whether a layer has asked; a model that computes attention by itself never does.
    """

    prefix: int
    lengths: Sequence[int]
    positions: Tensor
    shared: LayerKeys | None = None
    cache: RowCache | None = None
    slots: Sequence[int] | None = None
    tree: Tensor | None = None
    record: LayerKeys | None = None
    placed: Placed | None = None
    used: bool = False
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)
    _index: tuple[Tensor, Tensor] | None = None
    _slots: Tensor | None = None
    _cached: Tensor | None = None
    _columns: int = 0
    _even: int | None = None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def decoding(self) -> bool:
        """One new token a row on top of a cache: the step of generation."""
        if self.cache is None or self.prefix or self.longest != 1 or self.tree is not None:
            return False
        return self.slots is None or len(set(self.slots)) == len(self.slots)  # rows on one slot cannot write one column

    @property
    def shared_length(self) -> int:
        return self.shared[0][0].shape[1] if self.shared else 0

    @property
    def causal(self) -> bool:
        """Each new token sees the front and what stands before it in its row, all of it in this pass."""
        return self.cache is None and self.tree is None

    def within(self, window: int | None) -> bool:
        """Whether a sliding window hides nothing of a pass without a cache."""
        return window is None or self.shared_length + self.prefix + self.longest <= window

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

    def cached(self) -> Tensor:
        """(B,) tokens that the rows' cache slots held before this pass."""
        if self._cached is None:
            assert self.cache is not None
            lengths = self.cache.lengths[: self.rows] if self.slots is None else self.cache.lengths[list(self.slots)]
            self._even = int(lengths[0]) if bool((lengths == lengths[0]).all()) else None
            self._columns = int(lengths.max())
            self._cached = lengths.to(self.positions.device)
        return self._cached

    @property
    def cached_columns(self) -> int:
        """The longest of `cached`."""
        self.cached()
        return self._columns

    @property
    def even(self) -> int | None:
        """The tokens in every row's slot where they are as many, else None."""
        self.cached()
        return self._even

    def prefix_added(self, window: int | None) -> Tensor:
        """(1, 1, P, shared + P) float32 to be added to the scores of the prefix's own attention."""
        key = ("prefix added", window)
        mask = self._masks.get(key)
        if mask is None:
            seen = self.prefix_mask(window)
            if seen is None:
                seen = torch.ones(self.prefix, self.prefix, dtype=torch.bool, device=self.positions.device).tril()
            mask = self._masks[key] = additive(seen, torch.float32)[None, None]
        return mask

    def front_mask(self, window: int | None) -> Tensor | None:
        """(T − P, shared + prefix) booleans: what the rows' tokens see of the front; None for all of it."""
        if window is None:
            return None
        key = ("front", window)
        if key not in self._masks:
            keys = torch.arange(self.shared_length + self.prefix, device=self.positions.device)
            mask = _causal(self.positions[self.prefix :, None], keys[None, :], window)
            self._masks[key] = None if bool(mask.all()) else mask
        return self._masks[key]

    def own_mask(self, window: int | None) -> Tensor | None:
        """(B, S, cached columns + S) booleans: what a row's tokens see of their own row; None for plain causal."""
        key = ("own", window)
        if key in self._masks:
            return self._masks[key]
        device, b, s = self.positions.device, self.rows, self.longest
        columns = self.cached_columns if self.cache is not None else 0
        if self.tree is None and not columns and (window is None or s <= window):
            self._masks[key] = None
            return None
        query = self.positions[self.prefix :][self.index()[0]].view(b, s)  # (B, S)
        parts = []
        if columns:
            places = torch.arange(columns, device=device)
            seen = (places[None, :] < self.cached()[:, None])[:, None, :].expand(b, s, columns)
            if window is not None:
                front = self.shared_length + self.prefix
                seen = seen & (query[:, :, None] - (front + places)[None, None, :] < window)
            parts.append(seen)
        if self.tree is None:
            places = torch.arange(s, device=device)
            own = (places[None, :] <= places[:, None]).expand(b, s, s)
        else:
            own = self.tree
        if window is not None:
            own = own & (query[:, :, None] - query[:, None, :] < window)
        parts.append(own)
        self._masks[key] = torch.cat(parts, dim=2) if len(parts) > 1 else own
        return self._masks[key]

    def row_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(B, 1, S, K) to be added to scores, K = shared + prefix + cached columns + S."""
        key = ("rows", window, dtype)
        mask = self._masks.get(key)
        if mask is None:
            b, s = self.rows, self.longest
            own = self.own_mask(window)
            if own is None:
                places = torch.arange(s, device=self.positions.device)
                own = (places[None, :] <= places[:, None]).expand(b, s, s)
            front = self.shared_length + self.prefix
            if front:
                seen = self.front_mask(window)
                if seen is None:
                    before = own.new_ones(1, 1, 1).expand(b, s, front)
                else:
                    before = seen[self.index()[0]].view(b, s, front)
                own = torch.cat([before, own], dim=2)
            mask = self._masks[key] = additive(own[:, None], dtype)
        return mask

    def decode_mask(self, window: int | None) -> Tensor | None:
        """(B, columns) booleans for a decoding step, the new token in its column; None where all columns are seen."""
        key = ("decode", window)
        if key not in self._masks:
            lengths, columns = self.cached() + 1, self.cached_columns + 1
            if self.even is not None and (window is None or self.shared_length + columns <= window):
                self._masks[key] = None
            else:
                places = torch.arange(columns, device=self.positions.device)
                mask = places[None, :] < lengths[:, None]
                if window is not None:
                    mask = mask & (self.positions[:, None] - (self.shared_length + places)[None, :] < window)
                self._masks[key] = mask
        return self._masks[key]

    def added(self, name: str, window: int | None, dtype: torch.dtype, repeat: int = 1) -> Tensor | None:
        """The mask `name` (`prefix`, `front`, `own` or `decode`) as numbers to be added, its rows repeated."""
        key = ("added", name, window, dtype)
        if key not in self._masks:
            mask = getattr(self, f"{name}_mask")(window)
            if mask is not None:
                mask = additive(mask, dtype)
                mask = mask.repeat_interleave(repeat, dim=0) if repeat > 1 else mask
            self._masks[key] = mask
        return self._masks[key]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Booleans → 0 where true, the lowest finite number where false (finite, so that a row of them gives no NaN)."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _causal(query: Tensor, keys: Tensor, window: int | None) -> Tensor:
    seen = keys <= query
    return seen if window is None else seen & (query - keys < window)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """(B, H, S, D) × (B, H_kv, K, D) → (B, H, S, D). The mask is added to the scores; no mask: causal."""
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
        mask = additive(scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril(), scores.dtype)
    weights = torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(F.dropout(weights, dropout), value)


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
    layout.used = True
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases are not supported")
    if query.dtype != value.dtype:  # float32 weights under mixed precision: rotation by position left them in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D), a view of what the projections gave
    fast, trained = fused.usable(query, softcap, dropout), blocked.usable(query, value, softcap, dropout)
    if layout.decoding:
        row_k, row_v = decoding.append(k, v, layout, layer)
        if fast:
            return fused.decode(q, row_k, row_v, layout, layer, scaling, sliding_window)[None], None
        return decoding.decode(q, row_k, row_v, layout, layer, scaling, softcap, sliding_window)[None], None

    p = layout.prefix
    # split, not slices: the backward pass of a slice fills a whole tensor with zeros
    (front_q, q), (own_k, k), (own_v, v) = (x.split([p, x.shape[0] - p]) for x in (q, k, v))
    out = []
    shared_k, shared_v = layout.shared[layer] if layout.shared else (None, None)  # (H_kv, P₀, D)
    front_k, front_v = shared_k, shared_v
    if p:
        own_k, own_v = own_k.transpose(0, 1), own_v.transpose(0, 1)  # (H_kv, P, D)
        front_k = own_k if shared_k is None else torch.cat([shared_k, own_k], dim=1)
        front_v = own_v if shared_v is None else torch.cat([shared_v, own_v], dim=1)
        if layout.record is not None:
            layout.record.append((front_k, front_v))
        if cascade.fits(1, q.shape[1], p, front_k.shape[1]):
            seen = layout.prefix_added(sliding_window)
            own = (front_k[None], front_v[None])
            attended = cascade.attend(front_q.transpose(0, 1)[None], *own, None, None, seen, scaling, softcap, dropout)
            out.append(attended[0].transpose(0, 1))  # (P, H, D)
        elif trained and layout.within(sliding_window) and blocked.worth([p], layout.shared_length):
            out.append(
                blocked.attend(front_q, own_k.transpose(0, 1), own_v.transpose(0, 1), shared_k, shared_v, [p], scaling)
            )
        else:
            added = layout.added("prefix", sliding_window, q.dtype)
            front_q = front_q.transpose(0, 1)[None]  # (1, H, P, D)
            attended = _attend(front_q, front_k[None], front_v[None], added, scaling, softcap, dropout)
            out.append(attended[0].transpose(0, 1))
    if layout.rows:
        if layout.placed is not None:
            k, v = layout.placed.given(layer, k, v)
        b, s = layout.rows, layout.longest
        front_length = front_k.shape[1] if front_k is not None else 0
        small = layout.cache is None and cascade.fits(b, q.shape[1], s, front_length + s)
        plain = layout.causal and layout.within(sliding_window)
        if trained and not small and plain and blocked.worth(layout.lengths, front_length):
            out.append(blocked.attend(q, k, v, front_k, front_v, layout.lengths, scaling))
            return (torch.cat(out) if len(out) > 1 else out[0])[None], None
        index, inverse = layout.index()
        ragged = len(inverse) != b * s

        def pad(x: Tensor) -> Tensor:  # (T − P, H, D) → (B, H, S, D)
            x = _Take.apply(x, index, inverse) if ragged else x
            return x.view(b, s, *x.shape[1:]).transpose(1, 2)

        row_q, row_k, row_v = pad(q), pad(k), pad(v)
        keys, values = [], []
        if front_k is not None and front_v is not None and not fast and not small:
            keys.append(front_k[None].expand(b, -1, -1, -1))
            values.append(front_v[None].expand(b, -1, -1, -1))
        if layout.cache is not None:
            cache_k, cache_v = layout.cache.layer(layer, k)
            slots = layout.slot_index()
            lengths, columns = layout.cached(), layout.cached_columns
            if columns:
                keys.append(cache_k[slots, :, :columns])
                values.append(cache_v[slots, :, :columns])
            places = lengths[:, None] + torch.arange(s, device=q.device)  # (B, S); room for padding is the caller's
            cache_k[slots[:, None], :, places] = row_k.transpose(1, 2)
            cache_v[slots[:, None], :, places] = row_v.transpose(1, 2)
        keys.append(row_k)
        values.append(row_v)
        all_k = torch.cat(keys, dim=2) if len(keys) > 1 else row_k
        all_v = torch.cat(values, dim=2) if len(values) > 1 else row_v
        if small:
            mask = layout.row_mask(sliding_window, torch.float32)
            attended = cascade.attend(row_q, row_k, row_v, front_k, front_v, mask, scaling, softcap, dropout)
        elif fast:
            attended, norms = fused.attend(row_q, all_k, all_v, layout.added("own", sliding_window, q.dtype), scaling)
        else:
            alone = not front_length and layout.own_mask(sliding_window) is None  # plain causal attention
            added_own = None if alone else layout.row_mask(sliding_window, q.dtype)
            attended = _attend(row_q, all_k, all_v, added_own, scaling, softcap, dropout)  # (B, H, S, D)
        flat = attended.transpose(1, 2).reshape(b * s, *q.shape[1:])
        flat = _Untake.apply(flat, inverse) if ragged else flat
        if fast and front_k is not None and front_v is not None:
            own_norms = norms.transpose(1, 2).reshape(b * s, -1)
            own_norms = own_norms.index_select(0, inverse) if ragged else own_norms
            front_mask = layout.added("front", sliding_window, q.dtype)
            flat = fused.joined(*fused.over_front(q, front_k, front_v, front_mask, scaling), flat, own_norms)
        out.append(flat)
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

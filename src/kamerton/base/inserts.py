"""Soft tokens, or keys and values, that depend on the prompt: where they stand among a row's own tokens.

A soft prompt that is the same for all prompts stands in front of everything and goes through the model once (`Front`).
One that a network makes out of the prompt (`tuning/prompt_generator.py`) differs from row to row, so it stands inside
the rows: before the last `tail` tokens of each prompt, at a place that the prompt alone decides and not the batch that
it happens to be in. What the rows share before that place is still computed once.

Keys and values that are made of a prompt, in every layer, stand at the same place. There the rows have positions whose
own states count for nothing: in each layer what was made stands in the place of their keys and values, so that caches,
trees of continuations and positions are those of soft tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from kamerton.base.attention import LayerKeys

FRONT = 2**31
"""A tail longer than any prompt: the soft tokens stand before all of it."""


@dataclass(frozen=True)
class Inserts:
    """Soft tokens that are made of each prompt.

    Attributes:
        count: m, soft tokens of a prompt.
        tail: tokens of the prompt that stand behind them, at least 1; `FRONT`: all of them do.
        make: prompts as token ids → (B, m, H) soft tokens, or, where `keys`, per layer keys and values, each
            (B, H_kv, m, D); with gradient where it is wanted.
        keys: keys and values are made, in place of soft tokens.
    """

    count: int
    tail: int
    make: Callable[[Sequence[Sequence[int]]], Any]
    keys: bool = False

    def placed(self, lengths: Sequence[int], prompts: Sequence[Sequence[int]], known: int) -> Placed:
        """Rows of these lengths, each from token `known` of its prompt on, with what is made of their prompts."""
        made = self.make(prompts)
        places = [self.sharable(len(prompt)) - known for prompt in prompts]
        return Placed(lengths, places, self.count, **{"keys" if self.keys else "soft": made})

    def sharable(self, shortest: int) -> int:
        """How many of a prompt's first tokens may be shared where the shortest prompt has so many."""
        return max(0, shortest - self.tail)


class Placed:
    """Rows with m soft tokens put into each.

    Args:
        lengths: tokens of each row, without soft ones.
        places: (B,) own tokens of each row that stand before its soft tokens.
        count: m.
        soft: (B, m, H) what is put in; default: zeros.
        keys: per layer keys and values (B, H_kv, m, D) that stand for those of the soft tokens; default: their own.

    Attributes:
        lengths: tokens of each row, soft ones counted.
    """

    def __init__(
        self, lengths: Sequence[int], places: Sequence[int], count: int, *, soft: Tensor | None = None,
        keys: LayerKeys | None = None,
    ) -> None:  # fmt: skip
        self.count, self.places, self.soft, self.keys = count, list(places), soft, keys
        self.lengths = tuple(n + count for n in lengths)
        total, source, kept, start, new = sum(lengths), [], [], 0, 0
        for i, (n, place) in enumerate(zip(lengths, places, strict=True)):
            own = np.arange(start, start + n)
            put = np.arange(total + i * count, total + (i + 1) * count)
            source += [own[:place], put, own[place:]]
            kept.append(new + self.moved(np.arange(n), place))
            start, new = start + n, new + n + count
        self._source = torch.from_numpy(np.concatenate(source))
        self._kept = torch.from_numpy(np.concatenate(kept))

    def moved(self, index: Any, place: int) -> Any:
        """Where the tokens of a row stand once the soft ones are in."""
        return index + np.where(index >= place, self.count, 0)

    def put(self, rows: Tensor) -> Tensor:
        """(T, H) embeddings of the rows' tokens → (T + B · m, H), the soft ones among them."""
        soft = self.soft
        if soft is None:
            soft = rows.new_zeros(len(self.lengths), self.count, rows.shape[1])
        return self._among(rows, soft)

    def given(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(T + B · m, H_kv, D) keys and values that a layer computed → with those that were made in their places."""
        if self.keys is None:
            return key, value
        made_key, made_value = (x.transpose(1, 2) for x in self.keys[layer])  # (B, m, H_kv, D)
        return self._among(self.take(key), made_key), self._among(self.take(value), made_value)

    def _among(self, rows: Tensor, made: Tensor) -> Tensor:
        """(T, …) of the rows' tokens and (B, m, …) → (T + B · m, …)."""
        both = torch.cat([rows, made.to(rows.dtype).flatten(0, 1)])
        return both.index_select(0, self._source.to(rows.device))

    def take(self, hidden: Tensor) -> Tensor:
        """(T + B · m, H) states → (T, H), those of the rows' own tokens."""
        return hidden.index_select(0, self._kept.to(hidden.device))

    def depths(self, depths: Sequence[Sequence[int]]) -> list[list[int]]:
        """Each token's position within its row, soft ones included."""
        out = []
        for row, place in zip(depths, self.places, strict=True):
            shifted = [d + self.count if i >= place else d for i, d in enumerate(row)]
            out.append([*shifted[:place], *range(place, place + self.count), *shifted[place:]])
        return out

    def tree(self, tree: Tensor) -> Tensor:
        """(B, S, S) booleans of who sees whom → (B, S + m, S + m); a soft token is seen by all that stand behind it."""
        b, s, _ = tree.shape
        wide = s + self.count
        out = torch.ones(wide, wide, dtype=torch.bool, device=tree.device).tril().repeat(b, 1, 1)
        for i, place in enumerate(self.places):
            index = torch.as_tensor(self.moved(np.arange(s), place), device=tree.device)
            out[i, index[:, None], index[None, :]] = tree[i]
        return out


def behind(batch: Any, tail: int) -> tuple[Sequence[int], Sequence[Sequence[int]], Sequence[Sequence[int]], Any]:
    """A batch whose rows keep the last `tail` tokens of their prompts to themselves.

    Args:
        batch: rows behind a shared prefix (`Targets` in `model.py`).

    Returns:
        The prefix, the rows, each row's whole prompt, and the places of the tokens before each target.
    """
    prompts = [[*batch.prefix, *row[:n]] for row, n in zip(batch.rows, batch.prompts, strict=True)]
    short = min(len(batch.prefix), max(0, tail - min(batch.prompts, default=tail)))
    if not short:
        return batch.prefix, batch.rows, prompts, batch.positions
    given = list(batch.prefix[len(batch.prefix) - short :])
    ends = np.cumsum([len(row) for row in batch.rows])
    owner = np.searchsorted(ends, np.asarray(batch.positions), side="right")
    rows = [[*given, *row] for row in batch.rows]
    return batch.prefix[: len(batch.prefix) - short], rows, prompts, batch.positions + short * (owner + 1)

"""The prefix that all prompts of a call share goes through the model once, in the same pass as the first rows.

Later passes read its keys and values. Whatever the model puts in front (soft prompts, trained keys) is part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from kamerton.base import CausalModel, Hidden, Shared
from kamerton.base.attention import LayerKeys


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, at least one token short of the shortest; 0 for fewer than two prompts."""
    if len(prompts) < 2:
        return 0
    low, high = min(map(list, prompts)), max(map(list, prompts))  # whatever these two share, all between them share
    limit = min(len(p) for p in prompts) - 1
    length = 0
    while length < limit and low[length] == high[length]:
        length += 1
    return length


class SharedPrefix:
    """A shared prefix and the passes behind it.

    Args:
        model: the model.
        tokens: the prefix, without the model's front.
    """

    def __init__(self, model: CausalModel, tokens: Sequence[int]) -> None:
        self._model, self._tokens = model, tokens
        front = model.front()
        self._front = len(front)
        self._shared: Shared | None = None
        if not tokens and front.embeddings is None:  # nothing has to go through the model
            self._shared = Shared(front.keys or [], None, 0)
        self.computed = 0

    @classmethod
    def of(cls, model: CausalModel, prompts: Sequence[Sequence[int]]) -> SharedPrefix:
        """What prompts have in common at their start, as far as the model lets it be shared."""
        if not prompts:
            return cls(model, ())
        return cls(model, prompts[0][: min(common_prefix(prompts), model.sharable(min(map(len, prompts))))])

    @property
    def tokens(self) -> int:
        """Tokens in it, without the model's front."""
        return len(self._tokens)

    @property
    def length(self) -> int:
        """Positions before a row's own tokens, the front included."""
        return self._front + len(self._tokens)

    def last(self) -> Tensor | None:
        """(H,) hidden state of the prefix's last token; None where nothing went through the model."""
        if self._shared is None:
            self._shared = self._model.prefill(self._tokens)
            self.computed += self.length
        return self._shared.last

    def forward(self, rows: Sequence[Sequence[int]], **arguments: Any) -> Hidden:
        """`CausalModel.forward` of rows behind this prefix; the first call computes the prefix with them."""
        self.computed += sum(len(row) for row in rows)
        if self._shared is not None:
            return self._model.forward(rows, shared=self._shared, **arguments)
        record: LayerKeys = []
        hidden = self._model.forward(rows, prefix=self._tokens, record=record, **arguments)
        self._shared = Shared(record, hidden.prefix[-1], len(self._tokens))
        self.computed += self.length
        return hidden


def fill(lengths: Sequence[int], limit: int, extra: int = 0) -> Iterator[range]:
    """Cut rows, sorted by length in either direction, into batches of at most `limit` padded tokens.

    Args:
        lengths: tokens of each row.
        limit: rows × (longest row + `extra`) stays at or below it, unless one row alone is longer.
        extra: tokens that each row brings besides its own.
    """
    start = 0
    while start < len(lengths):
        longest, end = 0, start
        while end < len(lengths):
            longest = max(longest, lengths[end])
            if end > start and (end - start + 1) * (longest + extra) > limit:
                break
            end += 1
        yield range(start, end)
        start = end

"""Tokens of references beside tokens of the model, and the buffer of older answers.

Positions are numbered by row, so that a discriminator that reads a whole answer finds together what stands together:
whole rows are drawn from the buffer, and whole rows are dropped. One that reads single positions gets them `loose`,
each a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens in their contexts.

    Attributes:
        features: (N, F) of the contexts.
        tokens: (N,) token ids.
        folds: (N,) the half of the references that each belongs to; a row is in one half or the other.
        rows: (N,) numbers that tell rows apart; the positions of one stand one behind another, in order.
        offset: (N,) what is taken off the scores before they are judged: log π/π_ref of the token.
    """

    features: Tensor
    tokens: Tensor
    folds: Tensor
    rows: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def where(self, which: Tensor) -> Tokens:
        """Those at an index, or where booleans are true."""
        return self._each(lambda x: x[which.to(x.device)])

    def half(self, fold: int) -> Tokens:
        """Those of one half of the references."""
        return self.where(self.folds == fold)

    def loose(self) -> Tokens:
        """Every position in a row of its own."""
        return replace(self, rows=torch.arange(len(self), device=self.rows.device))

    def and_then(self, other: Tokens) -> Tokens:
        """Others behind these; no row of one is a row of the other."""
        later = replace(other, rows=other.rows + (int(self.rows.max()) + 1 if len(self) else 0))
        return Tokens(**{f.name: torch.cat([getattr(self, f.name), getattr(later, f.name)]) for f in fields(self)})

    def row_count(self) -> int:
        return len(self._lengths())

    def drawn(self, rows: int, generator: torch.Generator) -> Tokens:
        """So many rows, each drawn from all of them."""
        return self._picked(torch.randint(self.row_count(), (rows,), generator=generator))

    def at_most(self, limit: int, generator: torch.Generator) -> Tokens:
        """At most `limit` tokens; which rows are dropped is chance.

        The row at the limit keeps its first positions: what is said of them depends on nothing behind them.
        """
        if len(self) <= limit:
            return self
        return self._picked(torch.randperm(self.row_count(), generator=generator), limit)

    def _picked(self, picked: Tensor, limit: int | None = None) -> Tokens:
        """Rows one behind another, numbered anew; the first `limit` positions of them."""
        lengths = self._lengths()
        starts, lengths = (lengths.cumsum(0) - lengths)[picked], lengths[picked]
        rows = torch.repeat_interleave(torch.arange(len(picked)), lengths)
        index = torch.arange(len(rows)) + (starts - (lengths.cumsum(0) - lengths))[rows]
        return replace(self.where(index[:limit]), rows=rows[:limit].to(self.rows.device))

    def _lengths(self) -> Tensor:
        """Positions of each row, on the CPU."""
        return self.rows.unique_consecutive(return_counts=True)[1].cpu()

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return Tokens(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Pairs:
    """Tokens of references beside tokens of the model, as many or not."""

    real: Tokens
    fake: Tokens

    def half(self, fold: int) -> Pairs:
        """Those of one half of the references."""
        return Pairs(self.real.half(fold), self.fake.half(fold))

    def loose(self) -> Pairs:
        """Every position in a row of its own."""
        return Pairs(self.real.loose(), self.fake.loose())


def tensors(tokens: Tokens, name: str) -> dict[str, Tensor]:
    """Tokens as tensors by name."""
    return {f"{name}/{f.name}": getattr(tokens, f.name) for f in fields(tokens)}


def tokens_of(state: Mapping[str, Tensor], name: str) -> Tokens:
    """What `tensors` took apart."""
    return Tokens(**{f.name: state[f"{name}/{f.name}"] for f in fields(Tokens)})

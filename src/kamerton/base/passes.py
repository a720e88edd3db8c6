"""What goes into a pass through a model, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kamerton.base.attention import LayerKeys


@dataclass(frozen=True)
class Front:
    """What stands before every sequence of an adapted model.

    Attributes:
        embeddings: (n, H) soft tokens, or None.
        keys: per layer keys and values (H_kv, n, D) of a trained prefix, or None; of an encoder–decoder the decoder's.
    """

    embeddings: Tensor | None = None
    keys: LayerKeys | None = None

    @property
    def soft(self) -> int:
        """Soft tokens, which go through the model; trained keys and values do not."""
        return 0 if self.embeddings is None else int(self.embeddings.shape[0])

    def __len__(self) -> int:
        if self.embeddings is not None:
            return int(self.embeddings.shape[0])
        return int(self.keys[0][0].shape[1]) if self.keys else 0


@dataclass(frozen=True)
class Shared:
    """A prefix that went through the model once: its keys and values, and its last hidden state.

    Attributes:
        keys: per layer (H_kv, P, D) keys and values; [] for an empty prefix.
        last: (H,) hidden state of the last prefix token, None for an empty prefix.
        tokens: real tokens in it (soft tokens not counted).
    """

    keys: LayerKeys
    last: Tensor | None
    tokens: int

    @property
    def length(self) -> int:
        """Positions that the prefix takes, soft tokens included."""
        return int(self.keys[0][0].shape[1]) if self.keys else 0


@dataclass(frozen=True)
class Hidden:
    """Final hidden states of one pack.

    Attributes:
        prefix: (P, H) of the prefix that was in this pack, soft tokens included.
        rows: (sum of lengths, H), row after row.
        lengths: tokens of each row.
    """

    prefix: Tensor
    rows: Tensor
    lengths: tuple[int, ...]

    def last(self) -> Tensor:
        """(B, H): the last token of each row."""
        ends = torch.as_tensor(self.lengths, device=self.rows.device).cumsum(0) - 1
        return self.rows[ends]


class Targets(Protocol):
    """What a model needs to know of a batch: rows of prompt and answer behind a shared prefix, and where loss falls.

    Attributes:
        prefix: token ids that all rows share.
        rows: own token ids of each row.
        prompts: (B,) how many of a row's own tokens belong to its prompt.
        positions: (N,) places of the tokens *before* each target, in the rows written one after another.
        targets: (N,) token ids that carry loss.
    """

    @property
    def prefix(self) -> Sequence[int]: ...
    @property
    def rows(self) -> Sequence[Sequence[int]]: ...
    @property
    def prompts(self) -> Sequence[int]: ...
    @property
    def positions(self) -> Any: ...
    @property
    def targets(self) -> Any: ...

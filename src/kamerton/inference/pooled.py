"""Texts as the mean of a model's last hidden states over their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kamerton.inference.prefix import fill

Read = Callable[[list[Sequence[int]]], Iterable[Tensor]]
"""Rows of tokens → (n, H) states of each."""


def mean_states(
    rows: Sequence[Sequence[int]], read: Read, max_tokens: int, progress: Callable[[int, int], None] | None = None
) -> list[NDArray[np.float32]]:
    """(H,) of each row, in the order given; rows go through `read` in batches of at most `max_tokens` padded tokens."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(rows)
    done = 0
    for batch in fill([len(rows[i]) for i in order], max_tokens):
        part = [order[i] for i in batch]
        for i, states in zip(part, read([rows[i] for i in part]), strict=True):
            out[i] = states.float().mean(0).cpu().numpy()
        done += len(part)
        if progress is not None:
            progress(done, len(rows))
    return out

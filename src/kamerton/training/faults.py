"""What stops a step: memory that runs out, and numbers that are none.

Where memory runs out, the microbatch is halved and the step is made again. A step's summed losses are divided by the
step's count, so it is the same step. Where a loss or a gradient is not finite, the examples are found that make it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from kamerton.errors import ResourceError
from kamerton.memory import asked_for, give_back, out_of_memory
from kamerton.training.objective import Divisible, Naming, Objective

T = TypeVar("T")
SHOWN = 4
"""Names of examples in a message."""


class NoRoom(Exception):
    """Memory ran out at a microbatch."""

    def __init__(self, batch: Any, asked: str) -> None:
        super().__init__()
        self.batch, self.asked = batch, asked


@contextmanager
def watching(batch: Any) -> Iterator[None]:
    """Turn memory that runs out at a microbatch into `NoRoom`, which holds nothing of what was computed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        asked = asked_for(error)
    else:
        return
    raise NoRoom(batch, asked)


class Room:
    """How large a microbatch may be, as far as memory has said so in this run.

    Args:
        notes: what happened is told there.
    """

    def __init__(self, notes: list[str]) -> None:
        self._notes, self._note = notes, ""
        self._most, self._fitted = math.inf, 0

    def cut(self, batches: Sequence[Any]) -> list[Any]:
        """The same microbatches, those halved that are larger than what fits."""
        return [part for batch in batches for part in self._parts(batch)]

    def _parts(self, batch: Any) -> list[Any]:
        if _size(batch) <= self._most:
            return [batch]
        halves = batch.halves() if isinstance(batch, Divisible) else ()
        return [part for half in halves for part in self._parts(half)] or [batch]

    def fitted(self, batches: Sequence[Any]) -> None:
        """These have been computed."""
        self._fitted = max(self._fitted, *map(_size, batches))

    def each(self, batches: Sequence[Any], call: Callable[[Any], T], when: str) -> Iterator[tuple[Any, T]]:
        """Microbatches with what a call gives for each; where memory runs out at one, its halves take its place.

        Args:
            when: for the note: "at step 3".
        """
        waiting = self.cut(batches)[::-1]
        while waiting:
            batch = waiting.pop()
            try:
                with watching(batch):
                    found = call(batch)
            except NoRoom as caught:
                fault = caught
            else:
                yield batch, found
                continue
            self.lower(fault, when)
            waiting = self.cut([batch, *waiting[::-1]])[::-1]

    def lower(self, fault: NoRoom, when: str) -> None:
        """Take less from now on.

        Raises:
            ResourceError: nothing is left to halve.
        """
        give_back()
        size, batch = _size(fault.batch), fault.batch
        if not isinstance(batch, Divisible) or not batch.halves():
            what = "a single example" if isinstance(batch, Divisible) else "a microbatch"
            fits = self._fitted or size // 2
            raise ResourceError(
                f"memory ran out {when}{fault.asked}: {what} of {size:,} tokens does not fit",
                mend=f"what would fit: limit (longest example in tokens) {fits}, or a smaller base, or a method that "
                "trains less than all weights",
            )
        self._most = size // 2
        if self._note in self._notes:
            self._notes.remove(self._note)
        self._note = (
            f"memory ran out {when}: microbatches are halved to at most {self._most:,} tokens (max_tokens: "
            f"{self._most} asks for that from the start); the loss is the same"
        )
        self._notes.append(self._note)


def _size(batch: Any) -> int:
    """Tokens of one pass, without those that were only sampled for it."""
    inner = getattr(batch, "batch", None)
    return int(batch.tokens if inner is None else inner.tokens)


@torch.no_grad()
def culprits(objective: Objective, batches: Sequence[Any], total: Callable[[Any], float]) -> str:
    """The examples of a step whose loss is not finite, in words; "" where that cannot be told.

    Args:
        total: the summed loss of a microbatch.
    """
    every = [piece for batch in batches for piece in _single(batch)]
    try:
        bad = [piece for piece in every if not math.isfinite(total(piece))]
    except Exception:  # a look at what has failed already: nothing it meets is worth more than the first failure
        return ""
    if not bad or not isinstance(objective, Naming):
        return f"{len(bad)} of the step's {len(every)} examples" if bad else ""
    if len(bad) == len(every):
        return f"all {len(every)} examples of the step, among them {_listed(objective, bad)}"
    return _listed(objective, bad)


def _listed(objective: Naming, pieces: Sequence[Any]) -> str:
    names = list(dict.fromkeys(name for piece in pieces for name in objective.named(piece)))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _single(batch: Any) -> list[Any]:
    halves = batch.halves() if isinstance(batch, Divisible) else ()
    return [piece for half in halves for piece in _single(half)] or [batch]

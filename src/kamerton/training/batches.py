"""Batches without padding: rows that share a prefix, and the positions that carry loss.

A step's examples are sorted by length and cut into microbatches by tokens, not rows. What all rows of a microbatch have
in common at their start (template, instruction, shots) goes through the model once; the gradient is the same as if
every row had its own copy, because it is the same computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from kamerton.inference.prefix import common_prefix
from kamerton.rendering import Rendered


@dataclass(frozen=True, slots=True)
class Batch:
    """A microbatch of rows behind one shared prefix.

    Attributes:
        prefix: P token ids that all rows share.
        rows: own token ids of each row, B lists.
        prompts: (B,) how many of a row's own tokens belong to its prompt.
        positions: (N,) places of the tokens *before* each target, in the rows written one after another.
        targets: (N,) token ids that carry loss.
        weights: (N,) their loss weights.
        tokens: tokens of all rows with the prefix counted in each.
    """

    prefix: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    tokens: int

    @property
    def count(self) -> float:
        """The sum of loss weights: what a summed loss is divided by."""
        return float(self.weights.sum())

    @property
    def examples(self) -> int:
        return len(self.rows)

    @property
    def owners(self) -> np.ndarray:
        """(N,) the number of each target's row."""
        ends = np.cumsum([len(row) for row in self.rows])
        return np.searchsorted(ends, self.positions, side="right")

    def part(self, first: int, last: int) -> Batch:
        """The rows from `first` up to `last`, behind the same prefix."""
        rows, owners = self.rows[first:last], self.owners
        own = (owners >= first) & (owners < last)
        start = sum(len(row) for row in self.rows[:first])
        return Batch(
            self.prefix, rows, self.prompts[first:last], self.positions[own] - start, self.targets[own],
            self.weights[own], sum(len(self.prefix) + len(row) for row in rows),
        )  # fmt: skip

    def halves(self) -> tuple[Batch, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single row."""
        count = len(self.rows)
        return () if count < 2 else (self.part(0, count // 2), self.part(count // 2, count))


@dataclass(frozen=True, slots=True)
class Rows:
    """A microbatch with something beside its rows; it counts as they do, where a subclass does not say otherwise."""

    batch: Batch

    @property
    def count(self) -> float:
        """What a summed loss is divided by."""
        return self.batch.count

    @property
    def examples(self) -> int:
        return self.batch.examples

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    def halves(self) -> tuple[Self, ...]:
        """As of a `Batch`; a subclass whose further values belong to rows or targets divides these too."""
        return tuple(replace(self, batch=half) for half in self.batch.halves())


def make_batch(rendered: Sequence[Rendered], *, share: bool = True) -> Batch:
    """One microbatch from rendered examples; `share=False` gives every row its own copy of the prefix."""
    shared = 0
    if share and len(rendered) > 1:
        # every row keeps at least one prompt token, so that all targets have their predecessor in the row
        shared = min(common_prefix([r.tokens for r in rendered]), *(r.prompt_length - 1 for r in rendered))
        shared = max(shared, 0)
    positions, targets, weights, start = [], [], [], 0
    for r in rendered:
        w = np.asarray(r.weights, dtype=np.float64)
        places = np.flatnonzero(w)
        places = places[places > shared]
        positions.append(start + places - shared - 1)
        targets.append(np.asarray(r.tokens)[places])
        weights.append(w[places])
        start += len(r.tokens) - shared
    return Batch(
        prefix=tuple(rendered[0].tokens[:shared]),
        rows=tuple(tuple(r.tokens[shared:]) for r in rendered),
        prompts=tuple(r.prompt_length - shared for r in rendered),
        positions=np.concatenate(positions),
        targets=np.concatenate(targets),
        weights=np.concatenate(weights),
        tokens=sum(len(r.tokens) for r in rendered),
    )


def microbatches(rendered: Sequence[Rendered], max_tokens: int, *, parts: int = 1, share: bool = True) -> list[Batch]:
    """Cut examples into microbatches of at most `max_tokens` tokens (one example may exceed it), at least `parts`.

    Sorted by length, so that rows of one microbatch are about equally long.
    """
    return [make_batch([rendered[i] for i in group], share=share) for group in cut(rendered, max_tokens, parts=parts)]


def cut(rendered: Sequence[Rendered], max_tokens: int, *, parts: int = 1) -> list[list[int]]:
    """The numbers of the examples of each microbatch, by the rules of `microbatches`."""
    ordered = sorted(range(len(rendered)), key=lambda i: (len(rendered[i].tokens), rendered[i].tokens))
    begins = divide([len(rendered[i].tokens) for i in ordered], parts)
    groups: list[list[int]] = []
    used = 0
    for place, i in enumerate(ordered):
        size = len(rendered[i].tokens)
        if place in begins or used + size > max_tokens:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += size
    return groups


def divide(sizes: Sequence[int], parts: int) -> set[int]:
    """The places at which a row of sizes is cut into so many parts of about equal sums, none of them empty."""
    total, done, begins = sum(sizes), 0.0, set[int]()
    for place, size in enumerate(sizes):
        due = (done + size / 2) * parts >= len(begins) * total
        # where as many parts are left as places, each place begins one
        if len(begins) < parts and (not begins or due or len(sizes) - place <= parts - len(begins)):
            begins.add(place)
        done += size
    return begins


def portion(sizes: Sequence[int], max_tokens: int, parts: int) -> int:
    """Tokens of one pass through what has these sizes, so that it takes about `parts` passes of equal work or more."""
    return max_tokens if parts == 1 else max(1, min(max_tokens, -(-sum(sizes) // parts)))


def order(step: int, batch_size: int, size: int, seed: int) -> list[int]:
    """The examples of one step: passes over the data, each in its own random order, cut into steps without a gap.

    A pure function of the step, so the position in the data needs no state of its own.
    """
    picked = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, within = divmod(place, size)
        picked.append((epoch, within))
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(size) for epoch in {e for e, _ in picked}}
    return [int(orders[epoch][within]) for epoch, within in picked]

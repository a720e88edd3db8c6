"""Pairs of judged answers as rows of tokens, and microbatches in which both rows of a pair stand together.

The two answers of a pair stand behind one and the same prompt: where they have to be cut to fit, the prompt is cut for
the longer answer. A pair whose answers become equal by that says nothing and is left out, counted in the notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kamerton.rendering import Rendered, Renderer
from kamerton.tasks.example import Conversation, Example
from kamerton.tasks.preferences import pairs_of
from kamerton.training.batches import Batch, cut, make_batch


@dataclass(frozen=True)
class RowPair:
    """A pair as tokens: the better row, the worse row."""

    chosen: Rendered
    rejected: Rendered

    @property
    def tokens(self) -> int:
        return len(self.chosen.tokens) + len(self.rejected.tokens)


@dataclass(frozen=True)
class PairRows:
    """A microbatch of P pairs.

    Attributes:
        batch: 2P rows, each pair's better one before its worse one.
        numbers: (P,) which pairs these are.
        owners: (N,) the row of each target.
        lengths: (P, 2) answer tokens, the end token counted.
    """

    batch: Batch
    numbers: tuple[int, ...]
    owners: np.ndarray
    lengths: np.ndarray

    @property
    def count(self) -> float:
        return float(len(self.numbers))

    @property
    def examples(self) -> int:
        return len(self.numbers)

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    def part(self, first: int, last: int) -> PairRows:
        """The pairs from `first` up to `last`."""
        own = (self.owners >= 2 * first) & (self.owners < 2 * last)
        return PairRows(
            self.batch.part(2 * first, 2 * last), self.numbers[first:last], self.owners[own] - 2 * first,
            self.lengths[first:last],
        )  # fmt: skip


def answer_rows(
    renderer: Renderer, messages: Conversation, answers: Sequence[str], limit: int | None
) -> list[Rendered]:
    """Answers behind one prompt, with loss on the answers and their end tokens; cut to `limit` tokens as examples are.

    Args:
        renderer: of the base.
        messages: the conversation up to the answer.
        answers: to it.
        limit: longest row in tokens (of an encoder–decoder: of prompt and answer each).
    """
    apart = renderer.encoder_decoder
    most = None if limit is None else limit if apart else limit // 2
    targets = [renderer.answer(a) for a in answers]
    longest = max(len(t) if most is None else min(len(t), most) for t in targets)
    kept, cut_prompt = renderer.fit(messages, limit if apart or limit is None else limit - longest)
    prompt = renderer.prompt(kept)
    rows = []
    for target in targets:
        said = target if most is None else target[:most]
        weights = (0.0,) * len(prompt) + (1.0,) * len(said)
        rows.append(Rendered((*prompt, *said), weights, cut_prompt or len(said) < len(target)))
    return rows


def row_pairs(renderer: Renderer, examples: Sequence[Example], limit: int | None, what: str
              ) -> tuple[list[RowPair], list[str]]:  # fmt: skip
    """All pairs of some examples as tokens, and notes on what was cut or left out; `what`: "training", "validation"."""
    found, cut_rows, equal, without = [], 0, 0, 0
    for example in examples:
        pairs = pairs_of(example)
        without += not pairs
        for pair in pairs:
            chosen, rejected = answer_rows(renderer, pair.messages, (pair.chosen, pair.rejected), limit)
            if chosen.tokens == rejected.tokens:
                equal += 1
                continue
            cut_rows += chosen.cut or rejected.cut
            found.append(RowPair(chosen, rejected))
    notes = []
    if without and found:
        notes.append(f"{without} of {len(examples)} {what} examples have no pair of judged answers")
    if cut_rows:
        notes.append(f"{cut_rows} of {len(found)} {what} pairs were cut to {limit} tokens")
    if equal:
        why = "" if limit is None else f" (within {limit} tokens)"
        notes.append(f"{equal} {what} pairs were left out: their two answers are the same tokens{why}")
    return found, notes


def pair_batches(
    pairs: Sequence[RowPair], numbers: Sequence[int], max_tokens: int, parts: int = 1
) -> list[PairRows]:  # fmt: skip
    """Microbatches of at most `max_tokens` tokens (one pair may exceed it), at least `parts`.

    What all rows of one begin with is shared.
    """
    whole = [Rendered((*pairs[n].chosen.tokens, *pairs[n].rejected.tokens), ()) for n in numbers]
    return [pair_batch(pairs, [numbers[i] for i in group]) for group in cut(whole, max_tokens, parts=parts)]


def pair_batch(pairs: Sequence[RowPair], numbers: Sequence[int]) -> PairRows:
    """One microbatch of the pairs with these numbers."""
    rows = [row for n in numbers for row in (pairs[n].chosen, pairs[n].rejected)]
    counts = [row.target_count for row in rows]
    owners = np.repeat(np.arange(len(rows)), counts)
    return PairRows(make_batch(rows), tuple(numbers), owners, np.array(counts).reshape(-1, 2))

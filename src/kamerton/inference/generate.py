"""Sample answers: continuous batching over a preallocated cache.

Each distinct prompt goes through the model once. Its keys and values are copied for further samples of it, or, where
there is only one prompt, shared by all of them. Decoding takes one token of every live row at a time; a row that is
finished leaves, the last row moves into its slot, and waiting prompts refill what is free.

What it leaves out: paging (every row has columns for its longest possible answer).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kamerton.base import CausalModel
from kamerton.base.attention import RowCache
from kamerton.inference.drafting import Drafting
from kamerton.inference.prefix import SharedPrefix, fill
from kamerton.inference.sampling import Sampling, next_tokens, stream_key

if TYPE_CHECKING:
    from kamerton.base.draft import Draft

FirstToken = Callable[[Tensor, Sequence[int]], Tensor]
"""A correction of first tokens: (B, V) logits and the numbers of their prompts → (B, V) logits to choose from."""

PREFILL_TOKENS = 4096
"""Prompt tokens that go through the model at once: enough to fill any matrix unit, little enough to stay in memory."""


@dataclass(eq=False, slots=True)
class Prompt:
    """A prompt and its answers.

    Attributes:
        tokens: token ids, without the model's front.
        room: the longest answer in tokens.
        samples: the answers, finished or not.
        hidden: (H,) hidden state of the last token once the prompt went through the model.
        own: tokens of it that stand in its rows' own columns.
        waiting: samples that have no slot yet.
    """

    tokens: Sequence[int]
    room: int
    samples: list[Row] = field(default_factory=list)
    hidden: Tensor | None = None
    own: Sequence[int] = ()
    waiting: deque[Row] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class Row:
    """One answer in the making: sampled tokens, their log-probabilities, and why it ended ("" while it has not)."""

    prompt: Prompt
    index: int
    key: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""

    def take(
        self, token: int, logprob: float, end_ids: Container[int], stopped: Callable[[list[int]], bool] | None
    ) -> None:
        """A further token; `stopped` says whether the answer holds a stop string, None where none was given."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in end_ids or (stopped is not None and stopped(self.tokens)):
            self.finish = "stop"
        elif len(self.tokens) >= self.prompt.room:
            self.finish = "length"


def items_of(prompts: Sequence[Sequence[int]], room: Sequence[int], sampling: Sampling) -> list[Prompt]:
    """The prompts with the rows of their answers, each row with its own stream of random numbers.

    Args:
        prompts: token ids, each at least one.
        room: the longest answer to each prompt, in tokens.
        sampling: its `n` and `seed` count here.
    """
    seen: dict[tuple[int, ...], int] = {}
    items = []
    for i, (tokens, limit) in enumerate(zip(prompts, room, strict=True)):
        item = Prompt(tokens, limit)
        first = seen.get(tuple(tokens), 0)  # a prompt that comes twice goes on in its own stream of samples
        seen[tuple(tokens)] = first + sampling.n
        for n in range(sampling.n):
            item.samples.append(Row(item, i * sampling.n + n, stream_key(sampling.seed, tokens, first + n)))
        item.waiting.extend(item.samples)
        items.append(item)
    return items


class Decoder:
    """Decodes the answers of many prompts.

    Args:
        model: the model.
        sampling: how to sample.
        end_ids: tokens that end an answer.
        stopped: whether the text of these tokens holds a stop string; asked after each token where there are any.
        max_tokens: cache columns of all rows together, and prompt tokens of one pass.
        first: corrects what the first token of each answer is chosen from.
    """

    def __init__(
        self,
        model: CausalModel,
        sampling: Sampling,
        end_ids: Sequence[int],
        stopped: Callable[[list[int]], bool],
        max_tokens: int,
        first: FirstToken | None = None,
    ) -> None:
        self.model, self.sampling, self.end_ids, self.stopped = model, sampling, frozenset(end_ids), stopped
        self.max_tokens, self.first = max_tokens, first
        self.drafting = Drafting(model)
        self.asked = self.computed = self.outputs = 0

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], room: Sequence[int]) -> Iterator[list[Row]]:
        """Sample `sampling.n` answers to each prompt.

        Args:
            prompts: token ids, each at least one.
            room: the longest answer to each prompt, in tokens.

        Yields:
            After each step the rows that got a token in it. Rows are numbered prompt by prompt.
        """
        items = self._items(prompts, room)
        single = len(set(map(tuple, prompts))) == 1 and len(items) * self.sampling.n > 1  # then all rows share it whole
        single = single and not self.model.inserted
        prefix = SharedPrefix(self.model, prompts[0]) if single else SharedPrefix.of(self.model, prompts)
        length, front = prefix.tokens, self.model.soft_tokens
        for item in items:
            item.own = item.tokens[length:]
            self.asked += (len(item.tokens) + front) * self.sampling.n
            if single:
                item.hidden = prefix.last()
        items.sort(key=lambda item: -(len(item.own) + item.room))
        for cohort in self._cohorts(items):
            yield from self._decode(cohort, prefix)
        self.computed += prefix.computed

    def columns(self, item: Prompt) -> int:
        """Cache columns of one answer to a prompt."""
        return self.held(item) + item.room

    def held(self, item: Prompt) -> int:
        """Cache columns of a prompt: its own tokens and the soft ones among them."""
        return len(item.own) + (self.model.inserted if item.own else 0)

    def _items(self, prompts: Sequence[Sequence[int]], room: Sequence[int]) -> list[Prompt]:
        return items_of(prompts, room, self.sampling)

    def _cohorts(self, items: list[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts, longest first, that share a cache: where not all fit at once, none takes under half its columns."""
        start = 0
        while start < len(items):
            columns = self.columns(items[start])
            left = len(items) - start
            if left * self.sampling.n * columns <= self.max_tokens:
                end = len(items)
            else:
                end = start + 1
                while end < len(items) and 2 * self.columns(items[end]) > columns:
                    end += 1
            yield items[start:end]
            start = end

    def _decode(self, items: list[Prompt], prefix: SharedPrefix) -> Iterator[list[Row]]:
        columns = max(self.columns(item) for item in items)
        rows = len(items) * self.sampling.n
        state = _Slots(self, prefix, RowCache(max(1, min(rows, self.max_tokens // columns)), columns), deque(items))
        while True:
            state.admit()
            fresh = [slot for slot, row in enumerate(state.rows) if not row.tokens]
            if fresh:
                hidden = [state.rows[slot].prompt.hidden for slot in fresh]
                yield self._advance([state.rows[slot] for slot in fresh], torch.stack(hidden))  # type: ignore[arg-type]
                state.release()
                continue
            if not state.rows:
                return
            if rows == 1 and (draft := self.drafting.draft()) is not None:
                yield from self._ahead(draft, state)
                continue
            self.asked += len(state.rows)
            step = prefix.forward([[row.tokens[-1]] for row in state.rows], cache=state.cache)
            yield self._advance(state.rows, step.rows)
            state.release()

    def _ahead(self, draft: Draft, state: _Slots) -> Iterator[list[Row]]:
        """The next tokens of the only row, guessed and checked."""
        (row,) = state.rows
        before = int(state.cache.lengths[0])
        _, tokens, logprobs = self.drafting.tokens(draft, state.prefix, state.cache, row, self.sampling, self.end_ids)
        stopped = self.stopped if self.sampling.stop else None
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            row.take(token, logprob, self.end_ids, stopped)
            self.asked += 1
            self.outputs += 1
            state.cache.lengths[0] = before + i + 1
            yield [row]
            if row.finish:
                break
        state.release()

    def _advance(self, rows: list[Row], hidden: Tensor) -> list[Row]:
        """Sample one token for each row from (B, H) hidden states; returns the rows."""
        self.outputs += len(rows)
        logits, corrected = self.model.output(hidden), None
        if self.first is not None and not rows[0].tokens:  # rows of a step are all at their first token, or none is
            corrected = self.first(logits.float(), [row.index // self.sampling.n for row in rows])
        tokens, logprobs = next_tokens(
            logits, self.sampling, [row.key for row in rows], [len(row.tokens) for row in rows], corrected
        )
        stopped = self.stopped if self.sampling.stop else None
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.take(token, logprob, self.end_ids, stopped)
        return list(rows)


class _Slots:
    """The rows that are being decoded, row i in slot i of the cache."""

    def __init__(self, decoder: Decoder, prefix: SharedPrefix, cache: RowCache, waiting: deque[Prompt]) -> None:
        self.decoder, self.prefix, self.cache, self.waiting = decoder, prefix, cache, waiting
        self.rows: list[Row] = []

    def admit(self) -> None:
        """Fill free slots: first with further samples of prompts that are in the cache, then with waiting prompts."""
        for slot, row in enumerate(list(self.rows)):
            while row.prompt.waiting and len(self.rows) < self.cache.capacity:
                self._copy(row.prompt, slot)
        free = self.cache.capacity - len(self.rows)
        # a pass costs as much as a step of decoding, so it waits until an eighth of the slots is free
        if not self.waiting or free < max(1, self.cache.capacity // 8 if self.rows else 1):
            return
        taken: list[Prompt] = []
        while self.waiting and free > 0:
            taken.append(self.waiting.popleft())
            free -= min(free, len(taken[-1].waiting))
        taken.sort(key=lambda item: -len(item.own))
        for batch in fill([len(item.own) for item in taken], min(PREFILL_TOKENS, self.decoder.max_tokens)):
            self._prefill([taken[i] for i in batch])
        for item in taken:
            slot = next(i for i, row in enumerate(self.rows) if row.prompt is item)
            while item.waiting and len(self.rows) < self.cache.capacity:
                self._copy(item, slot)

    def _prefill(self, items: list[Prompt]) -> None:
        slots = range(len(self.rows), len(self.rows) + len(items))
        self.cache.lengths[slots.start : slots.stop] = 0
        if items[0].own:
            hidden = self.prefix.forward(
                [item.own for item in items], cache=self.cache, slots=slots, prompts=[item.tokens for item in items]
            )
            last = hidden.last()
            for i, item in enumerate(items):
                item.hidden = last[i]
        self.rows.extend(item.waiting.popleft() for item in items)

    def _copy(self, prompt: Prompt, slot: int) -> None:
        """A further sample of the prompt whose keys and values stand in `slot`."""
        target = len(self.rows)
        self.cache.copy(slot, target, self.decoder.held(prompt))
        self.rows.append(prompt.waiting.popleft())

    def release(self) -> None:
        """Finished rows leave; a waiting sample of the same prompt starts in place, else the last row moves in."""
        for slot in range(len(self.rows) - 1, -1, -1):
            row = self.rows[slot]
            if not row.finish:
                continue
            if row.prompt.waiting:
                self.rows[slot] = row.prompt.waiting.popleft()
                self.cache.lengths[slot] = self.decoder.held(row.prompt)
                continue
            last = len(self.rows) - 1
            if slot != last:
                self.cache.move(last, slot)
                self.rows[slot] = self.rows[last]
            self.rows.pop()

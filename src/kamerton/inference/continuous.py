"""Continuous batching: requests join and leave a running batch between two tokens (Yu et al. 2022, Orca).

`Batch` decodes the requests of one model. A newcomer's prompt goes through the model in a pass of its own, then one
token of every row is decoded at a time. A row leaves as soon as it has its end token, a stop string, its last allowed
token, or as its request is cancelled; the last row moves into its place. Each row is sampled as its request asks and
from its own stream of random numbers (`sampling.py`), so an answer does not depend on who else is in the batch, but
for rounding. `runner.py` steps the batches of several models by turns.

What it leaves out: paging (the cache is a rectangle of rows × the longest row, and grows with them), prompts that are
read in parts, and sharing what different requests' prompts begin with.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from kamerton.base import CausalModel
from kamerton.base.attention import RowCache
from kamerton.errors import ResourceError
from kamerton.inference.drafting import MOST_AHEAD, Drafting
from kamerton.inference.generate import FirstToken, Prompt, Row, items_of
from kamerton.inference.prefix import SharedPrefix, fill
from kamerton.inference.sampling import Sampling, next_tokens
from kamerton.memory import asked_for, give_back, out_of_memory

if TYPE_CHECKING:
    from kamerton.base.draft import Draft

PREFILL = 1024
"""Prompt tokens of newcomers in one step: the other rows wait that long for their next token."""
COLUMNS = 128
"""Columns by which the cache grows."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, as its request is told of it.

    Attributes:
        index: the number of the answer within its request.
        token: its id; `logprob`: in nats at temperature 1 without filters; `top`: the likeliest ids with theirs.
        finish: "stop" or "length" where it is the answer's last, else "".
    """

    index: int
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish: str


class Cancelled(Exception):
    """The request is not wanted any more."""


Told = Callable[[list[Token] | Exception], None]
"""Called after each step with the tokens that a request got in it, or once with what went wrong. Must be quick."""


@dataclass(eq=False)
class Job:
    """What one request asks of a model.

    Attributes:
        prompts: token ids of each prompt, at least one.
        room: the longest answer to each, in tokens.
        sampling: how to sample.
        told: hears of every token.
        stopped: whether these tokens' text holds a stop string; asked where there are any.
        first: corrects what first tokens are chosen from.
        top: how many of the likeliest tokens are told of at each place.
        cancelled: its rows leave before the next step.
    """

    prompts: Sequence[Sequence[int]]
    room: Sequence[int]
    sampling: Sampling
    told: Told
    stopped: Callable[[list[int]], bool]
    first: FirstToken | None = None
    top: int = 0
    cancelled: bool = False
    key: Any = field(init=False)

    def __post_init__(self) -> None:
        # rows that are filtered alike are sampled together
        self.key = replace(self.sampling, max_tokens=1, stop=(), n=1, seed=0)


def grown(rows: Sequence[Row], tokens: Sequence[Token]) -> Iterator[list[Row]]:
    """Put the tokens that a job was told of into its rows.

    Yields:
        The rows that got one, each once at a time: a newcomer's first two tokens may come together.
    """
    step: list[Row] = []
    for token in tokens:
        row = rows[token.index]
        if row in step:
            yield step
            step = []
        row.tokens.append(token.token)
        row.logprobs.append(token.logprob)
        row.finish = token.finish
        step.append(row)
    yield step


class RunningBatch(Protocol):
    """A batch that requests join while it runs, whoever decodes it: `Batch` here, or vLLM's.

    Attributes:
        rows, waiting: answers that are being decoded, and those that are not yet.
        steps, decoded: steps so far, and tokens that they gave.
    """

    steps: int
    decoded: int

    @property
    def busy(self) -> bool: ...
    @property
    def rows(self) -> Sized: ...
    @property
    def waiting(self) -> Sized: ...
    def join(self, job: Job) -> None: ...
    def step(self) -> None: ...
    def fail(self, error: Exception) -> None: ...
    def rest(self) -> None: ...


@dataclass(eq=False, slots=True)
class _Place:
    """A row in the batch, and whose it is; `told`: tokens that its request has heard of already."""

    row: Row
    job: Job
    told: int = 0


class Batch:
    """The requests of one model that are answered together.

    Args:
        model: the model.
        end_ids: tokens that end an answer.
        max_tokens: bound on rows × columns of the cache; a row that is longer alone is decoded alone.
        max_rows: rows at once.
    """

    def __init__(self, model: CausalModel, end_ids: Sequence[int], max_tokens: int, max_rows: int) -> None:
        self.model, self.end_ids = model, frozenset(end_ids)
        self.max_tokens, self.max_rows = max_tokens, max_rows
        self.rows: list[_Place] = []
        self.waiting: deque[_Place] = deque()
        self.cache: RowCache | None = None
        self.steps = self.decoded = 0
        self._entering: list[_Place] = []
        self._prefix: SharedPrefix | None = None
        self._open: ExitStack | None = None
        self._drafting = Drafting(model)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.rows or self.waiting)

    def join(self, job: Job) -> None:
        """Let a request's rows wait for places."""
        for item in items_of(job.prompts, job.room, job.sampling):
            item.own = item.tokens
            self.waiting.extend(_Place(row, job) for row in item.samples)

    def step(self) -> None:
        """Drop who has gone, let waiting rows in, and give every row its next token.

        Where memory runs out, half as many rows go on from there; all others wait and begin again, to the same tokens.
        """
        try:
            self._step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            asked = asked_for(error)
        else:
            return
        self._halve(asked)

    def _halve(self, asked: str) -> None:
        places = [p for p in dict.fromkeys([*self.rows, *self._entering]) if not p.row.finish]
        self.rows.clear()
        self._entering = []
        self.rest()
        give_back()
        if len(places) < 2:
            for place in places:
                place.job.cancelled = True
                place.job.told(ResourceError(
                    f"memory ran out{asked}: a question of {len(place.row.prompt.tokens):,} tokens with its answer "
                    "does not fit", mend="shorten it, or ask for a shorter answer",
                ))  # fmt: skip
            return
        self.max_rows = len(places) // 2
        for place in places:
            place.told = max(place.told, len(place.row.tokens))
            place.row.tokens.clear()
            place.row.logprobs.clear()
        self.waiting.extendleft(reversed(places))

    @torch.inference_mode()
    def _step(self) -> None:
        self._begin()
        self._leave()
        told: dict[Job, list[Token]] = {}
        try:
            fresh = self._admit()
            if fresh:
                hidden = torch.stack([place.row.prompt.hidden for place in fresh])  # type: ignore[misc]
                self._advance(fresh, hidden, told)
                self._leave()
            if self.rows:
                assert self.cache is not None
                assert self._prefix is not None
                alone = len(self.rows) == 1 and not self.waiting
                if alone and (draft := self._drafting.draft()) is not None:
                    self._ahead(draft, self.rows[0], told)
                else:
                    self._fit(len(self.rows), int(self.cache.lengths[: len(self.rows)].max()) + 1)
                    step = self._prefix.forward([[place.row.tokens[-1]] for place in self.rows], cache=self.cache)
                    self._advance(self.rows, step.rows, told)
                self._leave()
        finally:
            self.steps += 1
            for job, tokens in told.items():
                if not job.cancelled:
                    job.told(tokens)

    def fail(self, error: Exception) -> None:
        """Tell all requests that something went wrong, and forget them."""
        jobs = dict.fromkeys(place.job for place in itertools.chain(self.rows, self.waiting))
        self.rows.clear()
        self.waiting.clear()
        for job in jobs:
            if not job.cancelled:
                job.told(error)
        self.rest()

    def rest(self) -> None:
        """Give memory back while there is nothing to do."""
        self.cache = None
        if self._open is not None:
            self._open.close()
            self._open = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._open is None:
            self._open = ExitStack()
            self._open.enter_context(self.model.inference())
        if self._prefix is None:
            self._prefix = SharedPrefix(self.model, ())
            self._prefix.last()  # soft tokens go through the model once for all requests

    def _held(self, prompt: Prompt) -> int:
        return len(prompt.tokens) + self.model.inserted

    def _columns(self, place: _Place) -> int:
        return self._held(place.row.prompt) + place.row.prompt.room

    def _admit(self) -> list[_Place]:
        """Waiting rows, in their order, as far as there is room; they get no token yet."""
        fresh: list[_Place] = []
        widest = max((_rounded(self._columns(place)) for place in self.rows), default=0)
        reading = 0
        known = {id(place.row.prompt) for place in self.rows}
        while self.waiting and len(self.rows) + len(fresh) < self.max_rows:
            place = self.waiting[0]
            if place.job.cancelled:
                self.waiting.popleft()
                continue
            wider = max(widest, _rounded(self._columns(place)))
            count = len(self.rows) + len(fresh)
            new = 0 if id(place.row.prompt) in known else self._held(place.row.prompt)
            if (count and (count + 1) * wider > self.max_tokens) or (reading and reading + new > PREFILL):
                break
            fresh.append(self.waiting.popleft())
            known.add(id(place.row.prompt))
            widest, reading = wider, reading + new
        if fresh:
            self._entering = fresh
            self._enter(fresh)
            self._entering = []
        return fresh

    def _enter(self, fresh: list[_Place]) -> None:
        """Rows take their places: the first of each prompt by reading it, further ones by copying what it gave."""
        there = {id(place.row.prompt): slot for slot, place in enumerate(self.rows)}
        leaders = {id(place.row.prompt): place for place in reversed(fresh) if id(place.row.prompt) not in there}
        new = sorted(leaders.values(), key=lambda place: -len(place.row.prompt.tokens))
        before = int(self.cache.lengths[: len(self.rows)].max()) if self.rows and self.cache is not None else 0
        # padding of a pass is written too, so that the cache must be as wide as the longest newcomer
        self._fit(len(self.rows) + len(fresh), max(before, *(self._held(p.row.prompt) for p in fresh)) + 1)
        assert self.cache is not None
        assert self._prefix is not None
        for batch in fill([self._held(place.row.prompt) for place in new], PREFILL):
            part = [new[i] for i in batch]
            slots = range(len(self.rows), len(self.rows) + len(part))
            self.cache.lengths[slots.start : slots.stop] = 0
            prompts = [place.row.prompt for place in part]
            tokens = [prompt.tokens for prompt in prompts]
            last = self._prefix.forward(tokens, cache=self.cache, slots=slots, prompts=tokens).last()
            for prompt, hidden, slot in zip(prompts, last, slots, strict=True):
                prompt.hidden, there[id(prompt)] = hidden, slot
            self.rows.extend(part)
        for place in fresh:
            if leaders.get(id(place.row.prompt)) is not place:
                self.cache.copy(there[id(place.row.prompt)], len(self.rows), self._held(place.row.prompt))
                self.rows.append(place)

    def _fit(self, rows: int, columns: int) -> None:
        """Make the cache at least so large, in steps, so that it is not copied at every token."""
        cache = self.cache
        if cache is not None and rows <= cache.capacity and columns <= cache.columns:
            return
        columns = _rounded(columns)
        more = rows if cache is None else 2 * rows if rows > cache.capacity else cache.capacity
        rows = max(rows, min(more, self.max_rows, self.max_tokens // columns))
        larger = RowCache(rows, columns)
        if cache is not None:
            live, wide = len(self.rows), int(cache.lengths.max())
            for i, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
                for new, old in zip(larger.layer(i, keys[:, :, 0]), (keys, values), strict=True):
                    new[:live, :, :wide] = old[:live, :, :wide]
            larger.lengths[:live] = cache.lengths[:live]
        self.cache = larger

    def _advance(self, places: list[_Place], hidden: Tensor, told: dict[Job, list[Token]]) -> None:
        """Sample one token for each place from (B, H) hidden states."""
        logits = self.model.output(hidden).float()
        groups: dict[Any, list[int]] = {}
        for i, place in enumerate(places):
            fresh = place.job.first is not None and not place.row.tokens
            groups.setdefault((place.job.key, place.job if fresh else None), []).append(i)
        for (sampling, corrected), members in groups.items():
            rows = [places[i].row for i in members]
            own = logits if len(members) == len(places) else logits[members]
            shown = None
            if corrected is not None:
                try:
                    shown = corrected.first(own, [row.index // corrected.sampling.n for row in rows])
                except Exception as error:  # of this request alone
                    corrected.cancelled = True
                    corrected.told(error)
                    continue
            tokens, logprobs = next_tokens(own, sampling, [r.key for r in rows], [len(r.tokens) for r in rows], shown)
            tops = self._tops(own, [places[i].job.top for i in members])
            for i, token, logprob, top in zip(members, tokens.tolist(), logprobs.tolist(), tops, strict=True):
                self._give(places[i], token, logprob, top, told)

    def _ahead(self, draft: Draft, place: _Place, told: dict[Job, list[Token]]) -> None:
        """The next tokens of the only row, guessed and checked."""
        assert self.cache is not None
        assert self._prefix is not None
        row, job = place.row, place.job
        before = int(self.cache.lengths[0])
        self._fit(1, before + MOST_AHEAD + 1)
        logits, tokens, logprobs = self._drafting.tokens(
            draft, self._prefix, self.cache, row, job.sampling, self.end_ids
        )
        tops = self._tops(logits.float(), [job.top] * len(tokens))
        for i, (token, logprob, top) in enumerate(zip(tokens, logprobs, tops, strict=True)):
            self._give(place, token, logprob, top, told)
            self.cache.lengths[0] = before + i + 1
            if row.finish:
                break

    def _give(
        self, place: _Place, token: int, logprob: float, top: tuple[tuple[int, float], ...],
        told: dict[Job, list[Token]],
    ) -> None:  # fmt: skip
        row, job = place.row, place.job
        row.take(token, logprob, self.end_ids, job.stopped if job.sampling.stop else None)
        self.decoded += 1
        if len(row.tokens) <= place.told:
            return
        told.setdefault(job, []).append(Token(row.index, token, logprob, top, row.finish))

    @staticmethod
    def _tops(logits: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
        most = max(counts)
        if not most:
            return [()] * len(counts)
        values, ids = logits.topk(min(most, logits.shape[-1]), dim=-1)
        values = values - torch.logsumexp(logits, -1, keepdim=True)
        return [
            tuple(zip(i[:count], v[:count], strict=True)) if count else ()
            for count, i, v in zip(counts, ids.tolist(), values.tolist(), strict=True)
        ]

    def _leave(self) -> None:
        """Finished rows and those of cancelled requests leave; the last row moves into their place."""
        for slot in range(len(self.rows) - 1, -1, -1):
            place = self.rows[slot]
            if not place.row.finish and not place.job.cancelled:
                continue
            last = len(self.rows) - 1
            if slot != last:
                assert self.cache is not None
                self.cache.move(last, slot)
                self.rows[slot] = self.rows[last]
            self.rows.pop()


def _rounded(columns: int) -> int:
    return -(-columns // COLUMNS) * COLUMNS

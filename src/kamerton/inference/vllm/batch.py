"""Requests on one set of weights in vLLM, and the running batch of one adapted model on it.

vLLM batches by itself, without padding and with its cache in pages; every step gives each running answer a token.
`Weights` holds vLLM's engine and hears of all tokens; `VllmBatch` speaks like the torch backend's `Batch`, so that a
server's thread steps both alike. Several adapted models share the weights: LoRA adapters and soft tokens are said with
each request.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kamerton.base.work import Work
from kamerton.inference.continuous import Job, Token
from kamerton.inference.generate import Row, items_of
from kamerton.inference.vllm import choosing
from kamerton.inference.vllm.choosing import Wish
from kamerton.inference.vllm.library import Needs

Asked = Callable[[Sequence[int]], Mapping[str, Any]]
"""A prompt's token ids → vLLM's input, soft tokens put in."""


@dataclass(eq=False)
class Request:
    """One answer under way in vLLM.

    Attributes:
        name: vLLM's name of it; `wish`: the number of its wish, or None.
        hear: told token id, log-probability and the likeliest tokens, as each token comes; True ends the request.
        work: told once, when it has ended, what was computed for it and how many tokens that would be without sharing.
        length: positions of the prompt, soft tokens included; `cached`: how many of them vLLM had already.
        scored: log-probabilities of the prompt's tokens where they were asked for, from the second on.
    """

    name: str
    wish: int | None
    hear: Callable[[int, float, tuple[tuple[int, float], ...]], bool]
    work: Callable[[Work, int], None]
    length: int
    cached: int = -1
    said: int = 0
    scored: list[float] = field(default_factory=list)


_adapters = itertools.count(1)


class Weights:
    """One set of weights in vLLM.

    Args:
        engine: vLLM's engine.
        needs: what it has room for.
        close: called once at its end.
    """

    def __init__(self, engine: Any, needs: Needs, close: Callable[[], None] = lambda: None) -> None:
        self._engine, self.needs = engine, needs
        self._requests: dict[str, Request] = {}
        self._names = itertools.count(1)
        self._told: dict[Job, list[Token]] = {}
        # at the latest as Python ends, before what vLLM needs for it is gone
        self._finalizer = weakref.finalize(self, _end, engine, close)

    def close(self) -> None:
        """Give the memory back; nothing can be asked any more."""
        self._finalizer()
        self._engine = None

    @property
    def closed(self) -> bool:
        return self._engine is None

    def adapter(self, folder: Path) -> Any:
        """vLLM's name for the LoRA adapter that peft has saved in a folder."""
        from vllm.lora.request import LoRARequest

        number = next(_adapters)
        return LoRARequest(f"adapter-{number}", number, str(folder))

    def add(
        self, prompt: Mapping[str, Any], length: int, room: int, wish: Wish, end_ids: Sequence[int],
        hear: Callable[[int, float, tuple[tuple[int, float], ...]], bool], work: Callable[[Work, int], None], *,
        top: int = 0, adapter: Any = None, scored: bool = False,
    ) -> Request:  # fmt: skip
        """Ask for one answer.

        Args:
            prompt: vLLM's input; `length`: its positions.
            room: the longest answer, in tokens.
            wish: how its tokens are chosen.
            end_ids: tokens that end it.
            hear, work: as in `Request`.
            top: likeliest tokens to tell of at each place.
            adapter: what `adapter` gave.
            scored: give log-probabilities of the prompt's own tokens too.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        number = None if wish.plain else choosing.enter(wish)
        request = Request(str(next(self._names)), number, hear, work, length)
        params = SamplingParams(
            temperature=0.0, max_tokens=room, stop_token_ids=list(end_ids), ignore_eos=True, detokenize=False,
            logprobs=top, prompt_logprobs=0 if scored else None, output_kind=RequestOutputKind.DELTA,
            extra_args=None if number is None else {choosing.NAME: number},
        )  # fmt: skip
        try:
            self._engine.add_request(request.name, prompt, params, lora_request=adapter)
        except BaseException:
            choosing.leave(number)
            raise
        self._requests[request.name] = request
        return request

    def end(self, requests: Iterable[Request]) -> None:
        """Requests that are not wanted any more leave."""
        left = [r for r in requests if self._requests.pop(r.name, None) is not None]
        if left:
            self._engine.abort_request([r.name for r in left])
        for request in left:
            self._finish(request)

    def tell(self, job: Job, token: Token) -> None:
        """Tell a job of a token at the end of this step."""
        self._told.setdefault(job, []).append(token)

    def step(self) -> None:
        """The next token of every running request."""
        over: list[Request] = []
        try:
            for output in self._engine.step():
                request = self._requests.get(output.request_id)
                if request is not None and self._heard(request, output):
                    over.append(request)
            self.end(over)
        finally:
            told, self._told = self._told, {}
            for job, tokens in told.items():
                if not job.cancelled:
                    job.told(tokens)

    def _heard(self, request: Request, output: Any) -> bool:
        """Take in what vLLM says of a request; whether we end it."""
        if request.cached < 0 and output.num_cached_tokens is not None:
            request.cached = output.num_cached_tokens
        for ids in (output.prompt_logprobs or ())[1:]:
            request.scored.append(next(iter(ids.values())).logprob)
        (one,) = output.outputs
        ended = False
        for token, known in zip(one.token_ids, one.logprobs or (), strict=True):
            request.said += 1
            ranked = sorted(known.items(), key=lambda item: -item[1].logprob)
            top = tuple((int(i), p.logprob) for i, p in ranked)
            ended = request.hear(int(token), known[token].logprob, top) or ended
        if output.finished:
            del self._requests[request.name]
            self._finish(request)
            return False
        return ended

    @staticmethod
    def _finish(request: Request) -> None:
        choosing.leave(request.wish)
        if not request.said:
            return
        cached, length = max(request.cached, 0), request.length
        last = length + request.said - 1  # the last token of an answer does not go through the layers
        pairs = (last * (last + 1) - cached * (cached + 1)) // 2
        request.work(Work(tokens=last - cached, pairs=pairs, outputs=request.said), last)


def _end(engine: Any, close: Callable[[], None]) -> None:
    try:
        engine.engine_core.shutdown()
    finally:
        close()


@dataclass(eq=False)
class _Place:
    """A row of a job, and its request."""

    row: Row
    job: Job
    request: Request | None = None


class VllmBatch:
    """The requests of one adapted model; as `Batch` of the torch backend.

    Args:
        weights: where they are computed.
        asked: makes vLLM's input of a prompt.
        front: soft tokens in each prompt.
        end_ids: tokens that end an answer.
        adapter: LoRA adapter of every request, or None.
        work: told what was computed.
    """

    def __init__(
        self, weights: Weights, asked: Asked, front: int, end_ids: Sequence[int], adapter: Any,
        work: Callable[[Work, int], None],
    ) -> None:  # fmt: skip
        self.weights, self.adapter = weights, adapter
        self._asked, self._front, self._end_ids, self._work = asked, front, tuple(end_ids), work
        self._ends = frozenset(end_ids)
        self._places: list[_Place] = []
        self.steps = self.decoded = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._places)

    @property
    def rows(self) -> list[_Place]:
        """Answers that have tokens already."""
        return [place for place in self._places if place.row.tokens]

    @property
    def waiting(self) -> list[_Place]:
        """Answers that have none yet."""
        return [place for place in self._places if not place.row.tokens]

    def join(self, job: Job) -> None:
        """Let a request's rows in; vLLM decides when each is read."""
        sampling = job.sampling
        alike = replace(sampling, max_tokens=1, stop=(), n=1, seed=0) if sampling.temperature else None
        for number, item in enumerate(items_of(job.prompts, job.room, sampling)):
            prompt, length = self._asked(item.tokens), len(item.tokens) + self._front
            for row in item.samples:
                wish = Wish(alike, row.key)
                if job.first is not None:
                    wish.first = _correction(job, number)
                place = _Place(row, job)
                place.request = self.weights.add(
                    prompt, length, item.room, wish, self._end_ids, self._hearing(place), self._work, top=job.top,
                    adapter=self.adapter,
                )  # fmt: skip
                self._places.append(place)

    def step(self) -> None:
        """Drop who has gone, and give every row its next token."""
        self.drop()
        if self._places:
            self.weights.step()
            self.steps += 1

    def drop(self) -> None:
        """Rows of cancelled jobs leave."""
        gone = [place for place in self._places if place.job.cancelled]
        if gone:
            self.weights.end(place.request for place in gone if place.request is not None)
            self._places = [place for place in self._places if not place.job.cancelled]

    def fail(self, error: Exception) -> None:
        """Tell all requests that something went wrong, and forget them."""
        places, self._places = self._places, []
        if not self.weights.closed:
            self.weights.end(place.request for place in places if place.request is not None)
        for job in dict.fromkeys(place.job for place in places):
            if not job.cancelled:
                job.told(error)

    def rest(self) -> None:
        """Nothing is given back: vLLM keeps its cache."""

    def _hearing(self, place: _Place) -> Callable[[int, float, tuple[tuple[int, float], ...]], bool]:
        row, job = place.row, place.job

        def hear(token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> bool:
            if row.finish or job.cancelled:
                return True
            row.take(token, logprob, self._ends, job.stopped if job.sampling.stop else None)
            self.decoded += 1
            self.weights.tell(job, Token(row.index, token, logprob, top[: job.top], row.finish))
            if row.finish:
                self._places.remove(place)
            return bool(row.finish)

        return hear


def _correction(job: Job, number: int) -> Callable[[Any], Any]:
    def first(logits: Any) -> Any:
        if job.cancelled:
            return logits
        assert job.first is not None
        try:
            return job.first(logits, [number])
        except Exception as error:  # of this request alone
            job.cancelled = True
            job.told(error)
            return logits

    return first

"""One thread that decodes for everybody: the batches of several models, step by step, by turns.

`BatchedEngine` is an `Engine` whose answers are decoded in a running batch together with other requests'. Methods call
it as they call any engine, from a thread of their own: whatever they compute themselves (choosing shots, scoring,
voting) they compute in their turn, and while they wait for tokens the turn is others'. So at any moment one thread
computes, and methods need not know that they are not alone.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from kamerton.inference.continuous import Cancelled, Job, RunningBatch, Token, Told, grown
from kamerton.inference.engine import Engine, Progress
from kamerton.inference.generate import FirstToken, Row, items_of
from kamerton.inference.sampling import Sampling
from kamerton.inference.score import Tree
from kamerton.inference.turn import Turn

T = TypeVar("T")
REST = 0.5
"""Seconds without work after which caches are given back; the next request would only make them anew."""


class Ticket:
    """Stands for one request, whatever it sets going; cancelled, all of that ends."""

    def __init__(self) -> None:
        self.cancelled = False
        self._jobs: list[tuple[Job, Told]] = []
        self._mutex = threading.Lock()

    def add(self, job: Job) -> None:
        """Another job of the request.

        Raises:
            Cancelled: the request is cancelled already.
        """
        with self._mutex:
            if self.cancelled:
                raise Cancelled
            self._jobs.append((job, job.told))

    def cancel(self) -> None:
        """End the request's jobs; who waits for them is told `Cancelled`."""
        with self._mutex:
            self.cancelled = True
            jobs, self._jobs = self._jobs, []
        for job, told in jobs:
            if not job.cancelled:
                job.cancelled = True
                told(Cancelled())


class Runner:
    """Steps batches by turns in a thread of its own, which `start` begins and `close` ends."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.batches: list[RunningBatch] = []
        self._inbox: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._local = threading.local()
        self._thread = threading.Thread(target=self._run, name="kamerton-decode", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; who still waits is told `Cancelled`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Let the decoding thread do something short before its next step."""
        future: Future[T] = Future()
        with self._wake:
            if self._closing:
                future.set_exception(Cancelled())
                return future
            self._inbox.append((work, future))
            self._wake.notify()
        return future

    @contextmanager
    def under(self, ticket: Ticket) -> Iterator[None]:
        """All that this thread asks of engines meanwhile belongs to the ticket."""
        self._local.ticket = ticket
        try:
            yield
        finally:
            self._local.ticket = None

    @property
    def ticket(self) -> Ticket | None:
        """The ticket of the calling thread."""
        return getattr(self._local, "ticket", None)

    def _run(self) -> None:
        awake = woken = True
        while True:
            with self._wake:
                if self._closing:
                    break
                inbox, self._inbox = self._inbox, []
            with self.turn:
                for work, future in inbox:
                    self._do(work, future)
            busy = [batch for batch in self.batches if batch.busy]
            for batch in busy:
                with self.turn:
                    try:
                        batch.step()
                    except Exception as error:  # whatever it is, it is the requests' and the thread goes on
                        batch.fail(error)
            if not busy:
                with self._wake:
                    wanted = lambda: bool(self._inbox) or self._closing  # noqa: E731
                    woken = self._wake.wait_for(wanted, REST if awake else None)
                if not woken:
                    with self.turn:
                        for batch in self.batches:
                            batch.rest()
                    _trim()
            awake = bool(busy) or woken
        for _, future in self._inbox:
            future.set_exception(Cancelled())
        for batch in self.batches:
            batch.fail(Cancelled())

    @staticmethod
    def _do(work: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


def _trim() -> None:
    """Give freed memory back to the system, where the C library would keep it for later."""
    with suppress(OSError, AttributeError, TypeError):  # glibc has it, others do not
        ctypes.CDLL(None).malloc_trim(0)


class BatchedEngine(Engine):
    """An engine whose answers are decoded in a batch that other requests are in too.

    Args:
        engine: the engine that it stands in for.
        runner: decodes.
        max_rows: rows at once.
        max_tokens: bound on rows × columns of the batch's cache.
    """

    def __init__(self, engine: Engine, runner: Runner, *, max_rows: int = 64, max_tokens: int = 65536) -> None:
        super().__init__(engine.model, engine.renderer, max_batch_tokens=engine.max_batch_tokens)
        self.runner, self._inner = runner, engine
        self.usage, self.notes = engine.usage, engine.notes
        self.batch = engine.running_batch(max_tokens, max_rows)
        if self.batch is not None:
            runner.batches.append(self.batch)

    def ask(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, told: Told, *, first: FirstToken | None = None,
        top: int = 0, ticket: Ticket | None = None,
    ) -> Job:  # fmt: skip
        """Put prompts into the batch. Whoever calls it outside a turn calls it through `Runner.call`.

        Raises:
            KamertonError: a prompt fills the model's positions.
            Cancelled: the ticket is cancelled.
        """
        assert self.batch is not None
        job = Job(prompts, self._rooms(prompts, sampling), sampling, told, self._stopping(sampling), first, top)
        if ticket is not None:
            ticket.add(job)
        self.batch.join(job)
        return job

    def _decode(
        self, prompts: list[list[int]], sampling: Sampling, samples: int | None = None, first: FirstToken | None = None
    ) -> Iterator[list[Row]]:
        if not prompts:
            return
        if self.batch is None:
            yield from super()._decode(prompts, sampling, samples, first)
            return
        if samples is not None:
            sampling = replace(sampling, n=samples)
        heard: queue.SimpleQueue[list[Token] | Exception] = queue.SimpleQueue()
        ticket = self.runner.ticket
        if self.runner.turn.mine:
            job = self.ask(prompts, sampling, heard.put, first=first, ticket=ticket)
            self.runner.call(lambda: None)  # wakes it
        else:
            job = self.runner.call(lambda: self.ask(prompts, sampling, heard.put, first=first, ticket=ticket)).result()
        rows = [row for item in items_of(prompts, job.room, sampling) for row in item.samples]
        left = len(rows)
        try:
            while left:
                with self.runner.turn.given_up():
                    tokens = heard.get()
                if isinstance(tokens, Exception):
                    raise tokens
                left -= sum(bool(token.finish) for token in tokens)
                self.usage.generated_tokens += len(tokens)
                yield from grown(rows, tokens)
        finally:
            job.cancelled = True

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self.runner.turn, super()._working():
            yield

    # what is not decoded is computed by the engine that this one stands in for, in its turn

    def _edges(
        self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], progress: Progress | None
    ) -> list[Tensor]:
        with self.runner.turn:
            return self._inner._edges(prompts, trees, progress)

    def _best(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], progress: Progress | None) -> list[int]:
        with self.runner.turn:
            return self._inner._best(prompts, trees, progress)

    def _next(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        with self.runner.turn:
            return self._inner._next(prompts)

    def _room(self, number: int, prompt: Sequence[int], need: int = 1) -> int:
        return self._inner._room(number, prompt, need)

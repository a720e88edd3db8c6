"""What the server has in its hands: the models, the thread that decodes, places for requests, and the numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from kamerton.inference.runner import BatchedEngine, Runner
from kamerton.methods.method import Adapted, Wrapped, decode_through, is_plain
from kamerton.serving.errors import ApiError
from kamerton.serving.measures import Measures
from kamerton.serving.settings import Settings

THREADS = 8
"""Threads for methods that take several passes; each waits most of the time for tokens."""


@dataclass(frozen=True)
class Served:
    """A model under its name.

    Attributes:
        name: what requests call it.
        adapted: the model.
        engine: decodes its answers together with those of other requests.
        plain: an answer is one prompt and what is decoded behind it, so that it can be streamed token by token; else
            the method's own `generate` makes it.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    adapted: Adapted
    engine: BatchedEngine
    plain: bool
    created: int

    @property
    def conversations_only(self) -> bool:
        """Whether a text without a conversation cannot be given to it."""
        return isinstance(self.adapted, Wrapped) or self.engine.batch is None or not self.plain


class Hub:
    """Models and places.

    Args:
        models: what is served, by name.
        settings: limits.
    """

    def __init__(self, models: Mapping[str, Adapted], settings: Settings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.runner = Runner()
        self.models: dict[str, Served] = {}
        for name, adapted in models.items():
            engine = BatchedEngine(
                adapted.engine, self.runner, max_rows=self.limits.rows, max_tokens=self.limits.tokens
            )
            decode_through(adapted, engine)
            plain = is_plain(adapted) and engine.batch is not None
            self.models[name] = Served(name, adapted, engine, plain, int(time.time()))
        self.threads = ThreadPoolExecutor(THREADS, "kamerton-method")
        self.measures = Measures(self)
        self.running = 0
        self.stopping = asyncio.Event()
        self.ended = asyncio.Event()

    def start(self) -> None:
        self.runner.start()

    async def stop(self) -> None:
        """Let running answers end within the time of grace, then end them."""
        self.stopping.set()
        until = time.monotonic() + self.limits.grace
        while self.running and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self.ended.set()

    def close(self) -> None:
        """End the decoding thread."""
        self.runner.close()
        self.threads.shutdown(wait=True, cancel_futures=True)

    def model(self, name: str) -> Served:
        """A model by name.

        Raises:
            ApiError: 404, there is none.
        """
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"no model {name!r}; there is: {known}", param="model", code="model_not_found")
        return self.models[name]

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request.

        Raises:
            ApiError: 429, all are taken; 503, the server is about to stop.
        """
        self.take()
        try:
            yield
        finally:
            self.give_back()

    def take(self) -> None:
        """A place that `give_back` frees; raises as `place`."""
        if self.stopping.is_set():
            raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
        if self.running >= self.limits.requests:
            raise ApiError(
                429, f"{self.limits.requests} requests are running, more are not taken; try again soon",
                code="too_many_requests", headers={"Retry-After": "1"},
            )  # fmt: skip
        self.running += 1

    def give_back(self) -> None:
        self.running -= 1

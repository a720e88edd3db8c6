"""A server in a thread of the test's own process, so that a test can look inside while clients talk to it.

A test module that uses the fixtures says `pytest_plugins = ("served",)`.

PYTEST_DONT_REWRITE: the module is imported before it is registered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from kamerton.base import Base
from kamerton.feedback.store import FeedbackStore
from kamerton.inference import Engine, Sampling
from kamerton.methods.method import Adapted
from kamerton.serving.app import make_app, make_server
from kamerton.serving.hub import Hub
from kamerton.serving.runner import Server
from kamerton.serving.server import listen
from kamerton.serving.settings import Limits, Settings
from kamerton.tasks.example import conversation
from tiny import fit


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    hub: Hub
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """As after Ctrl-C."""
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def running(
    models: Mapping[str, Adapted], settings: Settings | None = None, feedback: FeedbackStore | None = None
) -> Iterator[Running]:
    """Serve models on loopback for as long as the block lasts."""
    app = make_app(models, settings or Settings(Limits(grace=2)), feedback)
    sock, server = listen("127.0.0.1", 0), make_server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    made = Running(f"http://127.0.0.1:{sock.getsockname()[1]}", app.state.hub, server, thread)
    try:
        yield made
    finally:
        if thread.is_alive():
            made.stop()
        sock.close()


def wait_for(what: Callable[[], object], seconds: float = 20) -> None:
    """Until something is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def models(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapted]:
    made = tmp_path_factory.mktemp("fits")
    return {
        "small": fit(small_base, "zero-shot", made / "z"),
        "lora": fit(small_base, "lora", made / "l", rank=2, learning_rate=0.05),
        "soft": fit(small_base, "prompt-tuning", made / "p", tokens=4, learning_rate=0.3),
        "few": fit(small_base, "few-shot", made / "f", shots=2),
        "vote": fit(small_base, "self-consistency", made / "v", samples=3, temperature=0.9, over="zero-shot"),
        "chain": fit(small_base, "chain-of-thought", made / "c", max_tokens=12),
    }


@pytest.fixture(scope="module")
def expected(models: dict[str, Adapted]) -> Callable[..., list[Any]]:
    """What `Adapted.generate` gives, computed before the server has the models."""
    known: dict[Any, list[Any]] = {}
    for name, n, temperature in ASKED:
        sampling = Sampling(max_tokens=14, temperature=temperature, seed=11, n=n)
        known[name, n, temperature] = models[name].generate([conversation(TURNS)], sampling)
    return lambda *key: known[key]


TURNS: list[tuple[Any, str]] = [("system", "Which colour is in the text?"), ("user", "the green river 7")]
MESSAGES: list[Any] = [{"role": role, "content": text} for role, text in TURNS]
GOOD = {"model": "small", "messages": MESSAGES, "max_tokens": 3}
ASKED = [
    (name, n, t) for name in ("small", "lora", "soft", "few", "vote", "chain") for n, t in ((1, 0.0), (2, 0.8))
]  # fmt: skip


@pytest.fixture(scope="module")
def server(models: dict[str, Adapted], expected: object) -> Iterator[Running]:  # noqa: ARG001 (before the server)
    with running(models, Settings(Limits(grace=2, requests=16, answer=64, n=4, messages=5, prompts=3))) as made:
        yield made


@pytest.fixture(scope="module")
def long(small_base: Base) -> dict[str, Any]:
    """A request whose answer is known to be long."""
    engine = Engine(small_base.model, small_base.renderer)
    for seed in range(200):
        sampling = Sampling(max_tokens=300, temperature=1.0, seed=seed)
        if len(engine.generate([conversation(TURNS)], sampling)[0].tokens) == 300:
            return {"model": "small", "messages": MESSAGES, "max_tokens": 300, "temperature": 1.0, "seed": seed}
    raise AssertionError("no long answer")


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)

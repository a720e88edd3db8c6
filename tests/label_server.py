"""A labelling server in a process of its own, which tests can kill; and a headless Chromium.

PYTEST_DONT_REWRITE: the module asserts nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["kamerton.serving.label_app", "kamerton.serving.runner"])


def _serve(path: Path, kind: Any, port: int, key: str | None) -> None:
    from kamerton.feedback.store import FeedbackStore
    from kamerton.serving.guard import Guard
    from kamerton.serving.label_app import LARGEST, label_app
    from kamerton.serving.runner import Server, serve
    from kamerton.serving.server import listen

    store = FeedbackStore(path)
    app = Guard(label_app(store, kind), key=key, largest=LARGEST, open_paths=("/healthz",))
    try:
        serve(Server(app), listen("127.0.0.1", port))
    finally:
        store.close()


class LabelServer:
    """A server that can be stopped, killed and started again on the same port."""

    def __init__(self, path: Path, kind: str = "comparison", key: str | None = None) -> None:
        self.path, self.kind, self.key = path, kind, key
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> LabelServer:
        self.process = _CONTEXT.Process(target=_serve, args=(self.path, self.kind, self.port, self.key))
        self.process.start()
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if time.monotonic() > end or not self.process.is_alive():
                    raise
                time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.is_alive():
            os.kill(self.process.pid, number)
        if self.process is not None:
            self.process.join(20)


@contextmanager
def serving(path: Path, kind: str = "comparison", key: str | None = None) -> Iterator[LabelServer]:
    server = LabelServer(path, kind, key).start()
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        # a sandbox of its own is not to be had in a container
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose errors fail the test, unless the test takes them out of `page.problems`."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    made = context.new_page()
    made.problems = []
    made.on("pageerror", lambda error: made.problems.append(str(error)))
    made.on("console", lambda said: said.type == "error" and made.problems.append(said.text))
    made.set_default_timeout(15_000)
    yield made
    problems = list(made.problems)
    context.close()
    if problems:
        pytest.fail(f"the page had errors: {problems}")

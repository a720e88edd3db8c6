"""A server in a thread of the test's own process, so that a test can look inside while clients talk to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from kamerton.methods.method import Adapted
from kamerton.serving.app import make_app
from kamerton.serving.hub import Hub
from kamerton.serving.server import Server, bound, make_server
from kamerton.serving.settings import Limits, Settings


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
def running(models: Mapping[str, Adapted], settings: Settings | None = None) -> Iterator[Running]:
    """Serve models on loopback for as long as the block lasts."""
    app = make_app(models, settings or Settings(Limits(grace=2)))
    sock, server = bound("127.0.0.1", 0), make_server(app)
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

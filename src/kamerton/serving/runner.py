"""Run an application until somebody stops it, and then let its requests end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn

GRACE = 5
"""Seconds that requests are given to end."""


class Server(uvicorn.Server):
    """Uvicorn's server, for which being asked to stop is no error. A second Ctrl-C does not wait.

    Args:
        app: what is served.
        stopping: awaited beside the requests that still run once it is asked to stop.
        grace: seconds that `stopping` may take; the requests get `GRACE` more.
    """

    def __init__(self, app: Any, stopping: Callable[[], Awaitable[None]] | None = None, grace: float = 0.0) -> None:
        # a `Server` header tells nothing useful; nothing in front of us is trusted to say who asks
        super().__init__(uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
            timeout_keep_alive=30, timeout_graceful_shutdown=int(grace) + GRACE, h11_max_incomplete_event_size=65536,
        ))  # fmt: skip
        self._stopping = stopping
        self._ending: asyncio.Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # uvicorn's own would raise the signal again at the end, and the process die of what was a wish to stop
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._stopping is not None:
            self._ending = asyncio.ensure_future(self._stopping())
        await super().shutdown(sockets)


def serve(server: Server, sock: socket.socket, *, ready: Callable[[], Any] = lambda: None) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM, and close it.

    Args:
        ready: called once requests are answered.
    """

    async def run() -> None:
        async def tell() -> None:
            while not server.started:
                await asyncio.sleep(0.02)
            ready()

        told = asyncio.ensure_future(tell())
        await server.serve(sockets=[sock])
        told.cancel()

    try:
        asyncio.run(run())
    finally:
        sock.close()

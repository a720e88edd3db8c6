"""Run the application until somebody stops it, and then let its streams end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from kamerton.errors import KamertonError
from kamerton.serving.hub import Hub
from kamerton.serving.server import open_socket


class Server(uvicorn.Server):
    """Uvicorn's server, that tells the hub when it is asked to stop. A second Ctrl-C does not wait."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self.hub = hub
        self._ending: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # uvicorn's own would raise the signal again at the end, and the process die of what was a wish to stop
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending = asyncio.get_running_loop().create_task(self.hub.stop())
        await super().shutdown(sockets)


def make_server(app: FastAPI) -> Server:
    """A server for what `make_app` gives."""
    hub: Hub = app.state.hub
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=int(hub.limits.grace) + 5, h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    return Server(config, hub)


def serve(app: FastAPI, sock: socket.socket, *, ready: Callable[[], Any] = lambda: None) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM.

    Args:
        app: what `make_app` gives.
        sock: see `bound`.
        ready: called once requests are answered.
    """
    server = make_server(app)

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
        server.hub.close()  # a second Ctrl-C leaves the application's own end out


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes any that is free.

    Raises:
        KamertonError: no such address, or it is taken.
    """
    try:
        return open_socket(host, port)
    except OSError as error:
        raise KamertonError(
            f"cannot listen there ({error.strerror or error})", where=f"{host}:{port}",
            mend="take another --port (0: any that is free) or --host",
        ) from None  # fmt: skip

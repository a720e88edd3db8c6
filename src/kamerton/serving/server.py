"""One app on one address until it is told to stop: requests in flight end, and then so does it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from kamerton.errors import KamertonError, MissingExtra


def check_extra(*more: str) -> None:
    """Refuse in one line where the extra is missing, or one of `more` of its packages.

    Raises:
        MissingExtra: so.
    """
    for package in ("fastapi", "uvicorn", *more):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package, "serve") from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes a free one.

    Raises:
        KamertonError: the address is taken, or is not this machine's.
    """
    try:
        return open_socket(host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KamertonError(f"cannot listen: {reason}", where=f"{host}:{port}", mend="choose another --port") from None


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket; what the system says against it is raised as it is."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    return made


def address(bound: socket.socket, host: str) -> str:
    """Where a browser finds it."""
    port = bound.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve_app(app: Any, bound: socket.socket, *, stopping: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal; `stopping` is called when the last request has ended."""
    import uvicorn

    # `Server` and `Date` headers tell nothing useful; nothing in front of us is trusted to say who asks
    config = uvicorn.Config(app, log_level="warning", server_header=False, proxy_headers=False, timeout_keep_alive=10)
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        stopping()
        bound.close()

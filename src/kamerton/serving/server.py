"""What a server needs before it runs (`runner.py`): its packages and an address."""

from __future__ import annotations

import socket

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
    """A bound socket; port 0 takes any that is free.

    Raises:
        KamertonError: the address is taken, or is not this machine's.
    """
    try:
        family, kind, proto, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        return made
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        mend = "take another --port (0: any that is free) or --host"
        raise KamertonError(f"cannot listen: {reason}", where=f"{host}:{port}", mend=mend) from None


def address(bound: socket.socket, host: str) -> str:
    """Where a browser finds it."""
    port = bound.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

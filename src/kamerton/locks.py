"""Locks on folders: one writer at a time, and whoever comes second is told who holds it.

The lock is the operating system's (flock), so it ends with its process, however that ends: what a killed process left
blocks nobody. The file says which process holds it, for people; nothing is decided by that.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from os import getpid
from pathlib import Path

from filelock import FileLock, Timeout

from kamerton.errors import KamertonError

LOCK = ".lock"
"""Its name in every folder."""


def take(
    folder: Path, what: str, *, wait: float = 0.0, mend: str = "name another output",
    kind: type[KamertonError] = KamertonError,
) -> FileLock:  # fmt: skip
    """Take the lock of a folder that is there; `release` ends it.

    Args:
        what: what the holder does, for the message: "another run works in this folder".
        wait: seconds to wait for it.
        mend: what else to do than to wait for the holder, or to stop it.
        kind: class of the error.

    Raises:
        KamertonError: somebody else holds it; names its process.
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        holder = _holder(path)
        told = f" ({holder})" if holder else ""
        raise kind(f"{what}{told}", where=folder, mend=f"wait for it, stop it, or {mend}") from None
    with suppress(OSError):  # nobody stops for what is only for people
        path.write_text(f"{getpid()} {platform.node()}\n", encoding="utf-8")
    return lock


def _holder(path: Path) -> str:
    try:
        pid, _, host = path.read_text(encoding="utf-8").strip().partition(" ")
    except (OSError, UnicodeDecodeError):
        return ""
    if not pid.isdecimal():
        return ""
    return f"process {pid}" if host == platform.node() else f"process {pid} on {host}"

"""How far a stage is, across processes: workers add to one number, the parent reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_counter: Any = None
_listener: Callable[[int], None] | None = None


def use(counter: Any) -> None:
    """In a worker: add to this shared value."""
    global _counter
    _counter = counter


def listen(listener: Callable[[int], None] | None) -> None:
    """Where the work is done in this process: tell this function what is added."""
    global _listener
    _listener = listener


def advance(amount: int) -> None:
    """So much more is done (bytes of input, or documents; the stage knows which)."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += amount
    elif _listener is not None:
        _listener(amount)

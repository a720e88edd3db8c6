"""Whose turn it is to compute: one thread at a time, in the order in which they asked.

An ordinary lock may be taken again and again by the thread that has just let go of it. The thread that decodes does
exactly that, step after step, and everybody else would wait for ever; here whoever asks gets the next turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """A lock that is handed over in the order of asking. Its holder may take it again (`with turn:` inside another)."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[tuple[int, threading.Event]] = deque()
        self._owner: int | None = None
        self._depth = 0

    @property
    def mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> Turn:
        self._take(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._pass_on()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Let others compute while the caller waits for something; without effect where it is not the caller's turn."""
        if not self.mine:
            yield
            return
        depth, self._depth = self._depth, 0
        self._pass_on()
        try:
            yield
        finally:
            self._take(depth)

    def _take(self, depth: int) -> None:
        me = threading.get_ident()
        with self._mutex:
            if self._owner == me:
                self._depth += depth
                return
            if self._owner is None:
                self._owner, self._depth = me, depth
                return
            gate = threading.Event()
            self._waiting.append((me, gate))
        gate.wait()
        self._depth = depth

    def _pass_on(self) -> None:
        with self._mutex:
            self._owner = None
            if self._waiting:
                self._owner, gate = self._waiting.popleft()
                gate.set()

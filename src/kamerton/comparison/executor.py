"""Run cells on worker processes of this machine.

Each worker is a process of its own that runs cell after cell. A worker that dies takes one cell with it: the cell is
marked failed and another worker is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kamerton.comparison.cell import failed_record
from kamerton.comparison.progress import drop_progress
from kamerton.comparison.store import Cell, Store
from kamerton.errors import ResourceError

OnEvent = Callable[[Cell, dict[str, Any]], None]


class _Worker:
    """One process and the thread that reads its events into the common queue."""

    def __init__(
        self, number: int, store: Store, threads: int, events: queue.Queue[tuple[int, dict[str, Any]]]
    ) -> None:
        self.number = number
        self.cell: Cell | None = None
        self._log = (store.folder / f"worker-{number}.log").open("ab")
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kamerton.comparison.worker", str(store.folder), str(threads), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8",
            env=environment, start_new_session=True,  # a Ctrl-C goes to the parent alone, which ends its workers
        )  # fmt: skip
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def _read(self, events: queue.Queue[tuple[int, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                events.put((self.number, json.loads(line)))
        events.put((self.number, {"event": "ended", "code": self.process.wait()}))

    def give(self, cell: Cell, share: float | None) -> None:
        assert self.process.stdin is not None
        self.cell = cell
        with contextlib.suppress(BrokenPipeError):  # a dead worker is noticed by its `ended` event
            self.process.stdin.write(json.dumps({**asdict(cell), "share": share}) + "\n")
            self.process.stdin.flush()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(timeout=5 if self.cell is None else 0)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._log.close()


class Pool:
    """Worker processes that stay for several rounds of jobs; a context manager.

    Args:
        workers: processes at a time; `threads`: of each.
        on_event: told about every event of every cell (progress, scouted, done, failed).
    """

    def __init__(self, store: Store, *, workers: int, threads: int, on_event: OnEvent) -> None:
        self.store, self.workers, self.threads, self.on_event = store, workers, threads, on_event
        self._events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._pool: dict[int, _Worker] = {}
        self._number = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool.values():
            worker.end()

    def run(self, jobs: Sequence[tuple[Cell, float | None]]) -> None:
        """Do all jobs; returns when each is done or failed.

        Args:
            jobs: each a cell to finish, or, with a share of its training, to train so far and ask validation questions.
        """
        waiting = list(jobs)
        for worker in self._pool.values():
            if waiting:
                worker.give(*waiting.pop(0))
        while waiting or any(w.cell is not None for w in self._pool.values()):
            while waiting and len(self._pool) < self.workers:
                self._pool[self._number] = _Worker(self._number, self.store, self.threads, self._events)
                self._pool[self._number].give(*waiting.pop(0))
                self._number += 1
            self._handle(*self._events.get(), waiting)

    def _handle(self, at: int, event: dict[str, Any], waiting: list[tuple[Cell, float | None]]) -> None:
        worker = self._pool.get(at)
        if worker is None:
            return
        cell = worker.cell
        if event["event"] == "ended":
            del self._pool[at]
            worker.end()
            if cell is not None:
                error = _death(event["code"], self.store.folder / f"worker-{at}.log")
                self.store.write_cell(cell, failed_record(cell, error), None, [])
                drop_progress(self.store.cell_folder(cell.label, cell.seed))
                self.on_event(cell, {"event": "failed", "error": error})
            return
        if cell is None:
            return
        if event["event"] == "refused":
            worker.cell = None
            raise ResourceError(event["error"], mend="make room and run the same command again: it goes on")
        if event["event"] in ("done", "scouted", "failed"):
            worker.cell = None
            self.on_event(cell, event)
            if waiting:
                worker.give(*waiting.pop(0))
        else:
            self.on_event(cell, event)


def _death(code: int, log: Path) -> str:
    reason = f"signal {-code}" if code < 0 else f"status {code}"
    if code == -9:
        reason += ", perhaps out of memory"
    return f"its process ended with {reason} (see {log})"

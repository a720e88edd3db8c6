"""Who runs cells: the executors, and two of them: worker processes of this machine, and this process beside others.

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
from types import TracebackType
from typing import Any, Protocol

from kamerton.comparison.cell import failed_record
from kamerton.comparison.progress import drop_progress
from kamerton.comparison.store import Cell, Store
from kamerton.comparison.worker import Cells
from kamerton.errors import ResourceError

OnEvent = Callable[[Cell, dict[str, Any]], None]
Job = tuple[Cell, float | None]
"""A cell to finish, or, with a share of its training, to train so far and ask validation questions."""


class Executor(Protocol):
    """Runs cells; a context manager that takes what it needs when it is entered.

    Attributes:
        workers: cells at a time at most; None: as many as there is room for.
        threads: that each computes with.
    """

    workers: int | None
    threads: int

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs; returns when each is done or failed."""


def give_up(store: Store, cell: Cell, error: str, on_event: OnEvent) -> None:
    """Mark a cell failed whose worker is gone."""
    store.write_cell(cell, failed_record(cell, error), None, [])
    drop_progress(store.cell_folder(cell.label, cell.seed))
    on_event(cell, {"event": "failed", "error": error})


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
        self.store, self.threads, self.on_event = store, threads, on_event
        self.workers: int | None = workers
        self._events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._pool: dict[int, _Worker] = {}
        self._number = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool.values():
            worker.end()

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs; returns when each is done or failed."""
        waiting = list(jobs)
        for worker in self._pool.values():
            if waiting:
                worker.give(*waiting.pop(0))
        while waiting or any(w.cell is not None for w in self._pool.values()):
            while waiting and len(self._pool) < (self.workers or 1):
                self._pool[self._number] = _Worker(self._number, self.store, self.threads, self._events)
                self._pool[self._number].give(*waiting.pop(0))
                self._number += 1
            self._handle(*self._events.get(), waiting)

    def _handle(self, at: int, event: dict[str, Any], waiting: list[Job]) -> None:
        worker = self._pool.get(at)
        if worker is None:
            return
        cell = worker.cell
        if event["event"] == "ended":
            del self._pool[at]
            worker.end()
            if cell is not None:
                give_up(self.store, cell, _death(event["code"], self.store.folder / f"worker-{at}.log"), self.on_event)
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


class Together:
    """Runs cells one after another in this process, as the other processes of the launch do."""

    workers: int | None = 1

    def __init__(self, store: Store, *, threads: int, on_event: OnEvent) -> None:
        self.store, self.threads, self.on_event = store, threads, on_event
        self._cells: Cells | None = None

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        self._cells = None

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs; returns when each is done or failed."""
        if self._cells is None and jobs:
            self._cells = Cells.load(self.store.folder, self.threads)
        for cell, share in jobs:
            assert self._cells is not None

            def told(stage: str, share: float, text: str, cell: Cell = cell) -> None:
                self.on_event(cell, {"event": "progress", "stage": stage, "share": share, "text": text})

            self.on_event(cell, self._cells.run(asdict(cell), share, told))


def _death(code: int, log: Path) -> str:
    reason = f"signal {-code}" if code < 0 else f"status {code}"
    if code == -9:
        reason += ", perhaps out of memory"
    return f"its process ended with {reason} (see {log})"

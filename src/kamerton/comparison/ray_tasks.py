"""Run cells as tasks on a Ray cluster.

A cell asks for the cores that it computes with, graphics processors and memory. A process of a node loads the base once
and keeps it for the next cell. What a cell writes is in the comparison's folder, which all nodes see: how far it is is
read there, and a cell whose worker or node was lost is given out again and goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kamerton.cluster import Asked, Cluster, Tell
from kamerton.comparison.executor import Job, OnEvent, give_up
from kamerton.comparison.progress import PROGRESS, RUN, pause_progress, read
from kamerton.comparison.store import Store
from kamerton.comparison.worker import Cells
from kamerton.errors import KamertonError

CPUS = 2
"""Cores of a cell where nothing is said: as many as on one machine, and not chosen by the cluster, since sums that are
split over another number of threads differ in their last bits."""


def devices(asked: str, gpus: float | None) -> tuple[str, str | None]:
    """Where this process loads the base, and where cells do (None: on the same device).

    Args:
        asked: the recipe's device; `auto` goes by what cells ask for, since this node may have no GPU where others do.
    """
    if gpus is None:
        return asked, None
    if asked == "auto":
        asked = "cuda" if gpus else "cpu"
    import torch

    return ("cpu" if asked.startswith("cuda") and not torch.cuda.is_available() else asked), asked


class RayTasks:
    """An executor: one task a cell.

    Args:
        address: of the cluster, see `Cluster`.
        asked: of each cell.
        workers: cells at a time at most; None: as many as there is room for.
        threads: that each computes with.
        on_event: told about every event of every cell; tell: what else a person should know.
    """

    def __init__(
        self, store: Store, address: str | None, asked: Asked, *, workers: int | None, threads: int, on_event: OnEvent,
        tell: Tell,
    ) -> None:  # fmt: skip
        self.store, self.workers, self.threads = store, workers, threads
        self._on_event, self._tell, self._cluster = on_event, tell, Cluster(address, asked, tell)
        self._shown: dict[str, float] = {}

    def __enter__(self) -> RayTasks:
        self._cluster.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.__exit__()

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs; returns when each is done or failed."""
        folder = self.store.folder.resolve()
        self._run = str(read(folder / RUN).get("id", ""))
        self._cluster.each(
            partial(_cell, str(folder), self._run, self.threads), jobs, folder, at_once=self.workers,
            done=lambda job, event: self._on_event(job[0], event), lost=self._lost, tick=self._look,
        )  # fmt: skip

    def _lost(self, job: Job, why: str, again: bool) -> None:
        cell = job[0]
        if not again:
            give_up(self.store, cell, f"its worker was lost again and again ({why})", self._on_event)
            return
        pause_progress(self.store.cell_folder(cell.label, cell.seed))
        self._tell(f"  {cell.label}, seed {cell.seed}: its worker was lost, it goes on from its checkpoint ({why})")

    def _look(self, jobs: Sequence[Job]) -> None:
        """Tell how far cells are, from what they wrote since the last look."""
        for cell, _ in jobs:
            told = read(self.store.cell_folder(cell.label, cell.seed) / PROGRESS)
            new = told.get("run") == self._run and told.get("updated") != self._shown.get(cell.fingerprint)
            if new and "stage" in told:
                self._shown[cell.fingerprint] = told["updated"]
                self._on_event(cell, {"event": "progress", **{key: told[key] for key in ("stage", "share", "text")}})


_held: tuple[tuple[str, str], Cells] | None = None
"""On a node: the comparison and run that this process has the base of."""


def _cell(folder: str, run: str, threads: int, job: Job) -> dict[str, Any]:
    """On a node: do a job, and return the event that ends it."""
    global _held
    if _held is None or _held[0] != (folder, run):
        _held = None  # before another base takes its room
        os.environ |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        try:
            _held = ((folder, run), Cells.load(Path(folder), threads))
        except KamertonError as error:
            raise KamertonError(f"on {platform.node()}: {error.message}", where=error.where, mend=error.mend) from None
    cell, share = job
    return _held[1].run(asdict(cell), share, lambda *_: None)

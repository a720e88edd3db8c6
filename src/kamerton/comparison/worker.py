"""A worker process: loads the base once and runs the cells that it is given, one after another.

Started as `python -m kamerton.comparison.worker DIR THREADS PARENT`. Reads one JSON line a cell on standard input and
writes one JSON line an event on standard output: `progress`, `done`, `scouted`, `failed`. A crash here (out of memory,
a fault in a native library) ends this process and not the comparison.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from kamerton.comparison.store import Cell, Store


def main(folder: str, threads: str, parent: str) -> None:
    """Serve cells until standard input ends."""
    _end_with_parent(int(parent))
    # libraries print to standard output when they please: the protocol gets a descriptor of its own
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(int(threads))
    from kamerton.comparison.store import Cell, Store

    bench = Bench(Store(Path(folder)))
    send(events, event="ready")
    for line in sys.stdin:
        request = json.loads(line)
        share = request.pop("share", None)
        bench.run(Cell(**request), share, lambda **event: send(events, **event))


class Bench:
    """What a worker needs for any cell of a comparison: its plan, task and base, loaded once."""

    def __init__(self, store: Store) -> None:
        from kamerton.base import load_base
        from kamerton.comparison.progress import RUN, read
        from kamerton.evaluation.forgetting import Reference

        self.store, self.task = store, store.read_task()
        self.plan: dict[str, Any] = json.loads((store.folder / "plan.json").read_text())
        self.reference = Reference(**self.plan["reference"]) if self.plan["reference"] else None
        self.plan["run"] = str(read(store.folder / RUN).get("id", ""))
        self.base = load_base(**self.plan["base"], verify=False)

    def run(self, cell: Cell, share: float | None, tell: Callable[..., None]) -> None:
        """Run a cell, or with a share scout it; what comes of it is in the store and told as an event."""
        _one(self, cell, share, tell)


def _one(bench: Bench, cell: Cell, share: float | None, tell: Callable[..., None]) -> None:
    from kamerton import processes
    from kamerton.comparison.cell import failed_record, run_cell, scout_cell
    from kamerton.comparison.progress import FitProgress
    from kamerton.errors import KamertonError
    from kamerton.training import Budget

    plan, store, base, task = bench.plan, bench.store, bench.base, bench.task
    progress, last = FitProgress(store.cell_folder(cell.label, cell.seed), plan["run"], cell.fingerprint), 0.0

    def report(stage: str, share: float, text: str) -> None:
        nonlocal last
        progress.report(stage, share, text)
        now = time.monotonic()
        if share >= 1 or now - last > 0.2:
            last = now
            tell(event="progress", stage=stage, share=share, text=text)

    try:
        # a worker whose parent was killed may still be at this cell for a moment
        with store.cell_lock(cell):
            budget, sampling, most = Budget(**plan["budget"]), plan["sampling"], plan["max_batch_tokens"]
            if share is not None:
                scouted = scout_cell(store, cell, base, task, budget, share, sampling, most, report, progress.watch)
                tell(event="scouted", share=share, metrics=scouted["metrics"])
                return
            record = run_cell(
                store, cell, base, task, budget, bench.reference, sampling, most, report, progress.watch
            )  # fmt: skip
        tell(event="done", metrics=record["metrics"])
    except processes.Parted:
        raise
    except KamertonError as error:
        if not processes.failed_alike():
            raise
        store.write_cell(cell, failed_record(cell, str(error)), None, [])
        tell(event="failed", error=str(error))
    except Exception as error:
        if not processes.failed_alike():
            raise
        place = store.cell_folder(cell.label, cell.seed)
        place.mkdir(parents=True, exist_ok=True)
        (place / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        store.write_cell(cell, failed_record(cell, message), None, [])
        tell(event="failed", error=f"{message} (see {place / 'error.txt'})")
    finally:
        if store.finished(cell):
            progress.end()
        else:
            progress.pause()


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent is gone, however that ended (it may be gone already)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def send(events: TextIO, **event: Any) -> None:
    """Write one event."""
    events.write(json.dumps(event, ensure_ascii=False) + "\n")
    events.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)

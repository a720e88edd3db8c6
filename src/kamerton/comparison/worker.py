"""A worker process: loads the base once and runs the cells that it is given, one after another.

Started as `python -m kamerton.comparison.worker DIR THREADS PARENT`. Reads one JSON line a cell on standard input and
writes one JSON line an event on standard output: `progress`, `done`, `scouted`, `failed`, `refused` (the disk takes
nothing more). A crash here (out of memory, a fault in a native library) ends this process and not the comparison.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO


def main(folder: str, threads: str, parent: str) -> None:
    """Serve cells until standard input ends."""
    _end_with_parent(int(parent))
    # libraries print to standard output when they please: the protocol gets a descriptor of its own
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(int(threads))
    from kamerton.base import load_base
    from kamerton.comparison.progress import RUN, read
    from kamerton.comparison.store import Store
    from kamerton.evaluation.forgetting import Reference

    store = Store(Path(folder))
    plan = json.loads((store.folder / "plan.json").read_text())
    task = store.read_task()
    reference = Reference(**plan["reference"]) if plan["reference"] else None
    plan["run"] = str(read(store.folder / RUN).get("id", ""))
    base = load_base(**plan["base"], verify=False)
    send(events, event="ready")
    for line in sys.stdin:
        _one(json.loads(line), plan, store, base, task, reference, events)


def _one(request: dict[str, Any], plan: dict[str, Any], store: Any, base: Any, task: Any, reference: Any,
         events: TextIO) -> None:  # fmt: skip
    from kamerton.comparison.cell import failed_record, run_cell, scout_cell
    from kamerton.comparison.progress import FitProgress
    from kamerton.comparison.store import Cell
    from kamerton.errors import KamertonError
    from kamerton.files import refused_by
    from kamerton.memory import no_room, out_of_memory
    from kamerton.training import Budget

    share = request.get("share")
    cell = Cell(**{key: value for key, value in request.items() if key != "share"})
    progress, last = FitProgress(store.cell_folder(cell.label, cell.seed), plan["run"], cell.fingerprint), 0.0

    def report(stage: str, share: float, text: str) -> None:
        nonlocal last
        progress.report(stage, share, text)
        now = time.monotonic()
        if share >= 1 or now - last > 0.2:
            last = now
            send(events, event="progress", stage=stage, share=share, text=text)

    try:
        # a worker whose parent was killed may still be at this cell for a moment
        with store.cell_lock(cell):
            budget, sampling, most = Budget(**plan["budget"]), plan["sampling"], plan["max_batch_tokens"]
            if share is not None:
                scouted = scout_cell(store, cell, base, task, budget, share, sampling, most, report, progress.watch)
                send(events, event="scouted", share=share, metrics=scouted["metrics"])
                return
            record = run_cell(
                store, cell, base, task, budget, reference, sampling, most, report, progress.watch
            )  # fmt: skip
        send(events, event="done", metrics=record["metrics"])
    except KamertonError as error:
        store.write_cell(cell, failed_record(cell, str(error)), None, [])
        send(events, event="failed", error=str(error))
    except Exception as error:
        if refused_by(error) is not None:
            # no other cell would fare better: the comparison ends here, and goes on when there is room
            where = getattr(error, "filename", None) or store.folder
            send(events, event="refused", error=f"{where}: {os.strerror(refused_by(error) or 0)}")
            return
        if out_of_memory(error):
            told = str(no_room(error))
            store.write_cell(cell, failed_record(cell, told), None, [])
            send(events, event="failed", error=told)
            return
        place = store.cell_folder(cell.label, cell.seed)
        place.mkdir(parents=True, exist_ok=True)
        (place / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        store.write_cell(cell, failed_record(cell, message), None, [])
        send(events, event="failed", error=f"{message} (see {place / 'error.txt'})")
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

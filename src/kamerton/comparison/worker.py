"""A worker process: loads the base once and runs the cells that it is given, one after another.

Started as `python -m kamerton.comparison.worker DIR THREADS PARENT`. Reads one JSON line a cell on standard input and
writes one JSON line an event on standard output: `progress`, `done`, `scouted`, `failed`, `refused` (the disk takes
nothing more). A crash here (out of memory, a fault in a native library) ends this process and not the comparison.
`Cells` is what runs them, here and on a cluster.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from kamerton.base import Base
    from kamerton.comparison.store import Store
    from kamerton.evaluation.forgetting import Reference
    from kamerton.exporting.for_vllm import Pool
    from kamerton.tasks import Task

Report = Callable[[str, float, str], None]


def main(folder: str, threads: str, parent: str) -> None:
    """Serve cells until standard input ends."""
    _end_with_parent(int(parent))
    # libraries print to standard output when they please: the protocol gets a descriptor of its own
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    cells = Cells.load(Path(folder), int(threads))
    send(events, event="ready")
    last = 0.0

    def report(stage: str, share: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if share >= 1 or now - last > 0.2:
            last = now
            send(events, event="progress", stage=stage, share=share, text=text)

    for line in sys.stdin:
        request = json.loads(line)
        share = request.pop("share", None)
        send(events, **cells.run(request, share, report))


@dataclass(frozen=True)
class Cells:
    """Runs the cells of a comparison in this process, with its base, loaded once.

    Attributes:
        store: of the comparison; plan: what its `plan.json` says.
        base, task, reference: what cells are given.
        run_id: in `run.json`.
        pool: where questions are answered, None: by torch.
    """

    store: Store
    plan: dict[str, Any]
    base: Base
    task: Task
    reference: Reference | None
    run_id: str
    pool: Pool | None = None

    @classmethod
    def load(cls, folder: Path, threads: int) -> Cells:
        """Those of a folder; torch computes with so many threads from now on."""
        import torch

        torch.set_num_threads(threads)
        from kamerton.base import load_base
        from kamerton.comparison.progress import RUN, read
        from kamerton.comparison.store import Store
        from kamerton.evaluation.forgetting import Reference

        store = Store(folder)
        plan = json.loads((store.folder / "plan.json").read_text())
        measured = Reference(**plan["reference"]) if plan["reference"] else None
        run_id = str(read(folder / RUN).get("id", ""))
        base = load_base(**plan["base"], verify=False)
        pool = None
        if plan.get("backend") == "vllm":
            from kamerton.exporting.for_vllm import Pool

            pool = Pool(plan["max_batch_tokens"])
        return cls(store, plan, base, store.read_task(), measured, run_id, pool)

    def run(self, fields: dict[str, Any], share: float | None, report: Report) -> dict[str, Any]:
        """Finish a cell, given by its fields, or train it to a share and ask it validation questions.

        Returns:
            The event that ends it: `done`, `scouted`, `failed` or `refused`.
        """
        from kamerton import processes
        from kamerton.comparison.cell import failed_record, run_cell, scout_cell
        from kamerton.comparison.progress import FitProgress
        from kamerton.comparison.store import Cell
        from kamerton.errors import KamertonError
        from kamerton.files import refused_by
        from kamerton.memory import no_room, out_of_memory
        from kamerton.training import Budget

        cell, store, plan = Cell(**fields), self.store, self.plan
        progress = FitProgress(store.cell_folder(cell.label, cell.seed), self.run_id, cell.fingerprint)

        def told(stage: str, share: float, text: str) -> None:
            progress.report(stage, share, text)
            report(stage, share, text)

        try:
            # a worker that was given up may still be at this cell for a moment
            with store.cell_lock(cell):
                budget, sampling, most = Budget(**plan["budget"]), plan["sampling"], plan["max_batch_tokens"]
                if share is not None:
                    scouted = scout_cell(
                        store, cell, self.base, self.task, budget, share, sampling, most, told, progress.watch,
                        self.pool,
                    )  # fmt: skip
                    return {"event": "scouted", "share": share, "metrics": scouted["metrics"]}
                # its worker was lost after it had ended
                record = store.record(cell) if store.finished(cell) else None
                record = record or run_cell(
                    store, cell, self.base, self.task, budget, self.reference, sampling, most, told, progress.watch,
                    self.pool,
                )  # fmt: skip
            return {"event": "done", "metrics": record["metrics"]}
        except processes.Parted:
            raise
        except KamertonError as error:
            if not processes.failed_alike():
                raise
            store.write_cell(cell, failed_record(cell, str(error)), None, [])
            return {"event": "failed", "error": str(error)}
        except Exception as error:
            if not processes.failed_alike():
                raise
            if refused_by(error) is not None:
                # no other cell would fare better: the comparison ends here, and goes on when there is room
                where = getattr(error, "filename", None) or store.folder
                return {"event": "refused", "error": f"{where}: {os.strerror(refused_by(error) or 0)}"}
            if out_of_memory(error):
                no_more = str(no_room(error))
                store.write_cell(cell, failed_record(cell, no_more), None, [])
                return {"event": "failed", "error": no_more}
            place = store.cell_folder(cell.label, cell.seed)
            place.mkdir(parents=True, exist_ok=True)
            (place / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            store.write_cell(cell, failed_record(cell, message), None, [])
            return {"event": "failed", "error": f"{message} (see {place / 'error.txt'})"}
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

"""What a pretraining's folder says at this moment, in the shape of `comparison/report/live.py`: one run, one curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kamerton.comparison.progress import PROGRESS, loss_curves, run_of
from kamerton.comparison.report.live import Files, running_cell
from kamerton.comparison.report.plots import MAX_CURVE, lines_of, panels

Record = dict[str, Any]
RESULT = "pretraining.json"


class LivePretraining:
    """A pretraining's folder, running, finished or stopped in between."""

    kind = "pretraining"

    def __init__(self, folder: Path) -> None:
        self.folder, self._files = folder, Files()

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether a folder is one of a pretraining."""
        return (folder / RESULT).is_file() or (folder / PROGRESS).is_file()

    def key(self) -> tuple[Any, ...]:
        """Changes when there is another result."""
        try:
            return ((self.folder / RESULT).stat().st_mtime_ns,)
        except OSError:
            return ()

    def result(self) -> Record:
        """What is in `pretraining.json`; {} where it is not there yet."""
        return self._files.json(self.folder / RESULT)

    def state(self) -> Record:
        """As `LiveComparison.state`."""
        (run, alive), result = run_of(self.folder), self.result()
        progress = self._files.json(self.folder / PROGRESS)
        name = str(result.get("name") or self.folder.resolve().name)
        if alive and progress.get("run") == run.get("id"):
            cell = running_cell(progress)
        elif result:
            cell = {"state": "done", "metrics": result["metrics"], "tokens": result["tokens"],
                    "seconds": result["seconds"]}  # fmt: skip
        else:
            cell = {**running_cell(progress), "state": "interrupted"}
        phase = {"running": "running", "done": "finished"}.get(str(cell["state"]), "interrupted")
        return {
            "kind": self.kind, "name": name, "phase": phase, "base": None, "task": None, "sizes": None, "metric": None,
            "command": None, "budget": result.get("budget") or {}, "started": run.get("started") if alive else None,
            "said": [], "counts": {cell["state"]: 1},
            "methods": [{"label": name, "method": None, "summary": None, "stopped": None,
                         "cells": [{"seed": None, **cell}]}],
        }  # fmt: skip

    def curves(self) -> dict[str, str]:
        """The learning curve as SVG."""
        state, result = self.state(), self.result()
        running: Mapping[str, Any] = self._files.json(self.folder / PROGRESS).get("curve") or {}
        ended = state["phase"] == "finished"
        curve = loss_curves(result.get("curve") or [], MAX_CURVE) if ended else running
        return {label: str(svg) for label, svg in panels({state["name"]: lines_of([dict(curve)])}).items()}

    def record(self, label: str, seed: int) -> Record | None:  # noqa: ARG002
        """A pretraining has no cells."""
        return None

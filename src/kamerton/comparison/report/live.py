"""What a comparison's folder says at this moment, as plain values: for a page that is open while it runs.

Reads only files, each again when it has changed, and changes none. A cell is known by the settings' methods and seeds;
what it does now is in its `progress.json`, what came of it in its `cell.json`. Files that are missing or broken are
taken as not there yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kamerton.comparison.progress import PROGRESS, loss_curves, read, run_of
from kamerton.comparison.report.plots import MAX_CURVE, lines_of, panels
from kamerton.comparison.report.records import CellRecord, RaceRecord, Settings, is_record
from kamerton.comparison.store import Store
from kamerton.files import read_jsonl
from kamerton.recipe import is_label

Record = dict[str, Any]
ENDED = ("done", "failed", "stopped")
"""States of a cell that will not change by itself: finished, failed, stopped by a race."""
SHOWN = ("phase", "stage", "share", "text", "step", "steps", "loss", "tokens", "seconds", "seconds_left", "started")
"""What of a `progress.json` is shown."""


class Files:
    """Files that others write, read again when they have changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Path], tuple[tuple[int, int], Any]] = {}

    def get(self, kind: str, path: Path, how: Callable[[Path], Any], nothing: Any) -> Any:
        """What `how` makes of a file; `nothing` where it is not there or cannot be read."""
        try:
            told = path.stat()
            stamp = (told.st_mtime_ns, told.st_size)
            known = self._known.get((kind, path))
            if known is None or known[0] != stamp:
                known = self._known[kind, path] = (stamp, how(path))
            return known[1]
        except (OSError, ValueError, TypeError, AttributeError):
            self._known.pop((kind, path), None)
            return nothing

    def json(self, path: Path) -> Record:
        """A JSON object; {} where there is none."""
        return dict(self.get("json", path, read, {}))

    def curve(self, path: Path) -> Record:
        """The thinned curves of a `curve.jsonl`, as `progress.json` has them."""
        return dict(self.get("curve", path, lambda file: loss_curves(read_jsonl(file), MAX_CURVE), {}))


def running_cell(progress: Mapping[str, Any]) -> Record:
    """A cell that is being run, from its progress."""
    return {"state": "running", **{key: progress.get(key) for key in SHOWN}}


class LiveComparison:
    """A comparison's folder.

    Args:
        folder: need not be there yet.
    """

    kind = "comparison"

    def __init__(self, folder: Path) -> None:
        self.folder, self._store, self._files = folder, Store(folder), Files()

    def cells(self) -> dict[tuple[str, int], Path]:
        """The folder of every cell that the settings ask for, by label and seed; methods in the recipe's order."""
        settings = self._settings()
        labels, seeds = [str(m["label"]) for m in settings["methods"]], [int(seed) for seed in settings["seeds"]]
        return {(label, seed): self._store.cell_folder(label, seed) for label in labels for seed in seeds}

    def _settings(self) -> Record:
        """The settings; without methods and seeds where they are not what a comparison writes."""
        settings = self._files.json(self.folder / "settings.json")
        methods, seeds = settings.get("methods"), settings.get("seeds")
        good = methods is not None and seeds is not None and is_record(Settings, settings)
        good = good and all(is_label(m["label"]) for m in methods or ())  # they name the folders of cells
        return {**settings, "methods": methods, "seeds": seeds} if good else {"methods": [], "seeds": []}

    def key(self) -> tuple[Any, ...]:
        """Changes when a cell has ended or a race has stopped one: then there is another verdict."""
        found = []
        for path in [*(folder / "cell.json" for folder in self.cells().values()), self.folder / "race.json"]:
            try:
                found.append((path, path.stat().st_mtime_ns))
            except OSError:
                continue
        return tuple(found)

    def state(self) -> Record:
        """What to show, as JSON values.

        `phase` is `empty` (nothing is there yet), `running`, `finished` or `interrupted`; every cell has a `state`:
        waiting, running, done, failed, stopped (by a race) or interrupted.
        """
        settings, (run, alive) = self._settings(), run_of(self.folder)
        race = self._files.json(self.folder / "race.json")
        stopped = {s["label"]: s for s in race.get("stopped", ())} if is_record(RaceRecord, race) else {}
        found = {
            cell: self._cell(folder, run if alive else {}, stopped.get(cell[0]))
            for cell, folder in self.cells().items()
        }
        counts = Counter(cell["state"] for cell in found.values())
        if alive:
            phase = "running"
        elif not found:
            phase = "empty"
        else:
            phase = "finished" if all(cell["state"] in ENDED for cell in found.values()) else "interrupted"
        base, task = settings.get("base") or {}, settings.get("task") or {}
        return {
            "kind": self.kind, "name": str(settings.get("name") or self.folder.resolve().name), "phase": phase,
            "base": base.get("name"), "task": task.get("name"), "sizes": task.get("sizes"),
            "metric": next(iter(task.get("metrics") or ()), None), "command": settings.get("command"),
            "budget": {k: v for k, v in (settings.get("budget") or {}).items() if v is not None},
            "started": run.get("started") if alive else None, "said": run.get("said", [])[-1:] if alive else [],
            "counts": {state: counts[state] for state in (*ENDED, "running", "waiting", "interrupted")},
            "methods": [
                {
                    "label": m["label"], "method": m.get("method"), "summary": m.get("summary"),
                    "stopped": stopped.get(m["label"]),
                    "cells": [{"seed": seed, **cell} for (label, seed), cell in found.items() if label == m["label"]],
                }
                for m in settings["methods"]
            ],
        }  # fmt: skip

    def _cell(self, folder: Path, run: Record, stopped: Record | None) -> Record:
        """`run`: what runs now, {} where nothing does."""
        record, progress = self._files.json(folder / "cell.json"), self._files.json(folder / PROGRESS)
        record = record if is_record(CellRecord, record) else {}
        if record.get("status") == "ok":
            seconds = record.get("seconds") or {}
            return {
                "state": "done", "metrics": record.get("metrics") or {}, "same_as": record.get("same_as_seed"),
                "tokens": (record.get("tokens") or {}).get("trained"),
                "seconds": sum(seconds.get(part) or 0.0 for part in ("fit", "evaluate")),
            }  # fmt: skip
        if run and progress.get("run") == run.get("id"):
            return running_cell(progress)
        if record and not self._older(folder / "cell.json", run):
            return {"state": "failed", "error": str(record.get("error", ""))}
        if stopped is not None:
            return {"state": "stopped", "share": stopped.get("share"), "seed_stopped": stopped.get("seed")}
        if progress and not run:
            return {**running_cell(progress), "state": "interrupted"}
        paused = [str(self._files.json(path).get("share", "")) for path in folder.glob("race-*.json")]
        return {"state": "waiting", "paused_at": max((float(p) for p in paused if p), default=None)}

    @staticmethod
    def _older(path: Path, run: Record) -> bool:
        """Whether a file is from before what runs now: what failed then is tried again."""
        try:
            return bool(run) and path.stat().st_mtime < float(run.get("started", 0.0))
        except OSError:
            return False

    def curves(self) -> dict[str, str]:
        """Learning curves as SVG, for each method that has one; what is being trained included, as far as it is."""
        by_label: dict[str, list[Record]] = {}
        for (label, _), folder in self.cells().items():
            curve = self._files.curve(folder / "curve.jsonl")
            by_label.setdefault(label, []).append(curve or self._files.json(folder / PROGRESS).get("curve") or {})
        return {label: str(svg) for label, svg in panels({k: lines_of(v) for k, v in by_label.items()}).items()}

    def record(self, label: str, seed: int) -> Record | None:
        """What is known of a cell: its record, and the traceback of one that failed; None: there is no such cell."""
        folder = self.cells().get((label, seed))
        if folder is None:
            return None
        found = self._files.json(folder / "cell.json")
        trace = folder / "error.txt"
        if found.get("status") == "failed" and trace.is_file():
            found["traceback"] = trace.read_text(encoding="utf-8", errors="replace")
        return found

"""Progress on a terminal: one bar for the whole, one for each running cell. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kamerton.cli.options import terminal
from kamerton.comparison.run import Watcher
from kamerton.comparison.store import Cell


def bars(console: Console) -> Progress:
    """Progress bars in this program's look."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("[dim]{task.fields[text]}"), console=console,
    )  # fmt: skip


class Bars(Watcher):
    """Bars for a comparison."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal(stderr=True)
        self._progress = bars(self.console)
        self._whole: TaskID | None = None
        self._cells: dict[tuple[str, int], TaskID] = {}
        self._started: dict[tuple[str, int], float] = {}

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, waiting: int, finished: int) -> None:
        if finished:
            self.line(f"{finished} cells are finished already, {waiting} to run")
        if waiting:
            self._whole = self._progress.add_task("[bold]comparison", total=waiting, text=f"{waiting} cells")
            if self.console.is_terminal:
                self._progress.start()

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        key, kind = (cell.label, cell.seed), event["event"]
        name = f"{cell.label}, seed {cell.seed}"
        self._started.setdefault(key, time.monotonic())
        if kind == "progress":
            if key not in self._cells:
                self._cells[key] = self._progress.add_task(name, total=1.0, text="")
            self._progress.update(
                self._cells[key], completed=min(event["share"], 1.0), text=f"{event['stage']}: {event['text']}"
            )
            return
        if kind == "dropped":
            if self._whole is not None:
                self._progress.advance(self._whole)
            return
        if kind in ("done", "scouted", "failed"):
            if key in self._cells:
                self._progress.remove_task(self._cells.pop(key))
            seconds = time.monotonic() - self._started.pop(key)
            if kind == "failed":
                self.line(f"  {name}: FAILED: {event['error']}")
            else:
                metric, value = next(iter(event["metrics"].items()))
                at = f" at {event['share']:.0%}, on validation" if kind == "scouted" else ""
                self.line(f"  {name}{at}: {metric} {value:.3f}  ({seconds:.0f} s)")
            if self._whole is not None and kind != "scouted":
                self._progress.advance(self._whole)

    def close(self) -> None:
        self._progress.stop()


class OneBar:
    """A bar for one fit or one evaluation; a context manager whose value is a `Report`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal(stderr=True)
        self._progress = bars(self.console)
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> OneBar:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, share: float, text: str) -> None:
        if stage != self._stage or self._task is None:
            self._stage = stage
            if not self.console.is_terminal:
                self.console.print(stage, highlight=False, markup=False)
            self._task = self._progress.add_task(stage, total=1.0, text=text)
        self._progress.update(self._task, completed=min(share, 1.0), text=text)

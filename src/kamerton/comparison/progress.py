"""What a run says of itself while it goes on, for whoever watches: `run.json` and a `progress.json` for each cell.

`run.json` says which process runs in a folder and what it said; `progress.json` how far one fit is, with its learning
curve up to there. Both are written whole, at a bounded rate and without waiting for the disk, and are removed when what
they speak of has ended. A killed run leaves them: they say how far it came. No result depends on them, and nobody who
cannot write them stops for it.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil

from kamerton.files import write_json

if TYPE_CHECKING:
    from kamerton.training import Progress

RUN, PROGRESS = "run.json", "progress.json"
ANSWERING, VALIDATING, MEASURING = "answering the test set", "answering validation", "measuring"
"""Stages of a cell whose fit is done."""

EVERY = 1.0
"""Seconds between two writes, at least; a new stage is told of after a fifth of that."""
COST = 50.0
"""Writing takes at most one part in so many of the time."""
POINTS = 120
"""Points of a curve that is written; between them means are taken."""
LINES = 40
"""Of what a run said, the last lines that are kept."""
SILENT = 120.0
"""Seconds without news after which a run on another machine is taken to have ended."""


def read(path: Path) -> dict[str, Any]:
    """A JSON object from a file that somebody else writes; {} where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def curve_points(rows: Iterable[Mapping[str, Any]], key: str, most: int) -> list[tuple[float, float]]:
    """(tokens, value) of the lines of a curve that have a finite value; at most `most`, as means of neighbours."""
    found = [(float(row.get("tokens") or 0), float(row[key])) for row in rows if row.get(key) is not None]
    return neighbours([point for point in found if all(map(math.isfinite, point))], most)


def loss_curves(rows: Sequence[Mapping[str, Any]], most: int) -> dict[str, list[tuple[float, float]]]:
    """Training and validation loss of the lines of a curve, each as `curve_points`."""
    return {key: curve_points(rows, key, most) for key in ("loss", "validation_loss")}


def neighbours(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours."""
    size = max(1, -(-len(points) // most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(t for t, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


class RunMark:
    """`run.json` of a folder, there for as long as its process runs.

    Args:
        folder: is there.
    """

    def __init__(self, folder: Path) -> None:
        me = psutil.Process()
        self._path = folder / RUN
        self._about: dict[str, Any] = {
            "id": uuid4().hex, "pid": me.pid, "created": _since_boot(me), "host": platform.node(),
            "started": time.time(), "said": [],
        }  # fmt: skip
        self._write()

    @property
    def id(self) -> str:
        """Tells this run from earlier ones."""
        return str(self._about["id"])

    def say(self, text: str) -> None:
        """Keep a line of what the run says."""
        self._about["said"] = [*self._about["said"], text][-LINES:]
        self._write()

    def end(self) -> None:
        """The run is over."""
        with suppress(OSError):
            self._path.unlink()

    def _write(self) -> None:
        with suppress(OSError):
            write_json(self._path, self._about, lasting=False)


def run_of(folder: Path) -> tuple[dict[str, Any], bool]:
    """What `run.json` says ({}: there is none), and whether that process still runs."""
    about = read(folder / RUN)
    if not about:
        return {}, False
    if about.get("host") != platform.node():
        told = [folder / RUN, *folder.glob(f"cells/*/*/{PROGRESS}"), folder / PROGRESS]
        return about, time.time() - max(_changed(path) for path in told) < SILENT
    try:
        process = psutil.Process(int(about["pid"]))
        # another process may have the number by now
        same = abs(_since_boot(process) - float(about["created"])) < 5
        return about, same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return about, False


def _since_boot(process: psutil.Process) -> float:
    """When a process began, in seconds since the machine did: setting the clock does not change it."""
    return float(process.create_time() - psutil.boot_time())


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class FitProgress:
    """Writes `progress.json` while something is fitted and measured; `report` and `watch` are what a `Run` takes.

    Args:
        folder: where it goes; made if it is not there.
        run: the id in `run.json`, which tells this run's from one that a killed run left.
        fingerprint: of what is fitted. What the same fit had spent before it was stopped is counted on.
    """

    def __init__(self, folder: Path, run: str, fingerprint: str) -> None:
        self._path, self._run, self._fingerprint = folder / PROGRESS, run, fingerprint
        before = read(self._path)
        goes_on = before.get("fingerprint") == fingerprint
        self._spent: dict[str, list[float]] = dict(before.get("spent") or {}) if goes_on else {}
        self._started, self._stage, self._last, self._cost = time.time(), "", 0.0, 0.0
        self._steps: tuple[str, Progress] | None = None
        self.report("starting", 0.0, "")

    def watch(self, stage: str, progress: Progress) -> None:
        """A training step; `report` follows and writes it."""
        self._steps = (stage, progress)
        self._spent[progress.run] = [progress.tokens, progress.seconds]

    def report(self, stage: str, share: float, text: str) -> None:
        """How far a stage is (0 … 1), in words too."""
        now, new = time.monotonic(), stage != self._stage
        if now - self._last < max(EVERY * (0.2 if new else 1.0), COST * self._cost):
            return
        self._stage, self._shown = stage, (stage, share, text)
        self._write()
        self._last = time.monotonic()
        self._cost = self._last - now

    def _write(self) -> None:
        with suppress(OSError):
            write_json(self._path, self._told(*self._shown), lasting=False)

    def pause(self) -> None:
        """It does not go on for now: a race paused it, or it failed. What it has spent is kept."""
        self._run = ""
        self._write()

    def end(self) -> None:
        """It is over; the record says what came of it."""
        drop_progress(self._path.parent)

    def _told(self, stage: str, share: float, text: str) -> dict[str, Any]:
        of, p = self._steps or ("", None)
        tokens, seconds = (sum(spent[i] for spent in self._spent.values()) for i in (0, 1))
        return {
            "run": self._run, "fingerprint": self._fingerprint, "started": self._started, "updated": time.time(),
            "stage": stage, "share": min(max(share, 0.0), 1.0), "text": text,
            "phase": phase(stage, of == stage), "spent": self._spent, "tokens": tokens, "seconds": seconds,
            "step": p.step if p else None,
            # the steps of a budget in tokens or seconds are not known before
            "steps": max(p.step, round(p.step / share)) if p and of == stage and share > 0 else None,
            "loss": _finite(p.loss) if p else None, "seconds_left": _finite(p.seconds_left) if p else None,
            "tokens_per_second": _finite(p.tokens_per_second) if p else None,
            "curve": loss_curves(p.curve, POINTS) if p else {},
        }  # fmt: skip


def pause_progress(folder: Path) -> None:
    """A fit in a folder stands still, since its worker was lost; what it said of itself is kept for when it goes on."""
    if told := read(folder / PROGRESS):
        with suppress(OSError):
            write_json(folder / PROGRESS, {**told, "run": ""}, lasting=False)


def drop_progress(folder: Path) -> None:
    """Remove what a fit in a folder said of itself."""
    with suppress(OSError):
        for path in (folder / PROGRESS, *folder.glob(f".partial-*-{PROGRESS}")):  # a killed writer leaves its half
            path.unlink(missing_ok=True)


def phase(stage: str, trains: bool) -> str:
    """What a stage is in one word: preparing, searching, training or evaluating."""
    if stage in (ANSWERING, VALIDATING, MEASURING):
        return "evaluating"
    if stage.startswith(("choosing", "trying")):
        return "searching"
    return "training" if trains else "preparing"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

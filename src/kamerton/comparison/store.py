"""The folder of a comparison: what is in it, and how a finished cell is told from an unfinished one.

Everything that decides a cell's result goes into its fingerprint; a cell whose `cell.json` has that fingerprint and
status `ok` is finished and is not run again. Files are written under another name and renamed, `cell.json` last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kamerton.errors import KamertonError
from kamerton.files import checksum, read_jsonl, sweep, write_json, write_jsonl
from kamerton.locks import LOCK, take
from kamerton.tasks.example import Task, example_from, fingerprint, record_of

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Cell:
    """One method with one seed.

    Attributes:
        label: names the method's row; `method`, `options`: what it is.
        seed: of everything random in it.
        fingerprint: of everything that decides its result.
        same_as: the seed whose result this one equals, where the seed changes nothing.
        start: names the supervised start that it shares with other cells; none: it has one of its own, or none.
    """

    label: str
    method: str
    options: dict[str, Any]
    seed: int
    fingerprint: str
    same_as: int | None = None
    start: str | None = None


class Store:
    """A comparison's folder.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self) -> FileLock:
        """A lock that only one run can hold; freed when its process ends, however it ends.

        What an earlier run left half written when it was killed is removed.

        Raises:
            KamertonError: another one holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KamertonError(
                f"the folder cannot be made ({error.strerror})", where=self.folder, mend="name another output"
            ) from None
        lock = take(self.folder, "another run works in this folder")
        sweep(self.folder)  # nobody else writes here now
        return lock

    def cell_folder(self, label: str, seed: int) -> Path:
        return self.folder / "cells" / label / f"seed-{seed}"

    def start_folder(self, cell: Cell) -> Path | None:
        """Where the start that a cell shares with others is trained."""
        return None if cell.start is None else self.folder / "starts" / cell.start

    def drop_start(self, cell: Cell, cells: Sequence[Cell]) -> None:
        """Remove the start of a cell that has ended, unless one of `cells` still needs it."""
        folder = self.start_folder(cell)
        if folder is not None and all(c.start != cell.start or self.finished(c) for c in cells):
            shutil.rmtree(folder, ignore_errors=True)

    def cell_lock(self, cell: Cell) -> FileLock:
        """A lock on one cell, waited for."""
        folder = self.cell_folder(cell.label, cell.seed)
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / LOCK)

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a cell as it stands, whatever made it; None where there is none that can be read."""
        try:
            record: dict[str, Any] = json.loads((self.cell_folder(cell.label, cell.seed) / "cell.json").read_text())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def finished(self, cell: Cell) -> bool:
        """Whether its result is there, and as it was written: a damaged one is made again."""
        record = self.record(cell)
        if record is None or record.get("status") != "ok" or record.get("fingerprint") != cell.fingerprint:
            return False
        return not self.damaged(cell)

    def damaged(self, cell: Cell) -> str | None:
        """The name of a file of a cell's result that is not what was written; None where all are."""
        folder, record = self.cell_folder(cell.label, cell.seed), self.record(cell)
        if record is None:
            return "cell.json" if (folder / "cell.json").exists() else None
        sums = record.get("checksums", {})  # of comparisons that were made before there were any: none
        if not isinstance(sums, dict) or ("cell.json" in sums and sums["cell.json"] != _own_sum(record)):
            return "cell.json"
        for name, value in sums.items():
            try:
                if name != "cell.json" and checksum(folder / name) != value:
                    return str(name)
            except OSError:
                return str(name)
        return None

    def _scouted_path(self, cell: Cell, share: float) -> Path:
        return self.cell_folder(cell.label, cell.seed) / f"race-{share:g}.json"

    def scouted(self, cell: Cell, share: float) -> dict[str, Any] | None:
        """What a race learned of a cell at a share of its training; None where that is not known."""
        try:
            found = json.loads(self._scouted_path(cell, share).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("fingerprint") == cell.fingerprint else None

    def write_scouted(self, cell: Cell, share: float, scouted: dict[str, Any]) -> None:
        write_json(self._scouted_path(cell, share), scouted)

    def write_cell(
        self, cell: Cell, record: dict[str, Any], answers: list[dict[str, Any]] | None, curve: list[dict[str, float]]
    ) -> None:
        """Write a cell's files; the record last, so that its presence means that the rest is there."""
        folder = self.cell_folder(cell.label, cell.seed)
        folder.mkdir(parents=True, exist_ok=True)
        if answers is not None:
            write_jsonl(folder / "answers.jsonl", answers)
            write_jsonl(folder / "curve.jsonl", list(curve))
            sums = {name: checksum(folder / name) for name in ("answers.jsonl", "curve.jsonl")}
            record = {k: v for k, v in record.items() if k != "checksums"}
            record["checksums"] = {**sums, "cell.json": _own_sum(record)}
        write_json(folder / "cell.json", record)

    def copy_cell(self, cell: Cell) -> None:
        """Give a cell the result of the seed that it equals."""
        assert cell.same_as is not None
        source = self.cell_folder(cell.label, cell.same_as)
        record = json.loads((source / "cell.json").read_text())
        answers = read_jsonl(source / "answers.jsonl") if record["status"] == "ok" else None
        record = {**record, "seed": cell.seed, "fingerprint": cell.fingerprint, "same_as_seed": cell.same_as}
        self.write_cell(cell, record, answers, [])

    def drop_stale(self, cells: Sequence[Cell]) -> None:
        """Remove what belongs to no cell of this comparison, and what a changed recipe made worthless."""
        root = self.folder / "cells"
        wanted = {(c.label, f"seed-{c.seed}"): c for c in cells}
        for folder in [p for p in root.glob("*/seed-*") if p.is_dir()]:
            cell = wanted.get((folder.parent.name, folder.name))
            record = self.record(cell) if cell is not None else None
            if cell is None or (record is not None and record.get("fingerprint") != cell.fingerprint):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in [p for p in root.glob("*") if p.is_dir() and not any(p.iterdir())]:
            folder.rmdir()

    # -- the task -----------------------------------------------------------------------------------------------------

    def write_task(self, task: Task) -> None:
        """Keep the examples, so that a resumed comparison and its report need nothing else."""
        for split in SPLITS:
            write_jsonl(self.folder / f"{split}.jsonl", [record_of(e) for e in getattr(task, split)])
        about = {k: getattr(task, k) for k in ("name", "metrics", "max_answer_tokens", "notes", "source")}
        write_json(self.folder / "task.json", about)

    def read_task(self) -> Task:
        about = json.loads((self.folder / "task.json").read_text())
        for split in SPLITS:
            about[split] = tuple(example_from(row) for row in read_jsonl(self.folder / f"{split}.jsonl"))
        return Task(**{**about, "metrics": tuple(about["metrics"]), "notes": tuple(about["notes"])})


def _own_sum(record: dict[str, Any]) -> str:
    """What a record says, as one number: of the record itself, without the checksums that stand in it."""
    return fingerprint({k: v for k, v in record.items() if k != "checksums"})

"""Reading a comparison folder: settings, finished and failed cells, answers, learning curves, test examples.

Unfinished folders are fine: what is missing is left out and counted. What is there but broken is an error with its
file and line. Statistics of every metric are turned into arrays here, so that the rest of the report never parses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from kamerton.comparison.report.records import (
    AnswerLine,
    CellRecord,
    CurveLine,
    RaceRecord,
    Settings,
    check_record,
)
from kamerton.comparison.units import Scale
from kamerton.errors import KamertonError
from kamerton.evaluation.metrics import Metric, get_metric
from kamerton.tasks.example import Example, Message

Record = dict[str, Any]
AGAIN = "remove it and run the comparison again"


@dataclass(frozen=True)
class Cell:
    """One finished cell.

    Attributes:
        record: cell.json.
        answers: the answers, in test order.
        statistics: metric -> (N, S).
        curve: lines of curve.jsonl.
        details: how each answer came about, {} where nothing was kept.
    """

    record: Record
    answers: list[str]
    statistics: dict[str, np.ndarray]
    curve: list[Record]
    details: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """A comparison folder in memory.

    Attributes:
        settings: settings.json, {} where there is none.
        cells: label -> seed -> finished cell; labels in the recipe's order.
        failed: cell.json of failed cells.
        planned: (label, seed) of all cells that the settings ask for and no race stopped.
        examples: the test examples; empty where the folder has none.
        metrics: the metrics in the task's order; the first one decides.
        race: race.json, {} where there was no race.
    """

    folder: Path
    settings: Record
    cells: dict[str, dict[int, Cell]]
    failed: list[Record]
    planned: list[tuple[str, int]]
    examples: tuple[Example, ...]
    metrics: dict[str, Metric] = field(default_factory=dict)
    race: Record = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.folder.resolve().name)

    @property
    def labels(self) -> list[str]:
        """Methods with at least one finished cell."""
        return [label for label, by_seed in self.cells.items() if by_seed]

    @property
    def deciding(self) -> Metric | None:
        return next(iter(self.metrics.values()), None)

    @property
    def judge(self) -> Metric | None:
        """The first metric that scores single answers from 0 to 1: what "right" means for one example."""
        for metric in self.metrics.values():
            if metric.range == (0.0, 1.0) and metric.higher_is_better and self._width(metric.name) == 1:
                return metric
        return None

    @property
    def grouped(self) -> Metric | None:
        """The metric that is shown for each group: the deciding one where it is made of groups, else the judge."""
        return self.deciding if hasattr(self.deciding, "groups") else self.judge

    def _width(self, metric: str) -> int:
        for by_seed in self.cells.values():
            for cell in by_seed.values():
                return cell.statistics[metric].shape[1] if metric in cell.statistics else 0
        return 0

    def scores(self, metric: str) -> dict[str, dict[int, np.ndarray]]:
        """label -> seed -> statistics (N, S)."""
        return {
            label: {seed: cell.statistics[metric] for seed, cell in by_seed.items() if metric in cell.statistics}
            for label, by_seed in self.cells.items()
        }

    def records(self) -> dict[str, list[Record]]:
        return {label: [cell.record for cell in by_seed.values()] for label, by_seed in self.cells.items()}


def title_of(metric: Metric) -> str:
    """A metric's name for people."""
    return str(getattr(metric, "title", metric.name.replace("-", " ")))


def scale_of(metric: Metric) -> Scale:
    return Scale(title_of(metric), *metric.range, metric.higher_is_better)


def load_comparison(folder: str | Path) -> Comparison:
    """Read a comparison folder.

    Raises:
        KamertonError: the folder does not exist, or a file in it is broken or does not fit the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise KamertonError("there is no such comparison folder", where=folder, mend="give a folder of `compare`")
    settings = _checked(folder / "settings.json", Settings) if (folder / "settings.json").exists() else {}
    examples = _examples(folder / "test.jsonl")
    ids = [example.id for example in examples]
    cells: dict[str, dict[int, Cell]] = {str(m["label"]): {} for m in settings.get("methods", ())}
    failed = []
    for file in sorted(folder.glob("cells/*/seed-*/cell.json")):
        record = _checked(file, CellRecord)
        if record["status"] != "ok":
            failed.append(record)
            continue
        cells.setdefault(str(record["label"]), {})[int(record["seed"])] = _cell(file.parent, record, ids)
    sizes = {len(cell.answers) for by_seed in cells.values() for cell in by_seed.values()}
    if len(sizes) > 1:
        found = " and ".join(map(str, sorted(sizes)))
        raise KamertonError(f"cells have different numbers of answers ({found})", where=folder, mend=AGAIN)
    cells = {label: dict(sorted(by_seed.items())) for label, by_seed in cells.items()}
    seeds = [int(seed) for seed in settings.get("seeds", ())]
    race = _checked(folder / "race.json", RaceRecord) if (folder / "race.json").exists() else {}
    stopped = {str(s["label"]) for s in race.get("stopped", ())}
    planned = [
        (label, seed)
        for label in (str(m["label"]) for m in settings.get("methods", ()))
        for seed in seeds
        if label not in stopped or seed in cells.get(label, {})
    ]
    names = _metric_names(settings, cells)
    metrics = {name: get_metric(name, examples or None) for name in names}
    return Comparison(folder, settings, cells, failed, planned, examples, metrics, race)


def _metric_names(settings: Mapping[str, Any], cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    named = list((settings.get("task") or {}).get("metrics", ()))
    present: list[str] = []
    for by_seed in cells.values():
        for cell in by_seed.values():
            present += [name for name in cell.statistics if name not in present]
    return [name for name in named if name in present] or present or named


def _cell(folder: Path, record: Record, ids: list[str]) -> Cell:
    file = folder / "answers.jsonl"
    lines = list(_lines(file, AnswerLine))
    if not lines:
        raise KamertonError("a finished cell has no answers", where=file, mend=AGAIN)
    found = [str(line.get("id")) for line in lines]
    if ids and found != ids:
        raise KamertonError("the answers are not those of test.jsonl, in its order", where=file, mend=AGAIN)
    statistics = {}
    for name in lines[0].get("statistics", {}):
        try:
            statistics[name] = np.array([line["statistics"][name] for line in lines], dtype=np.float64)
            if statistics[name].ndim != 2:
                raise ValueError("not one list of numbers a line")
        except (KeyError, TypeError, ValueError) as error:
            raise KamertonError(f"statistics of {name} are broken ({error})", where=file, mend=AGAIN) from None
    curve = folder / "curve.jsonl"
    return Cell(
        record,
        [str(line.get("answer", "")) for line in lines],
        statistics,
        list(_lines(curve, CurveLine)) if curve.exists() else [],
        [line.get("details") or {} for line in lines],
    )


def _examples(file: Path) -> tuple[Example, ...]:
    if not file.exists():
        return ()
    examples = []
    for number, line in enumerate(_lines(file), 1):
        try:
            messages = tuple(Message(_text(m["role"]), _text(m["content"])) for m in line["messages"])  # type: ignore[arg-type]
            examples.append(
                Example(
                    id=str(line["id"]),
                    messages=messages,
                    answers=tuple(map(_text, line["answers"])),
                    choices=tuple(map(_text, line.get("choices") or ())),
                    group=_text(line.get("group") or ""),
                )
            )
        except (KeyError, TypeError) as error:
            raise KamertonError(
                f"not a test example ({error!r})", where=f"{file}:{number}", mend="run the comparison again"
            ) from None
    return tuple(examples)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _json(file: Path) -> Record:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KamertonError(f"cannot be read as JSON ({error})", where=file, mend=AGAIN) from None
    if not isinstance(found, dict):
        raise KamertonError("is not a JSON object", where=file, mend=AGAIN)
    return found


def _checked(file: Path, kind: type[BaseModel]) -> Record:
    return check_record(kind, _json(file), file, AGAIN)


def _lines(file: Path, kind: type[BaseModel] | None = None) -> Iterator[Record]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise KamertonError(f"cannot be read ({error})", where=file, mend=AGAIN) from None
    # not splitlines(): answers may hold U+2028 and other separators unescaped
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise KamertonError(f"broken JSON ({error})", where=f"{file}:{number}", mend=AGAIN) from None
            if not isinstance(found, dict):
                raise KamertonError("is not a JSON object", where=f"{file}:{number}", mend=AGAIN)
            yield check_record(kind, found, f"{file}:{number}", AGAIN) if kind is not None else found

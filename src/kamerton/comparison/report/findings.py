"""What methods found and want to show (`Finding`): small tables and curves, joined over seeds where they can be.

Nothing here knows a method. Seeds whose findings have the same title, columns and first column are shown as one, with
means where they differ in numbers; other seeds stand one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from kamerton.comparison.report import svg
from kamerton.comparison.report.data import Cell, Comparison, Record
from kamerton.comparison.units import minus


def marks(comparison: Comparison, label: str) -> list[str]:
    """The marks of a method's cells, each once; with the number of seeds where not all have it."""
    cells = list(comparison.cells[label].values())
    found = [str(mark) for cell in cells for mark in cell.record.get("marks", ())]
    out = []
    for mark in dict.fromkeys(found):
        count = found.count(mark)
        out.append(mark if count == len(cells) else f"{mark} ({count} of {len(cells)} seeds)")
    return out


def findings(comparison: Comparison, order: Sequence[str]) -> list[Record]:
    """For each method that has any: its label and its findings, ready to show."""
    out = []
    for label in order:
        shown = [_shown(f) for f in joined(comparison.cells[label])]
        if shown:
            out.append({"label": label, "findings": shown})
    return out


def joined(cells: dict[int, Cell]) -> list[Record]:
    """Findings of a method's seeds; those that differ in numbers only become one of means."""
    by_title: dict[tuple[Any, ...], list[tuple[int, Record]]] = {}
    for seed, cell in cells.items():
        if cell.record.get("same_as_seed") is not None:
            continue  # a copy would count one run twice
        for finding in cell.record.get("findings", ()):
            texts = tuple(tuple(None if _number(v) and i else v for i, v in enumerate(row)) for row in finding["rows"])
            levels = tuple(name for name, _ in finding.get("levels", ()))
            key = (finding["title"], tuple(finding["columns"]), texts, finding["curve"], finding["note"], levels)
            by_title.setdefault(key, []).append((seed, finding))
    out = []
    for same in by_title.values():
        first = same[0][1]
        rows = [
            [_mean([f["rows"][r][i] for _, f in same], value) if i else value for i, value in enumerate(row)]
            for r, row in enumerate(first["rows"])
        ]
        seeds = [seed for seed, _ in same]
        flat = [[name, _mean([f["levels"][i][1] for _, f in same], at)]
                  for i, (name, at) in enumerate(first.get("levels", ()))]  # fmt: skip
        out.append({**first, "rows": rows, "seeds": seeds, "levels": flat})
    return out


def _mean(values: Sequence[Any], otherwise: Any) -> Any:
    """The mean of the numbers among what seeds have in one place; without any, what the first seed has there."""
    numbers = [value for value in values if _number(value)]
    return sum(numbers) / len(numbers) if numbers else otherwise


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(finding: Record) -> Record:
    seeds = finding["seeds"]
    who = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"
    drawn = None
    if finding["curve"] and len(finding["rows"]) > 1:
        lines = [
            (name, [(float(row[0]), float(row[i])) for row in finding["rows"] if row[i] is not None])
            for i, name in enumerate(finding["columns"])
            if i
        ]
        if any(points for _, points in lines):
            drawn = Markup(svg.lines(finding["title"], finding["columns"][0], lines, finding["levels"]))
    return {
        "title": finding["title"],
        "note": finding["note"],
        "who": who,
        "columns": [
            {"name": name, "number": all(_number(row[i]) for row in finding["rows"])}
            for i, name in enumerate(finding["columns"])
        ],
        "rows": [[_written(value) for value in row] for row in finding["rows"]],
        "svg": drawn,
        "texts": finding.get("texts", False),
    }


def _written(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return minus(f"{value:.4g}")
    return str(value)

"""The data of "answers side by side": what the page's script filters and shows, as JSON that is safe inside HTML."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from kamerton.comparison.report.data import Comparison

MAX_CHARACTERS = 24_000_000
MAX_DETAILS = 1500  # characters that are shown of how one answer came about


def side_by_side(comparison: Comparison, order: list[str], limit: int = MAX_CHARACTERS) -> dict[str, Any]:
    """Questions, references and all answers; methods in the given order.

    Where this would be more than `limit` characters, first all seeds but one are left out, then the last examples;
    `left_out` says so.
    """
    examples = comparison.examples
    judge = comparison.judge
    runs: list[dict[str, Any]] = []
    for place, label in enumerate(order):
        for seed, cell in comparison.cells[label].items():
            scores = cell.statistics.get(judge.name) if judge else None
            column = None if scores is None else [round(float(x), 3) for x in scores[:, 0]]
            same = next((r for r in runs if r["m"] == place and r["a"] == cell.answers and r["s"] == column), None)
            if same:
                same["seeds"].append(seed)
            else:
                run = {"m": place, "seeds": [seed], "a": cell.answers, "s": column}
                if any(cell.details):
                    run["d"] = [_told(details) for details in cell.details]
                runs.append(run)
    count = min([len(run["a"]) for run in runs], default=0)
    system = _common_system(comparison)
    items = [_item(comparison, i, system) for i in range(count)]
    groups = sorted({example.group for example in examples if example.group})
    left_out = ""
    lengths = np.array([len(json.dumps(item, ensure_ascii=False)) for item in items], dtype=np.int64)
    sizes = [_sizes(run, count) for run in runs]
    if int(lengths.sum() + sum(s.sum() for s in sizes)) > limit:
        first = [next(i for i, run in enumerate(runs) if run["m"] == m) for m in range(len(order))]
        runs, sizes = [runs[i] for i in first], [sizes[i] for i in first]
        left_out = "Only the first seed of each method is shown here; answers.jsonl of each cell has all."
        total = np.cumsum(lengths + np.sum(sizes, axis=0))
        kept = int((total <= limit).sum())
        if kept < count:
            left_out += f" Only the first {kept:,} of {count:,} test examples are shown."
            items = items[:kept]
            runs = [{**run, **{k: run[k] and run[k][:kept] for k in ("a", "s", "d") if k in run}} for run in runs]
    return {
        "methods": order,
        "seeds": sorted({seed for run in runs for seed in run["seeds"]}),
        "groups": groups,
        "judge": judge.name if judge else None,
        "system": system,
        "items": items,
        "runs": runs,
        "left_out": left_out,
    }


def _sizes(run: dict[str, Any], count: int) -> np.ndarray:
    details = run.get("d") or [""] * count
    return np.array([len(a) + len(d) + 12 for a, d in zip(run["a"][:count], details[:count], strict=True)], np.int64)


def _told(details: dict[str, Any]) -> str:
    """How an answer came about, a line for each thing that was kept."""
    lines = []
    for key, value in details.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{key}: {text}")
    whole = "\n".join(lines)
    return whole if len(whole) <= MAX_DETAILS else whole[:MAX_DETAILS] + " …"


def _common_system(comparison: Comparison) -> str:
    """The system message that all examples share; "" where they do not."""
    found = {
        e.messages[0].content if e.messages and e.messages[0].role == "system" else "" for e in comparison.examples
    }
    return found.pop() if len(found) == 1 else ""


def _item(comparison: Comparison, index: int, system: str) -> dict[str, Any]:
    if index >= len(comparison.examples):
        return {"id": str(index + 1), "q": "", "r": []}
    example = comparison.examples[index]
    item: dict[str, Any] = {"id": example.id, "r": list(example.answers)}
    item["q"] = example.messages[-1].content if example.messages else ""
    before = [m for m in example.messages[:-1] if not (system and m.role == "system" and m.content == system)]
    if before:
        item["c"] = [[m.role, m.content] for m in before]
    if example.group:
        item["g"] = example.group
    return item


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

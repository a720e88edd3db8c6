"""`results.json`: the verdict and every number behind it, the same for the same cells.

What a clock or the machine decides stands under the keys `seconds`, `latency_seconds`, `peak_memory_bytes`, `processes`
(workers, and threads of each) or `times`; `results_without_times` takes those away, so that two runs of one comparison
can be compared for equality.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from kamerton.comparison.report.data import Cell, Comparison, Record, title_of
from kamerton.comparison.report.findings import joined, marks
from kamerton.comparison.verdict import Stopped, Verdict, decide
from kamerton.evaluation.statistics import estimate

TIMES = frozenset({"seconds", "latency_seconds", "peak_memory_bytes", "processes", "times"})
DIGITS = 9  # sums may differ in the last bits between processors; nothing below is an answer to anything


def results(comparison: Comparison, verdict: Verdict | None = None) -> Record:
    """Everything that `results.json` holds, as plain JSON values."""
    verdict = verdict or verdict_of(comparison)
    settings = comparison.settings
    done = sum(len(by_seed) for by_seed in comparison.cells.values())
    planned = len(comparison.planned) or done + len(comparison.failed)
    return _rounded(
        {
            "name": comparison.name,
            "kamerton": settings.get("kamerton"),
            "task": settings.get("task"),
            "base": settings.get("base"),
            "seeds": settings.get("seeds"),
            "budget": settings.get("budget"),
            "processes": settings.get("processes"),
            "cells": {"planned": planned, "finished": done, "failed": len(comparison.failed)},
            "complete": done == planned,
            "verdict": verdict.to_dict() if verdict else None,
            "race": comparison.race or None,
            "methods": [_method(comparison, label) for label in comparison.labels],
            "failed": [
                {"label": r["label"], "seed": r["seed"], "error": r.get("error", "")} for r in comparison.failed
            ],
        }
    )


def verdict_of(comparison: Comparison) -> Verdict | None:
    """The verdict on the deciding metric; None where nothing has been scored."""
    metric = comparison.deciding
    if metric is None:
        return None
    return decide(
        comparison.scores(metric.name),
        metric,
        comparison.records(),
        name=title_of(metric),
        planned_seeds=[int(seed) for seed in comparison.settings.get("seeds", ())],
        stopped=[Stopped(**{k: s[k] for k in Stopped.__slots__}) for s in comparison.race.get("stopped", ())],
    )


def _method(comparison: Comparison, label: str) -> Record:
    cells = list(comparison.cells[label].values())
    first = cells[0].record
    groups = group_scores(comparison, label)
    return {
        "label": label,
        "method": first.get("method"),
        "options": first.get("options", {}),
        "metrics": {
            name: vars_of(estimate({s: c.statistics[name] for s, c in comparison.cells[label].items()}, metric))
            for name, metric in comparison.metrics.items()
            if all(name in cell.statistics for cell in cells)
        },
        "groups": groups,
        "marks": marks(comparison, label),
        "findings": joined(comparison.cells[label]),
        **costs(cells),
        # what a clock decides is in the files too that the checksums are of
        "cells": [{k: v for k, v in cell.record.items() if k != "checksums"} for cell in cells],
    }


def vars_of(found: Any) -> Record:
    return {key: getattr(found, key) for key in ("value", "low", "high", "seeds", "examples", "seed_deviation")}


def group_scores(comparison: Comparison, label: str) -> dict[str, Record]:
    """Score of each group of test examples, where examples have groups."""
    metric = comparison.grouped
    groups = [example.group for example in comparison.examples]
    names = [name for name in dict.fromkeys(groups) if name]
    if metric is None or len(names) < 2:
        return {}
    member = np.array(groups)
    by_seed = {seed: cell.statistics[metric.name] for seed, cell in comparison.cells[label].items()}
    return {
        name: vars_of(estimate({s: x[member == name] for s, x in by_seed.items()}, metric, resamples=1000))
        for name in sorted(names)
    }


def costs(cells: list[Cell]) -> Record:
    """Means over seeds of what a method costs (the largest for memory); None where a cell did not measure it."""
    records = [cell.record for cell in cells]

    def mean(*path: str) -> float | None:
        found = [dig(record, *path) for record in records]
        return None if any(x is None for x in found) else float(np.mean([float(x) for x in found]))

    peaks = [p for record in records if (p := record.get("peak_memory_bytes")) is not None]
    before, after = mean("forgetting", "bits_per_byte_base"), mean("forgetting", "bits_per_byte")
    return {
        "trainable_parameters": mean("trainable_parameters"),
        "disk_bytes": mean("disk_bytes"),
        "tokens": {key: mean("tokens", key) for key in ("trained", "prompt", "generated")},
        "tokens_per_answer": {key: mean("tokens_per_answer", key) for key in ("prompt", "generated")},
        "flops": {key: mean("flops", key) for key in ("fit", "evaluate")},
        "forgetting": {
            "kl": mean("forgetting", "kl"),
            "bits_per_byte": after,
            "bits_per_byte_base": before,
            "bits_per_byte_change": None if before is None or after is None else after - before,
        },
        "seconds": {key: mean("seconds", key) for key in ("fit", "evaluate")},
        "latency_seconds": mean("latency_seconds"),
        "peak_memory_bytes": max(peaks) if len(peaks) == len(records) else None,
    }


def dig(record: Mapping[str, Any], *path: str) -> Any:
    found: Any = record
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def results_without_times(found: Any) -> Any:
    """The same without everything that a clock or the machine decides, at any depth; the input is not changed."""
    if isinstance(found, Mapping):
        return {key: results_without_times(value) for key, value in found.items() if key not in TIMES}
    if isinstance(found, (list, tuple)):
        return [results_without_times(value) for value in found]
    return found


def _rounded(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {str(key): _rounded(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_rounded(value) for value in found]
    if isinstance(found, (float, np.floating)):
        value = float(f"{float(found):.{DIGITS}g}")
        return value if np.isfinite(value) else None
    return int(found) if isinstance(found, np.integer) else found


COLUMNS = (
    "label", "method", "rank", "metric", "value", "low", "high", "seeds", "seed_deviation", "trainable_parameters",
    "disk_bytes", "tokens_trained", "prompt_tokens_per_answer", "generated_tokens_per_answer", "fit_flops",
    "evaluate_flops", "fit_seconds", "evaluate_seconds", "latency_seconds", "peak_memory_bytes", "kl",
    "bits_per_byte_change",
)  # fmt: skip


def results_csv(found: Record) -> str:
    """One line a method, best first; other metrics than the deciding one in columns of their own."""
    verdict = found["verdict"]
    rows = verdict["rows"] if verdict else []
    methods = {m["label"]: m for m in found["methods"]}
    others = [n for n in (next(iter(methods.values()))["metrics"] if methods else {}) if n != verdict["metric"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *others])
    for row in rows:
        m = methods[row["label"]]
        values = {
            **{key: row[key] for key in ("label", "rank", "value", "low", "high", "seed_deviation")},
            "method": m["method"],
            "metric": verdict["metric"],
            "seeds": " ".join(map(str, row["seeds"])),
            **{key: m[key] for key in ("trainable_parameters", "disk_bytes", "latency_seconds", "peak_memory_bytes")},
            "tokens_trained": m["tokens"]["trained"],
            "prompt_tokens_per_answer": m["tokens_per_answer"]["prompt"],
            "generated_tokens_per_answer": m["tokens_per_answer"]["generated"],
            "fit_flops": m["flops"]["fit"],
            "evaluate_flops": m["flops"]["evaluate"],
            "fit_seconds": m["seconds"]["fit"],
            "evaluate_seconds": m["seconds"]["evaluate"],
            "kl": m["forgetting"]["kl"],
            "bits_per_byte_change": m["forgetting"]["bits_per_byte_change"],
        }
        extra = [m["metrics"].get(name, {}).get("value") for name in others]
        writer.writerow(["" if x is None else x for x in [*(values[c] for c in COLUMNS), *extra]])
    return text.getvalue()

"""`report.html`: one page that holds its style, its script, its plots and its data, and asks the network for nothing.

This module prepares what the template shows; the template only arranges. All text of users and models is escaped: by
Jinja in the markup, by `script_json` in the data; a content security policy lets nothing but our own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from kamerton.comparison.report import svg
from kamerton.comparison.report.answers import script_json, side_by_side
from kamerton.comparison.report.data import Comparison, Record, scale_of
from kamerton.comparison.report.findings import findings, marks
from kamerton.comparison.units import MINUS, Scale, duration, fixed, p_value, plain, quantity
from kamerton.comparison.verdict import Row, Verdict

FOREST = (300, 132)  # pixels: wide, for phones
NAMED = 10  # methods; more of them are numbered in plots and matrices
MAX_CURVE = 90
SECTIONS = ("base", "task", "methods", "budget", "seeds", "versions", "machine", "processes")
"""Of the settings, in "how to repeat this"; what else there is follows together."""


def page(comparison: Comparison, verdict: Verdict | None, found: Record) -> str:
    """The page as text. `found`: what `results` gave for the same comparison and verdict."""
    here = files("kamerton.comparison.report")
    style, script, template = (
        (here / name).read_text(encoding="utf-8") for name in ("style.css", "page.js", "template.html.j2")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    view = {
        "comparison": comparison,
        "settings": comparison.settings,
        "found": found,
        "verdict": verdict,
        "facts": facts(comparison, found),
        "notes": _notes(comparison, verdict),
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": digest,
        "repeat": _repeat(comparison),
        "order": [row.label for row in verdict.rows] if verdict else [],
    }
    if verdict and verdict.rows and comparison.deciding:
        view |= _scored(comparison, verdict, found, scale_of(comparison.deciding))
    return environment.from_string(template).render(view)


def facts(comparison: Comparison, found: Record) -> list[str]:
    """The line under the title."""
    settings = comparison.settings
    base, task = settings.get("base") or {}, settings.get("task") or {}
    parameters = base.get("parameters")
    count = f" ({quantity(parameters)} parameters)" if parameters else ""
    seeds = settings.get("seeds") or []
    sizes = task.get("sizes") or {}
    return [
        fact
        for fact in (
            f"Task {task['name']}" if task.get("name") else "",
            f"base {base['name']}{count}" if base.get("name") else "",
            f"{sizes['train']:,} training, {sizes.get('validation', 0):,} validation, {sizes.get('test', 0):,} test"
            if sizes.get("train") is not None
            else "",
            f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}" if seeds else "",
            f"{found['cells']['finished']} of {found['cells']['planned']} cells finished"
            if not found["complete"]
            else "",
            f"Kamerton {settings['kamerton']}" if settings.get("kamerton") else "",
        )
        if fact
    ]


def _notes(comparison: Comparison, verdict: Verdict | None) -> list[str]:
    """Notes of the verdict, the task and the cells, each once, with who says it."""
    notes = list(verdict.notes) if verdict else []
    notes += [str(note) for note in (comparison.settings.get("task") or {}).get("notes", ())]
    by_note: dict[str, list[str]] = {}
    for label, by_seed in comparison.cells.items():
        for seed, cell in by_seed.items():
            for note in cell.record.get("notes", ()):
                by_note.setdefault(f"{label}: {note}", []).append(str(seed))
    for note, seeds in by_note.items():
        everywhere = len(seeds) == len(comparison.cells[note.split(": ", 1)[0]]) if ": " in note else False
        notes.append(note if everywhere else f"{note} (seed {', '.join(seeds)})")
    return notes


def _repeat(comparison: Comparison) -> dict[str, Any]:
    """Command, recipe and all settings for "how to repeat this"."""
    recipe = comparison.folder / "recipe.yaml"
    settings = comparison.settings
    kept = settings.get("recipe") or ""
    kept = kept if isinstance(kept, str) else json.dumps(kept, indent=1, ensure_ascii=False)
    return {
        "command": str(settings.get("command") or ""),
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.exists() else kept,
        "sections": [
            (key.capitalize(), json.dumps(settings[key], indent=1, ensure_ascii=False))
            for key in SECTIONS
            if settings.get(key)
        ],
        "rest": json.dumps(
            {k: v for k, v in settings.items() if k not in (*SECTIONS, "command", "recipe")},
            indent=1,
            ensure_ascii=False,
        ),
    }


def _scored(comparison: Comparison, verdict: Verdict, found: Record, scale: Scale) -> Record:
    methods = {m["label"]: m for m in found["methods"]}
    order = [row.label for row in verdict.rows]
    return {
        "scale": scale,
        "scores": _score_rows(verdict, methods, scale),
        "others": [name for name in comparison.metrics if name != verdict.metric],
        "numbered": len(order) > NAMED,
        "number": {label: i for i, label in enumerate(order, 1)},
        "forest_axis": Markup("".join(svg.forest_axis(_forest_scale(verdict, scale, w), w) for w in FOREST)),
        "costs": _cost_rows(order, methods),
        "cost_headings": COST_HEADINGS,
        "matrix": _matrix(verdict, scale),
        "undecided": _pair_rows(verdict, scale, decided=False),
        "decided": _pair_rows(verdict, scale, decided=True),
        "quality": _quality_plots(verdict, methods, scale),
        "curves": _curves(comparison, order),
        "forgetting": _forgetting_plots(verdict, methods, scale),
        "forgot": _forgetting_rows(verdict, methods),
        "marks": {label: said for label in order if (said := marks(comparison, label))},
        "findings": findings(comparison, order),
        "groups": _groups(order, methods, comparison),
        "answers": Markup(script_json(side_by_side(comparison, order))),
    }


def _forest_scale(verdict: Verdict, scale: Scale, width: int) -> svg.Axis:
    return svg.forest_scale([v for row in verdict.rows for v in (row.low, row.high)], width, scale.factor)


def _forest(row: Row, verdict: Verdict, scale: Scale) -> Markup:
    title = f"{row.label}: {scale.score(row.value)} ({scale.number(row.low)} to {scale.number(row.high)})"
    axes = [(_forest_scale(verdict, scale, width), width) for width in FOREST]
    return Markup(
        "".join(svg.forest(row.low, row.value, row.high, a, w, row.label in verdict.contenders, title) for a, w in axes)
    )


def _score_rows(verdict: Verdict, methods: dict[str, Record], scale: Scale) -> list[Record]:
    return [
        {
            "row": row,
            "score": scale.score(row.value),
            "interval": f"{scale.number(row.low)} to {scale.number(row.high)}",
            "seeds": "all alike" if row.deterministic else f"{len(row.seeds)}",
            "deviation": "" if row.deterministic or row.conditional else scale.number(row.seed_deviation),
            "others": {name: f"{m['value']:.3f}" for name, m in methods[row.label]["metrics"].items()},
            "forest": _forest(row, verdict, scale),
        }
        for row in verdict.rows
    ]


def _cost_rows(order: Sequence[str], methods: dict[str, Record]) -> list[Record]:
    def tokens(m: Record) -> str:
        prompt, generated = m["tokens_per_answer"]["prompt"], m["tokens_per_answer"]["generated"]
        return "–" if prompt is None or generated is None else f"{prompt:.0f} + {generated:.0f}"

    return [
        {
            "label": label,
            "values": [
                plain(m["trainable_parameters"]),
                duration(m["seconds"]["fit"]),
                quantity(m["tokens"]["trained"]),
                quantity(m["flops"]["fit"]),
                quantity(m["flops"]["evaluate"]),
                duration(m["latency_seconds"]),
                tokens(m),
                quantity(m["peak_memory_bytes"], "B"),
                quantity(m["disk_bytes"], "B"),
            ],
        }
        for label, m in ((label, methods[label]) for label in order)
    ]


COST_HEADINGS = (
    ("trained parameters", ""),
    ("fit", "with the search for hyperparameters"),
    ("tokens trained", "with the search"),
    ("FLOPs, fit", ""),
    ("FLOPs, test", "all test examples"),
    ("latency", "median of one answer alone"),
    ("tokens an answer", "read + written"),
    ("peak memory", ""),
    ("on disk", ""),
)


def _matrix(verdict: Verdict, scale: Scale) -> list[Record]:
    """Row minus column, for all pairs, methods in order of rank."""
    labels = [row.label for row in verdict.rows]
    rows = []
    for first in labels:
        cells = []
        for second in labels:
            try:
                pair = verdict.pair(first, second) if first != second else None
            except KeyError:
                pair = None
            if pair is None:
                cells.append({"text": "" if first == second else "n/a", "kind": "same", "title": ""})
                continue
            kind = "open" if not pair.decided else "better" if pair.better == first else "worse"
            span = f"{scale.signed(pair.low)} to {scale.signed(pair.high)}"
            gap = f"{scale.points(pair.difference)} ({span})"
            title = f"{first} {MINUS} {second}: {gap}, p {p_value(pair.p_holm)} after Holm"
            cells.append(
                {
                    "text": scale.signed(pair.difference).removeprefix("+" if len(labels) > 12 else ""),
                    "kind": kind,
                    "title": title,
                }
            )
        rows.append({"label": first, "cells": cells})
    return rows


def _pair_rows(verdict: Verdict, scale: Scale, *, decided: bool) -> list[Record]:
    rank = {row.label: i for i, row in enumerate(verdict.rows)}
    pairs = [
        verdict.pair(*sorted((p.first, p.second), key=rank.__getitem__)) for p in verdict.pairs if p.decided == decided
    ]
    pairs.sort(key=lambda p: (rank[p.first], rank[p.second]))
    return [
        {
            "first": p.first,
            "second": p.second,
            "difference": scale.signed(p.difference),
            "interval": f"{scale.signed(p.low)} to {scale.signed(p.high)}",
            "p": p_value(p.p),
            "p_holm": p_value(p.p_holm),
            "more": f"{p.more_examples:,}" if p.more_examples is not None else "–",
            "plan": f"{p.plan[1]} seeds, {p.plan[0]:,} examples" if p.plan else "–",
        }
        for p in pairs
    ]


def _points(
    verdict: Verdict, scale: Scale, x: Callable[[str], float | None], unit: Callable[[float], str]
) -> list[Any]:
    points = []
    for number, row in enumerate(verdict.rows, 1):
        value = x(row.label)
        if value is not None:
            title = f"{row.label}: {scale.score(row.value)} at {unit(value)}"
            name = str(number) if len(verdict.rows) > NAMED else row.label
            points.append(
                svg.Point(row.label, value, row.value, row.low, row.high, row.label in verdict.contenders, title, name)
            )
    return points


def _front(points: Sequence[svg.Point], higher: bool) -> list[str]:
    sign = 1 if higher else -1
    return [
        p.label
        for p in points
        if not any(sign * q.y >= sign * p.y and q.x <= p.x and (sign * q.y > sign * p.y or q.x < p.x) for q in points)
    ]


def _quality_plots(verdict: Verdict, methods: dict[str, Record], scale: Scale) -> list[Record]:
    def tokens(label: str) -> float | None:
        found = methods[label]["tokens_per_answer"]
        return None if found["prompt"] is None or found["generated"] is None else found["prompt"] + found["generated"]

    def fit(label: str) -> float | None:
        seconds = methods[label]["seconds"]["fit"]
        # what takes no time to speak of is at zero, not orders of magnitude apart on a logarithmic axis
        return 0.0 if seconds is not None and seconds < 0.1 else seconds

    def total(label: str) -> float | None:
        return verdict.row(label).cost_flops

    kinds: tuple[tuple[str, str, str, Callable[[str], float | None], Callable[[float], str]], ...] = (
        ("fit", "Training time", "Training time with search", fit, duration),
        ("parameters", "Trained parameters", "Trained parameters", lambda m: methods[m]["trainable_parameters"], plain),
        ("tokens", "Tokens an answer", "Tokens read and written for an answer", tokens, plain),
        ("flops", "Compute", "FLOPs for fitting and 1,000 answers", total, quantity),
        ("latency", "Latency", "Time for one answer alone", lambda m: methods[m]["latency_seconds"], duration),
    )
    plots = []
    for key, title, x_name, value, unit in kinds:
        points = _points(verdict, scale, value, unit)
        if points:
            drawn = svg.scatter(
                points,
                x_name=x_name,
                y_name=_y_name(scale),
                x_unit=unit,
                y_factor=scale.factor,
                front=_front(points, scale.higher_is_better),
                better="better: up and left" if scale.higher_is_better else "better: down and left",
            )
            plots.append({"key": key, "title": title, "svg": Markup(drawn)})
    return plots


def _y_name(scale: Scale) -> str:
    return f"{scale.name}, {scale.unit}" if scale.unit else scale.name


def _forgetting_rows(verdict: Verdict, methods: dict[str, Record]) -> list[Record]:
    """The numbers behind the plots, methods in order of rank."""
    rows = []
    for row in verdict.rows:
        found = methods[row.label]["forgetting"]
        values = [fixed(found["kl"]), fixed(found["bits_per_byte_change"], sign=True), fixed(found["bits_per_byte"])]
        rows.append({"label": row.label, "leading": row.label in verdict.contenders, "values": values})
    return rows


def _forgetting_plots(verdict: Verdict, methods: dict[str, Record], scale: Scale) -> list[Record]:
    kinds = (
        ("kl", "KL to the base on general prompts, nats a token", False, lambda v: f"{v:.3g}"),
        ("bits_per_byte_change", "Change on a general text, bits a byte", True, lambda v: f"{v:+.3g}"),
    )
    plots = []
    for key, name, signed, unit in kinds:

        def value(label: str, key: str = key) -> float | None:
            found = methods[label]["forgetting"][key]
            return None if found is None else float(found)

        points = _points(verdict, scale, value, unit)
        if points:
            drawn = svg.scatter(
                points, x_name=name, y_name=_y_name(scale), x_unit=unit, y_factor=scale.factor, signed=signed
            )
            plots.append({"title": name, "svg": Markup(drawn)})
    return plots


def _curves(comparison: Comparison, order: Sequence[str]) -> list[Markup]:
    lines: dict[str, tuple[list[svg.Line], list[svg.Line]]] = {}
    for label in order:
        train = [_curve(cell.curve, "loss") for cell in comparison.cells[label].values()]
        validation = [_curve(cell.curve, "validation_loss") for cell in comparison.cells[label].values()]
        if any(train) or any(validation):
            lines[label] = ([t for t in train if t], [v for v in validation if v])
    points = [p for pair in lines.values() for kind in pair for one in kind for p in one]
    if not points:
        return []
    losses = sorted(loss for _, loss in points)
    span = (losses[0], losses[-1] if losses[-1] > losses[0] else losses[0] + 1.0)
    tokens = max(t for t, _ in points)
    return [Markup(svg.curves(label, t, v, tokens, span)) for label, (t, v) in lines.items()]


def _curve(lines: Sequence[Record], key: str) -> list[tuple[float, float]]:
    """(tokens, loss); long curves as means of runs of neighbours, so that a page of many cells stays small."""
    points = [(float(x.get("tokens", 0)), float(x[key])) for x in lines if x.get(key) is not None]
    points = [p for p in points if p[1] == p[1] and abs(p[1]) != float("inf")]
    size = -(-len(points) // MAX_CURVE)
    chunks = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(t for t, _ in c) / len(c), sum(v for _, v in c) / len(c)) for c in chunks]


def _groups(order: Sequence[str], methods: dict[str, Record], comparison: Comparison) -> Record | None:
    names = list(methods[order[0]]["groups"])
    metric = comparison.grouped
    if not names or metric is None:
        return None
    scale = scale_of(metric)
    rows = []
    for name in names:
        found = [methods[label]["groups"][name] for label in order]
        rows.append(
            {
                "name": name,
                "count": found[0]["examples"],
                "cells": [
                    {
                        "text": scale.number(f["value"]),
                        "title": f"{label}, {name}: {scale.number(f['low'])} to {scale.score(f['high'])}",
                        "share": round(100 * f["value"]),
                    }
                    for label, f in zip(order, found, strict=True)
                ],
            }
        )
    return {"metric": scale.name, "rows": rows}

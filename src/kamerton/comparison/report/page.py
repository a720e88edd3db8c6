"""`report.html`: one page that holds its style, its script, its plots and its data, and asks the network for nothing.

This module prepares what the template shows (`plots.py` the plots); the template only arranges. All text of users and
models is escaped: by Jinja in the markup, by `script_json` in the data; a content security policy lets nothing but our
own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kamerton.comparison.report.answers import script_json, side_by_side
from kamerton.comparison.report.data import Comparison, Record, scale_of
from kamerton.comparison.report.findings import findings, marks
from kamerton.comparison.report.plots import NAMED, curves, forest, forest_axis, forgetting_plots, quality_plots
from kamerton.comparison.units import MINUS, Scale, duration, fixed, p_value, plain, quantity
from kamerton.comparison.verdict import Verdict

SECTIONS = ("base", "task", "methods", "budget", "seeds", "versions", "machine", "processes")
"""Of the settings, in "how to repeat this"; what else there is follows together."""


def piece(name: str) -> str:
    """A file of this package: template, style, script."""
    return (files("kamerton.comparison.report") / name).read_text(encoding="utf-8")


def environment() -> Environment:
    """Templates of this package, everything escaped."""
    loader = FunctionLoader(piece)
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader)


def filled(package: str, name: str, /, **values: Any) -> str:
    """A page of its own: a template of another package with values in it, in the style of this one (`style`)."""
    source = (files(package) / name).read_text(encoding="utf-8")
    return environment().from_string(source).render(style=Markup(piece("style.css")), **values)


def policy() -> str:
    """The content security policy of the page: nothing but our own script runs, nothing is loaded."""
    digest = base64.b64encode(hashlib.sha256(piece("page.js").encode()).digest()).decode()
    script = f"script-src 'sha256-{digest}'"
    return f"default-src 'none'; style-src 'unsafe-inline'; {script}; base-uri 'none'; form-action 'none'"


def page(comparison: Comparison, verdict: Verdict | None, found: Record) -> str:
    """The page as text. `found`: what `results` gave for the same comparison and verdict."""
    view = {
        "comparison": comparison,
        "settings": comparison.settings,
        "found": found,
        "verdict": verdict,
        "facts": facts(comparison, found),
        "notes": _notes(comparison, verdict),
        "style": Markup(piece("style.css")),
        "script": Markup(piece("page.js")),
        "policy": Markup(policy()),
        "repeat": _repeat(comparison),
        "order": [row.label for row in verdict.rows] if verdict else [],
    }
    if verdict and verdict.rows and comparison.deciding:
        view |= _scored(comparison, verdict, found, scale_of(comparison.deciding))
    return environment().get_template("template.html.j2").render(view)


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
        "forest_axis": forest_axis(verdict, scale),
        "costs": _cost_rows(order, methods),
        "cost_headings": COST_HEADINGS,
        "matrix": _matrix(verdict, scale),
        "undecided": _pair_rows(verdict, scale, decided=False),
        "decided": _pair_rows(verdict, scale, decided=True),
        "quality": quality_plots(verdict, methods, scale),
        "curves": curves(comparison, order),
        "forgetting": forgetting_plots(verdict, methods, scale),
        "forgot": _forgetting_rows(verdict, methods),
        "marks": {label: said for label in order if (said := marks(comparison, label))},
        "findings": findings(comparison, order),
        "groups": _groups(order, methods, comparison),
        "answers": Markup(script_json(side_by_side(comparison, order))),
    }


def _score_rows(verdict: Verdict, methods: dict[str, Record], scale: Scale) -> list[Record]:
    return [
        {
            "row": row,
            "score": scale.score(row.value),
            "interval": f"{scale.number(row.low)} to {scale.number(row.high)}",
            "seeds": "all alike" if row.deterministic else f"{len(row.seeds)}",
            "deviation": "" if row.deterministic or row.conditional else scale.number(row.seed_deviation),
            "others": {name: f"{m['value']:.3f}" for name, m in methods[row.label]["metrics"].items()},
            "forest": forest(row, verdict, scale),
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


def _forgetting_rows(verdict: Verdict, methods: dict[str, Record]) -> list[Record]:
    """The numbers behind the plots, methods in order of rank."""
    rows = []
    for row in verdict.rows:
        found = methods[row.label]["forgetting"]
        values = [fixed(found["kl"]), fixed(found["bits_per_byte_change"], sign=True), fixed(found["bits_per_byte"])]
        rows.append({"label": row.label, "leading": row.label in verdict.contenders, "values": values})
    return rows


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

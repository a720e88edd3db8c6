"""The report of a run: documents and bytes in and out of every step, and why; domains and their shares; table and page.

The numbers add up: a step's documents in are those out and those rejected (a mix that repeats documents adds some), and
the next step gets what it let out. Bytes that are neither out nor rejected were cut: markup, repeated lines, spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from kamerton.text.corpus.files import Input
from kamerton.text.corpus.recipe import CorpusRecipe

Results = dict[str, Any]


def summary(
    recipe: CorpusRecipe, steps: list[dict[str, Any]], files: list[Input], documents: str, seconds: float
) -> Results:
    """Everything that the report says, as plain values."""
    rows = [{**step, **_sum(step["domains"].values())} for step in steps]
    last = steps[-1]["domains"]
    sizes = {name: counts["out"] for name, counts in last.items()}
    total = sum(size for _, size in sizes.values()) or 1
    first = steps[0]["domains"]
    return {
        "name": recipe.name,
        "documents": documents,
        "files": len(files),
        "file_bytes": sum(file.size for file in files),
        "seconds": round(seconds, 3),
        "steps": rows,
        "domains": {
            name: {"in": first[name]["in"], "out": sizes.get(name, [0, 0]), "share": sizes.get(name, [0, 0])[1] / total}
            for name in first
        },
    }


def _sum(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"in": [0, 0], "out": [0, 0], "added": [0, 0], "rejected": {}, "changed": 0, "notes": {}}
    for part in parts:
        for key in ("in", "out", "added"):
            total[key] = [a + b for a, b in zip(total[key], part.get(key, [0, 0]), strict=True)]
        total["changed"] += part["changed"]
        for reason, pair in part["rejected"].items():
            before = total["rejected"].get(reason, [0, 0])
            total["rejected"][reason] = [a + b for a, b in zip(before, pair, strict=True)]
        for note, count in part["notes"].items():
            total["notes"][note] = total["notes"].get(note, 0) + count
    # the most frequent first; equal ones by name, so that the same run writes the same report
    total["rejected"] = dict(sorted(total["rejected"].items(), key=lambda item: (-item[1][0], item[0])))
    total["notes"] = dict(sorted(total["notes"].items(), key=lambda item: (-item[1], item[0])))
    return total


def size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def why(step: Mapping[str, Any], most: int = 3) -> str:
    """A step's reasons in a few words."""
    parts = [f"{reason} {pair[0]:,}" for reason, pair in step["rejected"].items()]
    if len(parts) > most:
        parts = [*parts[:most], f"{len(parts) - most} more reasons"]
    if step["added"][0]:
        parts.append(f"copies added {step['added'][0]:,}")
    return "; ".join(parts)


def table(results: Results) -> list[list[str]]:
    """Rows of the terminal's table, the header first."""
    rows = [["step", "documents in", "rejected", "out", "bytes in", "bytes out", "why"]]
    for step in results["steps"]:
        lost = sum(pair[0] for pair in step["rejected"].values())
        rows.append(
            [step["step"], f"{step['in'][0]:,}", f"{lost:,}", f"{step['out'][0]:,}", size(step["in"][1]),
             size(step["out"][1]), why(step)]
        )  # fmt: skip
    return rows


def notes(results: Results) -> Iterator[str]:
    """What happened to documents that stayed."""
    for step in results["steps"]:
        told = [f"{step['changed']:,} documents changed"] if step["changed"] else []
        told += [f"{note}: {count:,}" for note, count in step["notes"].items()]
        if told:
            yield f"{step['step']}: {'; '.join(told)}"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --bar: #4a7ebb }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; margin: 1rem 0; width: 100% }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.bar {{ display: block; height: .5rem; background: var(--bar); min-width: 1px }}
small {{ opacity: .75 }}
pre {{ overflow-x: auto; padding: .7rem; border: 1px solid var(--line) }}
</style>
<h1>{title}</h1>
<p>{told}</p>
<h2>Steps</h2><div class="wide">{steps}</div>
<h2>Domains</h2><div class="wide">{domains}</div>
</html>
"""


def sentence(results: Results) -> str:
    """The run in one line."""
    first, last = results["steps"][0], results["steps"][-1]
    return (
        f"{results['files']:,} files ({size(results['file_bytes'])}), {first['in'][0]:,} documents in; "
        f"{last['out'][0]:,} documents ({size(last['out'][1])}) out, in {results['seconds']:.1f} s"
    )


def page(results: Results) -> str:
    """The report as one page without anything from elsewhere."""
    head = [("step", ""), *((name, "n") for name in ("documents in", "rejected", "out", "bytes in", "bytes out"))]
    rows = []
    for step in results["steps"]:
        lost = sum(pair[0] for pair in step["rejected"].values())
        cells = [f"{step['in'][0]:,}", f"{lost:,}", f"{step['out'][0]:,}", size(step["in"][1]), size(step["out"][1])]
        reasons = "<br>".join(
            [f"{escape(r)}: {p[0]:,} <small>({size(p[1])})</small>" for r, p in step["rejected"].items()]
            + ([f"<small>copies added: {step['added'][0]:,}</small>"] if step["added"][0] else [])
            + ([f"<small>changed: {step['changed']:,}</small>"] if step["changed"] else [])
            + [f"<small>{escape(note)}: {count:,}</small>" for note, count in step["notes"].items()]
        )
        numbers = "".join(f"<td class=n>{cell}</td>" for cell in cells)
        link = f'<a href="{escape(step["rejected_file"])}">{escape(step["step"])}</a>' if lost else escape(step["step"])
        rows.append(f"<tr><td>{link}</td>{numbers}<td>{reasons}</td></tr>")
    steps = _html_table([*head, ("why", "")], rows)
    rows = [
        f"<tr><td>{escape(name)}</td><td class=n>{d['in'][0]:,}</td><td class=n>{d['out'][0]:,}</td>"
        f"<td class=n>{size(d['out'][1])}</td><td class=n>{d['share']:.1%}</td>"
        f'<td style="width:30%"><span class=bar style="width:{d["share"] * 100:.1f}%"></span></td></tr>'
        for name, d in results["domains"].items()
    ]
    domains = _html_table(
        [("domain", ""), ("documents in", "n"), ("out", "n"), ("bytes out", "n"), ("share of bytes", "n"), ("", "")],
        rows,
    )
    title = escape(f"Corpus {results['name']}")
    return _PAGE.format(title=title, told=escape(sentence(results)), steps=steps, domains=domains)


def _html_table(head: list[tuple[str, str]], rows: list[str]) -> str:
    cells = "".join(f"<th class={kind or 'l'}>{escape(name)}</th>" for name, kind in head)
    return f"<table><tr>{cells}</tr>{''.join(rows)}</table>"

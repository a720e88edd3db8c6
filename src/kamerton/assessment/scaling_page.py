"""What `kamerton eval --scaling` writes: `scaling.json`, `samples.jsonl`, and the page `scaling.html` with its plot."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from kamerton.assessment.scaling import ANY, ONE
from kamerton.assessment.write import finite
from kamerton.comparison.report import svg
from kamerton.comparison.report.page import filled
from kamerton.comparison.units import Scale, p_value, plain, tick
from kamerton.files import write_json, write_jsonl, write_text
from kamerton.outcome import Outcome

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Scaling(Outcome):
    """What was measured of one model.

    Attributes:
        folder: holds the files.
        results: what is in `scaling.json`.
    """

    page: ClassVar[str] = "scaling.html"

    @property
    def sentences(self) -> list[str]:
        """What more tokens bring, in words."""
        return sentences(self.results)

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def write_scaling(folder: Path, result: dict[str, Any], samples: list[dict[str, Any]]) -> Scaling:
    """Write all files, each whole or not at all; the page last."""
    write_jsonl(folder / "samples.jsonl", samples)
    write_json(folder / "scaling.json", finite(result))
    read = json.loads((folder / "scaling.json").read_text(encoding="utf-8"))  # what was written is what is shown
    write_text(folder / "scaling.html", scaling_page(read))
    return Scaling(folder, read)


def scaling_page(result: Result) -> str:
    """The page as text, from the result as `scaling.json` has it."""
    return filled(
        "kamerton.assessment", "scaling.html.j2",
        result=result, told=sentences(result), scale=_scale(result), plot=Markup(plot(result)),
        p_value=p_value, plain=plain, what=_what,
    )  # fmt: skip


def _scale(result: Result) -> Scale:
    low, high = (x if x is not None else math.inf for x in result["range"])
    return Scale(result["metric"], low, high, result["higher_is_better"])


def _what(name: str) -> str:
    """What the numbers of a curve count."""
    return "budget" if name.startswith("thinking") else "answers"


def sentences(result: Result) -> list[str]:
    """What more samples and more thought bring, and from where on they bring nothing that can be told apart."""
    scale, out = _scale(result), []
    for g in sorted(result["gains"], key=lambda g: g["p_holm"]):
        unit = "answers" if _what(g["curve"]) == "answers" else "tokens of thought"
        better = (g["value"] > 0) == scale.higher_is_better and g["p_holm"] < 0.05
        worse = g["p_holm"] < 0.05 and not better
        how = "better" if better else "worse" if worse else "not told apart from"
        change = f"{scale.name} {scale.number(g['before'])} → {scale.score(g['after'])}"
        difference = f"{scale.points(g['value'])}, 95% interval {scale.signed(g['low'])} to {scale.signed(g['high'])}"
        name = g["curve"][0].upper() + g["curve"][1:]
        joined = f"{how} {g['from']}" if how.endswith("from") else f"{how} than {g['from']}"
        p = p_value(g["p_holm"])
        p = f"p {p}" if p.startswith("<") else f"p = {p}"
        text = f"{name}: {g['to']} {unit} are {joined} ({change}; {difference}; {p})"
        if (better or worse) and g["enough"] != g["to"]:
            text += f"; from {g['enough']} on nothing more can be told apart"
        out.append(text + ".")
    return out


def lines(result: Result) -> Iterator[str]:
    """The table for a terminal: each curve with value, interval and tokens."""
    scale = _scale(result)
    yield f"{result['questions']} questions of {result['split']}, {scale.name}; tokens written for a question"
    for name, points in result["curves"].items():
        yield name
        for p in points:
            span = f"[{scale.number(p['low'])}, {scale.number(p['high'])}]"
            yield f"  {_what(name)} {p['at']:<6} {scale.score(p['value']):>8}   {span:16} {p['tokens']:>9.1f} tokens"


def plot(result: Result) -> str:
    """The metric against tokens, a line for each curve, with 95% intervals; the upper bound is dashed."""
    scale, curves = _scale(result), result["curves"]

    def draw(width: int, height: int, cls: str) -> str:
        narrow = width < 500
        left, right, top, bottom = 48.0, width - (118.0 if narrow else 190.0), 24.0, height - 46.0
        points = [p for line in curves.values() for p in line]
        x = svg.cost_axis([p["tokens"] for p in points], left + 10, right - 6, tick, 4 if narrow else 7)
        y = svg.linear([p[k] * scale.factor for p in points for k in ("low", "high")], bottom, top)
        told = "tokens written for a question" + (" (logarithmic)" if x.logarithmic else "")
        parts = svg.frame(x, y, left, right, bottom, told, scale.name + (", %" if scale.percent else ""))
        ends: list[tuple[float, float, str]] = []
        for i, (name, line) in enumerate(curves.items()):
            placed = [
                (x.place(p["tokens"]), [y.place(p[k] * scale.factor) for k in ("value", "low", "high")]) for p in line
            ]
            kind = "front" if name == ANY else "curve validation" if i == 1 else "curve train"
            if len(placed) > 1:
                parts += [svg.tag("path", d="M" + "L".join(f"{a:.1f} {b[0]:.1f}" for a, b in placed), cls=kind)]
            for p, (px, py) in zip(line, placed, strict=True):
                parts += [_dot(p, name, px, py, leading=i == 1, scale=scale)]
            ends.append((placed[-1][1][0], placed[-1][0], name))
        parts += _names(sorted(ends), right + 8, narrow=narrow)
        return svg.picture(width, height, f"{scale.name} against tokens", parts, cls)

    return svg.both_sizes(draw)


def _dot(p: Result, name: str, px: float, py: Sequence[float], *, leading: bool, scale: Scale) -> str:
    told = f"{name}, {p['at']}: {scale.score(p['value'])} for {p['tokens']:.0f} tokens"
    mark = svg.tag("title", escape(told)) + svg.line(px, py[1], px, py[2], "whisker")
    mark += svg.tag("circle", cx=float(px), cy=float(py[0]), r=3.5)
    return svg.tag("g", mark, cls="point leading" if leading else "point")


def _names(ends: Sequence[tuple[float, float, str]], at: float, *, narrow: bool) -> list[str]:
    """Every curve's name at the height of its end, with a line to it where it is far; no name covers another."""
    parts, place, most = [], -math.inf, 16 if narrow else 27
    for y, x, name in ends:
        place = max(y + 4, place + 14)
        own = _short(name)
        if math.hypot(at - x, place - 4 - y) > 40:
            parts.append(svg.line(x + 6, y, at - 3, place - 4, "leader"))
        parts.append(svg.text(at, place, own if len(own) <= most else own[: most - 1] + "…", cls="name"))
    return parts


def _short(name: str) -> str:
    """A curve's name as it stands beside its end."""
    again = re.fullmatch(r"thinking budget, going on up to (\d+) times", name)
    if again:
        return f"thinking, Wait × {again[1]}"
    known = {ONE: "one answer", ANY: "any right", "thinking budget": "thinking"}
    return known.get(name, name.replace("best of n by", "best by"))

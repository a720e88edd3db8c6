"""Plots of a grid: loss against compute, IsoFLOP profiles, the best size and tokens, and how far the law is off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from kamerton.base.show import human
from kamerton.comparison.report import svg
from kamerton.comparison.units import minus
from kamerton.recipe_scaling import COLUMN

Result = Mapping[str, Any]
Unit = Callable[[float], str]


@dataclass(frozen=True)
class Dot:
    """A point with what is said of it; `leading`: filled."""

    x: float
    y: float
    title: str
    leading: bool = False


@dataclass(frozen=True)
class Series:
    """A line with its name at its end, its dots, and the band around it as (x, low, high)."""

    name: str
    line: Sequence[tuple[float, float]]
    kind: str = "curve train"
    dots: Sequence[Dot] = ()
    band: Sequence[tuple[float, float, float]] = ()


def log_axis(values: Sequence[float], start: float, end: float, unit: Unit, count: int) -> svg.Axis:
    """A logarithmic axis over values above 0, with about `count` ticks at round numbers."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = (high - low) * 0.04 or 0.1
    low, high = low - margin, high + margin
    place = lambda v: start + (math.log10(v) - low) / (high - low) * (end - start)  # noqa: E731
    powers = range(math.floor(low), math.ceil(high) + 1)
    if high - low >= count:
        step = math.ceil((high - low) / count)
        found = [10.0**k for k in powers if k % step == 0]
    elif high - low > 0.7:
        steps = (1, 2, 5) if high - low < count / 2 else (1, 3) if high - low < count / 1.5 else (1,)
        found = [m * 10.0**k for k in powers for m in steps]
    else:  # less than a power of ten: ticks of a plain axis
        found = svg.nice_ticks(10**low, 10**high, count)
    return svg.Axis(place, [(v, unit(v)) for v in found if low <= math.log10(v) <= high], True)


def draw(
    title: str, series: Sequence[Series], *, x_name: str, y_name: str, x_unit: Unit, y_unit: Unit, plain_y: bool = False
) -> str:
    """A plot over logarithmic axes; `plain_y`: the vertical one is linear."""

    def at_size(width: int, height: int, cls: str) -> str:
        narrow = width < 500
        left, right, top, bottom = 54.0, width - (64.0 if narrow else 92.0), 24.0, height - 46.0
        xs = [v for s in series for v in (*(p[0] for p in s.line), *(d.x for d in s.dots), *(b[0] for b in s.band))]
        ys = [v for s in series for v in (*(p[1] for p in s.line), *(d.y for d in s.dots))]
        ys += [v for s in series for b in s.band for v in b[1:]]
        x = log_axis(xs, left, right, x_unit, 4 if narrow else 7)
        y = svg.linear(ys, bottom, top, 5) if plain_y else log_axis(ys, bottom, top, y_unit, 6)
        scale = " (logarithmic)" if plain_y else " (both axes logarithmic)"
        parts = svg.frame(x, y, left, right, bottom, x_name + scale, y_name)
        ends = []
        for s in series:
            if s.band:
                there = [(x.place(a), y.place(low)) for a, low, _ in s.band]
                back = [(x.place(a), y.place(high)) for a, _, high in reversed(s.band)]
                parts.append(svg.tag("path", d=_path([*there, *back]) + "Z", cls="band"))
        for s in series:
            placed = [(x.place(a), y.place(b)) for a, b in s.line]
            if len(placed) > 1:
                parts.append(svg.tag("path", svg.tag("title", escape(s.name)), d=_path(placed), cls=s.kind))
            for dot in s.dots:
                mark = svg.tag("title", escape(dot.title))
                mark += svg.tag("circle", cx=float(x.place(dot.x)), cy=float(y.place(dot.y)), r=3.5)
                parts.append(svg.tag("g", mark, cls="point leading" if dot.leading else "point"))
            last = placed or [(x.place(d.x), y.place(d.y)) for d in s.dots]
            if s.name and last:
                ends.append((last[-1][1], last[-1][0], s.name))
        below = -math.inf
        for py, px, name in sorted(ends):  # no name covers another
            below = max(py + 4, below + 13)
            parts.append(svg.text(min(px, right) + 7, below, name, cls="name"))
        return svg.picture(width, height, title, parts, cls)

    return svg.both_sizes(at_size)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def size_of(row: Result, result: Result) -> float:
    """N of a run as it is counted."""
    return float(row[COLUMN[result["count"]]])


def decimals(value: float) -> str:
    """A loss on an axis."""
    return f"{value:.3g}"


def plots(result: Result) -> list[tuple[str, str, str]]:
    """(title, plot, what is seen) for the page."""
    rows = [r for r in result["runs"] if r["loss"] is not None]
    out = [("Loss against compute", _compute(result, rows), _SEEN["compute"])]
    if result["profiles"]:
        out.append(("IsoFLOP profiles", _profiles(result), _SEEN["profiles"]))
    if len(result["optimum"]) > 1:
        out.append(("The best size", _best(result, "size"), _SEEN["best"]))
        out.append(("The best token count", _best(result, "tokens"), _SEEN["best"]))
    if any(r["error"] is not None for r in rows):
        out.append(("How far the law is off", _errors(rows), _SEEN["errors"]))
    return out


_SEEN = {
    "compute": "Held-out loss of each run against its training FLOPs; a line for each size. In colour: the least loss "
    "that the law foretells for that compute.",
    "profiles": "Loss at equal compute against size, with parabolas; filled where a parabola has its lowest point.",
    "best": "By the law, with its 95% band, up to a hundred times the compute of the largest run; filled: the lowest "
    "points of the IsoFLOP profiles.",
    "errors": "Measured loss less the law's, in per cent of it.",
}


def _compute(result: Result, rows: Sequence[Result]) -> str:
    series = []
    for size in dict.fromkeys(r["size"] for r in rows):
        own = sorted((r for r in rows if r["size"] == size), key=lambda r: r["flops"])
        dots = [Dot(r["flops"], r["loss"], _told(r)) for r in own]
        line = [(r["flops"], r["loss"]) for r in own] if len({r["seed"] for r in own}) == 1 else []
        series.append(Series(size, line, dots=dots))
    best = [r for r in result["optimum"] if r["beyond"] <= 10]
    if len(best) > 1:
        band = [(r["flops"], r["loss"]["low"], r["loss"]["high"]) for r in best if r["loss"]["low"] is not None]
        line = [(r["flops"], r["loss"]["value"]) for r in best]
        series.append(Series("best by the law", line, "curve validation", band=band))
    return draw(
        "Loss against compute", series, x_name="training FLOPs", y_name="held-out loss, nats a token", x_unit=powers,
        y_unit=decimals,
    )  # fmt: skip


def _told(row: Result) -> str:
    bits = "" if row["bits_per_byte"] is None else f", {row['bits_per_byte']:.3f} bits per byte"
    return f"{row['size']}, {human(row['tokens'])} tokens: {row['loss']:.3f} nats a token{bits}"


def _profiles(result: Result) -> str:
    series = []
    for p in result["profiles"]:
        sizes, name = p["sizes"], powers(p["flops"])
        dots = [Dot(n, y, f"{name} FLOPs, N {human(n)}: {y:.3f}") for n, y in zip(sizes, p["losses"], strict=True)]
        if p["best"] is not None:
            dots.append(Dot(p["best"], p["loss"], f"{name} FLOPs: best N {human(p['best'])}", leading=True))
        at = np.linspace(math.log(sizes[0]), math.log(sizes[-1]), 40)
        line = list(zip(np.exp(at).tolist(), np.exp(np.polyval(p["curve"], at)).tolist(), strict=True))
        series.append(Series(name, line, dots=dots))
    return draw(
        "IsoFLOP profiles", series, x_name="N, parameters", y_name="held-out loss, nats a token", x_unit=human,
        y_unit=decimals,
    )  # fmt: skip


def _best(result: Result, what: str) -> str:
    rows = result["optimum"]
    band = [(r["flops"], r[what]["low"], r[what]["high"]) for r in rows if r[what]["low"] is not None]
    line = [(r["flops"], r[what]["value"]) for r in rows]
    series = [Series("law", line, "curve validation", band=band)]
    found = [p for p in result["profiles"] if p["best"] is not None]
    if what == "size" and found:
        dots = [Dot(p["flops"], p["best"], f"{powers(p['flops'])} FLOPs: {human(p['best'])}", True) for p in found]
        series.append(Series("IsoFLOP" if len(dots) > 1 else "", [], dots=dots))
    name = "N, parameters" if what == "size" else "D, tokens"
    return draw(
        f"Best {name} against compute", series, x_name="training FLOPs", y_name=name, x_unit=powers, y_unit=human
    )


def _errors(rows: Sequence[Result]) -> str:
    series = [Series("", [(min(r["flops"] for r in rows), 0.0), (max(r["flops"] for r in rows), 0.0)], "front")]
    for size in dict.fromkeys(r["size"] for r in rows):
        own = sorted((r for r in rows if r["size"] == size), key=lambda r: r["flops"])
        dots = [Dot(r["flops"], 100 * r["error"], f"{_told(r)}; law {r['law']:.3f}") for r in own]
        series.append(Series(size, [(d.x, d.y) for d in dots], dots=dots))
    return draw(
        "How far the law is off", series, x_name="training FLOPs", y_name="measured less law, %", x_unit=powers,
        y_unit=lambda v: minus(f"{v:g}"), plain_y=True,
    )  # fmt: skip


def powers(value: float, digits: int = 3) -> str:
    """FLOPs: 3.38e10."""
    front, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{front.rstrip('0').rstrip('.') if '.' in front else front}e{int(power)}"

"""Plots as inline SVG: text stays text, colours come from the page's style (light and dark), nothing is loaded.

Every plot comes in two sizes, a wide one and one for phones, that the page's style chooses between; so letters keep
their size. Labels of points are placed greedily where they cover nothing, with a line to their point if that is far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from kamerton.comparison.units import duration, minus, tick

LETTER, BOLD = 6.7, 7.4  # width of a letter at 12 px, on the wide side: fonts differ
DURATIONS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
WIDE, NARROW = (720, 430), (350, 350)


@dataclass(frozen=True)
class Point:
    """One method in a scatter plot; `low` and `high` are its interval in y."""

    label: str
    x: float
    y: float
    low: float
    high: float
    leading: bool
    title: str
    name: str = ""  # shown beside the point; the label where it is empty


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels with its ticks (value, text)."""

    place: Callable[[float], float]
    ticks: list[tuple[float, str]]
    logarithmic: bool = False
    gap: float | None = None


def time_ticks(high: float, count: int = 5) -> list[float]:
    """From 0 to `high` seconds in steps that clocks have; as numbers below five seconds and above five days."""
    step = next((s for s in DURATIONS if s * count >= high), 0)
    return [float(i * step) for i in range(int(high / step) + 1)] if step and high > 5 else nice_ticks(0.0, high, count)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high], about `count` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(math.floor(high / step + 1e-9) - first + 1)]


def number(value: float, step: float = 0.0) -> str:
    """A tick: as many decimals as its step needs."""
    if step and abs(value) < 10_000:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
            decimals += 1
        return minus(f"{value:.{decimals}f}") if abs(value) > 1e-12 else "0"
    return tick(value)


def linear(values: Sequence[float], start: float, end: float, count: int = 5, *, zero: bool = False) -> Axis:
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        pad = abs(high) * 0.5 or 1.0
        low, high = low - (0 if zero and low == 0 else pad), high + pad
    margin = (high - low) * 0.04
    low, high = (low if zero and low == 0 else low - margin), high + margin
    ticks = nice_ticks(low, high, count)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    return Axis(lambda v: start + (v - low) / (high - low) * (end - start), [(t, number(t, step)) for t in ticks])


def cost_axis(values: Sequence[float], start: float, end: float, unit: Callable[[float], str], count: int = 6) -> Axis:
    """Logarithmic where values span more than a factor of 20; zeros then stand apart at the left, behind a gap."""
    positive = [v for v in values if v > 0]
    if len(positive) < 2 or max(positive) / min(positive) < 20:
        axis = linear(values, start, end, count, zero=True)
        at = time_ticks(max(values), count) if unit is duration else [t for t, _ in axis.ticks]
        return Axis(axis.place, [(t, unit(t)) for t in at])
    left, gap = start, None
    if any(v <= 0 for v in values):
        left, gap = start + 46, start + 27
    low, high = math.log10(min(positive)) - 0.12, math.log10(max(positive)) + 0.12
    place = lambda v: start + 8 if v <= 0 else left + (math.log10(v) - low) / (high - low) * (end - left)  # noqa: E731
    powers = range(math.ceil(low), math.floor(high) + 1)
    skip = max(1, math.ceil(len(powers) / count))
    ticks = [(10.0**k, unit(10.0**k)) for k in powers if k % skip == 0]
    if len(ticks) < 2:
        ticks = [(m * 10.0**k, unit(m * 10.0**k)) for k in range(math.floor(low), math.ceil(high)) for m in (1, 2, 5)]
        ticks = [t for t in ticks if low <= math.log10(t[0]) <= high]
    if gap is not None:
        ticks.insert(0, (0.0, "0"))
    return Axis(place, ticks, True, gap)


def tag(name: str, content: str = "", **attributes: Any) -> str:
    """One element; attribute names with underscores for hyphens, `cls` for class; content is taken as markup."""
    written = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>"


def _short(value: Any) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(x: float, y: float, content: str, **attributes: Any) -> str:
    return tag("text", escape(content), x=float(x), y=float(y), **attributes)


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), cls=cls)


def picture(width: int, height: int, name: str, parts: Iterable[str], cls: str) -> str:
    inside = tag("title", escape(name)) + "".join(parts)
    return tag("svg", inside, viewBox=f"0 0 {width} {height}", role="img", cls=cls)


def both_sizes(draw: Callable[[int, int, str], str]) -> str:
    return draw(*WIDE, "plot wide") + draw(*NARROW, "plot narrow")


def frame(x: Axis, y: Axis, left: float, right: float, bottom: float, x_name: str, y_name: str) -> list[str]:
    """Grid, ticks and names of two axes, under what is drawn into them."""
    parts = [text(0, 12, y_name, cls="axis-name")]
    for value, shown in y.ticks:
        parts += [line(left, y.place(value), right, y.place(value), "grid")]
        parts += [text(left - 7, y.place(value) + 4, shown, cls="tick", text_anchor="end")]
    for value, shown in x.ticks:
        at = x.place(value)
        parts += [line(at, bottom, at, bottom + 4, "tick-mark"), text(at, bottom + 18, shown, cls="tick mid")]
    parts += [line(left, bottom, right, bottom, "axis")]
    return [*parts, text(right, bottom + 38, x_name, cls="axis-name", text_anchor="end")]


def scatter(
    points: Sequence[Point],
    *,
    x_name: str,
    y_name: str,
    x_unit: Callable[[float], str],
    y_factor: float,
    front: Sequence[str] = (),
    better: str = "",
    signed: bool = False,
) -> str:
    """Quality (y, with intervals) against something (x). `front`: the Pareto front, drawn as dashed steps."""

    def draw(width: int, height: int, cls: str) -> str:
        left, right, top, bottom = 48.0, width - 14.0, 24.0, height - 46.0
        ys = [v for p in points for v in (p.low, p.high, p.y)]
        y = linear([v * y_factor for v in ys], bottom, top)
        xs = [p.x for p in points]
        narrow = width < 500
        count = 4 if narrow else 7
        if signed:
            base = linear(xs, left + 12, right - 12, count, zero=True)
            x = Axis(base.place, base.ticks)
        else:
            x = cost_axis(xs, left + 12, right - 12, x_unit, count)
        scale = " (logarithmic)" if x.logarithmic else ""
        parts = frame(x, y, left, right, bottom, x_name + scale, y_name)
        if x.gap is not None:
            parts += [tag("rect", x=x.gap - 3, y=bottom - 4, width=6, height=8, cls="gap")]
            parts += [line(x.gap + d - 2, bottom + 5, x.gap + d + 2, bottom - 5, "axis") for d in (-3, 3)]
        if better and not narrow:
            parts += [text(left, bottom + 38, better, cls="hint")]
        steps = sorted((p for p in points if p.label in front), key=lambda p: (p.x, p.y))
        if len(steps) > 1:
            path = "M" + "L".join(
                f"{x.place(b.x):.1f} {y.place(a.y * y_factor):.1f}L{x.place(b.x):.1f} {y.place(b.y * y_factor):.1f}"
                for a, b in zip([steps[0], *steps[:-1]], steps, strict=True)
            )
            parts += [tag("path", d=path, cls="front")]
        placed = [(x.place(p.x), y.place(p.y * y_factor), p) for p in points]
        for px, py, p in placed:
            mark = tag("title", escape(p.title))
            mark += line(px, y.place(p.low * y_factor), px, y.place(p.high * y_factor), "whisker")
            mark += tag("circle", cx=px, cy=py, r=4.5)
            parts += [tag("g", mark, cls="point leading" if p.leading else "point")]
        parts += _labels(placed, (left, 16.0, float(width), bottom))
        return picture(width, height, f"{y_name} against {x_name}", parts, cls)

    return both_sizes(draw)


def _labels(placed: Sequence[tuple[float, float, Point]], frame: tuple[float, float, float, float]) -> list[str]:
    """Greedy: the first of rings of places around a point where the label covers no label, no point and no frame."""
    taken = [(px - 6.0, py - 6.0, px + 6.0, py + 6.0) for px, py, _ in placed]
    parts = []
    # most crowded points choose first
    order = sorted(placed, key=lambda a: sum(math.hypot(a[0] - b[0], a[1] - b[1]) for b in placed))
    for px, py, p in order:
        name = p.name or p.label
        width = (BOLD if p.leading else LETTER) * len(name)
        best: tuple[float, float, float, str, tuple[float, float, float, float]] | None = None
        for ring in (9, 18, 30, 44, 60, 78, 98):
            for angle in (0, 180, 25, 335, 155, 205, 50, 310, 130, 230, 80, 280, 100, 260):
                dx, dy = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
                cx, cy = px + ring * dx, py + ring * dy
                anchor = "start" if dx > 0.3 else "end" if dx < -0.3 else "middle"
                left = {"start": cx, "end": cx - width, "middle": cx - width / 2}[anchor]
                box = (left - 1, cy - 7.0, left + width + 1, cy + 7.0)
                outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
                covered = sum(_overlap(box, other) for other in taken) + (1e6 if outside else 0.0)
                if best is None or covered < best[0] - 1e-9:
                    best = (covered, cx, cy, anchor, box)
            if best is not None and best[0] == 0.0:
                break
        if best is None or best[0] >= 1e6:
            continue
        _, cx, cy, anchor, box = best
        taken.append(box)
        nx, ny = min(max(px, box[0]), box[2]), min(max(py, box[1] + 3), box[3] - 3)
        if math.hypot(nx - px, ny - py) > 14:
            parts.append(line(px, py, nx, ny, "leader"))
        parts.append(text(cx, cy + 4, name, cls="name leading" if p.leading else "name", text_anchor=anchor))
    return parts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def forest(low: float, value: float, high: float, axis: Axis, width: int, leading: bool, title: str) -> str:
    """One row of the forest plot: the interval and its point on an axis that all rows share."""
    mark = tag("title", escape(title))
    parts = [line(axis.place(t), 0, axis.place(t), 26, "grid") for t, _ in axis.ticks]
    mark += line(axis.place(low), 13, axis.place(high), 13, "whisker")
    mark += "".join(line(axis.place(v), 9, axis.place(v), 17, "whisker") for v in (low, high))
    mark += tag("circle", cx=float(axis.place(value)), cy=13, r=4.5)
    parts.append(tag("g", mark, cls="point leading" if leading else "point"))
    return tag(
        "svg", "".join(parts), viewBox=f"0 0 {width} 26", width=width, height=26, cls=_size(width), aria_hidden="true"
    )


def forest_axis(axis: Axis, width: int) -> str:
    parts = [text(axis.place(t), 12, shown, cls="tick mid") for t, shown in axis.ticks]
    return tag(
        "svg", "".join(parts), viewBox=f"0 0 {width} 16", width=width, height=16, cls=_size(width), aria_hidden="true"
    )


def _size(width: int) -> str:
    return "forest wide" if width > 200 else "forest narrow"


def forest_scale(values: Sequence[float], width: int, factor: float) -> Axis:
    scaled = linear([v * factor for v in values], 12, width - 12, 4 if width > 200 else 2)
    return Axis(lambda v: scaled.place(v * factor), [(t / factor, shown) for t, shown in scaled.ticks])


Line = Sequence[tuple[float, float]]
MANY = 24  # points of a line; more of them have no circles, which would hide it


def curves(
    title: str, train: Sequence[Line], validation: Sequence[Line], tokens: float, losses: Sequence[float]
) -> str:
    """One small panel: loss by tokens, one line a seed; all panels share both axes. `losses`: (lowest, highest)."""
    width, height = 236, 168
    left, right, top, bottom = 34.0, width - 8.0, 22.0, height - 22.0
    x = linear([0.0, tokens], left, right, 3, zero=True)
    low, high = losses
    if low > 0 and high / low > 8:
        y = _log_axis(low, high, bottom, top)
    else:
        y = linear([low, high], bottom, top, 4, zero=low >= 0)
    parts = [text(left, 13, title, cls="panel-name")]
    for value, shown in y.ticks:
        parts += [line(left, y.place(value), right, y.place(value), "grid")]
        parts += [text(left - 5, y.place(value) + 4, shown, cls="tick", text_anchor="end")]
    parts += [text(x.place(v), bottom + 15, shown, cls="tick mid") for v, shown in [(t, tick(t)) for t, _ in x.ticks]]
    parts += [line(left, bottom, right, bottom, "axis")]
    for kind, lines in (("train", train), ("validation", validation)):
        for points in lines:
            steps = [(x.place(a), y.place(min(max(b, low), high))) for a, b in points if math.isfinite(b)]
            if len(steps) == 1:
                parts += [tag("circle", cx=steps[0][0], cy=steps[0][1], r=2.2, cls=f"dot {kind}")]
            elif steps:
                parts += [tag("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in steps), cls=f"curve {kind}")]
                if kind == "validation" and len(steps) <= 12:
                    parts += [tag("circle", cx=a, cy=b, r=2.2, cls=f"dot {kind}") for a, b in steps]
    return picture(width, height, f"Loss of {title} by tokens", parts, "panel")


def lines(title: str, x_name: str, series: Sequence[tuple[str, Line]], levels: Sequence[tuple[str, float]] = ()) -> str:
    """A plot of a few named lines over one axis; every line's name stands at its end.

    Args:
        levels: values with a dashed line across the plot, and their names.
    """
    series = [(name, line_points) for name, line_points in series if line_points]
    width, height = 420, 240
    left, right, top, bottom = 46.0, width - 110.0, 14.0, height - 40.0
    points = [point for _, line_points in series for point in line_points]
    x = linear([a for a, _ in points], left + 6, right, 5)
    y = linear([*(b for _, b in points), *(value for _, value in levels)], bottom, top, 4)
    parts = []
    for value, shown in y.ticks:
        parts += [line(left, y.place(value), right, y.place(value), "grid")]
        parts += [text(left - 6, y.place(value) + 4, shown, cls="tick", text_anchor="end")]
    parts += [text(x.place(v), bottom + 16, shown, cls="tick mid") for v, shown in x.ticks]
    parts += [line(left, bottom, right, bottom, "axis")]
    parts += [text(right, bottom + 34, x_name, cls="axis-name", text_anchor="end")]
    parts += [line(left, y.place(value), right, y.place(value), "level") for _, value in levels]
    ends = [(y.place(line_points[-1][1]), name) for name, line_points in series]
    ends = sorted([*ends, *((y.place(value), name) for name, value in levels)])
    at = -math.inf
    for place, name in ends:
        at = max(place + 4, at + 13)  # names do not cover each other
        parts += [text(right + 6, at, name, cls="name")]
    for i, (_, line_points) in enumerate(series):
        steps = [(x.place(a), y.place(b)) for a, b in line_points]
        kind = "validation" if i == 0 else "train"
        parts += [tag("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in steps), cls=f"curve {kind}")]
        if len(steps) <= MANY:
            parts += [tag("circle", cx=a, cy=b, r=2.4, cls=f"dot {kind}") for a, b in steps]
    return picture(width, height, title, parts, "panel")


def _log_axis(low: float, high: float, start: float, end: float) -> Axis:
    a, b = math.log10(low), math.log10(high)
    ticks = [m * 10.0**k for k in range(math.floor(a), math.ceil(b) + 1) for m in ((1,) if b - a > 2 else (1, 3))]
    shown = [(t, f"{t:g}") for t in ticks if low <= t <= high]
    return Axis(lambda v: start + (math.log10(max(v, low)) - a) / (b - a) * (end - start), shown, True)

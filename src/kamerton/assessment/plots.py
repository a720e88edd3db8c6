"""The page's two plots as inline SVG: quality against diversity over temperatures, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kamerton.comparison.report import svg

KINDS = ("validation", "train")
"""Style classes of the first and the second model's curve."""


def frontier(curves: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, factor: float) -> str:
    """Curves of up to two models; each point is a temperature with its intervals in both directions."""

    def draw(width: int, height: int, cls: str) -> str:
        left, right, top, bottom = 48.0, width - 14.0, 24.0, height - 46.0
        points = [p for curve in curves.values() for p in curve]
        x = svg.linear([v for p in points for v in p["diversity"]], left + 12, right - 12, 4 if width < 500 else 7)
        y = svg.linear([v * factor for p in points for v in p["quality"]], bottom, top)
        told = "diversity: 100 − self-BLEU within questions"
        parts = svg.frame(x, y, left, right, bottom, told, metric + (", %" if factor == 100 else ""))
        for kind, (label, curve) in zip(KINDS, curves.items(), strict=False):
            at = [(p, [x.place(v) for v in p["diversity"]], [y.place(v * factor) for v in p["quality"]]) for p in curve]
            steps = sorted((px[0], py[0]) for _, px, py in at)
            parts += [svg.tag("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in steps), cls=f"curve {kind}")]
            for p, px, py in at:
                mark = svg.tag("title", escape(f"{label}, temperature {p['temperature']:g}"))
                mark += svg.line(px[0], py[1], px[0], py[2], "whisker")
                mark += svg.line(px[1], py[0], px[2], py[0], "whisker")
                mark += svg.tag("circle", cx=float(px[0]), cy=float(py[0]), r=4.5)
                parts += [svg.tag("g", mark, cls="point leading" if kind == KINDS[0] else "point")]
                # the first model's temperatures stand above its points, the second one's below
                lift = -9 if kind == KINDS[0] else 17
                parts += [svg.text(px[0] + 5, py[0] + lift, f"{p['temperature']:g}", cls="name")]
        return svg.picture(width, height, f"{metric} against diversity", parts, cls)

    return svg.both_sizes(draw)


def reliability(series: Sequence[tuple[str, Sequence[Mapping[str, float]]]], title: str) -> str:
    """Correctness against confidence by bin, one line a model; the dashed diagonal is perfect calibration."""
    width, height = 360, 330
    left, right, top, bottom = 44.0, width - 12.0, 24.0, height - 46.0
    x, y = svg.linear([0.0, 1.0], left + 8, right - 4, 5), svg.linear([0.0, 1.0], bottom, top, 5)
    parts = svg.frame(x, y, left, right, bottom, "confidence", "correctness")
    parts += [svg.tag("path", d=f"M{x.place(0):.1f} {y.place(0):.1f}L{x.place(1):.1f} {y.place(1):.1f}", cls="front")]
    for kind, (label, bins) in zip(KINDS, series, strict=False):
        at = [(x.place(b["confidence"]), y.place(b["correct"]), b) for b in bins]
        parts += [svg.tag("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b, _ in at), cls=f"curve {kind}")]
        for a, b, own in at:
            told = f"{label}, {own['answers']:.0f} answers: sure {own['confidence']:.3f}, right {own['correct']:.3f}"
            dot = svg.tag("title", escape(told)) + svg.tag("circle", cx=float(a), cy=float(b), r=3.5)
            parts += [svg.tag("g", dot, cls="point leading" if kind == KINDS[0] else "point")]
    return svg.picture(width, height, f"Reliability diagram: {title}", parts, "panel")

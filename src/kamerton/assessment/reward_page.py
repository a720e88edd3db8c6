"""The page about a reward model: one file that holds its style and plots and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from markupsafe import Markup

from kamerton.assessment import plots
from kamerton.comparison.report import svg
from kamerton.comparison.report.page import filled

Result = Mapping[str, Any]


def reward_page(result: Result) -> str:
    """The page as text, from the result as its JSON file has it."""
    diagram = result["calibration"]["diagram"]
    return filled(
        "kamerton.assessment", "reward.html.j2",
        r=result, histogram=Markup(histogram(result["histogram"])),
        reliability=Markup(plots.reliability([("reward model", diagram)], "σ of the difference of rewards")),
    )  # fmt: skip


def histogram(found: Result) -> str:
    """How many better (filled) and worse answers have which score: two outlines over one axis."""
    width, height = 420, 250
    left, right, top, bottom = 40.0, width - 12.0, 22.0, height - 44.0
    edges, both = found["edges"], (found["chosen"], found["rejected"])
    x = svg.linear([edges[0], edges[-1]], left + 4, right - 4, 6)
    y = svg.linear([0.0, float(max(map(max, both)))], bottom, top, 4, zero=True)
    parts = [svg.text(0, 12, "answers", cls="axis-name")]
    for value, shown in y.ticks:
        parts += [svg.line(left, y.place(value), right, y.place(value), "grid")]
        parts += [svg.text(left - 6, y.place(value) + 4, shown, cls="tick", text_anchor="end")]
    parts += [svg.text(x.place(v), bottom + 16, shown, cls="tick mid") for v, shown in x.ticks]
    parts += [svg.line(left, bottom, right, bottom, "axis")]
    parts += [svg.text(right, bottom + 36, "reward", cls="axis-name", text_anchor="end")]
    for kind, name, counts in (("train", "worse answers", both[1]), ("validation", "better answers", both[0])):
        path = f"M{x.place(edges[0]):.1f} {bottom:.1f}"
        for a, b, count in zip(edges, edges[1:], counts, strict=False):
            at = y.place(count)
            path += f"L{x.place(a):.1f} {at:.1f}L{x.place(b):.1f} {at:.1f}"
        path += f"L{x.place(edges[-1]):.1f} {bottom:.1f}"
        parts += [svg.tag("g", svg.tag("title", escape(name)) + svg.tag("path", d=path, cls=f"curve {kind}"))]
    return svg.picture(width, height, "Distribution of scores", parts, "panel")

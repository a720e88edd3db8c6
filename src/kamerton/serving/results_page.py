"""Results of labels as a page: who labelled, agreement, win rates, Bradley–Terry scores with a plot. No script.

All names are escaped by Jinja and by the plot's own functions. The same page can be a file with its style inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from kamerton.comparison.report import svg
from kamerton.comparison.units import minus
from kamerton.feedback.agreement import Agreement
from kamerton.feedback.bradley_terry import Strengths
from kamerton.feedback.results import KindResult, Results
from kamerton.serving.pages import read_static

WIDTHS = (300, 116)
"""Pixels of the plot: wide, for phones."""
TITLES = {"comparison": "Comparisons", "ranking": "Rankings", "rating": "Ratings", "thumbs": "Thumbs"}
LEVELS = {"nominal": "as names", "ordinal": "as an order", "interval": "as distances"}


def results_page(found: Results, name: str, *, alone: bool = False) -> str:
    """The page as text.

    Args:
        name: the store's.
        alone: a file of its own, with its style inside.
    """
    style = "".join(text.decode() for text in read_static("page.css", "results.css").values()) if alone else ""
    return str(
        _template().render(
            results=found, name=name, alone=alone, style=Markup(style), views=[_view(kind) for kind in found.kinds]
        )
    )


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "signed": signed, "shown": agreement_text}
    source = files("kamerton.serving") / "templates" / "results.html.j2"
    return environment.from_string(source.read_text(encoding="utf-8"))


def percent(value: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * value:.0f} %"


def signed(value: float | None) -> str:
    """A score with two decimals and a real minus."""
    return "–" if value is None else minus(f"{value:.2f}")


def agreement_text(one: Agreement) -> str:
    """A coefficient with its interval in words."""
    if one.value is None:
        return "–" if one.units == 0 else "not defined: all the same"
    if one.low is None or one.high is None:
        return signed(one.value)
    return f"{signed(one.value)} ({signed(one.low)} to {signed(one.high)})"


def sentences(kind: KindResult) -> list[str]:
    """What a reader should know beside the tables."""
    found = []
    if kind.left is not None:
        share, count = kind.left
        found.append(f"The answer shown first won {percent(share)} of {count} comparisons with a winner.")
    if kind.ties or kind.bad:
        found.append(f"Ties: {kind.ties}; both bad: {kind.bad}. Either is half a win of both.")
    s = kind.strengths
    if s.groups > 1:
        found.append(f"No chain of comparisons connects {s.groups} groups of models: their scores cannot be compared.")
    for group in s.bounded:
        names = ", ".join(m.model for m in s.models if m.group == group)
        found.append(
            f"Among {names} some won or lost everything, so that no finite score fits best; each was given one tie "
            "against an imaginary model of score 0."
        )
    if not s.bounded and s.added > 0:
        found.append(
            f"In {percent(s.added)} of the bootstrap's resamples some models won or lost everything; there each was "
            "given one tie against an imaginary model of score 0."
        )
    if kind.same:
        found.append(f"{kind.same} pairs of answers are by the same model and say nothing of models.")
    if kind.unknown:
        found.append(f"{kind.unknown} pairs of answers are by a model that is not named.")
    return found


def _view(kind: KindResult) -> dict[str, Any]:
    return {
        "kind": kind, "title": TITLES[kind.kind], "level": LEVELS[kind.level], "notes": sentences(kind),
        "axis": _axis(kind.strengths), "plots": _plots(kind.strengths),
    }  # fmt: skip


def _scale(s: Strengths, width: int) -> svg.Axis:
    ends = [v for m in s.models for v in (m.score, m.low, m.high) if v is not None]
    return svg.forest_scale([*ends, 0.0], width, 1.0)


def _axis(s: Strengths) -> Markup:
    return Markup("".join(svg.forest_axis(_scale(s, width), width) for width in WIDTHS)) if s.models else Markup()


def _plots(s: Strengths) -> Sequence[Markup]:
    rows = []
    for model in s.models:
        low, high = (model.score if end is None else end for end in (model.low, model.high))
        title = f"{model.model}: {signed(model.score)} ({signed(low)} to {signed(high)})"
        best = all(model.score >= other.score for other in s.models if other.group == model.group)
        drawn = [svg.forest(low, model.score, high, _scale(s, width), width, best, title) for width in WIDTHS]
        rows.append(Markup("".join(drawn)))
    return rows

"""The plots of `report.html`: which numbers of a comparison are drawn, in which units, by `svg.py`.

Intervals of scores, score against cost, what was forgotten, and learning curves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kamerton.comparison.progress import loss_curves
from kamerton.comparison.report import svg
from kamerton.comparison.report.data import Comparison, Record
from kamerton.comparison.units import Scale, duration, plain, quantity
from kamerton.comparison.verdict import Row, Verdict

FOREST = (300, 132)  # pixels: wide, for phones
NAMED = 10  # methods; more of them are numbered in plots and matrices
MAX_CURVE = 90  # points of a curve, so that a page of many cells stays small


def _forest_scale(verdict: Verdict, scale: Scale, width: int) -> svg.Axis:
    return svg.forest_scale([v for row in verdict.rows for v in (row.low, row.high)], width, scale.factor)


def forest_axis(verdict: Verdict, scale: Scale) -> Markup:
    """The axis above all intervals."""
    return Markup("".join(svg.forest_axis(_forest_scale(verdict, scale, w), w) for w in FOREST))


def forest(row: Row, verdict: Verdict, scale: Scale) -> Markup:
    """One method's score and its interval, on the axis of all."""
    title = f"{row.label}: {scale.score(row.value)} ({scale.number(row.low)} to {scale.number(row.high)})"
    axes = [(_forest_scale(verdict, scale, width), width) for width in FOREST]
    return Markup(
        "".join(svg.forest(row.low, row.value, row.high, a, w, row.label in verdict.contenders, title) for a, w in axes)
    )


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


def quality_plots(verdict: Verdict, methods: dict[str, Record], scale: Scale) -> list[Record]:
    """Score against each cost that is known; the methods that none beats in both are joined by a line."""

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


def forgetting_plots(verdict: Verdict, methods: dict[str, Record], scale: Scale) -> list[Record]:
    """Score against what was forgotten, where that was measured."""
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


Lines = tuple[list[svg.Line], list[svg.Line]]
"""Of one method: training and validation loss, a line for each seed."""


def curves(comparison: Comparison, order: Sequence[str]) -> list[Markup]:
    """Training and validation loss over tokens, a plot for each method that trains."""
    by_label = {label: [loss_curves(c.curve, MAX_CURVE) for c in comparison.cells[label].values()] for label in order}
    return list(panels({label: lines_of(own) for label, own in by_label.items()}).values())


def lines_of(curves: Sequence[Mapping[str, Any]]) -> Lines:
    """The lines of several fits of one method, from what `loss_curves` gives."""
    train, validation = ([[(x, y) for x, y in c.get(k) or ()] for c in curves] for k in ("loss", "validation_loss"))
    return [line for line in train if line], [line for line in validation if line]


def panels(lines: Mapping[str, Lines]) -> dict[str, Markup]:
    """A plot for each method that has a line, all on the same axes."""
    points = [p for pair in lines.values() for kind in pair for one in kind for p in one]
    if not points:
        return {}
    losses = sorted(loss for _, loss in points)
    span = (losses[0], losses[-1] if losses[-1] > losses[0] else losses[0] + 1.0)
    tokens = max(t for t, _ in points)
    return {
        label: Markup(svg.curves(label, train, validation, tokens, span))
        for label, (train, validation) in lines.items()
        if train or validation
    }

"""`fidelity.html`: one page that holds its style and plots and asks the network for nothing; all texts are escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from kamerton.assessment import plots
from kamerton.assessment.settings import TITLES, ordered
from kamerton.assessment.summary import number, scale_of, sentences
from kamerton.comparison.report.page import filled
from kamerton.comparison.units import duration, p_value, quantity

Result = Mapping[str, Any]


def page(result: Result) -> str:
    """The page as text, from the result as `fidelity.json` has it."""
    frontier = result["frontier"]
    return filled(
        "kamerton.assessment", "template.html.j2",
        result=result, labels=list(result["models"]), told=sentences(result),
        samples=_samples(result), differences=_differences(result), title=lambda key: TITLES.get(key, key),
        cell=_cell, number=number, duration=duration, quantity=quantity, p_value=p_value,
        frontier=Markup(plots.frontier(frontier["curves"], frontier["metric"], scale_of(frontier).factor))
        if frontier else None,
        reliability=_reliability(result), levels=_levels(frontier),
    )  # fmt: skip


def _cell(found: Result | None) -> Markup:
    """A figure with its interval in small letters."""
    if found is None:
        return Markup("–")
    span = f"{number(found['low'])} … {number(found['high'])}"
    return Markup("{}<small>{}</small>").format(number(found["value"]), span)


def _temperatures(result: Result) -> list[str]:
    names = [name for model in result["models"].values() for name in model["figures"] if name.startswith("T=")]
    return list(dict.fromkeys(names))


def _samples(result: Result) -> list[dict[str, Any]]:
    """The table of samples' figures: groups of rows, each a figure with a cell for every model and temperature."""
    columns = [(label, t) for label in result["models"] for t in _temperatures(result)]
    names = list(dict.fromkeys(
        key for label, t in columns for key in result["models"][label]["figures"].get(t, {})
    ))  # fmt: skip
    return [
        {"title": title, "rows": [
            {"name": TITLES.get(key, key), "reference": result["references"].get(key),
             "cells": [result["models"][label]["figures"].get(t, {}).get(key) for label, t in columns]}
            for key in members
        ]} for title, members in ordered(names)
    ]  # fmt: skip


def _differences(result: Result) -> list[dict[str, Any]]:
    """First minus second, those that are told apart first within each group of figures."""
    out = []
    for name, found in result["differences"].items():
        rows = [{"name": TITLES.get(key, key), "class": _direction(d), **d} for key, d in found.items()]
        out.append({"title": name.replace("T=", "samples at temperature "), "rows": rows})
    return out


def _direction(found: Result) -> str:
    if found["p_holm"] >= 0.05 or found["better"] not in ("higher", "lower"):
        return ""
    return "better" if (found["value"] > 0) == (found["better"] == "higher") else "worse"


def _levels(frontier: Result | None) -> list[Any]:
    return list(frontier["gain"]["levels"]) if frontier and frontier["gain"] else []


def _reliability(result: Result) -> list[dict[str, Any]]:
    """One diagram for each kind of confidence, all models in it."""
    kinds = list(dict.fromkeys(one["name"] for model in result["models"].values() for one in model["reliability"]))
    out = []
    for kind in kinds:
        series, rows = [], []
        for label, model in result["models"].items():
            for one in model["reliability"]:
                if one["name"] == kind:
                    series.append((label, one["bins"]))
                    figures = model["figures"]["calibration"]
                    rows.append({
                        "label": label, "floor": one["floor"], "answers": one["answers"],
                        "cells": [figures[f"{way}: {kind}"] for way in ("ece", "ece, equal width", "brier")],
                    })  # fmt: skip
        out.append({"title": kind, "plot": Markup(plots.reliability(series, kind)), "rows": rows})
    return out

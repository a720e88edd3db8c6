"""What a person should read first: the comparison at equal diversity, and what the figures warn of, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamerton.assessment.probes import MEAN_TOKEN
from kamerton.comparison.units import Scale, minus
from kamerton.evaluation.frontier import Gain, verdict

Result = Mapping[str, Any]


def scale_of(frontier: Result) -> Scale:
    """The units of the frontier's metric."""
    low, high = frontier["range"]
    return Scale(frontier["metric"], low, high, frontier["higher_is_better"])


def number(value: float | None) -> str:
    """A figure: three digits; a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    size = abs(value)
    return minus(f"{value:.0f}" if size >= 1000 else f"{value:.3g}" if size >= 1e-3 or not size else f"{value:.1e}")


def sentences(result: Result) -> list[str]:
    """The verdict on the frontier where two models were measured, then warnings, model by model."""
    out = []
    frontier = result["frontier"]
    if frontier and frontier["gain"]:
        scale = scale_of(frontier)
        unit = {"factor": scale.factor, "name": f" {scale.difference_unit}".rstrip()}
        first, second = frontier["curves"]
        # whichever way the metric goes, a gain is the better one's
        out.append(verdict(Gain(**frontier["gain"]), (first, second), unit))
    for label, model in result["models"].items():
        who = f"{label}: " if len(result["models"]) > 1 else ""
        out += [who + text for text in _warnings(model["figures"], result["references"], model)]
    return out


def _warnings(figures: Result, references: Result, model: Result) -> list[str]:
    out = []
    hottest = figures.get("T=1") or next((own for name, own in figures.items() if name.startswith("T=")), None)
    if hottest is not None:
        name = next(name for name, own in figures.items() if own is hottest)
        at = f"at temperature {name.removeprefix('T=')}"
        alike, wanted = hottest.get("self_bleu_across"), references.get("self_bleu_across")
        if alike and wanted and alike["low"] > wanted["high"]:
            out.append(
                f"answers to different questions resemble one another more than the references do (self-BLEU "
                f"{number(alike['value'])} against {number(wanted['value'])} {at}): a sign of mode collapse."
            )
        ended = hottest.get("ended")
        if ended and ended["high"] < 0.95:
            out.append(f"only {ended['value']:.0%} of the samples end inside the limit {at}.")
        long = hottest.get("length_ratio")
        if long and not long["low"] <= 1 <= long["high"] and not 0.8 < long["value"] < 1.25:
            out.append(f"samples have {number(long['value'])} times the references' tokens {at}.")
        alone, level = hottest.get("mauve"), references.get("mauve")
        if alone and level and alone["high"] < level["low"]:
            out.append(
                f"as a distribution the samples are farther from the references (MAUVE {number(alone['value'])}) than "
                f"training references are (MAUVE {number(level['value'])}) {at}."
            )
    for one in model["reliability"]:
        found = figures["calibration"].get(f"ece: {one['name']}")
        # the mean token's probability is no probability of being right: it is shown and not warned of
        if one["name"] != MEAN_TOKEN and found and found["low"] > one["floor"]:
            sure = one["confidence"] > one["correct"]
            way = "more sure than it is right" if sure else "right more often than it is sure"
            out.append(
                f"by {one['name']} it is {way}: ECE {number(found['value'])}, where a calibrated model would show "
                f"{number(one['floor'])}."
            )
    p = model.get("phrasings_p")
    if p is not None and p < 0.05:
        spread = next((own for key, own in figures["phrasings"].items() if "spread" in key), None)
        if spread:
            out.append(
                f"the score hangs on how the instruction is put: best and worst phrasing differ by "
                f"{number(spread['value'])} (p = {p:.2g})."
            )
    return [text[0].upper() + text[1:] for text in out]

"""The page of a grid, from `scaling.json`, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from kamerton.base.show import human
from kamerton.comparison.report.page import filled
from kamerton.comparison.units import duration
from kamerton.pretraining.scaling.law import BOTH, STEEPEST
from kamerton.pretraining.scaling.plots import plots, powers, size_of
from kamerton.pretraining.scaling.suggest import REPEATS

Result = Mapping[str, Any]


def page(result: Result) -> str:
    """The page as text."""
    return filled(
        "kamerton.pretraining.scaling", "template.html.j2",
        r=result, told=sentences(result), suggestion=suggestion(result), warnings=warnings(result),
        plots=[(title, Markup(plot), seen) for title, plot, seen in plots(result)], facts=facts(result), human=human,
        duration=duration, span=span, counts=counts, number=number, powers=powers, size_of=size_of,
    )  # fmt: skip


def number(value: float | None) -> str:
    """A coefficient or an exponent, three digits."""
    if value is None:
        return "–"
    return powers(value) if value and not 1e-3 <= abs(value) < 10_000 else f"{value:.3g}"


def counts(found: Mapping[str, float | None]) -> str:
    """The interval of a count."""
    low, high = found["low"], found["high"]
    return "" if low is None or high is None else f"[{human(low)}, {human(high)}]"


def span(found: Mapping[str, float | None]) -> str:
    """The interval of a value; nothing where none is known."""
    high = "∞" if found["high"] is None else number(found["high"])
    return "" if found["low"] is None else f"[{number(found['low'])}, {high}]"


def both(found: Mapping[str, float | None]) -> str:
    """A value with its interval."""
    return f"{number(found['value'])} {span(found)}".rstrip()


def facts(result: Result) -> list[str]:
    """What it is, in short pieces."""
    rows = result["runs"]
    counted = "all parameters" if result["count"] == "all" else "parameters without embeddings"
    return [
        f"preset {result['preset']}", f"{len(rows)} runs", f"N: {counted}", f"context {result['context']:,}",
        f"{human(result['spent']['tokens'])} tokens trained", f"{powers(result['spent']['flops'])} FLOPs",
        duration(result["spent"]["seconds"]),
    ]  # fmt: skip


def formula(result: Result, name: str) -> str:
    """A law with its numbers in their places."""
    fitted = result["fits"][name]
    text = fitted["formula"]
    for key, found in sorted(fitted["numbers"].items(), key=lambda item: -len(item[0])):
        text = text.replace(key, f"\0{number(found['value'])}\0".replace(" ", "\N{NO-BREAK SPACE}"))
    return str(text.replace("\0", ""))


def sentences(result: Result) -> list[str]:
    """What came of it, in words."""
    out = nothing_gained(result)
    if exponents := result["exponents"]:
        own = next((e for e in exponents if e["by"].endswith("FLOPs of the models")), exponents[0])
        out.append(
            f"the best size grows as C^{both(own['a'])}, the best token count as C^{both(own['b'])} ({own['by']})"
        )
        out += [
            f"by {e['by']}: size as C^{both(e['a'])}, tokens as C^{both(e['b'])}" for e in exponents if e is not own
        ]
    if BOTH.name in result["fits"]:
        fitted = result["fits"][BOTH.name]
        out.append(f"L(N, D) = {formula(result, BOTH.name)}, in nats a token; off by {fitted['error']:.2%} of the loss")
    else:
        out.append(
            f"{len(result['runs'])} runs are too few for L(N, D): train three sizes on three token counts or more"
        )
    if check := result["check"]:
        out.append(
            f"fitted without the {check['runs']} dearest runs ({check['beyond']:.3g} times the compute of the others), "
            f"the law is off by {check['error']:.2%} on them"
        )
    spent = result["spent"]
    if spent["flops"] < spent["flops_alone"] * 0.999:
        ratio, time = spent["flops_alone"] / spent["flops"], spent["seconds_alone"] / spent["seconds"]
        out.append(
            f"runs of a size share their stable part: {powers(spent['flops'])} FLOPs were trained in place of "
            f"{powers(spent['flops_alone'])} ({ratio:.2f} times fewer; {time:.2f} times in seconds)"
        )
    return out


def nothing_gained(result: Result) -> list[str]:
    """That larger models or more tokens do not bring a lower loss, where that is so."""
    out = []
    for name, gain in result.get("gains", {}).items():
        if not gain["nothing"]:
            continue
        brings, unit = ("size brings", "parameters") if name == "size" else ("tokens bring", "tokens")
        ends, off = f"from {human(gain['least'])} to {human(gain['most'])} {unit}", result["fits"][BOTH.name]["error"]
        out.append(
            f"{brings} nothing that can be told in this grid: {ends} the loss falls by {gain['falls']:.2%} by the "
            f"law, which is off by {off:.2%}, so no best size is told"
        )
    return out


def warnings(result: Result) -> list[str]:
    """What is not to be trusted."""
    rows, out = [r for r in result["runs"] if r["loss"] is not None], []
    lost = len(result["runs"]) - len(rows)
    if lost:
        out.append(f"{lost} runs diverged and are left out")
    again = [r for r in rows if r["epochs"] > REPEATS]
    if again:
        out.append(
            f"{len(again)} runs read their text more than {REPEATS:.0f} times: their loss is not that of so much text"
        )
    worse, pairs = larger_and_worse(rows)
    if worse:
        out.append(
            f"in {worse} of {pairs} pairs of runs on equally many tokens the larger model has the higher loss, which "
            "no law here allows: its learning rate or initial weights may not suit it, or its steps are too few"
        )
    out += [
        f"{key} of {name} is larger than numbers can be, because its exponent is next to 0"
        for name, law in result["fits"].items() for key, found in law["numbers"].items() if found["value"] is None
    ]  # fmt: skip
    fitted = result["fits"].get(BOTH.name)
    if fitted:
        numbers = fitted["numbers"]
        at_bound = [n for n in ("α", "β") if not 0.01 < numbers[n]["value"] < 0.99 * STEEPEST]
        out += [f"{name} is at the edge of what it may be, so the runs do not say what it is" for name in at_bound]
        offset = fitted["numbers"]["E"]
        least = min(r["loss"] for r in rows)
        if offset["value"] < 0.02 * least or (offset["low"] is not None and offset["low"] < 0.02 * least):
            out.append("the offset E cannot be told from 0: no run comes near it")
        known = [row["size"] for row in result["optimum"] if row["beyond"] <= 1 and row["size"]["low"] is not None]
        if any(size["high"] > 10 * size["low"] for size in known):
            out.append("the best size is known no better than within a factor of ten")
        if offset["low"] is None:
            out.append("with so few runs nothing is known about the noise, so there are no intervals")
    if any(row["size"]["value"] <= 1.01 * result["smallest"] for row in result["optimum"] if row["beyond"] <= 1):
        out.append("for some amounts of compute the best model is the smallest one that the rule of sizes has")
    edge = [p for p in result["profiles"] if p["best"] is None]
    if edge:
        out.append(
            f"{len(edge)} of {len(result['profiles'])} IsoFLOP profiles have their lowest point outside the sizes"
        )
    if any(p["read"] for p in result["profiles"]):
        out.append("the grid has no runs of equal compute: IsoFLOP profiles are read off between runs")
    return out


def larger_and_worse(rows: Sequence[Result]) -> tuple[int, int]:
    """Of runs that differ only in size, neighbours: how often the larger one has the higher loss, of how many pairs."""
    groups: dict[tuple[int, int], list[Result]] = {}
    for row in sorted(rows, key=lambda r: r["parameters"]):
        groups.setdefault((row["tokens"], row["seed"]), []).append(row)
    found = [b["loss"] > a["loss"] for group in groups.values() for a, b in pairwise(group)]
    return sum(found), len(found)


def suggestion(result: Result) -> list[str]:
    """What is suggested for a budget, in lines."""
    s = result["suggestion"]
    if s is None:
        return []
    between, time = s["between"], "" if s["seconds"] is None else f", {duration(s['seconds'])}"
    shape = f"width {s['width']}, depth {s['depth']}"
    return [
        f"for {s['budget']}: {human(s['parameters'])} parameters {counts(between['parameters'])} ({shape}) on "
        f"{human(s['tokens'])} tokens {counts(between['tokens'])}, {s['epochs']:.3g} epochs, "
        f"{powers(s['flops'])} FLOPs{time}",
        f"the law foretells a held-out loss of {both(s['loss'])} nats a token",
        *(f"note: {n}" for n in s["notes"]),
        f"next: {s['command']}",
    ]  # fmt: skip


def lines(result: Result) -> Iterator[str]:
    """The table of runs for a terminal."""
    yield f"{'size':>8} {'N':>9} {'tokens':>9} {'FLOPs':>9} {'epochs':>7} {'loss':>7} {'bits/byte':>9} {'law':>7}"
    for r in sorted(result["runs"], key=lambda r: (r["parameters"], r["tokens"], r["seed"])):
        told = ["–" if r.get(k) is None else f"{r[k]:.3f}" for k in ("loss", "bits_per_byte", "law")]
        yield (
            f"{r['size']:>8} {human(size_of(r, result)):>9} {human(r['tokens']):>9} {r['flops']:>9.2e} "
            f"{r['epochs']:>7.2f} {told[0]:>7} {told[1]:>9} {told[2]:>7}"
        )

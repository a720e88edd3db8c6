"""The page of a pretraining, from `pretraining.json` and `samples.jsonl`: figures, curves, samples, how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kamerton.base.show import human
from kamerton.comparison.progress import curve_points
from kamerton.comparison.report import svg
from kamerton.comparison.report.page import filled
from kamerton.comparison.units import duration, plain
from kamerton.files import read_jsonl, write_text

Result = Mapping[str, Any]
POINTS = 200
"""Points of a curve; between them means are taken."""
SHOWN = 12
"""Samples that are shown, the last ones of training."""

METRICS: dict[str, tuple[str, str]] = {
    "bits_per_byte": ("bits per byte", "held-out text, contexts side by side (a recurrent model: in one go)"),
    "bits_per_byte_half_overlap": ("bits per byte, overlapping", "the same with half a context before each token"),
    "perplexity": ("perplexity", "of a token; not comparable between tokenizers"),
    "loss": ("loss", "nats a token"),
    "bleu": ("BLEU", "sacrebleu, beam search"),
    "bleu_greedy": ("BLEU, greedy", "sacrebleu, the likeliest token each time"),
    "masked_perplexity": ("masked perplexity", "of a token that is predicted"),
    "masked_accuracy": ("masked accuracy", "share of predicted tokens that are right"),
    "sentence_accuracy": ("next-sentence accuracy", "share of pairs that are told apart"),
}  # fmt: skip


def write_page(folder: Path) -> dict[str, Any]:
    """Write `report.html` beside what a run left; returns the results as they were written."""
    result, samples = _left(folder)
    write_text(folder / "report.html", page(result, samples))
    return result


def page_of(folder: Path) -> str:
    """The page of what a run left in a folder."""
    return page(*_left(folder))


def _left(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    result, samples = json.loads((folder / "pretraining.json").read_text(encoding="utf-8")), folder / "samples.jsonl"
    return dict(result), read_jsonl(samples) if samples.is_file() else []


def page(result: Result, samples: Sequence[Mapping[str, Any]]) -> str:
    """The page as text."""
    metrics = [(*METRICS[k], figure(v)) for k, v in result["metrics"].items() if k in METRICS]
    return filled(
        "kamerton.pretraining", "template.html.j2",
        r=result, told=sentences(result), metrics=metrics, samples=samples[-SHOWN:],
        plots=[(title, Markup(plot)) for title, plot in plots(result)], facts=facts(result), human=human,
    )  # fmt: skip


def figure(value: float) -> str:
    """A metric with the digits that mean something."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def facts(result: Result) -> list[str]:
    """What it is, in short pieces."""
    model = result["model"]
    start = f"preset {model['preset']}" if model["preset"] else f"from {model['base']}"
    return [
        start, f"{human(model['parameters'])} parameters", f"context {model['context']:,}",
        f"{plain(result['tokens'])} tokens, {result['epochs']:.2f} epochs", f"{result['steps']:,} steps",
        f"{duration(result['seconds'])} on {result['threads']} threads".replace(" 1 threads", " 1 thread"),
        f"{human(result['flops'])} FLOPs",
    ]  # fmt: skip


def sentences(result: Result) -> list[str]:
    """What came of it, in words."""
    m, model, out = result["metrics"], result["model"], []
    learned = f"{model['class']} with {human(model['parameters'])} parameters: {result['tokens']:,} tokens "
    learned += f"({result['epochs']:.2f} epochs) in {result['steps']:,} steps, {duration(result['seconds'])}"
    out.append(learned)
    if "bits_per_byte" in m:
        over = m.get("bits_per_byte_half_overlap")
        more = "" if over is None else f" ({over:.3f} with windows that overlap by half)"
        out.append(f"held out: {m['bits_per_byte']:.3f} bits per byte{more}, perplexity {m['perplexity']:.1f}")
    elif "perplexity" in m and "bleu" not in m:
        out.append(
            f"held out: perplexity {m['perplexity']:.1f} (of a token; the notes say why there are no bits per byte)"
        )
    if "masked_loss" in m:
        said = f"held out: {m['masked_accuracy']:.1%} of masked tokens right, perplexity {m['masked_perplexity']:.1f}"
        asked = f"; {m['sentence_accuracy']:.1%} of pairs told apart" if "sentence_accuracy" in m else ""
        out.append(said + asked)
    if "bleu" in m:
        out.append(f"BLEU {m['bleu']:.1f} by beam search, {m['bleu_greedy']:.1f} greedily")
    busiest = [row for row in result["curve"] if "busiest_expert" in row]
    if busiest:
        last = busiest[-1]
        out.append(
            f"experts: the busiest takes {last['busiest_expert']:.0%} of a layer's choices, the idlest "
            f"{last['idlest_expert']:.0%} (even: {1 / model['config']['num_local_experts']:.0%})"
        )
    return out


def plots(result: Result) -> list[tuple[str, str]]:
    """Loss, what was held out, learning rate and gradient against tokens; experts where there are any."""
    rows = result["curve"]
    out = [("Loss", curves(rows, {"loss": "training", "validation_loss": "held out"}, "nats a token"))]
    if any("bits_per_byte" in row for row in rows):
        out.append(("Bits per byte", curves(rows, {"bits_per_byte": "held out"}, "bits per byte")))
    out.append(("Learning rate", curves(rows, {"learning_rate": "learning rate"}, "learning rate")))
    if any("busiest_expert" in row for row in rows):
        named = {"busiest_expert": "busiest", "idlest_expert": "idlest"}
        out.append(("Experts", curves(rows, named, "share of a layer's choices")))
    return [(title, plot) for title, plot in out if plot]


def curves(rows: Sequence[Mapping[str, float]], named: Mapping[str, str], what: str) -> str:
    """Columns of the learning curve against tokens, a line each; "" where there is nothing to draw."""
    lines = {shown: curve_points(rows, name, POINTS) for name, shown in named.items()}
    lines = {shown: line for shown, line in lines.items() if line}
    if not lines:
        return ""

    def draw(width: int, height: int, cls: str) -> str:
        left, right, top, bottom = 52.0, width - 90.0, 24.0, height - 46.0
        every = [p for line in lines.values() for p in line]
        x = svg.linear([0.0, *(p[0] for p in every)], left, right, 4 if width < 500 else 6, zero=True)
        # the first steps of an untrained model would flatten the rest
        values = sorted(p[1] for p in every)
        y = svg.linear([values[0], values[max(0, math.ceil(len(values) * 0.98) - 1)]], bottom, top)
        counts = svg.Axis(x.place, [(value, plain(value)) for value, _ in x.ticks])
        parts = svg.frame(counts, y, left, right, bottom, "tokens", what)
        named_at: list[float] = []
        for n, (shown, line) in enumerate(lines.items()):
            points = [(x.place(a), max(top - 8, y.place(b))) for a, b in line]
            kind = "curve train" if n == 0 and len(lines) > 1 else "curve validation"
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            parts += [svg.tag("path", svg.tag("title", escape(shown)), d=path, cls=kind)]
            end = points[-1][1] + 4
            end += 13 if any(abs(end - other) < 12 for other in named_at) else 0  # no name covers another
            parts += [svg.text(right + 6, end, shown, cls="name")]
            named_at.append(end)
        return svg.picture(width, height, f"{what} against tokens", parts, cls)

    return svg.both_sizes(draw)

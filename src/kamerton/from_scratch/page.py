"""The page of a path: each stage's figure beside the last one's, what the models write, and a chat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kamerton.base.show import human
from kamerton.comparison.progress import neighbours
from kamerton.comparison.report import svg
from kamerton.comparison.report.page import filled
from kamerton.comparison.units import duration
from kamerton.files import write_text
from kamerton.pretraining.page import POINTS
from kamerton.text.corpus.report import size

Results = Mapping[str, Any]
UNEVEN = 0.1
"""Training times that differ by more than this share are not called equal."""


def write_page(folder: Path, results: Results) -> None:
    """Write `report.html` into a path's folder."""
    write_text(folder / "report.html", page(results, folder))


def page(results: Results, folder: Path) -> str:
    """The page as text; pages of stages that are in the folder are linked."""
    rows = [{**stage, **described(stage), "link": _link(stage["name"], folder)} for stage in results["stages"]]
    samples = [(s["name"], s["figures"]["samples"]) for s in finished(results) if s["kind"] in ("ngram", "model")]
    chat = [s["figures"] for s in finished(results) if s["kind"] == "chat"]
    return filled(
        "kamerton.from_scratch", "template.html.j2",
        r=results, told=sentences(results), rows=rows, plot=Markup(curves(results)),
        bars=bars(results), samples=[(n, s) for n, s in samples if s], chat=chat[0] if chat else None,
        pieces=next((s["figures"]["example"] for s in finished(results) if s["kind"] == "tokenizer"), []),
        notes=[(s["name"], note) for s in finished(results) for note in s["figures"].get("notes", [])],
        again=again(results), duration=duration,
    )  # fmt: skip


def finished(results: Results) -> list[dict[str, Any]]:
    """The stages that are done."""
    return [stage for stage in results["stages"] if "figures" in stage]


def judged(results: Results) -> list[dict[str, Any]]:
    """Models with their bits per byte on the held-out text, in the path's order."""
    found = [s for s in finished(results) if s["kind"] in ("ngram", "model")]
    return [s for s in found if s["figures"]["bits_per_byte"] is not None]


def bits(stage: Mapping[str, Any]) -> float:
    """Bits per byte of a judged model."""
    return float(stage["figures"]["bits_per_byte"])


def bars(results: Results) -> list[tuple[str, float, float]]:
    """Of each judged model: its name, its bits per byte, and their share of the most."""
    most = max(map(bits, judged(results)), default=1.0)
    return [(s["name"], bits(s), bits(s) / most) for s in judged(results)]


def _link(name: str, folder: Path) -> str | None:
    return f"{name}/report.html" if (folder / name / "report.html").is_file() else None


def described(stage: Mapping[str, Any]) -> dict[str, str]:
    """A stage in two cells of the table: what it made, and its figure."""
    if "figures" not in stage:
        return {"made": "not yet", "figure": "–"}
    f, kind = stage["figures"], stage["kind"]
    value = f.get("bits_per_byte")
    figure = "–" if value is None else f"{value:.3f} bits per byte"
    if kind == "corpus":
        made = (
            f"documents in {f['files']:,} file{'s' * (f['files'] != 1)}: {f['read'][0]:,} read, {f['kept'][0]:,} kept"
        )
        figure = f"{size(f['kept'][1])} of {size(f['read'][1])}"
    elif kind == "text":
        t, h = f["train"], f["held_out"]
        made = f"{t['documents']:,} documents to learn from, {h['documents']:,} held out"
        made += f"; {t['left_out']:,} passages that share words with held-out text left out"
        figure = f"{size(h['bytes'])} held out, {size(t['bytes'])} to learn from"
    elif kind == "tokenizer":
        made, figure = f"{f['tokens']:,} tokens", f"{f['bytes_per_token']:.2f} bytes a token"
    elif kind == "ngram":
        made = f"{f['smoothing']}, order {f['order']}, {f['units']}: {human(f['ngrams'])} n-grams"
    elif kind == "model":
        made = f"{f['class']}, {human(f['parameters'])} parameters: {human(f['tokens'])} tokens"
        made += f" ({f['epochs']:.2f} epochs), {duration(f['training_seconds'])} of training"
    elif kind == "turns":
        made = f"{f['train']:,} conversations to learn from, {f['validation']:,} to validate on, {f['test']:,} held out"
        figure = f"{f['train'] + f['validation'] + f['test']:,} conversations"
    elif kind == "tuned":
        made = f"{f['method']} on {f['examples'][0]:,} examples: {human(f['tokens'])} tokens"
        figure = "–" if f["validation_loss"] is None else f"validation loss {f['validation_loss']:.3f}"
    else:
        made = f"answers of {f['answers']:,} held-out conversations"
        if f.get("left_out"):
            made += f"; {f['left_out']:,} are longer than the model's positions and were left out"
        if value is not None:
            figure = f"{f['before']:.3f} → {value:.3f} bits per byte of the answers"
    return {"made": made, "figure": figure}


def sentences(results: Results) -> list[str]:
    """What came of it, the most telling first."""
    found, out = judged(results), []
    if found:
        chain = " → ".join(f"{s['name']} {bits(s):.3f}" for s in found)
        out.append(f"Bits per byte of the same held-out text: {chain}.")
        worse = []
        for at, one in enumerate(found):
            best = min(found[:at], key=bits, default=None)
            if best is not None and one["kind"] == "model" and bits(one) >= bits(best):
                worse.append(f"{one['name']} is no better than {best['name']}")
        if worse:
            out.append(f"It does not fall at every step: {'; '.join(worse)}.")
    nets = [s for s in found if s["kind"] == "model"]
    if len(nets) > 1:
        times = [s["figures"]["training_seconds"] for s in nets]
        told = ", ".join(f"{s['name']} {duration(s['figures']['training_seconds'])}" for s in nets)
        equal = max(times) <= (1 + UNEVEN) * min(times)
        out.append(f"Training time {'is equal' if equal else 'is NOT equal'}: {told}.")
    chat = next((s["figures"] for s in finished(results) if s["kind"] == "chat"), None)
    if chat is not None and chat["bits_per_byte"] is not None:
        out.append(
            f"Answers of held-out conversations take {chat['bits_per_byte']:.3f} bits per byte after tuning, "
            f"{chat['before']:.3f} before."
        )
    missing = [s["name"] for s in results["stages"] if "figures" not in s]
    if missing:
        out.append(f"Not run yet: {', '.join(missing)}.")
    return out


def again(results: Results) -> str:
    """Options that repeat a run with budgets of seconds by the tokens that they held; "" where there was none."""
    timed = [s for s in finished(results) if s["kind"] == "model" and s["figures"]["timed"]]
    return " ".join(f"--set 'models.{s['name']}.budget={{tokens: {s['figures']['tokens']}}}'" for s in timed)


def curves(results: Results) -> str:
    """Bits per byte of the networks against training time, the n-grams' as levels; "" where nothing was trained."""
    series = [(s["name"], neighbours(s["figures"]["curve"], POINTS)) for s in judged(results) if s["kind"] == "model"]
    levels = [(s["name"], bits(s)) for s in judged(results) if s["kind"] == "ngram"]
    if not any(points for _, points in series):
        return ""
    return svg.lines("Held-out bits per byte by training time", "seconds of training", series, levels)

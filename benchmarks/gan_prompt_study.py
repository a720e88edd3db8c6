"""The study on generative adversarial prompt tuning: the recipes of `examples/gan_prompt/`, by number of examples.

Each recipe is compared with each number of training examples (`kamerton compare`, so what is finished is not run
again). Then each model of `--ours` is set against each of `--against` on the frontier of quality and diversity, seed by
seed, as `kamerton eval --fidelity` does it. The tables go to `study.md`: scores, paired differences, and gains
at equal diversity, with Holm's correction over all tests of a table.

Run: `python benchmarks/gan_prompt_study.py --data FOLDER` (FOLDER holds e2e, snips, banking77). The whole takes days on
two processor cores; `--tasks dates --examples 64 --seeds 2 --methods gan-prompt supervised-control` is a part of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import kamerton as kt
from kamerton.assessment.samples import Samples, draw, sample_figures
from kamerton.base import Base
from kamerton.evaluation.diversity import words
from kamerton.evaluation.frontier import Point, compare_frontiers
from kamerton.evaluation.statistics import holm
from kamerton.files import write_json
from kamerton.inference import Sampling
from kamerton.methods import load_adapted
from kamerton.recipe import Recipe, load_recipe
from kamerton.rendering import Renderer
from kamerton.tasks import Task, load_task
from kamerton.tasks.example import Example

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "gan_prompt"
OURS = "gan-prompt"
ARRAYS = ("tokens", "ended", "nats")


def compared(name: str, examples: int, args: argparse.Namespace) -> tuple[Recipe, Path]:
    """One comparison of the study: its recipe, and its folder."""
    data = args.data / name.replace("ablation", "e2e") if args.data and name != "dates" else None
    folder = args.output / f"{name}-{examples}"
    overrides = [f"task.limit.train={examples}", f"seeds={args.seeds}", *args.set]
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides=overrides, data=data)
    if args.methods:
        kept = [m for m in recipe.methods if m.label in args.methods]
        recipe = recipe.model_copy(update={"methods": kept})
    print(f"{name}, {examples} examples: {folder}", flush=True)
    kt.compare(recipe, output=folder, workers=args.workers)
    return recipe, folder


def plain_samples(samples: Sequence[Samples]) -> list[dict[str, Any]]:
    """Samples as JSON holds them."""
    return [{k: v.tolist() if k in ARRAYS else v for k, v in asdict(one).items()} for one in samples]


def samples_of(plain: Sequence[dict[str, Any]]) -> list[Samples]:
    """What `plain_samples` gave."""
    return [Samples(**{k: np.array(v) if k in ARRAYS else v for k, v in one.items()}) for one in plain]


def sampled(cell: Path, task: Task, base: Base, args: argparse.Namespace) -> list[Samples]:
    """Answers of one cell's model to the test questions at each temperature; what was sampled before is read."""
    file = cell / "frontier.json"
    asked = {"temperatures": args.temperatures, "n": args.samples, "task": task.fingerprint}
    if file.is_file() and (kept := json.loads(file.read_text()))["asked"] == asked:
        return samples_of(kept["samples"])
    print(f"  sampling {cell}", flush=True)
    model, plan = (
        load_adapted(cell / "adapter", base),
        Sampling(max_tokens=task.max_answer_tokens, n=args.samples, seed=1),
    )
    out = [draw(model, task.test, t, plan) for t in args.temperatures]
    write_json(file, {"asked": asked, "samples": plain_samples(out)})
    return out


def curve(samples: Sequence[Samples], asked: Sequence[Example], metric: str, renderer: Renderer) -> list[Point]:
    """Quality and diversity of answers to the same questions, a point a temperature."""
    split, out = words(), []
    for one in samples:
        figures = sample_figures(one, asked, [metric], renderer, split)
        out.append(Point(one.temperature, figures[metric], figures["self_bleu"]))
    return out


def frontiers(recipe: Recipe, folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """`gan-prompt` and others against each model of `--against` at equal diversity, for each seed."""
    task = load_task(recipe.task)
    labels = [m.label for m in recipe.methods if m.label in {*args.ours, *args.against}]
    base = kt.load_base(recipe.base.model)

    def points(label: str, seed: int) -> list[Point] | None:
        cell = folder / "cells" / label / f"seed-{seed}"
        if not (cell / "adapter").is_dir():
            return None
        return curve(sampled(cell, task, base, args), task.test, task.metrics[0], base.renderer)

    for seed in recipe.seeds:
        curves = {label: points(label, seed) for label in labels}
        for ours, other in itertools.product(args.ours, args.against):
            mine, theirs = curves.get(ours), curves.get(other)
            if mine and theirs and ours != other:
                gain = compare_frontiers(mine, theirs, seed=seed)
                if gain.value is not None:
                    yield {"ours": ours, "against": other, "seed": seed, "value": gain.value, "shared": gain.shared}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean over seeds, its 95% interval and p-value by Student's t; no interval for one."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or float(x.std()) == 0:
        return float(x.mean()), float("nan"), float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(x) - 1) * stats.sem(x)
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half), float(stats.ttest_1samp(x, 0).pvalue)


def scores_table(results: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """The score of each method in each setting."""
    labels = list(dict.fromkeys(row["label"] for r in results.values() for row in r["verdict"]["rows"]))
    out = ["| method | " + " | ".join(f"{n}, {k}" for n, k in results) + " |", "|---" * (1 + len(results)) + "|"]
    for label in labels:
        cells = []
        for r in results.values():
            row = next((x for x in r["verdict"]["rows"] if x["label"] == label), None)
            cells.append(f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if row else "–")
        out.append(f"| {label} | {' | '.join(cells)} |")
    return out


def differences_table(results: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """`gan-prompt` minus each other method, with the correction over all of the table."""
    rows = []
    for (name, examples), r in results.items():
        for pair in r["verdict"]["pairs"]:
            if OURS in (pair["first"], pair["second"]):
                turned = pair["second"] == OURS
                other = pair["first"] if turned else pair["second"]
                low, high = (-pair["high"], -pair["low"]) if turned else (pair["low"], pair["high"])
                rows.append((name, examples, other, pair["difference"] * (-1 if turned else 1), low, high, pair["p"]))
    corrected = holm([row[-1] for row in rows]) if rows else []
    out = ["| task, examples | gan-prompt minus | difference | 95% interval | p, Holm |", "|---|---|---|---|---|"]
    for (name, examples, other, value, low, high, _), p in zip(rows, corrected, strict=True):
        out.append(f"| {name}, {examples} | {other} | {value:+.3f} | {low:+.3f} to {high:+.3f} | {p:.3f} |")
    return out


def gain_lines(heads: Sequence[str], rows: Sequence[tuple[Sequence[object], Sequence[float]]]) -> list[str]:
    """A table of gains at equal diversity, means over seeds; a row has cells for `heads` and a gain of each seed."""
    found = [mean_interval(values) for _, values in rows]
    known = [one[-1] for one in found if one[-1] == one[-1]]
    corrected = iter(holm(known) if known else [])
    out = [f"| {' | '.join(heads)} | seeds | gain at equal diversity | 95% interval | p, Holm |"]
    out.append("|---" * (len(heads) + 4) + "|")
    for (cells, values), (value, low, high, p) in zip(rows, found, strict=True):
        text = f"{low:+.3f} to {high:+.3f} | {next(corrected):.3f}" if p == p else "– | –"
        out.append(f"| {' | '.join(map(str, cells))} | {len(values)} | {value:+.3f} | {text} |")
    return out


def gains_table(gains: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    """Gains at equal diversity of each model of `--ours` in each setting."""
    rows = []
    for (name, examples), found in gains.items():
        for ours, other in dict.fromkeys((g["ours"], g["against"]) for g in found):
            values = [g["value"] for g in found if (g["ours"], g["against"]) == (ours, other)]
            rows.append(((f"{name}, {examples}", ours, other), values))
    return gain_lines(["task, examples", "model", "against"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with local copies of the sets")
    parser.add_argument("--tasks", nargs="*", default=["dates", "e2e", "snips", "banking77", "ablation"])
    parser.add_argument("--examples", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help="labels; default: all of the recipe")
    parser.add_argument(
        "--ours", nargs="*", default=[OURS, "gan-prompt-rollouts"], help="set against each of --against"
    )
    parser.add_argument("--against", nargs="*", default=["supervised-control", "prompt-tuning"])
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.3, 0.5, 0.7, 1.0, 1.3])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="fields of every recipe, as in kamerton compare")
    parser.add_argument("--output", type=Path, default=Path("runs/gan-prompt-study"))
    args = parser.parse_args()
    results: dict[tuple[str, int], dict[str, Any]] = {}
    gains: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for name in args.tasks:
        for examples in args.examples if name != "ablation" else args.examples[-1:]:
            recipe, folder = compared(name, examples, args)
            results[name, examples] = json.loads((folder / "results.json").read_text())
            if name != "banking77":  # a closed set of answers has no samples
                gains[name, examples] = list(frontiers(recipe, folder, args))
            parts = [("Scores", scores_table(results)), ("Differences", differences_table(results)),
                     ("At equal diversity", gains_table(gains))]  # fmt: skip
            text = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in parts)
            (args.output / "study.md").write_text(text + "\n")
            print(text, flush=True)


if __name__ == "__main__":
    main()

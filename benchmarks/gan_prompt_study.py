"""The study on generative adversarial prompt tuning: the recipes of `examples/gan_prompt/`, by number of examples.

Each recipe is compared with each number of training examples (`kamerton compare`, so what is finished is not run
again). Then `gan-prompt` is set against each of the other models of `--against` on the frontier of quality and
diversity (`kamerton eval --fidelity`), seed by seed. The tables go to `study.md`: scores, paired differences, and gains
at equal diversity, with Holm's correction over all tests of a table.

Run: `python benchmarks/gan_prompt_study.py --data FOLDER` (FOLDER holds e2e, snips, banking77). The whole takes days on
two processor cores; `--tasks dates --examples 64 --seeds 2 --methods gan-prompt supervised-control` is a part of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import kamerton as kt
from kamerton.assessment.settings import FidelitySettings
from kamerton.evaluation.statistics import holm
from kamerton.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "gan_prompt"
OURS = "gan-prompt"


def compared(name: str, examples: int, args: argparse.Namespace) -> tuple[Any, Path]:
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


def frontiers(recipe: Any, folder: Path, args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """`gan-prompt` against others at equal diversity, for each seed; what was measured before is read."""
    for other in args.against:
        for seed in range(args.seeds):
            pair = [folder / "cells" / label / f"seed-{seed}" for label in (OURS, other)]
            out = folder / "frontier" / f"{other}-{seed}"
            if not all((cell / "adapter").is_dir() for cell in pair):
                continue
            if not (out / "fidelity.json").is_file():
                settings = FidelitySettings(temperatures=tuple(args.temperatures), samples=args.samples, phrasings=0)
                kt.fidelity(pair[0], recipe, against=pair[1], output=out, settings=settings)
            found = json.loads((out / "fidelity.json").read_text())["frontier"]
            if found["gain"] and found["gain"]["value"] is not None:
                yield {"against": other, "seed": seed, **found["gain"]}


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


def gains_table(gains: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    """Gains at equal diversity, means over seeds."""
    rows = []
    for key, found in gains.items():
        for other in dict.fromkeys(g["against"] for g in found):
            values = [g["value"] for g in found if g["against"] == other]
            rows.append((*key, other, len(values), *mean_interval(values)))
    known = [row[-1] for row in rows if row[-1] == row[-1]]
    corrected = iter(holm(known) if known else [])
    out = ["| task, examples | against | seeds | gain at equal diversity | 95% interval | p, Holm |", "|---" * 6 + "|"]
    for name, examples, other, seeds, value, low, high, p in rows:
        text = f"{low:+.3f} to {high:+.3f} | {next(corrected):.3f}" if p == p else "– | –"
        out.append(f"| {name}, {examples} | {other} | {seeds} | {value:+.3f} | {text} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with local copies of the sets")
    parser.add_argument("--tasks", nargs="*", default=["dates", "e2e", "snips", "banking77", "ablation"])
    parser.add_argument("--examples", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help="labels; default: all of the recipe")
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

"""Races on real tasks: what they save against the full comparison, and whether they name the same winners.

For each set the comparison is raced first, and then completed without a race in the same folder: the cells that a race
finishes are those of the full comparison, number for number, so each is computed once. Cost is compute for training and
answering, as a race's `race.json` counts it. What is finished is not run again.

Run: `python benchmarks/racing_sets.py --data FOLDER --workers 2` (FOLDER holds banking77, snips, sst2), or one set by
`--sets banking77`. It prints the table of docs/racing.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kamerton as kt
from kamerton.recipe import load_recipe

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TRAINED = "prompt-tuning, prefix-tuning, p-tuning, p-tuning-v2, ia3, adapter, lora, full"


@dataclass(frozen=True)
class Field:
    """One comparison: a recipe of examples/, and what is different from it."""

    recipe: str
    methods: str | None = None
    limits: tuple[int, int] | None = None  # validation, test
    tokens: int | None = None


FIELDS = {
    "dates": Field("dates"),
    "banking77": Field("banking77", f"[zero-shot, few-shot: {{shots: 8}}, {TRAINED}]", (77, 154), 12_000),
    "snips": Field("snips", f"[zero-shot, few-shot: {{shots: 4}}, {TRAINED}]", (32, 64), 10_000),
    "sst2": Field("sst2", f"[zero-shot, few-shot: {{shots: 4}}, {TRAINED}]", (128, 256), 10_000),
}


def raced(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Race one set, complete it, and give what came out."""
    field, folder = FIELDS[name], args.output / name
    sets = [f"seeds={args.seeds}", "forgetting=false", *args.set]
    if field.methods:
        sets.append(f"methods={field.methods}")
    if field.limits:
        sets += [f"task.limit.validation={field.limits[0]}", f"task.limit.test={field.limits[1]}"]
    if field.tokens:
        sets.append(f"budget.tokens={field.tokens}")
    data = args.data / name if args.data and name != "dates" else None
    recipe = load_recipe(EXAMPLES / f"{field.recipe}.yaml", overrides=sets, data=data)
    out: dict[str, Any] = {}
    for kind in ("race", "full"):
        kept, began = folder / f"{kind}-results.json", time.perf_counter()
        if not kept.is_file():
            kt.compare(recipe, output=folder, workers=args.workers, race=kind == "race")
            found = json.loads((folder / "results.json").read_text())
            found["seconds"] = time.perf_counter() - began
            if kind == "race":
                shutil.copyfile(folder / "report.html", folder / "race-report.html")
            kept.write_text(json.dumps(found))
        out[kind] = json.loads(kept.read_text())
    return out


def winners(found: dict[str, Any]) -> list[str]:
    """The highest mean, and what it does not beat."""
    rows = found["verdict"]["rows"]
    return sorted(row["label"] for row in rows if rows[0]["label"] not in row["worse_than"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--data", type=Path, help="folder with the data sets; default: the hub")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path("runs/racing"))
    parser.add_argument("--set", action="append", default=[], help="set a field of every recipe")
    args = parser.parse_args()
    lines = []
    for name in args.sets:
        found = raced(name, args)
        flops = found["race"]["race"]["flops"]
        stopped = [f"{s['label']} ({s['share']:.0%} of seed {s['seed']})" for s in found["race"]["race"]["stopped"]]
        race, full = winners(found["race"]), winners(found["full"])
        lines.append(
            f"| {name} | {len(found['full']['verdict']['rows'])} | {', '.join(full)} | "
            f"{', '.join(stopped) or 'none'} | {flops['spent'] / flops['full']:.0%} | "
            f"{'yes' if race == full else ', '.join(race)} |"
        )
    print("| set | methods | winners of the full comparison | stopped by the race | cost | same winners |")
    print("| --- | ---: | --- | --- | ---: | --- |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

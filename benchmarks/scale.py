"""What `kamerton plan` says against what cells then take: FLOPs, peak memory and seconds, at two sizes.

For each size cells of several families of methods are run and planned: `demo` (135 million parameters) and a
LLaMA of about 20 million with random weights and the same tokenizer. The answers of the plan are as long as those of
the cells, because how long a model talks is no cost that shapes can tell. Everything is computed in float32, by
one process with one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = """
task: {{embedded: dates, limit: {{train: 128, validation: 8, test: 24}}}}
base: {{model: "{model}", dtype: float32}}
methods:
  - zero-shot
  - few-shot
  - self-consistency: {{over: few-shot, samples: 5}}
  - prompt-tuning: {{learning_rate: 0.01, validations: 2}}
  - prefix-tuning: {{learning_rate: 0.01, validations: 2}}
  - lora: {{learning_rate: 0.001, validations: 2}}
  - full: {{learning_rate: 0.00003, validations: 2}}
  - lora: {{learning_rate: 0.0001, objective: grpo, reward: exact, validations: 2, label: grpo}}
seeds: 1
budget: {{tokens: 2_000}}
forgetting: {{bytes: 2048, prompts: 4}}
resources: {{cpus: 1}}
"""


def small(folder: Path) -> Path:
    """A LLaMA of about 20 million parameters with random weights and the tokenizer of `demo`."""
    import torch
    import transformers

    from kamerton.base.presets import PRESETS, Shape, build
    from kamerton.base.sources import resolve

    source = resolve("demo")[0]
    given = transformers.AutoConfig.from_pretrained(source)
    special = {n: getattr(given, n, None) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = Shape(256, 10, 8, given.vocab_size, 2048, kv_heads=4, tied=True)
    torch.manual_seed(0)
    build(PRESETS["llama"].config(shape, special), "causal").save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def measured(recipe: Path, folder: Path, *, keep: bool) -> dict[str, dict[str, Any]]:
    """The records of the recipe's cells, run now in a process of their own, by label.

    Seconds are those in which the process had a processor: what others on the machine took is left out.
    """
    command = [sys.executable, __file__, "--cells", str(recipe), "--output", str(folder)]
    if not (keep and folder.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(path.read_text()) for path in folder.glob("cells/*/seed-0/cell.json")]
    return {r["label"]: r for r in records}


def cells(path: Path, folder: Path) -> None:
    """Run the cells of a recipe as a comparison's worker does, and write their records."""
    import torch

    from kamerton.comparison.planning.trial import run_trial
    from kamerton.comparison.reference import general_text
    from kamerton.comparison.run import recipe_base
    from kamerton.comparison.store import Cell
    from kamerton.evaluation.forgetting import reference
    from kamerton.files import write_json
    from kamerton.inference import Engine
    from kamerton.methods import resolve
    from kamerton.recipe import load_recipe
    from kamerton.tasks import load_task
    from kamerton.training import Budget

    recipe = load_recipe(path)
    torch.set_num_threads(recipe.resources.cpus or 1)
    task, base = load_task(recipe.task), recipe_base(recipe)
    assert recipe.forgetting is not None
    text = general_text(recipe, recipe.forgetting.text, recipe.forgetting.bytes)
    known = reference(Engine(base.model, base.renderer), text, recipe.forgetting.prompts)
    budget, sampling = Budget(**recipe.budget.model_dump()), recipe.evaluation.sampling.model_dump()
    for label, method, options, _ in resolve(recipe):
        trial = run_trial(
            folder / "cell", Cell(label, method.name, options.model_dump(), 0, ""), base, task, budget, known, sampling,
            recipe.evaluation.max_batch_tokens, watched=False, tell=lambda _: None,
        )  # fmt: skip
        seconds = {phase: value * trial.busy for phase, value in trial.record["seconds"].items()}
        place = folder / "cells" / label / "seed-0"
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "cell.json", {**trial.record, "seconds": seconds, "busy": trial.busy})


def planned(recipe: Path, folder: Path) -> dict[str, Any]:
    """What the plan says, in a process of its own."""
    command = [sys.executable, "-m", "kamerton", "plan", str(recipe), "--answers", str(folder), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def compared(model: str, plan: dict[str, Any], records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a method: planned, measured."""
    rows = []
    for cost in plan["methods"]:
        record = records[cost["label"]]
        pairs = {
            "FLOPs, fit": (cost["flops"]["fit"], record["flops"]["fit"]),
            "FLOPs, evaluate": (cost["flops"]["evaluate"], record["flops"]["evaluate"]),
            "peak memory": (cost["memory"], record["peak_memory_bytes"]),
            "seconds, fit": (cost["seconds"]["fit"], record["seconds"]["fit"]),
            "seconds, evaluate": (cost["seconds"]["evaluate"], record["seconds"]["evaluate"]),
        }  # fmt: skip
        rows.append({"model": model, "method": cost["label"], **pairs})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Planned over measured, with what was measured behind it."""
    columns = [name for name in rows[0] if name not in ("model", "method")]
    lines = [f"| model | method | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(columns)]
    for row in rows:
        lines.append(f"| {row['model']} | {row['method']} | {' | '.join(_cell(n, row[n]) for n in columns)} |")
    return "\n".join(lines) + "\n"


def _cell(name: str, pair: tuple[float, float]) -> str:
    from kamerton.comparison.units import quantity

    said, was = pair
    if was < 0.01:  # nothing is trained
        return "–"
    unit = "s" if name.startswith("seconds") else "B" if name == "peak memory" else ""
    return f"**{said / was:.2f}** of {quantity(was, unit)}"


def main() -> None:
    """Run, plan, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/scale"))
    parser.add_argument("--only", nargs="*", default=["20m", "demo"], help="sizes: 20m, demo")
    parser.add_argument("--keep", action="store_true", help="take cells that were measured into the folder before")
    parser.add_argument("--cells", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cells:
        cells(args.cells, args.output)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in args.only:
            model = "demo" if name == "demo" else str(small(Path(place, "20m")))
            recipe, folder = args.output / f"{name}.yaml", args.output / name
            recipe.write_text(RECIPE.format(model=model))
            records = measured(recipe, folder, keep=args.keep)
            plan = planned(recipe, folder)
            (args.output / f"{name}.json").write_text(json.dumps(plan, indent=1))
            rows += compared(name, plan, records)
            print(markdown(rows), flush=True)
    (args.output / "scale.json").write_text(json.dumps(rows, indent=1))
    (args.output / "scale.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

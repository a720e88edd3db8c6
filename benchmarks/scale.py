"""What `kamerton plan` says against what comparisons then take: FLOPs, peak memory and seconds, at two sizes.

For each size a comparison of several families of methods is run and planned: `demo` (135 million parameters) and a
LLaMA of about 20 million with random weights and the same tokenizer. The answers of the plan are as long as those of
the comparison, because how long a model talks is no cost that shapes can tell. Everything is computed in float32, by
one worker with one thread.
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


def measured(recipe: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a comparison that is run now, by label."""
    command = [sys.executable, "-m", "kamerton", "compare", str(recipe), "--output", str(folder), "--workers", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(path.read_text()) for path in folder.glob("cells/*/seed-0/cell.json")]
    return {r["label"]: r for r in records}


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
    parser.add_argument("--keep", action="store_true", help="take comparisons that are in the folder already")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in args.only:
            model = "demo" if name == "demo" else str(small(Path(place, "20m")))
            recipe, folder = args.output / f"{name}.yaml", args.output / name
            recipe.write_text(RECIPE.format(model=model))
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
            records = measured(recipe, folder)
            plan = planned(recipe, folder)
            (args.output / f"{name}.json").write_text(json.dumps(plan, indent=1))
            rows += compared(name, plan, records)
            print(markdown(rows), flush=True)
    (args.output / "scale.json").write_text(json.dumps(rows, indent=1))
    (args.output / "scale.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

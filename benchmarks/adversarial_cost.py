"""What a step of adversarial training costs beside a supervised step of the same batch, on the demo model and `dates`.

Both optimise the same prompt generator on the same examples, in turns (A B A B). A step is what the training loop
does: batches, loss, backward pass, optimiser. The first pass over the examples fills the caches of features and is
timed apart.

Run: `python benchmarks/adversarial_cost.py` (some minutes; `--steps 2 --turns 2` for a quick look).
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch

from kamerton.base import load_base
from kamerton.methods import get_method, parse_options
from kamerton.objectives import get_objective
from kamerton.recipe import load_recipe
from kamerton.tasks import load_task


def step(objective: Any, tuned: Any, optimiser: torch.optim.Optimizer, number: int) -> float:
    """Seconds of one optimiser step."""
    start = time.perf_counter()
    batches = objective.batches(number, tuned.model)
    count = sum(b.count for b in batches)
    for batch in batches:
        (objective.loss(tuned.model, batch).total / count).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="examples/dates.yaml")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    recipe = load_recipe(args.recipe, overrides=[f"task.limit.train={args.examples}"])
    task, base, method = load_task(recipe.task), load_base("demo"), get_method("gan-prompt")
    kinds: dict[str, dict[str, Any]] = {
        "supervised": {"objective": "supervised"},
        "references": {"adversarial": {"warmup_steps": 1}},
        "references, no correction, no KL": {"adversarial": {"warmup_steps": 1, "correction": False, "kl": 0.0}},
        "rollouts": {"adversarial": {"warmup_steps": 1, "path": "rollouts"}},
    }
    runs, first = {}, {}
    for name, given in kinds.items():
        options = parse_options(method, {"batch_size": args.batch, **given})
        tuned = method.parameterisation.attach(base, options, task, 0)
        objective = get_objective(options.objective).build(base, task, options, limit=None, seed=0)
        if hasattr(objective, "begin"):
            objective.begin(tuned.model, tuned.module)
        tuned.module.train()
        optimiser = torch.optim.AdamW([p for p in tuned.module.parameters() if p.requires_grad], lr=1e-3)
        passes = max(1, args.examples // args.batch)
        first[name] = sum(step(objective, tuned, optimiser, i) for i in range(passes)) / passes
        runs[name] = (objective, tuned, optimiser)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(args.turns):
        for name, (objective, tuned, optimiser) in runs.items():
            found = [step(objective, tuned, optimiser, 1000 + turn * args.steps + i) for i in range(args.steps)]
            seconds[name].append(sum(found) / len(found))
    print(f"{args.batch} examples a step, {torch.get_num_threads()} threads")
    print("| step | first pass, s | s, median (range) | ratio to supervised |\n|---|---|---|---|")
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found, seconds["supervised"], strict=True)]
        print(f"| {name} | {first[name]:.2f} | {median(found):.2f} ({min(found):.2f}–{max(found):.2f}) | "
              f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |")  # fmt: skip


if __name__ == "__main__":
    main()

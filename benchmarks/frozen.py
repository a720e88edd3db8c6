"""What keeping the outputs of frozen layers brings: full fine-tuning of the upper layers, epoch by epoch.

python benchmarks/frozen.py [--freeze 20] [--examples 64] [--epochs 3]

Both runs train the same layers on the same steps of the task `dates`; one computes the frozen layers in every epoch,
the other once. Printed: seconds by the clock and of the processor, FLOPs, memory, how far losses and weights are apart.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from kamerton.base import load_base
from kamerton.base.work import Work, flops
from kamerton.objectives.supervised import Supervised
from kamerton.recipe import Recipe
from kamerton.tasks import load_task
from kamerton.training.checkpoint import copied_weights
from kamerton.tuning.full import Full, FullOptions

BATCH = 16


def run(base: Any, task: Any, freeze: int, epochs: int, *, cached: bool) -> dict[str, Any]:
    """Train; one turn."""
    tuned = Full.attach(base, FullOptions(freeze_layers=freeze), task, 0)
    frozen = tuned.model.frozen
    if not cached:
        tuned.model.frozen = None
    goal = Supervised(base.renderer, task.train, (), batch_size=BATCH)
    parameters = [p for p in tuned.module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    tuned.module.train()
    walls, cpus, costs, losses = [], [], [], []
    for epoch in range(epochs):
        work, wall, cpu = tuned.model.work.copy(), time.perf_counter(), time.process_time()
        for step in range(epoch * len(task.train) // BATCH, (epoch + 1) * len(task.train) // BATCH):
            batches = goal.batches(step, tuned.model)
            total = 0.0
            for batch in batches:
                loss = goal.loss(tuned.model, batch).total / sum(b.count for b in batches)
                loss.backward()
                total += float(loss.detach())
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(total)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        costs.append(flops(Work() + tuned.model.work - work, tuned.model.hf))
    weights = copied_weights(tuned.module)
    kept = frozen.bytes if cached and frozen is not None else 0
    return {"walls": walls, "cpus": cpus, "flops": costs, "losses": losses, "weights": weights, "bytes": kept}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freeze", type=int, default=20)
    parser.add_argument("--examples", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    base = load_base("demo", verify=False)
    task = load_task(Recipe.from_dict({"task": "dates", "methods": ["full"]}).task)
    task = replace(task, train=task.train[: args.examples])
    plain = run(base, task, args.freeze, args.epochs, cached=False)
    kept = run(base, task, args.freeze, args.epochs, cached=True)
    print(f"{base.info}\n{args.freeze} layers frozen, {args.examples} examples, {torch.get_num_threads()} threads\n")
    print("| epoch | seconds | with kept outputs | processor s | with kept outputs | TFLOPs | with kept outputs |")
    print("|---|---|---|---|---|---|---|")
    for i in range(args.epochs):
        cells = [
            f"{r[k][i] / (1e12 if k == 'flops' else 1):.2f}" for k in ("walls", "cpus", "flops") for r in (plain, kept)
        ]
        print(f"| {i + 1} | {' | '.join(cells)} |")
    apart = max(abs(a - b) for a, b in zip(plain["losses"], kept["losses"], strict=True))
    weights = max(float((plain["weights"][n] - w).abs().max()) for n, w in kept["weights"].items())
    print(f"\nkept: {kept['bytes'] / 2**20:.0f} MiB; losses differ by at most {apart:.1e}, weights by {weights:.1e}")


if __name__ == "__main__":
    main()

"""Memory and time of LoRA beside plain weights and beside weights in 4 bits: each in a process of its own.

python benchmarks/quantised.py [--threads 1]

Measured on the demo model and the task `dates`: what the weights take, the most memory while the model is loaded and
during two optimiser steps of 16 examples (resident memory; a file that is mapped counts), processor seconds of a step,
and of 64 tokens written for eight questions at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time

VARIANTS = {"lora": ("lora", {}), "lora with dora": ("lora", {"dora": True}), "qlora": ("qlora", {}),
            "qlora with dora": ("qlora", {"dora": True})}  # fmt: skip


def measure(name: str, threads: int) -> dict[str, float]:
    """One variant, in this process."""
    import torch

    from kamerton.base import load_base
    from kamerton.base.quantise import stored_bytes
    from kamerton.evaluation.memory import peak_bytes, reset_peak
    from kamerton.inference import Engine, Sampling
    from kamerton.objectives.supervised import Supervised
    from kamerton.recipe import Recipe
    from kamerton.tasks import load_task
    from kamerton.tuning import get_parameterisation

    torch.set_num_threads(threads)
    base = load_base("demo", dtype="float32", device="cpu", verify=False)
    task = load_task(Recipe.from_dict({"task": "dates", "methods": ["lora"]}).task)
    kind, options = VARIANTS[name]
    room = get_parameterisation(kind)
    base.release()  # only the method's own copy is measured
    gc.collect()
    reset_peak()
    tuned = room.attach(base, room.options(**options), task, 0)
    loading = peak_bytes()
    gc.collect()
    reset_peak()
    goal = Supervised(base.renderer, task.train[:64], (), batch_size=16)
    optimiser = torch.optim.AdamW([p for p in tuned.module.parameters() if p.requires_grad], lr=1e-3)
    tuned.module.train()
    start = time.process_time()
    for step in range(2):
        for batch in goal.batches(step, tuned.model):
            (goal.loss(tuned.model, batch).total / batch.count).backward()
        optimiser.step()
        optimiser.zero_grad()
    seconds = (time.process_time() - start) / 2
    peak = peak_bytes()
    tuned.module.eval()
    engine = Engine(tuned.model, base.renderer)
    start = time.process_time()
    answers = engine.generate([e.messages for e in task.test[:8]], Sampling(max_tokens=8))
    writing = (time.process_time() - start) / sum(len(a.tokens) for a in answers) * 64
    return {
        "weights": stored_bytes(tuned.model.hf),
        "loading": loading,
        "peak": peak,
        "step": seconds,
        "write": writing,
    }


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=VARIANTS, help="measure one variant in this process and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.threads)))
        return
    print("| | weights, MiB | peak loading, MiB | peak of steps, MiB | s a step | s for 64 tokens |")
    print("|---|---|---|---|---|---|")
    for name in VARIANTS:
        command = [sys.executable, __file__, "--one", name, "--threads", str(args.threads)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        r = json.loads(out.splitlines()[-1])
        sizes = " | ".join(f"{r[k] / 2**20:,.0f}" for k in ("weights", "loading", "peak"))
        print(f"| {name} | {sizes} | {r['step']:.1f} | {r['write']:.1f} |", flush=True)


if __name__ == "__main__":
    main()

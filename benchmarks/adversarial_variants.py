"""What variants of the adversarial stage bring on a real task, all from one supervised start, at equal diversity.

A method is trained with supervision, and each variant goes on from that start for the same number of steps. Judged are
answers to validation questions (the test set is not read, and no checkpoint is chosen: the end of the stage is taken),
sampled at several temperatures. The first variant is the control (`weight: 0`: supervision goes on); for each other one
the mean gain in the task's metric at equal diversity is printed, with a bootstrap interval over questions. What was
trained before is kept in `--output` and not trained again.

Run: `python benchmarks/adversarial_variants.py examples/gan_prompt/e2e.yaml --data FOLDER` (an hour of a core).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gan_prompt_study import curve
from kamerton.assessment.samples import draw
from kamerton.base import load_base
from kamerton.evaluation.figures import interval
from kamerton.evaluation.frontier import Point, compare_frontiers
from kamerton.inference import Sampling
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Run
from kamerton.recipe import load_recipe
from kamerton.tasks import load_task
from kamerton.training import Budget

VARIANTS: dict[str, dict[str, Any]] = {
    "control": {"weight": 0},
    "references": {},
    "rollouts": {"path": "rollouts"},
}
SHOWN = ("auc", "trained_auc", "trust", "scale", "kl", "entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", default="prompt-tuning")
    parser.add_argument("--options", type=json.loads, default={"learning_rate": 0.05, "batch_size": 8, "tokens": 20})
    parser.add_argument("--variants", type=json.loads, default=VARIANTS, help="options of the stage by name, as JSON")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--share", type=float, default=0.33, help="of the steps that are the stage's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.4, 0.7, 1.0])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=["task.split={validation: 0.2}"], help="fields of the recipe")
    parser.add_argument("--output", type=Path, default=Path("runs/adversarial-variants"))
    args = parser.parse_args()
    limits = [f"task.limit.{k}={v}" for k, v in (("train", args.examples), ("test", 1), ("validation", args.questions))]
    task = load_task(load_recipe(args.recipe, overrides=[*limits, *args.set], data=args.data).task)
    asked, task = task.validation, replace(task, validation=())
    base, method = load_base("demo"), get_method(args.method)
    name = task.metrics[0]
    control: list[Point] | None = None
    kept = args.output / f"{task.name}-{args.examples}-{args.steps}-{args.seed}"
    heads = (f"T = {t:g}: {name}, diversity, length, ended" for t in args.temperatures)
    print(f"| variant | {' | '.join(heads)} | gain at equal diversity | AUC, AUC trained, trust, scale, KL, entropy |")
    print("|---" * (len(args.temperatures) + 3) + "|", flush=True)
    for label, stage in args.variants.items():
        stage = {"share": args.share, "validations": 1, **stage}
        options = parse_options(method, {**args.options, "objective": "adversarial", "adversarial": stage})
        run = Run(kept / label, args.seed, starts=kept / "starts")
        adapted = method.fit(base, task, Budget(steps=args.steps), options, run)
        plan = Sampling(max_tokens=task.max_answer_tokens, n=args.samples, seed=1)
        samples = [draw(adapted, asked, t, plan) for t in args.temperatures]
        points = curve(samples, asked, name, base.renderer)
        cells = [
            f"{interval(p.quality).value:.1f}, {100 - interval(p.diversity).value:.1f}, {s.tokens.mean():.1f}, "
            f"{s.ended.mean():.2f}"
            for p, s in zip(points, samples, strict=True)
        ]
        gain = compare_frontiers(points, control) if control is not None else None
        control = control or points
        said = "" if gain is None or gain.value is None else f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        judged = [row for row in adapted.record.curve if "kl" in row]  # the control has no discriminators
        last = judged[-1] if judged else {}
        state = ", ".join(f"{last[k]:.3f}" for k in SHOWN if k in last)
        print(f"| {label} | {' | '.join(cells)} | {said} | {state} |", flush=True)


if __name__ == "__main__":
    main()

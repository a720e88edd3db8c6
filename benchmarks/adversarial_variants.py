"""What variants of the adversarial stage bring on a real task, all from one supervised start, at equal diversity.

A method is trained with supervision, and each variant goes on from that start for the same number of steps. Judged are
answers to validation questions (the test set is not read, and no checkpoint is chosen: the end of the stage is taken),
sampled at several temperatures. The first variant is the control (`weight: 0`: supervision goes on); for each other one
the mean gain in the task's metric at equal diversity is printed, with a bootstrap interval over questions, and at the
end its mean over `--seeds`, with Student's interval. Each seed has its own start, order and discriminators. What was
trained and sampled before is kept in `--output` and not made again.

Run: `python benchmarks/adversarial_variants.py examples/gan_prompt/e2e.yaml --data FOLDER` (an hour of a core).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gan_prompt_study import curve, gain_lines, plain_samples, samples_of
from kamerton.assessment.samples import Samples, draw
from kamerton.base import load_base
from kamerton.evaluation.figures import interval
from kamerton.evaluation.frontier import Gain, Point, compare_frontiers
from kamerton.files import write_json
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


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", default="prompt-tuning")
    parser.add_argument("--options", type=json.loads, default={"learning_rate": 0.05, "batch_size": 8, "tokens": 20})
    parser.add_argument("--variants", type=json.loads, default=VARIANTS, help="options of the stage by name, as JSON")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--share", type=float, default=0.33, help="of the steps that are the stage's")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.4, 0.7, 1.0])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=["task.split={validation: 0.2}"], help="fields of the recipe")
    parser.add_argument("--output", type=Path, default=Path("runs/adversarial-variants"))
    return parser.parse_args()


class Trial:
    """The task, the base and the method of one invocation."""

    def __init__(self, args: argparse.Namespace) -> None:
        held = {"train": args.examples, "test": 1, "validation": args.questions}
        limits = [f"task.limit.{k}={v}" for k, v in held.items()]
        task = load_task(load_recipe(args.recipe, overrides=[*limits, *args.set], data=args.data).task)
        self.args, self.asked, self.task = args, task.validation, replace(task, validation=())
        self.base, self.method, self.metric = load_base("demo"), get_method(args.method), task.metrics[0]

    def run(self, label: str, stage: dict[str, Any], seed: int) -> tuple[list[Samples], dict[str, float]]:
        """Answers at each temperature of a variant that was trained with a seed, and the last line of its curve."""
        args = self.args
        kept = args.output / f"{self.task.name}-{args.examples}-{args.steps}-{seed}"
        stage = {"share": args.share, "validations": 1, **stage}
        options = parse_options(self.method, {**args.options, "objective": "adversarial", "adversarial": stage})
        asked = {"options": options.model_dump(mode="json"), "temperatures": args.temperatures, "n": args.samples,
                 "task": self.task.fingerprint, "questions": len(self.asked)}  # fmt: skip
        file = kept / label / "sampled.json"
        if file.is_file() and (found := json.loads(file.read_text()))["asked"] == asked:
            return samples_of(found["samples"]), found["curve"]
        run = Run(kept / label, seed, starts=kept / "starts")
        adapted = self.method.fit(self.base, self.task, Budget(steps=args.steps), options, run)
        plan = Sampling(max_tokens=self.task.max_answer_tokens, n=args.samples, seed=1)
        samples = [draw(adapted, self.asked, t, plan) for t in args.temperatures]
        judged = [row for row in adapted.record.curve if "kl" in row]  # the control has no discriminators
        last = judged[-1] if judged else {}
        write_json(file, {"asked": asked, "curve": last, "samples": plain_samples(samples)})
        return samples, last


def row(label: str, seed: int, points: list[Point], samples: list[Samples], gain: Gain | None, last: Any) -> str:
    cells = [
        f"{interval(p.quality).value:.1f}, {100 - interval(p.diversity).value:.1f}, {s.tokens.mean():.1f}, "
        f"{s.ended.mean():.2f}"
        for p, s in zip(points, samples, strict=True)
    ]
    said = "" if gain is None or gain.value is None else f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    state = ", ".join(f"{last[k]:.3f}" for k in SHOWN if k in last)
    return f"| {label}, {seed} | {' | '.join(cells)} | {said} | {state} |"


def main() -> None:
    args = parsed()
    trial = Trial(args)
    heads = (f"T = {t:g}: {trial.metric}, diversity, length, ended" for t in args.temperatures)
    print(f"| variant, seed | {' | '.join(heads)} | gain at equal diversity | {', '.join(SHOWN)} |")
    print("|---" * (len(args.temperatures) + 3) + "|", flush=True)
    gains: dict[str, list[float]] = {}
    for seed in args.seeds:
        control: list[Point] | None = None
        for label, stage in args.variants.items():
            samples, last = trial.run(label, stage, seed)
            points = curve(samples, trial.asked, trial.metric, trial.base.renderer)
            gain = compare_frontiers(points, control) if control is not None else None
            control = control or points
            if gain is not None and gain.value is not None:
                gains.setdefault(label, []).append(gain.value)
            print(row(label, seed, points, samples, gain, last), flush=True)
    if len(args.seeds) > 1:
        print("", *gain_lines(["variant"], [((label,), values) for label, values in gains.items()]), sep="\n")


if __name__ == "__main__":
    main()

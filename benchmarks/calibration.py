"""What contextual calibration does to the spread over orders of the shots (Zhao et al. 2021, arXiv 2102.09690).

For each draw of shots, the same shots in so many random orders; accuracy on test questions before and after
calibration, mean and standard deviation over the orders. Prints a Markdown table; docs/methods/calibration.md shows it.

    python benchmarks/calibration.py examples/sst2.yaml --data DATA/sst2
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from kamerton.base import load_base
from kamerton.comparison.run import base_options
from kamerton.evaluation.answering import answer, judge, values
from kamerton.inference import Sampling
from kamerton.methods import get_method, parse_options
from kamerton.methods.calibration import Calibration
from kamerton.methods.few_shot import FewShot
from kamerton.methods.method import Run, Wrapped
from kamerton.recipe import load_recipe
from kamerton.tasks import load_task
from kamerton.training import Budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--draws", type=int, default=3, help="sets of shots, drawn by seeds 0, 1, …")
    parser.add_argument("--questions", type=int, default=200, help="of the test set, its first")
    parser.add_argument("--selection", default="random")
    parser.add_argument("--variants", nargs="+", default=["diagonal", "identity"])
    args = parser.parse_args()
    recipe = load_recipe(args.recipe, data=args.data)
    task = load_task(recipe.task)
    task = replace(task, test=task.test[: args.questions])
    base, metric = load_base(**base_options(recipe)), task.metrics[0]
    plan = Sampling(max_tokens=task.max_answer_tokens)
    few_shot = get_method("few-shot")
    options = parse_options(few_shot, {"shots": args.shots, "selection": args.selection})
    columns = ["before", *args.variants]
    found = np.zeros((args.draws, args.orders, len(columns)))
    for draw in range(args.draws):
        drawn = few_shot.fit(base, task, Budget(), options, Run(Path("unused"), draw))
        assert isinstance(drawn, Wrapped)
        rng = np.random.default_rng([draw, 30])
        for order in range(args.orders):
            pool = [drawn.state["pool"][i] for i in rng.permutation(args.shots)]
            model = FewShot().wrap(drawn.inner, options, {**drawn.state, "pool": pool})
            models = [model]
            for variant in args.variants:
                settings = parse_options(get_method("calibration"), {"variant": variant})
                models.append(Calibration().wrap(model, settings, {}))
            for i, one in enumerate(models):
                texts = answer(one, task.test, plan).texts
                found[draw, order, i] = values(judge(texts, task.test, [metric]), task.test)[metric]
            print(f"draw {draw}, order {order}: {found[draw, order].round(3).tolist()}", flush=True)
    print(f"\n{metric} on {len(task.test)} test questions, {args.orders} orders of {args.shots} shots\n")
    print("| draw |" + "".join(f" {c}: mean | deviation |" for c in columns))
    print("| --- |" + " --- | --- |" * len(columns))
    for draw in range(args.draws):
        cells = "".join(f" {c.mean():.1%} | {c.std(ddof=1):.1%} |" for c in found[draw].T)
        print(f"| {draw} |{cells}")


if __name__ == "__main__":
    main()

"""What contextual calibration does to the spread over orders of the shots (Zhao et al. 2021, arXiv 2102.09690).

The same shots in so many random orders; accuracy on test questions before and after calibration, by content-free
inputs and by the mean over validation questions: mean and standard deviation over the orders. Every question is scored
once and calibrated both ways. Prints Markdown tables; docs/methods/calibration.md shows one.

    python benchmarks/calibration.py examples/sst2.yaml --data DATA/sst2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kamerton.base import load_base
from kamerton.comparison.run import base_options
from kamerton.evaluation.answering import judge, values
from kamerton.methods import get_method, parse_options
from kamerton.methods.calibration import CalibrationOptions
from kamerton.methods.few_shot import FewShot
from kamerton.methods.method import Run, Wrapped
from kamerton.prompting.calibration import calibrate, content_free, leaning
from kamerton.recipe import load_recipe
from kamerton.tasks import load_task
from kamerton.training import Budget

COLUMNS = ("before", "content-free", "validation")


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy over orders of the shots, before and after calibration.")
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--draws", type=int, default=1, help="sets of shots, drawn by seeds 0, 1, …")
    parser.add_argument("--questions", type=int, default=100, help="test questions")
    parser.add_argument("--inputs", type=int, default=64, help="validation questions whose mean is taken")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe, data=args.data)
    task = load_task(recipe.task)
    test, metric = task.test[: args.questions], task.metrics[0]
    choices = test[0].choices
    base = load_base(**base_options(recipe))
    few_shot = get_method("few-shot")
    options = parse_options(few_shot, {"shots": args.shots})
    inputs = CalibrationOptions().inputs
    validation = [e.messages[-1].content for e in task.validation[: args.inputs]]
    found = np.zeros((args.draws, args.orders, len(COLUMNS)))
    for draw in range(args.draws):
        drawn = few_shot.fit(base, task, Budget(), options, Run(Path("unused"), draw))
        assert isinstance(drawn, Wrapped)
        rng = np.random.default_rng([draw, 30])
        for order in range(args.orders):
            pool = [drawn.state["pool"][i] for i in rng.permutation(args.shots)]
            model = FewShot().wrap(drawn.inner, options, {**drawn.state, "pool": pool})
            asked = [model.prepare(e.messages) for e in test]
            free = [content_free(asked[0], test[0].messages[-1].content, text) for text in (*inputs, *validation)]
            everything = [*free, *asked]
            scores = np.array(model.engine.score(everything, [choices] * len(everything)))
            own = scores[len(free) :]
            ways = (np.zeros(len(choices)), leaning(scores[: len(inputs)]), leaning(scores[len(inputs) : len(free)]))
            for i, log_cf in enumerate(ways):
                texts = [choices[int(np.argmax(calibrate(row, log_cf, "diagonal")))] for row in own]
                found[draw, order, i] = values(judge(texts, test, [metric]), test)[metric]
            print(f"draw {draw}, order {order}: {found[draw, order].round(3).tolist()}", flush=True)
    print(f"\n{metric} on {len(test)} test questions, {args.orders} orders of {args.shots} shots\n")
    print("| draw |" + "".join(f" {c}: mean | deviation |" for c in COLUMNS))
    print("| --- |" + " --- | --- |" * len(COLUMNS))
    for draw in range(args.draws):
        cells = "".join(f" {c.mean():.1%} | {c.std(ddof=1):.1%} |" for c in found[draw].T)
        print(f"| {draw} |{cells}")


if __name__ == "__main__":
    main()

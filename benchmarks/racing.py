"""How often a race stops the best method, what it saves, and whether it names those that the full comparison names.

Answers are simulated with the probit model of coverage.py, with learning curves: a method that trains has the skill

    skill(share) = skill - lag × (1 - share),

its lag drawn anew in every trial, so that curves cross now and then. The truly best method is known. In the field
"late starter" it is the best one that starts last, with a lag far outside what a race assumes.

Run: `python benchmarks/racing.py` (some ten minutes; `--trials 40` for a quick look). It prints the table of
docs/racing.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import norm

from kamerton.comparison.looks import Standing, look
from kamerton.evaluation.metrics import get_metric
from kamerton.evaluation.statistics import compare
from kamerton.recipe import RaceSpec

METRIC = get_metric("accuracy", None)


@dataclass(frozen=True)
class Field:
    """Methods by their true accuracy; the first `untrained` ones train nothing and cost nothing."""

    accuracy: tuple[float, ...]
    untrained: int = 2
    seed_deviation: float = 0.1  # of the skill (probit): about 3 points of accuracy
    lag: tuple[float, float] = (0.3, 1.2)
    late: float | None = None  # lag of the best
    validation: int = 128
    test: int = 256
    seeds: int = 3


FIELDS = {
    "one ahead": Field((0.1, 0.35, 0.85, 0.65, 0.6, 0.5, 0.4, 0.3)),
    "three alike": Field((0.1, 0.35, 0.8, 0.79, 0.78, 0.5, 0.4, 0.3)),
    "close behind": Field((0.1, 0.35, 0.8, 0.75, 0.75, 0.75, 0.7, 0.7)),
    "all alike": Field((0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6)),
    "unlucky seeds": Field((0.1, 0.35, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5), seed_deviation=0.2),
    "late starter": Field((0.1, 0.35, 0.85, 0.65, 0.6, 0.5, 0.4, 0.3), late=2.0),
    "many": Field((0.1, 0.35, 0.82, 0.8, *np.linspace(0.72, 0.1, 16).round(2).tolist())),
}


@dataclass
class Outcome:
    """Shares of trials, and the mean cost as a share of the full comparison's."""

    best_stopped: float
    cost: float
    same_winners: float


@dataclass
class World:
    """One draw of everything random."""

    of: Field
    rng: np.random.Generator
    skill: Any = field(init=False)

    def __post_init__(self) -> None:
        f, k = self.of, len(self.of.accuracy)
        # one example's answer has variance 1 (example) + 0.25 (its interaction with the method) + 0.36 (noise)
        self.skill = norm.ppf(f.accuracy) * np.sqrt(1.61 + f.seed_deviation**2)
        self.lag = np.where(np.arange(k) < f.untrained, 0.0, self.rng.uniform(*f.lag, size=k))
        if f.late is not None:
            self.lag[int(np.argmax(f.accuracy))] = f.late
        self.seed = self.rng.normal(0, f.seed_deviation, size=(k, f.seeds)) * (np.arange(k) >= f.untrained)[:, None]
        n = f.validation + f.test
        self.example = self.rng.normal(size=n) + 0.5 * self.rng.normal(size=(k, n))
        self.noise = 0.6 * self.rng.normal(size=(k, f.seeds, n))
        self.noise[: f.untrained] = self.noise[: f.untrained, :1]

    def answers(self, method: int, seed: int, share: float, *, test: bool) -> Any:
        """(N, 1) right or wrong."""
        skill = self.skill[method] - self.lag[method] * (1 - share) + self.seed[method, seed]
        right = (skill + self.example[method] + self.noise[method, seed] > 0).astype(float)[:, None]
        return right[self.of.validation :] if test else right[: self.of.validation]


def race(world: World, spec: RaceSpec, resamples: int) -> tuple[list[int], float]:
    """The rounds of comparison/race.py on simulated answers: who is left, and the cost in fits."""
    f = world.of
    alive, spent = list(range(len(f.accuracy))), 0.0
    alpha = spec.alpha / (len(spec.shares) + f.seeds - 1)
    for seed in range(f.seeds):
        last, before = seed == f.seeds - 1, 0.0
        for share in (*(spec.shares if seed == 0 else ()), *(() if last else (1.0,))):
            spent += (share - before) * sum(m >= f.untrained for m in alive)
            before = share
            field = [
                Standing(
                    str(m),
                    {s: world.answers(m, s, share if s == seed else 1.0, test=False) for s in range(seed + 1)},
                    training=m >= f.untrained and share < 1,
                    seeded=m >= f.untrained,
                )
                for m in alive
            ]
            behind = look(
                field, METRIC, alpha=alpha, seed_deviation=spec.seed_deviation,
                curve_deviation=spec.curve_deviation * (1 - share), resamples=resamples,
            )  # fmt: skip
            alive = [m for m in alive if str(m) not in {b.label for b in behind}]
        spent += (1 - before) * sum(m >= f.untrained for m in alive)
    return alive, spent


def winners(world: World, methods: list[int], resamples: int) -> set[int]:
    """The verdict's contenders on the test set: the highest mean, and what it does not beat at p < 0.05."""
    scores = {str(m): {s: world.answers(m, s, 1.0, test=True) for s in range(world.of.seeds)} for m in methods}
    top = max(scores, key=lambda m: float(np.mean([x.mean() for x in scores[m].values()])))
    pairs = [(top, m) for m in scores if m != top]
    found = compare(scores, METRIC, resamples=resamples, permutations=2000, pairs=pairs).differences
    return {int(top), *(int(m) for (_, m), d in found.items() if d.p >= 0.05)}


def trials(of: Field, count: int, *, resamples: int = 1000, verdicts: bool = False, seed: int = 0) -> Outcome:
    """Race `count` times; with `verdicts` the full comparison is made too."""
    spec, stopped, cost, same = RaceSpec(), 0, 0.0, 0
    best = {m for m, a in enumerate(of.accuracy) if a == max(of.accuracy)}
    for trial in range(count):
        world = World(of, np.random.default_rng((seed, trial)))
        alive, spent = race(world, spec, resamples)
        stopped += not best <= set(alive)
        cost += spent / (of.seeds * (len(of.accuracy) - of.untrained))
        if verdicts:
            same += winners(world, alive, resamples) == winners(world, list(range(len(of.accuracy))), resamples)
    return Outcome(stopped / count, cost / count, same / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=500)
    asked = parser.parse_args()
    print("| methods | a best one was stopped | cost | same winners |\n| --- | ---: | ---: | ---: |")
    for name, of in FIELDS.items():
        out = trials(of, asked.trials, resamples=asked.resamples, verdicts=True)
        print(f"| {name} | {out.best_stopped:.1%} | {out.cost:.0%} | {out.same_winners:.0%} |", flush=True)


if __name__ == "__main__":
    main()

"""How often the intervals of kamerton.evaluation.statistics hold the truth, and how often equal methods are told apart.

Scores are simulated with a probit model whose expectation over new examples and new seeds is known in closed form:

    y[method, seed, example] = 1 if base[method] + b[example] + g[method, example] + a[method, seed] + noise > 0

Run: `python benchmarks/coverage.py` (ten minutes; `--trials 200` for a quick look). It prints the Markdown tables
that docs/statistics.md shows. `--ideal` prints instead how well ways to join both sources of variance can do at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2, norm, t

from kamerton.evaluation.statistics import compare, holm, seed_share

Array = np.ndarray[Any, Any]


class Mean:
    range = (0.0, 1.0)

    def aggregate(self, sums: Array, count: Array | float) -> Array:
        return sums[..., 0] / count


class F1:
    """F1 of a positive class from (true positives, false positives, false negatives): not a mean over examples."""

    range = (0.0, 1.0)

    def aggregate(self, sums: Array, count: Array | float) -> Array:  # noqa: ARG002
        hit, extra, missed = sums[..., 0], sums[..., 1], sums[..., 2]
        return 2 * hit / np.maximum(2 * hit + extra + missed, 1e-12)


@dataclass(frozen=True)
class Setting:
    """Standard deviations are on the probit scale; `seed` may differ by method (0: the method is deterministic)."""

    name: str
    examples: int = 240
    seeds: int = 3
    base: tuple[float, ...] = (0.6, 0.9)
    difficulty: float = 1.0
    taste: float = 0.5
    seed: tuple[float, ...] = (0.2, 0.2)
    noise: float = 0.7
    shared_seed: float = 0.0
    score: str = "binary"

    def draw(self, rng: np.random.Generator) -> tuple[dict[str, dict[int, Array]], Array]:
        """Scores by method and seed, and the true expected score of each method."""
        m, k, n = len(self.base), self.seeds, self.examples
        deviation = np.array([self.seed[j % len(self.seed)] for j in range(m)])
        run = rng.normal(size=(m, k, 1)) * deviation[:, None, None]
        run = run + rng.normal(size=(1, k, 1)) * self.shared_seed
        noise = rng.normal(size=(m, k, n)) * self.noise
        fixed = deviation == 0
        noise[fixed] = noise[fixed, :1]  # a deterministic method answers alike for every seed
        taste = rng.normal(size=(m, 1, n)) * self.taste
        latent = np.array(self.base)[:, None, None] + rng.normal(size=(1, 1, n)) * self.difficulty + taste + run + noise
        # with one seed the claim is about that run: its effect belongs to the truth
        known = run[:, :, 0].mean(1) if k == 1 else np.zeros(m)
        variance = self.difficulty**2 + self.taste**2 + self.noise**2
        if k > 1:
            variance = variance + deviation**2 + self.shared_seed**2
        if self.score == "binary":
            y = (latent > 0).astype(float)[..., None]
            truth = norm.cdf((np.array(self.base) + known) / np.sqrt(variance))
        elif self.score == "graded":  # a partial credit: mean of two thresholds
            y = ((latent > 0) * 0.5 + (latent > 0.8) * 0.5)[..., None]
            scale = np.sqrt(variance)
            low, high = (np.array(self.base) + known) / scale, (np.array(self.base) + known - 0.8) / scale
            truth = 0.5 * norm.cdf(low) + 0.5 * norm.cdf(high)
        else:  # F1 of a class that a third of the examples have; the truth is the limit for many examples
            positive = rng.random(n) < 1 / 3
            right = latent > 0
            y = np.stack([right & positive, ~right & ~positive, ~right & positive], -1).astype(float)
            p = norm.cdf((np.array(self.base) + known) / np.sqrt(variance))
            truth = 2 * p / 3 / (2 * p / 3 + (1 - p))
        return {f"m{j}": {s: y[j, s] for s in range(k)} for j in range(m)}, truth


COVERAGE = (
    Setting("demo: 240 examples, 3 seeds"),
    Setting("demo, seeds do not vary", seed=(1e-9, 1e-9)),
    Setting("demo, seeds vary much", seed=(0.5, 0.5)),
    Setting("demo, one method varies more", seed=(0.1, 0.5)),
    Setting("demo, first is deterministic", seed=(0.0, 0.3)),
    Setting("demo, both deterministic", seed=(0.0, 0.0)),
    Setting("demo, one seed (conditional)", seeds=1),
    Setting("demo, seeds of one number share an effect", seed=(0.15, 0.15), shared_seed=0.15),
    Setting("answers independent given the method", difficulty=0.0, taste=0.0, noise=1.0, seed=(1e-9, 1e-9)),
    Setting("answers independent given the run", difficulty=0.0, taste=0.0, noise=1.0, seed=(0.15, 0.15)),
    Setting("100 examples", examples=100),
    Setting("100 examples, seeds do not vary", examples=100, seed=(1e-9, 1e-9)),
    Setting("300 examples", examples=300),
    Setting("1,000 examples", examples=1000),
    Setting("2 seeds", seeds=2),
    Setting("5 seeds", seeds=5),
    Setting("5 seeds, seeds vary much", seeds=5, seed=(0.5, 0.5)),
    Setting("0.05 against 0.93", base=(-2.3, 2.0)),
    Setting("0.97 against 0.98", base=(2.6, 2.85)),
    Setting("graded scores", score="graded"),
    Setting("F1", score="f1"),
)

EQUAL = (
    Setting("2 equal methods", base=(0.6,) * 2, seed=(0.2,)),
    Setting("2 equal methods, seeds do not vary", base=(0.6,) * 2, seed=(1e-9,)),
    Setting("2 equal methods, seeds vary much", base=(0.6,) * 2, seed=(0.5,)),
    Setting("2 equal methods, one deterministic", base=(0.6 * (1.74 / 2.0) ** 0.5, 0.6), seed=(0.0, 0.26**0.5)),
    Setting("2 equal methods, one seed, no seed variance", base=(0.6,) * 2, seeds=1, seed=(1e-9,)),
    Setting("5 equal methods", base=(0.6,) * 5, seed=(0.2,)),
    Setting("5 equal methods, seeds do not vary", base=(0.6,) * 5, seed=(1e-9,)),
    Setting("5 equal methods, seeds vary much", base=(0.6,) * 5, seed=(0.5,)),
    Setting("5 equal methods, seeds vary very much", base=(0.6,) * 5, seed=(1.0,)),
    Setting("5 equal methods, 100 examples", examples=100, base=(0.6,) * 5, seed=(0.2,)),
)


def run(setting: Setting, trials: int, resamples: int, seed: int = 0) -> dict[str, float]:
    """Shares of trials: interval of the difference and of the first method holds the truth, any pair is told apart."""
    rng = np.random.default_rng(seed)
    metric = F1() if setting.score == "f1" else Mean()
    counts = {"difference": 0, "method": 0, "apart": 0, "width": 0.0}
    for trial in range(trials):
        scores, truth = setting.draw(rng)
        analysis = compare(scores, metric, resamples=resamples, permutations=resamples, seed=trial)
        pair = analysis.differences["m0", "m1"]
        counts["difference"] += pair.low <= truth[0] - truth[1] <= pair.high
        one = analysis.estimates["m1"]
        counts["method"] += one.low <= truth[1] <= one.high
        counts["apart"] += min(holm([d.p for d in analysis.differences.values()])) < 0.05
        counts["width"] += pair.high - pair.low
    return {key: value / trials for key, value in counts.items()}


def ideal(df: int, alpha: float) -> dict[str, tuple[float, float]]:
    """Lowest and highest coverage of ways to join two variances, in an idealised model.

    The score is normal with variance 1 from examples (known; `inner` of it is interaction) plus `tau` from seeds, and
    the variance between seeds is estimated with `df` degrees of freedom. Extremes over `inner` and `tau`.
    """
    taus = np.array([0, 0.1, 0.25, 0.5, 1, 2, 4, 8, 20, 100])[:, None]
    draws = chi2.ppf((np.arange(600) + 0.5) / 600, df) / df
    z, far = norm.isf(alpha / 2), t.isf(alpha / 2, df)

    def satterthwaite(q: Array, inner: float) -> Array:
        seeds = np.maximum(q - inner, 0)
        freedom = np.where(seeds > 0, np.maximum(df * ((1 + seeds) / np.maximum(q, 1e-12)) ** 2, df), 1e9)
        return t.isf(alpha / 2, freedom) * np.sqrt(1 + seeds)

    def mover(share: float) -> Callable[[Array, float], Array]:
        return lambda q, inner: np.sqrt(z**2 + far**2 * np.maximum(q - share * inner, 0))

    ways = {
        "Satterthwaite's t for the sum": satterthwaite,
        "MOVER, all of the interaction subtracted": mover(1.0),
        "MOVER, the share subtracted": mover(seed_share(df)),
        "MOVER, half of the share subtracted": mover(0.5 * seed_share(df)),
    }
    found = {}
    for name, way in ways.items():
        covered = [
            (1 - 2 * norm.sf(way((taus + inner) * draws, inner) / np.sqrt(1 + taus))).mean(1)
            for inner in (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
        ]
        found[name] = (float(np.min(covered)), float(np.max(covered)))
    return found


def print_ideal() -> None:
    settings = [(2, 0.05), (4, 0.05), (2, 0.005), (4, 0.005)]
    columns = {setting: ideal(*setting) for setting in settings}
    print("| | " + " | ".join(f"{df} df, nominal {1 - alpha:.1%}" for df, alpha in settings) + " |")
    print("| --- " * (len(settings) + 1) + "|")
    for name in columns[settings[0]]:
        print(f"| {name} | " + " | ".join("{:.1%} to {:.1%}".format(*columns[s][name]) for s in settings) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=600)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--ideal", action="store_true", help="ways to join both sources of variance, idealised")
    options = parser.parse_args()
    if options.ideal:
        print_ideal()
        return
    print("| setting | difference: interval holds the truth | one method: interval holds the truth | mean width |")
    print("| --- | --- | --- | --- |")
    for setting in COVERAGE:
        if options.only in setting.name:
            r = run(setting, options.trials, options.resamples)
            print(f"| {setting.name} | {r['difference']:.1%} | {r['method']:.1%} | {r['width']:.3f} |", flush=True)
    print("\n| setting | any pair told apart (Holm) | interval of the first pair holds zero |\n| --- | --- | --- |")
    for setting in EQUAL:
        if options.only in setting.name:
            r = run(setting, options.trials, options.resamples)
            print(f"| {setting.name} | {r['apart']:.1%} | {r['difference']:.1%} |", flush=True)


if __name__ == "__main__":
    main()

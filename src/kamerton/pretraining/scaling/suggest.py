"""For a budget: which of the models that there are, on how many tokens, by the law that was fitted.

The budget is FLOPs, or minutes of this machine. For minutes every size of the grid is trained for a few seconds here
and now; between sizes, FLOPs a second go along a line between logarithms.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kamerton.comparison.units import duration
from kamerton.errors import KamertonError
from kamerton.pretraining.goals import goal_of
from kamerton.pretraining.models import settings, start
from kamerton.pretraining.scaling.analysis import Analysis, Points
from kamerton.pretraining.scaling.bootstrap import interval
from kamerton.pretraining.scaling.grid import Run, Sized, own_recipe
from kamerton.pretraining.scaling.law import BOTH
from kamerton.recipe_pretrain import PretrainRecipe
from kamerton.recipe_scaling import Counted
from kamerton.training import Budget, fit

SECONDS = 3.0
"""Time that each size is trained to measure its speed."""
RISES = 3
"""Models in a row that are worse than the best one, after which larger ones are not asked for."""
ENOUGH = "train at least three sizes on three token counts, six runs in all"
REPEATS = 4.0
"""Epochs beyond which repeated text is worth clearly less than new (Muennighoff et al. 2023, arXiv 2305.16264)."""


@dataclass(frozen=True)
class Asked:
    """A budget: FLOPs or minutes.

    Raises:
        KamertonError: none, both, or one that is not above 0.
    """

    flops: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.flops is None) == (self.minutes is None):
            raise KamertonError("a budget is FLOPs or minutes", where="--flops", mend="give one of the two")
        value = self.flops if self.flops is not None else self.minutes
        if value is None or not (np.isfinite(value) and value > 0):
            where = "--flops" if self.flops is not None else "--minutes"
            raise KamertonError(f"{value} is no budget", where=where, mend="give a number above 0")

    def __str__(self) -> str:
        return (
            f"{self.flops:.3g} FLOPs".replace("e+", "e")
            if self.flops is not None
            else duration(60 * (self.minutes or 0))
        )


def check_suggestible(recipe: PretrainRecipe, some: Sequence[Run]) -> None:
    """Refuse a suggestion from a grid that holds no law of size and tokens, before it is trained.

    Raises:
        RecipeError: there are fewer than three sizes, three token counts or six runs.
    """
    if not Points.planned(some).hold(BOTH):
        raise recipe.error(("scaling",), f"{len(some)} runs hold no law to suggest a model by", mend=ENOUGH)


def speeds(
    recipe: PretrainRecipe, folder: Path, sized: Sequence[Sized], tell: Callable[[str, float, str], None]
) -> list[float]:
    """Tokens a second of training each model on this machine as it is now.

    Args:
        folder: of the grid, for its streams of tokens.
    """
    out = []
    for i, one in enumerate(sized):
        tell("measuring speed", i / len(sized), f"{one.name}, {SECONDS:.0f} seconds")
        own = own_recipe(recipe, Run(one, 10**12, recipe.training.seed), 1)
        started = start(own)
        goal = goal_of(own, started, folder, tell)
        with tempfile.TemporaryDirectory() as place:
            limit = Budget(seconds=1000 * SECONDS)
            result = fit(
                started.model, started.model.hf, goal.objective, settings(own, started), limit, Path(place),
                until=1 / 1000, measure=False,
            )  # fmt: skip
        rows = result.state.curve
        first = rows[0] if len(rows) > 1 else {"tokens": 0, "seconds": 0.0}  # the first step makes room in memory
        out.append((rows[-1]["tokens"] - first["tokens"]) / (rows[-1]["seconds"] - first["seconds"]))
    return out


def suggest(
    asked: Asked, found: Analysis, counted: Counted, models: Iterator[Sized], measured: Sequence[tuple[float, float]],
    corpus: int, largest: float,
) -> dict[str, Any]:  # fmt: skip
    """The best model for a budget.

    Args:
        models: those that there are, by rising size.
        measured: (FLOPs of a token, tokens a second) of some models, for minutes and for how long it takes.
        corpus: tokens of the text.
        largest: compute of the grid's largest run, FLOPs.

    Raises:
        KamertonError: L(N, D) was not fitted.
    """
    if found.both is None:
        raise KamertonError(
            "no law of size and tokens was fitted, so nothing can be foretold", where="scaling",
            mend=ENOUGH,
        )  # fmt: skip
    fits = [found.both.fit, *found.both.replicates]
    tried, behind = list[tuple[Sized, float, np.ndarray[Any, Any]]](), 0
    for one in models:
        tokens = (asked.flops or 0) / one.flops
        if asked.minutes is not None:
            tokens = 60 * asked.minutes * _speed(one.flops, measured)
        losses = np.array([f.loss(one.count(counted), tokens) for f in fits])
        behind = behind + 1 if tried and losses[0] > min(t[2][0] for t in tried) else 0
        tried.append((one, tokens, losses))
        if behind >= RISES:
            break
    matrix = np.stack([losses for *_, losses in tried])  # (models, fits)
    picks = matrix.argmin(0)
    model, tokens, losses = tried[int(picks[0])]
    others = [tried[int(i)] for i in picks[1:]]
    spent = model.flops * tokens
    notes = [
        f"{name} bring{'s' * (name == 'size')} nothing in this grid: any other pick is as good" for name in found.flat
    ]
    if spent > largest * 1.01:
        notes.append(f"{spent / largest:.3g} times the compute of the grid's largest run: an extrapolation")
    if tokens > REPEATS * corpus:
        notes.append(
            f"{tokens / corpus:.3g} epochs: beyond {REPEATS:.0f} repeated text is worth less than the law says"
        )
    if int(picks[0]) == 0:
        notes.append("the smallest model that the rule of sizes has")
    out: dict[str, Any] = {
        "budget": str(asked), "flops": spent, "parameters": model.parameters, "non_embedding": model.non_embedding,
        "width": model.shape.width, "depth": model.shape.depth, "tokens": tokens, "epochs": tokens / corpus,
        "loss": interval(float(losses[0]), losses[1:].tolist()),
        "between": {
            "parameters": interval(model.parameters, [o[0].parameters for o in others]),
            "tokens": interval(tokens, [o[1] for o in others]),
        },
        "seconds": tokens / _speed(model.flops, measured) if measured else None, "notes": notes,
    }  # fmt: skip
    return out


def _speed(flops: float, measured: Sequence[tuple[float, float]]) -> float:
    """Tokens a second of a model with so many FLOPs a token; beyond the measured ones the FLOPs a second stay."""
    order = sorted(measured)
    costs, rates = np.log([c for c, _ in order]), np.log([c * s for c, s in order])
    return float(np.exp(np.interp(np.log(flops), costs, rates)) / flops)


def command(recipe: PretrainRecipe, suggestion: dict[str, Any]) -> str:
    """The command that trains what was suggested."""
    path = recipe.source or "RECIPE"
    more = "" if recipe.training.schedule else " --set training.schedule=warmup-stable-decay"
    fields = f"--set model.size={suggestion['parameters']} --set budget.tokens={round(suggestion['tokens'])}"
    return f"kamerton pretrain {path} {fields}{more}"


def first(models: Iterator[Sized], most: float) -> list[Sized]:
    """The models up to the first one with so many parameters."""
    out: list[Sized] = []
    for one in islice(models, 200):
        out.append(one)
        if one.parameters >= most:
            break
    return out

"""`kamerton scaling`: the grid of a recipe, what its losses say, a page of it, and a suggestion for a budget.

What is left: `scaling.json`, `report.html`, and what `train.py` keeps. A grid that was stopped goes on; sizes or token
counts that are added to the recipe later are trained, the others are not trained again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from kamerton.comparison.machine import kamerton_version, machine, versions
from kamerton.comparison.store import Store
from kamerton.files import write_json, write_text
from kamerton.outcome import Outcome
from kamerton.pretraining.run import Report
from kamerton.pretraining.scaling.analysis import Analysis, analyse
from kamerton.pretraining.scaling.grid import Sized, check, models, runs, shapes, warmup_steps, within
from kamerton.pretraining.scaling.page import page, sentences
from kamerton.pretraining.scaling.suggest import Asked, check_suggestible, command, first, speeds, suggest
from kamerton.pretraining.scaling.train import Done, Trainer
from kamerton.recipe_pretrain import PretrainRecipe, as_pretrain_recipe
from kamerton.recipe_scaling import COLUMN

ROOM = 30.0
"""Models up to so many times the largest of the grid are counted, for optima beyond it."""


@dataclass(frozen=True)
class ScalingLaws(Outcome):
    """What a grid gave.

    Attributes:
        folder: holds the files.
        results: what is in `scaling.json`.
    """

    @property
    def sentences(self) -> list[str]:
        """What came of it, in words."""
        return sentences(self.results)


def scaling_laws(
    recipe: str | Path | Mapping[str, Any] | PretrainRecipe,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    flops: float | None = None,
    minutes: float | None = None,
    report: Report | None = None,
) -> ScalingLaws:
    """Train a recipe's grid and fit scaling laws to it.

    Args:
        recipe: of a pretraining, with a block `scaling`: its path, its content, or a `PretrainRecipe`.
        output: the folder; default: the recipe's `output`, else `runs/<name>`.
        overrides: fields of the recipe to set.
        flops, minutes: suggest a model and tokens for such a budget, of FLOPs or of this machine's time.
        report: told about progress.

    Raises:
        KamertonError: recipe, tokenizer or texts are wrong, the grid is too small for a suggestion that is asked for,
            or another run uses the folder.
    """
    recipe = as_pretrain_recipe(recipe, overrides)
    asked = Asked(flops, minutes) if flops is not None or minutes is not None else None
    spec = check(recipe)
    folder = Path(output or recipe.output or Path("runs") / recipe.name)
    tell: Report = report or (lambda *_: None)
    sized, tokenizer = models(recipe)
    every = runs(recipe, sized)
    # of the whole grid, so that a larger budget goes on with the same runs
    warmup = warmup_steps(recipe, every)
    some, notes = within(recipe, every)
    if asked is not None:
        check_suggestible(recipe, some)
    lock = Store(folder).lock()
    transformers.utils.logging.disable_progress_bar()
    try:
        rows = Trainer(recipe, folder, warmup, tell).all(some)
        known = first(shapes(recipe, tokenizer), ROOM * sized[-1].parameters)
        priced = [(float(m.count(spec.count)), m.flops) for m in known]
        found = analyse(rows, spec.count, priced, spec.bootstrap, recipe.training.seed, tell)
        results = _written(folder, _told(recipe, sized, rows, found, notes))
        if asked is not None:  # behind the page, which stays where nothing can be suggested
            told = _suggested(asked, recipe, folder, sized, tokenizer, found, results, tell)
            results = _written(folder, {**results, "suggestion": told})
        return ScalingLaws(folder, results)
    finally:
        lock.release()


def _written(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Write results and their page; the results as they were written."""
    write_json(folder / "scaling.json", results)
    read: dict[str, Any] = json.loads((folder / "scaling.json").read_text(encoding="utf-8"))
    write_text(folder / "report.html", page(read))
    return read


def _told(
    recipe: PretrainRecipe, sized: Sequence[Sized], rows: Sequence[Done], found: Analysis, notes: Sequence[str]
) -> dict[str, Any]:
    spec = check(recipe)
    own = [{k: v for k, v in row.items() if k not in ("key", "data", "notes", "machine")} for row in rows]
    for row in own:
        row |= {"law": None, "error": None}
        if found.both is not None and row["loss"] is not None:
            row["law"] = found.both.fit.loss(row[COLUMN[spec.count]], row["tokens"])
            row["error"] = row["loss"] / row["law"] - 1
    assert recipe.model is not None
    return {
        "name": recipe.name, "recipe": recipe.text, "preset": recipe.model.preset, "count": spec.count,
        "bootstrap": spec.bootstrap, "context": sized[0].shape.context, "data": rows[0]["data"], "runs": own,
        "spent": spent(rows), **found.told, "suggestion": None,
        "notes": list(dict.fromkeys([*notes, *(n for row in rows for n in row["notes"])])),
        "kamerton": kamerton_version(), "versions": versions(), "machine": machine(),
    }  # fmt: skip


def spent(rows: Sequence[Done]) -> dict[str, float]:
    """What was trained, and what it would have been with every run on its own: tokens, FLOPs, seconds."""
    shared = [{**r["shared"], "flops": r["flops_per_token"] * r["shared"]["tokens"]} for r in rows]
    out: dict[str, float] = {}
    for name in ("tokens", "seconds", "flops"):
        alone, stable = sum(r[name] for r in rows), dict[tuple[str, int], float]()
        for r, part in zip(rows, shared, strict=True):
            key = r["size"], r["seed"]
            stable[key] = max(stable.get(key, 0.0), part[name])
        out[name] = alone - sum(part[name] for part in shared) + sum(stable.values())
        out[f"{name}_alone"] = alone
    return out


def _suggested(
    asked: Asked, recipe: PretrainRecipe, folder: Path, sized: Sequence[Sized], tokenizer: Any, found: Analysis,
    results: dict[str, Any], tell: Report,
) -> dict[str, Any]:  # fmt: skip
    spec = check(recipe)
    measured: list[tuple[float, float]] = []
    if asked.minutes is not None:
        measured = list(zip((s.flops for s in sized), speeds(recipe, folder, sized, tell), strict=True))
    largest = max(row["flops"] for row in results["runs"])
    out = suggest(asked, found, spec.count, shapes(recipe, tokenizer), measured, results["data"]["tokens"], largest)
    return {**out, "command": command(recipe, out)}

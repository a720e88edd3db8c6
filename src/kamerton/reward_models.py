"""What Python users call for reward models: `train_reward_model`, `evaluate_reward_model`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamerton import processes
from kamerton.api import load, merge, pick_method
from kamerton.assessment.reward_accuracy import measure
from kamerton.assessment.reward_page import reward_page
from kamerton.base import Base, load_base
from kamerton.comparison.machine import kamerton_version
from kamerton.comparison.run import recipe_base
from kamerton.comparison.store import Store
from kamerton.errors import KamertonError, TaskError
from kamerton.files import write_json, write_text
from kamerton.inference.reward_model import RewardModel
from kamerton.methods import at_its_line, resolve_one
from kamerton.methods.defined import check_defined, check_parameterisation
from kamerton.methods.method import FitRecord, Report, Run
from kamerton.methods.reward_model import check_base, check_method, save_reward_model
from kamerton.methods.reward_model import train_reward_model as train
from kamerton.methods.trained import TrainedMethod
from kamerton.objectives.reward_modeling import RewardOptions
from kamerton.recipe import Recipe, as_recipe
from kamerton.tasks import Task, load_task
from kamerton.training import Budget
from kamerton.training.checkpoint import drop_checkpoints
from kamerton.training.loop import check_trackers


@dataclass(frozen=True)
class TrainedReward:
    """A reward model that was trained, its folder, and how its training went."""

    model: RewardModel
    folder: Path
    record: FitRecord


@dataclass(frozen=True)
class RewardEvaluation:
    """What was measured of a reward model, as its JSON file has it, and the page about it."""

    results: dict[str, Any]
    page: Path

    def __str__(self) -> str:
        a = self.results["accuracy"]
        return f"accuracy {a['value']:.4g} ({a['low']:.4g} to {a['high']:.4g}) on {self.results['pairs']} pairs"


def train_reward_model(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    method: str | None = None,
    *,
    output: str | Path,
    start: str | Path | None = None,
    reward: RewardOptions | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    data: str | Path | None = None,
    task: Task | None = None,
    report: Report | None = None,
    trackers: Sequence[str] = (),
) -> TrainedReward:
    """Train a reward model on a task's judged answers and save it as a sequence classifier with one label.

    Args:
        recipe: gives base, task, budget and the method's training options; the method's objective is not used.
        method: `full`, `lora`, `qlora` or `ia3`, or its label; default: the recipe's only method.
        output: the folder that is written; a run that was stopped there goes on.
        start: a folder of `tune` or a model folder that the backbone starts from, in place of the recipe's base.
        reward: options of the loss.
        options, seed, data, task, report, trackers: as in `tune`.

    Raises:
        KamertonError: what is wrong, in one line.
    """
    recipe = as_recipe(recipe, data)
    check_trackers(trackers)
    spec = pick_method(recipe, method)
    check_method(spec.name)
    # what another objective asks of the method says nothing here
    chosen, parsed = resolve_one(recipe, spec, {**(options or {}), "objective": "supervised"})
    assert isinstance(chosen, TrainedMethod)
    task = task or load_task(recipe.task)
    folder, report = processes.own_folder(Path(output)), report or (lambda *_: None)
    lock = Store(folder).lock()
    try:
        report("loading", 0.0, "")
        base = _start(start, folder) if start is not None else recipe_base(recipe)
        try:
            check_defined(base, chosen, parsed)
            check_base(base)
            check_parameterisation(base, task, chosen.name, parsed)
        except KamertonError as error:
            if options or spec not in recipe.methods or start is not None:
                raise
            raise at_its_line(recipe, spec, error) from None
        run = Run(folder / "fit", recipe.seeds[0] if seed is None else seed, report)
        run.max_batch_tokens, run.trackers = recipe.evaluation.max_batch_tokens, tuple(trackers)
        budget, settings = Budget(**recipe.budget.model_dump()), reward or RewardOptions.model_validate({})
        model, record = train(base, task, chosen, parsed, settings, budget, run)
        about = {
            "method": chosen.name, "options": parsed.model_dump(), "reward": settings.model_dump(), "task": task.name,
            "start": None if start is None else str(start), "seed": run.seed, "kamerton": kamerton_version(),
        }  # fmt: skip
        if processes.first():
            save_reward_model(model, base, record, about, folder)
            drop_checkpoints(run.folder)
        processes.wait()
        shutil.rmtree(folder / "start", ignore_errors=True)
    finally:
        lock.release()
    return TrainedReward(model, folder, record)


def evaluate_reward_model(
    target: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    output: str | Path | None = None,
    split: str = "test",
    bins: int = 10,
    data: str | Path | None = None,
    task: Task | None = None,
    report: Report | None = None,
) -> RewardEvaluation:
    """Measure a reward model on a split's judged answers; writes `reward-SPLIT.json` and `reward-SPLIT.html`.

    Args:
        target: the folder of a reward model.
        recipe: gives the task.
        output: where both files go; default: the model's folder.
        split: test, validation or train.
        bins: of the calibration error.

    Raises:
        KamertonError: no such model, no such split, or no pairs in it.
    """
    recipe = as_recipe(recipe, data)
    if split not in ("train", "validation", "test"):
        raise KamertonError(f"no split '{split}'", mend="use test, validation or train")
    task = task or load_task(recipe.task)
    if not getattr(task, split):
        raise TaskError(f"the {split} split is empty", where=task.name, mend="choose another split")
    folder = Path(target)
    model = RewardModel.load(folder)
    model.max_batch_tokens = recipe.evaluation.max_batch_tokens

    def progress(done: int, total: int) -> None:
        if report is not None:
            report("scoring", done / total, f"{done} of {total} answers")

    found = measure(model, task, split, bins=bins, progress=progress)
    result = {"model": folder.name or str(folder), "kamerton": kamerton_version(), **found}
    place = folder if output is None else Path(output)
    write_json(place / f"reward-{split}.json", result)
    read = json.loads((place / f"reward-{split}.json").read_text(encoding="utf-8"))
    write_text(place / f"reward-{split}.html", reward_page(read))
    return RewardEvaluation(read, place / f"reward-{split}.html")


def _start(start: str | Path, folder: Path) -> Base:
    """A supervised fine-tune as a base: what was tuned is merged into a model folder first."""
    if not any((Path(start) / name).is_file() for name in ("kamerton.json", "adapter/kamerton.json", "results.json")):
        return load_base(start)
    adapted = load(start)
    merged = folder / "start"
    shutil.rmtree(merged, ignore_errors=True)
    merge(adapted, merged)
    info = adapted.base.info
    return load_base(merged, dtype=info.dtype, device=info.device)  # type: ignore[arg-type]

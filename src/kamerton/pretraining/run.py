"""One pretraining: corpus, model, the one training loop, what came of it, and the folder that is left.

The folder is an ordinary model folder (configuration, safetensors, tokenizer), with `pretraining.json`, `samples.jsonl`
and `report.html` beside it. A run that was stopped goes on from its last checkpoint and ends with the same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from kamerton import processes
from kamerton.base.work import Work, flops
from kamerton.comparison.machine import kamerton_version, machine, versions
from kamerton.comparison.progress import MEASURING, FitProgress, RunMark
from kamerton.comparison.store import Store
from kamerton.files import moved_into, write_json
from kamerton.outcome import Outcome
from kamerton.pretraining.goals import Goal, goal_of
from kamerton.pretraining.models import PADDED, Started, settings, start
from kamerton.pretraining.page import write_page
from kamerton.recipe_pretrain import PretrainRecipe, as_pretrain_recipe
from kamerton.tasks.example import fingerprint
from kamerton.training import Budget, Progress, Result, Settings, fit
from kamerton.training.checkpoint import drop_checkpoints
from kamerton.training.loop import check_trackers

Report = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Pretrained(Outcome):
    """What a pretraining left.

    Attributes:
        folder: the model folder.
        results: what is in `pretraining.json`.
    """

    @property
    def metrics(self) -> dict[str, float]:
        """Of the held-out texts: bits per byte, perplexity, accuracy, BLEU, whatever the objective has."""
        return dict(self.results["metrics"])

    @property
    def next_step(self) -> str | None:
        """What can be done with the model, for people; None where no command talks with one of its kind."""
        if self.results["objective"] not in ("causal", "truncated"):
            return None
        if self.results["model"]["config"]["model_type"] == PADDED:
            preset = self.results["model"]["preset"]
            load = f"transformers.AutoModelForCausalLM.from_pretrained({str(self.folder)!r})"
            return f"{load}, for no other command takes {preset}"
        return f"kamerton chat {self.folder}"


def pretrain(
    recipe: str | Path | Mapping[str, Any] | PretrainRecipe,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    report: Report | None = None,
    trackers: Sequence[str] = (),
    stop_after: int | None = None,
) -> Pretrained | None:
    """Train a model from a recipe and save it as a model folder.

    Args:
        recipe: a recipe's path, its content, or a `PretrainRecipe`.
        output: the folder; default: the recipe's `output`, else `runs/<name>`.
        overrides: fields of the recipe to set, as `["budget.tokens=1000"]`.
        report: told about progress.
        trackers: names of accelerate's trackers.
        stop_after: end after this step, as if the process had been stopped there (tests); gives None.

    Raises:
        KamertonError: recipe, tokenizer, texts or base are wrong, or another run uses the folder.
    """
    recipe = as_pretrain_recipe(recipe, overrides)
    if recipe.budget is None:
        raise recipe.error(("budget",), "is missing", mend="give budget: {tokens: 2_000_000}, or use kamerton scaling")
    check_trackers(trackers)
    folder = processes.own_folder(Path(output or recipe.output or Path("runs") / recipe.name))
    lock = Store(folder).lock()
    mark = RunMark(folder)
    progress = FitProgress(folder, mark.id, "")

    def tell(stage: str, share: float, text: str) -> None:
        progress.report(stage, share, text)
        if report is not None:
            report(stage, share, text)

    transformers.utils.logging.disable_progress_bar()
    try:
        started = start(recipe)
        goal = goal_of(recipe, started, folder, tell)
        how = settings(recipe, started)
        budget = Budget(**recipe.budget.model_dump())
        result = _fit(recipe, started, goal, how, budget, folder, tell, progress.watch, trackers, stop_after)
        if stop_after is not None and not result.finished:
            return None
        tell(MEASURING, 0.0, "")
        metrics = goal.measure(started.model)
        if processes.first():
            _save(folder, started)
        told = _told(recipe, started, goal, how, budget, result, metrics)
        write_json(folder / "pretraining.json", told)
        drop_checkpoints(folder / "fit")
        with suppress(OSError):  # what trackers wrote there stays
            (folder / "fit").rmdir()
        made = Pretrained(folder, write_page(folder))
        progress.end()
        processes.wait()
        return made
    finally:
        mark.end()
        lock.release()


def _fit(
    recipe: PretrainRecipe, started: Started, goal: Goal, how: Settings, budget: Budget, folder: Path, tell: Report,
    seen: Callable[[str, Progress], None], trackers: Sequence[str], stop_after: int | None,
) -> Result:  # fmt: skip
    def watch(p: Progress) -> None:
        held = goal.shown(p.validation_loss) if p.validation_loss is not None else ""
        seen("training", p)
        tell("training", p.share, f"step {p.step:,}, loss {p.loss:.3f}{held}, {p.tokens_per_second:,.0f} tokens/s")

    return fit(
        started.model, started.model.hf, goal.objective, replace(how, trackers=tuple(trackers)), budget, folder / "fit",
        key=key_of(recipe, started, goal, how), watch=watch, stop_after=stop_after,
    )  # fmt: skip


def key_of(recipe: PretrainRecipe, started: Started, goal: Goal, how: Settings) -> str:
    """A fingerprint of a run: of everything that decides its weights. The model is as it was before its first step."""
    return fingerprint(
        {
            "recipe": recipe.model_dump(mode="json", exclude={"name", "output", "samples", "scaling"}),
            "settings": {k: v for k, v in asdict(how).items() if k != "trackers"},
            "data": goal.key, "start": sum(float(p.detach().double().sum()) for p in started.model.hf.parameters()),
        }
    )  # fmt: skip


def _save(folder: Path, started: Started) -> None:
    """The model and its tokenizer, each file whole or not at all, the configuration last."""
    with moved_into(folder, last="config.json") as partial:
        started.model.hf.save_pretrained(partial, safe_serialization=True)
        started.tokenizer.save_pretrained(partial)


def _told(
    recipe: PretrainRecipe, started: Started, goal: Goal, how: Settings, budget: Budget, result: Result,
    metrics: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    state = result.state
    spent = flops(Work(**state.work), started.model.hf)  # of all its parts, where the run was stopped in between
    return {
        "name": recipe.name,
        "recipe": recipe.text,
        "model": {
            "preset": started.preset, "base": recipe.base, "class": type(started.model.hf).__name__,
            "parameters": started.parameters, "context": started.context,
            "config": json.loads(started.model.hf.config.to_json_string()),
        },
        "objective": goal.objective.name,
        "data": goal.told,
        "settings": asdict(how),
        "budget": {k: v for k, v in asdict(budget).items() if v is not None},
        "steps": state.step, "tokens": state.tokens, "seconds": state.seconds, "flops": spent,
        "threads": torch.get_num_threads(),
        "epochs": state.examples / goal.objective.epoch_examples,
        "best_step": state.best_step if state.best_step >= 0 else None,
        "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
        "curve": goal.curve(state.curve),
        "notes": [*started.notes, *goal.notes, *goal.objective.notes, *result.notes],
        "kamerton": kamerton_version(), "versions": versions(), "machine": machine(),
    }  # fmt: skip

"""Training a grid: each run once, the stable part of each size once, stopped at any moment and gone on with.

The folder of a grid has `tokens/` (the corpus as streams, read by all runs) and, for each size and seed,
`runs/SIZE/seed-N/` with `TOKENS/run.json` for every finished run, `branches/` (checkpoints of the stable part at which
decays branched off; they are kept, so that a longer run or one between goes on from there) and, while it trains,
`stable/`. A run whose `run.json` has the run's fingerprint is not trained again.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kamerton.base.show import human
from kamerton.comparison.machine import machine
from kamerton.comparison.progress import read
from kamerton.files import write_json
from kamerton.pretraining.goals import Goal, goal_of
from kamerton.pretraining.models import Started, settings, start
from kamerton.pretraining.run import Report, key_of
from kamerton.pretraining.scaling.grid import Run, branch_at, cost, own_recipe, step_tokens
from kamerton.recipe_pretrain import PretrainRecipe
from kamerton.training import Budget, Progress, Settings, fit
from kamerton.training.checkpoint import adopt_checkpoint, checkpoints, drop_checkpoints
from kamerton.training.loop import Diverged

ENDLESS = 10**15
"""Tokens that the stable part is told to have, so that nothing of it hangs on the runs that leave it."""

Done = dict[str, Any]


@dataclass
class Trainer:
    """What trains the runs of a grid.

    Attributes:
        recipe: with its block `scaling`.
        folder: of the grid.
        warmup: steps of the rise that all runs share; None where each has its own.
        tell: told about progress.
    """

    recipe: PretrainRecipe
    folder: Path
    warmup: int | None
    tell: Report
    done: float = 0.0
    whole: float = 1.0

    def all(self, every: Sequence[Run]) -> list[Done]:
        """Train what was not trained yet; a row for each run."""
        self.whole = cost(self.recipe, every)
        rows = []
        order = sorted(every, key=lambda r: (r.sized.parameters, r.seed, r.tokens))
        for number, run in enumerate(order):
            rows.append(
                self._one(run, f"run {number + 1} of {len(order)}: {run.sized.name}, {human(run.tokens)} tokens")
            )
            self.done = cost(self.recipe, order[: number + 1])
            if self._last(run, order):
                shutil.rmtree(self._beside(run) / "stable", ignore_errors=True)
        return rows

    @staticmethod
    def _last(run: Run, order: Sequence[Run]) -> bool:
        return run == [r for r in order if (r.sized, r.seed) == (run.sized, run.seed)][-1]

    def _beside(self, run: Run) -> Path:
        return self.folder / "runs" / run.sized.name / f"seed-{run.seed}"

    def _prepare(self, run: Run) -> tuple[PretrainRecipe, Started, Goal, Settings, str]:
        recipe = own_recipe(self.recipe, run, self.warmup)
        started = start(recipe)
        goal = goal_of(recipe, started, self.folder, self.tell)
        how = settings(recipe, started)
        return recipe, started, goal, how, key_of(recipe, started, goal, how)

    def _one(self, run: Run, named: str) -> Done:
        path = self._beside(run) / str(run.tokens) / "run.json"
        _, started, goal, how, key = self._prepare(run)
        if (saved := read(path)).get("key") == key:
            return saved
        own = path.parent / "fit"
        if not any(_key(c) == key for c in checkpoints(own)):
            shutil.rmtree(own, ignore_errors=True)  # of another recipe
            if (point := self._branch(run, named)) is not None:
                adopt_checkpoint(point, own, key)
                write_json(path.parent / "branch.json", _position(point))
            else:
                (path.parent / "branch.json").unlink(missing_ok=True)
        row: Done = {
            "size": run.sized.name, "width": run.sized.shape.width, "depth": run.sized.shape.depth,
            "parameters": run.sized.parameters, "non_embedding": run.sized.non_embedding, "seed": run.seed,
            "flops_per_token": run.sized.flops, "learning_rate": how.learning_rate, "key": key,
        }  # fmt: skip
        notes = [*started.notes, *goal.notes, *goal.objective.notes]
        try:
            result = fit(
                started.model, started.model.hf, goal.objective, how, Budget(tokens=run.tokens), own, key=key,
                watch=self._watch(run, named),
            )  # fmt: skip
            state, loss = result.state, result.validation_loss
            notes += result.notes
        except Diverged as error:
            state, loss = error.state, math.nan
            notes.append(f"{run.sized.name} on {human(run.tokens)} tokens diverged: {error.message}")
        branch = path.parent / "branch.json"
        shared = json.loads(branch.read_text(encoding="utf-8")) if branch.is_file() else {"tokens": 0, "seconds": 0.0}
        known = math.isfinite(loss)
        row |= {
            "tokens": state.tokens, "steps": state.step, "flops": run.sized.flops * state.tokens,
            "epochs": state.examples / goal.objective.epoch_examples, "seconds": state.seconds, "shared": shared,
            "loss": loss if known else None, "bits_per_byte": loss * goal.scale if known and goal.scale else None,
            "data": goal.told, "threads": torch.get_num_threads(), "machine": machine(), "notes": notes,
        }  # fmt: skip
        write_json(path, row)
        drop_checkpoints(own)
        shutil.rmtree(own, ignore_errors=True)
        return row

    def _branch(self, run: Run, named: str) -> Path | None:
        """The checkpoint at which a run leaves the stable part, which is trained up to there; None: it starts anew."""
        at = branch_at(self.recipe, run)
        if not at:
            return None
        recipe, started, goal, how, _ = self._prepare(run)
        steady = replace(how, schedule="constant")
        key = key_of(recipe.model_copy(update={"budget": None}), started, goal, steady)
        kept, stable = self._beside(run) / "branches", self._beside(run) / "stable"
        latest = run.tokens * (1 - self.recipe.training.decay)

        def usable(folder: Path) -> list[Path]:
            return [c for c in checkpoints(folder) if _key(c) == key and _position(c)["tokens"] < latest]

        for other in checkpoints(kept):
            if _key(other) != key:
                shutil.rmtree(other)
        if ready := [c for c in usable(kept) if _position(c)["tokens"] >= at]:
            return ready[0]
        before, newest = usable(kept)[:1], checkpoints(stable)[:1]
        further = newest and newest == usable(stable)[:1] and _position(newest[0])["tokens"]
        if not further or (before and further < _position(before[0])["tokens"]):
            # of another recipe, beyond this run's decay, or behind what was kept
            shutil.rmtree(stable, ignore_errors=True)
            if before:
                adopt_checkpoint(before[0], stable, key)
        try:
            fit(
                started.model, started.model.hf, goal.objective, steady, Budget(tokens=ENDLESS), stable, key=key,
                until=at / ENDLESS, measure=False, watch=self._watch(run, f"{named}, stable part"),
            )  # fmt: skip
        except Diverged:
            return None  # the run itself then says so
        begun = _position(before[0])["tokens"] if before else 0
        self.done += run.sized.flops * (_position(checkpoints(stable)[0])["tokens"] - begun)
        return adopt_checkpoint(checkpoints(stable)[0], kept, key)

    def _watch(self, run: Run, named: str) -> Callable[[Progress], None]:
        first: list[float] = []

        def watch(p: Progress) -> None:
            # of this process: tokens a second times seconds are all tokens, those before a pause too
            first[:] = first or [p.step]
            share = (self.done + (p.step - first[0]) * step_tokens(self.recipe) * run.sized.flops) / self.whole
            self.tell("training", min(share, 1.0), f"{named}: step {p.step:,}, loss {p.loss:.3f}")

        return watch


def _key(checkpoint: Path) -> str:
    return str(read(checkpoint / "state.json").get("key", ""))


def _position(checkpoint: Path) -> dict[str, Any]:
    run = json.loads((checkpoint / "state.json").read_text())["run"]
    return {"tokens": run["tokens"], "seconds": run["seconds"]}

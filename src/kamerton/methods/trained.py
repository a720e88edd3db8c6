"""Trained methods: a parameterisation × an objective, with hyperparameters chosen on validation inside the budget.

The learning rate matters most and differs most between parameterisations, so it is searched unless the recipe names
one: by successive halving (Jamieson & Talwalkar 2016). Every candidate trains for a short first part of the schedule;
the one with the lowest validation loss goes on from where it stands to the end. What the others spent counts: all of
it together is the budget.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from kamerton.base.load import Base
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError
from kamerton.methods.defined import check_defined
from kamerton.methods.method import Adapted, FitRecord, Run
from kamerton.objectives import OBJECTIVES, get_objective
from kamerton.tasks.example import Task, fingerprint
from kamerton.training import Budget, Diverged, Progress, Result, Settings, fit
from kamerton.training.files import write_json
from kamerton.training.objective import Objective
from kamerton.tuning import Options, Tuned

DEFAULT_BUDGET = Budget(epochs=4)
"""Where a recipe names none."""


class TrainingOptions(Options):
    """Options that every trained method has."""

    objective: str = Field("supervised", description="what is optimised")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; none: searched on validation")
    batch_size: int = Field(16, gt=0, description="examples in an optimiser step")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the budget over which the learning rate rises")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    validations: int = Field(8, gt=0, description="measurements of validation loss over the budget")
    patience: int = Field(3, gt=0, description="measurements without improvement before training stops")
    max_tokens: int = Field(4096, gt=0, description="tokens in one pass through the model")
    limit: int | None = Field(None, gt=0, description="longest example in tokens; default: the model's positions")
    search_share: float = Field(0.3, gt=0, lt=1, description="share of the budget for choosing the learning rate")

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise ValueError(f"unknown objective '{name}'; use one of: {', '.join(OBJECTIVES)}")
        return name


class TrainedMethod:
    """Base of all trained methods; a subclass names its parameterisation, defaults and candidates."""

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[str]
    paper: ClassVar[str]
    options: ClassVar[type[Options]]
    parameterisation: ClassVar[Any]
    learning_rates: ClassVar[tuple[float, ...]]

    def seeded(self, options: Any) -> bool:  # noqa: ARG002
        return True

    def fit(self, base: Base, task: Task, budget: Budget, options: Any, run: Run) -> Adapted:
        """Train within the budget; what was started in `run.folder` goes on from there."""
        check_defined(base, self, options)
        budget = DEFAULT_BUDGET if budget.unlimited else budget
        objective: Objective = get_objective(options.objective).build(
            base, task, options, limit=self._limit(base, options), seed=run.seed
        )
        record = FitRecord(notes=list(objective.notes))
        trial = _Trial(self, base, task, options, run, objective, record)
        if options.learning_rate is not None:
            rate, horizon = options.learning_rate, budget
        elif not task.validation:
            rate, horizon = self.learning_rates[0], budget
            record.notes.append(f"no validation examples to choose a learning rate on: {rate:g} was taken")
        else:
            rate, horizon = self._search(trial, budget, options, run, record)
            record.chosen = {"learning_rate": rate}
        tuned, result = trial.train(rate, horizon, 1.0, f"training, learning rate {rate:g}")
        record.seconds += result.state.seconds
        record.tokens += result.state.tokens
        record.flops += flops(Work(**result.state.work), tuned.model.hf)
        record.curve = result.state.curve
        record.notes += result.notes
        record.trainable_parameters = tuned.trainable_parameters
        tuned.module.requires_grad_(False)
        self.finish(base, tuned)
        return self._adapted(base, tuned, options, record, run.max_batch_tokens)

    def front(self, options: Any) -> int:  # noqa: ARG002
        """Positions that what is trained takes in front of every sequence."""
        return 0

    def _limit(self, base: Base, options: Any) -> int | None:
        """The longest example in tokens: as asked, and never more than the model has positions for."""
        room = None if base.model.max_length is None else base.model.max_length - self.front(options)
        if room is not None and room < 1:
            raise KamertonError(
                f"{self.front(options)} soft tokens leave no room in the model's {base.model.max_length} positions",
                mend="use fewer",
            )
        return min((n for n in (options.limit, room) if n is not None), default=None)

    def finish(self, base: Base, tuned: Tuned) -> None:
        """What is done to the model after training, before it is used."""

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:
        tuned = self.parameterisation.load(base, folder)
        tuned.module.requires_grad_(False)
        return self._adapted(base, tuned, self.options(**about["options"]), FitRecord(), 8192)

    def _adapted(self, base: Base, tuned: Tuned, options: Options, record: FitRecord, max_batch_tokens: int) -> Adapted:
        return Adapted(
            base, tuned.model, method=self.name, options=options, tuned=tuned, record=record,
            max_batch_tokens=max_batch_tokens,
        )  # fmt: skip

    def _search(self, trial: _Trial, budget: Budget, options: Any, run: Run, record: FitRecord) -> tuple[float, Budget]:
        """Successive halving with one rung: the chosen learning rate, and the budget that its schedule spans."""
        n = len(self.learning_rates)
        # n candidates spend `search_share` together; the winner's schedule spans its own part and all that is left
        spent_by_others = options.search_share * (n - 1) / n
        horizon = budget.scaled(1 - spent_by_others)
        rung = options.search_share / n / (1 - spent_by_others)
        decision = run.folder / "search.json"
        if decision.is_file():
            saved = json.loads(decision.read_text())
            if saved["key"] == trial.key(0.0, horizon):
                record.search, spent = saved["search"], saved["spent"]
                record.seconds, record.tokens, record.flops = spent["seconds"], spent["tokens"], spent["flops"]
                return saved["learning_rate"], horizon
        spent, losses = [], []
        for i, rate in enumerate(self.learning_rates):
            stage = f"choosing the learning rate: {rate:g} ({i + 1} of {n})"
            try:
                tuned, result = trial.train(rate, horizon, rung, stage)
                state, loss = result.state, result.state.curve[-1]["validation_loss"]
                cost = flops(Work(**state.work), tuned.model.hf)
                del tuned
            except Diverged as error:  # a rate that is too high for this task is an answer, not a failure
                state, loss, cost = error.state, math.nan, error.flops
            known = math.isfinite(loss)
            losses.append(loss if known else math.inf)
            record.search.append({
                "learning_rate": rate, "validation_loss": loss if known else None, "tokens": state.tokens
            })  # fmt: skip
            spent.append((state.seconds, state.tokens, cost))
        if not any(math.isfinite(loss) for loss in losses):
            tried = ", ".join(f"{rate:g}" for rate in self.learning_rates)
            raise KamertonError(f"every learning rate diverged ({tried})", mend="set a lower learning_rate, or float32")
        best = min(range(n), key=lambda i: losses[i])
        # the winner goes on from its rung, so what it spent there is counted with its own run
        others = [s for i, s in enumerate(spent) if i != best]
        record.seconds, record.flops = sum(s[0] for s in others), sum(s[2] for s in others)
        record.tokens = sum(s[1] for s in others)
        write_json(decision, {
            "key": trial.key(0.0, horizon), "search": record.search, "learning_rate": self.learning_rates[best],
            "spent": {"seconds": record.seconds, "tokens": record.tokens, "flops": record.flops},
        })  # fmt: skip
        return self.learning_rates[best], horizon


@dataclass
class _Trial:
    """One method on one task with one seed, to be trained with several learning rates."""

    method: TrainedMethod
    base: Base
    task: Task
    options: Any
    run: Run
    objective: Objective
    record: FitRecord

    def key(self, rate: float, horizon: Budget) -> str:
        """Fingerprint of everything that decides the weights; a checkpoint with another key is not resumed."""
        return fingerprint({
            "method": self.method.name, "options": self.options.model_dump(), "rate": rate, "seed": self.run.seed,
            "base": self.base.info.fingerprint, "renderer": self.base.renderer.fingerprint, "budget": asdict(horizon),
            "task": self.task.fingerprint,
        })  # fmt: skip

    def train(self, rate: float, horizon: Budget, until: float, stage: str) -> tuple[Tuned, Result]:
        """Train with one learning rate up to a share of its budget, from where an earlier call left it."""
        o = self.options
        tuned = self.method.parameterisation.attach(self.base, o, self.task, self.run.seed)
        settings = Settings(
            learning_rate=rate, warmup=o.warmup, weight_decay=o.weight_decay, clip=o.clip, validations=o.validations,
            patience=o.patience, bfloat16=self.base.model.dtype == torch.bfloat16, trackers=self.run.trackers,
            seed=self.run.seed,
        )  # fmt: skip

        def watch(p: Progress) -> None:
            held_out = "" if p.validation_loss is None else f", validation {p.validation_loss:.3f}"
            text = f"loss {p.loss:.3f}{held_out}, {p.tokens_per_second:,.0f} tokens/s, {p.seconds_left:.0f} s left"
            self.run.report(stage, p.share / until, text)

        folder = self.run.folder / f"learning-rate-{rate:g}"
        try:
            result = fit(
                tuned.model, tuned.module, self.objective, settings, horizon, folder, key=self.key(rate, horizon),
                until=until, watch=watch,
            )  # fmt: skip
        except Diverged as error:
            error.flops = flops(Work(**error.state.work), tuned.model.hf)
            raise
        return tuned, result

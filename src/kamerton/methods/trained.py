"""Trained methods: a parameterisation × an objective, with hyperparameters chosen on validation inside the budget.

The learning rate matters most and differs most between parameterisations, so it is searched unless the recipe names
one; `candidates` widens the search to the rest of a method's space. It goes by successive halving (methods/search.py):
every candidate trains for a short first part of the schedule; the one that is left goes on from where it stands to the
end. What the others spent counts: all of it together is the budget.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, field_validator, model_validator

from kamerton import processes
from kamerton.base.encoder import EncoderModel, Head
from kamerton.base.load import Base
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError, RecipeError
from kamerton.files import write_json
from kamerton.memory import give_back
from kamerton.methods.defined import check_defined
from kamerton.methods.encoder import HeadAnswers, head_state, headed
from kamerton.methods.keys import fit_key
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, with_answers
from kamerton.methods.search import Halving, Values, draw, label, shown, space_of, survivors
from kamerton.methods.stages import two_stages
from kamerton.objectives import OBJECTIVES, get_objective
from kamerton.objectives.adversarial_options import AdversarialOptions
from kamerton.objectives.dpo_options import DpoOptions
from kamerton.objectives.grpo_options import GrpoOptions
from kamerton.objectives.head_options import HeadOptions
from kamerton.objectives.ppo_options import PpoOptions
from kamerton.objectives.rejection_options import RejectionOptions
from kamerton.rewards.parse import canonical
from kamerton.tasks.example import Task, fingerprint
from kamerton.training import Budget, Diverged, Progress, Result, Settings, fit
from kamerton.training.objective import Objective
from kamerton.tuning import Options, Tuned

DEFAULT_BUDGET = Budget(epochs=4)
"""Where a recipe names none."""


class TrainingOptions(Options):
    """Options that every trained method has."""

    objective: str = Field("supervised", description="what is optimised")
    texts: str | None = Field(
        None, description="language-modeling: a file or folder of texts; default: the training examples as text"
    )
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; none: searched on validation")
    batch_size: int = Field(8, gt=0, description="examples in an optimiser step")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the budget over which the learning rate rises")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    validations: int = Field(8, gt=0, description="measurements of validation loss over the budget")
    patience: int = Field(3, gt=0, description="measurements without improvement before training stops")
    max_tokens: int = Field(4096, gt=0, description="tokens in one pass through the model")
    limit: int | None = Field(None, gt=0, description="longest example in tokens; default: the model's positions")
    search_share: float = Field(0.3, gt=0, lt=1, description="share of the budget for choosing hyperparameters")
    adversarial: AdversarialOptions | None = Field(
        None, description="adversarial: options of that stage; none: their defaults"
    )
    dpo: DpoOptions | None = Field(None, description="likewise")
    grpo: GrpoOptions | None = Field(None, description="likewise")
    ppo: PpoOptions | None = Field(None, description="likewise")
    rejection_sampling: RejectionOptions | None = Field(None, description="likewise")
    reward: str | dict[str, Any] | tuple[str | dict[str, Any], ...] | None = Field(
        None, description="grpo, ppo, rejection-sampling: what says how good an answer is, or several that are summed"
    )
    head: HeadOptions | None = Field(None, description="encoder bases: options of the head; none: their defaults")
    candidates: int | None = Field(
        None, gt=0, description="settings of the search space that are tried; none: its learning rates only"
    )
    fixed: tuple[str, ...] | None = Field(
        None, description="options that are not searched; none: those that the recipe gives"
    )

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise ValueError(f"unknown objective '{name}'; use one of: {', '.join(OBJECTIVES)}")
        return name

    @field_validator("reward", mode="before")
    @classmethod
    def _known_reward(cls, spec: Any) -> Any:
        """The reward with all of its options, so that a saved model does not depend on later defaults."""
        try:
            return None if spec is None else canonical(spec)
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _texts_are_read(self) -> Self:
        if self.texts is not None and self.objective != "language-modeling":
            raise ValueError(f"texts are not read by objective {self.objective}; add objective: language-modeling")
        return self

    @model_validator(mode="before")
    @classmethod
    def _note_given(cls, data: Any) -> Any:
        """Remember which options were given: later all of them are written out, defaults too."""
        if isinstance(data, dict) and data.get("fixed") is None:
            return {**data, "fixed": tuple(sorted(name for name, value in data.items() if value is not None))}
        return data


class TrainedMethod:
    """Base of all trained methods; a subclass names its parameterisation, defaults and search space.

    `space` maps options to the values that the search may take, the first one the option's default; the learning rate
    comes first. A class with `learning_rates` alone has a space of those.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[str]
    paper: ClassVar[str]
    options: ClassVar[type[Options]]
    parameterisation: ClassVar[Any]
    space: ClassVar[dict[str, tuple[Any, ...]]]
    learning_rates: ClassVar[tuple[float, ...]]

    def seeded(self, options: Any) -> bool:  # noqa: ARG002
        return True

    def fit(self, base: Base, task: Task, budget: Budget, options: Any, run: Run) -> Adapted:
        """Train within the budget; what was started in `run.folder` goes on from there."""
        check_defined(base, self, options)
        budget = DEFAULT_BUDGET if budget.unlimited else budget
        objective = get_objective(options.objective)
        # one that needs no reference (rollouts and a reward, pairs) says so
        task, left_out = (task, []) if getattr(objective, "unanswered", False) else with_answers(task)
        state = head_state(task, run.seed) if base.model.encoder else {}
        own = headed(base, Head.from_dict(state["head"])) if state else base
        if getattr(objective, "warm_start", None) is None:
            trained = self._train(own, task, budget, options, run)
        else:
            trained = two_stages(self, own, task, budget, options, run)
        tuned, settled, record = trained
        record.trainable_parameters = tuned.trainable_parameters
        tuned.module.requires_grad_(False)
        self.finish(base, tuned)
        record.notes += [*left_out, *tuned.notes]
        return self._adapted(base, tuned, settled, record, run.max_batch_tokens, state)

    def _train(
        self, base: Base, task: Task, budget: Budget, options: Any, run: Run
    ) -> tuple[Tuned, Options, FitRecord]:
        """Search and train by one objective: what was tuned, the options that fit it, and the record."""
        space = space_of(self)
        fixed = {name: getattr(options, name) for name in space if name in (options.fixed or ())}
        if options.learning_rate is not None:
            fixed["learning_rate"] = options.learning_rate
        candidates = draw(space, fixed, options.candidates, run.seed)
        trial = _Trial(self, base, task, options, run, candidates)
        record = FitRecord(notes=list(trial.objective(candidates[0]).notes))
        values, horizon, searched = candidates[0], budget, 0.0
        if len(candidates) > 1 and not trial.objective(candidates[0]).validation():
            what = "a learning rate" if trial.names == ["learning_rate"] else "hyperparameters"
            taken = trial.describe(values) if what == "hyperparameters" else f"{values['learning_rate']:g}"
            record.notes.append(f"no validation examples to choose {what} on: {taken} was taken")
        elif len(candidates) > 1:
            values, horizon, searched = self._search(trial, budget, record)
            record.chosen = {name: values[name] for name in trial.names}
            record.notes = list(trial.objective(values).notes)
        rate = trial.settle(values).learning_rate
        # a pause leaves no trace: no validation is made for it
        until, stage = max(run.until, searched), f"training, learning rate {rate:g}"
        tuned, result = trial.train(values, horizon, until, stage, measure=False)
        record.seconds += result.state.seconds
        record.tokens += result.state.tokens
        own = flops(Work(**result.state.work), tuned.model.hf)
        record.expected_flops = 0.0 if result.finished else record.flops + own / until
        record.flops += own
        record.curve = result.state.curve
        record.notes += result.notes
        record.finished = result.finished
        record.learning_rate = rate
        # what is attached must be known to whoever loads it; the learning rate is only of interest in the record
        attached = {name: value for name, value in values.items() if name != "learning_rate"}
        return tuned, trial.settle(attached), record

    def front(self, options: Any) -> int:  # noqa: ARG002
        """Positions that what is trained takes in front of every sequence."""
        return 0

    def _limit(self, base: Base, options: Any) -> int | None:
        """The longest example in tokens: as asked, and never more than the model has positions for."""
        room = base.model.example_limit(self.front(options))
        if room is not None and room < 1:
            raise KamertonError(
                f"{self.front(options)} soft tokens leave no room in the model's {base.model.max_length} positions",
                mend="use fewer",
            )
        return min((n for n in (options.limit, room) if n is not None), default=None)

    def finish(self, base: Base, tuned: Tuned) -> None:
        """What is done to the model after training, before it is used."""

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:
        state = about.get("state", {})
        own = headed(base, Head.from_dict(state["head"])) if base.model.encoder else base
        tuned = self.parameterisation.load(own, folder)
        tuned.module.requires_grad_(False)
        return self._adapted(base, tuned, self.options(**about["options"]), FitRecord(), 8192, state)

    def _adapted(
        self, base: Base, tuned: Tuned, options: Options, record: FitRecord, max_batch_tokens: int,
        state: dict[str, Any],
    ) -> Adapted:  # fmt: skip
        if isinstance(tuned.model, EncoderModel):
            return HeadAnswers(
                base, tuned.model, state=state, limit=self._limit(base, options), method=self.name, options=options,
                tuned=tuned, record=record, max_batch_tokens=max_batch_tokens,
            )  # fmt: skip
        return Adapted(
            base, tuned.model, method=self.name, options=options, tuned=tuned, record=record,
            max_batch_tokens=max_batch_tokens,
        )  # fmt: skip

    def _search(self, trial: _Trial, budget: Budget, record: FitRecord) -> tuple[Values, Budget, float]:
        """Successive halving.

        Returns:
            The chosen values, the budget that their schedule spans, and the share of it that they have run already.
        """
        halving = Halving(len(trial.candidates), trial.options.search_share)
        horizon = budget.scaled(1 - halving.others)
        decision, key = trial.run.folder / "search.json", trial.key(trial.candidates, horizon)
        rungs: list[list[dict[str, Any]]] = []
        if decision.is_file():
            # a candidate that went on to a later rung is no longer where it was judged: what was decided is kept
            rungs = _decided(decision, key)
        rungs = processes.agreed(rungs)
        alive, left = list(range(len(trial.candidates))), [*halving.sizes[1:], 1]
        for level, until in enumerate(halving.untils):
            if level == len(rungs):
                rows: list[dict[str, Any]] = []
                for place, i in enumerate(alive):
                    better = sorted(row["validation_loss"] for row in rows if row["validation_loss"] is not None)
                    # who is behind as many as will go on is not gone on from
                    bar = better[left[level] - 1] if len(better) >= left[level] else math.inf
                    rows.append(trial.rung(i, horizon, until, place, len(alive), bar))
                if all(row["validation_loss"] is None for row in rows):
                    raise trial.diverged(alive)
                rungs.append(rows)
                write_json(decision, {"key": key, "rungs": rungs})
            losses = [math.inf if (x := row["validation_loss"]) is None else x for row in rungs[level]]
            kept = survivors(losses, left[level])
            alive = [alive[place] for place in kept if math.isfinite(losses[place])]
        last = {row["candidate"]: (level, row) for level, rows in enumerate(rungs, 1) for row in rows}
        for i, values in enumerate(trial.candidates):
            level, row = last[i]
            record.search.append({
                **{name: values[name] for name in trial.names}, "validation_loss": row["validation_loss"],
                "tokens": row["tokens"], "rung": level,
            })  # fmt: skip
            # the winner goes on from its last rung, so what it spent there is counted with its own run
            if i != alive[0]:
                record.seconds += row["seconds"]
                record.tokens += row["tokens"]
                record.flops += row["flops"]
        record.findings.append(_tried(trial.names, record.search, alive[0]))
        return trial.candidates[alive[0]], horizon, halving.untils[-1]


def _decided(path: Path, key: str) -> list[list[dict[str, Any]]]:
    """The rungs of a search that were decided; [] where they were another search's, or cannot be read."""
    try:
        saved = json.loads(path.read_text())
        return list(saved["rungs"]) if saved["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _tried(names: list[str], search: list[dict[str, Any]], chosen: int) -> Finding:
    """The search as a table for the report."""
    last = ("validation_loss", "tokens", "rung")
    rows = [
        # settings as text: of numbers the report takes means over seeds
        (*(shown(row[n]) for n in names), *(row[n] for n in last), "yes" if i == chosen else "")
        for i, row in enumerate(search)
    ]
    return Finding(
        "Search for hyperparameters",
        tuple(name.replace("_", " ") for name in (*names, *last, "chosen")),
        tuple(rows),
        note="Validation loss in nats a token, of each candidate where it was stopped; none: it diverged.",
    )


@dataclass
class _Trial:
    """One method on one task with one seed, to be trained with several settings of its hyperparameters."""

    method: TrainedMethod
    base: Base
    task: Task
    options: Any
    run: Run
    candidates: list[Values]
    _objectives: dict[str, Objective] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The options in which candidates differ."""
        first = self.candidates[0]
        return [name for name in first if any(values[name] != first[name] for values in self.candidates)]

    def describe(self, values: Values) -> str:
        """The values that are searched, in words."""
        return ", ".join(f"{name.replace('_', ' ')} {shown(values[name])}" for name in self.names)

    def settle(self, values: Values) -> Any:
        """The method's options with these values in place."""
        return type(self.options).model_validate({**self.options.model_dump(), **values})

    def objective(self, values: Values) -> Objective:
        """What is optimised; candidates that differ in nothing but the learning rate share one."""
        same = fingerprint({name: value for name, value in values.items() if name != "learning_rate"})
        if same not in self._objectives:
            options = self.settle({name: value for name, value in values.items() if name != "learning_rate"})
            self._objectives[same] = get_objective(options.objective).build(
                self.base, self.task, options, limit=self.method._limit(self.base, options), seed=self.run.seed
            )
        return self._objectives[same]

    def key(self, values: Values | list[Values], horizon: Budget) -> str:
        """Fingerprint of everything that decides the weights; a checkpoint with another key is not resumed."""
        return fit_key(self.method.name, self.base, self.task, self.options, horizon, self.run.seed, values=values)

    def rung(self, candidate: int, horizon: Budget, until: float, place: int, count: int, bar: float) -> dict[str, Any]:
        """Train one candidate to the end of a rung: its validation loss (none: it diverged) and all it has spent.

        Where the loss is not below `bar` it will not go on, and its weights are not written.
        """
        values = self.candidates[candidate]
        what, text = "hyperparameters", self.describe(values)
        if self.names == ["learning_rate"]:
            what, text = "the learning rate", f"{values['learning_rate']:g}"
        try:
            stage = f"choosing {what}: {text} ({place + 1} of {count})"
            tuned, result = self.train(values, horizon, until, stage, measure=True, keep=lambda loss: loss < bar)
            state, loss = result.state, result.state.curve[-1]["validation_loss"]
            cost = flops(Work(**state.work), tuned.model.hf)
        except Diverged as error:  # a rate that is too high for this task is an answer, not a failure
            state, loss, cost = error.state, math.nan, error.flops
        return {
            "candidate": candidate, "validation_loss": loss if math.isfinite(loss) else None, "tokens": state.tokens,
            "seconds": state.seconds, "flops": cost,
        }  # fmt: skip

    def diverged(self, alive: Sequence[int]) -> KamertonError:
        """The error of a search of which nothing is left."""
        tried = [self.candidates[i] for i in alive]
        if self.names == ["learning_rate"]:
            rates = ", ".join(shown(values["learning_rate"]) for values in tried)
            text = f"every learning rate diverged ({rates})"
        else:
            text = f"every candidate diverged ({'; '.join(map(self.describe, tried))})"
        return KamertonError(text, mend="set a lower learning_rate, or float32")

    def train(
        self, values: Values, horizon: Budget, until: float, stage: str, *, measure: bool,
        keep: Callable[[float], bool] | None = None,
    ) -> tuple[Tuned, Result]:  # fmt: skip
        """Train with some values up to a share of their budget, from where an earlier call left it."""
        o = self.settle(values)
        give_back()  # an earlier candidate's model hangs in cycles, and would be there beside this one
        tuned = self.method.parameterisation.attach(self.base, o, self.task, self.run.seed)
        settings = Settings(
            learning_rate=o.learning_rate, warmup=o.warmup, weight_decay=o.weight_decay, clip=o.clip,
            validations=o.validations, patience=o.patience, bfloat16=self.base.model.dtype == torch.bfloat16,
            trackers=self.run.trackers, seed=self.run.seed,
        )  # fmt: skip

        def watch(p: Progress) -> None:
            held_out = "" if p.validation_loss is None else f", validation {p.validation_loss:.3f}"
            text = f"loss {p.loss:.3f}{held_out}, {p.tokens_per_second:,.0f} tokens/s, {p.seconds_left:.0f} s left"
            self.run.watch(stage, p)
            self.run.report(stage, p.share / until, text)

        folder = self.run.folder / label(values, self.candidates[0])
        try:
            result = fit(
                tuned.model, tuned.module, self.objective(values), settings, horizon, folder,
                key=self.key(values, horizon), until=until, measure=measure, keep=keep, watch=watch,
            )  # fmt: skip
        except Diverged as error:
            error.flops = flops(Work(**error.state.work), tuned.model.hf)
            raise
        return tuned, result

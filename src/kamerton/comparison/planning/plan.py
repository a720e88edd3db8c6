"""`plan`: what every method of a recipe will take, found by running it on a stand-in of the base.

FLOPs are those that records would have. Where the budget or the test set is large, two trials of different size are
made and what they took is drawn on to the full size as a straight line: the work grows in proportion, beside what is
done once (docs/performance.md, "How cost grows").
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kamerton.base.encoder import is_encoder
from kamerton.base.growth import growth_of
from kamerton.base.load import Base, load_base
from kamerton.base.sources import resolve as resolve_source
from kamerton.base.stand_in import target_config, write_stand_in
from kamerton.comparison.planning.device import Device, this_machine
from kamerton.comparison.planning.trial import PHASES, Trial, run_trial
from kamerton.comparison.reference import general_text
from kamerton.comparison.run import at_base, base_options, check_task
from kamerton.comparison.store import Cell
from kamerton.errors import KamertonError
from kamerton.evaluation.forgetting import Reference, reference
from kamerton.inference import Engine, Sampling
from kamerton.memory import give_back
from kamerton.methods import at_its_line, resolve
from kamerton.methods.defined import check_defined, check_fits
from kamerton.methods.method import Method
from kamerton.methods.prompted import within
from kamerton.methods.trained import DEFAULT_BUDGET
from kamerton.recipe import Recipe
from kamerton.resources import cores
from kamerton.tasks import Task, load_task
from kamerton.training import Budget

LARGEST = 20_000
"""Tokens of training that a trial runs; a larger budget is drawn on to."""
QUESTIONS = 64
"""Test questions that a trial answers."""
ROOM = 0.95
"""The share of a device's memory that tensors may take."""

Tell = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Cost:
    """What a method takes, over all its seeds but for memory.

    Attributes:
        label, method: its name in the recipe, and what it is.
        cells: that are run: one for each seed, or one where the seed changes nothing.
        flops, seconds: by phase, of one cell.
        host_seconds: by phase, those of the stand-in here; on this machine part of `seconds`.
        memory: bytes at the peak; `parts`: what they are.
        devices: that one cell needs, its memory divided evenly.
        trained: numbers that are trained.
        tokens: trained on, read and written in answers to test questions.
        error: why it could not be planned, if so.
    """

    label: str
    method: str
    cells: int
    flops: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    host_seconds: dict[str, float] = field(default_factory=dict)
    memory: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    devices: int = 0
    trained: int = 0
    tokens: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Plan:
    """What a comparison takes.

    Attributes:
        recipe: its name.
        model, parameters, dtype: the base that it is for.
        device: what computes.
        costs: of each method, in the recipe's order.
        notes: what was assumed.
    """

    recipe: str
    model: str
    parameters: int
    dtype: str
    device: Device
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of the whole comparison."""
        return math.fsum(c.cells * math.fsum(c.flops.values()) for c in self.costs)

    @property
    def seconds(self) -> float:
        """Of one device, were it large enough, for the whole comparison."""
        return math.fsum(c.cells * math.fsum(c.seconds.values()) for c in self.costs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        device = {k: v for k, v in asdict(self.device).items() if k != "rates"}
        rates = {("with" if g else "without") + " gradient": r for g, r in self.device.rates.items()}
        return {
            "recipe": self.recipe, "model": self.model, "parameters": self.parameters, "dtype": self.dtype,
            "device": {**device, "rates": rates}, "methods": [asdict(c) for c in self.costs],
            "total": {"flops": self.flops, "seconds": self.seconds}, "notes": list(self.notes),
        }  # fmt: skip


def plan(
    recipe: Recipe, *, model: str | None = None, size: str | None = None, dtype: str | None = None,
    device: Device | None = None, answer_tokens: int | None = None, answers: Path | None = None,
    tell: Tell = lambda *_: None,
) -> Plan:  # fmt: skip
    """Find out what a comparison will take.

    Args:
        recipe: the recipe.
        model: a published model or a preset that the base is taken to be; none: the recipe's base itself.
        size: parameters of a preset.
        dtype: data type of the base; default: the recipe's, and bfloat16 for `auto` on a device that is described.
        device: what computes; none: this machine, measured on the recipe's base.
        answer_tokens: tokens of each answer; default: those of the longest reference answer.
        answers: the folder of a comparison whose answers' mean length is taken for each label that it has.
        tell: told the stage, the share of it that is done, and a text.

    Raises:
        KamertonError: mistakes in the recipe, or a base that stand-ins are not made of.
    """
    import transformers

    methods = resolve(recipe)
    task = load_task(recipe.task)
    check_task(task, recipe.task)
    asked = base_options(recipe)
    kind = dtype or (asked["dtype"] if asked["dtype"] != "auto" or device is None else "bfloat16")
    with at_base(recipe):
        source, name = resolve_source(str(asked["name"]))
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=asked["trust_remote_code"])
    if model is not None:
        config, name = target_config(model, size, config.get_text_config().vocab_size), f"{model} {size or ''}".strip()
    elif config.is_encoder_decoder or is_encoder(config) or "recurrent" in config.model_type:
        raise KamertonError("plans are made for causal bases with attention", where="base", mend="name another base")
    parameters = _parameters(config)
    if device is None:
        torch.set_num_threads(recipe.resources.cpus or min(2, cores()))  # as a worker does by default
    with tempfile.TemporaryDirectory(prefix="kamerton-plan-") as place:
        folder = Path(place)
        write_stand_in(config, source, folder / "base")
        if device is None:
            tell("loading", 0.0, name)
            real = load_base(**{**asked, "dtype": kind})
            kind = real.info.dtype
        stand_in = load_base(**{**asked, "name": folder / "base", "dtype": kind})
        if device is None:
            device = this_machine(
                real, _stand_in_of(asked, source, folder, stand_in, model, kind),
                lambda share: tell("measuring this machine", share, name),
            )  # fmt: skip
            del real
        longest = _longest(stand_in, task)
        room = answer_tokens or min(longest, task.max_answer_tokens)
        known = _written(answers) if answers else {}
        trials = _Trials(recipe, stand_in, task, device, folder, room, known, tell)
        costs = tuple(trials.cost(i, *one) for i, one in enumerate(methods))
    notes = [f"an answer takes {room} tokens" + (f", or as many as in {answers}" if answers else ""), *trials.notes]
    return Plan(recipe.name, name, parameters, kind, device, costs, tuple(notes))


def _stand_in_of(
    asked: Mapping[str, Any], source: str, folder: Path, stand_in: Base, model: str | None, dtype: str
) -> Base:
    """The stand-in of the recipe's own base, beside which this machine is measured."""
    import transformers

    if model is None:
        return stand_in
    write_stand_in(transformers.AutoConfig.from_pretrained(source), source, folder / "own")
    return load_base(**{**asked, "name": folder / "own", "dtype": dtype})


@dataclass(frozen=True)
class _Trial:
    """A cell on the stand-in, watched, and on this machine once more for its seconds and its memory."""

    watched: Trial
    timed: Trial | None

    @property
    def fixed(self) -> int:
        """Bytes that the process takes beside its tensors."""
        return 0 if self.timed is None else max(self.timed.record["peak_memory_bytes"] - self.watched.own_memory, 0)


class _Trials:
    """Runs methods on the stand-in and draws what they took on to the recipe's size."""

    def __init__(
        self, recipe: Recipe, base: Base, task: Task, device: Device, folder: Path, room: int,
        known: Mapping[str, int], tell: Tell,
    ) -> None:  # fmt: skip
        self.recipe, self.base, self.task, self.device, self.folder = recipe, base, task, device, folder
        self.room, self.known, self.tell = room, known, tell
        self.notes: list[str] = []
        self.sampling = recipe.evaluation.sampling.model_dump()
        budget = Budget(**recipe.budget.model_dump())
        self.budget = DEFAULT_BUDGET if budget.unlimited else budget
        if self.budget.seconds is not None:
            self.budget = replace(self.budget, seconds=None)
            if self.budget.unlimited:
                mend = "add tokens, examples, steps or epochs"
                raise KamertonError(
                    "a budget of seconds alone says itself what training takes", where="budget", mend=mend
                )
            self.notes.append("the budget's limit of seconds is left out")
        share = min(1.0, LARGEST / max(self._tokens(), 1))
        self.shares = (share,) if share == 1 else (share / 2, share)
        questions = len(task.test)
        self.tests = (questions,) if questions <= QUESTIONS else (QUESTIONS // 2, QUESTIONS)
        self.reference = self._reference()

    def cost(self, place: int, label: str, method: Method, options: Any, line: int) -> Cost:
        """Of one method."""
        seeds = len(self.recipe.seeds)
        seeded = method.seeded(options) or Sampling(**self.sampling).temperature > 0
        cost = Cost(label, method.name, seeds if seeded else 1)
        told = f"{label} ({place + 1} of {len(self.recipe.methods)})"
        try:
            try:
                check_defined(self.base, method, options)
                check_fits(self.base, within(self.task, self.budget), method, options)
            except KamertonError as error:
                raise at_its_line(self.recipe, self.recipe.methods[line], error) from None
            given = dict(options.model_dump())
            if "patience" in given:
                given["patience"] = 10**6  # when training stops early is not known beforehand
            widths = growth_of(self.base.model.hf.config).sizes
            for name, value in given.items():
                if type(value) is int and value in widths:
                    self.notes.append(f"{label}: {name} {value} is a width of the stand-in: its figures may be wrong")
            cell = Cell(label, method.name, given, self.recipe.seeds[0], "")
            count = max(len(self.shares), len(self.tests))
            points = [
                (self.shares[min(i, len(self.shares) - 1)], self.tests[min(i, len(self.tests) - 1)])
                for i in range(count)
            ]
            trials = [self._trial(cell, *point, told) for point in points]
        except KamertonError as error:
            return replace(cost, error=str(error))
        places = {"fit": self.shares, "evaluate": tuple(n / len(self.task.test) for n in self.tests)}
        drawn = {p: self._drawn([self._spent(t, p) for t in trials], places[p]) for p in PHASES}
        last = trials[-1]
        record, watched = last.watched.record, last.watched
        memory = last.fixed + watched.memory
        tokens = {k: v / places["fit" if k == "trained" else "evaluate"][-1] for k, v in record["tokens"].items()}
        return replace(
            cost, flops={p: drawn[p]["flops"] for p in PHASES}, seconds={p: drawn[p]["seconds"] for p in PHASES},
            host_seconds={p: drawn[p]["host"] for p in PHASES}, memory=memory,
            parts={**watched.parts, **({"process": last.fixed} if last.fixed else {})},
            devices=math.ceil(memory / (ROOM * self.device.memory)), trained=record["trainable_parameters"],
            tokens=tokens,
        )  # fmt: skip

    def _drawn(self, found: list[dict[str, float]], shares: tuple[float, ...]) -> dict[str, float]:
        """What a phase takes at the full size."""
        found = found[-len(shares) :]
        if len(found) < 2:
            return found[-1]
        line = {k: np.polyfit(shares, [one[k] for one in found], 1) for k in found[0]}
        return {k: max(float(np.polyval(fitted, 1.0)), 0.0) for k, fitted in line.items()}

    def _spent(self, trial: _Trial, phase: str) -> dict[str, float]:
        watched = trial.watched
        arithmetic = self.device.seconds(watched.passes[phase])
        if phase == "fit":
            trained = watched.record["trainable_parameters"]
            arithmetic += watched.steps * self.device.step_seconds(trained)
            arithmetic += watched.validations * self.device.write_seconds(trained)
        host = 0.0 if trial.timed is None else trial.timed.busy * float(trial.timed.record["seconds"][phase])
        return {"flops": float(watched.record["flops"][phase]), "seconds": max(host + arithmetic, 0.0), "host": host}

    def _trial(self, cell: Cell, share: float, questions: int, told: str) -> _Trial:
        task = replace(
            self.task, test=self.task.test[:questions], max_answer_tokens=self.known.get(cell.label, self.room)
        )
        budget = self.budget.scaled(share) if share < 1 else self.budget

        def run(watched: bool) -> Trial:
            give_back()
            return run_trial(
                self.folder / "cell", cell, self.base, task, budget, self.reference, self.sampling,
                self.recipe.evaluation.max_batch_tokens, watched=watched,
                tell=lambda done: self.tell(told, done, "passes and tensors" if watched else "seconds"),
            )  # fmt: skip

        # of another device the processor's own seconds and memory say nothing
        return _Trial(run(watched=True), run(watched=False) if self.device.rates else None)

    def _tokens(self) -> float:
        """Tokens of training that the budget allows, about."""
        b, render = self.budget, self.base.renderer
        some = self.task.train[:32]
        if not some:
            return 0
        each = float(
            np.mean([len(render.prompt(e.messages)) + len(render.raw(e.answers[0])) if e.answers else 0 for e in some])
        )
        limits = [b.tokens, b.examples and b.examples * each, b.steps and b.steps * 16 * each]
        limits.append(b.epochs and b.epochs * len(self.task.train) * each)
        return float(min((x for x in limits if x is not None), default=0))

    def _reference(self) -> Reference | None:
        spec = self.recipe.forgetting
        if spec is None:
            return None
        engine = Engine(self.base.model, self.base.renderer, max_batch_tokens=self.recipe.evaluation.max_batch_tokens)
        return reference(engine, general_text(self.recipe, spec.text, spec.bytes), spec.prompts)


def _longest(base: Base, task: Task) -> int:
    """Tokens of the longest reference answer, its end token included."""
    return max(len(base.renderer.raw(e.answers[0])) for e in task.test if e.answers) + 1


def _written(folder: Path) -> dict[str, int]:
    """Tokens written for an answer, by label, of a comparison that was run."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("cells/*/seed-*/cell.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            samples = record["options"].get("samples", 1)  # all of an answer's samples are counted
            found.setdefault(record["label"], []).append(record["tokens_per_answer"]["generated"] / samples)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not finished, or failed
    if not found:
        raise KamertonError("no finished cell to take answers' lengths from", where=folder, mend="name a comparison")
    return {label: max(1, round(float(np.mean(values)))) for label, values in found.items()}


def _parameters(config: Any) -> int:
    from kamerton.base.presets import build, parameters

    return parameters(build(config, "causal", meta=True))

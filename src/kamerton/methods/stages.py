"""Two stages in one fit: a supervised start, and an objective that goes on from it (adversarial, preferences, rewards).

An objective that names another one as its `warm_start` is trained behind it, on the same parameters and inside the same
budget (`share: 1` leaves the start out: it begins at the base). The start is a candidate for the best checkpoint: where
the second stage brings nothing on validation, the method returns what it started from and says so. Fits that differ
only in their second stage share one start where `Run.starts` names a folder for it; each counts its whole cost.

What is asked of such an objective beside training/objective.py: `begin(model, module)`, called when the model is at its
start; `notes`; and where it has them `extra` (a network that is trained with the model and not kept, a value head, with
its own peak `learning_rate` if it has one), `layout` (a word for how its state is laid out in checkpoints), `diverged`
(words for further options to lower) and `validates` (what its validation measures, where not the task's metric).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from filelock import FileLock
from torch import nn

from kamerton.base.load import Base
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError
from kamerton.methods.keys import fit_key
from kamerton.methods.method import Finding, FitRecord, Run
from kamerton.methods.search import space_of
from kamerton.objectives import get_objective
from kamerton.objectives.stage_options import StageOptions
from kamerton.rewards.reward import flops_of
from kamerton.tasks.example import Task, fingerprint
from kamerton.training import Budget, Diverged, Progress, Result, Settings, fit
from kamerton.tuning import Options, Tuned

if TYPE_CHECKING:
    from kamerton.methods.trained import TrainedMethod

Curve = Sequence[dict[str, float]]

DIAGNOSTICS: dict[str, tuple[str, str]] = {
    "adversarial": (
        "kamerton.methods.stage_findings:stage_findings", "kamerton.methods.stage_warnings:stage_warnings",
    ),
    "rejection-sampling": (
        "kamerton.methods.rejection_findings:rejection_findings",
        "kamerton.methods.rejection_findings:rejection_warnings",
    ),
    "dpo": (
        "kamerton.methods.preference_findings:preference_findings",
        "kamerton.methods.preference_findings:preference_warnings",
    ),
    "grpo": ("kamerton.methods.policy_findings:policy_findings", "kamerton.methods.policy_findings:policy_warnings"),
    "ppo": ("kamerton.methods.policy_findings:policy_findings", "kamerton.methods.policy_findings:policy_warnings"),
}  # fmt: skip
"""By objective: what the report shows of its stage, and what it warns of."""


def diagnostics(
    objective: str,
) -> tuple[Callable[[Any, Curve], list[Finding]], Callable[[Any, Curve, int], list[str]]]:
    """The two functions of an objective: (objective, curve) → findings, (objective, curve, step kept) → warnings."""
    findings, warnings = (
        getattr(import_module(module), function)
        for module, _, function in (place.partition(":") for place in DIAGNOSTICS[objective])
    )
    return findings, warnings


def stage_field(objective: str) -> str:
    """The option of a trained method that holds the options of an objective's stage."""
    return objective.replace("-", "_")


def stage_of(options: Any) -> StageOptions:
    """The options of the stage of a method's objective, their defaults where none are given."""
    name = stage_field(options.objective)
    given = getattr(options, name)
    if given is not None:
        return given
    kind = type(options).model_fields[name].annotation
    (own,) = (part for part in get_args(kind) if part is not type(None))
    return own.model_validate({})


SECOND_STAGE = ("objective", "reward", *map(stage_field, DIAGNOSTICS))
"""The options of a trained method that say nothing of its supervised start."""


def start_options(options: Any) -> Any:
    """A trained method's options for the start of its objective's stage; equal ones have the same start."""
    none = dict.fromkeys(SECOND_STAGE)
    return options.model_copy(update={**none, "objective": get_objective(options.objective).warm_start})


def shared_start(method: Any, options: Any) -> str | None:
    """What two fits have in common that share a start, given task, budget and seed; None: there is no start."""
    objective = getattr(options, "objective", None)
    if objective is None or getattr(get_objective(objective), "warm_start", None) is None:
        return None
    share = stage_of(options).share
    return None if share == 1 else fingerprint([method.name, start_options(options).model_dump(), share])


@contextmanager
def _started(run: Run, key: str) -> Iterator[Path]:
    """The folder that the start is trained in; one that is shared is held by one fit at a time."""
    if run.starts is None:
        yield run.folder
        return
    folder = run.starts / key[:24]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield folder


def two_stages(
    method: TrainedMethod, base: Base, task: Task, budget: Budget, options: Any, run: Run
) -> tuple[Tuned, Options, FitRecord]:
    """Train by the warm start's objective, then by the objective itself.

    Returns:
        What was tuned, the options that fit it, and a record of both stages.
    """
    kind, stage = get_objective(options.objective), stage_of(options)
    name = stage_field(options.objective)
    start_share, second = 1 - stage.share, budget.scaled(stage.share)
    if start_share > 0:
        start, first = start_options(options), budget.scaled(start_share)
        # a pause inside the first stage is a share of the whole
        share = min(1.0, run.until / start_share)
        with _started(run, fit_key(method.name, base, task, start, first, run.seed)) as folder:
            tuned, settled, record = method._train(base, task, first, start, replace(run, until=share, folder=folder))
        settled = settled.model_copy(update={field: getattr(options, field) for field in SECOND_STAGE})
    else:
        tuned, settled = method.parameterisation.attach(base, options, task, run.seed), options
        record = FitRecord(learning_rate=options.learning_rate or space_of(method)["learning_rate"][0])
    rest = (run.until - start_share) / stage.share
    if not record.finished or rest <= 0:
        record.finished = False
        record.expected_flops = max(record.expected_flops, record.flops) / start_share
        return tuned, settled, record
    objective = kind.build(base, task, options, limit=method._limit(base, settled), seed=run.seed)
    objective.begin(tuned.model, tuned.module)
    extra = getattr(objective, "extra", None)
    module = tuned.module if extra is None else nn.ModuleDict({"model": tuned.module, "extra": extra})
    settings = Settings(
        learning_rate=(record.learning_rate or 1e-3) * stage.rate, betas=stage.betas, warmup=options.warmup,
        weight_decay=options.weight_decay, clip=options.clip, validations=stage.validations,
        patience=stage.validations + 1, average=stage.average, validate_start=True,
        bfloat16=base.model.dtype == torch.bfloat16, trackers=run.trackers, seed=run.seed,
    )  # fmt: skip

    if extra is not None and hasattr(extra, "learning_rate"):
        for parameter in extra.parameters():
            parameter.rate = extra.learning_rate / settings.learning_rate

    def watch(p: Progress) -> None:
        shown = (("AUC", "auc"), ("KL", "kl"), ("entropy", "entropy"), ("reward", "reward"), ("accuracy", "accuracy"))
        parts = [f"{name} {p.metrics[key]:.2f}" for name, key in shown if key in p.metrics]
        text = ", ".join([f"loss {p.loss:.3f}", *parts, f"{p.seconds_left:.0f} s left"])
        run.watch(f"{options.objective} training", p)
        run.report(f"{options.objective} training", p.share, text)

    # `layout`: of what the objective keeps in checkpoints; one that keeps it otherwise cannot go on
    layout = getattr(kind, "layout", "")
    key = fit_key(method.name, base, task, options, second, run.seed, chosen=record.chosen, stage=2, layout=layout)
    try:
        result = fit(
            tuned.model, module, objective, settings, second, run.folder / options.objective, key=key,
            until=min(1.0, rest), measure=False, watch=watch,
        )  # fmt: skip
    except Diverged as error:  # either network can be the cause
        own = getattr(kind, "diverged", "")
        mend = f"lower {name}.rate{own}, or compute in float32"
        raise KamertonError(f"{options.objective} training: {error.message}", mend=mend) from error
    record.seconds += result.state.seconds
    record.tokens += result.state.tokens
    record.flops += flops(Work(**result.state.work), tuned.model.hf) + flops_of(getattr(objective, "reward", None))
    record.finished = result.finished
    offset = record.curve[-1] if record.curve else {"step": 0, "tokens": 0, "seconds": 0.0}
    for row in result.state.curve:
        later = {k: row[k] + offset[k] for k in ("step", "tokens", "seconds")}
        # what is validated there is not a loss in nats a token, so it is no part of the loss's curve
        record.curve.append({**{k: v for k, v in row.items() if k != "validation_loss"}, **later})
    record.notes += [*objective.notes, *result.notes]
    if result.finished:
        findings, warnings = diagnostics(options.objective)
        record.findings += findings(objective, result.state.curve)
        record.notes += warnings(objective, result.state.curve, result.state.best_step)
        start_name = kind.warm_start if start_share > 0 else "untrained"
        metric = getattr(objective, "validates", task.metrics[0])
        record.notes.append(_verdict(options.objective, start_name, metric, task, result))
    return tuned, settled, record


def _verdict(objective: str, start: str, metric: str, task: Task, result: Result) -> str:
    """Which of the two stages is kept, in words."""
    first, best = result.state.start_loss, result.validation_loss
    if first is None or not task.validation:
        return f"no validation examples: the end of {objective} training was taken"
    if result.state.best_step <= 0:
        return f"{objective} training brought nothing on validation ({metric}): the {start} start was kept"
    return (
        f"{objective} training kept: on validation {metric} is {first - best:.3f} better than at its {start} start "
        f"(step {result.state.best_step})"
    )

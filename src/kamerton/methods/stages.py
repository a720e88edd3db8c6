"""Two stages in one fit: a supervised start, and an objective that goes on from it (adversarial training).

An objective that names another one as its `warm_start` is trained behind it, on the same parameters and inside the same
budget. The start is a candidate for the best checkpoint: where the second stage brings nothing on validation, the
method returns what it started from and says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from kamerton.base.load import Base
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError
from kamerton.methods.keys import fit_key
from kamerton.methods.method import FitRecord, Run
from kamerton.methods.stage_findings import stage_findings
from kamerton.methods.stage_warnings import stage_warnings
from kamerton.objectives import get_objective
from kamerton.objectives.adversarial_options import AdversarialOptions
from kamerton.tasks.example import Task
from kamerton.training import Budget, Diverged, Progress, Result, Settings, fit
from kamerton.tuning import Options, Tuned

if TYPE_CHECKING:
    from kamerton.methods.trained import TrainedMethod


def two_stages(
    method: TrainedMethod, base: Base, task: Task, budget: Budget, options: Any, run: Run
) -> tuple[Tuned, Options, FitRecord]:
    """Train by the warm start's objective, then by the objective itself.

    Returns:
        What was tuned, the options that fit it, and a record of both stages.
    """
    kind, stage = get_objective(options.objective), options.adversarial or AdversarialOptions.model_validate({})
    first, second = budget.scaled(1 - stage.share), budget.scaled(stage.share)
    start = options.model_copy(update={"objective": kind.warm_start, "adversarial": None})
    # a pause inside the first stage is a share of the whole
    share = min(1.0, run.until / (1 - stage.share))
    tuned, settled, record = method._train(base, task, first, start, replace(run, until=share))
    settled = settled.model_copy(update={"objective": options.objective, "adversarial": options.adversarial})
    rest = (run.until - (1 - stage.share)) / stage.share
    if not record.finished or rest <= 0:
        record.finished = False
        record.expected_flops = max(record.expected_flops, record.flops) / (1 - stage.share)
        return tuned, settled, record
    objective = kind.build(base, task, options, limit=method._limit(base, settled), seed=run.seed)
    objective.begin(tuned.model, tuned.module)
    settings = Settings(
        learning_rate=(record.learning_rate or 1e-3) * stage.rate, betas=(0.5, 0.999), warmup=options.warmup,
        weight_decay=options.weight_decay, clip=options.clip, validations=stage.validations,
        patience=stage.validations + 1, average=stage.average, validate_start=True,
        bfloat16=base.model.dtype == torch.bfloat16, trackers=run.trackers, seed=run.seed,
    )  # fmt: skip

    def watch(p: Progress) -> None:
        shown = (("AUC", "auc"), ("KL", "kl"), ("entropy", "entropy"), ("reward", "reward"))
        parts = [f"{name} {p.metrics[key]:.2f}" for name, key in shown if key in p.metrics]
        text = ", ".join([f"loss {p.loss:.3f}", *parts, f"{p.seconds_left:.0f} s left"])
        run.report(f"{options.objective} training", p.share, text)

    # `pairs`: how the discriminators' tokens are kept; a checkpoint that keeps them otherwise cannot go on
    key = fit_key(method.name, base, task, options, second, run.seed, chosen=record.chosen, stage=2, pairs="by row")
    try:
        result = fit(
            tuned.model, tuned.module, objective, settings, second, run.folder / options.objective, key=key,
            until=min(1.0, rest), measure=False, watch=watch,
        )  # fmt: skip
    except Diverged as error:  # either network can be the cause
        mend = "lower adversarial.rate or adversarial.discriminator_rate, or compute in float32"
        raise KamertonError(f"{options.objective} training: {error.message}", mend=mend) from error
    record.seconds += result.state.seconds
    record.tokens += result.state.tokens
    record.flops += flops(Work(**result.state.work), tuned.model.hf)
    record.finished = result.finished
    offset = record.curve[-1] if record.curve else {"step": 0, "tokens": 0, "seconds": 0.0}
    for row in result.state.curve:
        later = {k: row[k] + offset[k] for k in ("step", "tokens", "seconds")}
        # what is validated there is not a loss in nats a token, so it is no part of the loss's curve
        record.curve.append({**{k: v for k, v in row.items() if k != "validation_loss"}, **later})
    record.notes += [*objective.notes, *result.notes]
    if result.finished:
        record.findings += stage_findings(objective, result.state.curve)
        record.notes += stage_warnings(objective, result.state.curve, result.state.best_step)
        record.notes.append(_verdict(options.objective, kind.warm_start, task, result))
    return tuned, settled, record


def _verdict(objective: str, start: str, task: Task, result: Result) -> str:
    """Which of the two stages is kept, in words."""
    first, best = result.state.start_loss, result.validation_loss
    if first is None or not task.validation:
        return f"no validation examples: the end of {objective} training was taken"
    metric = task.metrics[0]
    if result.state.best_step <= 0:
        return f"{objective} training brought nothing on validation ({metric}): the {start} start was kept"
    return (
        f"{objective} training kept: on validation {metric} is {first - best:.3f} better than at its {start} start "
        f"(step {result.state.best_step})"
    )

"""The one training loop.

It owns accumulation (a step's summed losses are divided by the global count of targets, so neither accumulation nor the
number of processes changes the loss), clipping, the schedule, mixed precision, validation with early stopping,
checkpoints, the budget, progress and trackers. It knows neither what is trained nor what is optimised.

The objective's loss is computed inside one module's `forward`, which accelerate wraps for mixed precision. What several
processes do is in `distribution.py`: all of them run this loop and take the same decisions, and the first one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kamerton import processes
from kamerton.base.model import LanguageModel
from kamerton.base.work import Work
from kamerton.errors import BudgetError, KamertonError
from kamerton.training.average import Average
from kamerton.training.budget import Budget
from kamerton.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights, trained_weights
from kamerton.training.distribution import Distribution
from kamerton.training.faults import NoRoom, Room, culprits
from kamerton.training.objective import Objective, Observant, Stateful
from kamerton.training.optimisers import Optimiser, make_optimiser
from kamerton.training.schedule import Schedule, learning_rate
from kamerton.training.step import Step, optimise, validation_loss


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is optimised.

    Attributes:
        learning_rate: the peak.
        warmup: share of the budget over which the learning rate rises from 0.
        warmup_steps: the rise in steps, in place of that share.
        schedule: how the learning rate goes on behind the rise (`schedule.py`).
        decay: share of the budget over which `warmup-stable-decay` falls.
        floor: the learning rate at the end, as a share of the peak.
        optimiser: AdamW, or Muon for the parameters that say of themselves that they are matrices (`optimisers.py`).
        weight_decay, betas: of AdamW; Muon has the same weight decay.
        clip: largest norm of the gradient.
        validations: how many times validation loss is measured over the whole budget.
        patience: validations without improvement after which training stops early.
        bfloat16: compute in bfloat16 with trained weights and their optimiser in float32.
        checkpoint_seconds: least time between checkpoints; writing one never takes more than a twentieth of the time.
        average: decay of an exponential average of what is trained, which is validated and kept in its place; 0: none.
        validate_start: what training starts from is a candidate for the best checkpoint.
        trackers: names of accelerate's trackers (tensorboard, wandb, …).
        seed: of everything random in a step.
    """

    learning_rate: float
    warmup: float = 0.1
    warmup_steps: int | None = None
    schedule: Schedule = "cosine"
    decay: float = 0.2
    floor: float = 0.0
    optimiser: Optimiser = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    validations: int = 10
    patience: int = 4
    bfloat16: bool = False
    checkpoint_seconds: float = 30.0
    average: float = 0.0
    validate_start: bool = False
    trackers: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Progress:
    """What the loop tells whoever watches it.

    Attributes:
        share: of the budget that is spent, 0 … 1.
        tokens, seconds: of the whole run, what went before a pause included.
        run: the name of the run's folder.
        curve: the learning curve up to here, a line a step; it goes on growing, and is not to be changed.
    """

    share: float
    step: int
    loss: float
    validation_loss: float | None
    tokens_per_second: float
    seconds_left: float
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    run: str = ""
    curve: Sequence[Mapping[str, float]] = ()


Watcher = Callable[[Progress], None]


@dataclass
class State:
    """Position and history of a run; everything in it is in the checkpoint."""

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = -1
    behind: int = 0
    validated: int = 0
    stopped_early: bool = False
    start_loss: float | None = None
    work: dict[str, int] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Result:
    """How a run ended.

    Attributes:
        state: position and learning curve.
        validation_loss: of the weights that were kept (the best ones), inf where nothing was validated.
        notes: what the user should know (early stop, damaged checkpoints).
        finished: whether the budget or early stopping ended it (False: it was paused by `until`).
    """

    state: State
    validation_loss: float
    notes: list[str]
    finished: bool


class Diverged(KamertonError):
    """The loss is not a number; `state` says how far the run came, `flops` what that took (where somebody counts)."""

    state: State = State()
    flops: float = 0.0


def fit(
    model: LanguageModel,
    module: nn.Module,
    objective: Objective,
    settings: Settings,
    budget: Budget,
    folder: Path,
    *,
    key: str = "",
    until: float = 1.0,
    measure: bool = True,
    keep: Callable[[float], bool] | None = None,
    watch: Watcher | None = None,
    stop_after: int | None = None,
) -> Result:
    """Train the parameters of `module` that require gradient.

    Args:
        model: the model that the objective calls; `module` holds its trained parameters.
        objective: gives batches and the loss.
        budget: whichever limit is reached first ends the run.
        folder: checkpoints and the best weights live here; a run that was stopped goes on from there.
        key: fingerprint of the run; a checkpoint with another key is not resumed.
        until: pause when this share of the budget is spent (the schedule still spans the whole budget).
        measure: take the validation loss at the pause; without, a run that is paused and resumed is the run that never
            was paused.
        keep: asked with the validation loss at the pause; where it says no, nothing is written there, because nobody
            will go on from it (the weights of a large model with their optimiser take seconds to write).
        watch: called after every step.
        stop_after: return after this step, as if the process had been stopped there (tests).

    Returns:
        The result; the module holds the best weights by validation loss (the last ones where nothing was validated).

    Raises:
        BudgetError: no limit at all, or nothing to train.
        Diverged: the loss or the gradient is not a number; the last good checkpoint is kept.
        ResourceError: memory ran out, and no microbatch is left to halve.
    """
    if budget.unlimited:
        raise BudgetError("the budget has no limit", mend="set examples, tokens, steps, seconds or epochs")
    if not any(p.requires_grad for p in module.parameters()):
        raise BudgetError("the method has nothing to train", mend="choose other targets")
    folder.mkdir(parents=True, exist_ok=True)
    distribution, accelerator = Distribution(objective), _accelerator(model, settings, folder)
    step = Step(module, model, objective)
    distribution.prepare(step, model)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = make_optimiser(
        parameters, settings.optimiser, learning_rate=settings.learning_rate, betas=settings.betas,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    saved, notes = load_checkpoint(folder, module, optimiser, key=key)
    notes = [*distribution.notes, *notes]
    state = State(**saved["run"]) if saved else State()
    others: dict[str, Tensor] = saved["others"] if saved else {}
    average = Average(module, settings.average, others) if settings.average else None
    if saved and isinstance(objective, Stateful):
        objective.restore({k.removeprefix("objective/"): v for k, v in others.items() if k.startswith("objective/")})
    work_before, own_before = Work(**state.work), model.work.copy()
    wrapped = accelerator.prepare_model(step, device_placement=False, evaluation_mode=True)
    best_path = folder / "best.safetensors"
    started, last_save, save_cost = time.perf_counter() - state.seconds, time.perf_counter(), 0.0
    held_out: Sequence[Any] | None = None
    room = Room(notes)
    module.train()

    def share() -> float:
        return budget.share(
            examples=state.examples,
            tokens=state.tokens,
            steps=state.step,
            seconds=state.seconds,
            epoch_examples=objective.epoch_examples,
        )

    def clock() -> float:
        """Seconds of the run, by the first process's clock: they decide what all do."""
        return processes.agreed(time.perf_counter() - started)

    def count_work() -> None:
        state.work = asdict(work_before + (model.work - own_before).of_all())

    def save() -> None:
        nonlocal last_save, save_cost
        begin = time.perf_counter()
        count_work()
        more = average.state() if average is not None else {}
        if isinstance(objective, Stateful):
            more |= {f"objective/{k}": v for k, v in objective.state().items()}
        save_checkpoint(folder, module, optimiser, {"step": state.step, "key": key, "run": asdict(state)}, more)
        last_save = time.perf_counter()
        save_cost = last_save - begin

    def validate() -> None:
        nonlocal held_out
        if held_out is None:
            held_out = objective.validation()
        with average.in_place() if average is not None else nullcontext():
            if isinstance(objective, Observant):
                module.eval()
                objective.look(state.step, model)
                module.train()
            if not held_out:
                return
            value = validation_loss(distribution, wrapped, module, held_out, room, state.step)
            if value < state.best_loss:
                save_weights(best_path, module)
        if state.curve:
            state.curve[-1]["validation_loss"] = value
        if value < state.best_loss:
            state.best_loss, state.best_step, state.behind = value, state.step, 0
        else:
            state.behind += 1
            state.stopped_early = state.behind >= settings.patience

    if settings.validate_start and state.step == 0 and state.start_loss is None:
        validate()
        state.start_loss, state.seconds = state.best_loss, clock()
    done = share()
    while done < until and not state.stopped_early:
        seed = _step_seed(settings.seed, state.step)
        torch.manual_seed(seed)
        batches = objective.batches(state.step, model)
        rate = learning_rate(settings, done, state.step)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        while True:
            parts = room.cut(batches)
            try:
                loss, metrics, norm = optimise(
                    accelerator, distribution, wrapped, parts, parameters, optimiser, clip=settings.clip, seed=seed
                )
            except NoRoom as caught:
                if distribution.count > 1:  # the others wait for this one's gradients
                    raise KamertonError(
                        f"memory ran out at step {state.step}{caught.asked}", mend="lower max_tokens"
                    ) from None
                fault = caught
            else:
                room.fitted(parts)
                break
            optimiser.zero_grad(set_to_none=True)
            room.lower(fault, f"at step {state.step}")
            torch.manual_seed(seed)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            who = culprits(objective, parts, lambda batch: float(wrapped(batch)[0]))
            kept = f"; the weights of step {state.best_step} are kept in {best_path}" if state.best_step >= 0 else ""
            error = Diverged(
                f"the {what} is not a number at step {state.step} (learning rate {rate:.2g}"
                f"{f'; {who}' if who else ''}){kept}",
                mend="lower the learning rate or compute in float32",
            )
            state.seconds = clock()
            count_work()
            distribution.release()
            error.state = state
            raise error
        if average is not None:
            average.update()
        state.step += 1
        state.examples += sum(b.examples for b in batches)  # of all processes: each has the whole step before it
        state.tokens += sum(b.tokens for b in batches)
        state.seconds = clock()
        state.curve.append(
            {
                "step": state.step,
                "tokens": state.tokens,
                "seconds": state.seconds,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": norm,
                **metrics,
            }
        )
        done = share()
        due = math.floor(done * settings.validations + 1e-9)
        if due > state.validated or done >= 1:
            state.validated = max(due, state.validated)
            validate()
            # a validation's time counts as spent: it is part of what the method costs
            state.seconds = clock()
            done = share()
        accelerator.log({k: v for k, v in state.curve[-1].items() if k != "step"}, step=state.step)
        if watch is not None:
            speed = state.tokens / max(state.seconds, 1e-9)
            left = state.seconds / max(done, 1e-9) * max(until - done, 0)
            watch(Progress(
                done, state.step, loss, state.curve[-1].get("validation_loss"), speed, left, metrics, state.tokens,
                state.seconds, folder.name, state.curve,
            ))  # fmt: skip
        if stop_after is not None and state.step >= stop_after:
            save()
            distribution.release()
            return Result(state, state.best_loss, notes, finished=False)
        if processes.agreed(time.perf_counter() - last_save > max(settings.checkpoint_seconds, 20 * save_cost)):
            save()

    finished = done >= 1 or state.stopped_early
    if measure and not finished and state.curve and "validation_loss" not in state.curve[-1]:
        validate()  # paused: whoever paused it wants to know how good it is here
        state.seconds = clock()
    measured = state.curve[-1].get("validation_loss") if state.curve else None
    if finished or keep is None or measured is None or keep(measured):
        save()
    else:
        count_work()
    for tracker in accelerator.trackers:  # accelerate's own end would part the processes
        tracker.finish()
    if finished and state.best_step >= 0:
        load_weights(best_path, module)
        if state.stopped_early:
            notes.append(
                f"stopped early at step {state.step}: validation loss had not improved for {settings.patience} "
                f"validations; the weights of step {state.best_step} were kept"
            )
    elif finished and average is not None:
        average.settle()
    distribution.release()
    module.eval()
    return Result(state, state.best_loss, notes, finished)


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 7_919 + 12_345) % 2**63


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not know or whose package is not installed (it would only warn)."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise KamertonError(f"unknown tracker '{name}'", mend=f"use one of: {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in [str(t) for t in get_available_trackers()]:
            raise KamertonError(f"the tracker '{name}' is not installed", mend=f"run: pip install {name}")


def _accelerator(model: LanguageModel, settings: Settings, folder: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    precision, trackers = "bf16" if settings.bfloat16 else "no", list(settings.trackers) if processes.first() else []
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # one process may train several methods, each with its own precision
    accelerator = Accelerator(
        cpu=model.device.type == "cpu",
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=folder if trackers else None,
    )
    if trackers:
        numbers = {k: v for k, v in asdict(settings).items() if isinstance(v, int | float)}
        accelerator.init_trackers("kamerton", config=numbers)
    return accelerator


__all__ = ["Budget", "Diverged", "Progress", "Result", "Settings", "State", "fit", "trained_weights"]

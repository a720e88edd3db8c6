"""What is refused before anything is computed: methods that are not defined for an encoder–decoder base or an encoder,
and options that ask a base or a task for what it does not have.

Beside float16 weights nothing is trained: gradients below its smallest numbers would vanish unsaid. `full` trains a
copy in float32. On an encoder–decoder a trained method is defined if its parameterisation and its objective both say so
(`encoder_decoder = True`); methods that decide how a model is asked, if what is inside them is. On an encoder only
what says `encoder = True` is defined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kamerton.base.load import Base
from kamerton.errors import RecipeError, TaskError
from kamerton.methods import METHODS, get_method
from kamerton.objectives import get_objective
from kamerton.objectives.texts import read_texts
from kamerton.rewards.parse import check_reward
from kamerton.tasks.example import Task
from kamerton.tuning import get_parameterisation

IN_FLOAT32 = ("full",)
"""Methods that train a copy of the weights in float32, whatever the base's data type is."""

REWARDED = ("grpo", "ppo", "rejection-sampling")
"""Objectives that learn from rewards."""


def check_defined(base: Base, method: Any, options: Any) -> None:
    """Refuse a method that is not defined for this base.

    Raises:
        RecipeError: names the part of it that is not, and methods that are.
    """
    if hasattr(options, "over"):
        from kamerton.methods.prompted import method_inside

        check_defined(base, *method_inside(options))
    if base.model.dtype == torch.float16 and method.trains != "nothing" and method.name not in IN_FLOAT32:
        raise RecipeError(
            f"{method.name} cannot be trained beside float16 weights: small gradients would vanish",
            where=f"base: {base.info.name}",
            mend="set base.dtype to bfloat16 or float32",
        )
    if not base.model.encoder_decoder and not base.model.encoder:
        return
    mark, what = ("encoder", "an encoder") if base.model.encoder else ("encoder_decoder", "an encoder–decoder")
    # methods without a parameterisation answer in words, which an encoder has none of
    parts = _parts(method, options) or ([("method", method)] if base.model.encoder else [])
    for kind, part in parts:
        if not getattr(part, mark, False):
            name = method.name if kind == "method" else f"{method.name} with objective {part.name}"
            others = ", ".join(n for n in METHODS if all(getattr(p, mark, False) for p in _own(n, base)))
            raise RecipeError(
                f"{name} is not defined for {what} base ({base.info.architecture})",
                where=f"base: {base.info.name}",
                mend=f"use a causal base, or one of: {others}" if kind == "method" else "use objective: supervised",
            )


def check_fits(base: Base, task: Task, method: Any, options: Any) -> None:
    """Refuse options for which the base or the task has nothing: a layer, a worked solution, an index.

    Methods, parameterisations and objectives that know more than their options say so in `check(base, task, options)`;
    those inside a method are asked too.

    Raises:
        KamertonError: what is missing; `where` names the option (`lora.targets`) where one is to blame.
    """
    if hasattr(options, "over"):
        from kamerton.methods.prompted import method_inside

        check_fits(base, task, *method_inside(options))
    if hasattr(method, "parameterisation"):
        if options.texts is not None and not Path(options.texts).exists():
            read_texts(options.texts)  # says so
        if options.texts is None and not task.train:
            raise TaskError("there are no training examples", where=task.name, mend="give a train split")
        if options.objective in REWARDED:
            check_reward(options.reward, base, task)
        elif options.reward is not None:
            message, mend = f"it is not read by objective {options.objective}", f"set objective: {REWARDED[0]}"
            raise RecipeError(message, where="reward", mend=mend)
        method._limit(base, options)
        _ask(method.parameterisation, base, task, options)
        _ask(get_objective(options.objective), base, task, options)
    _ask(method, base, task, options)


def check_parameterisation(base: Base, task: Task, name: str, options: Any) -> None:
    """The same for a parameterisation by its name, and the method that is called after it.

    Raises:
        RecipeError: it is not defined for an encoder–decoder base, and this is one.
    """
    if base.model.encoder_decoder and not getattr(get_parameterisation(name), "encoder_decoder", False):
        raise RecipeError(
            f"{name} is not defined for an encoder–decoder base ({base.info.architecture})",
            where=f"base: {base.info.name}", mend="use a causal base, or lora",
        )  # fmt: skip
    _ask(get_parameterisation(name), base, task, options)
    if name in METHODS:
        _ask(get_method(name), base, task, options)


def _ask(part: Any, base: Base, task: Task, options: Any) -> None:
    check = getattr(part, "check", None)
    if check is not None:
        check(base, task, options)


def _parts(method: Any, options: Any) -> list[tuple[str, Any]]:
    if not hasattr(method, "parameterisation"):
        return []
    return [("method", method.parameterisation), ("objective", get_objective(options.objective))]


def _own(name: str, base: Base) -> list[Any]:
    method: Any = get_method(name)
    own = [method.parameterisation] if hasattr(method, "parameterisation") else []
    return own or ([method] if base.model.encoder else [])

"""LoRA: low-rank matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685), through peft.

W x becomes W x + (α / r) B A x with A random and B zero, so that at step 0 the model is the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options, Tuned, load_peft


class LoraOptions(Options):
    """Options of LoRA."""

    rank: int = Field(16, gt=0, description="rank r of the two matrices")
    alpha: int | None = Field(None, gt=0, description="scale α; default 2 × rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the matrices")
    targets: str | list[str] = Field("all-linear", description="module names, or all-linear")
    rslora: bool = Field(False, description="scale by α / √r (Kalajdzievski 2023)")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained")


class Lora:
    """LoRA matrices on linear layers."""

    name = "lora"
    options = LoraOptions
    encoder_decoder = True

    @staticmethod
    def attach(base: Base, options: LoraOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        from peft import LoraConfig, get_peft_model

        fresh = base.reload()
        torch.manual_seed(seed)
        config = LoraConfig(
            r=options.rank, lora_alpha=options.alpha or 2 * options.rank, lora_dropout=options.dropout,
            target_modules=options.targets, use_rslora=options.rslora, bias=options.bias,
            task_type=fresh.model.task_type,
        )  # fmt: skip
        try:
            peft = get_peft_model(fresh.model.hf, config)
        except ValueError as error:
            raise RecipeError(
                f"LoRA targets {options.targets} match no module of {fresh.info.architecture}",
                where="lora.targets",
                mend=f"use all-linear or some of: {', '.join(linear_names(fresh))}",
            ) from error
        _keep_dtype(peft)
        return Tuned(model_for(fresh.model.hf), peft, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        fresh, peft = load_peft(base, folder)
        settle(peft, base)
        return Tuned(model_for(fresh.model.hf), peft, peft)


def _keep_dtype(peft: Any) -> None:
    """Do not cast the matrices' input to float32: under mixed precision it would be cast back at once."""
    from peft.tuners.lora import LoraLayer

    for module in peft.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def settle(peft: Any, base: Base) -> None:
    """After training or loading: the matrices in the base's data type, in which they were computed all along."""
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(base.model.dtype)
    _keep_dtype(peft)


def linear_names(base: Base) -> list[str]:
    """The last parts of the names of all linear layers, for messages."""
    names = {n.rpartition(".")[2] for n, m in base.model.hf.named_modules() if isinstance(m, torch.nn.Linear)}
    return sorted(names - {"lm_head"})

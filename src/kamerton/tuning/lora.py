"""LoRA: low-rank matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685), through peft.

W x becomes W x + (α / r) B A x with A random and B zero, so that at step 0 the model is the base. DoRA (Liu et al.
2024, arXiv 2402.09353) trains a length for each row of the sum beside its direction: m (W + (α / r) B A) / ‖…‖, with m
started at the rows' own lengths, so that at step 0 the model is the base up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from pydantic import Field

from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options, Tuned, load_injected
from kamerton.tuning.targets import linear_names, resolve_targets, with_heads


class LoraOptions(Options):
    """Options of LoRA."""

    rank: int = Field(16, gt=0, description="rank r of the two matrices")
    alpha: int | None = Field(None, gt=0, description="scale α; default 2 × rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the matrices")
    targets: str | list[str] = Field("all-linear", description="module names, or all-linear")
    rslora: bool = Field(False, description="scale by α / √r (Kalajdzievski 2023)")
    dora: bool = Field(False, description="train each row's length beside its direction (DoRA, Liu et al. 2024)")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained")


class Lora:
    """LoRA matrices on linear layers."""

    name = "lora"
    options = LoraOptions
    encoder_decoder = True
    encoder = True

    @staticmethod
    def check(base: Base, task: Task, options: LoraOptions) -> None:  # noqa: ARG004
        """Refuse targets that match no layer."""
        resolve_targets(base, options.targets, "lora.targets")

    @staticmethod
    def attach(base: Base, options: LoraOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        return attach_lora(base.reload(frozen=options.bias == "none"), options, seed, "lora.targets")

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return tuned_lora(*load_injected(base, folder))


def attach_lora(fresh: Base, options: LoraOptions, seed: int, where: str) -> Tuned:
    """Fresh matrices on a copy of the base that nobody else uses; `where` names the option in messages."""
    from peft import LoraConfig, get_peft_model

    targets = resolve_targets(fresh, options.targets, where)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha or 2 * options.rank, lora_dropout=options.dropout,
        target_modules=targets, use_rslora=options.rslora, use_dora=options.dora, bias=options.bias,
        task_type=fresh.model.task_type, **with_heads(fresh),
    )  # fmt: skip
    try:
        peft = get_peft_model(fresh.model.hf, config)
    except (ValueError, NotImplementedError) as error:
        reason = " ".join(f"{error}".split())[:200]
        mend = f"use some of: {', '.join(linear_names(fresh))}; or all-linear"
        raise RecipeError(f"peft cannot put LoRA on {options.targets} ({reason})", where=where, mend=mend) from error
    _in_float32(peft)
    empty = [n for n, m in peft.named_modules() if _is_dora(m) and bool((m.weight == 0).any())]
    if empty:
        raise RecipeError(
            f"{empty[0].partition('.lora_')[0].rpartition('.')[2]} has a row of zeros, which has no direction",
            where=where, mend="leave it out of the targets, or use lora without dora",
        )  # fmt: skip
    return tuned_lora(fresh, peft)


def _in_float32(peft: Any) -> None:
    """Trained biases in float32, as peft has the matrices: small steps would vanish in bfloat16's eight bits."""
    for module in peft.modules():
        own = list(module.parameters(recurse=False))
        for parameter in own if any(p.requires_grad for p in own) else ():
            # a norm wants its weight in the type of its bias
            if (parameter.requires_grad or parameter.ndim == 1) and parameter.dtype != torch.float32:
                parameter.settles = parameter.dtype
                parameter.data = parameter.data.float()


def tuned_lora(fresh: Base, peft: Any) -> Tuned:
    """A copy of the base beside whose layers peft has put matrices."""
    _keep_dtype(peft)
    dora = [m for m in peft.modules() if _is_dora(m)]
    return Tuned(model_for(fresh.model.hf, inferring=(lambda: _lengths_once(peft)) if dora else None), peft, peft)


def _keep_dtype(peft: Any) -> None:
    """Do not cast the matrices' input to float32: under mixed precision it would be cast back at once."""
    from peft.tuners.lora import LoraLayer

    for module in peft.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def _is_dora(module: Any) -> bool:
    from peft.tuners.lora.dora import DoraLinearLayer

    return isinstance(module, DoraLinearLayer)


@contextmanager
def _lengths_once(peft: Any) -> Iterator[None]:
    """For passes over which the weights do not change: DoRA's rows are measured once, not at every pass.

    peft keeps B A written out for it, which takes as much memory as the plain weights; only where four times as much
    is free.
    """
    from peft.helpers import DoraCaching
    from peft.tuners.lora import LoraLayer

    layers = [m for m in peft.modules() if _is_dora(m)]
    size = sum(m.in_features * m.out_features for m in peft.modules() if isinstance(m, LoraLayer))
    device = next(peft.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    for layer in layers:
        layer._cache_clear()  # of an earlier stretch: the weights may have changed since
    try:
        with DoraCaching(enabled=4 * size * next(iter(layers)).weight.element_size() < free):
            yield
    finally:
        for layer in layers:
            layer._cache_clear()

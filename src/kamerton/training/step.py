"""One optimiser step over its microbatches, and the loss of a validation, on one process or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kamerton.base.model import LanguageModel
from kamerton.training.distribution import Distribution, whole
from kamerton.training.faults import Room, watching
from kamerton.training.objective import Loss, Objective


class Step(nn.Module):
    """One module whose forward is the loss, so that wrappers (mixed precision, sharding) see every call."""

    def __init__(self, module: nn.Module, model: LanguageModel, objective: Objective) -> None:
        super().__init__()
        self.module = module
        self._call = lambda batch: objective.loss(model, batch)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        loss: Loss = self._call(batch)
        return loss.total, dict(loss.metrics)


def optimise(
    accelerator: Any, distribution: Distribution, wrapped: nn.Module, batches: Sequence[Any],
    parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, *, clip: float, seed: int,
) -> tuple[float, dict[str, float], float]:  # fmt: skip
    """One optimiser step over all microbatches, of which this process computes its share.

    Args:
        batches: of the whole step, the same on all processes.
        clip: largest norm of the gradient.
        seed: of the step.

    Raises:
        NoRoom: memory ran out at a microbatch; gradients are then of a part of the step.

    Returns:
        The mean loss, mean metrics, and the gradient's norm before clipping, over all processes.
    """
    count = sum(b.count for b in batches)
    scale = 1 / count
    sums = {"": 0.0}
    for share in distribution.shares(batches):
        distribution.seed(seed, share)
        with watching(share.batch):
            loss, metrics = wrapped(share.batch)
            accelerator.backward(loss * (scale * share.scale))
        sums[""] += share.weight * float(loss.detach())
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + share.weight * float(value)
    distribution.reduce(parameters)
    norm = float(whole(accelerator.clip_grad_norm_(parameters, clip)))
    means = {name: value / count for name, value in distribution.sums(sums).items()}
    mean = means.pop("")
    if math.isfinite(mean) and math.isfinite(norm):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return mean, means, norm


@torch.no_grad()
def validation_loss(
    distribution: Distribution, wrapped: nn.Module, module: nn.Module, batches: Sequence[Any], room: Room, step: int
) -> float:
    """Mean loss over the validation set."""

    def loss_of(batch: Any) -> float:
        return float(wrapped(batch)[0])

    module.eval()
    if distribution.count == 1:
        total = sum(loss for _, loss in room.each(batches, loss_of, f"at step {step}"))
    else:
        total = sum(s.weight * loss_of(s.batch) for s in distribution.shares(batches, "validation"))
    module.train()
    distribution.settle()
    return distribution.sums({"loss": total})["loss"] / sum(b.count for b in batches)

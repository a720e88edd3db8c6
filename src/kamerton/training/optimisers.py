"""The optimisers of the training loop: AdamW, or Muon for the matrices with AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the update of each hidden matrix as good as
orthogonal, by five steps of a Newton–Schulz iteration, so that directions of small gradients are learned as well. Its
step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, §2.2), and one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from kamerton.training.step import groups

Optimiser = Literal["adamw", "muon"]


class Optimised(Protocol):
    """What of a run's settings decides its optimiser."""

    @property
    def optimiser(self) -> Optimiser: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...


def make_optimiser(parameters: Sequence[nn.Parameter], settings: Optimised) -> torch.optim.Optimizer:
    """The optimiser that a run's settings name.

    Args:
        parameters: those with the attribute `matrix = True` go to Muon where the settings name it.
    """

    def adamw(of: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups(of), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )

    matrices = [p for p in parameters if getattr(p, "matrix", False)] if settings.optimiser == "muon" else []
    if not matrices:
        return adamw(parameters)
    muon = torch.optim.Muon(
        groups(matrices), lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    return Together([muon, adamw(rest)]) if rest else muon


class Together(torch.optim.Optimizer):
    """Several optimisers as one: their parameter groups side by side, one state, one step."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        # the same dictionaries: a learning rate that is set here holds there, and so does a state that is restored
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        value = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return value

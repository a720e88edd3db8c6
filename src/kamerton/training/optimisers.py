"""The optimisers of the training loop: AdamW, or Muon for the matrices with AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the update of each hidden matrix as good as
orthogonal, by five steps of a Newton–Schulz iteration, so that directions of small gradients are learned as well. Its
step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, §2.2), and one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

Optimiser = Literal["adamw", "muon"]


def groups(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameters by what they say of themselves.

    The attribute `rate` is their share of the learning rate, 1 where they have none; `decays = False` takes them out of
    weight decay.
    """
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        kind = float(getattr(parameter, "rate", 1.0)), bool(getattr(parameter, "decays", True))
        kinds.setdefault(kind, []).append(parameter)
    still = {"weight_decay": 0.0}
    return [{"params": p, "rate": rate, **({} if decays else still)} for (rate, decays), p in kinds.items()]


def make_optimiser(
    parameters: Sequence[nn.Parameter], kind: Optimiser, *, learning_rate: float, betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:  # fmt: skip
    """The optimiser of a run.

    Args:
        parameters: those with the attribute `matrix = True` go to Muon where that is the kind.
        betas: of AdamW.
    """
    rate: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    matrices = [p for p in parameters if kind == "muon" and getattr(p, "matrix", False)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(groups(matrices), **rate, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(torch.optim.AdamW(groups(rest), **rate, betas=betas, fused=True))
    return parts[0] if len(parts) == 1 else Together(parts)


class Together(torch.optim.Optimizer):
    """Several optimisers as one: their parameter groups side by side, one state, one step."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        # the same dictionaries: a learning rate that is set here holds there, and so does a state that is restored
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        value = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return value

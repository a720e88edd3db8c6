"""An exponential average of what is trained: steadier than the last step where two players push each other about.

Used for generators of adversarial pairs (Yazıcı et al. 2019, arXiv 1806.04498): training goes on with the weights as
they are, and what is validated and kept is their average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a module's trained parameters.

    Args:
        module: holds them.
        decay: weight of the average so far at each step; in the first steps less, so that the start does not linger.
        saved: what `state` gave, to go on from.
    """

    def __init__(self, module: nn.Module, decay: float, saved: Mapping[str, Tensor]) -> None:
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._decay, self._steps = decay, 0
        self._mean = {n: p.detach().clone() for n, p in self._parameters.items()}
        if "average/steps" in saved:
            self._steps = int(saved["average/steps"].item())
            self._mean = {n: saved[f"average/{n}"].to(p.device) for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take a step into the average."""
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 9))
        for name, parameter in self._parameters.items():
            self._mean[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the module's place, for as long as this lasts."""
        own = {n: p.detach().clone() for n, p in self._parameters.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(own[name])

    @torch.no_grad()
    def settle(self) -> None:
        """Put the average into the module."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._mean[name])

    def state(self) -> dict[str, Tensor]:
        """The average, as tensors."""
        return {"average/steps": torch.tensor([self._steps]), **{f"average/{n}": m for n, m in self._mean.items()}}

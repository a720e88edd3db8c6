"""An exponential average of what is trained: steadier than the last step where two players push each other about.

Used for generators of adversarial pairs (Yazıcı et al. 2019, arXiv 1806.04498): training goes on with the weights as
they are, and what is validated and kept is their average.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from kamerton.training.checkpoint import copied_weights, put_weights, trained_weights, weights_in_place
from kamerton.training.distribution import placed


class Average:
    """The average of a module's trained parameters.

    Args:
        module: holds them.
        decay: weight of the average so far at each step; in the first steps less, so that the start does not linger.
        saved: what `state` gave, to go on from.
    """

    def __init__(self, module: nn.Module, decay: float, saved: Mapping[str, Tensor]) -> None:
        self._module, self._decay, self._steps = module, decay, 0
        self._mean = copied_weights(module)
        if "average/steps" in saved:
            self._steps = int(saved["average/steps"].item())
            self._mean = {n: placed(saved[f"average/{n}"], m) for n, m in self._mean.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take a step into the average."""
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 9))
        for name, value in trained_weights(self._module).items():
            self._mean[name].lerp_(value, 1 - decay)

    def in_place(self) -> AbstractContextManager[None]:
        """The average in the module's place, for as long as this lasts."""
        return weights_in_place(self._mean, self._module)

    def settle(self) -> None:
        """Put the average into the module."""
        put_weights(self._mean, self._module)

    def state(self) -> dict[str, Tensor]:
        """The average, as tensors."""
        return {"average/steps": torch.tensor([self._steps]), **{f"average/{n}": m for n, m in self._mean.items()}}

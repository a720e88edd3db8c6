"""The model as it was when a stage began: the frozen reference of preference losses and of KL terms.

Only what is trained is kept and put back for a while, so it works for every parameterisation, and for an adapter it
costs no second copy of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kamerton.training.checkpoint import copied_weights, weights_in_place


class Reference:
    """What is trained, as it is now.

    Args:
        module: holds what is trained.
        device: of the model.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module, self._weights, self._device = module, copied_weights(module), device

    @contextmanager
    def in_place(self, seed: int = 0) -> Iterator[None]:
        """The model as it was, without gradient and without dropout, for as long as this lasts.

        Args:
            seed: of random numbers that what is trained may draw; those of training go on as if nothing had been drawn.
        """
        dropping = [m for m in self._module.modules() if isinstance(m, nn.Dropout) and m.training]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), weights_in_place(self._weights, self._module):
            torch.manual_seed(seed)
            try:
                for module in dropping:
                    module.eval()
                yield
            finally:
                for module in dropping:
                    module.train()

"""The memory that a wide model's tensors would take, found by watching those of its stand-in come and go.

Every operation that allocates is seen (PyTorch's dispatch mode, as in its own `mem_tracker`), its result counts with
the shape that it stands for (`base/growth.py`) for as long as its storage lives, and the peak is kept. Weights,
gradients, the optimiser's moments, what the backward pass needs, caches of keys and values and logits are all tensors,
so nothing has to be listed. What a kernel allocates for itself within one operation is not seen.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kamerton.base.growth import Growth
from kamerton.base.quantise import shape

FOUR_BITS = 4.127 / 8
"""Bytes of a number in 4 bits with its share of the scales (Dettmers et al. 2023, section 3)."""
PARTS = ("weights", "gradients and optimiser", "keys and values", "logits", "activations")


class Allocations(TorchDispatchMode):
    """Counts bytes inside its block.

    Args:
        growth: of the stand-in.
        vocabulary: of the stand-in.

    Attributes:
        live, peak: bytes of the wide model's tensors; `own`, `own_peak`: of the stand-in's.
        parts: what the peak is made of, by `PARTS`.
    """

    def __init__(self, growth: Growth, vocabulary: int) -> None:
        super().__init__()
        self.growth, self.vocabulary = growth, vocabulary
        self.live = self.peak = self.own = self.own_peak = 0
        self.parts: dict[str, int] = dict.fromkeys(PARTS, 0)
        self._now = dict(self.parts)
        self._held: dict[int, tuple[Any, int, int, str]] = {}
        self._weights: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in args:
            self._see_all(given)
        out = func(*args, **(kwargs or {}))
        self._see_all(out)
        return out

    def _see_all(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._see(value)
        elif isinstance(value, list | tuple):
            for one in value:
                self._see_all(one)

    def hold(self, module: nn.Module) -> None:
        """Count the weights of a model, also those that operations were given in other shapes before (in 4 bits)."""
        for weight in module.parameters():
            if weight.device.type == "meta":
                continue
            key = weight.untyped_storage()._cdata
            if key in self._held and self._held[key][3] != PARTS[0]:
                self._gone(key)
            self._see(weight)

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta" or not tensor.numel():
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return  # sparse, or wrapped: it has no storage of its own
        key = storage._cdata
        if key in self._held:
            return
        part, bytes_ = self._counted(tensor)
        own = storage.nbytes()
        gone = weakref.ref(storage, lambda _: self._gone(key))
        self._held[key] = gone, bytes_, own, part
        self.live, self.own = self.live + bytes_, self.own + own
        self.own_peak = max(self.own_peak, self.own)
        self._now[part] += bytes_
        if self.live > self.peak:
            self.peak, self.parts = self.live, dict(self._now)

    def _gone(self, key: int) -> None:
        _, bytes_, own, part = self._held.pop(key, (None, 0, 0, PARTS[0]))
        self.live, self.own = self.live - bytes_, self.own - own
        self._now[part] -= bytes_

    def _counted(self, tensor: Tensor) -> tuple[str, int]:
        """What a tensor is, and the bytes that it stands for."""
        dims, size = tuple(tensor.shape), tensor.element_size()
        if isinstance(tensor, nn.Parameter):
            own = tuple(shape(tensor))
            self._weights |= {own, own[::-1]}
            each = FOUR_BITS if own != dims else size
            return PARTS[0], round(math.prod(self.growth.shape(own)) * each)
        if dims in self._weights:
            return PARTS[1], math.prod(self.growth.shape(dims)) * size
        bytes_ = math.prod(self.growth.activation(dims)) * size
        if (
            len(dims) == 4
            and dims[-1] == self.growth.head
            and not tensor.requires_grad
            and dims[1] in self.growth.heads
        ):
            return PARTS[2], bytes_
        return PARTS[3] if dims and dims[-1] == self.vocabulary else PARTS[4], bytes_

"""Copies of a model's modules with the model's own weights in them, so that weights are in memory once."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from kamerton.base.quantise import kind_of, state_of


def with_own_weights(hf: Any) -> Any:
    """A copy of all modules, whose parameters are others that lie in the same memory; buffers are copied.

    Whoever gets it may attach modules and may ask for no gradient of these weights; changing them in place would change
    the model's. Weights in 4 bits are the same parameters.

    Returns:
        The copy; None for weights that were released, or are stored in another format.
    """
    if kind_of(hf) not in (None, "nf4"):
        return None
    known: dict[int, Any] = {}
    for weight in dict.fromkeys(hf.parameters()):
        if weight.is_meta:
            return None
        state = state_of(weight)
        if state is None:
            known[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
        else:
            known |= {id(weight): weight, id(state): state}
    return copy.deepcopy(hf, known)

"""Which linear layers of an architecture are which: keys and values, and the last projections of attention and MLP.

Found by the names that architectures give them and checked against the model that is there. An architecture with other
names needs the option `targets` (checked in `targets.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from kamerton.base.load import Base
from kamerton.errors import RecipeError

KEYS_AND_VALUES = (
    "k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin", "key_proj", "value_proj",
    "qkv_proj", "c_attn", "query_key_value", "Wqkv", "qkv", "att_proj", "in_proj",
)  # fmt: skip
"""Projections to keys and to values, or to queries, keys and values at once."""
LAST = (
    "o_proj", "out_proj", "c_proj", "dense", "wo", "o", "attn_out", "out_lin", "down_proj", "fc2", "fc_out",
    "dense_4h_to_h", "w2", "ff_out", "lin2",
)  # fmt: skip
"""Projections back to the model's width."""

_ATTENTION = re.compile(r"attn|attention|(^|\.)att(\.|$)", re.IGNORECASE)
_MLP = re.compile(r"mlp|feed_forward|feedforward|(^|\.)ffn?(\.|$)|ffw|dense\w+dense", re.IGNORECASE)


def linear_layers(hf: Any) -> dict[str, nn.Module]:
    """All linear layers by name (GPT-2's transposed ones too), the output layer left out."""
    from transformers.pytorch_utils import Conv1D

    output = hf.get_output_embeddings()
    return {
        name: module
        for name, module in hf.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }


def short_names(base: Base) -> dict[str, str]:
    """`sub-layer.projection` (such as `mlp.down_proj`) → `attention`, `mlp` or ``, for all linear layers."""
    out = {}
    for name in linear_layers(base.model.hf):
        parts = name.split(".")
        inside = ".".join(parts[:-1])
        # the innermost that says what it is: `mlp` in `block.attn_and_mlp.mlp.fc`
        kinds = {k: max((m.end() for m in p.finditer(inside)), default=-1)
                 for k, p in (("attention", _ATTENTION), ("mlp", _MLP))}  # fmt: skip
        kind = max(kinds, key=kinds.__getitem__) if max(kinds.values()) >= 0 else ""
        out[".".join(parts[-2:])] = kind
    return out


def keys_and_values(base: Base, where: str) -> list[str]:
    """Short names of the projections to keys and values (to all three where they are one).

    Raises:
        RecipeError: the architecture has none by a known name.
    """
    found = [n for n, kind in short_names(base).items() if kind == "attention" and _last(n) in KEYS_AND_VALUES]
    return found or _unknown(base, "projection to keys and values", where)


def last_projections(base: Base, kind: str, where: str) -> list[str]:
    """Short names of the projections from attention (`kind` attention) or MLP (mlp) back to the model's width.

    Raises:
        RecipeError: the architecture has none by a known name.
    """
    found = [n for n, k in short_names(base).items() if k == kind and _last(n) in LAST]
    if kind == "mlp" and not found:  # some architectures (OPT) have the MLP's layers in the block itself
        found = [n for n, k in short_names(base).items() if not k and _last(n) in ("fc2", "fc_out", "dense_4h_to_h")]
    return found or _unknown(base, f"last projection of the {kind}", where)


def fits(names: Iterable[str], target: str) -> bool:
    """Whether a target is one of the modules' names, or the last parts of one."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def conv1d(base: Base, targets: Collection[str]) -> bool:
    """Whether the targeted layers hold their weights transposed (GPT-2)."""
    return any(
        not isinstance(module, nn.Linear)
        for name, module in linear_layers(base.model.hf).items()
        if any(fits([name], target) for target in targets)
    )


def _unknown(base: Base, what: str, where: str) -> list[str]:
    raise RecipeError(
        f"{base.info.architecture} has no {what} by a known name",
        where=where, mend=f"name them, some of: {', '.join(sorted(short_names(base)))}",
    )  # fmt: skip


def _last(name: str) -> str:
    return name.rpartition(".")[2]

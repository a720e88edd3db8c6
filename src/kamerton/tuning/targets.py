"""Which modules an adapter is put on: names, a regular expression, or `all-linear`, checked before peft sees them.

peft takes a list in which only one of the names fits anything and says nothing about the others; here each must fit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

from kamerton.base.encoder import EncoderModel, new_modules
from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.tuning.modules import fits, linear_layers, short_names

ALL_LINEAR = "all-linear"


def resolve_targets(base: Base, targets: str | Sequence[str], where: str) -> str | list[str]:
    """LoRA's targets as peft takes them.

    Args:
        targets: last parts of module names (or more of them: `self_attn.q_proj`), one name, `all-linear`, or a regular
            expression over whole names.
        where: the option, for the message.

    Raises:
        RecipeError: one of them fits no layer; the names that are close to it come first in the message.
    """
    if targets == ALL_LINEAR:
        return _of_encoder(base) if base.model.encoder else ALL_LINEAR
    asked = [targets] if isinstance(targets, str) else list(targets)
    layers = _layers(base)
    if isinstance(targets, str) and not fits(layers, targets) and any(_matches(targets, name) for name in layers):
        return targets
    check_targets(base, asked, where, linear=False)
    return asked


def check_targets(base: Base, targets: Sequence[str], where: str, *, linear: bool = True) -> None:
    """Refuse module names of which one matches no layer, and an empty list.

    Args:
        targets: last parts of module names, or more of them.
        where: the option, for the message.
        linear: only linear layers count, the output layer left out; False: all of them, as LoRA takes them, and
            `all-linear` stands in the mend.

    Raises:
        RecipeError: the names that are close to the wrong ones come first in the message, then all others.
    """
    layers = linear_layers(base.model.hf) if linear else _layers(base)
    wrong = [target for target in targets if not fits(layers, target)]
    if targets and not wrong:
        return
    known = linear_names(base)
    first = list(dict.fromkeys(name for target in wrong for name in _close(target, known, short_names(base))))
    rest = ", ".join([*first, *(name for name in known if name not in first)])
    what = ", ".join(f"'{t}'" for t in wrong) + (" match" if len(wrong) > 1 else " matches")
    raise RecipeError(
        f"{what if wrong else 'an empty list matches'} no {'linear ' if linear else ''}layer of "
        f"{base.info.architecture}",
        where=where, mend=f"use some of: {rest}" + ("" if linear else f"; or {ALL_LINEAR}"),
    )  # fmt: skip


def linear_names(base: Base) -> list[str]:
    """The last parts of the names of all linear layers but the output layer, in the order of the alphabet."""
    return sorted({name.rpartition(".")[2] for name in linear_layers(base.model.hf)})


def with_heads(base: Base) -> dict[str, Any]:
    """What peft's configurations are told of a base's head, which is trained and saved whole beside the adapter."""
    return {"modules_to_save": new_modules(base.model)} if isinstance(base.model, EncoderModel) else {}


def _of_encoder(base: Base) -> list[str]:
    """The linear layers of an encoder by their whole names: peft would take its head's for some of them."""
    assert isinstance(base.model, EncoderModel)
    heads = new_modules(base.model)
    return [n for n in linear_layers(base.model.hf) if not any(n == h or n.startswith(f"{h}.") for h in heads)]


def _layers(base: Base) -> list[str]:
    """The names of all modules that hold no others."""
    return [name for name, module in base.model.hf.named_modules() if name and not any(module.children())]


def _close(target: str, last: Collection[str], short: Collection[str]) -> list[str]:
    """Names like a wrong one, the closest first: as much of them as was given, where that finds any."""
    parts = target.split(".")
    found = difflib.get_close_matches(".".join(parts[-2:]), short, n=3, cutoff=0.6) if len(parts) > 1 else []
    return found or difflib.get_close_matches(parts[-1], last, n=3, cutoff=0.5)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False

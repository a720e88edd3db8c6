"""Which modules an adapter is put on: names, a regular expression, or `all-linear`, checked before peft sees them.

peft takes a list in which only one of the names fits anything and says nothing about the others; here each must fit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.tuning.modules import linear_layers

ALL_LINEAR = "all-linear"


def resolve_targets(base: Base, targets: str | Sequence[str], where: str) -> str | list[str]:
    """Targets as peft takes them.

    Args:
        targets: last parts of module names (or more of them: `self_attn.q_proj`), one name, `all-linear`, or a regular
            expression over whole names.
        where: the option, for the message.

    Raises:
        RecipeError: one of them fits no layer; the names that are close to it come first in the message.
    """
    if targets == ALL_LINEAR:
        return ALL_LINEAR
    names = [name for name, m in base.model.hf.named_modules() if name and not any(m.children())]
    asked = [targets] if isinstance(targets, str) else list(targets)
    wrong = [t for t in asked if not any(n == t or n.endswith(f".{t}") for n in names)]
    if isinstance(targets, str) and wrong:
        if any(_matches(targets, n) for n in names):
            return targets
    elif asked and not wrong:
        return asked
    known = linear_names(base)
    close = [n for t in wrong for n in difflib.get_close_matches(t.rpartition(".")[2], known, n=3, cutoff=0.5)]
    first = list(dict.fromkeys(close))
    rest = ", ".join([*first, *(n for n in known if n not in first)])
    what = f"{', '.join(wrong)} {'match' if len(wrong) > 1 else 'matches'}" if wrong else "an empty list matches"
    raise RecipeError(
        f"{what} no layer of {base.info.architecture}", where=where, mend=f"use some of: {rest}; or {ALL_LINEAR}"
    )


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def linear_names(base: Base) -> list[str]:
    """The last parts of the names of all linear layers but the output layer, in the order of the alphabet."""
    return sorted({name.rpartition(".")[2] for name in linear_layers(base.model.hf)})

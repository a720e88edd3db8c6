"""`/set`: what of the sampling can be changed in a chat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kamerton.errors import KamertonError
from kamerton.recipe_errors import nearest
from kamerton.sampling import Sampling

SETTINGS: dict[str, type[int] | type[float]] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float, "max_tokens": int, "seed": int,
}  # fmt: skip
"""The settings and their types."""
FILTERS = ("top_k", "top_p", "min_p")
"""Settings that `none` switches off."""


def changed(sampling: Sampling, text: str) -> Sampling:
    """The sampling with one setting changed, `NAME VALUE` or `NAME=VALUE`.

    Raises:
        KamertonError: no such setting, or a value that it cannot take.
    """
    name, _, value = (part.strip() for part in text.replace("=", " ", 1).strip().partition(" "))
    if name not in SETTINGS:
        near = nearest(name, SETTINGS)
        what = f"no setting {name!r}" if name else "nothing to set"
        raise KamertonError(what, mend=f"did you mean {near}?" if near else f"known are: {', '.join(SETTINGS)}")
    new: dict[str, Any] = {name: None}
    try:
        if name not in FILTERS or value != "none":
            new = {name: SETTINGS[name](value)}
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        off = ", or none" if name in FILTERS else ""
        given = f"not {value!r}" if value else "and no value is given"
        raise KamertonError(f"{name} is {kind}{off}, {given}", mend=f"write /set {name} VALUE") from None
    return replace(sampling, **new)


def shown(sampling: Sampling) -> str:
    """All settings in a line."""
    values = ((name, getattr(sampling, name)) for name in SETTINGS)
    return "  ".join(f"{name} {'none' if value is None else f'{value:g}' if name != 'seed' else value}"
                     for name, value in values)  # fmt: skip

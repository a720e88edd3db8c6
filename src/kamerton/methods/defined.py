"""Which methods are defined for an encoder–decoder base. A method that is not is refused before anything is computed.

A trained method is defined there if its parameterisation and its objective both say so (`encoder_decoder = True`);
methods that decide how a model is asked, if what is inside them is.
"""

from __future__ import annotations

from typing import Any

from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.methods import METHODS, get_method
from kamerton.objectives import get_objective


def check_defined(base: Base, method: Any, options: Any) -> None:
    """Refuse a method that is not defined for this base.

    Raises:
        RecipeError: names the part of it that is not, and methods that are.
    """
    if not base.model.encoder_decoder:
        return
    if hasattr(options, "over"):
        from kamerton.methods.prompted import method_inside

        check_defined(base, *method_inside(options))
    for kind, part in _parts(method, options):
        if not getattr(part, "encoder_decoder", False):
            name = method.name if kind == "method" else f"{method.name} with objective {part.name}"
            others = ", ".join(n for n in METHODS if all(getattr(p, "encoder_decoder", False) for p in _own(n)))
            raise RecipeError(
                f"{name} is not defined for an encoder–decoder base ({base.info.architecture})",
                where=f"base: {base.info.name}",
                mend=f"use a causal base, or one of: {others}" if kind == "method" else "use objective: supervised",
            )


def _parts(method: Any, options: Any) -> list[tuple[str, Any]]:
    if not hasattr(method, "parameterisation"):
        return []
    return [("method", method.parameterisation), ("objective", get_objective(options.objective))]


def _own(name: str) -> list[Any]:
    method: Any = get_method(name)
    return [method.parameterisation] if hasattr(method, "parameterisation") else []

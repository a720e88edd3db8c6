"""Which methods are defined for which base. A method that is not is refused before anything is computed.

Beside float16 weights nothing is trained: gradients below its smallest numbers would vanish unsaid. `full` trains a
copy in float32. On an encoder–decoder a trained method is defined if its parameterisation and its objective both say so
(`encoder_decoder = True`); methods that decide how a model is asked, if what is inside them is.
"""

from __future__ import annotations

from typing import Any

import torch

from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.methods import METHODS, get_method
from kamerton.objectives import get_objective

IN_FLOAT32 = ("full",)
"""Methods that train a copy of the weights in float32, whatever the base's data type is."""


def check_defined(base: Base, method: Any, options: Any) -> None:
    """Refuse a method that is not defined for this base.

    Raises:
        RecipeError: names the part of it that is not, and methods that are.
    """
    if hasattr(options, "over"):
        from kamerton.methods.prompted import method_inside

        check_defined(base, *method_inside(options))
    if base.model.dtype == torch.float16 and method.trains != "nothing" and method.name not in IN_FLOAT32:
        raise RecipeError(
            f"{method.name} cannot be trained beside float16 weights: small gradients would vanish",
            where=f"base: {base.info.name}",
            mend="set base.dtype to bfloat16 or float32",
        )
    if not base.model.encoder_decoder:
        return
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

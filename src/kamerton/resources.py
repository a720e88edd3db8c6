"""Processors and memory: what this process may use, and what a task of a recipe asks for."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from kamerton.recipe_task import Count, Part, not_bool

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size(value: object) -> object:
    """Bytes from a text such as `8GB` or `500 MiB`; anything else as it is."""
    if not isinstance(value, str):
        return not_bool(value)
    found = re.fullmatch(r"\s*([\d_]+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", value.lower())
    if found is None:
        raise ValueError("must be a size; write bytes, or a size such as 8GB")
    number, unit, binary = found.groups()
    return round(float(number) * (1024 if binary else 1000) ** _UNITS[unit])


class Resources(Part):
    """What a task asks for.

    Attributes:
        cpus: processor cores; a cell computes with so many threads.
        memory: bytes of the processor's memory, or a size such as `8GB`.
    """

    cpus: Count | None = None
    memory: Annotated[Count, BeforeValidator(size)] | None = None


class CellResources(Resources):
    """What a cell asks for; `gpus`: graphics processors, a part of one where several cells share it."""

    gpus: Annotated[float, BeforeValidator(not_bool), Field(ge=0, allow_inf_nan=False)] | None = None

"""A shape for a number of parameters: `--size 10m` picks width, depth and heads.

The rule follows the published line from GPT-2 (768 × 12) to LLaMA 7B (4096 × 32) and goes on below it:

* depth = 4 · (width / 128)^0.6, rounded: 128 × 4, 256 × 6, 512 × 9, 768 × 12, 1024 × 14, 4096 × 32;
* a head has 32 dimensions below a width of 256, 64 below 2048, 128 from there on;
* keys and values have as many heads as queries (grouped-query attention is asked for by `kv_heads`);
* a recurrent model has two layers, from a width of 1024 on three.

Among the widths that heads divide, the one is taken whose count of parameters, embeddings included, is nearest.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from kamerton.base.presets import Preset, Shape, build, parameters
from kamerton.errors import RecipeError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def read_size(text: str | int | float) -> int:
    """A number of parameters: 10m, 1.3b, 300k, 12000000.

    Raises:
        RecipeError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([kmbt]?)", str(text).strip().replace(",", "").replace("_", "").casefold())
    value = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if value <= 0:
        raise RecipeError(f"'{text}' is not a size", where="size", mend="write a number of parameters: 1m, 10m, 1.3b")
    return value


def shape_of(width: int, vocabulary: int, context: int, *, recurrent: bool = False) -> Shape:
    """The rule's shape of a width."""
    if recurrent:
        return Shape(width, 2 if width < 1024 else 3, 1, vocabulary, context)
    head = 32 if width < 256 else 64 if width < 2048 else 128
    return Shape(width, max(1, round(4 * (width / 128) ** 0.6)), width // head, vocabulary, context)


@cache
def widths() -> tuple[int, ...]:
    """The widths that heads divide, in rising order."""
    return (*range(32, 256, 32), *range(256, 2048, 64), *range(2048, 32769, 128))


def fitted(preset: Preset, size: int, vocabulary: int, context: int, **given: int | None) -> Shape:
    """The shape whose number of parameters is nearest to `size`.

    Args:
        given: fields of `Shape` that are the user's (`kv_heads`, `experts`, …).

    Raises:
        RecipeError: the vocabulary alone is larger, or the size is beyond the largest width.
    """

    def at(width: int) -> Shape:
        return replace(shape_of(width, vocabulary, context, recurrent=preset.recurrent), **given)  # type: ignore[arg-type]

    def count(width: int) -> int:
        return parameters(build(preset.config(at(width), {}), preset.kind, meta=True))

    every = widths()
    low, high = 0, len(every) - 1
    smallest = count(every[0])
    if size < smallest * 0.75:
        mend = f"ask for at least {smallest:,}, or use a smaller vocabulary than {vocabulary:,}"
        raise RecipeError(f"no {preset.name} has as few as {size:,} parameters", where="size", mend=mend)
    while low < high:  # the first width that has at least so many
        middle = (low + high) // 2
        if count(every[middle]) < size:
            low = middle + 1
        else:
            high = middle
    near = every[max(low - 1, 0) : low + 1]
    return at(min(near, key=lambda width: abs(count(width) - size)))

"""The block `scaling` of a pretraining's recipe: which sizes are trained on how many tokens, and how the fit counts."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kamerton.recipe_task import Count, Part, not_bool

Counted = Literal["non-embedding", "all"]
COLUMN: dict[Counted, str] = {"non-embedding": "non_embedding", "all": "parameters"}
"""What a model's count is called in results, by what counts."""

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def read_amount(value: object) -> object:
    """A number as people write it: 1000000, 1m, 2.5m, 1e15."""
    text = str(not_bool(value)).strip().replace("_", "").replace(",", "").casefold()
    factor = _UNITS.get(text[-1:], 1.0)
    try:
        return float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise ValueError(f"'{value}' is not a number; write 1000000, 1m or 1e12") from None


def _read_tokens(value: object) -> object:
    amount = read_amount(value)
    return round(amount) if isinstance(amount, float) and math.isfinite(amount) else amount


def _read_size(value: object) -> str:
    return str(not_bool(value)).strip()


Amount = Annotated[float, BeforeValidator(read_amount), Field(gt=0, allow_inf_nan=False)]
Tokens = Annotated[int, BeforeValidator(_read_tokens), Field(gt=0)]
Size = Annotated[str, BeforeValidator(_read_size), Field(min_length=1)]


class GridBudget(Part):
    """What the whole grid may cost: runs that do not fit any more, the dearest, are left out."""

    flops: Amount


class ScalingSpec(Part):
    """A grid of pretrainings.

    Attributes:
        sizes: parameters of each model, embeddings included (`300k`, `1m`), as `kamerton base show --size` takes them.
        tokens: token counts that every size is trained on.
        flops: training FLOPs that every size is trained with: the token count then follows from the size (IsoFLOP).
        seeds: runs of each pair, with the recipe's seed and those behind it.
        budget: FLOPs of the whole grid; none: all of it is run.
        count: which parameters are the N of the fit: without those of the vocabulary (Kaplan et al. 2020), or all of
            them (Hoffmann et al. 2022).
        bootstrap: times that the fit is repeated for its intervals.
    """

    sizes: tuple[Size, ...] = Field(min_length=2)
    tokens: tuple[Tokens, ...] = ()
    flops: tuple[Amount, ...] = ()
    seeds: Count = 1
    budget: GridBudget | None = None
    count: Counted = "non-embedding"
    bootstrap: Annotated[int, BeforeValidator(not_bool), Field(ge=20)] = 400

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        if isinstance(data, dict):
            out: dict[str, Any] = dict(data)
            for name in ("sizes", "tokens", "flops"):
                if name in out and not isinstance(out[name], list | tuple):
                    out[name] = [out[name]]
            return out
        return data

    @model_validator(mode="after")
    def _a_grid(self) -> Self:
        if not self.tokens and not self.flops:
            raise ValueError("a grid needs token counts; give tokens: [1m, 2m], or flops: [1e13, 3e13]")
        for name in ("sizes", "tokens", "flops"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice; name each once")
        return self

"""`p-tuning-v2`: keys and values of every layer, trained as they are × supervised loss (Liu et al. 2022, arXiv
2110.07602)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kamerton.methods.prefix_tuning import PrefixTuningMethod, PrefixTuningMethodOptions


class PTuningV2Options(PrefixTuningMethodOptions):
    """Options of the method `p-tuning-v2`."""

    reparameterise: Literal["scale", "mlp", "none"] = Field(
        "none",
        description="train the keys and values themselves, or the distance from the start in units of each layer's "
        "spread, or an MLP over embeddings",
    )


class PTuningV2Method(PrefixTuningMethod):
    """Prefix tuning without reparameterisation."""

    name = "p-tuning-v2"
    summary = "trained keys and values, without reparameterisation"
    paper = "Liu et al. 2022, arXiv 2110.07602"
    options = PTuningV2Options
    space = {"learning_rate": (3e-3, 1e-3, 1e-2), "tokens": (100, 50, 200)}  # noqa: RUF012 (read only)

"""Options of the objective `dpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kamerton.objectives.stage_options import StageOptions


class DpoOptions(StageOptions):
    """How preferences move a model away from its start."""

    rate: float = Field(0.1, gt=0, description="peak learning rate as a share of the supervised start's")
    beta: float = Field(0.1, gt=0, description="how strongly the model is held to its start")
    loss: Literal["sigmoid", "ipo"] = Field("sigmoid", description="of a pair: logistic (DPO), or squared (IPO)")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="sigmoid: share of pairs that are taken to be labelled the wrong way round"
    )

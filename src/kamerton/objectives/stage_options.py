"""What all objectives that go on from a start have as options: how much of the budget is theirs, and how they train."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from kamerton.tuning.parameterisation import Options


class StageOptions(Options):
    """A stage behind a supervised start (`share` below 1), or from the base itself (`share: 1`)."""

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Of AdamW."""

    share: float = Field(
        0.5, gt=0, le=1, description="share of the budget for it; the rest is a supervised start; 1: none"
    )
    rate: float = Field(0.5, gt=0, description="peak learning rate as a share of the supervised start's")
    average: float = Field(0.0, ge=0, lt=1, description="of an exponential average that is evaluated and kept; 0: none")
    validations: int = Field(4, gt=0, description="times that answers are judged on validation examples")

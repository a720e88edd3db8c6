"""What policy gradient objectives have as options beside how answers are sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kamerton.objectives.rollout_options import RolloutOptions


class PolicyOptions(RolloutOptions):
    """What becomes of answers that do not end, and which checkpoint is kept."""

    truncated: Literal["keep", "mask"] = Field(
        "keep", description="answers cut at the limit: learned from like others, or left out of the loss"
    )
    overlong: int = Field(
        0, ge=0, description="last tokens before the limit over which a penalty grows from 0 to 1 (DAPO); 0: none"
    )
    keep_by: Literal["metric", "reward"] = Field(
        "metric", description="the checkpoint is kept whose greedy answers are best on validation by this"
    )

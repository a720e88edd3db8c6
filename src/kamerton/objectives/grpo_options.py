"""Options of the objective `grpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kamerton.objectives.policy_options import PolicyOptions


class GrpoOptions(PolicyOptions):
    """Group-relative policy optimisation and its documented variants."""

    group: int = Field(8, gt=1, description="answers to each question")
    epochs: int = Field(1, gt=0, description="optimiser steps on each batch of answers")
    clip: float = Field(0.2, gt=0, description="how far below 1 the ratio of probabilities counts")
    clip_high: float | None = Field(None, gt=0, description="how far above 1 (DAPO's clip-higher); default: as below")
    kl: float = Field(0.04, ge=0, description="weight of the KL divergence to the start, in nats a token; 0: none")
    kl_unbiased: bool = Field(
        True, description="its gradient is that of KL(π ‖ start) (DeepSeek-V3.2); else GRPO's own, of KL(start ‖ π)"
    )
    length: Literal["answer", "token", "constant"] = Field(
        "answer", description="losses are means over each answer (GRPO), over all tokens (DAPO), or sums by a constant "
        "length (Dr. GRPO)",
    )  # fmt: skip
    deviation: bool = Field(True, description="divide advantages by the standard deviation of the group's rewards")
    dynamic: bool = Field(False, description="leave groups with equal rewards out and sample on (DAPO)")
    tries: int = Field(4, gt=0, description="dynamic: times that questions are sampled for a batch, at most")

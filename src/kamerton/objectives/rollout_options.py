"""What all objectives have as options that learn from sampled answers and their rewards."""

from __future__ import annotations

from pydantic import Field

from kamerton.objectives.stage_options import StageOptions


class RolloutOptions(StageOptions):
    """How answers are sampled."""

    queries: int = Field(8, gt=0, description="questions that are answered for a step")
    temperature: float = Field(1.0, gt=0, description="at which answers are sampled, and their probabilities taken")
    max_answer_tokens: int | None = Field(None, gt=0, description="longest answer; default: the task's")

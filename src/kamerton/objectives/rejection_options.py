"""Options of the objective `rejection-sampling`."""

from __future__ import annotations

from pydantic import Field

from kamerton.objectives.rollout_options import RolloutOptions


class RejectionOptions(RolloutOptions):
    """Best of K, again and again."""

    queries: int = Field(64, gt=0, description="questions that are answered in a round")
    samples: int = Field(8, gt=1, description="K, answers to each question, of which the best one is kept")
    temperatures: tuple[float, ...] = Field((1.0,), min_length=1, description="at which answers are sampled, in turn")
    rounds: int = Field(3, gt=0, description="times that answers are sampled anew")
    least: float | None = Field(None, description="a best answer with a lower reward is left out; default: none is")

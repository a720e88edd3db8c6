"""Options of the objective `rejection-sampling`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from kamerton.objectives.rollout_options import RolloutOptions


class RejectionOptions(RolloutOptions):
    """Best of K, again and again."""

    queries: int = Field(64, gt=0, description="questions that are answered in a round")
    samples: int = Field(8, gt=1, description="K, answers to each question, of which the best one is kept")
    temperatures: tuple[float, ...] | None = Field(
        None, min_length=1, description="at which the K answers are sampled, in equal parts; default: `temperature`"
    )
    passes: int = Field(1, gt=0, description="passes over the kept answers in a round")
    rounds: int | None = Field(
        None, gt=0, description="times that answers are sampled anew, at most; default: until the budget ends"
    )
    least: float | None = Field(None, description="a best answer with a lower reward is left out; default: none is")
    ties: Literal["keep", "leave-out"] = Field(
        "keep", description="a question whose K answers all have the same reward: its first one is kept, or none"
    )

    @field_validator("temperatures")
    @classmethod
    def _positive(cls, given: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if given is not None and min(given) <= 0:
            raise ValueError(f"temperature {min(given):g} samples nothing; give temperatures above 0")
        return given

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.temperatures is not None and len(self.temperatures) > self.samples:
            raise ValueError(
                f"{len(self.temperatures)} temperatures for {self.samples} samples; give at most one temperature each"
            )
        return self

    def parts(self) -> list[tuple[float, int]]:
        """Each temperature with how many of the K answers are sampled at it."""
        given = self.temperatures or (self.temperature,)
        whole, more = divmod(self.samples, len(given))
        return [(t, whole + (i < more)) for i, t in enumerate(given)]

"""Options of the objective `ppo`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from kamerton.objectives.policy_options import PolicyOptions


class PpoOptions(PolicyOptions):
    """Proximal policy optimisation as InstructGPT and Llama 2-Chat use it."""

    queries: int = Field(32, gt=0, description="questions that are answered for a batch of rollouts")
    epochs: int = Field(2, gt=0, description="passes over each batch of rollouts")
    minibatches: int = Field(4, gt=0, description="optimiser steps in a pass")
    clip: float = Field(0.2, gt=0, description="how far from 1 the ratio of probabilities counts")
    kl: float = Field(0.05, ge=0, description="coefficient of the KL penalty on every token's reward, at first")
    kl_target: float | None = Field(
        None, gt=0, description="KL to the start, in nats an answer, at which the coefficient is kept; default: fixed"
    )
    discount: float = Field(1.0, gt=0, le=1, description="γ, of rewards per token")
    trace: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    value_weight: float = Field(0.1, ge=0, description="of the value loss")
    value_clip: float = Field(0.2, gt=0, description="how far from its old value a value may be moved")
    value_rate: float = Field(1e-3, gt=0, description="peak learning rate of the value head")
    value_trunk: bool = Field(False, description="let the value loss move the model too, not its head alone")
    whiten: bool = Field(True, description="advantages to mean 0 and spread 1 in each batch of rollouts")
    normalise: bool = Field(True, description="divide rewards by their running standard deviation")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.minibatches > self.queries:
            raise ValueError(f"{self.minibatches} minibatches of {self.queries} answers; lower minibatches")
        if self.kl_target is not None and not self.kl:
            raise ValueError("kl_target adapts a coefficient that is 0; set kl above 0")
        return self

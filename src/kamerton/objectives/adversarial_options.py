"""Options of the objective `adversarial`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kamerton.objectives.stage_options import StageOptions


class AdversarialOptions(StageOptions):
    """How an adversarial stage goes on from a supervised one."""

    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)

    path: Literal["references", "rollouts", "both"] = Field(
        "references",
        description="where the signal comes from: reference answers without sampling, sampled answers, both",
    )
    share: float = Field(0.4, gt=0, le=1, description="share of the budget for it; the rest is the supervised start")
    weight: float = Field(1.0, ge=0, description="of the adversarial signal; 0: go on with supervised training alone")
    anchor: float = Field(1.0, ge=0, description="weight of the supervised loss beside it")
    kl: float = Field(0.1, ge=0, description="weight of the KL divergence to the supervised start, in nats a token")
    average: float = Field(
        0.9, ge=0, lt=1, description="of the exponential average that is evaluated and kept; 0: none"
    )
    correction: bool = Field(
        True, description="judge d − log π/π_ref in place of d, so that d estimates the reward (adversarial IRL)"
    )
    discriminator: Literal["factored", "attention"] = Field(
        "factored", description="what it reads of an answer: the position before a token, or all before it by attention"
    )
    cross_fitting: bool = Field(True, description="two discriminators, each judge of what the other was trained on")
    rank: int = Field(32, gt=0, description="width of the discriminator's product")
    discriminator_rate: float = Field(3e-3, gt=0, description="learning rate of the discriminators")
    decay: float = Field(0.01, ge=0, description="weight decay of the discriminators")
    penalty: float = Field(0.01, ge=0, description="R1 and R2 penalty on the discriminators")
    replay: int = Field(8192, ge=0, description="tokens of older references and of answers each discriminator keeps")
    substitutes: int = Field(
        8, gt=0, description="references: tokens drawn from the model beside each of theirs, for the discriminators"
    )
    warmup_steps: int = Field(
        40, ge=0, description="steps of the discriminators alone, at first; four times over what the first steps read"
    )
    controller: bool = Field(
        True,
        description="keep the held-out AUC in its band, and scores as large as it bears out; else a fixed ratio",
    )
    low: float = Field(0.6, gt=0.5, lt=1, description="lower edge of the band of the held-out AUC")
    high: float = Field(0.9, gt=0.5, le=1, description="upper edge of the band")
    steps: float = Field(1.0, gt=0, description="discriminator steps for one of the generator, at first")
    group: int = Field(4, gt=1, description="rollouts: answers to each query")
    queries: int = Field(4, gt=0, description="rollouts: queries in a step")
    discount: float = Field(0.8, ge=0, le=1, description="rollouts: of the reward-to-go, per token")
    temperature: float = Field(1.0, gt=0, description="rollouts: at which answers are sampled")

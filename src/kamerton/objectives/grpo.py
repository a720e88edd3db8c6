"""GRPO, group-relative policy optimisation (DeepSeekMath, Shao et al. 2024, arXiv 2402.03300, section 4.1).

Several answers to one question are each other's baseline: an answer's advantage, the same for all of its tokens, is its
reward less the group's mean, in the group's standard deviations. No critic. Variants by options: Dr. GRPO (Liu et al.
2025, arXiv 2503.20783: no deviation, a constant length), DAPO (Yu et al. 2025, arXiv 2503.14476: a higher upper clip,
means over tokens, groups with equal rewards left out), and the ratio before the divergence (DeepSeek-V3.2, arXiv
2512.02556, equation 7): tokens are drawn from the policy, and that must be in the gradient too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kamerton.objectives.grpo_options import GrpoOptions
from kamerton.objectives.policy import Group, Policy
from kamerton.objectives.policy_batches import PolicyBatch, Rollouts
from kamerton.objectives.surrogate import clipped_surrogate, divergence


def group_advantages(rewards: np.ndarray, *, deviation: bool) -> np.ndarray:
    """(G,) rewards of answers to one question → (G,) advantages; the deviation is the sample's, of G − 1."""
    centred = rewards - rewards.mean()
    return centred / (rewards.std(ddof=1) + 1e-4) if deviation else centred


class Grpo(Policy):
    """Group-relative policy optimisation."""

    name = "grpo"
    options = GrpoOptions
    diverged: ClassVar[str] = " or raise grpo.kl"
    o: GrpoOptions

    @property
    def group(self) -> int:
        return self.o.group

    @property
    def reuse(self) -> int:
        return self.o.epochs

    @property
    def tries(self) -> int:
        return self.o.tries if self.o.dynamic else 1

    @property
    def by_token(self) -> bool:
        return self.o.length == "token"

    def teaches(self, group: Group) -> bool:
        return not (self.o.dynamic and group.equal)

    def learn(self, rollouts: Rollouts, groups: Sequence[Group]) -> None:
        gains = np.concatenate([group_advantages(g.worth, deviation=self.o.deviation) for g in groups])
        lengths = np.array(rollouts.lengths)
        rollouts.values["advantages"] = _each(gains, lengths)
        one = np.ones(len(lengths))
        shares = {"answer": 1 / lengths, "token": one, "constant": one / self.longest}
        rollouts.values["weights"] = _each(shares[self.o.length], lengths)

    def token_losses(self, now: Tensor, hidden: Tensor, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        old = batch.values.get("old", now.detach())
        high = self.o.clip if self.o.clip_high is None else self.o.clip_high
        losses, clipped = clipped_surrogate(now - old, batch.values["advantages"], self.o.clip, high)
        figures = {"clipped": clipped}
        if self.o.kl:
            figures["kl"] = kl = divergence(now, batch.values["start"])
            losses = losses + self.o.kl * (kl * (now - old).exp() if self.o.kl_unbiased else kl)
        return losses, figures


def _each(values: np.ndarray, lengths: np.ndarray) -> Tensor:
    """A number of each answer as (N,) numbers of its tokens."""
    return torch.as_tensor(np.repeat(values, lengths), dtype=torch.float32)

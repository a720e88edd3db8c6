"""What policy gradients with a ratio of probabilities share: the clipped surrogate and an estimate of the divergence.

The surrogate is that of PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7), with an upper edge of its own where
asked (clip-higher, DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.1). The divergence is Schulman's k3, as in GRPO
(Shao et al. 2024, arXiv 2402.03300, equation 4).
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A), and where the clip holds the gradient back.

    Args:
        log_ratio: (N,) log π − log π_old of tokens; `advantages`: (N,).

    Returns:
        (N,) losses and (N,) booleans.
    """
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return loss, clipped


def divergence(log_p: Tensor, log_start: Tensor) -> Tensor:
    """k3 of tokens drawn from p: r − 1 − log r with r = start/p. (N,) nats, never below 0, KL(p ‖ start) on average."""
    log_ratio = log_start - log_p
    return log_ratio.exp() - 1 - log_ratio

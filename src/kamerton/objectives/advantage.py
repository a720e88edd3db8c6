"""Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438), and whitening."""

from __future__ import annotations

import numpy as np


def generalised_advantages(rewards: np.ndarray, values: np.ndarray, discount: float, trace: float) -> np.ndarray:
    """A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t, of one answer; nothing is worth anything behind its end.

    Args:
        rewards: (T,) of each token.
        values: (T,) of the state before each token.
        discount: γ; `trace`: λ.

    Returns:
        (T,) advantages; with the values added they are the returns that values are fitted to.
    """
    out, later = np.zeros(len(rewards)), 0.0
    following = np.append(values[1:], 0.0)
    for t in range(len(rewards) - 1, -1, -1):
        later = rewards[t] + discount * following[t] - values[t] + discount * trace * later
        out[t] = later
    return out


def whitened(advantages: np.ndarray) -> np.ndarray:
    """(N,) advantages with mean 0 and spread 1; only centred where they are all equal."""
    spread = float(advantages.std())
    return (advantages - advantages.mean()) / (spread if spread > 1e-8 else 1.0)

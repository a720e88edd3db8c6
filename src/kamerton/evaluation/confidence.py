"""Calibration: is a model right as often as it is sure?

Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, section 2): answers are sorted into
bins by confidence, and ECE = Σ_b (n_b / N) |mean correctness − mean confidence|. Bins are of equal mass (Nguyen and
O'Connor 2015; fewer where confidences repeat) or of equal width. A score between 0 and 1 may stand for correctness.

ECE is never negative, so a perfectly calibrated model shows more than 0 on few answers: `floor` says how much, by
drawing right and wrong from the confidences themselves. The Brier score stands beside it, which needs no bins. The
interval of ECE holds the bins fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kamerton.evaluation.figures import Figure, mean

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ece:
    """ECE from sums in B bins. S = 3B: confidence, correctness and number of answers of each bin."""

    range: tuple[float, float] = (0.0, 1.0)

    def aggregate(self, sums: Array, count: Array | float) -> Array:
        sums = np.asarray(sums, dtype=np.float64)
        confidence, correct, _ = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        return np.abs(correct - confidence).sum(-1) / count


def edges(confidence: Array, bins: int, *, adaptive: bool = True) -> Array:
    """Inner edges of at most `bins` bins: (N,) confidences → (B − 1,) rising; a bin holds (its edge, the next]."""
    if not adaptive:
        return np.arange(1, bins) / bins
    ordered = np.sort(np.asarray(confidence, dtype=np.float64))
    places = [round(i * len(ordered) / bins) for i in range(1, bins)]
    inner = np.unique([ordered[p - 1] for p in places if 0 < p < len(ordered)])
    return inner[inner < ordered[-1]]


def ece(confidence: Array, correct: Array, bins: int = 10, *, adaptive: bool = True) -> Figure:
    """ECE of (N,) confidences in 0 … 1 and (N,) correctness in 0 … 1."""
    inner = edges(confidence, bins, adaptive=adaptive)
    which = np.searchsorted(inner, confidence, side="left")
    at = np.eye(len(inner) + 1)[which]
    rows = np.concatenate([at * np.asarray(confidence)[:, None], at * np.asarray(correct)[:, None], at], axis=1)
    return Figure(Ece(), rows, "lower")


def brier(confidence: Array, correct: Array) -> Figure:
    """Mean squared difference of confidence and correctness (Brier 1950)."""
    return mean((np.asarray(confidence) - np.asarray(correct)) ** 2, low=0.0, high=1.0, better="lower")


def floor(confidence: Array, bins: int = 10, *, adaptive: bool = True, draws: int = 500, seed: int = 0) -> float:
    """Mean ECE of a perfectly calibrated model that has these confidences, on as many answers."""
    confidence = np.asarray(confidence, dtype=np.float64)
    rng = np.random.default_rng([seed, 17])
    right = rng.random((draws, len(confidence))) < confidence
    which = np.searchsorted(edges(confidence, bins, adaptive=adaptive), confidence, side="left")
    at = np.eye(which.max() + 1)[which]
    return float(np.abs((right - confidence) @ at).sum(1).mean() / len(confidence))


def diagram(figure: Figure) -> list[dict[str, float]]:
    """The reliability diagram of an `ece`: mean confidence, mean correctness and answers of each bin that has any."""
    confidence, correct, count = figure.statistics.sum(0).reshape(3, -1)
    return [
        {"confidence": float(a / n), "correct": float(b / n), "answers": int(n)}
        for a, b, n in zip(confidence, correct, count, strict=True) if n
    ]  # fmt: skip

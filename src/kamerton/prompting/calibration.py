"""Contextual calibration (Zhao et al. 2021, arXiv 2102.09690): take off what a model would say to an empty question.

The prompt is asked with content-free inputs ("N/A", "[MASK]", nothing); the mean p_cf of the probabilities there is the
prompt's own leaning. The mean over many real questions can stand in for it (Zhou et al. 2023, arXiv 2309.17249).
Probabilities p of a real question become W p + b, with W = diag(p_cf)⁻¹ and b = 0 (`diagonal`), or W = 1 and b = −p_cf
(`identity`); the largest one is the answer.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kamerton.tasks.example import Conversation

FLOOR = 1e-3
"""Smallest p_cf that a first token of the whole vocabulary is divided by. Without, tokens that nothing ever calls for
would win by the noise of their tiny probabilities."""


def content_free(asked: Conversation, question: str, content: str) -> Conversation:
    """A prepared conversation with its question replaced; a frame around the question stays.

    Args:
        asked: as the model would see it.
        question: the last message before it was prepared; where the prepared message does not hold it, all of that
            message is replaced.
        content: what stands in its place.
    """
    last = asked[-1]
    before, held, after = last.content.rpartition(question) if question else ("", "", "")
    text = before + content + after if held else content
    return (*asked[:-1], type(last)(last.role, text))


def leaning(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, K) log-probabilities of K choices under C content-free inputs → (K,) log p_cf."""
    p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return np.asarray(np.logaddexp.reduce(p, axis=0) - math.log(len(p)))


def calibrate(scores: NDArray[np.float64], log_cf: NDArray[np.float64], variant: str) -> NDArray[np.float64]:
    """Calibrated scores of choices, to be compared with one another.

    Args:
        scores: (K,) log-probabilities.
        log_cf: (K,) from `leaning`.
        variant: `diagonal` gives log(p / p_cf), `identity` p − p_cf.
    """
    log_p = scores - np.logaddexp.reduce(scores)
    return log_p - log_cf if variant == "diagonal" else np.exp(log_p) - np.exp(log_cf)


def calibrate_first(logits: Tensor, log_cf: Tensor, variant: str) -> Tensor:
    """(B, V) logits of first tokens → logits to choose from: log of the corrected probabilities, not normalised.

    Args:
        logits: (B, V) float32.
        log_cf: (B, V) log p_cf of the whole vocabulary.
        variant: `diagonal` divides by p_cf or `FLOOR`, whichever is greater; `identity` subtracts p_cf, and a token
            that is left with nothing keeps a millionth of its probability.
    """
    log_p = logits.log_softmax(-1)
    if variant == "diagonal":
        return log_p - log_cf.clamp(min=math.log(FLOOR))
    p = log_p.exp()
    return torch.maximum(p - log_cf.exp(), 1e-6 * p).clamp(min=1e-38).log()

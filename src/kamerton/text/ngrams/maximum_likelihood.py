"""Shares of counts, without smoothing: P(w | h) = c(h w) / c(h), and nothing for what was never seen behind h.

A context that was never seen itself says nothing, and the shorter one is asked.
"""

from __future__ import annotations

import numpy as np

from kamerton.text.ngrams.model import Order
from kamerton.text.ngrams.trie import Layer
from kamerton.text.ngrams.units import BOS


def maximum_likelihood(layers: list[Layer]) -> tuple[list[Order], list[str]]:
    """Orders with probabilities and back-off weights (0 behind every context that was seen), and no notes."""
    out: list[Order] = []
    for n, layer in enumerate(layers, start=1):
        counts = layer.counts.astype(np.float64)
        with np.errstate(divide="ignore"):
            if n == 1:
                counts[BOS] = 0.0
                probs = counts / counts.sum()
            else:
                below = len(layers[n - 2].keys)
                totals = np.bincount(layer.contexts, weights=counts, minlength=below)
                probs = counts / totals[layer.contexts]
                out[-1].backoffs = np.where(totals > 0, -np.inf, 0.0)
            out.append(Order(layer.keys, np.log(probs), np.zeros(len(layer.keys))))
    return out, []

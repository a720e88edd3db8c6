"""Katz back-off (Katz 1987, "Estimation of Probabilities from Sparse Data", equations 11 to 16).

Counts r up to 5 are discounted by Good–Turing, r* = (r + 1) n_{r+1} / n_r, scaled so that what is taken away is what
Good–Turing gives to n-grams that were never seen; larger counts are trusted. What is free at a context goes to the
units that were never seen behind it, in proportion to the shorter context's probabilities. At order 1 it goes to the
units that were never seen, `<unk>` among them, in equal parts.
"""

from __future__ import annotations

import numpy as np

from kamerton.text.ngrams.model import Order
from kamerton.text.ngrams.trie import Layer
from kamerton.text.ngrams.units import BOS, UNK

TRUSTED = 5
"""Counts above this are not discounted."""
FALLBACK = 0.5
"""What is taken off every count where counts of counts give no discounts."""


def katz(layers: list[Layer]) -> tuple[list[Order], list[str]]:
    """Orders with probabilities and back-off weights, and notes."""
    out: list[Order] = []
    notes: list[str] = []
    for n, layer in enumerate(layers, start=1):
        counts = layer.counts.astype(np.float64)
        if n == 1:
            counts[[BOS, UNK]] = 0.0
        ratios = good_turing(layer.counts if n > 1 else counts.astype(np.int64))
        if ratios is None:
            notes.append(f"order {n}: Good–Turing gives no discounts on so little text, so {FALLBACK} is taken off")
            kept = np.maximum(counts - FALLBACK, 0.0)
        else:
            kept = counts * ratios[np.minimum(counts, TRUSTED + 1).astype(np.int64)]
        if n == 1:
            total = float(counts.sum())
            probs = kept / total
            never = counts == 0
            never[BOS] = False
            probs[never] = (1.0 - float(probs.sum())) / never.sum()  # <unk> is always one of them
        else:
            below = len(layers[n - 2].keys)
            totals = np.bincount(layer.contexts, weights=counts, minlength=below)
            probs = kept / totals[layer.contexts]
            seen = np.bincount(layer.contexts, weights=probs, minlength=below)
            shorter = np.bincount(layer.contexts, weights=np.exp(out[-1].probs)[layer.suffixes], minlength=below)
            # behind a context all of whose counts are trusted nothing is free: it is seen once more than it was, with
            # something that is not known (as SRILM does)
            full = (1.0 - seen < 1e-9) & (1.0 - shorter > 1e-9) & (totals > 0)
            scale = np.where(full, totals / (totals + 1), 1.0)
            probs, seen = probs * scale[layer.contexts], seen * scale
            with np.errstate(divide="ignore", invalid="ignore"):
                alpha = np.where(totals > 0, (1.0 - seen) / (1.0 - shorter), 1.0)
            # behind some contexts everything was seen: nothing is free, and nothing left to give it to
            alpha = np.where(np.isfinite(alpha) & (alpha > 0), alpha, 0.0)
            with np.errstate(divide="ignore"):
                out[-1].backoffs = np.log(alpha)
        with np.errstate(divide="ignore"):
            out.append(Order(layer.keys, np.log(probs), np.zeros(len(layer.keys))))
    return out, notes


def good_turing(counts: np.ndarray) -> np.ndarray | None:
    """(7,) what a count of 0 … 5 and of more is multiplied by; None where counts of counts give nothing usable."""
    t = np.bincount(np.minimum(counts, TRUSTED + 2), minlength=TRUSTED + 3).astype(np.float64)
    if not (t[1 : TRUSTED + 2] > 0).all():
        return None
    common = (TRUSTED + 1) * t[TRUSTED + 1] / t[1]
    out = np.ones(TRUSTED + 2)
    for r in range(1, TRUSTED + 1):
        out[r] = ((r + 1) * t[r + 1] / t[r] / r - common) / (1 - common) if common != 1 else np.nan
    usable = np.isfinite(out).all() and (out[1:] > 0).all() and (out[1:] <= 1).all() and common < 1
    return out if usable and (out[1 : TRUSTED + 1] < 1).any() else None

"""Interpolated modified Kneser–Ney smoothing (Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for
Language Modeling", section 3; estimated as Heafield et al. 2013 do in KenLM).

    P(w | h) = (a(h w) − D(a(h w))) / Σ_v a(h v) + γ(h) · P(w | h without its first unit)
    γ(h)     = Σ_k D_k · |{v: a(h v) counts as k}| / Σ_v a(h v),   k = 1, 2, 3 or more

a is the count at the highest order and for n-grams that begin with `<s>`, which nothing can stand before; below that it
is the number of different units that were seen before the n-gram. Each order has three discounts from its counts of
counts t_k: Y = t_1 / (t_1 + 2 t_2), D_k = k − (k + 1) Y t_{k+1} / t_k. Order 0 is the same chance for every unit that
can be predicted, `<unk>` among them, so that what was never seen has a chance as well.
"""

from __future__ import annotations

import numpy as np

from kamerton.text.ngrams.model import Order
from kamerton.text.ngrams.trie import Layer
from kamerton.text.ngrams.units import BOS, UNK

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where counts of counts give none, as of KenLM's --discount_fallback."""


def kneser_ney(layers: list[Layer]) -> tuple[list[Order], list[str]]:
    """Orders with probabilities and back-off weights, and notes."""
    adjusted = adjusted_counts(layers)
    out: list[Order] = []
    notes: list[str] = []
    for n, (layer, counts) in enumerate(zip(layers, adjusted, strict=True), start=1):
        found = discounts(counts)
        if found is None:
            notes.append(
                f"order {n}: too little text to estimate discounts, so {', '.join(map(str, FALLBACK))} were taken"
            )
            found = FALLBACK
        off = np.array([0.0, *found])[np.minimum(counts, 3)]
        if n == 1:
            total = float(counts.sum())
            mass = float(off.sum()) / total
            probs = (counts - off) / total + mass / (len(counts) - 1)  # every unit but <s>
            probs[BOS] = 0.0
        else:
            below = len(layers[n - 2].keys)
            totals = np.bincount(layer.contexts, weights=counts, minlength=below)
            masses = np.bincount(layer.contexts, weights=off, minlength=below)
            gamma = np.divide(masses, totals, out=np.ones(below), where=totals > 0)
            out[-1].backoffs = np.log(gamma)
            lower = np.exp(out[-1].probs)
            probs = (counts - off) / totals[layer.contexts] + gamma[layer.contexts] * lower[layer.suffixes]
        with np.errstate(divide="ignore"):
            out.append(Order(layer.keys, np.log(probs), np.zeros(len(layer.keys))))
    return out, notes


def adjusted_counts(layers: list[Layer]) -> list[np.ndarray]:
    """(N,) counts a of each order; 0 for `<s>` and `<unk>` alone, which are given by other means."""
    out = []
    for n, layer in enumerate(layers, start=1):
        if n == len(layers):
            counts = layer.counts.copy()
        else:
            above = layers[n]
            counts = np.bincount(above.suffixes, minlength=len(layer.keys)).astype(np.int64)
            first = layer.firsts == BOS
            counts[first] = layer.counts[first]
        if n == 1:
            counts[[BOS, UNK]] = 0
        out.append(counts)
    return out


def discounts(counts: np.ndarray) -> tuple[float, float, float] | None:
    """D_1, D_2, D_3+ from counts of counts; None where these give none."""
    t = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(np.float64)
    if not (t[1:] > 0).all():
        return None
    y = t[1] / (t[1] + 2 * t[2])
    found = tuple(float(k - (k + 1) * y * t[k + 1] / t[k]) for k in (1, 2, 3))
    if any(not 0 <= d <= k for k, d in enumerate(found, start=1)):
        return None
    return found[0], found[1], found[2]

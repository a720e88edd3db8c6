"""Counts as a sorted trie: each n-gram's place in its order, and its context's and suffix's in the order below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kamerton.text.ngrams.counts import Counts


@dataclass
class Layer:
    """The n-grams of one order.

    Attributes:
        keys: as of `model.Order`.
        contexts: (N,) place of its first n − 1 units in the order below; its last unit is `last`.
        suffixes: (N,) place of its last n − 1 units there.
        counts: (N,) how often it was seen.
        firsts: (N,) its first unit.
    """

    keys: np.ndarray
    contexts: np.ndarray
    last: np.ndarray
    suffixes: np.ndarray
    counts: np.ndarray
    firsts: np.ndarray


def trie(found: Sequence[Counts], size: int) -> list[Layer]:
    """Layers of all orders; order 1 has an entry for every unit, seen or not.

    Args:
        found: counts of order 1, 2, ….
        size: of the vocabulary.
    """
    units = np.arange(size)
    counts = np.zeros(size, dtype=np.int64)
    counts[found[0].grams[:, 0]] = found[0].counts
    nothing = np.zeros(0, dtype=np.int64)
    layers = [Layer(units.astype(np.uint64), nothing, units, nothing, counts, units)]
    wide = np.uint64(size)
    for counted in found[1:]:
        grams = counted.grams
        contexts, suffixes = grams[:, 0].astype(np.int64), grams[:, 1].astype(np.int64)
        for n, layer in enumerate(layers[1:], start=1):
            # every context and every suffix of what was seen was seen
            contexts = np.searchsorted(layer.keys, contexts.astype(np.uint64) * wide + grams[:, n].astype(np.uint64))
            suffixes = np.searchsorted(
                layer.keys, suffixes.astype(np.uint64) * wide + grams[:, n + 1].astype(np.uint64)
            )
        last = grams[:, -1].astype(np.int64)
        keys = contexts.astype(np.uint64) * wide + last.astype(np.uint64)
        layers.append(Layer(keys, contexts, last, suffixes, counted.counts, grams[:, 0].astype(np.int64)))
    return layers

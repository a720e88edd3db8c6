"""ARPA files, which other tools for n-gram models read (KenLM, SRILM, Kaldi): log₁₀ probability, n-gram, log₁₀ back-off
weight."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from kamerton.files import whole
from kamerton.text.ngrams.model import NgramModel
from kamerton.text.ngrams.units import BOS

NOTHING = -99.0
"""How the format writes the logarithm of nothing."""
BLOCK = 100_000


def write_arpa(model: NgramModel, path: Path) -> None:
    """Write a model; the file is whole or not there.

    `<s>` gets a probability that readers want and never use.
    """
    names = model.units.names
    with whole(path) as out:
        sizes = "".join(f"ngram {n}={len(order.keys)}\n" for n, order in enumerate(model.orders, start=1))
        out.write(f"\\data\\\n{sizes}".encode())
        for n, order in enumerate(model.orders, start=1):
            out.write(f"\n\\{n}-grams:\n".encode())
            grams, last = model.grams(n), n == model.order
            for start in range(0, len(grams), BLOCK):
                part = slice(start, start + BLOCK)
                probs, backoffs = _log10(order.probs[part]), _log10(order.backoffs[part])
                for gram, prob, backoff in zip(grams[part], probs, backoffs, strict=True):
                    text = " ".join(names[unit] for unit in gram)
                    prob = NOTHING if n == 1 and gram[0] == BOS else prob
                    row = f"{prob:.9g}\t{text}\n" if last else f"{prob:.9g}\t{text}\t{backoff:.9g}\n"
                    out.write(row.encode())
        out.write(b"\n\\end\\\n")


def _log10(values: np.ndarray) -> list[float]:
    out: list[float] = np.maximum(np.asarray(values) / math.log(10), NOTHING).tolist()
    return out

"""From counts to probabilities: three ways of smoothing, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kamerton.errors import KamertonError
from kamerton.text.lines import Seen
from kamerton.text.ngrams.counts import count
from kamerton.text.ngrams.katz import katz
from kamerton.text.ngrams.kneser_ney import kneser_ney
from kamerton.text.ngrams.maximum_likelihood import maximum_likelihood
from kamerton.text.ngrams.model import NgramModel, Order
from kamerton.text.ngrams.trie import Layer, trie
from kamerton.text.ngrams.units import Units, seen_notes

SMOOTHINGS: dict[str, Callable[[list[Layer]], tuple[list[Order], list[str]]]] = {
    "kneser-ney": kneser_ney, "katz": katz, "mle": maximum_likelihood,
}  # fmt: skip


def estimate(
    files: Sequence[Path], units: Units, order: int, smoothing: str = "kneser-ney", *, memory: int = 1 << 30,
    progress: Callable[[int], None] | None = None, whole: bool = False,
) -> NgramModel:  # fmt: skip
    """Count text and estimate a model.

    Args:
        files: text, a sentence a line.
        units: what is counted.
        order: the longest n-gram, at least 1.
        smoothing: `kneser-ney`, `katz` or `mle`.
        memory: bytes that counts may take before they go to disk, about.
        progress: told the bytes that were read.
        whole: a sentence is a whole document, its ends of lines included, in place of a line; for units that lose
            nothing.

    Raises:
        KamertonError: no text, an order below 1, or whole documents of words.
    """
    if order < 1:
        raise KamertonError(f"the order is {order}", mend="give an order of at least 1, such as --order 5")
    seen = Seen()
    found = count(files, units, order, memory=memory, progress=progress, seen=seen, whole=whole)
    orders, more = SMOOTHINGS[smoothing](trie(found, units.size))
    return NgramModel(units, orders, smoothing, [*seen_notes(seen, units), *more])

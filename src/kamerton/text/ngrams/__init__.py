"""N-gram models: counts, smoothing, perplexity, sampling, help with typing. The baseline that came before networks."""

from kamerton.text.ngrams.estimate import SMOOTHINGS, estimate
from kamerton.text.ngrams.model import NgramModel
from kamerton.text.ngrams.units import Units, open_units

__all__ = ["SMOOTHINGS", "NgramModel", "Units", "estimate", "open_units"]

"""Tokenizers: trained on text, looked at, compared. The trainers are those of the `tokenizers` library."""

from kamerton.text.tokenizers.train import KINDS, train

__all__ = ["KINDS", "train"]

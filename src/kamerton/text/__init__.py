"""From raw text to what models are trained on: corpora, tokenizers, n-gram models."""

"""Texts as counts of their words: the representation before embeddings (Salton, Wong & Yang 1975).

A text is a vector as long as the vocabulary; order is forgotten. With `tf-idf` a word counts less the more texts have
it (Spärck Jones 1972): c · (1 + log((1 + N) / (1 + n_w))), the vector then brought to length 1, so that the product of
two is the cosine between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse


class BagOfWords:
    """Counts of a tokenizer's tokens.

    Args:
        tokenizer: of kind `words`, or any other.
        weights: `counts`, or `tf-idf`, for which `fit` is needed.
    """

    def __init__(self, tokenizer: Any, weights: str = "tf-idf") -> None:
        if weights not in ("counts", "tf-idf"):
            raise ValueError(f"weights is {weights}; counts or tf-idf")
        self._tokenizer, self.weights = tokenizer, weights
        self.size = len(tokenizer)
        self.inverse = np.ones(self.size)

    def counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(N, V) how often each token is in each text; special tokens are not."""
        special = set(self._tokenizer.all_special_ids)
        rows, columns = [], []
        for row, text in enumerate(texts):
            ids = [i for i in self._tokenizer(text, add_special_tokens=False)["input_ids"] if i not in special]
            rows += [row] * len(ids)
            columns += ids
        ones = np.ones(len(rows))
        return sparse.coo_matrix((ones, (rows, columns)), shape=(len(texts), self.size)).tocsr()

    def fit(self, texts: Sequence[str]) -> BagOfWords:
        """Learn in how many texts each token is."""
        having = np.asarray((self.counts(texts) > 0).sum(0)).ravel()
        self.inverse = 1.0 + np.log((1 + len(texts)) / (1 + having))
        return self

    def __call__(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(N, V) vectors."""
        found = self.counts(texts)
        if self.weights == "counts":
            return found
        found = found.multiply(self.inverse).tocsr()
        lengths = np.sqrt(np.asarray(found.multiply(found).sum(1)).ravel())
        return sparse.diags(1 / np.where(lengths > 0, lengths, 1.0)) @ found

    def nearest(self, query: str, texts: Sequence[str], k: int = 5) -> list[tuple[int, float]]:
        """The texts that share most with a query: their places and cosines, best first."""
        cosines = np.asarray((self(texts) @ self([query]).T).todense()).ravel()
        best = np.argsort(-cosines, kind="stable")[:k]
        return [(int(i), float(cosines[i])) for i in best]

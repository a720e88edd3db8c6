"""An encoder without weights for tests of the index: hashed words, so that vectors can be told by hand.

PYTEST_DONT_REWRITE: the module asserts nothing, and a writer process of a test imports it too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from kamerton.retrieval.encoder import Encoder


class WordsEncoder(Encoder):
    """Counts of hashed words, of length 1; tokens are runs of characters that are not spaces."""

    dimension, metric, room = 64, "cosine", 200  # type: ignore[assignment]

    def __init__(self, name: str = "words") -> None:
        self.name = name
        self.fingerprint = f"fingerprint of {name}"
        self.embedded = 0

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [m.span() for m in re.finditer(r"\S+", text)]

    def _encode(self, texts: Sequence[str], kind: str, progress: Callable[[int], None] | None) -> np.ndarray:
        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[zlib.crc32(word.encode()) % self.dimension] += 1
            row /= max(np.linalg.norm(row), 1e-9)
        self.embedded += len(texts) * (kind == "document")
        if progress is not None:
            progress(len(texts))
        return out

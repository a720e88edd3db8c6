"""Hashes of n-grams, all of a text at once: every unit is a number, an n-gram's hash comes from the shorter one's."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

_PRIME = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    """64 bits well mixed (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def word_hashes(words: Iterable[str]) -> np.ndarray:
    """(N,) numbers of words."""
    return np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in words), np.uint64)


def grams(units: np.ndarray, least: int, most: int, salt: int = 0) -> list[np.ndarray]:
    """Hashes of all n-grams of (N,) numbers, one array for each length from `least` to `most`."""
    out = []
    rolling = np.zeros(len(units), np.uint64)
    with np.errstate(over="ignore"):
        units = mix(units.astype(np.uint64) + np.uint64(1))
        for n in range(1, most + 1):
            if len(units) < n:
                break
            rolling = mix(rolling[: len(units) - n + 1] * _PRIME + units[n - 1 :])
            if n >= least:
                out.append(rolling + np.uint64(salt * 31 + n))
    return out

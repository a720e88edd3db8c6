"""Files of an n-gram model, written under another name and renamed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def write_array(path: Path, array: np.ndarray) -> None:
    """An array as `.npy`, whole or not at all."""
    half = path.with_name(f"{path.name}.half")
    with half.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    half.replace(path)


def write_text(path: Path, text: str) -> None:
    """Text, whole or not at all."""
    half = path.with_name(f"{path.name}.half")
    with half.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    half.replace(path)

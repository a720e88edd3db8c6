"""How much memory a base's weights will take, from the headers of its safetensors files: known before they are read.

Of a hub id it is known once it has been downloaded. Weights that are stored in 4 bits are counted as half a byte a
number, which is less than they take.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from kamerton.errors import ModelError


def weights_bytes(source: str, dtype: torch.dtype, *, stored_as: bool = False, four_bits: bool = False) -> int | None:
    """Bytes of the weights of a folder or hub id once loaded; None where that cannot be known.

    Args:
        dtype: of the loaded weights.
        stored_as: they stay as the files have them (quantised ones).
        four_bits: they are packed while they are loaded.
    """
    folder = _folder(source)
    if folder is None:
        return None
    numbers = stored = 0
    for file in _files(folder):
        header = _header(file)
        if header is None:
            return None  # reading the file will say what is wrong with it
        for name, about in header.items():
            if name != "__metadata__":
                numbers += math.prod(about["shape"])
                stored += about["data_offsets"][1] - about["data_offsets"][0]
    if stored_as:
        return stored
    return numbers // 2 if four_bits else numbers * dtype.itemsize


def check_shards(folder: Path) -> None:
    """Refuse a folder whose index names files that are not there.

    Raises:
        ModelError: one is missing.
    """
    missing = [file for file in _files(folder) if not file.is_file()]
    if missing:
        message = f"the weights are not whole: {missing[0].name} is missing"
        raise ModelError(message, where=folder, mend="download the folder again")


def _folder(source: str) -> Path | None:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception:  # not downloaded yet, or no hub id at all: loading says so
        return None


def _files(folder: Path) -> list[Path]:
    """The files that transformers reads: the one, or those of the index, or all that there are."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / str(name) for name in sorted(set(named))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return sorted(folder.glob("*.safetensors"))


def _header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says of its tensors (8 bytes with the length of the JSON that follows)."""
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if length > 100_000_000:
                return None
            header = json.loads(content.read(length))
            for name, about in header.items():
                if name != "__metadata__":
                    math.prod(about["shape"])
                    about["data_offsets"][1]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return dict(header)

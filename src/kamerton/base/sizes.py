"""How much memory a base's weights will take, from the headers of its safetensors files: known before they are read.

Of a hub id it is known once it has been downloaded. Weights that are stored in 4 bits are counted as half a byte a
number, which is less than they take.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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


def check_shape(config: Any, make: Callable[[], Any], source: str) -> None:
    """Refuse a configuration that asks for far more weights than its files hold: making up the rest takes all memory.

    Args:
        config: of transformers.
        make: builds the model; called on the meta device, where weights take no memory.
        source: its folder or hub id; what is not there yet is not checked.

    Raises:
        ModelError: so.
    """
    folder = _folder(source)
    mend = "check that its files are whole, and belong together"
    found = []
    for file in _files(folder) if folder is not None else []:
        header = _header(file)
        if header is None:
            raise ModelError(f"cannot be loaded: {file.name} is no whole safetensors file", where=source, mend=mend)
        found += [about for name, about in header.items() if name != "__metadata__"]
    if not found:
        return
    numbers = sum(math.prod(about["shape"]) for about in found)
    own = {**config.to_dict(), **config.get_text_config().to_dict()}
    for name, layers in own.items():
        if name.endswith(("layers", "n_layer")) and isinstance(layers, int) and layers > len(found):
            message = f"its configuration says {name} {layers:,}, and its files hold {len(found):,} tensors"
            raise ModelError(message, where=source, mend=mend)
    with torch.device("meta"):
        made = make()
    asked = sum(p.numel() for p in made.parameters())
    held = sum(b.numel() for b in made.buffers())
    if asked > 2 * numbers + 1_000_000 or held > 2 * numbers + 2**30:
        message = f"its configuration asks for {max(asked, held):,} numbers, and its files hold {numbers:,}"
        raise ModelError(message, where=source, mend=mend)


def check_shards(folder: Path) -> None:
    """Refuse a folder whose index names files that are not there.

    Raises:
        ModelError: one is missing.
    """
    files = _files(folder)
    odd = [file for file in files if file.parent != folder or file.suffix != ".safetensors"]
    if odd:  # transformers reads what it is, pickled files too, from wherever it is
        message = f"the index names {str(odd[0])[-100:]!r}, which is no safetensors file in the folder"
        raise ModelError(message, where=folder, mend="download the folder again")
    missing = [file for file in files if not file.is_file()]
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
                    first, last = about["data_offsets"]
                    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (*about["shape"], first, last)):
                        raise ValueError(name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return dict(header)

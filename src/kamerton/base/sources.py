"""Where a base comes from: a hub id, a folder of safetensors, a GGUF file, or the name `demo` or `minilm`.

What the names stand for is in `packaged.py`. A GGUF file is dequantised once into a cache of safetensors (float32, so
that nothing is lost twice) and loaded from there afterwards. A folder whose weights are pickled is refused.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from kamerton.base.gguf_header import check_gguf
from kamerton.errors import ModelError
from kamerton.files import expanded, is_path
from kamerton.packaged import MINILM, demo_gguf, minilm_folder


def resolve(name: str) -> tuple[str, str]:
    """What transformers is asked for, and the name to print.

    Raises:
        ModelError: no folder or GGUF file is there, or it holds nothing that is loaded.
    """
    if name == "demo":
        return str(dequantise(demo_gguf())), "demo (SmolLM2-135M-Instruct)"
    if name == MINILM:
        return str(minilm_folder()), "minilm (all-MiniLM-L6-v2)"
    path = expanded(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError("no such GGUF file", where=path, mend="check the path")
        return str(dequantise(path)), path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError("the model folder has no config.json", where=path, mend="point base to a model folder")
        if (path / "adapter_config.json").is_file():
            # transformers would load the base that it names, from anywhere, in place of this folder's weights
            mend = "name its base, or merge it into its base: a folder of kamerton tune is read as it is"
            raise ModelError("the folder is that of an adapter (adapter_config.json), no model", where=path, mend=mend)
        weights = [*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")]
        if not weights:
            pickled = [p.name for p in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))]
            if pickled:
                raise ModelError(
                    f"the weights are pickled ({pickled[0]}), which can run code when they are read",
                    where=path,
                    mend="convert them to safetensors",
                )
            raise ModelError("the model folder has no weights", where=path, mend="add model.safetensors")
        return str(path), path.name
    if path.exists() or is_path(name):
        raise ModelError("no such model folder", where=name, mend="check the path, or use a hub id, or 'demo'")
    return name, name


def cache_dir() -> Path:
    """Where dequantised models are kept: `$KAMERTON_CACHE`, else `~/.cache/kamerton`."""
    return Path(os.environ.get("KAMERTON_CACHE") or Path.home() / ".cache" / "kamerton")


def dequantise(gguf: Path) -> Path:
    """Dequantise a GGUF file once into the cache; returns the folder of safetensors.

    Raises:
        ModelError: it cannot be read.
    """
    import transformers
    from safetensors.torch import save_file

    check_gguf(gguf)
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_dir() / "models" / f"{gguf.stem}-{key}"
    if folder.exists():
        return folder
    hf = read_gguf(gguf, torch.float32)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:
        raise _unreadable(gguf, error) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        tied = set(hf.all_tied_weights_keys or ()) if hf.config.tie_word_embeddings else set()
        weights = {k: v.contiguous() for k, v in hf.state_dict().items() if k not in tied}
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        if hasattr(hf.config, "quantization_config"):
            del hf.config.quantization_config
        hf.config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.exists():  # another process was first: its folder is as good as ours
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_gguf(gguf: Path, dtype: torch.dtype, config: Any = None) -> Any:
    """The model of a GGUF file, dequantised, by transformers.

    Args:
        dtype: of its weights.
        config: the model's configuration; default: what transformers reads from the file's header.

    Raises:
        ModelError: it cannot be read.
    """
    import transformers
    from transformers import modeling_gguf_pytorch_utils as reading

    transformers.logging.set_verbosity_error()
    bar = reading.tqdm
    reading.tqdm = functools.partial(bar, disable=True)  # there is no other way to ask for silence
    try:
        own = {} if config is None else {"config": config}
        return transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype, **own)
    except Exception as error:
        raise _unreadable(gguf, error) from error
    finally:
        reading.tqdm = bar


def _unreadable(gguf: Path, error: Exception) -> ModelError:
    return ModelError(
        f"not a GGUF file that can be read ({type(error).__name__}: {first_line(error)})",
        where=gguf,
        mend="download it again, or use a folder of safetensors",
    )


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]

"""What a comparison ran on and with: versions and machine, for whoever wants to repeat it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from kamerton.resources import cores

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "safetensors",
    "datasets",
    "numpy",
    "scipy",
    "babel",
    "gguf",
    "jinja2",
    "sacrebleu",
    "rouge-score",
    "bitsandbytes",
    "lancedb",
    "sentence-transformers",
)
"""What can change a result; the last ones are optional."""


def kamerton_version() -> str:
    """The installed version of Kamerton."""
    try:
        return version("kamerton")
    except PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """Processor, cores, memory, GPU, system."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"

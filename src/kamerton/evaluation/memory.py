"""Peak memory of this process, resettable where the system allows it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def reset_peak() -> bool:
    """Start counting the peak anew. Returns whether the system can (Linux; a GPU always can)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Peak memory in bytes since the last reset (since the process began where it cannot be reset).

    On a GPU the memory that tensors took there, else the resident memory of the process.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

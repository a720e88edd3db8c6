"""Peak memory of this process, resettable where the system allows it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device | str = "cpu") -> bool:
    """Start counting the peak of a device anew. Returns whether that can be done (on Linux; a GPU always can)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """Peak memory in bytes since the last reset (since the process began where it cannot be reset).

    On a GPU the memory that tensors took there, else the resident memory of the process.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

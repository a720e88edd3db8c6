"""Memory that runs out, whoever says so: Python, torch's allocators on CPU and GPU, and what libraries make of it.

The rooms below the command line halve what they compute at once and go on; where nothing is left to halve they raise
a `ResourceError`. What happened is told as a note, never silently.
"""

from __future__ import annotations

import gc
import re
import sys

from kamerton.errors import ResourceError

_SIGNS = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory: you tried to allocate|out of memory|"
    r"std::bad_alloc|unable to allocate|ALLOC_FAILED",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out (torch has a class of its own for GPUs only)."""
    if isinstance(error, ResourceError):
        return False  # somebody has dealt with it already
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SIGNS.search(str(error))))


def asked_for(error: BaseException) -> str:
    """How much was asked for when memory ran out, in words with a leading space; "" where the error does not say."""
    found = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error), re.IGNORECASE)
    if found is None:
        return ""
    number, unit = found.groups()
    return f" ({int(float(number)) / 2**20:,.1f} MiB asked for)" if unit == "bytes" else f" ({number} {unit} asked for)"


def give_back() -> None:
    """Free what nobody holds any more, so that the next try has it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def no_room(error: BaseException) -> ResourceError:
    """The one line for memory that ran out where nothing could be halved."""
    mend = "use a smaller base or fewer tokens at once (max_tokens, evaluation.max_batch_tokens), or free memory"
    return ResourceError(f"memory ran out{asked_for(error)}", mend=mend)

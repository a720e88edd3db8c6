"""What decodes: torch, in this project's own loop, or vLLM where it is installed.

Light, so that a name is checked before anything is loaded. How models get into vLLM is in `exporting/for_vllm.py`.
"""

from __future__ import annotations

import importlib.util

from kamerton import processes
from kamerton.errors import KamertonError, MissingExtra

BACKENDS = ("torch", "vllm")


def check_backend(name: str) -> None:
    """Refuse a backend that is not there.

    Raises:
        KamertonError: there is none of this name, or several processes share the work.
        MissingExtra: it is not installed.
    """
    if name not in BACKENDS:
        raise KamertonError(f"no backend '{name}'", where="backend", mend="use torch or vllm")
    if name == "vllm":
        check_vllm()
        if processes.count() > 1:
            raise KamertonError(
                "several processes share the work, and vLLM runs in one", where="backend: vllm",
                mend="start the command alone, or use the backend torch",
            )  # fmt: skip


def check_vllm() -> None:
    """Refuse where vLLM is not installed.

    Raises:
        MissingExtra: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtra("vllm", "vllm")

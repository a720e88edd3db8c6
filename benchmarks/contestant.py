"""What the contestants of `peers.py` share: the demo model as Kamerton and as transformers load it, and measuring."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from kamerton.base.load import Base, load_base
from kamerton.base.sources import dequantise
from kamerton.evaluation.memory import peak_bytes, reset_peak
from kamerton.packaged import demo_gguf
from kamerton.rendering import Renderer


@functools.cache
def base(dtype: str) -> Base:
    """The demo model as Kamerton loads it."""
    return load_base("demo", dtype=dtype, verify=False)  # type: ignore[arg-type]


@functools.cache
def renderer() -> Renderer:
    """Kamerton's renderer without its model: what peers are given must not cost them a second model's memory."""
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(dequantise(demo_gguf())))


@functools.cache
def hf(dtype: str) -> Any:
    """The same weights as transformers loads them."""
    from transformers import AutoModelForCausalLM

    folder = dequantise(demo_gguf())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()


@contextmanager
def measured(answer: dict[str, Any]) -> Iterator[None]:
    """Time and peak memory of a block."""
    reset_peak()
    before = psutil.Process().memory_info().rss
    start, busy = time.perf_counter(), time.process_time()
    yield
    answer["seconds"] = time.perf_counter() - start
    answer["cpu_seconds"] = time.process_time() - busy
    answer["peak_bytes"] = peak_bytes()
    answer["working_bytes"] = max(answer["peak_bytes"] - before, 0)

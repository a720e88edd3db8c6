"""What computes: its rates, and the seconds that passes take on it.

A device that the user describes has a peak, a share of it that large products reach, and a bandwidth: a pass takes as
long as its arithmetic or as reading its weights, keys and values, whichever is longer (the roofline of Williams et al.
2009), so that decoding is bound by bandwidth. Of this machine the rates are measured: a short calibration times passes
of different lengths through the base, with and without gradient, beside its stand-in, and takes the rate of the
difference. A short pass is slower by itself there, so that bandwidth needs no term of its own.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from kamerton.base.frozen import decoder_layers
from kamerton.base.load import Base
from kamerton.base.work import Work, flops
from kamerton.comparison.planning.trial import Pass

ADAM_TRAFFIC = 36
"""Bytes that a step of AdamW moves for each trained number: weight, two moments read and written, the gradient read for
its norm, scaled, read and freed."""
_LENGTHS = {False: (1, 8, 24, 64, 256), True: (32, 96, 256)}


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        name: for people.
        peak: FLOPs a second of large matrix products.
        efficiency: the share of it that long passes reach.
        bandwidth: bytes a second from its memory.
        memory: bytes of its memory.
        disk: bytes a second to the disk; 0: not counted.
        rates: measured (tokens in a pass, FLOPs a second), by whether there is a gradient; none: the roofline.
    """

    name: str
    peak: float
    efficiency: float
    bandwidth: float
    memory: float
    disk: float = 0.0
    rates: dict[bool, list[tuple[int, float]]] = field(default_factory=dict)

    def rate(self, tokens: int, grad: bool) -> float:
        """FLOPs a second in a pass of so many tokens, interpolated between the measured ones in logarithms."""
        found = self.rates.get(grad)
        if not found:
            return self.peak * self.efficiency
        places, values = zip(*found, strict=True)
        return math.exp(np.interp(math.log(max(tokens, 1)), np.log(places), np.log(values)))

    def seconds(self, passes: Iterable[Pass]) -> float:
        """Seconds of arithmetic, beyond the stand-in's own where this machine computes it."""
        if self.rates:
            return math.fsum((p.flops - p.own) / self.rate(p.tokens, p.grad) for p in passes)
        rate = self.peak * self.efficiency
        return math.fsum(max(p.flops / rate, p.bytes / self.bandwidth) for p in passes if p.flops > 0)

    def step_seconds(self, trained: int) -> float:
        """Seconds of one step of the optimiser."""
        return ADAM_TRAFFIC * trained / self.bandwidth

    def write_seconds(self, trained: int) -> float:
        """Seconds to write what is trained."""
        return 4 * trained / self.disk if self.disk else 0.0


def this_machine(base: Base, stand_in: Base, tell: Callable[[float], None]) -> Device:
    """Measure this machine on a base, beside its stand-in.

    Args:
        tell: told the share that is done.
    """
    device = base.model.device
    rates: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    done, total = 0, sum(map(len, _LENGTHS.values()))
    for grad, lengths in _LENGTHS.items():
        models = [base.reload().model, stand_in.reload().model] if grad else [base.model, stand_in.model]
        for model in models if grad else ():
            for layer in decoder_layers(model.hf) or ():
                for weight in layer.parameters():
                    weight.requires_grad_(weight.is_floating_point())  # codes of 4 bits have no gradient
        for tokens in lengths:
            work = Work(tokens=tokens, pairs=tokens * (tokens + 1) // 2, outputs=1, passes=1)
            if grad:
                work.grad_tokens, work.grad_pairs, work.grad_outputs = tokens, work.pairs, 1
            took = fastest([partial(_pass, m, tokens, grad) for m in models], device)
            own = [flops(work, m.hf, itself=True) for m in models]
            rates[grad].append((tokens, max(own[0] - own[1], 1.0) / max(took[0] - took[1], took[0] / 20)))
            done += 1
            tell(done / total)
    peak, best = _matrix_peak(base.model.dtype, device), max(rate for _, rate in rates[False])
    name = f"this machine ({torch.get_num_threads()} threads)" if device.type == "cpu" else f"this machine's {device}"
    whole = psutil.virtual_memory().total if device.type == "cpu" else torch.cuda.mem_get_info(device)[1]
    return Device(name, peak, best / peak, _bandwidth(device), whole, _disk(), rates)


def _pass(model: Any, tokens: int, grad: bool) -> None:
    row = [[i % model.config.vocab_size for i in range(tokens)]]
    if grad:
        out = model.output(model.forward(row).last())
        out.float().logsumexp(-1).sum().backward()
        for weight in model.hf.parameters():
            weight.grad = None
        return
    with torch.inference_mode(), model.inference():
        model.output(model.forward(row).last())


def fastest(jobs: Sequence[Callable[[], Any]], device: torch.device, turns: int = 6) -> list[float]:
    """Seconds of the fastest of several turns of each job, in turns; the first one warms up.

    On a processor they are those in which this thread had it: others on the machine would be measured with it.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best = [math.inf] * len(jobs)
    for turn in range(turns + 1):
        for i, job in enumerate(jobs):
            start = clock()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                best[i] = min(best[i], clock() - start)
    return best


def _matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    size = 1024 if device.type == "cpu" else 8192
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / fastest([lambda: a @ a], device)[0]


def _bandwidth(device: torch.device, numbers: int = 2**24) -> float:
    a, b = torch.ones(numbers, device=device), torch.ones(numbers, device=device)
    return 12 * numbers / fastest([lambda: a.add_(b)], device)[0]


def _disk(size: int = 2**25) -> float:
    data = os.urandom(size)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Path(folder, "written").write_bytes(data)
        return size / (time.perf_counter() - start)

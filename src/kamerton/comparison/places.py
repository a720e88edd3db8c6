"""Which executor runs a comparison's cells, how many at a time, and what each gets."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from kamerton import processes
from kamerton.base import Base
from kamerton.cluster import Asked
from kamerton.comparison.executor import Executor, OnEvent, Pool, Together
from kamerton.comparison.ray_tasks import CPUS, RayTasks
from kamerton.comparison.store import Store
from kamerton.resources import CellResources, cores


def choose_executor(
    kind: str, address: str | None, asked: CellResources, *, store: Store, base: Base, device: str,
    workers: int | None, threads: int | None, on_event: OnEvent, tell: Callable[[str], None],
) -> Executor:  # fmt: skip
    """The executor of a comparison.

    Args:
        kind: `local` or `ray`, with the cluster's `address`.
        asked: what the recipe asks for a cell; what it leaves out is chosen here.
        device: that cells compute on.
        workers: cells at a time; None: chosen here, on a cluster as many as there is room for.
        threads: that the comparison was begun with; None: it is new.
    """
    if kind == "ray":
        count = threads or asked.cpus or CPUS
        if asked.cpus not in (None, count):
            tell(f"cells compute with {count} threads, as they were begun: other sums differ in their last bits")
        gpus = float(device != "cpu") if asked.gpus is None else asked.gpus
        memory = asked.memory or cell_memory(base, device)
        return RayTasks(
            store, address, Asked(count, gpus, memory), workers=workers, threads=count, on_event=on_event, tell=tell
        )
    if processes.count() > 1:
        return Together(store, threads=threads or torch.get_num_threads(), on_event=on_event)
    workers = workers or default_workers(base, asked)
    threads = threads or asked.cpus or max(1, cores() // workers)
    return Pool(store, workers=workers, threads=threads, on_event=on_event)


def cell_memory(base: Base, device: str) -> int:
    """Bytes of the processor's memory that a cell takes at most, about."""
    # on the CPU weights, gradients and two moments in float32; before a GPU only the weights on their way there
    return int(2**30 + (16 if device == "cpu" else 4) * base.info.parameters)


def default_workers(base: Base, asked: CellResources) -> int:
    """One process for each two cores, as long as each has memory for the base four times over; one for a GPU."""
    if base.model.device.type != "cpu":
        return 1
    each = asked.memory or cell_memory(base, "cpu")
    return max(1, min(cores() // (asked.cpus or 2), int(psutil.virtual_memory().available * 0.8 // each)))

"""Two processes for tests: forked from this one, so that they need not import anything again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - once here, and not in each child
import torch
import torch.distributed.fsdp
import torch.distributed.tensor

from kamerton import processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(rank: int, port: int, sharded: bool, work: Callable[[], Any], queue: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), ACCELERATE_USE_FSDP=str(sharded).lower(), ACCELERATE_USE_CPU="true")  # fmt: skip
    torch.set_num_threads(1)
    try:
        processes.join()
        queue.put((rank, None, work()))
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
    finally:
        queue.close()
        queue.join_thread()
        processes._tidy()
        os._exit(0)  # what pytest would do at the end is the parent's


def two(work: Callable[[], Any], *, sharded: bool = False, seconds: float = 300) -> list[Any]:
    """What `work` returns in each of two processes that work together, as plain values.

    Raises:
        AssertionError: it failed in one of them.
    """
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), free_port()
    children = [context.Process(target=_child, args=(rank, port, sharded, work, queue)) for rank in range(2)]
    for child in children:
        child.start()
    try:
        found = sorted((queue.get(timeout=seconds) for _ in children), key=lambda item: item[0])
    finally:
        for child in children:
            child.join(timeout=5)
            if child.is_alive():
                child.kill()
    for rank, error, _ in found:
        assert error is None, f"process {rank}: {error}"
    return [value for *_, value in found]


def numbers(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Weights as arrays, which travel between processes without shared memory."""
    return {name: value.detach().numpy().copy() for name, value in weights.items()}


def furthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float(abs(a[name] - b[name]).max()) for name in a)


def curve(result: Any) -> list[dict[str, float]]:
    """A learning curve without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.state.curve]


def files(folder: Path) -> list[str]:
    """All files below a folder, by their names."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")

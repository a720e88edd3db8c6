"""Who does the work: pieces of it, in this process or in several; datatrove runs each piece and marks it done.

Every piece's result depends on its input alone, so the number of workers changes nothing. The pool for a cluster is in
`ray_tasks.py`; datatrove's own local executor is not used because a worker that is killed (out of memory) leaves it
waiting forever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from kamerton.errors import KamertonError
from kamerton.text.corpus import progress

Report = Callable[[int], None]
FEWER = "give it fewer --workers or a smaller most_bytes, and run it again: it goes on where it stopped"
"""What to do where workers die."""


class Pool(Protocol):
    """Calls a function for each of several arguments, in any order and place."""

    def each(self, function: Callable[[Any], None], arguments: Sequence[Any], report: Report) -> None:
        """Return when all calls have; `report` is told what `progress.advance` is told in them."""

    def close(self) -> None:
        """No more calls."""


class Here:
    """This process."""

    def each(self, function: Callable[[Any], None], arguments: Sequence[Any], report: Report) -> None:
        progress.listen(report)
        try:
            for argument in arguments:
                function(argument)
        finally:
            progress.listen(None)

    def close(self) -> None:
        pass


def _start(counter: Any) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    progress.use(counter)


class Processes:
    """Worker processes of this machine, the same ones for all stages."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._counter = context.Value("q", 0)
        self._pool = ProcessPoolExecutor(workers, context, _start, (self._counter,))

    def each(self, function: Callable[[Any], None], arguments: Sequence[Any], report: Report) -> None:
        told = self._counter.value
        try:
            waiting: set[Future[None]] = {self._pool.submit(function, argument) for argument in arguments}
            while waiting:
                done, waiting = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                report(self._counter.value - told)
                told = self._counter.value
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise KamertonError("a worker was killed, most likely because memory ran out", mend=FEWER) from None
        except BaseException:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise

    def close(self) -> None:
        self._pool.shutdown()


def pool(workers: int) -> Here | Processes:
    """A pool of so many workers."""
    return Here() if workers == 1 else Processes(workers)


class Piece(PipelineExecutor):
    """One stage's pipeline, for one piece of work at a time; datatrove keeps statistics and marks what is done."""

    def __init__(self, pipeline: list[PipelineStep], tasks: int, folder: str) -> None:
        super().__init__(pipeline, logging_dir=str(Path(folder) / "log"))
        self.tasks = tasks

    @property
    def world_size(self) -> int:
        """Pieces of work."""
        return self.tasks

    def run(self) -> None:
        """Not called: `run_stage` gives out the pieces."""
        raise NotImplementedError

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:  # noqa: ARG002
        """What datatrove tells steps of their surroundings: nothing here uses it."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost", datatrove_cpus_per_task="-1", datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1", datatrove_executor="LOCAL",
        )  # fmt: skip


def _piece(work: tuple[list[PipelineStep], int, str, int]) -> None:
    pipeline, tasks, folder, rank = work
    Piece(deepcopy(pipeline), tasks, folder)._run_for_rank(rank)


def run_stage(pool: Pool, pipeline: list[PipelineStep], tasks: int, folder: Path, report: Report) -> int:
    """Run what is not done yet of a stage; returns how many pieces were done before."""
    waiting = Piece(pipeline, tasks, str(folder)).get_incomplete_ranks()
    pool.each(_piece, [(pipeline, tasks, str(folder), rank) for rank in waiting], report)
    return tasks - len(waiting)

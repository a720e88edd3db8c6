"""Pieces of a corpus as tasks on a Ray cluster.

datatrove's own executor for Ray is not used: it makes a process pool in every actor, and keeps its statistics and
messages apart from this program's. A piece marks what is done as it does on one machine, in a folder that all nodes
see; how far it is stands there too while it runs.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kamerton.cluster import Asked, Cluster, Tell
from kamerton.errors import KamertonError
from kamerton.files import write_text
from kamerton.text.corpus import progress
from kamerton.text.corpus.executor import FEWER, Report
from kamerton.text.corpus.files import Input

EVERY = 1.0
"""Seconds between two words of a piece about how far it is, at least."""

Numbered = tuple[int, Any]


class Tasks:
    """A pool of tasks on a cluster.

    Args:
        folder: of intermediate files, which every node sees.
        inputs: the files that are read.
        address: of the cluster, see `Cluster`; asked: what a piece asks for; tell: told what a person should know.
        workers: pieces at a time at most; None: as many as there is room for.
    """

    def __init__(
        self, folder: Path, inputs: Sequence[Input], address: str | None, asked: Asked, workers: int | None, tell: Tell
    ) -> None:
        self._folder, self._workers = folder, workers
        self._unread = frozenset(str(file.path) for file in inputs if not os.access(file.path, os.R_OK))
        self._cluster = Cluster(address, asked, tell)
        self._cluster.__enter__()

    def close(self) -> None:
        """No more calls."""
        self._cluster.__exit__()

    def each(self, function: Callable[[Any], None], arguments: Sequence[Any], report: Report) -> None:
        """Call a function for each of several arguments; `report` is told what `progress.advance` is told in them."""
        told = self._folder.resolve() / "told"
        shutil.rmtree(told, ignore_errors=True)
        told.mkdir()
        known: dict[int, int] = {}

        def tell(number: int, amount: int) -> None:
            # a piece that is done again says less than before for a while
            if amount > known.get(number, 0):
                report(amount - known.get(number, 0))
                known[number] = amount

        def look(given_out: Sequence[Numbered]) -> None:
            for number, _ in given_out:
                with suppress(OSError, ValueError):
                    tell(number, int((told / str(number)).read_text()))

        def lost(_: Numbered, why: str, again: bool) -> None:
            if not again:
                raise KamertonError(f"workers of a piece of work were lost again and again ({why})", mend=FEWER)

        self._cluster.each(
            partial(_piece, function, str(told), self._unread), list(enumerate(arguments)), self._folder,
            at_once=self._workers, done=lambda job, amount: tell(job[0], amount), lost=lost, tick=look,
        )  # fmt: skip
        shutil.rmtree(told, ignore_errors=True)


def _piece(function: Callable[[Any], None], told: str, unread: frozenset[str], job: Numbered) -> int:
    """On a node: one call; returns how much it did."""
    number, argument = job
    _check_inputs(argument, unread)
    place, amount, last = Path(told) / str(number), 0, 0.0

    def heard(more: int) -> None:
        nonlocal amount, last
        amount += more
        if time.monotonic() - last > EVERY:
            with suppress(OSError):
                write_text(place, str(amount), lasting=False)
            last = time.monotonic()

    progress.listen(heard)
    try:
        function(argument)
    finally:
        progress.listen(None)
    return amount


def _check_inputs(work: Any, unread: frozenset[str]) -> None:
    """Refuse to read on a node that does not see the files of a piece as the command saw them.

    What cannot be opened is else a rejected document, and the corpus would depend on the node.
    """
    pipeline, _, _, rank = work
    for file in getattr(pipeline[0], "pieces", [()] * (rank + 1))[rank]:
        try:
            same = file.path.stat().st_size == file.size
        except OSError:
            same = False
        if not same or os.access(file.path, os.R_OK) == (str(file.path) in unread):
            raise KamertonError(
                f"the node {platform.node()} does not see this file as the command does", where=file.path,
                mend="put the sources on storage that every node mounts under the same path",
            )  # fmt: skip

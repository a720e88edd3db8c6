"""Tasks on a Ray cluster, for whatever splits its work: cells of a comparison, pieces of a corpus.

A task is a function and one argument. It gets the cores, graphics processors and memory that it asks for; one whose
worker or node is lost is given out again, and goes on from what it had written. Everything that tasks read and write is
in folders that all nodes see under the same path. Object stores are left out: checkpoints, locks and resuming need
folders in which a file can be renamed and locked.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from kamerton.errors import KamertonError, MissingExtra
from kamerton.recipe_errors import closest
from kamerton.resources import cores

EXECUTORS = ("local", "ray")
ENVIRONMENT = "RAY_ADDRESS"
RETRIES = 3
"""How often a task is given out again after its worker was lost."""
SEEN = 10.0
"""Seconds in which a node must see a new file; network file systems take some."""
OBJECTS = 100 * 2**20
"""Bytes of Ray's object store where Ray is started here: results of tasks are small."""

T = TypeVar("T")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task asks for; memory in bytes."""

    cpus: int
    gpus: float = 0.0
    memory: int = 0

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus} CPUs{gpus} and {self.memory / 1e9:.3g} GB of memory"

    def fits(self, node: dict[str, float]) -> bool:
        """Whether an empty node has room for it."""
        have = (node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0))
        return all(a <= b for a, b in zip((self.cpus, self.gpus, self.memory), have, strict=True))


def check_executor(executor: str, address: str | None = None) -> None:
    """Refuse an executor that does not exist or is not installed, and an address at which nothing is or none is used.

    Raises:
        KamertonError: with what to do.
    """
    if executor not in EXECUTORS:
        raise KamertonError(f"no executor {executor!r}", where="--executor", mend=closest(executor, EXECUTORS))
    if executor == "local" and address is not None:
        raise KamertonError("is of Ray alone", where="--address", mend="add --executor ray, or leave it out")
    if executor == "ray":
        if find_spec("ray") is None:
            raise MissingExtra("ray", "ray")
        _check_reached(address or os.environ.get(ENVIRONMENT) or "auto")


class Cluster:
    """A connection to Ray, a context manager.

    Args:
        address: `HOST:PORT` or `auto` (the one that runs on this machine); None: what `RAY_ADDRESS` names, else Ray is
            started on this machine, bound to loopback, and ended with the connection.
        asked: what each task asks for.
        tell: told what a person should know.
    """

    def __init__(self, address: str | None, asked: Asked, tell: Tell) -> None:
        self.address = address or os.environ.get(ENVIRONMENT) or None
        self.asked, self._tell, self._mine = asked, tell, False

    def __enter__(self) -> Cluster:
        """Connect.

        Raises:
            KamertonError: nothing answers there, or no node has what a task asks for.
        """
        if self.address is None:  # read when ray is imported: without it Ray listens on every interface
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            try:
                if self.address is None:
                    self._tell("starting Ray on this machine")
                    own: dict[str, Any] = {
                        "num_cpus": cores(),
                        "include_dashboard": False,
                        "object_store_memory": OBJECTS,
                    }
                    ray.init(address="local", **own, **quiet)
                else:
                    ray.init(address=self.address, **quiet)
            except Exception as error:  # Ray raises whatever it likes: ConnectionError, RuntimeError, ValueError
                ray.shutdown()
                if self.address is not None:
                    raise _unreached(self.address, _first(error)) from error
                raise KamertonError(
                    f"Ray cannot be started on this machine ({_first(error)})",
                    mend="run it again when the machine has less to do, or start it with: ray start --head",
                ) from error
            self._mine = True
        try:
            self._check_room()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            import ray

            ray.shutdown()
            self._mine = False

    def _nodes(self) -> list[dict[str, float]]:
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def _check_room(self) -> None:
        nodes = self._nodes()
        if not any(self.asked.fits(node) for node in nodes):
            largest = max(nodes, key=lambda n: (n.get("GPU", 0), n.get("CPU", 0), n.get("memory", 0)), default={})
            has = Asked(int(largest.get("CPU", 0)), largest.get("GPU", 0), int(largest.get("memory", 0)))
            mend = f"ask for less with --cpus, --gpus, --memory or resources in the recipe: the largest has {has}"
            raise KamertonError(f"no node of the cluster has {self.asked}", mend=mend)

    def each(
        self, function: Callable[[T], Any], arguments: Sequence[T], folder: Path, *, at_once: int | None,
        done: Callable[[T, Any], None], lost: Callable[[T, str, bool], None], tick: Callable[[Sequence[T]], None],
    ) -> None:  # fmt: skip
        """Call a function for each of several arguments, in their order as far as there is room.

        Args:
            function: importable on every node; what it raises is raised here.
            folder: that all nodes see; a mark is put there for as long as this lasts.
            at_once: most tasks at a time; None: as many as there is room for.
            done: told what a call returned; lost: that a worker was lost, why, and whether it is tried again; tick:
                about twice a second the arguments that were given out.

        Raises:
            KamertonError: a node does not see the folder, or cannot run the function.
        """
        import ray

        remote = ray.remote(_on_node).options(
            num_cpus=self.asked.cpus, num_gpus=self.asked.gpus, memory=self.asked.memory or None, max_retries=0
        )
        mark = folder.resolve() / f".cluster-{uuid4().hex}"
        mark.touch()
        waiting, losses = deque(enumerate(arguments)), Counter[int]()
        running: dict[Any, tuple[int, T]] = {}
        crowded, looked = False, time.monotonic()
        try:
            while waiting or running:
                while waiting and (at_once is None or len(running) < at_once):
                    job = waiting.popleft()
                    running[remote.remote(function, job[1], os.getcwd(), str(mark), SEEN)] = job
                ready, _ = ray.wait(list(running), timeout=0.5)
                for ref in ready:
                    number, argument = running.pop(ref)
                    kind, value = _outcome(ref)
                    if kind == "done":
                        done(argument, value)
                    elif kind == "raised":
                        raise value
                    elif kind == "unseen":
                        raise KamertonError(
                            f"the node {value} does not see this folder", where=folder.resolve(),
                            mend="name an --output on storage that every node mounts under the same path",
                        )  # fmt: skip
                    else:
                        losses[number] += 1
                        again = losses[number] <= RETRIES
                        lost(argument, value, again)
                        if again:
                            waiting.appendleft((number, argument))
                tick([argument for _, argument in running.values()])
                if time.monotonic() - looked > 10:
                    before, crowded = crowded, not any(self.asked.fits(node) for node in self._nodes())
                    looked = time.monotonic()
                    if crowded and not before:
                        self._tell(f"no node is left that has {self.asked}: waiting for one")
        finally:
            if running:
                for ref in running:
                    ray.cancel(ref, force=True)
                ray.wait(list(running), num_returns=len(running), timeout=10)
            mark.unlink(missing_ok=True)


def _outcome(ref: Any) -> tuple[str, Any]:
    """What came of a task: how it ended, and what it returned or why it was lost."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        kind, value = ray.get(ref)
        return kind, value
    except RayTaskError as error:  # before or behind the function: `_on_node` catches what that raises
        raise KamertonError(
            f"a node cannot run tasks ({_first(error.cause or error)})",
            mend="install the same versions of kamerton and its dependencies on every node",
        ) from error
    except RayError as error:
        return "lost", _first(error)


def _on_node(function: Callable[[Any], Any], argument: Any, folder: str, mark: str, seen: float) -> tuple[str, Any]:
    """On a node: call the function from the folder in which the command was given, where it is there."""
    with suppress(OSError):
        os.chdir(folder)
    until = time.monotonic() + seen
    while not os.path.exists(mark):
        if time.monotonic() > until:
            return "unseen", platform.node()
        time.sleep(0.2)
    try:
        return "done", function(argument)
    except Exception as error:
        return "raised", error


def _check_reached(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself tries for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise KamertonError(
            f"{address!r} is not HOST:PORT", where="--address",
            mend="run the command on a node of the cluster, with --address auto or HOST:6379",
        )  # fmt: skip
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise _unreached(address, str(error.strerror or error)) from None


def _unreached(address: str, why: str) -> KamertonError:
    return KamertonError(
        f"{address} cannot be used ({why})", where="--address",
        mend="start Ray there with: ray start --head; leave --address out to start it on this machine",
    )  # fmt: skip


def _first(error: BaseException) -> str:
    """The first sentence of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].partition(". ")[0].rstrip(".")[:200] if lines else type(error).__name__

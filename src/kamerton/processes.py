"""Several processes that run one command together, started by `accelerate launch` or `torchrun`.

All of them run the same program on the same input and take the same decisions. What is dear is dealt out (`deal`), what
only one can know is told by the first (`from_first`, `agreed`), and files are written by the first alone: to code that
writes, the others give a folder of their own that nobody keeps (`own_folder`). The first process also is the only one
that prints. Alone, every function here does nothing.

Whoever fails ends all: the launcher ends the others, and a process that waits for one that is gone raises `Parted`.
"""

from __future__ import annotations

import atexit
import datetime
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from kamerton.errors import KamertonError

T = TypeVar("T")
S = TypeVar("S")

PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for each other: one may read a corpus while the others wait."""
GRACE = datetime.timedelta(seconds=10)
"""How long a process that failed waits for the others to fail alike."""
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Parted(KamertonError):
    """Another process of this command has ended."""


class _Launch:
    """What is known of this launch."""

    stderr: Any = None
    """Where this process wrote errors before it was silenced."""
    sharded = False
    failures = 0
    scratch: ClassVar[dict[Path, Path]] = {}
    """Folders of this process alone, and those of the first process that they stand for."""


def launched() -> int:
    """With how many processes the command was started, by the environment; 1: alone."""
    if not all(os.environ.get(name) for name in _VARIABLES):
        return 1
    return int(os.environ["WORLD_SIZE"])


def count() -> int:
    """How many processes work together now; 1: this one is alone."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def rank() -> int:
    """The number of this process among them."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def sharded() -> bool:
    """Whether the launch asks for sharded parameters (`accelerate launch --use_fsdp`, or ACCELERATE_USE_FSDP=true)."""
    return _Launch.sharded and count() > 1


def _group() -> Any:
    torch = sys.modules.get("torch")  # whoever has not imported it is alone
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    # a group of one is a library's own (vLLM's) and no launch of several
    return torch.distributed if torch.distributed.get_world_size() > 1 else None


def join() -> None:
    """Meet the other processes of a launch; all but the first are silent from then on.

    A GPU's process takes the GPU of its number on its machine. Does nothing where the command was started alone.

    Raises:
        KamertonError: the environment names no place to meet.
    """
    if launched() == 1 or _group() is not None:
        return
    import torch

    if int(os.environ["RANK"]) > 0:
        _Launch.stderr = sys.stderr
        # kept open until the end of the process: libraries hold on to these
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # read here once: accelerate is not to shard what is sharded already
    _Launch.sharded = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")
    backend = "gloo"
    if torch.cuda.is_available() and not on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise KamertonError(
            f"the {launched()} processes cannot meet ({' '.join(f'{error}'.split())[:200]})",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            mend="start them with accelerate launch or torchrun",
        ) from error


@atexit.register
def _tidy() -> None:
    for folder in _Launch.scratch:
        shutil.rmtree(folder, ignore_errors=True)


def leave() -> None:
    """Part from the others at the end of the command."""
    group = _group()
    if group is not None:
        with suppress(RuntimeError):
            group.destroy_process_group()


def end(status: int) -> NoReturn:
    """End this process now, whatever its libraries still wait for."""
    _tidy()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def speaks() -> bool:
    """Whether this process is the one to print an error: the first one that fails; of a launch nobody else."""
    if _group() is None:
        return launched() == 1 or int(os.environ["RANK"]) == 0
    if _Launch.stderr is not None:
        sys.stderr = _Launch.stderr
    try:
        return int(_store().add("kamerton/failed", 1)) == 1
    except Exception:  # the store went with the process that held it, which has spoken
        return False


def failed_alike() -> bool:
    """Whether all processes have come here: an error that all of them met can be passed over together.

    Called by a process that met one. Where the others met none they wait for this one inside the work, and the answer
    is no after a grace period: the command has to end.
    """
    if count() == 1:
        return True
    _Launch.failures += 1
    keys = [f"kamerton/failure/{_Launch.failures}/{i}" for i in range(count())]
    try:
        _store().set(keys[rank()], "1")
        _store().wait(keys, GRACE)
    except Exception:  # torch has several kinds for a time that is over and for a store that is gone
        return False
    return True


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


@contextmanager
def meeting() -> Iterator[Any]:
    """The process group, for a collective operation.

    Raises:
        Parted: another process is gone.
    """
    try:
        yield _group()
    except RuntimeError as error:
        reason = " ".join(f"{error}".split())
        if not any(word in reason for word in ("onnection", "peer", "Socket", "socket", "NCCL", "imed out", "aborted")):
            raise
        raise Parted("another process of this command has ended", mend="see what it said, and run again") from error


def gathered(value: T) -> list[T]:
    """What each process has, in the order of their numbers; on every process."""
    n = count()
    if n == 1:
        return [value]
    out: list[Any] = [None] * n
    with meeting() as group:
        group.all_gather_object(out, value)
    return out


def agreed(value: T) -> T:
    """What the first process has."""
    return from_first(lambda: value)


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on the first process, which alone calls it; the others wait for it."""
    if count() == 1:
        return make()
    import torch

    box: list[Any] = [make() if first() else None]
    with meeting() as group:
        group.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    result: T = box[0]
    return result


def in_turn(make: Callable[[], T]) -> T:
    """What `make` gives, on the first process before the others: what it left on the disk they need not make again."""
    result = make() if first() else None
    wait()
    if not first():
        result = make()
    return result  # type: ignore[return-value]


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        gathered(None)


def deal(items: Sequence[S], work: Callable[[Sequence[S]], Sequence[T]]) -> list[T]:
    """What `work` gives for each item, in their order; each process does its share, and all get everything.

    Args:
        items: the same on all processes; process r takes number r, r + n, ….
        work: called once with the share, where there is one; as many results as items, on the CPU.
    """
    n, own = count(), rank()
    if n == 1:
        return list(work(items)) if items else []
    mine = items[own::n]
    parts = gathered(list(work(mine)) if mine else [])
    return [parts[i % n][i // n] for i in range(len(items))]


def own_folder(folder: Path) -> Path:
    """The folder on the first process; on the others one of their own, with its small files, that nobody keeps.

    What a run decides by files (finished cells, a search's rungs) is then the same on all processes, wherever they run.
    Weights and streams of tokens are not copied: who needs them asks the first process.
    """
    if count() == 1:
        return folder
    found = from_first(lambda: _small_files(folder))
    if first():
        return folder
    scratch = Path(tempfile.mkdtemp(prefix="kamerton-"))
    _Launch.scratch[scratch] = folder
    for name, content in found.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return scratch


def written_folder(folder: Path) -> Path:
    """The folder that the first process writes, for one that `own_folder` gave."""
    return _Launch.scratch.get(folder, folder)


def _small_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        # a checkpoint is read by the first process, and told
        if path.suffix in (".json", ".jsonl") and path.is_file() and not path.parent.name.startswith(("step-", "."))
    }

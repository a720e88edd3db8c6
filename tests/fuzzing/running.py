"""Reads many cases and tells what came of them: a value, one line of error, or something that must not be.

What must not be: an exception other than `KamertonError` (a traceback), an error of several lines, an input that takes
longer than a bound of seconds, memory above a bound (the process has a limit of address space, so that one too many
byte is a `MemoryError`). The case that is being read lies in a file, so that one that ends the process is known too.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.mutations import Case, mutate
from kamerton.errors import KamertonError

SECONDS = 10.0
"""The longest that one case may take on a busy machine."""
KEPT = 400
"""Cases that were read as far as new errors go, which are changed further."""


class TooLong(BaseException):
    """A case took more seconds than it may; no reader catches it as an error of its own."""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        inputs: how many cases were read; `fine`: without an error; `errors`: how many errors, by their words without
            names and numbers; `failures`: what must not be, with the first case that did it.
    """

    inputs: int = 0
    fine: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: dict[str, tuple[int, Case, str]] = field(default_factory=dict)


def shape(line: str) -> str:
    """An error's words: without what is quoted, numbers and places, so that the same error counts as one."""
    said = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|[\d.,]+", "…", line)
    return " ".join(said.split())[:110]


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises `TooLong` in the block when it takes longer; what is stuck in compiled code ends the process later."""

    def late(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(read: Callable[[Case], Any], case: Case, seconds: float = SECONDS) -> tuple[str | None, str | None]:
    """Read a case; returns its error in one line and, where it is a failure, what failed with its traceback."""
    try:
        with bounded(seconds):
            read(case)
    except KamertonError as error:
        line = str(error)
        try:
            line.encode()
        except UnicodeEncodeError:
            return line, f"an error that cannot be printed: {line!r}"
        if "\n" in line or not line:
            return line, f"an error of several lines: {line!r}"
        return line, None
    except TooLong:
        return "too long", "too long\n" + traceback.format_exc()
    except MemoryError:
        return "memory", "memory\n" + traceback.format_exc()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        place = traceback.extract_tb(error.__traceback__)
        own = [f for f in place if "/kamerton/" in f.filename] or place
        return type(error).__name__, (
            f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}: {str(error)[:200]!r}\n"
            + traceback.format_exc()
        )
    return None, None


def run(
    read: Callable[[Case], Any], seeds: list[Case], inputs: int, seed: int = 0, *, seconds: float = SECONDS,
    progress: Callable[[Outcome], None] | None = None, current: Path | None = None, until: float | None = None,
) -> Outcome:  # fmt: skip
    """Read cases that come of the first ones.

    Args:
        read: takes a case.
        seeds: first cases, all of which are read without an error.
        inputs: how many changed ones; `seed`: of the changes.
        seconds: the longest that one may take.
        progress: told now and then.
        current: a file that always holds the case that is being read.
        until: ends the run after so many seconds.
    """
    outcome, rng = Outcome(), random.Random(seed)
    kept = list(seeds)
    begun = time.monotonic()
    for number in range(inputs):
        case = mutate(rng.choice(seeds if rng.random() < 0.5 else kept), seeds, rng)
        if current is not None:
            current.write_text(dumped(case))
            faulthandler.dump_traceback_later(6 * seconds, exit=True)
        start = time.monotonic()
        line, failed = attempt(read, case, seconds)
        outcome.slowest = max(outcome.slowest, time.monotonic() - start)
        outcome.inputs += 1
        words = None if line is None else shape(line)
        if failed is not None:
            outcome.failures.setdefault(shape(failed.splitlines()[0]), (number, case, failed))
        elif words is None:
            outcome.fine += 1
            if rng.random() < 0.02 and len(kept) < len(seeds) + KEPT:
                kept.append(case)
        if words is not None and failed is None:
            if words not in outcome.errors and len(kept) < len(seeds) + KEPT:
                kept.append(case)
            outcome.errors[words] += 1
        if progress is not None and number % 50 == 0:
            progress(outcome)
        if until is not None and time.monotonic() - begun > until:
            break
    if current is not None:
        faulthandler.cancel_dump_traceback_later()
    outcome.seconds = time.monotonic() - begun
    outcome.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return outcome


def limit_memory(more: int) -> None:
    """Let this process have so many more bytes of address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def dumped(case: Case) -> str:
    """A case as JSON, whatever its bytes."""
    return json.dumps({name: data.decode("latin-1") for name, data in case.items()})


def undumped(text: str) -> Case:
    """What `dumped` wrote."""
    return {name: data.encode("latin-1") for name, data in json.loads(text).items()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

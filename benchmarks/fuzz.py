"""Fuzzes one reader, or all of them: `python benchmarks/fuzz.py --reader task-csv --inputs 100000 --seed 0`.

Each reader runs in a process of its own, whose address space may grow by `--memory` bytes at most once the reader is
set up; an input may take `--seconds`. Printed are inputs, seconds, the largest resident memory, and how often each
error came. An input that fails (a traceback, too long, too much memory, the end of the process) is saved in a folder
and can be read again with `--replay`. `--list` names the readers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
os.environ.setdefault("RUST_BACKTRACE", "0")
sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--reader", action="append", default=[], help="which one; more than once for several; none: all")
    made.add_argument("--inputs", type=int, default=2000, help="how many changed inputs each reader gets")
    made.add_argument("--seed", type=int, default=0, help="of the changes")
    made.add_argument("--seconds", type=float, default=10.0, help="the longest that one input may take")
    made.add_argument("--memory", type=int, default=1 << 30, help="bytes that the address space may grow by")
    made.add_argument("--within", type=float, help="ends each reader's run after so many seconds")
    made.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="where failing inputs and figures go")
    made.add_argument("--replay", type=Path, help="read one saved input again and show what happens")
    made.add_argument("--list", action="store_true", help="name the readers")
    made.add_argument("--errors", type=int, default=0, help="show the commonest errors, so many")
    made.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return made.parse_args()


def main() -> int:
    given = arguments()
    from fuzzing.readers import READERS

    if given.list:
        for name, one in READERS.items():
            print(f"{name:22} {one.summary}")
        return 0
    names = given.reader or list(READERS)
    unknown = [name for name in names if name not in READERS]
    if unknown:
        print(f"no reader {unknown[0]}; --list names them", file=sys.stderr)
        return 2
    if given.here:
        return _here(names[0], given)
    print(f"{'reader':22} {'inputs':>8} {'seconds':>8} {'peak MiB':>9} {'slowest s':>9} {'read':>7} {'refused':>8} "
          f"{'errors':>7} {'failures':>8}")  # fmt: skip
    worst = 0
    for name in names:
        begun = time.monotonic()
        repeated = [
            "--inputs",
            given.inputs,
            "--seed",
            given.seed,
            "--seconds",
            given.seconds,
            "--memory",
            given.memory,
        ]
        repeated += ["--folder", given.folder, "--errors", given.errors]
        repeated += ["--within", given.within] if given.within else []
        repeated += ["--replay", given.replay] if given.replay else []
        made = subprocess.run([sys.executable, __file__, *map(str, repeated), "--reader", name, "--here"], check=False)
        if made.returncode not in (0, 1):  # the process ended: the input that did it lies in its file
            print(f"{name:22} ended with {made.returncode} after {time.monotonic() - begun:.0f} s; the input is in "
                  f"{given.folder / name / 'current.json'}")  # fmt: skip
        worst = max(worst, abs(made.returncode))
    return min(worst, 1)


def _here(name: str, given: argparse.Namespace) -> int:
    import torch

    from fuzzing.readers import READERS, scratch
    from fuzzing.running import attempt, dumped, limit_memory, run, undumped

    torch.set_num_threads(1)
    folder: Path = given.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with scratch() as place, READERS[name].open(place) as (seeds, read):
        if given.replay is not None:
            line, failed = attempt(read, undumped(given.replay.read_text()), given.seconds)
            print(failed or line or "read without an error")
            return int(failed is not None)
        for case in seeds:
            line, failed = attempt(read, case, 600)
            if failed is not None or line is not None:
                print(f"a first case of {name} is not read: {failed or line}", file=sys.stderr)
        limit_memory(given.memory)
        outcome = run(
            read, seeds, given.inputs, given.seed, seconds=given.seconds, current=folder / "current.json",
            until=given.within,
        )  # fmt: skip
    refused = sum(outcome.errors.values())
    print(f"{name:22} {outcome.inputs:8,} {outcome.seconds:8.0f} {outcome.peak / 2**20:9.0f} {outcome.slowest:9.2f} "
          f"{outcome.fine:7,} {refused:8,} {len(outcome.errors):7,} {len(outcome.failures):8}", flush=True)  # fmt: skip
    for words, count in outcome.errors.most_common(given.errors):
        print(f"    {count:7,} {words}")
    for number, (words, (at, case, trace)) in enumerate(outcome.failures.items()):
        saved = folder / f"failure-{given.seed}-{number}.json"
        saved.write_text(dumped(case))
        saved.with_suffix(".txt").write_text(trace)
        print(f"    FAILURE at input {at}: {words} ({saved})")
    figures = {
        "reader": name, "inputs": outcome.inputs, "seed": given.seed, "seconds": outcome.seconds, "peak": outcome.peak,
        "slowest": outcome.slowest, "read": outcome.fine, "errors": dict(outcome.errors.most_common()),
        "failures": list(outcome.failures),
    }  # fmt: skip
    (folder / f"figures-{given.seed}.json").write_text(json.dumps(figures, ensure_ascii=False, indent=1))
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())

"""Kamerton beside its peers, in one run on one machine: training, generation and scores of choices.

    python benchmarks/peers.py            # everything; --only NAME for one part, --quick for one short turn of each

Contestants take turns (A B A B), each in a process of its own, so that what else the machine does falls on both alike.
A ratio is taken within a turn. Printed: the median and the range of the turns, in wall-clock time and in processor time
(which says the same on an idle machine and more on a busy one), peak memory, and how far the results agree.
Results are written to a JSON file, in which parts that are run later replace their older selves, and to a Markdown
table beside it. The peers are installed by `pip install -r benchmarks/requirements.txt`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parts import OURS, Part, parts
from peers_table import own_settings, plot, table

HERE = Path(__file__).resolve().parent


def environment(policy: str) -> dict[str, str]:
    """`own`: threads wait as Kamerton has it on a machine with nothing else to do, for all contestants."""
    waits = (
        {"OMP_WAIT_POLICY": policy} if policy != "own" else {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
    )
    return {**os.environ, **waits, "HF_HUB_OFFLINE": "1"}


class Contestant:
    """A process of `contestants.py`, started when it gets its first job."""

    def __init__(self, policy: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "contestants.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env=environment(policy),
        )  # fmt: skip

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job; ends the benchmark with the process's last words where there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            sys.exit(f"{job} failed:\n{self._log.read().decode(errors='replace')[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


@contextlib.contextmanager
def contestant(policy: str) -> Iterator[Contestant]:
    """A contestant's process for the length of a block."""
    process = Contestant(policy)
    try:
        yield process
    finally:
        process.close()


# -- do the results agree? ------------------------------------------------------------------------------------------


def losses(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Loss of the first batch, before any step."""
    return f"first loss {ours['first_loss']:.5f} and {peer['first_loss']:.5f}"


def answers(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Greedy tokens, row by row."""
    same = sum(a == b for a, b in zip(ours["tokens"], peer["tokens"], strict=True))
    return f"{same} of {len(peer['tokens'])} answers equal"


def scores(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Log-probabilities of the choices of the questions that both have."""
    pairs = list(zip(ours["scores"], peer["scores"], strict=False))
    far = max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))
    same = sum(max(range(len(x)), key=x.__getitem__) == max(range(len(y)), key=y.__getitem__) for x, y in pairs)
    return f"scores differ by at most {far:.2g}, best choice equal in {same} of {len(pairs)}"


def own_losses(ours: dict[str, Any], _: dict[str, Any]) -> str:
    """The loss of one batch by Kamerton and by peft's forward pass, with the same trained numbers."""
    return "loss {:.6f} and {:.6f}".format(*ours["losses"])


def logprobs(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Sampled answers differ; what they are worth to the model does not."""
    return f"mean log-probability of a sampled token {ours['logprob']:.3f} and {peer['logprob']:.3f}"


def matches(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Exact matches of each method, in per cent."""
    return ", ".join(
        f"{n} {v if isinstance(v, str) else round(v)} and {peer['matches'][n]:.0f}" for n, v in ours["matches"].items()
    )


CHECKS = {
    "losses": losses, "answers": answers, "scores": scores, "own_losses": own_losses, "logprobs": logprobs,
    "matches": matches,
}  # fmt: skip


# -- turns ----------------------------------------------------------------------------------------------------------


@dataclass
class Turns:
    """What a contestant did: units a second by wall clock, units a processor second, peak memory, turn by turn."""

    rate: list[float] = field(default_factory=list)
    cpu_rate: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    working: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        self.rate.append(answer["units"] / answer["seconds"])
        # of the whole run, warm-up included
        self.cpu_rate.append(answer.get("all_units", answer["units"]) / answer["cpu_seconds"])
        self.peak.append(answer["peak_bytes"] / 2**20)
        self.working.append(answer["working_bytes"] / 2**20)
        for name in ("flops", "bytes"):
            if name in answer:
                getattr(self, name).append(answer[name] / answer["seconds"])


def measure(part: Part, turns: int, policy: str) -> dict[str, Any]:
    """All turns of one part."""
    jobs, scouted = dict(part.jobs), []
    peer = list(jobs)[1]
    if part.scout:
        for job in part.scout:
            with contestant(policy) as one:
                answer = one.run(job)
            rate = answer["units"] / answer["seconds"]
            scouted.append({**job, "rate": rate, "peak_mb": answer["peak_bytes"] / 2**20})
            print(f"  {peer} {own_settings(job)}: {scouted[-1]['rate']:.4g} {part.unit}/s", flush=True)
        best = max(range(len(scouted)), key=lambda i: scouted[i]["rate"])
        jobs[peer] = part.scout[best]
    seen = {name: Turns() for name in jobs}
    notes = []
    with contextlib.ExitStack() as stack:
        kept: dict[str, Contestant] = {}
        for _ in range(turns):
            last = {}
            for name, job in jobs.items():
                if part.fresh:
                    with contestant(policy) as one:
                        last[name] = one.run(job)
                else:
                    if name not in kept:
                        kept[name] = stack.enter_context(contestant(policy))
                    last[name] = kept[name].run(job)
                seen[name].add(last[name])
            if part.check:
                notes.append(CHECKS[part.check](last[OURS], last[peer]))
    return {
        "name": part.name, "unit": part.unit, "jobs": jobs, "peer": peer, "policy": policy, "turns": turns,
        "date": time.strftime("%Y-%m-%d %H:%M"), "load": os.getloadavg()[0], "scouted": scouted,
        "target": part.target, "memory_target": part.memory, "most": most(part),
        "contestants": {name: vars(t) for name, t in seen.items()}, "check": sorted(set(notes)),
    }  # fmt: skip


def most(part: Part) -> dict[str, float]:
    """This machine's matrix peak in the part's data type, in FLOPs a second, and its memory's bytes a second, now."""
    import torch

    kind = next((job["dtype"] for job in part.jobs.values() if "dtype" in job), "float32")
    a, b = (torch.randn(2048, 2048).to(getattr(torch, kind)) for _ in range(2))
    much = torch.ones(64 * 2**20)
    rates, reads = [], []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * 2048**3 / (time.perf_counter() - start))
        start = time.perf_counter()
        much.sum()
        reads.append(4 * much.numel() / (time.perf_counter() - start))
    return {"flops": max(rates), "bytes": max(reads)}


def machine() -> dict[str, Any]:
    """Processor and versions."""
    import platform
    from importlib.metadata import version

    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    packages = ("torch", "transformers", "peft", "accelerate", "trl", "lm-eval")
    return {
        "processor": model, "cores": os.cpu_count(), "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }  # fmt: skip


def _named(part: Part, word: str, every: list[Part]) -> bool:
    """Whether a word of `--only` means a part: the one of that name, or else all that begin so."""
    return part.name == word if any(p.name == word for p in every) else part.name.startswith(word)


def main() -> None:
    """Run what is asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="a part's name, or parts whose names begin so")
    parser.add_argument("--quick", action="store_true", help="one short turn of each part, no choice of settings")
    parser.add_argument("--no-scout", action="store_true", help="take the peers' first settings, not the fastest ones")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="auto: what this machine gains from"
    )
    parser.add_argument("--steps", type=int, help="training steps of each turn, the first one not counted")
    parser.add_argument("--turns", type=int, help="turns of each part (default: 2 to 5 by its length)")
    parser.add_argument("--wait-policy", default="own", choices=["PASSIVE", "ACTIVE", "own"], help="OMP_WAIT_POLICY")
    parser.add_argument("--json", type=Path, default=Path("peers.json"), help="results; a .md table lies beside it")
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE))
    import torch

    from kamerton.base.load import choose_dtype
    from workloads import data_folder

    chosen, reason = choose_dtype(arguments.dtype, torch.device("cpu"))
    dtype = str(chosen).removeprefix("torch.")
    print(f"{dtype}: {reason}", flush=True)

    done: dict[str, dict[str, Any]] = {}
    if arguments.json.is_file():
        done = {r["name"]: r for r in json.loads(arguments.json.read_text())["results"]}
    every = parts(quick=arguments.quick, dtype=dtype, steps=arguments.steps)
    for part in every:
        if arguments.only and not any(_named(part, word, every) for word in arguments.only):
            continue
        if part.needs and data_folder(part.needs) is None:
            print(f"{part.name}: left out, {part.needs} is not on this machine (set KAMERTON_DATA)")
            continue
        print(part.name, flush=True)
        if arguments.no_scout:
            part = replace(part, scout=())
        turns = arguments.turns or (1 if arguments.quick else part.turns)
        result = measure(part, turns, arguments.wait_policy)
        print(table([result]), flush=True)
        done[part.name] = result
        order = [p.name for p in parts(quick=False, dtype=dtype)]
        results = sorted(done.values(), key=lambda r: order.index(r["name"]) if r["name"] in order else len(order))
        arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
        arguments.json.with_suffix(".md").write_text(table(results))
        arguments.json.with_suffix(".svg").write_text(plot(results))


if __name__ == "__main__":
    main()

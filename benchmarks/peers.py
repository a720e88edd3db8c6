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
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "Kamerton"


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        unit: what a contestant does so many of in a second.
        jobs: for each contestant its job (see `contestants.py`); the first one is Kamerton's, the second its peer's.
        check: how the results of a turn are compared (a function of this file), "" for not at all.
        fresh: a new process for every turn (training leaves much behind).
        scout: settings of the peer; the fastest of one turn each goes into the turns.
        needs: folder of a data set without which the part is left out.
    """

    name: str
    unit: str
    jobs: dict[str, dict[str, Any]]
    check: str = ""
    fresh: bool = False
    scout: tuple[dict[str, Any], ...] = ()
    turns: int = 3
    needs: str = ""


class Contestant:
    """A process of `contestants.py`, started when it gets its first job."""

    def __init__(self, policy: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "contestants.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env={**os.environ, "OMP_WAIT_POLICY": policy, "HF_HUB_OFFLINE": "1"},
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


def parts(*, quick: bool, dtype: str, steps: int | None = None) -> list[Part]:
    """All measurements.

    Args:
        quick: short ones.
        dtype: what is trained, generated and scored in; the checks of agreement are in float32.
        steps: training steps of a turn.
    """
    out = []
    counts = {"dates": (3, 1), "gsm8k": (2, 1)} if quick else {"dates": (4, 1), "gsm8k": (3, 1)}
    settings = ("padded", "grouped", "padding-free", "packed")
    for data, (count, warm) in counts.items():
        same = {"data": data, "steps": steps or count, "warm": warm, "dtype": dtype}
        trl = {"job": "train_trl", **same}
        out.append(Part(
            f"train-{data}-{dtype}", "tokens",
            {OURS: {"job": "train_kamerton", **same}, "TRL": {**trl, "setting": "padded"}},
            fresh=True, scout=() if quick else tuple({**trl, "setting": name} for name in settings),
            needs="" if data == "dates" else data,
        ))  # fmt: skip
    same = {"data": "dates", "steps": 1, "warm": 0, "dtype": "float32"}
    out.append(Part(
        "train-loss-check", "tokens",
        {OURS: {"job": "train_kamerton", **same}, "TRL": {"job": "train_trl", **same, "setting": "padded"}},
        check="losses", fresh=True, turns=1,
    ))  # fmt: skip
    sizes = [(dtype, batch, shared) for batch, shared in ((1, False), (16, False), (16, True), (64, False), (64, True))]
    for kind, batch, shared in dict.fromkeys([*sizes, ("float32", 1, False), ("float32", 16, True)]):
        same = {"batch": batch, "shared": shared, "dtype": kind, "new": 8 if quick else 64}
        out.append(Part(
            f"generate-{kind}-{batch}{'-shared' if shared else ''}", "tokens",
            {OURS: {"job": "generate_kamerton", **same}, "transformers": {"job": "generate_transformers", **same}},
            check="answers", turns=5 if batch == 1 else 3,
        ))  # fmt: skip
    for kind, few in dict.fromkeys([(dtype, 1), (dtype, 20), ("float32", 1)]):
        harness = {"job": "score_lm_eval", "questions": 1, "dtype": kind, "batch": 8}
        sizes_ = () if quick or kind != dtype or few > 1 else tuple({**harness, "batch": n} for n in (1, 8, 32))
        jobs = {OURS: {"job": "score_kamerton", "questions": few, "dtype": kind}, "lm-eval": harness}
        if few > 1:
            jobs[f"{OURS}, rank"] = {"job": "rank_kamerton", "questions": few, "dtype": kind}
        out.append(Part(
            f"score-{kind}-{few}", "choices", jobs, check="scores", scout=sizes_,
            turns=1 if kind != dtype else 2 if few > 1 else 3,
        ))  # fmt: skip
    return out


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


CHECKS = {"losses": losses, "answers": answers, "scores": scores}


# -- turns ----------------------------------------------------------------------------------------------------------


@dataclass
class Turns:
    """What a contestant did: units a second by wall clock, units a processor second, peak memory, turn by turn."""

    rate: list[float] = field(default_factory=list)
    cpu_rate: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    working: list[float] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        self.rate.append(answer["units"] / answer["seconds"])
        # of the whole run, warm-up included
        self.cpu_rate.append(answer.get("all_units", answer["units"]) / answer["cpu_seconds"])
        self.peak.append(answer["peak_bytes"] / 2**20)
        self.working.append(answer["working_bytes"] / 2**20)


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
            print(f"  {peer} {_own(job)}: {scouted[-1]['rate']:.4g} {part.unit}/s", flush=True)
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
        "contestants": {name: vars(t) for name, t in seen.items()}, "check": sorted(set(notes)),
    }  # fmt: skip


def _own(job: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in job.items() if k in ("setting", "batch"))


# -- tables ---------------------------------------------------------------------------------------------------------


def _spread(values: list[float], digits: int = 3) -> str:
    numbers = (median(values), min(values), max(values))
    middle, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.{digits}g}" for v in numbers)
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def ratios(result: dict[str, Any], name: str, key: str) -> list[float]:
    """A contestant's numbers over the peer's, turn by turn."""
    mine, theirs = (result["contestants"][who][key] for who in (name, result["peer"]))
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each of our contestants."""
    lines = [
        "| measurement | unit/s, Kamerton | unit/s, peer | peer | ratio | ratio, processor time | peak MB, Kamerton | "
        "peak MB, peer | agreement |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        theirs = r["contestants"][r["peer"]]
        setting = _own(r["jobs"][r["peer"]]) if "generate" not in r["name"] else ""
        for name, mine in r["contestants"].items():
            if name == r["peer"]:
                continue
            label, peer = r["name"] + name.removeprefix(OURS), f"{r['peer']} {setting}".strip()
            lines.append(
                f"| {label} | {_spread(mine['rate'])} {r['unit']} | {_spread(theirs['rate'])} | {peer} | "
                f"**{_spread(ratios(r, name, 'rate'))}** | {_spread(ratios(r, name, 'cpu_rate'))} | "
                f"{median(mine['peak']):,.0f} | {median(theirs['peak']):,.0f} | "
                f"{'; '.join(r['check']) if name == OURS else ''} |"
            )  # fmt: skip
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--wait-policy", default="PASSIVE", choices=["PASSIVE", "ACTIVE"], help="OMP_WAIT_POLICY")
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


if __name__ == "__main__":
    main()

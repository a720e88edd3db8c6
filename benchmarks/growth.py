"""How time and memory grow with examples, sequence length, shots, choices and methods: slopes in logarithms.

Every point does one piece of work: a training of a fixed number of epochs, answers, or scores of choices. Points are
measured in shuffled order, three rounds of them, so that what else the machine does falls on all alike. The slope of
log seconds over log size is fitted within each round to the upper half of the sizes, where what is done once weighs
less; the table gives the median of the rounds and their range. FLOPs, which know no clock, stand beside it. The model
is the LLaMA of 20 million parameters of `scale.py`, in float32 with one thread; seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kamerton.base import Base, load_base
from kamerton.base.work import flops
from kamerton.evaluation.memory import peak_bytes, reset_peak
from kamerton.inference import Engine, Sampling
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Run
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget
from scale import small

WORDS = "red green blue white black seven eight nine apple river stone cloud bread window garden letter".split()
AXES: dict[str, tuple[int, ...]] = {
    "training examples": (16, 32, 64, 128),
    "test questions": (16, 32, 64, 128, 256),
    "tokens of a training example": (64, 128, 256, 512, 1024),
    "tokens of a prompt": (128, 256, 512, 1024, 1900),
    "shots": (2, 4, 8, 16, 32),
    "choices": (16, 32, 64, 128, 256),
    "methods": (1, 2, 4),
}
Point = tuple[str, int]
Measured = dict[str, float]


def text(rng: random.Random, count: int) -> str:
    """So many words, nearly as many tokens."""
    return " ".join(rng.choices(WORDS, k=count))


def examples(count: int, words: int, seed: int = 0, choices: int = 0) -> tuple[Example, ...]:
    """Questions of so many words; with choices of three words each."""
    rng = random.Random(seed)
    offered = tuple(f"{text(rng, 3)} {i}" for i in range(choices))
    return tuple(
        Example(
            f"{i}",
            conversation([("user", text(rng, words))]),
            (offered[0] if offered else text(rng, 3),),
            choices=offered,
        )
        for i in range(count)
    )


def task(train: int = 0, test: int = 1, words: int = 30, choices: int = 0) -> Task:
    """A made-up task."""
    empty = Task("growth", (), (), examples(test, words, 1, choices), ("exact-match",))
    return replace(empty, train=examples(train, words), max_answer_tokens=8)


def fit(base: Base, given: Task, name: str = "lora", **options: Any) -> Any:
    """One epoch of a method."""
    method = get_method(name)
    chosen = parse_options(method, options)
    with tempfile.TemporaryDirectory() as folder:
        return method.fit(base, given, Budget(epochs=1), chosen, Run(Path(folder)))


def trained(base: Base, given: Task, **options: Any) -> Measured:
    """Seconds and FLOPs of training, without those of attaching what is trained."""
    wall, own = time.perf_counter(), time.thread_time()
    record = fit(base, given, learning_rate=1e-4, validations=1, **options).record
    busy = (time.thread_time() - own) / (time.perf_counter() - wall)
    return {"seconds": record.seconds * busy, "flops": record.flops}


def answered(base: Base, given: Task, adapted: Any = None) -> Measured:
    """Seconds and FLOPs of answers, or of choices."""
    model = adapted.engine.model if adapted is not None else base.model
    before, start = model.work.copy(), time.thread_time()
    plan = Sampling(max_tokens=given.max_answer_tokens)
    asked = [e.messages for e in given.test]
    if given.test[0].choices:
        Engine(model, base.renderer).score(asked, [e.choices for e in given.test])
    elif adapted is not None:
        adapted.generate(asked, plan)
    else:
        Engine(model, base.renderer).generate(asked, plan)
    return {"seconds": time.thread_time() - start, "flops": flops(model.work - before, model.hf)}


def several(base: Base, count: int) -> Measured:
    """So many methods one after another, each trained and asked, as a comparison does."""
    start, total = time.thread_time(), 0.0
    given = task(train=16, test=8)
    for _ in range(count):
        adapted = fit(base, given, learning_rate=1e-4, validations=1, batch_size=8)
        total += adapted.record.flops + answered(base, given, adapted)["flops"]
    return {"seconds": time.thread_time() - start, "flops": total}


def point(base: Base, axis: str, size: int) -> Measured:
    """One measurement."""
    if axis == "training examples":
        return trained(base, task(train=size))
    if axis == "test questions":
        return answered(base, task(test=size))
    if axis == "tokens of a training example":
        return trained(base, task(train=4, words=size), batch_size=4)
    if axis == "tokens of a prompt":
        return answered(base, task(test=2, words=size))
    if axis == "shots":
        given = task(train=64, test=4)
        few = fit(base, given, "few-shot", shots=size, selection="nearest")
        return answered(base, given, few)
    if axis == "choices":
        return answered(base, task(test=2, choices=size))
    return several(base, size)


def measure(base: Base, axes: dict[str, tuple[int, ...]], rounds: int, say: Callable[[str], None]) -> list[Any]:
    """All points, in a new order each round."""
    rows = []
    for turn in range(rounds):
        points = [(axis, size) for axis, sizes in axes.items() for size in sizes]
        random.Random(turn).shuffle(points)
        for axis, size in points:
            gc.collect()
            reset_peak()
            before = peak_bytes()
            found = point(base, axis, size)
            rows.append({"round": turn, "axis": axis, "size": size, **found, "memory": peak_bytes() - before})
            say(f"round {turn + 1}, {axis} {size}: {found['seconds']:.2f} s")
    return rows


def slope(sizes: list[int], values: list[float]) -> float:
    """Of log value over log size, on the upper half."""
    half = len(sizes) // 2
    x, y = np.log(sizes[half - 1 :]), np.log(np.maximum(values[half - 1 :], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def table(rows: list[Any]) -> str:
    """Slopes by axis: of seconds (median and range over rounds), FLOPs and memory."""
    lines = ["| what grows | sizes | seconds, least to most | slope of seconds | slope of FLOPs | slope of memory |",
             "| --- | --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for axis in dict.fromkeys(row["axis"] for row in rows):
        mine = [row for row in rows if row["axis"] == axis]
        sizes = sorted({row["size"] for row in mine})
        turns = sorted({row["round"] for row in mine})
        found = {
            key: [slope(sizes, _values(mine, key, sizes, turn)) for turn in turns]
            for key in ("seconds", "flops", "memory")
        }
        middle = [statistics.median(r["seconds"] for r in mine if r["size"] == s) for s in sizes]
        told = {k: f"{statistics.median(v):.2f} ({min(v):.2f}–{max(v):.2f})" for k, v in found.items()}
        lines.append(
            f"| {axis} | {sizes[0]} to {sizes[-1]} | {middle[0]:.2f} to {middle[-1]:.2f} | {told['seconds']} | "
            f"{statistics.median(found['flops']):.2f} | {told['memory']} |"
        )
    return "\n".join(lines) + "\n"


def _values(rows: list[Any], key: str, sizes: list[int], turn: int) -> list[float]:
    """Of one round, by size."""
    return [next(r[key] for r in rows if r["size"] == s and r["round"] == turn) for s in sizes]


def plot(rows: list[Any], path: Path) -> None:
    """Seconds over size in logarithms, an axis each, every round's point, with the line of slope 1 through the last."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, places = plt.subplots(2, 4, figsize=(12, 5.6), layout="constrained")
    for place, axis in zip(places.flat, axes, strict=False):
        mine = [row for row in rows if row["axis"] == axis]
        sizes = sorted({row["size"] for row in mine})
        middle = [statistics.median(r["seconds"] for r in mine if r["size"] == s) for s in sizes]
        place.loglog([r["size"] for r in mine], [r["seconds"] for r in mine], ".", color="#999999")
        place.loglog(sizes, middle, color="#1f5fa8")
        place.loglog(sizes, [middle[-1] * s / sizes[-1] for s in sizes], ":", color="#888888")
        place.set_xticks(sizes, [f"{s}" for s in sizes])
        place.minorticks_off()
        place.set_title(axis, fontsize=10)
        place.set_ylabel("seconds", fontsize=8)
    for place in list(places.flat)[len(axes) :]:
        place.axis("off")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="axes whose names begin so")
    parser.add_argument("--output", type=Path, default=Path("runs/growth"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    axes = {a: s for a, s in AXES.items() if not args.only or a.startswith(tuple(args.only))}
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(small(Path(folder, "20m")), dtype="float32")
        for axis, sizes in axes.items():
            point(base, axis, sizes[0])  # warms up
        rows = measure(base, axes, args.rounds, lambda line: print(line, flush=True))
    (args.output / "growth.json").write_text(json.dumps(rows, indent=1))
    (args.output / "growth.md").write_text(table(rows))
    plot(rows, args.output / "growth.svg")
    print(table(rows))


if __name__ == "__main__":
    main()

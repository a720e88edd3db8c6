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
import math
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
from kamerton.base.growth import Growth
from kamerton.base.work import flops
from kamerton.comparison.planning.allocations import Allocations
from kamerton.comparison.report import svg
from kamerton.files import write_text
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
        adapted = None
        gc.collect()  # as a comparison does before each cell
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
            found = point(base, axis, size)
            rows.append({"round": turn, "axis": axis, "size": size, **found})
            say(f"round {turn + 1}, {axis} {size}: {found['seconds']:.2f} s")
    return rows


def memory(base: Base, rows: list[Any], say: Callable[[str], None]) -> None:
    """Peak of all tensors but the base's weights for every point, watched once: it is the same each time."""
    weights = sum(p.numel() * p.element_size() for p in base.model.hf.parameters())
    for axis, size in dict.fromkeys((row["axis"], row["size"]) for row in rows):
        gc.collect()
        tensors = Allocations(Growth(), base.model.config.vocab_size)
        tensors.hold(base.model.hf)
        with tensors:
            point(base, axis, size)
        for row in rows:
            if (row["axis"], row["size"]) == (axis, size):
                row["memory"] = tensors.peak - weights
        say(f"{axis} {size}: {(tensors.peak - weights) / 2**20:.0f} MiB")


def slope(sizes: list[int], values: list[float]) -> float:
    """Of log value over log size, on the upper half."""
    half = len(sizes) // 2
    x, y = np.log(sizes[half - 1 :]), np.log(np.maximum(values[half - 1 :], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def table(rows: list[Any]) -> str:
    """Slopes by axis: of seconds (median and range over rounds), FLOPs and memory."""
    head = "sizes | seconds, least to most | slope of seconds | slope of FLOPs | MiB, least to most | slope of memory"
    lines = [f"| what grows | {head} |", "| --- | --- | --- | ---: | ---: | --- | ---: |"]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        mine = [row for row in rows if row["axis"] == axis]
        sizes = sorted({row["size"] for row in mine})
        turns = sorted({row["round"] for row in mine})
        found = {
            key: [slope(sizes, _values(mine, key, sizes, turn)) for turn in turns]
            for key in ("seconds", "flops", "memory")
        }
        middle = [statistics.median(r["seconds"] for r in mine if r["size"] == s) for s in sizes]
        middle_slope, least, most = statistics.median(found["seconds"]), min(found["seconds"]), max(found["seconds"])
        bytes_ = _values(mine, "memory", sizes, turns[0])
        lines.append(
            f"| {axis} | {sizes[0]} to {sizes[-1]} | {middle[0]:.2f} to {middle[-1]:.2f} | "
            f"{middle_slope:.2f} ({least:.2f}–{most:.2f}) | {statistics.median(found['flops']):.2f} | "
            f"{bytes_[0] / 2**20:.0f} to {bytes_[-1] / 2**20:.0f} | {statistics.median(found['memory']):.2f} |"
        )
    return "\n".join(lines) + "\n"


def _values(rows: list[Any], key: str, sizes: list[int], turn: int) -> list[float]:
    """Of one round, by size."""
    return [next(r[key] for r in rows if r["size"] == s and r["round"] == turn) for s in sizes]


STYLE = (
    "text{font:11px sans-serif;fill:#555}.name{font-weight:600;fill:#222}.grid{stroke:#ddd}.ideal{stroke:#999;"
    "stroke-dasharray:3 3}.curve{stroke:#1f5fa8;stroke-width:2;fill:none}.dot{fill:#1f5fa8;fill-opacity:.45}"
)


def plot(rows: list[Any], path: Path) -> None:
    """Seconds over size in logarithms, an axis each, every round's point, with the line of slope 1 through the last."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    parts, wide, high = [svg.tag("style", STYLE)], 230, 210
    for number, axis in enumerate(axes):
        left, top = (number % 4) * wide, (number // 4) * high
        parts.append(svg.tag("g", "".join(_panel(rows, axis)), transform=f"translate({left},{top})"))
    count = -(-len(axes) // 4)
    body = svg.tag("rect", width=4 * wide, height=count * high, fill="white") + "".join(parts)
    drawn = svg.tag("svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {4 * wide} {count * high}")
    write_text(path, drawn + "\n")


def _panel(rows: list[Any], axis: str) -> list[str]:
    mine = [row for row in rows if row["axis"] == axis]
    sizes = sorted({row["size"] for row in mine})
    middle = [statistics.median(r["seconds"] for r in mine if r["size"] == s) for s in sizes]
    span = math.log(sizes[-1] / sizes[0])
    x = lambda size: 42 + 170 * math.log(size / sizes[0]) / span  # noqa: E731
    low, top = min(r["seconds"] for r in mine) / 1.3, max(r["seconds"] for r in mine) * 1.2
    y = lambda value: 180 - 150 * math.log(max(value, low) / low) / math.log(top / low)  # noqa: E731
    parts = [svg.text(4, 16, axis, cls="name")]
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        if low <= tick <= top:
            parts += [svg.line(42, y(tick), 212, y(tick), "grid"), svg.text(4, y(tick) + 4, f"{tick:g} s")]
    parts += [svg.text(x(s), 197, f"{s}", text_anchor="middle") for s in sizes]
    parts.append(svg.line(x(sizes[0]), y(middle[-1] * sizes[0] / sizes[-1]), x(sizes[-1]), y(middle[-1]), "ideal"))
    ways = " ".join(f"{x(s):.1f},{y(m):.1f}" for s, m in zip(sizes, middle, strict=True))
    parts.append(svg.tag("polyline", points=ways, cls="curve"))
    return parts + [svg.tag("circle", cx=float(x(r["size"])), cy=float(y(r["seconds"])), r=3, cls="dot") for r in mine]


def main() -> None:
    """Measure, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="axes whose names begin so")
    parser.add_argument("--output", type=Path, default=Path("runs/growth"))
    parser.add_argument("--keep", action="store_true", help="take the seconds that are in the folder already")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    axes = {a: s for a, s in AXES.items() if not args.only or a.startswith(tuple(args.only))}
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(small(Path(folder, "20m")), dtype="float32")
        say = lambda line: print(line, flush=True)  # noqa: E731
        if args.keep:
            rows = json.loads((args.output / "growth.json").read_text())
        else:
            for axis, sizes in axes.items():
                point(base, axis, sizes[0])  # warms up
            rows = measure(base, axes, args.rounds, say)
        memory(base, rows, say)
    (args.output / "growth.json").write_text(json.dumps(rows, indent=1))
    (args.output / "growth.md").write_text(table(rows))
    plot(rows, args.output / "growth.svg")
    print(table(rows))


if __name__ == "__main__":
    main()

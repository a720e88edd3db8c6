"""Runs of the training loop that several test modules make: attach, train, crash, compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tiny
from kamerton.base import Base
from kamerton.objectives.supervised import Supervised
from kamerton.training import Budget, Progress, Result, Settings, fit
from kamerton.training.checkpoint import trained_weights
from kamerton.tuning import Tuned, get_parameterisation

KINDS = ("lora", "prompt-tuning", "prefix-tuning", "adapter", "full")
RATES = {"lora": 1e-2, "prompt-tuning": 3e-2, "prefix-tuning": 3e-2, "adapter": 1e-2, "full": 1e-2}
SETTINGS = Settings(learning_rate=1e-2, validations=5, patience=2, checkpoint_seconds=0.0, seed=3)
BUDGET = Budget(steps=10)


PRETRAINING = {"batch_size": 5, "validations": 3, "learning_rate": 0.01}


def pretraining_recipe(folder: Path, **more: Any) -> dict[str, Any]:
    """Six steps of a tiny model from nothing, on texts that are written into a folder."""
    lines = (" ".join(tiny.WORDS[(n * k) % 40] for k in range(1, 9)) for n in range(120))
    path = folder / "texts.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return {
        "model": {"preset": "llama", "width": 32, "depth": 2, "heads": 2}, "tokenizer": "bytes", "context": 32,
        "data": {"train": str(path), "held_out": 0.1, "documents": "paragraph"}, "budget": {"steps": 6},
        "training": PRETRAINING, **more,
    }  # fmt: skip


def attach(base: Base, kind: str) -> Tuned:
    parameterisation = get_parameterisation(kind)
    options = parameterisation.options(**({"tokens": 5, "init": "task"} if kind.endswith("-tuning") else {}))
    return parameterisation.attach(base, options, tiny.colour_task(), 0)


def objective(base: Base, **options: Any) -> Supervised:
    task = tiny.colour_task()
    return Supervised(base.renderer, task.train, task.validation, **{"batch_size": 8, "seed": 3, **options})


class Crash(Exception):
    """Stands for the end of the process: nothing is written after it."""


def run(
    base: Base, kind: str, folder: Path, *, crash: int | None = None, key: str = "k",
    changes: dict[str, Any] | None = None, budget: Budget = BUDGET, goal: Supervised | None = None,
    until: float = 1.0, stop_after: int | None = None,
) -> tuple[Tuned, Result]:  # fmt: skip
    """Train as a fresh process would; `crash` ends it after that step, before whatever follows the step."""
    tuned = attach(base, kind)

    def watch(progress: Progress) -> None:
        if crash is not None and progress.step >= crash:
            raise Crash

    how = replace(SETTINGS, learning_rate=RATES[kind], **(changes or {}))
    result = fit(
        tuned.model, tuned.module, goal or objective(base), how, budget, folder, key=key, until=until, watch=watch,
        stop_after=stop_after,
    )  # fmt: skip
    return tuned, result


def weights(tuned: Tuned) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained_weights(tuned.module).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(result: Result) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.state.curve]

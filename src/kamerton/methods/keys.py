"""What decides the weights of a fit, as one fingerprint: a checkpoint with another one is not resumed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kamerton.base.load import Base
from kamerton.methods import option_files
from kamerton.tasks.example import Task, fingerprint
from kamerton.training import Budget
from kamerton.tuning import Options


def fit_key(method: str, base: Base, task: Task, options: Options, budget: Budget, seed: int, **more: Any) -> str:
    """SHA-256 of the method with its options, the data, the base, the budget, the seed, and `more`."""
    return fingerprint({
        "method": method, "options": options.model_dump(), "seed": seed, "base": base.info.fingerprint,
        "renderer": base.renderer.fingerprint, "budget": asdict(budget), "task": task.fingerprint,
        **option_files(options.model_dump()), **more,
    })  # fmt: skip

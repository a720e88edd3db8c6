"""Zero-shot: the base as it is, asked with the task's instruction. The line that every other method has to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kamerton.base.load import Base
from kamerton.methods.method import Adapted, Run
from kamerton.tasks.example import Task
from kamerton.training import Budget
from kamerton.tuning.parameterisation import Options


class ZeroShotOptions(Options):
    """Zero-shot has no options."""


class ZeroShot:
    """The untouched base."""

    name = "zero-shot"
    summary = "the base as it is, with the task's instruction"
    trains = "nothing"
    paper = "Radford et al. 2019"
    options = ZeroShotOptions

    def seeded(self, options: ZeroShotOptions) -> bool:  # noqa: ARG002
        return False

    def fit(self, base: Base, task: Task, budget: Budget, options: ZeroShotOptions, run: Run) -> Adapted:  # noqa: ARG002
        return Adapted(base, base.model, method=self.name, options=options, max_batch_tokens=run.max_batch_tokens)

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:  # noqa: ARG002
        return Adapted(base, base.model, method=self.name, options=ZeroShotOptions())

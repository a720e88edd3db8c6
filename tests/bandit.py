"""A task whose best policy is known, and a small model that can begin to learn it: what the tests of GRPO and PPO share.

Every question names one of four things, and each thing has its colour. The model has been trained to answer any
question with one of the four colours, all of them equally likely, so it knows how to answer and not what: right
answers are a quarter at the start, and all of them under the best policy.

PYTEST_DONT_REWRITE: the module asserts nothing, and is imported before it is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.objectives import get_objective
from kamerton.objectives.supervised import Supervised
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget, Result, fit
from kamerton.training.loop import Settings
from kamerton.tuning import get_parameterisation

THINGS = {"apple": "red", "river": "blue", "stone": "white", "cloud": "green"}
OTHERS = ("of", "in", "market")
START = 0.25
"""Chance of the right answer at the start."""


def _example(thing: str, other: str, answer: str, number: int) -> Example:
    return Example(f"{thing}-{other}-{number}", conversation([("user", f"{other} {thing}")]), (answer,))


def task() -> Task:
    """Twelve questions."""
    right = tuple(_example(t, o, c, i) for i, (t, c) in enumerate(THINGS.items()) for o in OTHERS)
    return Task("things", right, right[::3], right[::3], ("exact-match",), max_answer_tokens=4)


@pytest.fixture(scope="session")
def bandit_base(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny model after it has learned to answer with any colour; tests must not change it."""
    folder = tmp_path_factory.mktemp("bandit")
    known = [_example(t, o, c, i) for i, t in enumerate(THINGS) for o in OTHERS for c in tiny.COLOURS]
    tuned = attach(small_base, "full")
    objective = Supervised(small_base.renderer, known, (), batch_size=24, max_tokens=4096)
    settings = Settings(learning_rate=3e-3, validations=1)
    fit(tuned.model, tuned.module, objective, settings, Budget(steps=150), folder / "fit")
    tuned.model.hf.save_pretrained(folder / "base", safe_serialization=True)
    small_base.renderer.tokenizer.save_pretrained(folder / "base")
    return load_base(folder / "base", dtype="float32", device="cpu")


def attach(base: Base, kind: str = "full", **options: Any) -> Any:
    parameterisation = get_parameterisation(kind)
    return parameterisation.attach(base, parameterisation.options(**options), task(), 0)


class Right:
    """1 for the right colour; `also` is what other answers get."""

    name, range = "right", (0.0, 1.0)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        return np.array([float(a == e.answers[0]) for e, a in zip(examples, answers, strict=True)])


def started(
    base: Base, name: str, kind: str = "full", reward: Any = None, data: Task | None = None, **options: Any
) -> Any:
    """An objective at its start, and what it trains."""
    objective_kind, tuned = get_objective(name), attach(base, kind)
    stage = objective_kind.options(**options)
    objective = objective_kind(base, data or task(), stage, reward or Right(), seed=0)
    objective.begin(tuned.model, tuned.module)
    return objective, tuned


def train(
    objective: Any, tuned: Any, folder: Path, *, steps: int, rate: float, stop_after: int | None = None, **more: Any
) -> Result:
    """The loop, with the objective's own network where it has one."""
    extra = getattr(objective, "extra", None)
    module = tuned.module if extra is None else torch.nn.ModuleDict({"model": tuned.module, "extra": extra})
    for parameter in extra.parameters() if extra is not None else ():
        parameter.rate = extra.learning_rate / rate
    settings = Settings(learning_rate=rate, **{"validations": 1, "floor": 0.3, **more})
    return fit(tuned.model, module, objective, settings, Budget(steps=steps), folder, stop_after=stop_after)


@torch.no_grad()
def chances(base: Base, model: Any) -> torch.Tensor:
    """(12, 4) probabilities of each colour as the answer to each question."""
    tokens = [base.renderer.answer(c)[0] for c in tiny.COLOURS]
    prompts = [base.renderer.prompt(e.messages) for e in task().train]
    return model.output(model.next_hidden(prompts)).softmax(-1)[:, tokens]


def right(base: Base, model: Any) -> float:
    """Mean chance that an answer begins with the right colour."""
    table = chances(base, model)
    return float(np.mean([table[i, tiny.COLOURS.index(e.answers[0])] for i, e in enumerate(task().train)]))

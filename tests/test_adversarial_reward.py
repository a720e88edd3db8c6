"""A discriminator as the only reward: what references look like is learned, and the verifier is never asked.

The task is that of `bandit.py` with more questions, and the model has learned to repeat the thing that a question names
when it ends in "the". So what it reads holds the thing, which a discriminator of frozen features needs: on the model of
`bandit.py`, whose features have lost it, this reward teaches nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bandit
import tiny
from bandit import THINGS, attach, started
from kamerton.base import Base, load_base
from kamerton.objectives.supervised import Supervised
from kamerton.rewards import build_reward
from kamerton.rewards.discriminator import CrossFitted
from kamerton.tasks.example import Task
from kamerton.training import Budget, fit
from kamerton.training.loop import Settings

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = [w for w in tiny.WORDS if w not in THINGS and w not in tiny.COLOURS][:24]
RUNS: dict[str, tuple[dict[str, Any], float, int]] = {
    "grpo": ({"queries": 24, "group": 8, "kl": 0.05}, 2e-3, 200),
    "ppo": ({"queries": 192, "epochs": 2, "minibatches": 2, "kl": 0.005, "value_rate": 3e-3}, 1e-3, 250),
}
"""Options, learning rate, steps."""


def task() -> Task:
    """Ninety-six questions."""
    right = tuple(bandit._example(t, o, c, 0) for t, c in THINGS.items() for o in OTHERS)
    return Task("things", right, right[::8], right[::8], ("exact-match",), max_answer_tokens=4)


@pytest.fixture(scope="module")
def reader(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny model after it has learned to answer with any colour, and to repeat the thing where it is asked to."""
    folder = tmp_path_factory.mktemp("reader")
    known = [bandit._example(t, o, c, i) for i, t in enumerate(THINGS) for o in OTHERS[:8] for c in tiny.COLOURS]
    repeated = [bandit._example(t, f"{o} the", t, i) for t in THINGS for o in OTHERS for i in range(2)]
    tuned = attach(small_base, "full")
    objective = Supervised(small_base.renderer, known + repeated, (), batch_size=32, max_tokens=4096)
    settings = Settings(learning_rate=3e-3, validations=1)
    fit(tuned.model, tuned.module, objective, settings, Budget(steps=300), folder / "fit")
    tuned.model.hf.save_pretrained(folder / "base", safe_serialization=True)
    small_base.renderer.tokenizer.save_pretrained(folder / "base")
    return load_base(folder / "base", dtype="float32", device="cpu")


@torch.no_grad()
def right(base: Base, model: Any) -> float:
    """Mean chance that an answer begins with the right colour."""
    tokens = [base.renderer.answer(c)[0] for c in tiny.COLOURS]
    data = task().train
    table = model.output(model.next_hidden([base.renderer.prompt(e.messages) for e in data])).softmax(-1)[:, tokens]
    return float(np.mean([table[i, tiny.COLOURS.index(e.answers[0])] for i, e in enumerate(data)]))


def learned(base: Base, folder: Path, name: str, steps: int | None = None, **spec: Any) -> tuple[float, Any]:
    """How often the answer is right in the end, and the reward."""
    options, rate, whole = RUNS[name]
    data = task()
    reward: Any = build_reward({"discriminator": {"rate": 0.03, "steps": 8, **spec}}, base, data)
    objective, tuned = started(base, name, "full", reward=reward, data=data, **options)
    assert right(base, tuned.model) == pytest.approx(0.25, abs=0.03)
    bandit.train(objective, tuned, folder, steps=steps or whole, rate=rate)
    return right(base, tuned.model), reward


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_learns_what_references_look_like(reader: Base, tmp_path: Path, name: str) -> None:
    """From a quarter to above 0.9 of the attainable; and then nobody can tell answers and references apart."""
    reached, reward = learned(reader, tmp_path, name)
    assert reached > 0.9
    assert reward.judges.control.held_out < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_with_real_and_said_turned_round_it_does_not(
    reader: Base, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = CrossFitted.tokens
    monkeypatch.setattr(CrossFitted, "tokens", lambda self, *given: -own(self, *given))
    reached, _ = learned(reader, tmp_path, name, steps=60)
    assert reached < 0.4

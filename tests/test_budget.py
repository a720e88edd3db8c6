"""What the training loop refuses, where it ends, and its schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from kamerton.base import Base
from kamerton.base.model import CausalModel
from kamerton.errors import BudgetError, KamertonError, TaskError
from kamerton.objectives.supervised import Supervised
from kamerton.rendering import Rendered, Renderer
from kamerton.training import Budget, fit
from kamerton.training.batches import Batch
from kamerton.training.checkpoint import checkpoints
from kamerton.training.objective import Loss
from training_runs import BUDGET, RATES, SETTINGS, attach, objective, run, same, weights

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


# -- refusals -------------------------------------------------------------------------------------------------------


class Masking(Renderer):
    """A renderer that loses the mask of every third example."""

    seen = 0

    def example(self, *args: Any, **options: Any) -> Rendered:
        made = super().example(*args, **options)
        self.seen += 1
        return made if self.seen % 3 else replace(made, weights=(0.0,) * len(made.tokens))


def test_no_token_that_carries_loss_is_refused(small_base: Base) -> None:
    task = tiny.colour_task()
    with pytest.raises(
        TaskError, match=r"16 of 48 training examples have no token that carries loss \(first: colour-2"
    ):
        Supervised(Masking(small_base.renderer.tokenizer), task.train, task.validation)
    with pytest.raises(KamertonError, match="longer than 1 tokens"):
        objective(small_base, limit=1)
    with pytest.raises(TaskError, match="no training examples"):
        Supervised(small_base.renderer, (), ())


def test_the_end_token_carries_loss_though_it_is_the_padding(small_base: Base) -> None:
    assert small_base.renderer.tokenizer.pad_token_id == small_base.renderer.end_id
    for batch in objective(small_base).batches(0, None):  # type: ignore[arg-type]
        assert int((batch.targets == small_base.renderer.end_id).sum()) == batch.examples


def test_cut_examples_are_counted(small_base: Base) -> None:
    lengths = [len(small_base.renderer.example(e.messages, e.answers[0]).tokens) for e in tiny.colour_task().train]
    limit = sorted(lengths)[len(lengths) // 2]
    goal = objective(small_base, limit=limit)
    longer = sum(n > limit for n in lengths)
    assert 0 < longer < len(lengths)
    assert goal.notes[0] == f"{longer} of {len(lengths)} training examples were cut to {limit} tokens"
    assert all(b.tokens <= limit * b.examples for b in goal.batches(0, None))  # type: ignore[arg-type]


def test_no_budget_and_nothing_to_train_are_refused(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="no limit"):
        run(small_base, "lora", tmp_path, budget=Budget())
    tuned = attach(small_base, "lora")
    tuned.module.requires_grad_(False)
    with pytest.raises(BudgetError, match="nothing to train"):
        fit(tuned.model, tuned.module, objective(small_base), SETTINGS, BUDGET, tmp_path)
    for name in ("examples", "tokens", "steps", "seconds", "epochs"):
        with pytest.raises(BudgetError, match=f"{name} must be positive"):
            Budget(**{name: -1})
        with pytest.raises(BudgetError, match="positive"):
            Budget(**{name: 0})


class Poisoned(Supervised):
    """Loses its numbers from some step on."""

    step = 0
    bad = 4

    def batches(self, step: int, model: CausalModel) -> Sequence[Batch]:
        self.step = step
        return super().batches(step, model)

    def loss(self, model: CausalModel, batch: Batch) -> Loss:
        loss = super().loss(model, batch)
        return Loss(loss.total * math.nan) if self.step >= self.bad and torch.is_grad_enabled() else loss


def test_a_loss_that_is_no_number_is_one_line_and_keeps_the_good_weights(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    goal = Poisoned(small_base.renderer, task.train, task.validation, batch_size=8, seed=3)
    with pytest.raises(KamertonError, match="not a number at step 4") as caught:
        run(small_base, "lora", tmp_path, goal=goal)
    line = str(caught.value)
    assert "\n" not in line
    assert "lower the learning rate" in line
    assert "best.safetensors" in line
    kept = load_file(tmp_path / "best.safetensors")
    assert all(bool(v.isfinite().all()) for v in kept.values())
    for checkpoint in checkpoints(tmp_path):
        assert all(bool(v.isfinite().all()) for v in load_file(checkpoint / "weights.safetensors").values())


@pytest.mark.parametrize("rate", [1e20, math.inf])
def test_a_rate_that_explodes_is_one_line(small_base: Base, tmp_path: Path, rate: float) -> None:
    tuned = attach(small_base, "lora")
    with pytest.raises(KamertonError, match="not a number at step") as caught:
        fit(tuned.model, tuned.module, objective(small_base), replace(SETTINGS, learning_rate=rate), BUDGET, tmp_path)
    assert "\n" not in str(caught.value)


# -- budget and schedule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget(steps=4), lambda s: (s.step, 4, 1)),
        (Budget(tokens=700), lambda s: (s.tokens, 700, 400)),
        (Budget(examples=30), lambda s: (s.examples, 30, 8)),
        (Budget(epochs=1.5), lambda s: (s.examples, 72, 8)),
        (Budget(steps=50, tokens=700), lambda s: (s.tokens, 700, 400)),
    ],
    ids=lambda value: str(value).replace(" ", "-") if isinstance(value, Budget) else "",
)
def test_a_run_ends_at_its_budget(small_base: Base, tmp_path: Path, budget: Budget, spent: Any) -> None:
    _, result = run(small_base, "lora", tmp_path, budget=budget, changes={"patience": 99})
    used, limit, step = spent(result.state)
    assert limit <= used < limit + step, "to the limit, and over it by less than a step"
    rates = [row["learning_rate"] for row in result.state.curve]
    assert min(rates[1:]) == rates[-1] < 0.5 * RATES["lora"], "the schedule spans the budget"
    assert result.finished


def test_a_run_ends_at_its_seconds(small_base: Base, tmp_path: Path) -> None:
    start = time.perf_counter()
    _, result = run(small_base, "lora", tmp_path, budget=Budget(seconds=1.0), changes={"patience": 10_000})
    assert 1.0 <= result.state.seconds < 5
    assert time.perf_counter() - start < 15
    assert result.state.curve[-1]["learning_rate"] < 0.3 * RATES["lora"]
    again = time.perf_counter()
    _, more = run(small_base, "lora", tmp_path, budget=Budget(seconds=1.0), changes={"patience": 10_000})
    assert more.state.step == result.state.step, "seconds that were spent before a stop count"
    assert time.perf_counter() - again < 10


def test_the_schedule_is_warm_up_and_half_a_cosine(small_base: Base, tmp_path: Path) -> None:
    _, result = run(
        small_base, "lora", tmp_path, budget=Budget(steps=20),
        changes={"warmup": 0.25, "floor": 0.1, "patience": 99},
    )  # fmt: skip
    for row in result.state.curve:
        share = (row["step"] - 1) / 20
        if share < 0.25:
            expected = max(share / 0.25, 0.05)
        else:
            expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (share - 0.25) / 0.75)) / 2
        assert row["learning_rate"] == pytest.approx(RATES["lora"] * expected)


def test_a_pause_keeps_the_schedule_of_the_whole_budget(small_base: Base, tmp_path: Path) -> None:
    trained, straight = run(small_base, "lora", tmp_path / "straight")
    _, part = run(small_base, "lora", tmp_path, until=0.4)
    assert (part.state.step, part.finished) == (4, False)
    assert "validation_loss" in part.state.curve[-1]
    tuned, whole = run(small_base, "lora", tmp_path)
    assert [r["learning_rate"] for r in whole.state.curve] == [r["learning_rate"] for r in straight.state.curve]
    assert same(weights(tuned), weights(trained))


def test_clipping_bounds_the_gradient(small_base: Base, tmp_path: Path) -> None:
    """With a tiny bound AdamW still steps by its rate; so what is shown is that the norm before clipping is reported
    and that a bound above it changes nothing."""
    _, free = run(small_base, "lora", tmp_path / "free", budget=Budget(steps=2), changes={"clip": 1e9})
    norm = free.state.curve[0]["gradient_norm"]
    first, _ = run(small_base, "lora", tmp_path / "a", budget=Budget(steps=2), changes={"clip": 1e9})
    above, _ = run(small_base, "lora", tmp_path / "b", budget=Budget(steps=2), changes={"clip": 100 * norm})
    below, cut = run(small_base, "lora", tmp_path / "c", budget=Budget(steps=2), changes={"clip": norm * 1e-9})
    assert same(weights(first), weights(above))
    assert not same(weights(first), weights(below))
    assert cut.state.curve[0]["gradient_norm"] == pytest.approx(norm)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 1.0), st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_scaled_budget(factor: float, tokens: int, examples: int) -> None:
    part = Budget(tokens=tokens, examples=examples, seconds=10.0, epochs=3).scaled(factor)
    assert part.steps is None
    assert part.tokens == max(1, round(tokens * factor))
    assert part.examples == max(1, round(examples * factor))
    assert part.seconds == pytest.approx(10 * factor)
    assert part.epochs == pytest.approx(3 * factor)

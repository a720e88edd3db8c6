"""The training loop: accumulation, resuming to the bit, damaged checkpoints, refusals, budgets, the schedule."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from kamerton.base import Base
from kamerton.objectives.supervised import Supervised
from kamerton.training import Budget, Result, fit
from kamerton.training.batches import Batch, common_prefix, make_batch, microbatches, order
from kamerton.training.checkpoint import checkpoints, trained_weights
from kamerton.tuning import Tuned, get_parameterisation
from training_runs import BUDGET, KINDS, RATES, SETTINGS, Crash, attach, history, objective, run, same, weights

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def straight(
    small_base: Base, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, torch.Tensor], Result]]:
    """Each parameterisation trained without interruption."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = {}
    for kind in KINDS:
        tuned, result = run(small_base, kind, tmp_path_factory.mktemp("straight") / kind)
        out[kind] = weights(tuned), result
    torch.set_num_threads(before)
    return out


# -- batches --------------------------------------------------------------------------------------------------------


def test_every_pass_shows_every_example_once_in_another_order() -> None:
    size, batch = 23, 5
    seen = [i for step in range(23) for i in order(step, batch, size, seed=1)]
    passes = [seen[n : n + size] for n in range(0, len(seen), size)]
    assert all(sorted(p) == list(range(size)) for p in passes)
    assert len({tuple(p) for p in passes}) == len(passes)
    assert order(3, batch, size, 1) != order(3, batch, size, 2)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_common_prefix(rows: list[list[int]]) -> None:
    n = common_prefix(rows)
    assert all(row[:n] == rows[0][:n] for row in rows)

    def alike(column: tuple[int, ...]) -> bool:
        return len(set(column)) == 1

    # every row keeps a token of its own, and one row alone shares with nobody
    longest = min(list(accumulate(map(alike, zip(*rows, strict=False)), min)).count(True), min(map(len, rows)) - 1)
    assert n == (longest if len(rows) > 1 else 0)


def test_a_batch_holds_every_target_once_whatever_is_shared(small_base: Base) -> None:
    rendered = [small_base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train]
    for share in (True, False):
        for size in (60, 200, 10_000):
            batches = microbatches(rendered, size, share=share)
            targets = sorted(int(t) for b in batches for t in b.targets)
            assert targets == sorted(t for r in rendered for t, w in zip(r.tokens, r.weights, strict=True) if w)
            assert sum(b.tokens for b in batches) == sum(len(r.tokens) for r in rendered)
            assert sum(b.examples for b in batches) == len(rendered)
            assert all(b.tokens <= size or b.examples == 1 for b in batches)
            for b in batches:
                flat = [t for row in b.rows for t in row]
                starts = np.cumsum([0, *map(len, b.rows)])
                for place, target in zip(b.positions, b.targets, strict=True):
                    assert place + 1 not in starts  # the token after it is of the same row
                    assert flat[place + 1] == target
    assert len(make_batch(rendered).prefix) > 10, "all questions begin with the same instruction"


# -- accumulation ---------------------------------------------------------------------------------------------------


def gradient(
    base: Base, kind: str, batches: Sequence[Batch], goal: Supervised
) -> tuple[float, dict[str, torch.Tensor]]:
    tuned = attach(base, kind)
    if kind == "lora":
        stir(tuned)
    total = sum(goal.loss(tuned.model, b).total for b in batches) / sum(b.count for b in batches)
    assert isinstance(total, torch.Tensor)
    total.backward()
    return float(total.detach()), {n: p.grad for n, p in tuned.module.named_parameters() if p.grad is not None}


def stir(tuned: Tuned) -> None:
    """LoRA's B away from zero, so that A has a gradient too."""
    generator = torch.Generator().manual_seed(1)
    for value in trained_weights(tuned.module).values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_and_microbatches_leave_the_gradient(small_base: Base, kind: str) -> None:
    plain = objective(small_base)
    batches = plain.batches(0, None)  # type: ignore[arg-type]
    assert len(batches) == 1
    loss, expected = gradient(small_base, kind, batches, plain)
    for options in ({"accumulation": 2}, {"accumulation": 4}, {"max_tokens": 90}, {"max_tokens": 1}):
        goal = objective(small_base, **options)
        cut = goal.batches(0, None)  # type: ignore[arg-type]
        assert len(cut) >= options.get("accumulation", 3)
        assert len({b.count for b in cut}) > 1, "unequal parts: a mean of means would differ"
        value, found = gradient(small_base, kind, cut, goal)
        assert value == pytest.approx(loss, abs=1e-5)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_gives_the_same_weights_whatever_the_accumulation(small_base: Base, kind: str, tmp_path: Path) -> None:
    found = []
    for i, options in enumerate(({}, {"accumulation": 2}, {"accumulation": 4}, {"max_tokens": 90})):
        # a rate as in practice: AdamW divides by the gradient's size, so rounding in tiny gradients is magnified
        tuned, result = run(
            small_base, kind, tmp_path / str(i), budget=Budget(steps=3), goal=objective(small_base, **options)
        )
        found.append((weights(tuned), history(result)))
    for values, curve in found[1:]:
        for row, first in zip(curve, found[0][1], strict=True):
            assert row["loss"] == pytest.approx(first["loss"], abs=2e-5)
            assert row["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=1e-4)
            assert row["tokens"] == first["tokens"]
        for name, value in values.items():
            start = found[0][0][name]
            assert float((value - start).abs().mean()) < 1e-3 * RATES[kind] * 3, name


def test_the_loss_of_a_step_is_the_mean_over_targets(small_base: Base, tmp_path: Path) -> None:
    """Against log-probabilities of the untouched base, one example at a time."""
    goal = objective(small_base, accumulation=3)
    _, result = run(small_base, "lora", tmp_path, budget=Budget(steps=1), goal=goal)
    task = tiny.colour_task()
    total, count = 0.0, 0
    for i in order(0, 8, len(task.train), 3):
        r = small_base.renderer.example(task.train[i].messages, task.train[i].answers[0])
        with torch.no_grad():
            log = small_base.model.hf(torch.tensor([r.tokens])).logits[0].log_softmax(-1)
        for place, (token, weight) in enumerate(zip(r.tokens, r.weights, strict=True)):
            if weight:
                total -= float(log[place - 1, token])
                count += 1
    assert result.state.curve[0]["loss"] == pytest.approx(total / count, abs=1e-5)


# -- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_undisturbed_run_is_repeatable_and_learns(
    small_base: Base, straight: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    expected, first = straight[kind]
    tuned, result = run(small_base, kind, tmp_path)
    assert same(weights(tuned), expected)
    assert history(result) == history(first)
    assert first.state.curve[-1]["loss"] < first.state.curve[0]["loss"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 5, 9])
def test_stopped_and_resumed_ends_with_the_same_bits(
    small_base: Base, straight: dict[str, Any], kind: str, stop: int, tmp_path: Path
) -> None:
    expected, first = straight[kind]
    _, paused = run(small_base, kind, tmp_path, stop_after=stop)
    assert not paused.finished
    assert paused.state.step == stop
    tuned, result = run(small_base, kind, tmp_path)
    assert result.finished
    assert same(weights(tuned), expected)
    assert history(result) == history(first)
    assert result.state.work == first.state.work
    assert (result.state.best_step, result.state.best_loss) == (first.state.best_step, first.state.best_loss)


def test_dropout_draws_the_same_after_a_resume(small_base: Base, tmp_path: Path) -> None:
    """What is random in a step is seeded by the step, so there is no random state to lose."""

    def go(folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        parameterisation = get_parameterisation("lora")
        tuned = parameterisation.attach(small_base, parameterisation.options(dropout=0.3), tiny.colour_task(), 0)
        torch.manual_seed(random.randrange(10**6))  # whatever ran before in this process
        fit(tuned.model, tuned.module, objective(small_base), SETTINGS, Budget(steps=6), folder, stop_after=stop_after)
        return weights(tuned)

    expected = go(tmp_path / "straight")
    go(tmp_path / "stopped", stop_after=3)
    assert same(go(tmp_path / "stopped"), expected)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), crashes=st.lists(st.integers(1, 10), min_size=1, max_size=4), data=st.data())
def test_killed_anywhere_any_number_of_times(
    small_base: Base, straight: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, kind: str, crashes: list[int],
    data: st.DataObject,
) -> None:  # fmt: skip
    """The process ends after a step and before the checkpoint that may follow; half-written ones are left behind."""
    folder = tmp_path_factory.mktemp("crash")
    for crash in crashes:
        try:
            run(small_base, kind, folder, crash=crash)
        except Crash:
            left = folder / ".partial-1-step-000999"
            left.mkdir(exist_ok=True)
            (left / "weights.safetensors").write_bytes(b"half")
            if data.draw(st.booleans()) and (newest := checkpoints(folder)):
                shutil.rmtree(newest[0])  # as if it had not been reached
    tuned, result = run(small_base, kind, folder)
    expected, first = straight[kind]
    assert same(weights(tuned), expected)
    assert history(result) == history(first)


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_early_stopping_survives_a_resume(small_base: Base, tmp_path: Path, stop: int) -> None:
    """Few examples, and their answers are wrong: validation loss falls while the form is learned, and rises after."""
    changes = {"learning_rate": 0.05, "validations": 40, "patience": 4}
    budget = Budget(steps=40)
    task = tiny.colour_task()
    wrong = dict(zip(tiny.COLOURS, tiny.COLOURS[1:] + tiny.COLOURS[:1], strict=True))
    train = [replace(e, answers=(wrong[e.answers[0]],)) for e in task.train[:8]]

    def go(folder: Path, **options: Any) -> tuple[Tuned, Result]:
        tuned = attach(small_base, "lora")
        how = replace(SETTINGS, **changes)
        goal = Supervised(small_base.renderer, train, task.validation, batch_size=8)
        return tuned, fit(tuned.model, tuned.module, goal, how, budget, folder, **options)

    tuned, result = go(tmp_path / "straight")
    assert result.state.stopped_early
    assert result.state.step < 40
    assert result.state.best_step < result.state.step
    assert any("stopped early" in note for note in result.notes)
    best = load_file(tmp_path / "straight" / "best.safetensors")
    assert same(weights(tuned), best), "the best weights are kept, not the last"
    losses = [row["validation_loss"] for row in result.state.curve]
    assert losses[result.state.best_step - 1] == min(losses) == result.validation_loss
    go(tmp_path / "stopped", stop_after=stop)
    resumed, again = go(tmp_path / "stopped")
    assert same(weights(resumed), weights(tuned))
    assert history(again) == history(result)
    finished, third = go(tmp_path / "stopped")  # once more on a finished run
    assert same(weights(finished), weights(tuned))
    assert history(third) == history(result)


def test_the_kept_weights_have_the_kept_loss(small_base: Base, tmp_path: Path) -> None:
    tuned, result = run(small_base, "lora", tmp_path)
    held_out = objective(small_base).validation()
    with torch.no_grad():
        total = sum(float(objective(small_base).loss(tuned.model, b).total) for b in held_out)
    assert total / sum(b.count for b in held_out) == pytest.approx(result.validation_loss, abs=1e-6)


# -- checkpoints ----------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "weights flipped": lambda f: flip(f / "weights.safetensors"),
    "weights cut": lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:-9]),
    "optimiser flipped": lambda f: flip(f / "optimiser.safetensors"),
    "optimiser gone": lambda f: (f / "optimiser.safetensors").unlink(),
    "state cut": lambda f: (f / "state.json").write_text((f / "state.json").read_text()[:-5]),
    "state of another shape": lambda f: (f / "state.json").write_text("[1]"),
    "optimiser of another model": lambda f: swap_optimiser(f),
}


def swap_optimiser(folder: Path) -> None:
    """Whole by its checksum, and yet of another model."""
    from hashlib import sha256

    save_file({"exp_avg/nothing": torch.zeros(1)}, folder / "optimiser.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["checksums"]["optimiser.safetensors"] = sha256((folder / "optimiser.safetensors").read_bytes()).hexdigest()
    state.pop("checksum")
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=[name.replace(" ", "-") for name in DAMAGE])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    small_base: Base, straight: dict[str, Any], damage: Any, both: bool, tmp_path: Path
) -> None:
    run(small_base, "lora", tmp_path, stop_after=3)
    run(small_base, "lora", tmp_path, stop_after=6)
    kept = checkpoints(tmp_path)
    assert [p.name for p in kept] == ["step-000006", kept[1].name]
    assert len(kept) == 2
    for folder in kept if both else kept[:1]:
        damage(folder)
    steps = []
    tuned = attach(small_base, "lora")
    how = replace(SETTINGS, learning_rate=RATES["lora"])
    result = fit(
        tuned.model, tuned.module, objective(small_base), how, BUDGET, tmp_path, key="k",
        watch=lambda p: steps.append(p.step),
    )  # fmt: skip
    assert steps[0] == (1 if both else int(kept[1].name[5:]) + 1)
    assert len([n for n in result.notes if "damaged" in n]) == (2 if both else 1), result.notes
    assert all("\n" not in note for note in result.notes)
    assert same(weights(tuned), straight["lora"][0]), "nothing of the damaged checkpoint is left in the model"


def test_a_checkpoint_of_another_run_is_not_used(small_base: Base, straight: dict[str, Any], tmp_path: Path) -> None:
    run(small_base, "lora", tmp_path, stop_after=4, key="another", changes={"weight_decay": 0.5})
    tuned, result = run(small_base, "lora", tmp_path)
    assert same(weights(tuned), straight["lora"][0])
    assert history(result) == history(straight["lora"][1])


def test_checkpoints_are_safetensors_and_few(small_base: Base, tmp_path: Path) -> None:
    run(small_base, "lora", tmp_path)
    assert len(checkpoints(tmp_path)) == 2
    suffixes = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert suffixes == {".safetensors", ".json"}
    assert not list(tmp_path.glob(".partial-*"))

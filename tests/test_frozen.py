"""Frozen lower layers: with their outputs replayed everything is as without, over many architectures; bounds and costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import architectures
import tiny
from kamerton.base import Base, load_base
from kamerton.base.frozen import FrozenLayers, decoder_layers
from kamerton.base.work import flops
from kamerton.errors import RecipeError
from kamerton.objectives.supervised import Supervised
from kamerton.training import Budget, Settings
from kamerton.training import fit as train
from kamerton.training.checkpoint import trained_weights
from kamerton.tuning import Tuned
from kamerton.tuning.full import Full, FullOptions
from test_costs import counted
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

TASK = tiny.colour_task(12, 6, 2)


def attach(base: Base, count: int, *, cached: bool = True, limit: int | None = None) -> Tuned:
    tuned = Full.attach(base, FullOptions(freeze_layers=count), TASK, 0)
    assert tuned.model.frozen is not None
    tuned.model.frozen = FrozenLayers(tuned.model.hf, count, limit) if cached else None
    return tuned


def goal(base: Base, **options: Any) -> Supervised:
    return Supervised(base.renderer, TASK.train, TASK.validation, **{"batch_size": 5, "seed": 3, **options})


def gradient(tuned: Tuned, objective: Supervised, step: int) -> tuple[float, dict[str, torch.Tensor]]:
    tuned.module.zero_grad(set_to_none=True)
    loss = torch.zeros(())
    for batch in objective.batches(step, tuned.model):
        loss = loss + objective.loss(tuned.model, batch).total
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in tuned.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_loss_and_gradient_are_those_of_the_whole_model(tiny_base: Callable[[str], Base], name: str) -> None:
    """Scaled embeddings, added positions, sliding windows, biases: whatever stands around the layers stays."""
    base = tiny_base(name)
    objective, plain, cached = goal(base), attach(base, 2, cached=False), attach(base, 2)
    cached.module.train()  # dropout would show here
    frozen = cached.model.frozen
    assert frozen is not None
    for step in range(4):  # 12 examples, 5 a step: all known from the third step on, in other company each time
        expected_loss, expected = gradient(plain, objective, step)
        loss, found = gradient(cached, objective, step)
        assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-4)
        assert found.keys() == expected.keys()
        for key, grad in expected.items():
            torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-4 * max(1.0, float(grad.abs().max())))
    assert frozen.computed == len(TASK.train)
    assert frozen.replayed == 4 * 5 - len(TASK.train)


def test_the_comparison_can_fail(tiny_base: Callable[[str], Base]) -> None:
    """Planted: one text gets the states of another one of its length."""
    base = tiny_base("llama")
    objective, plain, cached = goal(base, batch_size=12), attach(base, 2, cached=False), attach(base, 2)
    gradient(cached, objective, 0)
    assert gradient(cached, objective, 1)[0] == pytest.approx(gradient(plain, objective, 1)[0], rel=1e-5)
    states = cached.model.frozen._states  # type: ignore[union-attr]
    one = next(iter(states))
    other = min((key for key in states if key != one), key=lambda key: abs(len(key) - len(one)))
    states[one] = states[other][torch.arange(len(one)).clamp(max=len(other) - 1)]
    assert gradient(cached, objective, 1)[0] != pytest.approx(gradient(plain, objective, 1)[0], rel=1e-3)


@pytest.mark.parametrize("limit", [None, 20_000, 0], ids=["all", "some", "none"])
def test_a_run_ends_with_the_same_weights(tiny_base: Callable[[str], Base], limit: int | None, tmp_path: Path) -> None:
    """Also where only some, or none, of the states have room."""
    base = tiny_base("gemma2")
    settings = Settings(learning_rate=1e-3, validations=4, patience=9, seed=1)
    ends, curves = [], []
    for cached in (False, True):
        tuned = attach(base, 2, cached=cached, limit=limit)
        result = train(tuned.model, tuned.module, goal(base), settings, Budget(steps=9), tmp_path / str(cached))
        ends.append({n: w.clone() for n, w in trained_weights(tuned.module).items()})
        curves.append([(row["loss"], row.get("validation_loss")) for row in result.state.curve])
    for (loss, held_out), (expected, expected_held_out) in zip(*curves, strict=True):
        assert loss == pytest.approx(expected, rel=1e-4)
        assert (held_out is None) == (expected_held_out is None)
        assert held_out is None or held_out == pytest.approx(expected_held_out, rel=1e-4)
    start = trained_weights(attach(base, 2).module)
    for name, weight in ends[0].items():
        moved = float((weight - start[name]).abs().max())
        assert float((ends[1][name] - weight).abs().max()) <= 0.02 * moved, name
    frozen = tuned.model.frozen
    assert frozen is not None
    texts = len(TASK.train) + len(TASK.validation)
    assert frozen.bytes <= frozen.limit
    if limit is None:
        assert frozen.computed == texts
        assert frozen.note() is None
    else:
        assert frozen.computed > texts
        kept = texts - int(frozen.note().split()[5])  # type: ignore[union-attr]
        assert (kept > 0) == (limit > 0)
        assert f"of {texts} texts did not fit" in str(frozen.note())


def test_what_is_frozen_stays_and_the_rest_moves(tiny_base: Callable[[str], Base]) -> None:
    for name in ("llama", "llama-tied", "gpt2"):
        tuned = attach(tiny_base(name), 1)
        layers = decoder_layers(tuned.model.hf)
        assert layers is not None
        trained = {id(p) for p in tuned.module.parameters() if p.requires_grad}
        assert not trained & {id(p) for p in layers[0].parameters()}
        assert {id(p) for layer in list(layers)[1:] for p in layer.parameters()} <= trained
        embeddings = [m for m in tuned.module.modules() if isinstance(m, torch.nn.Embedding)]
        assert not trained & {id(m.weight) for m in embeddings}
        assert (id(tuned.model.hf.get_output_embeddings().weight) in trained) == (name == "llama")


def test_more_layers_than_there_are(small_base: Base) -> None:
    with pytest.raises(RecipeError, match=r"full.freeze_layers: 2 of 2 layers would be frozen; freeze at most 1"):
        Full.attach(small_base, FullOptions(freeze_layers=2), TASK, 0)


def test_the_method_answers_through_all_layers_afterwards(small_base: Base, tmp_path: Path) -> None:
    """And in its rollouts: passes of generation know nothing of what is kept."""
    adapted = fit(small_base, "full", tmp_path / "fit", learning_rate=1e-2, freeze_layers=1)
    assert adapted.engine.model.frozen is None
    adapted.save(tmp_path / "saved")
    again = load_base_and_score(small_base, tmp_path / "saved")
    assert again == adapted.score([e.messages for e in TASK.test], [["red", "blue"]] * 2)
    tuned = attach(small_base, 1)
    with torch.inference_mode():
        tuned.model.forward([[5, 6, 7]])
    with torch.no_grad():
        tuned.model.prefill([5, 6, 7])
    assert tuned.model.frozen is not None
    assert tuned.model.frozen.computed == 0


def load_base_and_score(base: Base, folder: Path) -> Any:
    from kamerton.methods import load_adapted

    return load_adapted(folder, base).score([e.messages for e in TASK.test], [["red", "blue"]] * 2)


def test_room_is_said_in_the_notes(small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamerton.base.frozen.SHARE_OF_MEMORY", 0.0)
    adapted = fit(small_base, "full", tmp_path / "fit", learning_rate=1e-2, freeze_layers=1)
    assert [n for n in adapted.record.notes if "the frozen layers' outputs for 60 of 60 texts did not fit into" in n]


def test_flops_count_what_was_computed(tmp_path: Path) -> None:
    """Against PyTorch's own counter: a first pass, a pass that is replayed, and a validation that is replayed."""
    base = load_base(tiny.save(tmp_path / "deep", layers=8), dtype="float32")
    tuned, objective = attach(base, 6), goal(base, share_prefix=False)
    (batch,) = objective.batches(0, tuned.model)

    def step() -> None:
        objective.loss(tuned.model, batch).total.backward()

    def look() -> None:
        with torch.no_grad():
            objective.loss(tuned.model, batch)

    costs = []
    for run in (step, step, look):
        before = tuned.model.work.copy()
        linear, attention = counted(run)
        work = tuned.model.work - before
        total = flops(work, tuned.model.hf)
        work.pairs = work.grad_pairs = work.replayed_pairs = 0
        own = flops(work, tuned.model.hf)
        assert own == pytest.approx(linear, rel=0.08)
        if run is step:  # the counter does not know the kernel that runs without gradient
            assert 0.25 * attention <= total - own <= 1.05 * attention
        costs.append(total)
    assert costs[1] < 0.6 * costs[0]

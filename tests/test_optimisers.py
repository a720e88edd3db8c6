"""Muon beside AdamW: the step against one written out plainly, who gets which, and two processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import together
import training_runs as runs
from kamerton.pretraining.models import settings, start
from kamerton.pretraining.run import pretrain
from kamerton.recipe_pretrain import as_pretrain_recipe
from kamerton.training.optimisers import Together, make_optimiser

pytestmark = pytest.mark.usefixtures("one_thread")
HOW: dict[str, Any] = {"learning_rate": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def orthogonal(update: Tensor) -> Tensor:
    """The nearest matrix with singular values of 1: what the Newton–Schulz iteration aims at."""
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    return u @ v


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1000))
def test_a_matrix_moves_as_the_singular_value_decomposition_says(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = nn.Parameter(torch.randn(rows, columns))
    weight.matrix = True  # type: ignore[attr-defined]
    before, momentum = weight.detach().clone(), torch.zeros(rows, columns)
    optimiser = make_optimiser([weight], "muon", **HOW)
    for _ in range(3):
        weight.grad = torch.randn(rows, columns)
        momentum = 0.95 * momentum + 0.05 * weight.grad
        aim = orthogonal(0.05 * weight.grad + 0.95 * momentum)
        optimiser.step()
        moved = (before * (1 - 0.01 * 0.1) - weight.detach()) / (0.01 * 0.2 * math.sqrt(max(rows, columns)))
        # the iteration's coefficients leave singular values between 0.5 and 1.5, of small ones less
        assert float((moved * aim).sum()) > 0.55 * min(rows, columns) - 1
        assert float(torch.linalg.svdvals(moved)[0]) < 1.6
        before = weight.detach().clone()


def test_both_step_as_each_alone_and_a_rate_that_is_set_holds() -> None:
    torch.manual_seed(0)
    matrix, gain = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
    matrix.matrix, gain.decays = True, False  # type: ignore[attr-defined]
    alone = [nn.Parameter(p.detach().clone()) for p in (matrix, gain)]
    both = make_optimiser([gain, matrix], "muon", **HOW)
    assert isinstance(both, Together)
    muon = torch.optim.Muon([alone[0]], lr=0.003, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([alone[1]], lr=0.003, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for group in both.param_groups:
        group["lr"] = 0.003
    for _ in range(4):
        for mine, other in zip((matrix, gain), alone, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimiser in (both, muon, adamw):
            optimiser.step()
    assert torch.equal(matrix, alone[0])
    assert torch.equal(gain, alone[1])
    assert {k for values in both.state.values() for k in values} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


def test_without_it_all_is_adamw() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.matrix = True  # type: ignore[attr-defined]
    assert isinstance(make_optimiser([weight], "adamw", **HOW), torch.optim.AdamW)


def recipe(folder: Path, **more: Any) -> dict[str, Any]:
    return runs.pretraining_recipe(
        folder, **{"samples": False, "training": {**runs.PRETRAINING, "optimiser": "muon"}, **more}
    )


@pytest.mark.parametrize("preset", ["llama", "gpt2", "bert", "transformer", "lstm", "moe"])
def test_embeddings_output_and_gains_are_no_matrices(preset: str, tmp_path: Path) -> None:
    shape = {"preset": preset, "width": 32} | ({} if preset == "lstm" else {"depth": 2, "heads": 2})
    asked = as_pretrain_recipe(recipe(tmp_path, model=shape), ())
    started = start(asked)
    settings(asked, started)
    named = dict(started.model.hf.named_parameters())
    chosen = {name: p for name, p in named.items() if getattr(p, "matrix", False)}
    assert chosen
    assert all(p.ndim == 2 for p in chosen.values())
    vocabulary = len(started.tokenizer)
    assert not [name for name, p in chosen.items() if vocabulary in p.shape]
    # every layer's products are among them
    assert sum(p.numel() for p in chosen.values()) > 0.5 * sum(
        p.numel() for p in named.values() if p.ndim == 2 and vocabulary not in p.shape
    )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The iteration is computed in bfloat16, so the last bits of a sum show; a step of another matrix would show more."""

    def losses(place: str) -> list[float]:
        made = pretrain(recipe(tmp_path), output=tmp_path / place)
        assert made is not None
        return [row["loss"] for row in made.results["curve"]]

    alone = losses("one")
    plain = pretrain(recipe(tmp_path, training=runs.PRETRAINING), output=tmp_path / "plain")
    assert plain is not None
    other = [row["loss"] for row in plain.results["curve"]]
    for sharded in (False, True):
        first, second = together.two(lambda sharded=sharded: losses(f"two-{sharded}"), sharded=sharded)
        assert first == second
        assert first == pytest.approx(alone, rel=2e-3)
        assert first != pytest.approx(other, rel=2e-3)

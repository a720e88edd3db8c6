"""Two processes train as one does: gradients, curves, checkpoints, choices; and who fails ends all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
import together
import training_runs as runs
from kamerton.base import Base
from kamerton.training import Budget, fit
from kamerton.training.batches import divide
from kamerton.training.distribution import deal_out

pytest_plugins = ("tiny",)
CLOSE = 1e-6
pytestmark = pytest.mark.usefixtures("one_thread")


def trained(base: Base, kind: str, folder: Path, **how: Any) -> tuple[dict[str, Any], list[dict[str, float]], Any]:
    tuned, result = runs.run(base, kind, folder, **how)
    return together.numbers(runs.weights(tuned)), together.curve(result), result.state


def alike(one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float = CLOSE) -> bool:
    """Whether two curves have the same numbers: losses, validation, gradient norms, rates, tokens."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(abs(a[k] - b[k]) <= tolerance * max(1, abs(a[k])) for k in a)
        for a, b in zip(one, other, strict=True)
    )


# -- dealing out ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 6))
def test_a_row_of_sizes_is_cut_into_as_many_parts_as_asked_for(sizes: list[int], parts: int) -> None:
    begins = sorted(divide(sizes, parts))
    assert begins[0] == 0
    assert len(begins) == min(parts, len(sizes))
    sums = [sum(sizes[a:b]) for a, b in zip(begins, [*begins[1:], len(sizes)], strict=True)]
    # no part is further from its share than one row on either side, where there is room to choose
    if len(sizes) >= 2 * parts and max(sizes) * parts <= sum(sizes):
        assert max(sums) <= sum(sizes) / parts + max(sizes)


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 5))
def test_each_microbatch_is_dealt_out_once_and_evenly(sizes: list[int], count: int) -> None:
    plan = deal_out(sizes, count)
    assert sorted(i for own in plan for i in own) == list(range(len(sizes)))
    loads = [sum(sizes[i] + 1 for i in own) for own in plan]
    assert max(loads) - min(loads) <= max(sizes, default=0) + 1


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_train_as_one(small_base: Base, tmp_path: Path, sharded: bool) -> None:
    kinds = ("lora", "prompt-tuning", "full")

    def work() -> dict[str, Any]:
        return {kind: trained(small_base, kind, tmp_path / kind, changes={"average": 0.5}) for kind in kinds}

    first, second = together.two(work, sharded=sharded)
    for kind in kinds:
        weights, curve, state = trained(small_base, kind, tmp_path / f"{kind}-alone", changes={"average": 0.5})
        assert together.furthest(first[kind][0], second[kind][0]) == 0
        # AdamW divides by the gradient's size: of a small one the last bits move weights by more than losses
        assert together.furthest(weights, first[kind][0]) < 1e-5, kind
        assert alike(curve, first[kind][1], 1e-5 if sharded else CLOSE), kind
        assert (state.best_step, state.stopped_early) == (first[kind][2].best_step, first[kind][2].stopped_early)
        assert first[kind][2].work["grad_outputs"] == state.work["grad_outputs"]  # targets of both processes
    assert not [name for name in together.files(tmp_path) if ".partial" in name]


def test_the_gradient_is_that_of_one_process_and_clipped_by_the_norm_of_all(small_base: Base, tmp_path: Path) -> None:
    how: dict[str, Any] = {"budget": Budget(steps=1), "changes": {"clip": 1e-3, "validations": 1, "warmup": 0.0}}
    goal = {"batch_size": 5, "max_tokens": 40}  # more microbatches than processes, and not as many for each

    def work() -> Any:
        return {
            kind: trained(small_base, kind, tmp_path / kind, goal=runs.objective(small_base, **goal), **how)
            for kind in ("lora", "full")
        }

    for sharded in (False, True):
        found = together.two(work, sharded=sharded)[0]
        for kind, (weights, curve, _) in found.items():
            place = tmp_path / f"{kind}-alone-{sharded}"
            own = trained(small_base, kind, place, goal=runs.objective(small_base, **goal), **how)
            assert curve[0]["gradient_norm"] == pytest.approx(own[1][0]["gradient_norm"], rel=1e-6)
            assert curve[0]["gradient_norm"] > 1  # so that clipping did something
            assert together.furthest(weights, own[0]) < CLOSE


def test_a_training_goes_on_with_another_number_of_processes(small_base: Base, tmp_path: Path) -> None:
    whole = trained(small_base, "full", tmp_path / "whole")
    for sharded in (False, True):
        place = tmp_path / f"first-one-{sharded}"
        runs.run(small_base, "full", place, stop_after=4)
        later = together.two(lambda place=place: trained(small_base, "full", place), sharded=sharded)
        assert alike(whole[1], later[0][1], 1e-5)
        assert together.furthest(whole[0], later[0][0]) < 1e-5
        assert together.furthest(later[0][0], later[1][0]) == 0

        place = tmp_path / f"first-two-{sharded}"
        together.two(lambda place=place: runs.run(small_base, "full", place, stop_after=4) and None, sharded=sharded)
        alone = trained(small_base, "full", place)
        assert alike(whole[1], alone[1], 1e-5)
        assert together.furthest(whole[0], alone[0]) < 1e-5

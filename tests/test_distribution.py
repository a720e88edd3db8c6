"""Two processes train as one does: gradients, curves, checkpoints, choices; and who fails ends all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
import together
import training_runs as runs
from judged_words import words_task
from kamerton import compare
from kamerton.base import Base
from kamerton.errors import KamertonError
from kamerton.pretraining.run import pretrain
from kamerton.training import Budget
from kamerton.training.batches import divide
from kamerton.training.distribution import deal_out

pytest_plugins = ("tiny",)
CLOSE = 1e-6
pytestmark = pytest.mark.usefixtures("one_thread")


def trained(base: Base, kind: str, folder: Path, **how: Any) -> tuple[dict[str, Any], list[dict[str, float]], Any]:
    tuned, result = runs.run(base, kind, folder, **how)
    return together.numbers(runs.weights(tuned)), together.curve(result), result.state


def apart(one: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, float]:
    """How far two curves are from each other, by name of what is in them; of large numbers as a share."""
    assert [row.keys() for row in one] == [row.keys() for row in other]
    names = {name for row in one for name in row}
    return {
        k: max(abs(a[k] - b[k]) / max(1, abs(a[k])) for a, b in zip(one, other, strict=True) if k in a)
        for k in sorted(names)
    }


def alike(one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float = CLOSE) -> None:
    """Check that two curves have the same numbers: losses, validation, gradient norms, rates, tokens."""
    far = {name: value for name, value in apart(one, other).items() if value > tolerance}
    assert not far


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
        alike(curve, first[kind][1], 1e-5 if sharded else CLOSE)
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
        alike(whole[1], later[0][1], 1e-5)
        assert together.furthest(whole[0], later[0][0]) < 1e-5
        assert together.furthest(later[0][0], later[1][0]) == 0

        place = tmp_path / f"first-two-{sharded}"
        together.two(lambda place=place: runs.run(small_base, "full", place, stop_after=4) and None, sharded=sharded)
        alone = trained(small_base, "full", place)
        alike(whole[1], alone[1], 1e-5)
        assert together.furthest(whole[0], alone[0]) < 1e-5


# -- objectives -------------------------------------------------------------------------------------------------------


def fitted(base: Base, folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """What a method's fit came to, without what depends on the clock."""
    adapted = tiny.fit(base, name, folder, **options)
    assert adapted.tuned is not None
    weights = {n: p for n, p in adapted.tuned.module.named_parameters() if "lora" in n or "prompt" in n}
    # at its first step a policy is its reference, and which of two equal answers is better is a matter of rounding
    curve = [{k: v for k, v in row.items() if k not in ("seconds", "accuracy")} for row in adapted.record.curve]
    return {"weights": together.numbers(weights), "curve": curve, "notes": adapted.record.notes,
            "chosen": adapted.record.chosen, "tokens": adapted.record.tokens}  # fmt: skip


# answers differ in it, so that something is learned from the first step on: of a gradient of nothing but rounding
# AdamW makes steps of full size
REWARD = {"length": {"target": 12, "unit": "characters"}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo", "dpo": {"share": 0.5, "validations": 2}},
    "grpo": {"objective": "grpo", "reward": REWARD,
             "grpo": {"share": 0.5, "validations": 1, "group": 4, "queries": 3, "kl": 0.05, "max_answer_tokens": 4}},
    "rejection-sampling": {"objective": "rejection-sampling", "reward": REWARD,
                           "rejection_sampling": {"share": 0.5, "validations": 1, "samples": 3, "queries": 4}},
    "adversarial": {"objective": "adversarial", "adversarial": {"share": 0.5, "validations": 1, "warmup_steps": 4}},
}  # fmt: skip


def objectives(base: Base, folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    tasks = {"dpo": words_task(24, 8, 8)}
    return {
        name: fitted(
            base, folder / name, "lora", task=tasks.get(name), budget=Budget(steps=8), learning_rate=0.01, rank=4,
            batch_size=6, validations=2, **OBJECTIVES[name],
        )
        for name in names
    }  # fmt: skip


def check_objectives(base: Base, folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    first, second = together.two(lambda: objectives(base, folder / "two", names))
    alone = objectives(base, folder / "one", names)
    for name in names:
        assert together.furthest(first[name]["weights"], second[name]["weights"]) == 0
        assert together.furthest(alone[name]["weights"], first[name]["weights"]) < 2e-5, name
        alike(alone[name]["curve"], first[name]["curve"], 1e-4)  # sums over answers, of weights after steps of 0.01
        assert alone[name]["tokens"] == first[name]["tokens"]
    return dict(first)


def test_preferences_and_rewards_are_learned_as_by_one_process(small_base: Base, tmp_path: Path) -> None:
    check_objectives(small_base, tmp_path, ("dpo", "grpo"))


@pytest.mark.slow
def test_other_objectives_are_learned_as_by_one_process(small_base: Base, tmp_path: Path) -> None:
    found = check_objectives(small_base, tmp_path, ("rejection-sampling", "adversarial"))
    assert any("cannot be dealt out" in note for note in found["adversarial"]["notes"])
    assert not any("cannot be dealt out" in note for note in found["rejection-sampling"]["notes"])


def test_the_search_and_the_pretraining_of_one_process(small_base: Base, tmp_path: Path) -> None:
    recipe = runs.pretraining_recipe(tmp_path, samples={"prompts": ["red"], "tokens": 8})

    def work(place: str) -> dict[str, Any]:
        made = pretrain(recipe, output=tmp_path / place / "pretrained")
        assert made is not None
        search = fitted(small_base, tmp_path / place / "search", "lora", budget=Budget(steps=8), rank=4)
        curve = [{k: v for k, v in row.items() if k != "seconds"} for row in made.results["curve"]]
        told = {k: made.results[k] for k in ("metrics", "tokens", "best_step", "flops")}
        return {"pretrained": {**told, "curve": curve}, "search": search}

    first, _ = together.two(lambda: work("two"))
    alone = work("one")
    assert first["search"]["chosen"] == alone["search"]["chosen"]
    alike(alone["search"]["curve"], first["search"]["curve"], 1e-5)
    one, two = alone["pretrained"], first["pretrained"]
    alike(one["curve"], two["curve"], 1e-5)
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
    assert (one["tokens"], one["best_step"], one["flops"]) == (two["tokens"], two["best_step"], two["flops"])
    assert together.files(tmp_path / "one") == together.files(tmp_path / "two")


# -- commands ---------------------------------------------------------------------------------------------------------


def test_a_comparison_is_made_by_two_processes(small_folder: Path, tmp_path: Path) -> None:
    methods = "  - zero-shot\n  - lora: {learning_rate: 0.01, rank: 4, validations: 2}\n"
    recipe = tiny.write_recipe(tmp_path, small_folder, methods, seeds="[0]")

    together.two(lambda: bool(compare(recipe, output=tmp_path / "two", progress=False)))
    compare(recipe, output=tmp_path / "one", workers=1, progress=False)
    for label in ("zero-shot", "lora"):
        one, two = (
            json.loads((tmp_path / place / "cells" / label / "seed-0" / "cell.json").read_text())
            for place in ("one", "two")
        )
        assert (one["status"], one["metrics"], one["tokens"]) == (two["status"], two["metrics"], two["tokens"])
        assert (one["validation_loss"] or 0) == pytest.approx(two["validation_loss"] or 0, rel=1e-5)
        assert one["disk_bytes"] == two["disk_bytes"]
        # of both processes; what prompts share is computed in each
        assert one["flops"]["evaluate"] <= two["flops"]["evaluate"] < 1.5 * one["flops"]["evaluate"]
    own = [name for name in together.files(tmp_path / "one") if "worker-" not in name]
    assert own == together.files(tmp_path / "two")


def launch(folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """The command in two processes, as a launcher starts them; none of them ends the other."""
    port, started = together.free_port(), []
    for rank in range(2):
        own = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # fmt: skip
        started.append(subprocess.Popen(
            [sys.executable, "-m", "kamerton", *arguments], env=own, cwd=folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ))  # fmt: skip
    return started


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, list[str]]]:
    """Status and last words of each, without progress."""
    out = []
    for process in started:
        _, said = process.communicate(timeout=300)
        out.append((process.returncode, [line for line in said.splitlines() if line.startswith(("error", "stopped"))]))
    return out


def test_what_does_not_go_together_is_one_line(small_base: Base, tmp_path: Path) -> None:
    def refused() -> list[str]:
        out = []
        for name, options in (("lora", OBJECTIVES["grpo"]), ("qlora", {})):
            try:
                tiny.fit(small_base, name, tmp_path / name, learning_rate=0.01, **options)
            except KamertonError as error:
                out.append(str(error))
        return out

    assert together.two(refused, sharded=True)[0][0].endswith("sharded parameters are not whole; leave out --use_fsdp")
    alone = launch(tmp_path, "methods")[0].communicate(timeout=60)
    assert alone == ("", "error: kamerton methods runs in one process; start it without a launcher\n")


@pytest.mark.slow
def test_a_mistake_is_said_once(small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, small_folder, "  - lora: {rank: -1}\n")
    found = ended(launch(tmp_path, "tune", str(recipe)))
    assert [status for status, _ in found] == [2, 2]
    assert len([line for _, lines in found for line in lines]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("who", [0, 1])
def test_one_that_ends_ends_all(small_folder: Path, tmp_path: Path, how: signal.Signals, who: int) -> None:
    recipe = tiny.write_recipe(tmp_path, small_folder, "  - lora: {learning_rate: 0.001}\n", budget="{steps: 100000}")
    started = launch(tmp_path, "tune", str(recipe), "--output", "out")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").rglob("best.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)
    started[who].send_signal(how)
    found = ended(started)
    assert all(status for status, _ in found)
    said = [line for _, lines in found for line in lines]
    # where the process that holds the meeting place is killed, nobody is left to ask who speaks
    assert len(said) <= 1
    assert said or (how, who) == (signal.SIGKILL, 0)

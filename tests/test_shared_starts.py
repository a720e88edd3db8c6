"""Fits that differ only in their second stage train its supervised start once, and end as if each had its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from kamerton.base import Base
from kamerton.comparison.report.results import results_without_times
from kamerton.comparison.run import Comparison, Watcher, compare
from kamerton.comparison.store import Cell
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Adapted, Run
from kamerton.methods.stages import shared_start
from kamerton.recipe import load_recipe
from kamerton.training import Budget

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

METHOD: dict[str, Any] = {"tokens": 4, "learning_rate": 0.01, "batch_size": 4, "validations": 2}
STAGE: dict[str, Any] = {"warmup_steps": 2, "rank": 4, "validations": 2}


def adversarial(**stage: Any) -> dict[str, Any]:
    return {**METHOD, "objective": "adversarial", "adversarial": {**STAGE, **stage}}


def fitted(base: Base, folder: Path, starts: Path | None, stages: list[str], **stage: Any) -> Adapted:
    method = get_method("prompt-tuning")
    run = Run(folder, report=lambda name, *_: stages.append(name), starts=starts)
    return method.fit(base, tiny.colour_task(), Budget(steps=10), parse_options(method, adversarial(**stage)), run)


def weights(adapted: Adapted) -> dict[str, list[float]]:
    assert adapted.tuned is not None
    return {n: p.flatten().tolist() for n, p in adapted.tuned.module.named_parameters() if "prompt" in n}


def test_the_second_fit_finds_the_start_and_ends_the_same(small_base: Base, tmp_path: Path) -> None:
    first: list[str] = []
    second: list[str] = []
    fitted(small_base, tmp_path / "a", tmp_path / "starts", first, weight=0)
    shared = fitted(small_base, tmp_path / "b", tmp_path / "starts", second, weight=2)
    alone = fitted(small_base, tmp_path / "c", None, [], weight=2)
    supervised = [name for name in first if name.startswith("training")]
    assert supervised
    assert not [name for name in second if name.startswith("training")]
    assert weights(shared)
    assert weights(shared) == weights(alone)
    assert (shared.record.tokens, shared.record.flops) == (alone.record.tokens, alone.record.flops), "cost is the whole"


def test_what_may_be_shared() -> None:
    method = get_method("prompt-tuning")

    def start(**options: Any) -> str | None:
        return shared_start(method, parse_options(method, options))

    mine = start(**adversarial(weight=3))
    assert mine is not None
    assert mine == start(**adversarial(path="rollouts")), "the stage itself says nothing of its start"
    assert mine != start(**{**adversarial(), "tokens": 5})
    assert mine != start(**adversarial(share=0.5)), "another part of the budget is another schedule"
    assert start(**METHOD) is None
    assert start(**adversarial(share=1)) is None


class Cells(Watcher):
    """Keeps the cells that are done."""

    def __init__(self) -> None:
        self.done: list[Cell] = []
        self.stages: dict[tuple[str, int], set[str]] = {}

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            self.done.append(cell)
        if event["event"] == "progress":
            self.stages.setdefault((cell.label, cell.seed), set()).add(event["stage"])


@pytest.mark.slow
def test_a_comparison_shares_them_and_leaves_none_behind(small_folder: Path, tmp_path: Path) -> None:
    def entry(label: str, **stage: Any) -> str:
        return f"- prompt-tuning: {json.dumps({**adversarial(**stage), 'label': label})}"

    entries = [entry("control", weight=0), entry("signal", weight=2), entry("longer", share=0.5)]

    def run(name: str, methods: list[str]) -> tuple[Comparison, Cells]:
        recipe, watcher = tiny.write_recipe(tmp_path / name, small_folder, "\n".join(methods)), Cells()
        return compare(
            load_recipe(recipe, overrides=["seeds=1"]), output=tmp_path / name / "out", workers=1, watcher=watcher
        ), watcher

    together, watcher = run("together", entries)
    alone, _ = run("alone", entries[1:2])
    assert together.failed == []
    starts = {(cell.label, cell.seed): cell.start for cell in watcher.done}
    assert starts["control", 0] == starts["signal", 0] is not None
    assert starts["longer", 0] is None
    assert not (tmp_path / "together" / "out" / "starts").exists()

    def cells(comparison: Comparison) -> list[Any]:
        plain = results_without_times(json.loads((comparison.folder / "results.json").read_text()))
        (mine,) = (row for row in plain["methods"] if row["label"] == "signal")
        return mine["cells"]

    assert len(cells(alone)) == 1
    assert cells(together) == cells(alone)

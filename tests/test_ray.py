"""Comparisons and corpora on a Ray cluster of two nodes: the same results, whatever is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from kamerton.comparison.report.results import results_without_times
from kamerton.comparison.run import Comparison, Watcher, compare
from kamerton.comparison.store import Cell
from kamerton.recipe import load_recipe

pytest_plugins = ("tiny", "ray_cluster")
pytestmark = pytest.mark.usefixtures("one_thread")

LORA = "- lora: {batch_size: 8, validations: 2, learning_rate: 0.01}"


class Log(Watcher):
    """Keeps what a comparison says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[str, int, dict[str, Any]]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        self.events.append((cell.label, cell.seed, event))


def run(recipe: Path, output: Path, cluster: Any = None, watcher: Watcher | None = None, **more: Any) -> Comparison:
    loaded = load_recipe(recipe, overrides=["resources.cpus=1", "resources.memory=200MB"])
    where = {"executor": "ray", "address": cluster.address} if cluster else {"workers": 1}
    return compare(loaded, output=output, watcher=watcher, **where, **more)


def plain(folder: Path) -> Any:
    return results_without_times(json.loads((folder / "results.json").read_text()))


def test_results_are_those_of_this_machine(small_folder: Path, tmp_path: Path, cluster: Any) -> None:
    recipe, log = tiny.write_recipe(tmp_path / "r", small_folder, f"- zero-shot\n{LORA}", seeds="[0, 1]"), Log()
    there = run(recipe, tmp_path / "ray", cluster, log)
    assert there.failed == []
    here = run(recipe, tmp_path / "local")
    assert plain(there.folder) == plain(here.folder)
    for answers in here.folder.glob("cells/*/*/answers.jsonl"):
        assert (there.folder / answers.relative_to(here.folder)).read_bytes() == answers.read_bytes()
    assert {(label, seed) for label, seed, event in log.events if event["event"] == "done"} == {
        ("zero-shot", 0), ("lora", 0), ("lora", 1),
    }  # fmt: skip
    assert any(event["event"] == "progress" for *_, event in log.events)
    assert not list(there.folder.glob(".cluster-*"))

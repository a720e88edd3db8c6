"""Comparisons and corpora on a Ray cluster of two nodes: the same results, whatever is lost on the way."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_cluster
import tiny
from kamerton.comparison.report.live import LiveComparison
from kamerton.comparison.report.results import results_without_times
from kamerton.comparison.run import Comparison, Watcher, compare
from kamerton.comparison.store import Cell
from kamerton.corpora import Corpus, build_corpus
from kamerton.errors import KamertonError
from kamerton.files import read_jsonl
from kamerton.recipe import load_recipe
from kamerton.resources import Resources
from kamerton.text.corpus.files import inputs

pytest_plugins = ("tiny", "ray_cluster")
pytestmark = pytest.mark.usefixtures("one_thread")

LORA = "- lora: {batch_size: 8, validations: 2, learning_rate: 0.01}"
SEARCHED = "- lora: {batch_size: 8, validations: 2}"
"""A search keeps a checkpoint of each candidate; else one is written every half minute."""


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


@pytest.mark.slow
def test_results_are_those_of_this_machine(small_folder: Path, tmp_path: Path, cluster: Any) -> None:
    recipe, log = tiny.write_recipe(tmp_path / "r", small_folder, f"- zero-shot\n{LORA}", seeds="[0]"), Log()
    there = run(recipe, tmp_path / "ray", cluster, log)
    assert there.failed == []
    here = run(recipe, tmp_path / "local")
    assert plain(there.folder) == plain(here.folder)
    for answers in here.folder.glob("cells/*/*/answers.jsonl"):
        assert (there.folder / answers.relative_to(here.folder)).read_bytes() == answers.read_bytes()
    assert {(label, seed) for label, seed, event in log.events if event["event"] == "done"} == {
        ("zero-shot", 0), ("lora", 0),
    }  # fmt: skip
    assert any(event["event"] == "progress" for *_, event in log.events)
    assert not list(there.folder.glob(".cluster-*"))


def test_what_cannot_be_had_is_one_line(
    small_folder: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, "- zero-shot", seeds="[0]", forgetting="false")
    with pytest.raises(KamertonError, match=r"no node of the cluster has 1 CPUs, 3 GPUs .*the largest has 1 CPUs"):
        compare(
            load_recipe(recipe, overrides=["resources={cpus: 1, gpus: 3}"]), output=tmp_path / "out", executor="ray",
            address=cluster.address,
        )  # fmt: skip
    monkeypatch.setattr("kamerton.cluster.SEEN", 0.5)
    monkeypatch.setattr(Path, "touch", lambda *_, **__: None)  # as on a disk of this machine alone: nothing is there
    with pytest.raises(KamertonError, match="does not see this folder; name an --output on storage") as raised:
        run(recipe, tmp_path / "out", cluster)
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "out") in str(raised.value)


STEPS = [
    "normalise", {"exact-duplicates": {"fold": True}}, {"near-duplicates": {"bands": 4}}, {"repeated-lines": {"documents": 2}},
    {"mix": {"weights": {"a": 1, "b": 2}, "repeat": 2}},
]  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of documents, some of them twice, some with a line that is in others, one that is not what its name says."""
    folder, rng = tmp_path_factory.mktemp("raw"), random.Random(0)
    texts = [" ".join(rng.choices(tiny.WORDS, k=rng.randint(30, 60))) for _ in range(60)]
    for part in range(6):
        mine = [f"{text}\nThis line stands in many of them, more or less." for text in texts[part * 8 : part * 8 + 16]]
        lines = [json.dumps({"text": text}) + "\n" for text in [*mine, " "]]
        (folder / f"{part}.jsonl").write_text("".join(lines) + ("{broken\n" if part == 3 else ""))
    (folder / "6.jsonl").write_bytes(b"\x00\x01" * 50)
    return folder


def corpus(raw: Path, output: Path, **more: Any) -> Corpus:
    sources = [{"path": f"{raw}/[0-2].jsonl", "domain": "a"}, {"path": f"{raw}/[3-6].jsonl", "domain": "b"}]
    recipe = {"sources": sources, "steps": STEPS, "resources": {"memory": "100MB"}}
    return build_corpus(recipe, output, **more)


def same(one: Corpus, other: Corpus) -> None:
    files = {p.relative_to(one.folder) for p in one.folder.rglob("*") if p.is_file()}
    assert files == {p.relative_to(other.folder) for p in other.folder.rglob("*") if p.is_file()}
    for name in sorted(files - {Path("report.json"), Path("report.html")}):  # these say how many seconds it took
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert one.results | {"seconds": 0} == other.results | {"seconds": 0}


def test_a_corpus_is_byte_for_byte_that_of_this_machine(
    raw: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamerton.text.corpus.files.LEAST_BYTES", 1000)  # several pieces of work from small files
    shares: list[tuple[str, float]] = []
    there = corpus(
        raw, tmp_path / "ray", executor="ray", address=cluster.address,
        watch=lambda stage, share, _: shares.append((stage, share)),
    )  # fmt: skip
    here = corpus(raw, tmp_path / "local", workers=1)
    same(there, here)
    assert sum(1 for _ in (there.folder / "rejected/00-read.jsonl").open()) >= 7, (
        "what cannot be read is rejected alike"
    )
    assert [share for stage, share in shares if stage == "normalise"][-1] == 1


def test_a_file_that_a_node_does_not_see_is_no_rejected_document(
    raw: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kamerton.text.corpus import run as module

    def larger(recipe: Any) -> list[Any]:  # as if the command saw another file under the same path
        return [replace(file, size=file.size + 1) for file in inputs(recipe)]

    monkeypatch.setattr(module, "inputs", larger)
    with pytest.raises(KamertonError, match=r"0\.jsonl: the node .* does not see this file as the command does"):
        corpus(raw, tmp_path / "out", executor="ray", address=cluster.address)


def test_options_are_read_before_anything_is_done(
    tmp_path: Path, cli: tiny.Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: dates\nmethods: [zero-shot]\nresources: {memory: much}\n")
    for options, says in (
        (("--executor", "rya"), "--executor: no executor 'rya'; did you mean ray?"),
        (("--address", "auto"), "--address: is of Ray alone; add --executor ray, or leave it out"),
        (("--gpus", "1"), "--gpus: is of Ray alone; add --executor ray, or set base.device"),
        (("--executor", "ray", "--address", nobody), f"--address: {nobody} cannot be used (Connection refused)"),
        (("--executor", "ray", "--address", "ray://here:10001"), "--address: 'ray://here:10001' is not HOST:PORT"),
        ((), f"{recipe}:3: resources.memory: must be a size; write bytes, or a size such as 8GB"),
        (("--memory", "8GB", "--cpus", "0"), "resources.cpus: must be greater than 0"),
    ):
        status, _, err = cli("compare", recipe, *options)
        assert status == 2
        assert err.startswith("error: ")
        assert says in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("kamerton.cluster.find_spec", lambda name: None)
    for command in ("compare", "corpus"):
        status, _, err = cli(command, recipe, "--executor", "ray")
        assert (status, err) == (2, "error: ray is not installed; run: pip install 'kamerton[ray]'\n")


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("12", 12), (7, 7)]
)
def test_sizes(text: object, count: int) -> None:
    assert Resources.model_validate({"memory": text}).memory == count


# -- lost workers ---------------------------------------------------------------------------------------------------


def tasks() -> list[psutil.Process]:
    """Processes of this machine that run a task."""
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0] == "ray::_on_node"]


class Killer(Log):
    """Kills a node in the middle of the training of the cell that it runs, behind the search for a learning rate."""

    def __init__(self, cluster: Any, node: Any, folder: Path) -> None:
        super().__init__()
        self.cluster, self.node, self.folder, self.killed = cluster, node, folder, False
        self.before: dict[int, dict[Path, int]] = {}
        self.after: dict[int, dict[Path, int]] = {}

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        super().event(cell, event)
        if event["event"] != "progress" or not event["stage"].startswith("training"):
            return
        if self.killed:
            self.after.setdefault(cell.seed, self.checkpoints(cell.seed))
            return
        self.before[cell.seed] = self.checkpoints(cell.seed)
        if len(self.before) == 2:  # a cell on each node
            self.killed = True
            self.cluster.remove_node(self.node, allow_graceful=False)

    def checkpoints(self, seed: int) -> dict[Path, int]:
        """When each checkpoint of a cell was written."""
        found = (self.folder / f"cells/lora/seed-{seed}/fit").rglob("step-*/state.json")
        return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def undisturbed(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A recipe whose two cells train for some seconds, and what comes of it on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = tiny.write_recipe(
        folder / "r", small_folder, SEARCHED, seeds="[0, 1]", budget="{steps: 500}", forgetting="false"
    )
    return recipe, run(recipe, folder / "straight")


@pytest.mark.slow
def test_a_node_that_is_killed_in_a_cell_leaves_no_trace(
    undisturbed: tuple[Path, Comparison], tmp_path: Path, cluster: Any
) -> None:
    recipe, straight = undisturbed
    (node,) = [n for n in cluster.list_all_nodes() if not n.is_head()]
    killer = Killer(cluster, node, tmp_path / "killed")
    try:
        killed = run(recipe, tmp_path / "killed", cluster, killer)
    finally:
        cluster.add_node(**ray_cluster.NODE)
    assert killer.killed
    lost = [line for line in killer.lines if "its worker was lost, it goes on from its checkpoint" in line]
    assert len(lost) == 1
    seed = int(re.findall(r"seed (\d)", lost[0])[0])
    assert killer.before[seed]
    assert killer.before[seed].items() <= killer.after[seed].items(), "it went on from what was there"
    assert killed.failed == []
    assert plain(killed.folder) == plain(straight.folder)
    for answers in straight.folder.glob("cells/*/*/answers.jsonl"):
        assert (killed.folder / answers.relative_to(straight.folder)).read_bytes() == answers.read_bytes()
    curves = [folder / "cells/lora/seed-0/curve.jsonl" for folder in (killed.folder, straight.folder)]
    assert [len(read_jsonl(path)) for path in curves] == [len(read_jsonl(curves[1]))] * 2


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_fails_its_cell(small_folder: Path, tmp_path: Path, cluster: Any) -> None:
    """Killed as by a lack of memory, each time that it begins to train."""
    recipe = tiny.write_recipe(
        tmp_path / "r", small_folder, f"- zero-shot\n{LORA}", seeds="[0]", budget="{steps: 100000}", forgetting="false"
    )

    class Deadly(Log):
        def event(self, cell: Cell, event: dict[str, Any]) -> None:
            super().event(cell, event)
            if cell.label == "lora" and event["event"] == "progress":
                lock = str(tmp_path / "out/cells/lora/seed-0/.lock")  # the other cell is left alone
                for process in tasks():
                    with suppress(psutil.Error):
                        if lock in [file.path for file in process.open_files()]:
                            process.kill()

    log = Deadly()
    done = run(recipe, tmp_path / "out", cluster, log)
    assert [(row["label"], row["seed"]) for row in done.failed] == [("lora", 0)]
    assert "its worker was lost again and again" in done.failed[0]["error"]
    assert len([line for line in log.lines if "goes on from its checkpoint" in line]) == 3
    assert done.results["cells"]["finished"] == 1


@pytest.mark.slow
def test_ctrl_c_ends_tasks_and_leaves_what_can_go_on(
    undisturbed: tuple[Path, Comparison], tmp_path: Path, cluster: Any
) -> None:
    (recipe, straight), output = undisturbed, tmp_path / "out"
    command = [
        sys.executable, "-m", "kamerton", "compare", str(recipe), "--output", str(output), "--executor", "ray",
        "--address", cluster.address, "--cpus", "1", "--memory", "200MB",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    live, deadline = LiveComparison(output), time.monotonic() + 240
    while not list(output.glob("cells/*/*/fit/**/step-*/state.json")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.2)
    state = live.state()
    assert state["phase"] == "running"
    assert "running" in {cell["state"] for method in state["methods"] for cell in method["cells"]}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1] == "stopped; what was finished is kept, run the same command to go on"
    assert "Traceback" not in err
    psutil.wait_procs(tasks(), timeout=10)
    assert not tasks()
    assert live.state()["phase"] == "interrupted"
    assert not list(output.glob(".cluster-*"))
    done = run(recipe, output, cluster)
    assert plain(done.folder) == plain(straight.folder)


@pytest.mark.slow
def test_a_race_with_shared_starts_ends_as_on_this_machine(small_folder: Path, tmp_path: Path, cluster: Any) -> None:
    stage = {"warmup_steps": 2, "rank": 4, "validations": 2}
    options = {"tokens": 4, "learning_rate": 0.01, "batch_size": 4, "validations": 2, "objective": "adversarial"}
    methods = "\n".join(
        f"- prompt-tuning: {json.dumps({**options, 'label': label, 'adversarial': {**stage, 'weight': weight}})}"
        for label, weight in (("control", 0), ("signal", 2))
    )
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, f"- zero-shot\n{methods}", budget="{steps: 12}")
    there = run(recipe, tmp_path / "ray", cluster, race=True)
    here = run(recipe, tmp_path / "local", race=True)
    assert there.failed == []
    assert plain(there.folder) == plain(here.folder)
    assert not (there.folder / "starts").exists()

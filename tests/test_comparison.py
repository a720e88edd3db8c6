"""Comparisons: cells, store, resuming, failing cells, killed workers, and SIGKILL at random moments."""

from __future__ import annotations

import json
import operator
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

import tiny
from kamerton.base import Base
from kamerton.base.work import flops
from kamerton.comparison.cell import _forgetting
from kamerton.comparison.report.data import load_comparison
from kamerton.comparison.report.results import results_without_times
from kamerton.comparison.run import Comparison, Watcher, compare
from kamerton.comparison.store import Cell, Store
from kamerton.errors import KamertonError
from kamerton.evaluation.forgetting import kl, reference
from kamerton.evaluation.metrics import get_metric, metric_files
from kamerton.files import read_jsonl
from kamerton.inference import Engine
from kamerton.methods.method import Adapted
from kamerton.recipe import load_recipe
from kamerton.tasks.example import Example, Message, Task

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
FAST = "{batch_size: 8, validations: 2}"
METHODS = f"- zero-shot\n- few-shot: {{shots: 2}}\n- lora: {FAST}\n- prompt-tuning: {{tokens: 4, learning_rate: 0.01}}"


class Log(Watcher):
    """Keeps what a comparison says."""

    def __init__(self) -> None:
        self.started: tuple[int, int] = (-1, -1)
        self.events: list[tuple[str, int, dict[str, Any]]] = []

    def start(self, waiting: int, finished: int) -> None:
        self.started = (waiting, finished)

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        self.events.append((cell.label, cell.seed, event))

    def ended(self, kind: str) -> set[tuple[str, int]]:
        return {(label, seed) for label, seed, event in self.events if event["event"] == kind}


class Planned(Exception):
    """Ends a comparison before any worker is started."""


class Plan(Watcher):
    """Asks only what there is to run."""

    def start(self, waiting: int, finished: int) -> None:
        raise Planned(waiting, finished)


def run(recipe: Path, output: Path, watcher: Watcher | None = None, *, workers: int = 1) -> Comparison:
    return compare(load_recipe(recipe), output=output, workers=workers, watcher=watcher)


def to_run(recipe: Path, output: Path) -> tuple[int, int]:
    """Cells that a comparison would run, and those that it takes as they are."""
    with pytest.raises(Planned) as planned:
        run(recipe, output, Plan())
    return planned.value.args  # type: ignore[return-value]


def cell_files(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): p.stat().st_mtime for p in sorted(folder.glob("cells/*/*/cell.json"))}


def plain(folder: Path) -> Any:
    return results_without_times(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def finished(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Log, Comparison]:
    """A comparison of four methods over two seeds: its recipe, its folder, its log, itself. Not to be changed."""
    folder = tmp_path_factory.mktemp("comparison")
    recipe, log = tiny.write_recipe(folder / "r", small_folder, METHODS), Log()
    return recipe, folder / "out", log, run(recipe, folder / "out", log, workers=2)


# -- cells and store ------------------------------------------------------------------------------------------------


def test_every_cell_has_its_record(finished: tuple[Path, Path, Log, Comparison]) -> None:
    _, folder, log, comparison = finished
    assert comparison.failed == []
    assert set(cell_files(folder)) == {
        f"cells/{label}/seed-{seed}/cell.json"
        for label in ("zero-shot", "few-shot", "lora", "prompt-tuning")
        for seed in (0, 1)
    }
    assert log.started == (7, 0), "zero-shot is the same for every seed: run once"
    assert len(log.ended("done")) == 7
    task = Store(folder).read_task()
    for path in cell_files(folder):
        record = json.loads((folder / path).read_text(), parse_constant=pytest.fail)  # NaN and infinity are no JSON
        assert record["status"] == "ok"
        trained = record["method"] in ("lora", "prompt-tuning")
        for name in ("seconds", "tokens", "flops", "tokens_per_answer", "forgetting", "metrics"):
            assert all(isinstance(v, (int, float)) for v in record[name].values()), name
        assert record["peak_memory_bytes"] > 10**7
        assert 0 < record["latency_seconds"] < 10
        assert record["flops"]["evaluate"] > 0
        assert (record["trainable_parameters"] > 0) == trained
        assert (record["tokens"]["trained"] > 0) == trained
        assert (record["flops"]["fit"] > 0) == trained
        assert record["disk_bytes"] > 0
        lines = [json.loads(line) for line in (folder / path).with_name("answers.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [e.id for e in task.test]
        for name in task.metrics:
            metric = get_metric(name, task.test)
            statistics = metric.statistics([line["answer"] for line in lines], task.test)
            assert [line["statistics"][name] for line in lines] == statistics.tolist()
            assert record["metrics"][name] == pytest.approx(float(metric.aggregate(statistics.sum(0), len(lines))))
        curve = (folder / path).with_name("curve.jsonl").read_text().splitlines()
        assert bool(curve) == trained
        if trained:
            assert (folder / path).parent.joinpath("adapter/adapter_model.safetensors").is_file()
        assert not (folder / path).parent.joinpath("fit").exists(), "checkpoints of a finished cell are of no use"


def test_the_untouched_base_forgets_nothing_and_a_trained_one_something(
    finished: tuple[Path, Path, Log, Comparison],
) -> None:
    _, folder, _, _ = finished
    read = {p: json.loads((folder / p).read_text())["forgetting"] for p in cell_files(folder)}
    assert abs(read["cells/zero-shot/seed-0/cell.json"]["kl"]) < 1e-6
    zero = read["cells/zero-shot/seed-0/cell.json"]
    assert zero["bits_per_byte"] == pytest.approx(zero["bits_per_byte_base"], abs=1e-6)
    assert abs(read["cells/lora/seed-0/cell.json"]["kl"]) > 1e-4


def test_forgetting_of_the_untouched_base_is_not_computed_again(small_base: Base, tmp_path: Path) -> None:
    """Bits per byte are the reference's own; KL is computed where something stands in front of the prompts."""
    engine = Engine(small_base.model, small_base.renderer)
    measured = reference(engine, "The river is near the stone. " * 20, 2, answer_tokens=4)
    work = small_base.model.work

    def spent(adapted: Adapted) -> tuple[dict[str, float], bool]:
        before = work.copy()
        found = _forgetting(adapted, small_base, measured)
        assert found is not None
        return found, flops(work - before, small_base.model.hf) > 0

    same, worked = spent(tiny.fit(small_base, "zero-shot", tmp_path))
    assert (same, worked) == ({"bits_per_byte": measured.bits_per_byte,
                               "bits_per_byte_base": measured.bits_per_byte, "kl": 0.0}, False)  # fmt: skip
    asked = tiny.fit(small_base, "few-shot", tmp_path, shots=2)
    shown, worked = spent(asked)
    conversations = [asked.prepare((Message("user", prompt),)) for prompt in measured.prompts]
    assert worked
    assert shown["bits_per_byte"] == measured.bits_per_byte
    assert shown["kl"] == kl(asked.engine, conversations, measured) != 0
    trained, _ = spent(tiny.fit(small_base, "lora", tmp_path / "lora", learning_rate=0.01))
    assert trained["bits_per_byte"] != measured.bits_per_byte
    soft, _ = spent(tiny.fit(small_base, "prompt-tuning", tmp_path / "soft", tokens=2, learning_rate=0.01))
    assert soft["bits_per_byte"] != measured.bits_per_byte
    assert soft["kl"] != 0


def test_the_report_and_its_files_are_there(finished: tuple[Path, Path, Log, Comparison]) -> None:
    recipe, folder, _, comparison = finished
    for name in ("report.html", "results.json", "results.csv", "table.md", "table.tex", "settings.json", "recipe.yaml"):
        assert (folder / name).stat().st_size > 50, name
    assert (folder / "recipe.yaml").read_text() == recipe.read_text()
    assert comparison.results["complete"] is True
    assert comparison.sentence in comparison._repr_markdown_()
    assert "lora" in str(comparison)
    assert comparison.report == folder / "report.html"
    settings = json.loads((folder / "settings.json").read_text())
    for name in ("torch", "sacrebleu", "rouge-score", "gguf"):
        assert settings["versions"][name] == version(name)
    plan = json.loads((folder / "plan.json").read_text())
    assert settings["processes"] == {"workers": 2, "threads": plan["threads"]} == comparison.results["processes"]
    assert "processes" not in results_without_times(comparison.results), "the machine decides them"
    assert "<summary>Processes</summary>" in (folder / "report.html").read_text()
    assert settings["base"]["dtype"] == "float32"
    assert [m["options"]["batch_size"] for m in settings["methods"] if m["label"] == "lora"] == [8]
    assert comparison.adapter("lora").is_dir()
    assert comparison.adapter("lora", seed=1) == folder / "cells/lora/seed-1/adapter"
    with pytest.raises(KamertonError, match="no finished cell of 'lroa'"):
        comparison.adapter("lroa")


def test_the_same_examples_in_the_folder_as_in_the_task(finished: tuple[Path, Path, Log, Comparison]) -> None:
    from kamerton.tasks import load_task

    recipe, folder, _, _ = finished
    assert Store(folder).read_task() == load_task(load_recipe(recipe).task)


def test_separators_of_unicode_inside_texts_survive_the_store(tmp_path: Path) -> None:
    """U+2028, U+0085 and others end a line for `str.splitlines`, and stand unescaped in JSON."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh"
    example = Example("1", (Message("user", text),), (text,), choices=(text, "b"), reasoning=text, group=text)
    task = Task("t", (example,), (example,), (example,), ("exact-match",), notes=(text,))
    store, first = Store(tmp_path), Cell("x", "zero-shot", {}, 0, "f")
    store.write_task(task)
    assert store.read_task() == task
    answers = [{"id": "1", "answer": text, "statistics": {"exact-match": [1.0]}}]
    store.write_cell(first, {"label": "x", "seed": 0, "status": "ok"}, answers, [])
    store.copy_cell(Cell("x", "zero-shot", {}, 1, "g", same_as=0))
    assert read_jsonl(tmp_path / "cells/x/seed-1/answers.jsonl") == answers
    assert load_comparison(tmp_path).cells["x"][1].answers == [text]


# -- resuming -------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(finished: tuple[Path, Path, Log, Comparison], tmp_path: Path) -> Path:
    shutil.copytree(finished[1], tmp_path / "out")
    return tmp_path / "out"


def test_run_again_it_does_nothing(finished: tuple[Path, Path, Log, Comparison], copied: Path) -> None:
    before = cell_files(copied)
    log = Log()
    run(finished[0], copied, log)
    assert log.started == (0, 8)
    assert log.events == []
    assert cell_files(copied) == before
    processes = json.loads((copied / "settings.json").read_text())["processes"]
    assert processes["workers"] == 2, "those that made the cells"
    assert plain(copied) == plain(finished[1])


def test_only_what_changed_is_run_and_what_left_is_dropped(copied: Path, tmp_path: Path, small_folder: Path) -> None:
    before = cell_files(copied)
    methods = METHODS.replace("- few-shot: {shots: 2}\n", "").replace("batch_size: 8", "batch_size: 8, rank: 4")
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, methods, seeds="[0, 1]")
    log = Log()
    run(recipe, copied, log)
    assert log.ended("done") == {("lora", 0), ("lora", 1)}
    after = cell_files(copied)
    assert not (copied / "cells" / "few-shot").exists()
    assert {p for p in after if after[p] != before[p]} == {f"cells/lora/seed-{s}/cell.json" for s in (0, 1)}
    assert json.loads((copied / "cells/lora/seed-0/cell.json").read_text())["options"]["rank"] == 4


@pytest.mark.parametrize(
    ("methods", "change", "expected"),
    [
        (METHODS, {}, (0, 8)),
        ("- zero-shot\n- few-shot: {shots: 2}", {"seeds": "[0, 1, 2]"}, (1, 4)),  # the third zero-shot is a copy
        (METHODS, {"budget": "{steps: 3}"}, (7, 0)),
        (METHODS, {"forgetting": "{bytes: 500, prompts: 2}"}, (7, 0)),
        (METHODS, {"forgetting": "false"}, (7, 0)),
        (METHODS, {"task": tiny.colour_task(48, 12, 15)}, (7, 0)),
        (METHODS.replace("zero-shot", "zero-shot: {label: base}"), {}, (1, 6)),
        (METHODS.replace("shots: 2", "shots: 2, selection: nearest"), {}, (1, 6)),
    ],
    ids=["nothing", "seed", "budget", "forgetting", "no forgetting", "task", "label", "option"],
)
def test_what_has_to_run_again(
    copied: Path, small_folder: Path, tmp_path: Path, methods: str, change: dict[str, Any], expected: tuple[int, int]
) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, methods, **change)
    assert to_run(recipe, copied) == expected


METRIC = "def length(answer, example):\n    return min(1.0, len(answer) / {})\n"


@pytest.fixture(scope="module")
def of_files(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe with a metric and a general text of its own."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "own.py").write_text(METRIC.format(5))
    (folder / "general.txt").write_text("The river is near the stone. " * 20)
    task = replace(tiny.colour_task(8, 4, 4), metrics=("exact-match", "own.py:length"))
    text = "{text: general.txt, prompts: 1}"
    tiny.write_recipe(folder, small_folder, "- zero-shot", seeds="[0]", task=task, forgetting=text)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("own.py", METRIC.format(5), (0, 1)),
        ("own.py", METRIC.format(6), (1, 0)),
        ("general.txt", "The river is near a stone. " * 20, (1, 0)),
        ("unrelated.txt", "", (0, 1)),
    ],
)
def test_what_has_to_run_again_when_a_file_changes(
    of_files: Path, file: str, content: str, expected: tuple[int, int]
) -> None:
    """Files that the recipe names and that decide results, although the examples are the same."""
    assert run(of_files / "colours.yaml", of_files / "out").results["complete"]
    before = (of_files / file).read_text() if (of_files / file).exists() else ""
    (of_files / file).write_text(content)
    try:
        assert to_run(of_files / "colours.yaml", of_files / "out") == expected
    finally:
        (of_files / file).write_text(before)


def test_files_of_metrics_within_others_are_known(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METRIC.format(5))
    own = f"{tmp_path / 'own.py'}:length"
    name = f"by-group:odd={quote(own, safe=':./')},even=operator:eq"
    task = replace(tiny.colour_task(), metrics=("exact-match", name, own))
    assert metric_files(task) == [tmp_path / "own.py", Path(operator.__file__), tmp_path / "own.py"]


def test_another_base_runs_everything(copied: Path, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", seed=9)
    assert to_run(tiny.write_recipe(tmp_path / "r", other, METHODS), copied) == (7, 0)


def test_a_broken_record_is_run_again_as_the_machine_chose_before(
    finished: tuple[Path, Path, Log, Comparison], copied: Path
) -> None:
    """Threads decide the last bits of sums: a run that goes on takes those of its beginning."""
    plan = json.loads((copied / "plan.json").read_text())
    (copied / "plan.json").write_text(json.dumps({**plan, "threads": 2 + plan["threads"]}))
    (copied / "cells/few-shot/seed-1/cell.json").write_text('{"status": "ok"')
    log = Log()
    run(finished[0], copied, log)
    assert log.ended("done") == {("few-shot", 1)}
    assert json.loads((copied / "plan.json").read_text())["threads"] == 2 + plan["threads"]
    assert plain(copied)["complete"]


def test_two_at_once_in_one_folder(finished: tuple[Path, Path, Log, Comparison], copied: Path) -> None:
    lock = Store(copied).lock()
    try:
        with pytest.raises(
            KamertonError, match=r"another run works in this folder \(process \d+\); wait for it"
        ) as caught:
            run(finished[0], copied)
        assert str(copied) in str(caught.value)
    finally:
        lock.release()
    run(finished[0], copied)


# -- failing cells --------------------------------------------------------------------------------------------------


def test_a_cell_that_fails_is_reported_and_stops_nothing(small_folder: Path, tmp_path: Path) -> None:
    methods = (
        "- zero-shot\n"
        "- lora: {label: wild, learning_rate: 1.0e+30}\n"
        "- lora: {label: astray, objective: language-modeling, texts: empty.txt, learning_rate: 0.001}\n"
        "- lora: {label: good, learning_rate: 0.001, batch_size: 8}\n"
    )
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, methods, seeds="[0]")
    (tmp_path / "r" / "empty.txt").touch()
    log = Log()
    comparison = run(recipe, tmp_path / "out", log)
    assert log.ended("done") == {("zero-shot", 0), ("good", 0)}
    assert log.ended("failed") == {("wild", 0), ("astray", 0)}
    failed = {f["label"]: f["error"] for f in comparison.failed}
    assert "the loss is not a number" in failed["wild"]
    assert "has no text" in failed["astray"]
    assert all("\n" not in line for line in failed.values())
    assert comparison.results["cells"] == {"planned": 4, "finished": 2, "failed": 2}
    assert {row["label"] for row in comparison.results["verdict"]["rows"]} == {"zero-shot", "good"}
    assert "wild" in comparison.report.read_text()
    assert to_run(recipe, tmp_path / "out") == (2, 2), "failed cells are tried again"


def test_a_comparison_of_which_nothing_works(small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, "- lora: {learning_rate: 1.0e+30}", seeds="[0]")
    comparison = run(recipe, tmp_path / "out")
    assert len(comparison.failed) == 1
    assert "No cell has finished" in comparison.sentence
    assert str(comparison)
    assert comparison.report.is_file()


def test_a_fault_of_ours_leaves_its_traceback_in_the_cell(small_base: Base, tmp_path: Path) -> None:
    """The worker's own handling of what is not a user's mistake: a line in the record, the traceback in a file."""
    from kamerton.comparison.worker import Cells

    store = Store(tmp_path)
    cell = Cell("x", "zero-shot", {}, 0, "f")
    plan = {"budget": {}, "sampling": {"unknown": 1}, "max_batch_tokens": 100}
    event = Cells(store, plan, small_base, tiny.colour_task(), None, "r").run(cell.__dict__, None, lambda *_: None)
    assert event["event"] == "failed"
    assert "TypeError" in event["error"]
    assert "Traceback" in (tmp_path / "cells/x/seed-0/error.txt").read_text()
    assert store.record(cell)["status"] == "failed"  # type: ignore[index]


class Killer(Watcher):
    """Kills the worker of one cell while it trains."""

    def __init__(self, label: str) -> None:
        self.label, self.killed = label, 0

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        if cell.label != self.label or event["event"] != "progress" or self.killed:
            return
        busy = [
            p for p in psutil.Process().children(recursive=True)
            if any((f := Path(o.path)).name == ".lock" and f.parent.parent.name == cell.label for o in p.open_files())
        ]  # fmt: skip
        for process in busy:
            process.send_signal(signal.SIGKILL)
            self.killed += 1


def test_a_killed_worker_takes_one_cell_with_it(small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, METHODS, seeds="[0]", budget="{steps: 40}")
    killer = Killer("prompt-tuning")
    comparison = run(recipe, tmp_path / "out", killer)
    assert killer.killed == 1
    assert [(f["label"], f["seed"]) for f in comparison.failed] == [("prompt-tuning", 0)]
    assert "signal 9" in comparison.failed[0]["error"]
    assert comparison.results["cells"]["finished"] == 3
    log = Log()
    again = run(recipe, tmp_path / "out", log)
    assert again.failed == []
    assert log.ended("done") == {("prompt-tuning", 0)}


# -- SIGKILL --------------------------------------------------------------------------------------------------------


def start(recipe: Path, output: Path, workers: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kamerton", "compare", str(recipe), "--output", str(output), "--workers", workers],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def workers_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "kamerton.comparison.worker" in line and str(folder) in line:
            found.append(process)
    return found


def kill(recipe: Path, output: Path, kills: int, longest: float, workers: str) -> int:
    """Start the comparison and kill it, again and again; returns how many kills met a running comparison."""
    rng = random.Random(10)
    met = 0
    for _ in range(kills):
        process = start(recipe, output, workers)
        try:
            process.wait(timeout=rng.uniform(0.2, longest))
        except subprocess.TimeoutExpired:
            met += 1
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        if rng.random() < 0.5:  # sometimes at once, while its workers may still be there for a moment
            deadline = time.monotonic() + 10
            while workers_of(output) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not workers_of(output), "workers end with their parent"
    return met


def check_sigkill(recipe: Path, folder: Path, kills: int, longest: float, workers: str) -> None:
    straight, killed = folder / "straight", folder / "killed"
    done = start(recipe, straight, workers)
    assert done.wait() == 0, done.stderr.read().decode() if done.stderr else ""
    met = kill(recipe, killed, kills, longest, workers)
    assert met >= kills // 2, "the kills came too late to mean anything"
    last = start(recipe, killed, workers)
    errors = last.stderr.read().decode() if last.stderr else ""
    assert last.wait() == 0, errors
    assert plain(killed) == plain(straight)
    for path in cell_files(straight):
        assert (killed / path).with_name("answers.jsonl").read_bytes() == (straight / path).with_name(
            "answers.jsonl"
        ).read_bytes()
    left = [p for p in killed.rglob(".partial-*") if "fit" in p.parts]
    assert not left
    assert not workers_of(killed)


@pytest.mark.slow
def test_workers_end_with_their_parent(small_folder: Path, tmp_path: Path) -> None:
    """In the middle of a cell that would take minutes, and at their very start."""
    recipe = tiny.write_recipe(
        tmp_path / "r", small_folder, f"- lora: {FAST}", seeds="[0]", budget="{steps: 100000}", forgetting="false"
    )
    output = tmp_path / "out"
    process = start(recipe, output, "1")
    deadline = time.monotonic() + 90
    while not list(output.glob("cells/lora/seed-0/fit/learning-rate-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = workers_of(output)
    assert len(workers) == 1
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    late = subprocess.Popen(
        [sys.executable, "-m", "kamerton.comparison.worker", str(output), "1", str(process.pid)], env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert late.wait(timeout=30) == 1, "its parent is gone already"
    finally:
        late.kill()
        late.communicate()


SIX = f"- lora: {FAST}\n- prompt-tuning: {{tokens: 4}}"


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_results(small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, SIX, seeds="[0]", budget="{steps: 100}")
    check_sigkill(recipe, tmp_path, 6, 8.0, "1")


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_results(small_folder: Path, tmp_path: Path) -> None:
    methods = f"- zero-shot\n{SIX}"
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, methods, seeds="[0, 1]", budget="{steps: 100}")
    check_sigkill(recipe, tmp_path, 10, 10.0, "2")


@pytest.mark.slow
def test_killed_ten_times_on_the_demo_model(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "task: {embedded: dates, limit: {train: 64, validation: 16, test: 24}}\n"
        "base: {model: demo}\n"
        "methods:\n- zero-shot\n- few-shot: {shots: 4}\n- lora: {learning_rate: 0.001}\n- prompt-tuning\n"
        "seeds: [0, 1]\nbudget: {examples: 128}\nforgetting: {bytes: 2000, prompts: 4}\n"
    )
    check_sigkill(recipe, tmp_path, 10, 90.0, "2")

"""Flipped bytes, clocks that jump, two at once, numbers that are none: what is whole is used, and what happened is said."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import faulty_runs
import tiny
from kamerton.base import Base
from kamerton.comparison import progress
from kamerton.comparison.store import Cell, Store
from kamerton.errors import KamertonError, ModelError
from kamerton.files import sweep, whole_folder
from kamerton.locks import take
from kamerton.pretraining.run import pretrain
from kamerton.pretraining.tokens import byte_tokenizer, read_corpus
from kamerton.training import Budget, Diverged
from kamerton.training.checkpoint import checkpoints, load_weights, save_weights
from tiny import Cli
from training_runs import attach, objective, run, same, weights

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)


def flip(path: Path, rng: random.Random) -> str:
    """Change one bit of a file; says which."""
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name}, byte {place}, bit {bit}"


# -- flipped bytes ----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_checkpoint_gives_way_to_the_one_before(small_base: Base, tmp_path: Path) -> None:
    straight, _ = run(small_base, "lora", tmp_path / "straight")
    for stop in (3, 6):
        run(small_base, "lora", tmp_path / "whole", stop_after=stop)
    rng = random.Random(5)
    for name in ("state.json", "weights.safetensors", "optimiser.safetensors"):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        what = flip(checkpoints(folder)[0] / name, rng)
        tuned, result = run(small_base, "lora", folder)
        notes = [note for note in result.notes if "is damaged" in note]
        assert len(notes) == 1, (what, result.notes)
        assert notes[0].endswith("; the one before it was used")
        assert same(weights(tuned), weights(straight)), what


def test_flipped_bits_in_the_best_weights_are_noticed(small_base: Base, tmp_path: Path) -> None:
    tuned, path = attach(small_base, "lora"), tmp_path / "best.safetensors"
    save_weights(path, tuned.module)
    load_weights(path, tuned.module)
    whole, rng = path.read_bytes(), random.Random(6)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(6):
        content = bytearray(whole)
        content[rng.randrange(header, len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ModelError, match="its checksum does not match"):
            load_weights(path, tuned.module)


def test_a_flipped_bit_in_a_cell_makes_it_unfinished(tmp_path: Path) -> None:
    store, cell, rng = Store(tmp_path), Cell("lora", "lora", {"rank": 4}, 0, "f"), random.Random(7)
    record = {
        "label": "lora",
        "status": "ok",
        "fingerprint": "f",
        "metrics": {"exact-match": 0.1 + 0.2},
        "n": [1, None],
    }
    folder = store.cell_folder("lora", 0)

    def write() -> None:
        store.write_cell(cell, record, [{"id": "a", "answer": "red"}], [{"step": 1.0, "loss": 0.25}])

    write()
    assert store.finished(cell)
    for name in ("cell.json", "answers.jsonl", "curve.jsonl") * 4:
        what = flip(folder / name, rng)
        assert not store.finished(cell), what
        write()
        assert store.finished(cell)
    (folder / "answers.jsonl").unlink()
    assert not store.finished(cell)
    assert store.damaged(cell) == "answers.jsonl"


def test_damaged_tokens_are_written_again_and_it_is_said(tmp_path: Path) -> None:
    texts, folder = faulty_runs.write_texts(tmp_path), tmp_path / "tokens"

    def read() -> Any:
        return read_corpus(byte_tokenizer(), 0, folder, texts, 0.1, "paragraph")

    first = read()
    tokens = first.train.tokens.copy()
    assert read().notes == []
    what = flip(folder / "train.bin", random.Random(8))
    again = read()
    assert (again.train.tokens == tokens).all(), what
    assert len(again.notes) == 1
    assert "train.bin was damaged" in again.notes[0]
    for content in (b"", b"{", b'{"key": 1}'):
        (folder / "about.json").write_bytes(content)
        assert (read().train.tokens == tokens).all()


def test_a_truncated_file_of_a_saved_method_is_one_line(small_folder: Path, tmp_path: Path, cli: Cli) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, "- lora: {learning_rate: 0.01}", budget="{steps: 2}")
    assert cli("tune", recipe, "--output", tmp_path / "out")[0] == 0
    (file,) = (tmp_path / "out").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    status, _, said = cli("eval", tmp_path / "out", recipe)
    assert status == 2
    assert [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    assert str(tmp_path / "out") in said


# -- another recipe in the folder -------------------------------------------------------------------------------------


def test_later_checkpoints_of_another_recipe_do_not_push_out_new_ones(tmp_path: Path) -> None:
    given = json.loads(faulty_runs.pretrain_recipe(tmp_path, budget={"steps": 8}).read_text())
    for stop in (5, 7):
        pretrain(given, output=tmp_path / "out", stop_after=stop)
    other = {**given, "training": {**given["training"], "learning_rate": 0.02}}
    for stop in (2, 3, 4):
        pretrain(other, output=tmp_path / "out", stop_after=stop)
    assert [p.name for p in checkpoints(tmp_path / "out" / "fit")] == [f"step-{n:06d}" for n in (7, 5, 4, 3)]
    straight, gone_on = pretrain(other, output=tmp_path / "straight"), pretrain(other, output=tmp_path / "out")
    assert straight is not None
    assert gone_on is not None
    assert faulty_runs.pretrained(gone_on.folder) == faulty_runs.pretrained(straight.folder)


# -- what killed processes leave --------------------------------------------------------------------------------------


def dead_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_what_the_dead_left_is_swept_and_what_the_living_write_is_not(tmp_path: Path) -> None:
    dead, mine = dead_process(), os.getpid()
    (tmp_path / "a" / f".partial-{dead}-step-000002").mkdir(parents=True)
    (tmp_path / "a" / f".partial-{dead}-cell.json").write_text("{")
    (tmp_path / "a" / f".partial-{mine}-cell.json").write_text("{")
    (tmp_path / ".partial-notes").write_text("no process of ours writes so")
    (tmp_path / f".former-{dead}-model").mkdir()
    (tmp_path / f".former-{dead}-model" / "config.json").write_text("{}")
    sweep(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [".partial-notes", f"a/.partial-{mine}-cell.json", "model/config.json"]


def test_a_folder_whose_replacement_was_killed_is_there_again(tmp_path: Path) -> None:
    former = tmp_path / f".former-{dead_process()}-model"
    former.mkdir()
    (former / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model", replace=True):
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "old"


# -- two at once ------------------------------------------------------------------------------------------------------


def test_whoever_comes_second_is_told_who_is_first(
    small_folder: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamerton.retrieval.index.WAIT", 0.1)
    monkeypatch.setattr("kamerton.retrieval.index.load_encoder", lambda _: words_encoder())
    for name, job in faulty_runs.jobs(tmp_path, small_folder).items():
        out = tmp_path / f"out-{name}"
        out.mkdir()
        lock = take(out, "")
        status, _, said = cli(*job.arguments(out))
        lock.release()
        assert status == 2, said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert f"(process {os.getpid()})" in errors[0]
        assert "wait for it, stop it, or " in errors[0]


def words_encoder() -> Any:
    from words_encoder import WordsEncoder

    return WordsEncoder()


def test_the_lock_of_a_dead_process_blocks_nobody(tmp_path: Path) -> None:
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = take(tmp_path, "first")
        os.write(write, b"x")
        time.sleep(60)
        os._exit(int(held.is_locked))
    os.read(ready, 1)
    with pytest.raises(KamertonError, match=rf"first \(process {child}\); wait for it, stop it"):
        take(tmp_path, "first")
    os.kill(child, 9)
    os.waitpid(child, 0)
    take(tmp_path, "first").release()
    os.close(ready)
    os.close(write)


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A clock on the wall that jumps by a day at every look, forwards and backwards; how often it was looked at."""
    rng, real, looks = random.Random(3), time.time, [0]

    def now() -> float:
        looks[0] += 1
        return real() + rng.choice((-86400, 0, 86400))

    monkeypatch.setattr(time, "time", now)
    return lambda: looks[0]


def test_a_clock_that_jumps_changes_no_result_and_no_duration(jumping: Callable[[], int], tmp_path: Path) -> None:
    given = json.loads(faulty_runs.pretrain_recipe(tmp_path, budget={"steps": 8}).read_text())
    begun = time.perf_counter()
    pretrain(given, output=tmp_path / "out", stop_after=3)
    told = json.loads((tmp_path / "out" / "progress.json").read_text())
    made = pretrain(given, output=tmp_path / "out")
    whole = time.perf_counter() - begun
    assert made is not None
    assert 0 < made.results["seconds"] < whole
    assert all(
        a["seconds"] <= b["seconds"] for a, b in zip(made.results["curve"], made.results["curve"][1:], strict=False)
    )
    assert 0 <= told["seconds"] < whole
    assert jumping() > 2
    straight = pretrain(given, output=tmp_path / "straight")
    assert straight is not None
    assert faulty_runs.pretrained(made.folder) == faulty_runs.pretrained(straight.folder)


@pytest.mark.usefixtures("jumping")
def test_a_budget_in_seconds_is_not_of_the_clock_on_the_wall(small_base: Base, tmp_path: Path) -> None:
    begun = time.perf_counter()
    _, result = run(small_base, "lora", tmp_path, budget=Budget(seconds=0.5), changes={"validations": 1})
    assert 0.5 <= result.state.seconds <= time.perf_counter() - begun


def test_a_run_is_still_known_when_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = progress.RunMark(tmp_path)
    linux = pytest.importorskip("psutil._pslinux")
    real = linux.boot_time
    for days in (-1, 1):
        # whoever sets the clock sets the time at which the machine is said to have started
        monkeypatch.setattr(linux, "boot_time", lambda days=days: real() + 86400 * days)
        assert abs(psutil.boot_time() - real()) == 86400
        assert progress.run_of(tmp_path)[1]
    mark.end()


# -- numbers that are none --------------------------------------------------------------------------------------------


def test_the_example_whose_loss_is_no_number_is_named(small_base: Base, tmp_path: Path) -> None:
    goal = objective(small_base)
    bad = goal._train[17]
    goal._train[17] = replace(bad, weights=tuple(w and float("nan") for w in bad.weights))
    with pytest.raises(Diverged, match="the loss is not a number at step") as caught:
        run(small_base, "lora", tmp_path, goal=goal)
    assert "; example colour-17)" in str(caught.value)
    step = caught.value.state.step
    if step:
        assert checkpoints(tmp_path)[0].name == f"step-{step:06d}", "the last good one is kept"
    straight, _ = run(small_base, "lora", tmp_path / "straight")
    mended, _ = run(small_base, "lora", tmp_path)
    assert same(weights(mended), weights(straight)), "mended, it goes on from there as if nothing had been"


def test_weights_that_are_no_numbers_name_the_whole_step(small_base: Base, tmp_path: Path) -> None:
    from kamerton.training import fit
    from training_runs import BUDGET, SETTINGS

    tuned = attach(small_base, "lora")
    with torch.no_grad():
        next(p for p in tuned.module.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(Diverged, match="all 8 examples of the step, among them example colour-") as caught:
        fit(tuned.model, tuned.module, objective(small_base), SETTINGS, BUDGET, tmp_path)
    assert "and 4 more" in str(caught.value)
    assert checkpoints(tmp_path) == []


def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_used(small_base: Base, tmp_path: Path) -> None:
    from kamerton.training import fit
    from training_runs import BUDGET, SETTINGS

    tuned = attach(small_base, "lora")
    trained = next(p for p in tuned.module.parameters() if p.requires_grad)
    trained.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(tuned)
    with pytest.raises(Diverged, match="the gradient is not a number at step 0"):
        fit(tuned.model, tuned.module, objective(small_base), SETTINGS, BUDGET, tmp_path)
    assert same(weights(tuned), before)


def test_the_place_in_a_corpus_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kamerton.objectives.packed_contexts import PackedContexts
    from kamerton.training.objective import Loss

    real = PackedContexts.loss

    def planted(self: PackedContexts, model: Any, batch: Any) -> Loss:
        found = real(self, model, batch)
        return Loss(found.total * float("nan")) if any(s <= 500 < s + self.context for s in batch.starts) else found

    monkeypatch.setattr(PackedContexts, "loss", planted)
    recipe = json.loads(faulty_runs.pretrain_recipe(tmp_path, budget={"epochs": 1}).read_text())
    with pytest.raises(Diverged, match=r"; tokens 480 to 512 of the corpus\)"):
        pretrain(recipe, output=tmp_path / "out")

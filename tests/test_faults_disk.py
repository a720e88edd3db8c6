"""Disks that are full or read-only, and places that are taken: one line, status 2; with room again it goes on."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import faulty_runs
import tiny
from faulty_runs import Job, resize, small_disk
from kamerton.errors import ResourceError
from kamerton.feedback.store import FeedbackStore
from kamerton.files import write_text
from tiny import Cli

pytestmark = pytest.mark.usefixtures("one_thread", "words")
pytest_plugins = ("tiny",)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are made with an encoder that has no weights, and commit often; checkpoints come often too."""
    from kamerton.training.loop import Settings
    from words_encoder import WordsEncoder

    monkeypatch.setattr("kamerton.retrieval.index.load_encoder", lambda _: WordsEncoder())
    monkeypatch.setattr("kamerton.retrieval.index.FLUSH", 16)
    defaults = Settings.__init__.__defaults__
    often = tuple(0.0 if value == 30.0 else value for value in defaults or ())
    monkeypatch.setattr(Settings.__init__, "__defaults__", often)


def refused(ended: tuple[int, str, str], *says: str) -> str:
    """Check that a command ended with one line and status 2; gives the line."""
    status, out, said = ended
    assert status == 2, out + said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert any(text in errors[0] for text in says), errors[0]
    return errors[0]


def more_jobs(tmp_path: Path, base: Path) -> dict[str, Job]:
    """The commands of `faulty_runs.jobs` that run in this process, and those that write one thing at their end."""
    recipe = tiny.write_recipe(tmp_path / "eval", base, "- lora", task=tiny.colour_task(8, 4, 6))
    found = {name: job for name, job in faulty_runs.jobs(tmp_path, base).items() if name != "compare"}
    found["export"] = Job(
        lambda out: ["export", base, "--output", out], lambda out: faulty_runs.sums(out, "*.safetensors")
    )
    found["eval"] = Job(
        lambda out: ["eval", base, recipe, "--answers", out / "answers.jsonl"],
        lambda out: faulty_runs.sums(out, "*.jsonl"),
    )
    return found


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for so many bytes."""
    import os

    filler = disk / "filler"
    status = os.statvfs(disk)
    filler.write_bytes(b"x" * max(status.f_bavail * status.f_frsize - left, 0))
    return filler


FEW = {"pretrain": (150_000,), "export": (60_000,), "eval": (0,)}


@pytest.mark.parametrize("name", FEW)
def test_a_full_disk_is_one_line_and_with_room_it_goes_on(
    name: str, small_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    fills_up(name, FEW[name], small_folder, tmp_path, cli)


MANY = {
    "corpus": (0, 8_192, 40_000, 90_000), "scaling": (0, 100_000, 400_000), "tune": (0, 20_000, 60_000),
    "pretrain": (8_192, 40_000, 300_000), "index": (0, 50_000), "export": (8_192, 100_000, 150_000),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_a_disk_that_fills_up_sooner_or_later(name: str, small_folder: Path, tmp_path: Path, cli: Cli) -> None:
    fills_up(name, MANY[name], small_folder, tmp_path, cli)


def fills_up(name: str, rooms: tuple[int, ...], base: Path, tmp_path: Path, cli: Cli) -> None:
    """Run a command on a disk with so many bytes left, again with more, and at last with enough."""
    job = more_jobs(tmp_path, base)[name]
    assert cli(*job.arguments(tmp_path / "straight"))[0] == 0
    wanted, met = job.left(tmp_path / "straight"), 0
    with small_disk(tmp_path / "disk", "16m") as disk:
        for room in rooms:
            filler = fill(disk, room)
            ended = cli(*job.arguments(disk / "out"))
            if ended[0] != 0:
                line = refused(ended, "No space left on device", "are free")
                assert "make room" in line
                met += 1
            filler.unlink()
        assert met, "the disk was never full"
        status, _, said = cli(*job.arguments(disk / "out"))
        assert status == 0, said
        assert job.left(disk / "out") == wanted
        if name != "index":
            assert not faulty_runs.litter(disk)


@pytest.mark.slow
def test_a_comparison_on_a_full_disk_ends_and_goes_on(small_folder: Path, tmp_path: Path, cli: Cli) -> None:
    job = faulty_runs.jobs(tmp_path, small_folder)["compare"]
    assert cli(*job.arguments(tmp_path / "straight"))[0] == 0
    met = 0
    with small_disk(tmp_path / "disk", "16m") as disk:
        for room in (0, 120_000, 400_000):
            filler = fill(disk, room)
            ended = cli(*job.arguments(disk / "out"))
            if ended[0] != 0:
                refused(ended, "No space left on device")
                met += 1
            filler.unlink()
        assert met
        assert cli(*job.arguments(disk / "out"))[0] == 0
        assert job.left(disk / "out") == job.left(tmp_path / "straight")


def test_a_read_only_disk_is_one_line(small_folder: Path, tmp_path: Path, cli: Cli) -> None:
    jobs = more_jobs(tmp_path, small_folder)
    with small_disk(tmp_path / "disk", "4m") as disk:
        resize(disk, "ro")
        for name in jobs:
            line = refused(cli(*jobs[name].arguments(disk / "out")), "Read-only file system")
            assert str(disk) in line, name


def test_an_output_that_is_a_file_is_one_line_and_stays(small_folder: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for name, job in {**more_jobs(tmp_path, small_folder), **faulty_runs.jobs(tmp_path, small_folder)}.items():
        refused(cli(*job.arguments(file)), str(file))
        assert file.read_text() == "mine", name


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a disk that refuses, where nobody may mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", ["text", "weights", "export"])
def test_files_that_may_not_grow(write: str, small_folder: Path, tmp_path: Path, cli: Cli) -> None:
    def export() -> None:
        refused(cli("export", small_folder, "--output", tmp_path / "out"), "File too large")
        raise OSError(27, "File too large", "")

    def weights() -> None:
        from torch import nn

        from kamerton.training.checkpoint import save_weights

        save_weights(tmp_path / "out", nn.Linear(100, 100))

    writes: dict[str, Callable[[], Any]] = {
        "text": lambda: write_text(tmp_path / "out", "x" * 9000), "weights": weights, "export": export,
    }  # fmt: skip
    with longest_file(8192), pytest.raises(OSError, match="File too large"):
        writes[write]()
    assert not (tmp_path / "out").exists()
    assert not faulty_runs.litter(tmp_path)


def test_a_store_of_feedback_on_a_full_disk_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    from kamerton.tasks.example import conversation

    def item(store: FeedbackStore, n: int) -> None:
        from kamerton.feedback.records import Candidate, make_item

        store.add(
            [make_item(conversation([("user", f"question {n} " + "x" * 2000)]), [Candidate("a"), Candidate("b")])]
        )

    with small_disk(tmp_path / "disk", "600k") as disk:
        store = FeedbackStore(disk / "labels.db")
        item(store, 0)
        filler, added = fill(disk, 20_000), 1

        def more() -> None:
            nonlocal added
            for n in range(1, 200):
                item(store, n)
                added += 1

        with pytest.raises(ResourceError, match=r"labels.db: cannot be written: database or disk is full; make room"):
            more()
        with sqlite3.connect(disk / "labels.db") as other:
            assert other.execute("SELECT count(*) FROM items").fetchone() == (added,)
            assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        filler.unlink()
        item(store, 1000)
        assert store.db.execute("SELECT count(*) FROM items").fetchone() == (added + 1,)

"""SIGKILL at random moments: whatever was killed goes on, and ends as if nobody had disturbed it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import faulty_runs
from faulty_runs import Forks, Job, litter

pytest_plugins = ("tiny",)
SEED = int(os.environ.get("KAMERTON_FAULT_SEED", "20"))
"""Of the moments; another one tries others."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as ready:
        yield ready


def killed(forks: Forks, job: Job, folder: Path, kills: int, seed: int) -> int:
    """Kill a command `kills` times at random moments while it runs, letting it end in between; returns its endings.

    A moment is drawn from the time that an undisturbed run takes. A run that ends before its moment has to have left
    what the undisturbed one left; then the next one begins in a new folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, log = random.Random(seed), folder / "log.txt"
    straight = forks.run(job.arguments(folder / "straight"), log)
    assert straight.status == 0, straight.said
    wanted = job.left(folder / "straight")
    met, ended, tries, out = 0, 0, 0, folder / "killed-0"
    moments: list[float] = []
    while met < kills or moments:
        last = met >= kills or tries > 8  # nobody is killed for ever
        moment = None if last else rng.uniform(0.02, straight.seconds)
        done = forks.run(job.arguments(out), log, kill_after=moment)
        told = f"seed {seed}, after kills at {[round(m, 3) for m in moments]} s of {straight.seconds:.2f} s"
        if done.status == -9:
            assert moment is not None
            met, tries = met + 1, tries + 1
            moments.append(moment)
            continue
        assert done.status == 0, f"{told}: {done.said}"
        assert job.left(out) == wanted, told
        assert not litter(out), told
        ended, tries, moments = ended + 1, 0, []
        out = folder / f"killed-{ended}"
    return ended


@pytest.mark.parametrize("name", ["pretrain"])
def test_killed_a_few_times_it_ends_the_same(name: str, forks: Forks, small_folder: Path, tmp_path: Path) -> None:
    assert killed(forks, faulty_runs.jobs(tmp_path, small_folder)[name], tmp_path / "runs", 2, SEED) >= 1


FIFTY = {"tune": 14, "pretrain": 13, "index": 8, "compare": 6, "corpus": 5, "scaling": 4}


def test_there_are_fifty() -> None:
    assert sum(FIFTY.values()) == 50


@pytest.mark.slow
@pytest.mark.parametrize("name", FIFTY)
def test_killed_fifty_times_it_ends_the_same(name: str, forks: Forks, small_folder: Path, tmp_path: Path) -> None:
    job = faulty_runs.jobs(tmp_path, small_folder)[name]
    assert killed(forks, job, tmp_path / "runs", FIFTY[name], SEED + 1) >= 1

"""What tests share: the demo model, loaded once, and tiny random models of many architectures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# programs that tests start share the machine with other tests: their threads do not spin
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test talks to the network; read when the hub's library is imported

import pytest
import torch
from hypothesis import settings

import architectures
from kamerton.base import Base, load_base

# a test that fails on one run in a hundred tells nothing in CI: there, hypothesis draws the same examples every time
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

torch.set_num_threads(1)  # tiny models gain nothing from two, and tests share the machine with each other


@pytest.fixture(scope="session")
def demo() -> Base:
    """The demo model in float32. Do not change it: `demo.reload()` gives a copy of your own."""
    return load_base("demo", dtype="float32")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny random model of the named architecture (`architectures.ARCHITECTURES`) and a byte tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            architectures.save(name, made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny_base(tiny_folder: Callable[[str], Path]) -> Callable[[str], Base]:
    """A tiny random model of the named architecture, loaded in float32 with its tokenizer. Do not change it."""
    made: dict[str, Base] = {}

    def load(name: str) -> Base:
        if name not in made:
            made[name] = load_base(tiny_folder(name), dtype="float32")
        return made[name]

    return load


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """A fresh tiny transformers model of the named architecture."""
    return architectures.model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

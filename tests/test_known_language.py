"""The adversarial signal in a language whose distribution is known exactly (benchmarks/known_language.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark, under a name that no installed package has."""
    path = Path(__file__).parents[1] / "benchmarks" / "known_language.py"
    spec = importlib.util.spec_from_file_location("kamerton_known_language", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_divergences_are_those_of_a_direct_sum(bench: ModuleType) -> None:
    """Chances of all strings of each query sum to one, and a language is at no distance from itself."""
    truth = bench.Language.drawn(0, 1.0)
    for query in range(bench.QUERIES):
        assert sum(truth.probability(query, s) for s in bench.STRINGS) == pytest.approx(1.0)

    class Exact:
        def score(self, asked: list[object], continuations: list[list[str]]) -> list[list[float]]:
            assert len(asked) == bench.QUERIES
            assert len(continuations[0]) == len(bench.STRINGS)
            return [[float(np.log(truth.probability(q, s))) for s in bench.STRINGS] for q in range(bench.QUERIES)]

    forward, reverse = bench.divergences(Exact(), truth)
    assert abs(forward) < 1e-9
    assert abs(reverse) < 1e-9


@pytest.mark.slow
def test_the_signal_helps_where_it_is_known_to(bench: ModuleType, tmp_path: Path) -> None:
    """6,000 references, a language that the prompt cannot express whole: less is wrongly said than by supervision.

    Both go on from the same start, at the same learning rate, for as many steps (docs/gan-prompt-study.md).
    """
    torch.set_num_threads(2)
    base = bench.pretrained(tmp_path, 0)
    options = {"controller": False, "weight": 3.0, "warmup_steps": 600, "discriminator_rate": 3e-3, "rate": 1.0}
    changes = []
    for seed in range(3):
        control, signal = (
            bench.trial(base, 6000, name, seed, steps=1500, stage=0.33, parameterisation="prompt-tuning", apart=1.0,
                        **options)
            for name in ("supervised", "references")
        )  # fmt: skip
        changes.append(np.subtract(signal, control))
    forward, reverse = np.mean(changes, axis=0)
    assert reverse < -0.02, changes
    assert forward < 0.01, changes

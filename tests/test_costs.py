"""FLOPs against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.base.work import Work, flops
from kamerton.inference import Sampling
from kamerton.methods import get_method, parse_options
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


LINEAR = ("mm", "addmm", "linear", "_mm")


def counted(run: Callable[[], Any]) -> tuple[float, float]:
    """PyTorch's own count of what ran: (products with weights, products of attention)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    linear = attention = 0.0
    for op, count in counter.get_flop_counts()["Global"].items():
        kind = str(op).split(".")[1]
        if kind in LINEAR:
            linear += count
        else:
            assert kind in ("bmm", "baddbmm") or "attention" in kind, kind
            attention += count
    return linear, attention


def check_flops(base: Base, folder: Path, tolerance: float) -> None:
    """Attention is compared apart: we count the pairs that are seen, a kernel may compute the whole square."""

    def linear(work: Work, hf: Any) -> float:
        return flops(replace(work, pairs=0, grad_pairs=0), hf)

    examples = [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:4]]
    rows = [r.tokens for r in examples]
    tokens = sum(map(len, rows))

    # forward
    model = base.model
    before = model.work.copy()
    with torch.no_grad():
        found, _ = counted(lambda: model.output(model.forward(rows).rows))
    work = model.work - before
    assert linear(work, model.hf) == pytest.approx(found, rel=tolerance)
    assert (work.tokens, work.outputs) == (tokens, tokens)
    assert work.pairs == sum(len(r) * (len(r) + 1) // 2 for r in rows)

    # a training step
    for name in ("lora", "full"):
        method = get_method(name)
        tuned = method.parameterisation.attach(base, parse_options(method, {}), tiny.colour_task(), 0)  # type: ignore[attr-defined]
        from kamerton.objectives.supervised import Supervised
        from kamerton.training.batches import make_batch

        batch = make_batch(examples, share=False)

        def step(tuned: Any = tuned, batch: Any = batch) -> None:
            Supervised.loss(object.__new__(Supervised), tuned.model, batch).total.backward()

        found, attention = counted(step)
        work = tuned.model.work
        assert work.grad_tokens == work.tokens == tokens
        assert linear(work, tuned.model.hf) == pytest.approx(found, rel=tolerance), name
        pairs = flops(work, tuned.model.hf) - linear(work, tuned.model.hf)
        assert 0.25 * attention <= pairs <= 1.05 * attention, "a triangle of a padded square"
        del tuned

    # generation
    adapted = fit(base, "zero-shot", folder)
    before = model.work.copy()
    answers: list[Any] = []
    asked = [e.messages for e in tiny.colour_task().test[:4]]
    found, _ = counted(lambda: answers.extend(adapted.generate(asked, Sampling(max_tokens=12))))
    work = model.work - before
    assert linear(work, model.hf) == pytest.approx(found, rel=tolerance)
    written = sum(len(a.tokens) for a in answers)
    assert work.outputs == written
    prompts = [len(base.renderer.prompt(c)) for c in asked]
    assert max(prompts) + written - len(asked) <= work.tokens <= sum(prompts) + written - len(asked)


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    base = load_base(tiny.save(tmp_path / "deep", layers=8), dtype="float32")
    check_flops(base, tmp_path, 0.05)


@pytest.mark.slow
def test_flops_of_the_demo_model(demo: Base, tmp_path: Path) -> None:
    check_flops(demo, tmp_path, 0.05)

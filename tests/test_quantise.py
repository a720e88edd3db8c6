"""Bases in 4 bits: the codes against an independent reading of the paper, packs, costs, loading, what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import nn

import kamerton as kt
import tiny
from kamerton.base import Base, load_base
from kamerton.base.model import probe
from kamerton.base.quantise import dequantise
from kamerton.base.work import Work, flops
from kamerton.errors import MissingExtra, ModelError
from kamerton.methods import load_adapted
from kamerton.training.batches import make_batch
from kamerton.tuning import get_parameterisation
from kamerton.tuning.lora import LoraOptions
from test_costs import LINEAR
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def packed(small_folder: Path) -> Base:
    return load_base(small_folder, dtype="float32", device="cpu", quantise="nf4")


def nf4() -> torch.Tensor:
    """The 16 values of NF4: quantiles of a normal distribution on both sides of zero, scaled to [−1, 1]."""
    offset = 0.9677083  # the mean of 1 − 1/30 and 1 − 1/32: outside it a normal variable is rarely
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    values = torch.tensor([*above, 0.0, *below]).sort().values
    return (values / values.abs().max()).float()


def test_layers_hold_the_nearest_codes_of_the_paper(small_base: Base, small_folder: Path) -> None:
    """Every weight is the nearest of 16 values times the largest of its block of 64, which is kept in 8 bits."""
    import bitsandbytes

    narrow = torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
    kept = bitsandbytes.functional.quantize_4bit(narrow, quant_type="nf4")
    if (bitsandbytes.functional.dequantize_4bit(*kept) - narrow).abs().max() > 0.25 * narrow.abs().max():
        pytest.skip("bitsandbytes gives rows that are no multiple of 64 back wrongly on this processor")
    plain = load_base(small_folder, dtype="float32", quantise="nf4")
    dequantise(plain.model.hf)
    own = dict(small_base.model.hf.named_modules())
    seen = 0
    for name, module in plain.model.hf.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        weight = own[name].weight.flatten()  # type: ignore[union-attr, operator]
        blocks = weight.view(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        codes = (blocks / largest)[..., None].sub(nf4()).abs().argmin(-1)
        expected = nf4()[codes] * largest
        # the scales are rounded to 8 bits: about a hundredth of their spread
        assert float((module.weight.view(-1, 64) - expected).abs().max()) <= 0.03 * float(largest.max())
        assert float((module.weight.flatten() - weight).abs().max()) > 0.01
        seen += 1
    assert seen == 14


def test_packs_of_a_quantised_base_are_its_own_passes(packed: Base, tiny_folder: Callable[[str], Path]) -> None:
    for base in (packed, *(load_base(tiny_folder(n), dtype="float32", quantise="nf4") for n in ("gpt2", "gemma2"))):
        assert probe(base.model, list(range(10, 26))) < 1e-3
        assert base.info.quantised == "nf4"


def test_what_is_said_of_it(packed: Base, small_base: Base) -> None:
    assert packed.info.parameters == small_base.info.parameters
    layers = packed.info.parameters - 400 * 48 - 5 * 48
    expected = 4 * (400 * 48 + 5 * 48) + layers / 2 + layers / 64  # codes, and a byte for each 64
    assert packed.info.bytes == pytest.approx(expected, rel=0.02)
    assert "stored as nf4, float32 on cpu" in str(packed.info)
    assert "nf4" not in str(small_base.info)


def test_the_fingerprint_sees_codes_and_scales(packed: Base, small_base: Base, small_folder: Path) -> None:
    again = load_base(small_folder, dtype="float32", quantise="nf4")
    assert again.info.fingerprint == packed.info.fingerprint != small_base.info.fingerprint
    from kamerton.base.load import _fingerprint

    state = again.model.hf.model.layers[0].mlp.up_proj.weight.quant_state
    state.absmax[0] += 1
    assert _fingerprint(again.model.hf) != packed.info.fingerprint


def test_layers_are_never_repacked(packed: Base) -> None:
    """On processors with bfloat16 instructions they would be, at the first evaluation, and give no gradient then."""
    import bitsandbytes

    layers = [m for m in packed.model.hf.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    assert not any(m.support_avx512bf16_for_cpu for m in layers)


def test_flops_are_those_of_the_matrices_and_not_of_their_codes(packed: Base, small_base: Base) -> None:
    work = Work(tokens=10, pairs=55, outputs=10)
    assert flops(work, packed.model.hf) == flops(work, small_base.model.hf)
    training = Work(10, 55, 10, 1, 0, 0, 10, 55, 10)
    task = tiny.colour_task()
    costs = []
    for kind in ("lora", "qlora"):
        room = get_parameterisation(kind)
        costs.append(flops(training, room.attach(small_base, room.options(), task, 0).model.hf))
    assert costs[0] == costs[1] > 0


def test_flops_of_dora_are_those_that_torch_counts(small_base: Base) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    room = get_parameterisation("lora")
    tuned = room.attach(small_base, room.options(dora=True), tiny.colour_task(), 0)
    rows = [[5, 6, 7, 8], [9, 10, 11]]

    def run() -> None:
        tuned.model.output(tuned.model.forward(rows).rows).sum().backward()

    tuned.model.work = Work()
    with FlopCounterMode(display=False) as counter:
        run()
    found = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op).split(".")[1] in LINEAR)
    work = tuned.model.work
    assert work.passes == 1
    work.pairs = work.grad_pairs = 0
    assert flops(work, tuned.model.hf) == pytest.approx(found, rel=0.05)
    work.passes = 0
    assert flops(work, tuned.model.hf) < 0.6 * found, "few tokens: half of it goes to the rows' lengths"


@pytest.mark.parametrize("name", ["lora", "qlora", "prompt-tuning"])
def test_a_quantised_base_is_tuned_saved_and_loaded(packed: Base, name: str, tmp_path: Path) -> None:
    adapted = fit(packed, name, tmp_path / "fit", learning_rate=1e-2)
    assert adapted.record.curve[-1]["loss"] < adapted.record.curve[0]["loss"]
    adapted.save(tmp_path / "saved")
    asked = [e.messages for e in tiny.colour_task().test[:3]]
    for base in (None, packed):  # from the request in the folder, too
        again = load_adapted(tmp_path / "saved", base)
        assert again.base.info.quantised == "nf4"
        assert again.score(asked, [["red", "blue"]] * 3) == adapted.score(asked, [["red", "blue"]] * 3)


def test_a_released_base_holds_no_weights(small_folder: Path) -> None:
    for quantise in (None, "nf4"):
        base = load_base(small_folder, dtype="float32", quantise=quantise)  # type: ignore[arg-type]
        base.release()
        assert all(p.is_meta for p in base.model.hf.parameters())


@pytest.mark.slow
def test_a_comparison_on_a_quantised_base(small_folder: Path, tmp_path: Path) -> None:
    methods = "  - zero-shot\n  - lora: {learning_rate: 0.01}\n  - full: {freeze_layers: 1}"
    recipe = tiny.write_recipe(tmp_path, small_folder, methods, seeds="1")
    text = recipe.read_text(encoding="utf-8").replace("dtype: float32", "dtype: float32, quantise: nf4")
    recipe.write_text(text, encoding="utf-8")
    result = kt.compare(recipe, output=tmp_path / "out", workers=1)
    assert [cell["label"] for cell in result.failed] == ["full"]
    assert kt.merge(tmp_path / "out" / "cells" / "lora" / "seed-0", tmp_path / "merged").difference < 1e-4


def test_all_weights_in_4_bits_cannot_be_trained(packed: Base, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"full: weights in nf4 cannot be trained; use qlora, or leave quantise out"):
        fit(packed, "full", tmp_path)


def test_a_recipe_names_it(small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, small_folder, "  - lora: {learning_rate: 0.01}\n  - full")
    text = recipe.read_text(encoding="utf-8").replace("dtype: float32", "dtype: float32, quantise: nf4")
    recipe.write_text(text, encoding="utf-8")
    adapted = kt.tune(recipe, "lora", output=tmp_path / "out")
    assert adapted.base.info.quantised == "nf4"
    assert kt.load(tmp_path / "out").base.info.quantised == "nf4"
    recipe.write_text(text.replace("nf4", "int3"), encoding="utf-8")
    with pytest.raises(kt.KamertonError, match=r"colours\.yaml:\d+: base\.quantise: .*nf4"):
        kt.tune(recipe, "lora", output=tmp_path / "out")


def test_without_bitsandbytes_it_is_one_line(
    small_base: Base, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)
    )
    line = r"bitsandbytes is not installed; run: pip install 'kamerton\[qlora\]'"
    with pytest.raises(MissingExtra, match=line):
        load_base(small_folder, quantise="nf4")
    with pytest.raises(MissingExtra, match=line):
        fit(small_base, "qlora", tmp_path)


def test_a_folder_that_is_quantised_already(packed: Base, tmp_path: Path) -> None:
    packed.model.hf.save_pretrained(tmp_path)
    packed.renderer.tokenizer.save_pretrained(tmp_path)
    base = load_base(tmp_path, dtype="float32")
    assert base.info.quantised == "nf4"
    rows: Any = [[5, 6, 7, 8]]
    with torch.no_grad():
        assert torch.equal(base.model.forward(rows).rows, packed.model.forward(rows).rows)
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes\); leave quantise out"):
        load_base(tmp_path, quantise="nf4")
    assert fit(base, "qlora", tmp_path / "fit", learning_rate=1e-2).record.curve
    with pytest.raises(ModelError, match="unknown quantise 'int3'; use nf4"):
        load_base(packed.info.source, quantise="int3")  # type: ignore[arg-type]


def test_a_base_in_four_bits_is_in_memory_once(packed: Base) -> None:
    tuned = get_parameterisation("qlora").attach(packed, LoraOptions(rank=2), tiny.colour_task(), 0)
    places = {p.data_ptr() for p in tuned.model.hf.parameters()}
    assert all(p.data_ptr() in places for p in packed.model.hf.parameters())
    example = tiny.colour_task().train[0]
    batch = make_batch([packed.renderer.example(example.messages, example.answers[0])])
    from_disk = packed.reload().model
    assert torch.equal(tuned.model.target_log_probs(batch), from_disk.target_log_probs(batch))
    (-tuned.model.target_log_probs(batch).sum()).backward()
    trained = [p for p in tuned.module.parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained)
    assert not any(p.requires_grad for p in packed.model.hf.parameters())

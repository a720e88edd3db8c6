"""Merging: the written model against peft's and transformers' own passes, 4-bit bases, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

import kamerton as kt
import tiny
from kamerton.base import Base, load_base
from kamerton.base.quantise import dequantise, kind_of
from kamerton.cli.main import app
from kamerton.errors import KamertonError, ModelError
from kamerton.methods import merge as merging
from kamerton.methods.merge import largest_difference
from kamerton.methods.method import Adapted
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [[5, 6, 7, 8, 9, 10], [40, 41, 42, 43]]


def trained(base: Base, name: str, folder: Path, **options: Any) -> Adapted:
    """A few steps, and then weights that are far from where they started."""
    adapted = fit(base, name, folder / "fit", learning_rate=1e-3, **options)
    assert adapted.tuned is not None
    generator = torch.Generator().manual_seed(1)
    for key, value in adapted.tuned.module.named_parameters():
        if adapted.tuned.peft is None or "lora_" in key:
            value.data += torch.randn(value.shape, generator=generator) * 0.1
    return adapted


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "rslora": ("lora", {"rslora": True, "rank": 3}),
    "dora": ("lora", {"dora": True}),
    "tied output layer": ("lora", {"targets": ["q_proj", "lm_head"]}),
    "qlora": ("qlora", {}),
    "qlora with dora": ("qlora", {"dora": True, "rank": 4}),
    "full": ("full", {}),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_merged_model_as_the_adapted_one(small_base: Base, case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    adapted = trained(small_base, name, tmp_path, **options)
    merged = kt.merge(adapted, tmp_path / "merged")
    assert merged.difference < 1e-4 < merged.tolerance
    assert merged.positions > 100
    hf = transformers.AutoModelForCausalLM.from_pretrained(merged.folder, dtype=torch.float32).eval()
    for row in ROWS:
        with torch.no_grad():
            expected = adapted.engine.model.output(adapted.engine.model.forward([row]).rows)
            found = hf(input_ids=torch.tensor([row])).logits[0]
            base = small_base.model.output(small_base.model.forward([row]).rows)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert not torch.allclose(found, base, atol=0.1)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_other_architectures(tiny_base: Callable[[str], Base], name: str, kind: str, tmp_path: Path) -> None:
    """GPT-2 keeps its matrices transposed, in 4 bits it does not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        adapted = trained(tiny_base(name), kind, tmp_path)
    merged = kt.merge(adapted, tmp_path / "merged")
    assert merged.difference < 1e-3
    assert largest_difference(load_base(merged.folder, dtype="float32").model, tiny_base(name).model, ROWS) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_trained_biases_are_merged(tiny_folder: Callable[[str], Path], name: str, dtype: Any, tmp_path: Path) -> None:
    base = load_base(tiny_folder(name), dtype=dtype, device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        adapted = fit(base, "lora", tmp_path / "fit", learning_rate=0.02, bias="all")
        merged = kt.merge(adapted, tmp_path / "merged")
    written = dict(load_base(merged.folder, dtype=dtype, device="cpu").model.hf.named_parameters())
    own = dict(base.model.hf.named_parameters())
    biases = {n: p for n, p in adapted.engine.model.hf.named_parameters() if "bias" in n}
    assert len(biases) >= 9
    for key, value in biases.items():
        plain = key.replace(".base_layer.", ".")
        assert torch.equal(written[plain], value), plain
        assert not torch.equal(written[plain], own[plain]), plain


def test_a_merged_model_is_a_base(small_base: Base, tmp_path: Path) -> None:
    """It answers as the adapted model does, is tuned again, and keeps a template that the recipe gave."""
    template = tmp_path / "template.jinja"
    template.write_text(tiny.TEMPLATE.replace("<|end|>\n", "<|end|>"), encoding="utf-8")
    base = load_base(small_base.info.source, dtype="float32", chat_template=template)
    adapted = trained(base, "lora", tmp_path)
    adapted.save(tmp_path / "saved")
    merged = kt.merge(tmp_path / "saved", tmp_path / "merged")
    again = kt.load(merged.folder)
    assert again.renderer.fingerprint == base.renderer.fingerprint != small_base.renderer.fingerprint
    asked, plan = [e.messages for e in tiny.colour_task().test[:4]], kt.Sampling(max_tokens=5)
    assert [a.tokens for a in again.generate(asked, plan)] == [a.tokens for a in adapted.generate(asked, plan)]
    assert fit(again.base, "lora", tmp_path / "more", learning_rate=1e-3).record.curve


def test_a_base_in_4_bits_is_dequantised_before_the_merge(small_folder: Path, tmp_path: Path) -> None:
    """Planted: the same merge into 4-bit codes, which peft does by itself, is far off."""
    base = load_base(small_folder, dtype="float32", quantise="nf4")
    adapted = trained(base, "lora", tmp_path)
    merged = kt.merge(adapted, tmp_path / "merged")
    assert merged.difference < 1e-4
    written = load_base(merged.folder, dtype="float32")
    assert written.info.quantised is None
    assert written.info.parameters == base.info.parameters
    assert adapted.tuned is not None
    into_codes = adapted.tuned.peft.merge_and_unload()
    assert kind_of(into_codes) == "nf4"
    into_codes = type(base.model)(into_codes)
    assert largest_difference(into_codes, written.model, ROWS) > 100 * merged.difference


def test_dequantised_layers_are_what_4_bits_stand_for(small_folder: Path, tiny_folder: Callable[[str], Path]) -> None:
    for folder in (small_folder, tiny_folder("gpt2"), tiny_folder("qwen2")):  # transposed; with biases
        packed, plain = (load_base(folder, dtype="float32", quantise="nf4") for _ in range(2))
        dequantise(plain.model.hf)
        assert kind_of(plain.model.hf) is None
        assert largest_difference(packed.model, plain.model, ROWS) < 1e-4
        assert sum(p.numel() for p in plain.model.hf.parameters()) == packed.info.parameters


def test_a_merge_that_went_wrong_is_an_error_and_leaves_nothing(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the adapter is forgotten."""
    adapted = trained(small_base, "lora", tmp_path)
    monkeypatch.setattr(merging, "merged_weights", lambda base, tuned, method: base.reload().model.hf)
    with pytest.raises(ModelError, match=r"logits differ from the adapted model's by [\d.]+, more than 0.01; use the"):
        kt.merge(adapted, tmp_path / "out" / "merged")
    assert not list((tmp_path / "out").iterdir())


def test_numbers_that_are_none_are_an_error(small_base: Base, tmp_path: Path) -> None:
    adapted = trained(small_base, "lora", tmp_path)
    assert adapted.tuned is not None
    next(p for n, p in adapted.tuned.module.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"(?i)nan"):
        kt.merge(adapted, tmp_path / "merged")


def test_what_cannot_be_merged_is_one_line(small_base: Base, tmp_path: Path) -> None:
    soft = fit(small_base, "prompt-tuning", tmp_path / "fit", learning_rate=1e-3)
    with pytest.raises(KamertonError, match="merge: what prompt-tuning trained stands in front of the text and cannot"):
        kt.merge(soft, tmp_path / "merged")
    wrapped = fit(small_base, "few-shot", tmp_path / "shots", shots=1, over={"lora": {"learning_rate": 1e-3}})
    with pytest.raises(KamertonError, match=r"few-shot changes how .*; merge the lora inside it \(folder over/\)"):
        kt.merge(wrapped, tmp_path / "merged")
    with pytest.raises(KamertonError, match="zero-shot changed no weights; merge a method that changes weights: lora"):
        kt.merge(small_base.info.source, tmp_path / "merged")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(KamertonError, match="taken: is there already; choose another --output"):
        kt.merge(trained(small_base, "lora", tmp_path), tmp_path / "taken")


def test_the_command(small_base: Base, tmp_path: Path) -> None:
    trained(small_base, "qlora", tmp_path).save(tmp_path / "saved")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "saved"), "--output", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    assert "largest difference of a logit from the adapted model's: " in result.output
    assert "(more than 0.01 would be an error)" in result.output
    assert f"next: kamerton chat {tmp_path / 'merged'}" in result.output
    assert (tmp_path / "merged" / "model.safetensors").is_file()

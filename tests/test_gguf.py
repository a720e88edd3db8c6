"""GGUF files by path: the weights that are computed with are those that the gguf package itself dequantises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

import tiny
from kamerton.base import Base, load_base
from kamerton.base import load as loading
from kamerton.inference import Engine, Sampling
from kamerton.tasks.example import Message

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

HEADS, KV_HEADS, LAYERS = 4, 2, 2
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def model(words: Any) -> Any:
    """A tiny random Llama whose rows are whole blocks of 32 numbers, as quantised formats want them."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.3,
        bos_token_id=None, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection in the order of GGUF files: the halves of each head's rotation in turn."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def in_turn(weight: np.ndarray, heads: int) -> np.ndarray:
    """`interleaved` undone."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(path: Path, hf: Any, words: Any, kind: Kind) -> None:
    """A GGUF file of the model, its matrices quantised by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(64 // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(hf.config.rms_norm_eps)
    writer.add_vocab_size(len(words))
    bpe = json.loads(words.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in sorted(words.get_vocab().items(), key=lambda item: item[1])])
    special = set(words.all_special_ids)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if i in special else normal for i in range(len(words))])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]])
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_chat_template(tiny.TEMPLATE)
    for name, weight in hf.state_dict().items():
        ours = gguf_name(name)
        data = weight.float().numpy()
        if ".attn_q." in ours or ".attn_k." in ours:
            data = interleaved(data, HEADS if ".attn_q." in ours else KV_HEADS)
        if data.ndim == 2:
            writer.add_tensor(ours, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(ours, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """The name of a weight in a GGUF file."""
    plain = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    if name in plain:
        return plain[name]
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    theirs = {value: key for key, value in NAMES.items()}
    return f"blk.{layer}.{theirs[part.removesuffix('.weight')]}.weight"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAMERTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0])
def test_weights_are_those_that_the_gguf_package_dequantises(kind: Kind, cache: Path, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    hf = model(words)
    path = tmp_path / "tiny.gguf"
    write(path, hf, words, kind)
    base = load_base(path, dtype="float32")
    assert base.info.name == "tiny.gguf"
    assert list((cache / "models").glob("tiny-*/model.safetensors"))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    loaded = base.model.hf.state_dict()
    assert set(loaded) == set(hf.state_dict())
    for name, weight in loaded.items():
        tensor = stored[gguf_name(name)]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        if "q_proj" in name or "k_proj" in name:
            expected = in_turn(expected, HEADS if "q_proj" in name else KV_HEADS)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-6, err_msg=name)
        original = hf.state_dict()[name].numpy()
        tolerance = {Kind.F32: 0.0, Kind.F16: 1e-3}.get(kind, 0.05 if kind is Kind.Q8_0 else 0.3)
        assert np.abs(weight.numpy() - original).max() <= tolerance
    if kind is Kind.F32:  # and the tokenizer and template came with them
        said = (Message("user", "the river is red"),)
        assert base.renderer.prompt(said) == words(base.renderer.text(said), add_special_tokens=False)["input_ids"]
        (answer,) = Engine(base.model, base.renderer).generate([said], Sampling(max_tokens=4))
        prompt = torch.tensor([base.renderer.prompt(said)])
        written = hf.eval().generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
        assert list(answer.tokens) == [t for t in written.tolist() if t not in base.renderer.end_ids]


def test_the_demo_is_what_the_gguf_package_dequantises(demo: Base) -> None:
    """Some weights of each kind that the demo's file has."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(loading.demo_gguf()).tensors}
    weights = demo.model.hf.state_dict()
    kinds = set()
    for theirs, ours, heads in (
        ("blk.3.ffn_down", "model.layers.3.mlp.down_proj", 0), ("blk.7.attn_q", "model.layers.7.self_attn.q_proj", 9),
        ("blk.7.attn_k", "model.layers.7.self_attn.k_proj", 3), ("blk.29.attn_norm", "model.layers.29.input_layernorm", 0),
    ):  # fmt: skip
        tensor, weight = tensors[f"{theirs}.weight"], weights[f"{ours}.weight"].numpy()
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        np.testing.assert_allclose(weight, in_turn(expected, heads) if heads else expected, rtol=1e-6, atol=1e-6)
        kinds.add(tensor.tensor_type)
    assert len(kinds) > 1

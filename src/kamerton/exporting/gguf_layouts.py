"""Architectures that a GGUF file can hold: what llama.cpp calls their numbers, and what of them it cannot compute.

Names of tensors come from the `gguf` package. llama.cpp turns pairs of neighbouring numbers of queries and keys where
transformers turns the halves of a head against each other, so the rows of the two projections change places for `llama`
(the other families are turned as in transformers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamerton.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """How an architecture stands in a GGUF file.

    Attributes:
        name: llama.cpp's.
        describe: writes the numbers of a configuration with a GGUFWriter.
        lacks: what of a configuration llama.cpp would compute otherwise, in words; none: nothing.
        turned: whether rows of queries and keys change places.
        transposed: ends of the names of matrices that are stored the other way round.
    """

    name: str
    describe: Callable[[Any, Any], None]
    lacks: Callable[[Any], str | None]
    turned: bool = False
    transposed: tuple[str, ...] = ()


def head_size(config: Any) -> int:
    """D, numbers of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _rotary(writer: Any, config: Any) -> None:
    """What decoders with rotary positions have in common."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(head_size(config))
    writer.add_vocab_size(config.vocab_size)
    if head_size(config) * config.num_attention_heads != config.hidden_size or config.model_type == "qwen3":
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))


def _rotary_lacks(config: Any) -> str | None:
    kind = _rope(config).get("rope_type", "default")
    if kind not in ("default", "llama3") or (kind == "llama3" and config.model_type != "llama"):
        return f"rotary positions of the kind {kind}"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act}"
    if getattr(config, "mlp_bias", False) or getattr(config, "attention_bias", False):  # qwen2 has its own, always
        return "biases"
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)  # mistral does not say: all of them
    sliding = getattr(config, "sliding_window", None) is not None and "sliding_attention" in kinds
    return "attention in a sliding window" if sliding else None


def _gpt2(writer: Any, config: Any) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gpt2_lacks(config: Any) -> str | None:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"the activation {config.activation_function}"
    scaled = config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights
    return "attention with another scale" if scaled else None


LAYOUTS: dict[str, Layout] = {
    "llama": Layout("llama", _rotary, _rotary_lacks, turned=True),
    "mistral": Layout("llama", _rotary, _rotary_lacks, turned=True),
    "qwen2": Layout("qwen2", _rotary, _rotary_lacks),
    "qwen3": Layout("qwen3", _rotary, _rotary_lacks),
    "gpt2": Layout(
        "gpt2", _gpt2, _gpt2_lacks,
        transposed=("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    ),
}  # fmt: skip
"""By transformers' model type."""


def layout_of(hf: Any) -> Layout:
    """The layout of a model.

    Raises:
        ModelError: llama.cpp would not compute it, or not as it is.
    """
    kind, config = hf.config.model_type, hf.config
    if kind not in LAYOUTS or not type(hf).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(
            f"{type(hf).__name__} is not written as GGUF, only {', '.join(LAYOUTS)} are",
            where="export", mend="use --format safetensors",
        )  # fmt: skip
    lacks = LAYOUTS[kind].lacks(config)
    if lacks is not None:
        message = f"{type(hf).__name__} has {lacks}, which is not written as GGUF"
        raise ModelError(message, where="export", mend="use --format safetensors")
    return LAYOUTS[kind]


def header_is_not_read(config: Any) -> bool:
    """Whether transformers leaves out something of this configuration when it reads a GGUF file's header.

    It takes GPT-2's number of positions, Qwen3's size of a head and an even spread of rotary frequencies for granted.
    llama.cpp does not.
    """
    rope = _rope(config).get("rope_type", "default")
    return (
        config.model_type == "gpt2" or rope != "default" or (config.model_type == "qwen3" and head_size(config) != 128)
    )


def turned(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection (heads × D, …) in llama.cpp's order: the two halves of a head in turn."""
    count = rows.shape[0]
    return rows.reshape(heads, 2, count // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def frequency_factors(config: Any) -> np.ndarray | None:
    """(D / 2,) what the rotations of Llama 3.1 and later are slowed by, which llama.cpp reads as a tensor.

    Low frequencies are divided by `factor`, high ones stay, those between go over smoothly (transformers' `llama3`).
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    size, factor = head_size(config), rope["factor"]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    context = rope["original_max_position_embeddings"]
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(waves < context / high, 1.0, np.where(waves > context / low, factor, between))
    return factors.astype(np.float32)

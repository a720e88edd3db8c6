"""Tiny random models of many architectures, with a tokenizer whose tokens are bytes.

Initial weights are ten times larger than usual, so that attention is far from uniform and a wrong mask shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCABULARY = 320
WINDOW = 6
"""The sliding window of the architectures that have one: shorter than the texts of the tests."""
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mistral-window": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "smollm3": ("smollm3", {}),
    "gpt2": ("gpt2", _GPT2),
}
"""transformers' model type and what its configuration has besides the common sizes."""

_BOTH: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
_T5: dict[str, Any] = {
    **_BOTH, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART: dict[str, Any] = {
    **_BOTH, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 160, "bos_token_id": 1,
    "decoder_start_token_id": 2,
}  # fmt: skip
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", _T5),
    "t5-1.1": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("umt5", _T5),
    "bart": ("bart", _BART),
    "mbart": ("mbart", _BART),
    "pegasus": ("pegasus", {**_BART, "scale_embedding": True}),
    "marian": ("marian", {**_BART, "scale_embedding": True}),
    "m2m-100": ("m2m_100", {**_BART, "scale_embedding": True}),
}
"""The same for models with an encoder and a decoder."""


def config(name: str) -> Any:
    if name in ENCODER_DECODERS:
        kind, values = ENCODER_DECODERS[name]
        return transformers.AutoConfig.for_model(kind, **values)
    kind, extra = ARCHITECTURES[name]
    values = extra if kind == "gpt2" else {**_COMMON, **extra}
    return transformers.AutoConfig.for_model(kind, **values)


def model(name: str, seed: int = 0) -> Any:
    """A random model in float32, ready for inference."""
    torch.manual_seed(seed)
    if name in ENCODER_DECODERS:
        return _encoder_decoder(name)
    return transformers.AutoModelForCausalLM.from_config(config(name)).float().eval()


def _encoder_decoder(name: str) -> Any:
    made = transformers.AutoModelForSeq2SeqLM.from_config(config(name)).float().eval()
    own, cross = (2.0, 2.0) if "t5" in name else (15.0, 45.0)  # so that answers differ from question to question
    with torch.no_grad():
        for part, weight in made.named_parameters():
            if weight.ndim == 2:
                weight *= cross if "encoder_attn" in part else own
        if hasattr(made, "final_logits_bias"):
            made.final_logits_bias.normal_()
    if name == "bart":  # as BART's own configuration has it: every answer begins with <s>
        made.generation_config.forced_bos_token_id = 1
    made.generation_config.forced_eos_token_id = None
    return made


def tokenizer(template: str | None = TEMPLATE, **special: str) -> Any:
    """Bytes as tokens, after the special tokens: ids are small enough for every tiny model."""
    names = ["<pad>", "<s>", "</s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*names, *alphabet])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(names)
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    out = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **tokens)
    out.chat_template = template
    return out


def save(name: str, folder: Path, template: str | None = TEMPLATE) -> None:
    """A model folder as people have them."""
    model(name).save_pretrained(folder)
    words = tokenizer(None if name in ENCODER_DECODERS else template)
    if name in ENCODER_DECODERS:  # T5 puts an end token behind a text, BART <s> before it too
        around = "<s> $A </s>" if ENCODER_DECODERS[name][0] == "bart" else "$A </s>"
        special = [("<s>", 1), ("</s>", 2)]
        words.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            around, special_tokens=special
        )
    words.save_pretrained(folder)

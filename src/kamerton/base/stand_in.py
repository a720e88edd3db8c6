"""A narrow model in place of a wide one, to find out what work with the wide one takes without doing it.

As many layers, the same family, tokenizer and template, fresh weights. What decides how often a model is asked, and
with how many tokens, is in the data, the tokenizer and the method, so it is the same with the stand-in; what a token
costs is in the shapes, and `growth.py` says what those stand for. What depends on what the model says (when an answer
ends, which rollouts are good) is not known here: a stand-in's answers take all the room that they are given.

Left out: encoders, encoder–decoders and recurrent models.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kamerton.base.growth import FIELD
from kamerton.base.presets import PRESETS, build
from kamerton.base.published import PUBLISHED
from kamerton.base.show import chosen_shape
from kamerton.errors import KamertonError, RecipeError
from kamerton.recipe_errors import closest

HEAD = 6
"""Size of a stand-in's heads: rotation by position needs an even one."""
KEY_HEADS, INNER = 3, 104
"""A stand-in's heads of keys and values (of queries three times as many), and the inner width of its feed-forward
layers: widths that options and numbers of rows rarely have."""


def target_config(name: str, size: str | None, vocabulary: int) -> Any:
    """The configuration of a published model (`llama-7b`) or of a preset of some size (`llama`, `10m`).

    Args:
        vocabulary: tokens of a preset; a published model has its own.

    Raises:
        RecipeError: no such name or size, or a kind of model that stand-ins are not made of.
    """
    if name in PUBLISHED:
        if size is not None:
            raise RecipeError(f"{name} has its size already", where="--size", mend=f"use {PUBLISHED[name].preset}")
        preset, shape = PRESETS[PUBLISHED[name].preset], PUBLISHED[name].shape
    elif name in PRESETS:
        preset = PRESETS[name]
        shape = chosen_shape(preset, size, {"vocabulary": vocabulary})
    else:
        raise RecipeError(f"no preset or model '{name}'", where="--as", mend=closest(name, [*PRESETS, *PUBLISHED]))
    if preset.kind != "causal" or preset.recurrent or preset.name == "llava":
        raise RecipeError(f"{name} is no causal model with attention", where="--as", mend="use llama, gpt2 or moe")
    # positions are the recipe's affair here: what fits the base that is planned from has to fit
    return preset.config(replace(shape, context=max(shape.context, 2048)), {})


def widths(config: Any) -> tuple[dict[str, int], dict[str, Any]]:
    """The fields of a stand-in's configuration, and what they stand for.

    Raises:
        KamertonError: a configuration without the usual fields.
    """
    text = config.get_text_config()
    try:
        hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
        vocabulary = text.vocab_size
    except AttributeError as error:
        raise KamertonError(
            f"its configuration has no {error.name}", mend="name a causal model with attention"
        ) from None
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or hidden // heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    # experts are multiplied in groups, for which widths have to be multiples of eight
    few, narrow = 4 if getattr(text, "num_local_experts", None) else KEY_HEADS, INNER
    own_kv = few if kv_heads != heads else 3 * few
    own = {"heads": 3 * few, "kv_heads": own_kv, "hidden": 3 * few * HEAD, "inner": narrow}
    if hasattr(text, "head_dim"):  # then the width is free; twice 54 would be the rows of a prompt generator
        own["hidden"] += 9 if few == KEY_HEADS else 24
    key, own_key, query, own_query = kv_heads * head, own_kv * HEAD, heads * head, 3 * few * HEAD
    sizes = {
        HEAD: head, own["hidden"]: hidden, narrow: inner, own_query: query, own_key: key,
        own_query + 2 * own_key: query + 2 * key, 2 * narrow: 2 * inner, 2 * own_key * layers: 2 * key * layers,
        2 * own["hidden"]: 2 * hidden, 3 * own["hidden"]: 3 * hidden,
    }  # fmt: skip
    stands = {
        "sizes": sizes, "heads": {own_kv: kv_heads, 3 * few: heads}, "head": HEAD, "width": query,
        "vocabulary": vocabulary,
    }  # fmt: skip
    return own, stands


def write_stand_in(config: Any, source: Path | str, folder: Path) -> Path:
    """Write a stand-in as a model folder.

    Args:
        config: of the model that it stands for.
        source: a model whose tokenizer, template and end tokens it takes.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    given = transformers.AutoConfig.from_pretrained(source)
    own, stands = widths(config)
    small = copy.deepcopy(config)
    vocabulary = given.get_text_config().vocab_size
    stands["sizes"][vocabulary] = stands.pop("vocabulary")
    fields: dict[str, Any] = {
        "hidden_size": own["hidden"], "num_attention_heads": own["heads"], "vocab_size": vocabulary,
        "max_position_embeddings": getattr(given.get_text_config(), "max_position_embeddings", None) or 2048,
    }  # fmt: skip
    if hasattr(small, "num_key_value_heads"):
        fields["num_key_value_heads"] = own["kv_heads"]
    if hasattr(small, "head_dim"):
        fields["head_dim"] = HEAD
    fields["intermediate_size" if hasattr(small, "intermediate_size") else "n_inner"] = own["inner"]
    for name, value in fields.items():
        setattr(small, name, value)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(small, name, getattr(given, name, None))
    setattr(small, FIELD, stands)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = build(small, "causal")
    with_end = transformers.GenerationConfig.from_model_config(given)
    with suppress(OSError):  # none there: the configuration says how answers end
        with_end = transformers.GenerationConfig.from_pretrained(source)
    hf.generation_config = with_end
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

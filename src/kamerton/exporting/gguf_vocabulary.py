"""A tokenizer as a GGUF file holds it: byte-level BPE with its merges, special tokens and the name of its rules.

A GGUF file does not hold the expression that cuts a text into words, only a name that llama.cpp has one for. What a
tokenizer says of itself is looked up among those; other rules are refused, since a text would become other tokens.
"""

from __future__ import annotations

import json
from typing import Any

from kamerton.errors import ModelError
from kamerton.rendering import Renderer

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {
    _LLAMA3: "llama-bpe",
    _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2",
}
"""llama.cpp's names by the expression that a tokenizer splits texts with."""


def rules_name(about: dict[str, Any]) -> str:
    """llama.cpp's name of the rules by which a tokenizer cuts texts into words.

    Args:
        about: the content of `tokenizer.json`.

    Raises:
        ModelError: it is no byte-level BPE, or has rules without a name.
    """
    if about["model"]["type"] != "BPE" or about["model"].get("byte_fallback"):
        kind = about["model"]["type"]
        raise _refused(f"a {kind} tokenizer" if kind != "BPE" else "a BPE tokenizer of characters")
    normalizer = about.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":  # which llama.cpp leaves out
        raise _refused(f"a tokenizer that changes texts first ({normalizer['type']})")
    steps = about.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if _plain(steps[0]):
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and _plain(steps[1]):
            return "smollm"
        case ["Split", "ByteLevel"] if not steps[1]["use_regex"] and not steps[1]["add_prefix_space"]:
            expression = steps[0]["pattern"].get("Regex")
            if steps[0]["behavior"] == "Isolated" and not steps[0]["invert"] and expression in EXPRESSIONS:
                return EXPRESSIONS[expression]
    raise _refused(f"a tokenizer with other rules ({', '.join(str(step.get('type')) for step in steps)})")


def _plain(step: dict[str, Any]) -> bool:
    return bool(step["use_regex"]) and not step["add_prefix_space"]


def _refused(what: str) -> ModelError:
    names = ", ".join(("gpt-2", "smollm", *EXPRESSIONS.values()))
    return ModelError(
        f"{what} is not written as GGUF, only byte-level BPE by the rules of {names}", where="export",
        mend="use --format safetensors",
    )  # fmt: skip


def add_vocabulary(writer: Any, renderer: Renderer, size: int) -> list[str]:
    """Write a tokenizer and its chat template with a GGUFWriter.

    Args:
        size: V, rows of the embeddings; those that no token has are named.

    Returns:
        What the file cannot hold, in words.

    Raises:
        ModelError: the tokenizer cannot be written, or has more tokens than the model.
    """
    from gguf import TokenType

    tokenizer = renderer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("a tokenizer in Python")
    about = json.loads(backend.to_str())
    name = rules_name(about)
    if not about["model"]["merges"]:
        raise _refused("a tokenizer without merges")
    added = {token["id"]: token for token in about["added_tokens"]}
    texts = {i: text for text, i in about["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    if (most := max(texts)) >= size:
        message = f"the tokenizer has a token {most} and the model embeddings for {size}"
        raise ModelError(message, where="export", mend="give the model an embedding for each token")
    kinds = {i: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for i, token in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([kinds.get(i, TokenType.NORMAL if i in texts else TokenType.UNUSED) for i in range(size)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in about["model"]["merges"]])
    for role in ("bos", "eos", "unk", "sep", "pad"):
        token = getattr(tokenizer, f"{role}_token_id", None)
        if token is not None:
            getattr(writer, f"add_{role}_token_id")(token)
    if renderer.end_id != tokenizer.eos_token_id:
        writer.add_eot_token_id(renderer.end_id)
    writer.add_add_bos_token(starts_with_bos(renderer))
    writer.add_add_space_prefix(False)
    writer.add_chat_template(renderer.template)
    notes = []
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added.values()):
        notes.append("some special tokens swallow spaces beside them, which a GGUF file cannot say")
    if about.get("normalizer") is not None:
        notes.append("the tokenizer normalises texts (NFC), which llama.cpp does not")
    return notes


def starts_with_bos(renderer: Renderer) -> bool:
    """Whether the tokenizer puts its first token before every text."""
    tokenizer = renderer.tokenizer
    first = tokenizer("a", add_special_tokens=True)["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]

"""What is written: the plain weights of an adapted model, its tokenizer, and whether there is room for them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from kamerton.base.quantise import dequantise, kind_of
from kamerton.errors import KamertonError, ModelError
from kamerton.exporting.gguf_vocabulary import starts_with_bos
from kamerton.exporting.verify import TEXTS, check_bits, digest
from kamerton.methods import merge
from kamerton.methods.method import Adapted, Wrapped
from kamerton.rendering import FIXED_DATE, Renderer
from kamerton.retrieval.joint import QueryingModel
from kamerton.tasks.example import Message

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def check_plain(adapted: Adapted) -> None:
    """Refuse a model that plain weights cannot hold.

    Raises:
        KamertonError: it is asked in another way than a plain model, or what was trained stands beside the weights.
    """
    tuned = adapted.tuned
    if tuned is not None and tuned.peft is not None and not isinstance(tuned.model, QueryingModel):
        kind = tuned.peft.active_peft_config
        model = adapted.engine.model
        if kind.is_prompt_learning or model.soft_tokens or getattr(model, "inserts", None) is not None:
            raise _refused(adapted, "what it trained stands in front of the text, where no weights are")
        if not hasattr(tuned.peft.base_model, "merge_adapter") or str(kind.peft_type).endswith("BOTTLENECK"):
            raise _refused(adapted, "what it trained stands beside the weights and cannot be merged into them")
    form = kind_of(adapted.base.model.hf)
    if form not in (None, "nf4"):
        mend = "take the model's plain weights as the base"
        raise ModelError(f"the base is stored as {form}, which is not turned back", where="export", mend=mend)


def check_asked_plainly(adapted: Adapted) -> None:
    """Refuse a method that changes how a model is asked, which no format of weights or adapters holds.

    Raises:
        KamertonError: it is one.
    """
    if isinstance(adapted, Wrapped):
        inner = adapted.inner.method
        raise KamertonError(
            f"{adapted.method} changes how the model is asked, which no file of weights can hold",
            where="export",
            mend=f"serve it as it is (kamerton serve), or export the {inner} inside it, which is in its folder over/",
        )
    if adapted.tuned is not None and isinstance(adapted.tuned.model, QueryingModel):
        message = f"{adapted.method} answers with a query encoder and an index, which no file of weights can hold"
        raise KamertonError(message, where="export", mend="serve it as it is: kamerton serve")


def _refused(adapted: Adapted, why: str) -> KamertonError:
    return KamertonError(
        f"{adapted.method} is not written as plain weights: {why}", where="export",
        mend="use --format peft, or serve it as it is (kamerton serve)",
    )  # fmt: skip


def plain_weights(adapted: Adapted, dtype: torch.dtype | None) -> Any:
    """A transformers model without anything attached; not to be changed, for it may be the adapted model's own.

    Args:
        dtype: what it is rounded to; None: as it is, and a merged one in float32.
    """
    base, tuned = adapted.base, adapted.tuned
    if tuned is not None and tuned.peft is not None:
        return merge.merged_weights(base, tuned, adapted.method, dtype or torch.float32)
    hf = base.model.hf if tuned is None else tuned.model.hf
    if kind_of(hf):
        hf = base.reload().model.hf
        dequantise(hf)
        return hf if dtype is None else hf.to(dtype)
    return hf if dtype in (None, hf.dtype) else copy.deepcopy(hf).to(dtype)


def copied_bytes(adapted: Adapted, dtype: torch.dtype | None) -> int:
    """Memory that `plain_weights` takes beside the model, at most."""
    base, tuned = adapted.base, adapted.tuned
    count = base.info.parameters
    if tuned is not None and tuned.peft is not None:
        return count * 4 + (count * dtype.itemsize if dtype not in (None, torch.float32) else 0)
    hf = base.model.hf if tuned is None else tuned.model.hf
    if kind_of(hf) or dtype not in (None, hf.dtype):
        return count * (dtype or hf.dtype).itemsize + base.info.bytes
    return 0


def check_room(folder: Path, disk: int, memory: int) -> None:
    """Refuse what the disk or the memory cannot hold.

    Args:
        folder: that will be written.
        disk, memory: bytes that are needed.

    Raises:
        KamertonError: there is less.
    """
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free, available = shutil.disk_usage(place).free, psutil.virtual_memory().available
    if disk > free:
        message = f"the files take {disk / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
        raise KamertonError(message, where=folder, mend="make room, or choose another --output or --type")
    if memory > available:
        message = f"exporting takes {memory / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free"
        raise KamertonError(message, where=folder, mend="end other programs, or export a smaller model")


# -- a folder of safetensors ----------------------------------------------------------------------------------------


def write_folder(hf: Any, renderer: Renderer, folder: Path, shard_size: str) -> dict[str, str]:
    """Write a model folder: weights in safetensors, configurations, tokenizer and chat template.

    Returns:
        A sum over the bits of each weight.
    """
    config, former = hf.generation_config, hf.generation_config.eos_token_id
    ends = list(renderer.end_ids)
    config.eos_token_id = ends[0] if len(ends) == 1 else ends  # where kamerton stops, `generate` does too
    try:
        hf.save_pretrained(folder, max_shard_size=shard_size, safe_serialization=True)
    except ValueError as error:  # settings of generation that contradict each other
        reason = " ".join(str(error).split())[:200]
        mend = "mend the base's generation_config.json"
        raise ModelError(f"transformers cannot save it ({reason})", where=folder, mend=mend) from None
    finally:
        config.eos_token_id = former
    write_tokenizer(renderer, folder)
    return weight_digests(hf)


def weight_digests(hf: Any) -> dict[str, str]:
    """A sum over the bits of each weight; one that is used twice is counted once."""
    return {name: digest(weight) for name, weight in hf.named_parameters()}


def read_folder(folder: Path, written: dict[str, str], dtype: torch.dtype, device: Any) -> Any:
    """The model that was written, by transformers alone, with all of its bits.

    Args:
        written: what `write_folder` said.
        dtype: to compute in.

    Raises:
        ModelError: it cannot be loaded, or a weight is not the one that was written.
    """
    from transformers import AutoModelForCausalLM

    try:
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
        check_bits(written, weight_digests(hf), folder)
        if hf.dtype != dtype:  # not hf.to(dtype): it would round the rotary frequencies too
            hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except KamertonError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        message = f"transformers cannot load what was written ({type(error).__name__}: {reason})"
        raise ModelError(message, where=folder, mend="report this") from error
    return hf.to(device).eval()


def template_of(renderer: Renderer) -> str:
    """The template that a model is asked by; kamerton's plain one begins as the tokenizer begins a text."""
    return ("{{ bos_token }}" if renderer.plain and starts_with_bos(renderer) else "") + renderer.template


def write_tokenizer(renderer: Renderer, folder: Path) -> None:
    """Write the tokenizer with the template that the model is asked by."""
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.chat_template = template_of(renderer)
    tokenizer.save_pretrained(folder)


def check_tokenizer(folder: Path, renderer: Renderer) -> None:
    """Refuse a tokenizer that did not survive being written.

    Raises:
        ModelError: a text or a conversation becomes other tokens.
    """
    from transformers import AutoTokenizer

    one, two = AutoTokenizer.from_pretrained(folder), renderer.tokenizer
    chats: Sequence[tuple[Message, ...]] = [
        (Message("user", TEXTS[0]),),
        (Message("user", TEXTS[2]), Message("assistant", TEXTS[1]), Message("user", TEXTS[3])),
    ]
    same = all(
        one(text, add_special_tokens=False)["input_ids"] == two(text, add_special_tokens=False)["input_ids"]
        for text in TEXTS
    ) and all(
        one.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in chat], add_generation_prompt=True, tokenize=True,
            return_dict=False, date_string=FIXED_DATE,
        ) == renderer.prompt(chat)
        for chat in chats
    )  # fmt: skip
    if not same:
        message = "the tokenizer that was written cuts texts in another way"
        raise ModelError(message, where=folder, mend="report this")

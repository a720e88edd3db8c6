"""Whether a model that was written is the model that it was written from.

Two questions. Do the files hold what was to be written, bit by bit? That is asked with a sum over each tensor, so that
one number that changed is found. And does a program that reads them compute the same? That is asked with the logits of
real prompts at every position, over the whole vocabulary: a weight in another's place, a rotation in another order or
a wrong number in the header shows there.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kamerton.base.encoder_decoder import causal
from kamerton.errors import ModelError
from kamerton.evaluation.general_prompts import PROMPTS
from kamerton.methods.method import Adapted
from kamerton.rendering import Renderer
from kamerton.tasks.example import Message

PROBES = 8
"""General prompts whose logits are compared."""
LONGEST = 256
"""Tokens of a probe that are compared at most."""
TEXTS = (
    "A tuning fork gives one true note: 440 Hz.",
    "In 2024 it cost 1,234.56 and 7890123 people came;  12  34   567",
    "Ärger, naïve café, 你好，世界！ Привет, мир… ﷽ 🎵👩‍🚀",
    'def f(x):\n    """Twice."""\n\treturn x*2  # 0x1F\n\n\nprint(f(21))\r\n',
    "I'm sure they've said we'll see; IT'S   what DON'T isn't\n\n  \n end   ",
    "https://example.org/a_b?c=1&d=%20#e <b>bold</b> {{ x }} [INST] ###",
)
"""Texts that are cut into tokens by both sides; the special tokens of the model are asked too."""

Logits = Callable[[list[int]], Tensor]
"""Token ids, T of them, to (T, V) logits in float32."""


@dataclass(frozen=True)
class Check:
    """A program's logits beside the model's own.

    Attributes:
        by: the program that read what was written.
        difference: largest absolute difference of a logit.
        tolerance: what would have been an error.
        same: share of positions at which the likeliest token is the same.
        positions: that were compared, over the whole vocabulary each.
    """

    by: str
    difference: float
    tolerance: float
    same: float
    positions: int

    def __str__(self) -> str:
        return (
            f"read by {self.by}: largest difference of a logit {self.difference:.2g} over {self.positions} positions "
            f"(more than {self.tolerance:g} would be an error), the same likeliest token at {self.same:.1%}"
        )


@dataclass(frozen=True)
class Probe:
    """Prompts, and what the model says to them.

    Attributes:
        rows: token ids of each prompt.
        logits: (T, V) of each, in float32 on the CPU.
    """

    rows: list[list[int]]
    logits: list[Tensor]

    def check(self, by: str, other: Logits, tolerance: float, where: Path) -> Check:
        """Compare a program's logits.

        Raises:
            ModelError: they differ by more than the tolerance, or are not numbers.
        """
        worst, same = 0.0, 0
        for row, expected in zip(self.rows, self.logits, strict=True):
            found = other(row)
            width = expected.shape[1]  # rows of embeddings that no token has are no part of the model
            gap = (found[:, :width] - expected).abs().nan_to_num(nan=float("inf"))
            worst = max(worst, float(gap.max()))
            same += int((found[:, :width].argmax(1) == expected.argmax(1)).sum())
        positions = sum(map(len, self.rows))
        if not worst <= tolerance:
            raise ModelError(
                f"what {by} reads differs from the model by {worst:.3g} in a logit, more than {tolerance:g}; nothing "
                "was written",
                where=where, mend="report this, or use another --type",
            )  # fmt: skip
        return Check(by, worst, tolerance, same / positions, positions)


@torch.no_grad()
def probe(adapted: Adapted) -> Probe:
    """The logits of a model on the probes."""
    model = causal(adapted.engine.model, "export")
    most = min(LONGEST, model.example_limit(model.soft_tokens) or LONGEST)
    rows = [adapted.renderer.prompt((Message("user", text),))[:most] for text in PROMPTS[:PROBES]]
    return Probe(rows, [model.output(model.forward([r], prompts=[r]).rows).float().cpu() for r in rows])


def through_transformers(hf: Any) -> Logits:
    """transformers' (or peft's) own forward pass; what stands in front of the text is left out of the logits."""
    device = next(hf.parameters()).device

    @torch.no_grad()
    def logits(row: list[int]) -> Tensor:
        return hf(input_ids=torch.tensor([row], device=device)).logits[0, -len(row) :].float().cpu()

    return logits


# -- bits -----------------------------------------------------------------------------------------------------------


def digest(values: Tensor | np.ndarray) -> str:
    """A sum over the bits of a tensor and its data type's size."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data, digest_size=16).hexdigest()


def check_bits(written: Mapping[str, str], found: Mapping[str, str], where: Path) -> None:
    """Refuse files whose tensors are not those that were to be written.

    Raises:
        ModelError: one is missing, too many, or changed.
    """
    if written == found:
        return
    odd = [name for name in {**written, **found} if written.get(name) != found.get(name)]
    raise ModelError(
        f"{len(odd)} of {len(written)} tensors are not in the file as they were written, the first is {odd[0]}; "
        "nothing is left there",
        where=where, mend="check the disk and export again",
    )  # fmt: skip


# -- llama.cpp ------------------------------------------------------------------------------------------------------


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


@contextmanager
def llama_cpp(file: Path, positions: int) -> Iterator[Any]:
    """A GGUF file in llama.cpp, on the CPU, with the logits of every position.

    Raises:
        ModelError: llama.cpp cannot read it.
    """
    import llama_cpp as library

    try:
        model = library.Llama(
            str(file), n_ctx=positions, n_batch=positions, logits_all=True, n_gpu_layers=0, verbose=False,
            n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
        )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"llama.cpp cannot load it ({error})", where=file, mend="report this") from None
    try:
        yield model
    finally:
        model.close()


def through_llama_cpp(model: Any) -> Logits:
    """llama.cpp's logits."""

    def logits(row: list[int]) -> Tensor:
        model.reset()
        model.eval(row)
        return torch.from_numpy(np.array(model.scores[: len(row)], dtype=np.float32))

    return logits


def check_tokens(model: Any, renderer: Renderer, where: Path) -> int:
    """Compare how llama.cpp and the model's own tokenizer cut texts.

    Returns:
        The number of texts.

    Raises:
        ModelError: a text becomes other tokens.
    """
    tokenizer = renderer.tokenizer
    special = [tokenizer.decode([i]) for i in sorted(tokenizer.added_tokens_decoder)[:64]]
    mixed = "".join(f"{text} {token}a{token}" for text, token in zip(TEXTS, special * len(TEXTS), strict=False))
    texts: Sequence[str] = [*TEXTS, mixed or "a", renderer.text((Message("user", TEXTS[2]),))]
    for text in texts:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = model.tokenize(text.encode(), add_bos=False, special=True)
        if own != theirs:
            at = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), len(own))
            around = tokenizer.decode(own[max(0, at - 2) : at + 3])
            raise ModelError(
                f"llama.cpp cuts texts into other tokens, near {around!r}", where=where,
                mend="use safetensors: the tokenizer's rules are not among those that GGUF files name",
            )  # fmt: skip
    return len(texts)

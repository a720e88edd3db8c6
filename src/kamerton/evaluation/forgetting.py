"""What an adapted model forgot: bits per byte on a general text, and KL to the base on general prompts.

*Bits per byte* is the model's code length of a text that has nothing to do with the task; what a method adds to it is
what it forgot. *KL* is estimated on answers that the base itself sampled at temperature 1 to general prompts:
KL(base ‖ adapted) per token = mean over these tokens of log p_base − log p_adapted, unbiased, and zero for an
untouched model. The adapted model is measured as it would be served: with its soft prompt, its shots, its weights.
For the text there is no conversation, so shots play no part in it. An encoder–decoder says nothing about a text without
having read another one: it is measured on the second half of each piece, its encoder given the first.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kamerton.errors import TaskError
from kamerton.evaluation.general_prompts import PROMPTS
from kamerton.inference import Engine, Sampling
from kamerton.tasks.example import Conversation, Message

PIECE = 1200
"""Characters of text that are scored as one sequence (about 300 tokens of English)."""

ANSWER = 32
"""Tokens of the answers to general prompts on which KL is measured."""


@dataclass(frozen=True)
class Reference:
    """What the base says, once for all methods of a comparison.

    Attributes:
        pieces: the general text, cut into pieces.
        bits_per_byte: of the base on them.
        prompts: general prompts; `answers`: token ids that the base sampled; `log_probs`: their sum under the base.
    """

    pieces: list[str]
    bits_per_byte: float
    prompts: list[str]
    answers: list[list[int]]
    log_probs: list[float]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def embedded_text(size: int) -> str:
    """At most `size` bytes of English prose from CPython's own documentation (`pydoc_data.topics`).

    Always the same for one version of CPython, which has about 100 kB of it.
    """
    from pydoc_data.topics import topics

    paragraphs = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            prose = " ".join(paragraph.split())
            letters = sum(c.isalpha() or c == " " for c in prose)
            starts_well = re.match(r"[A-Z][a-z]+ ", prose) is not None
            if starts_well and not paragraph.startswith(" ") and len(prose) > 200 and letters > 0.85 * len(prose):
                paragraphs.append(prose)
    random.Random(0).shuffle(paragraphs)
    return _head("\n\n".join(dict.fromkeys(paragraphs)), size)


def read_text(path: Path, size: int) -> str:
    """About `size` bytes from the start of a text file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"the general text cannot be read ({error})"
        raise TaskError(message, where=path, mend="give a UTF-8 text file") from error
    if not text.strip():
        raise TaskError("the general text is empty", where=path, mend="give a text, or forgetting: false")
    return _head(text, size)


def cut(text: str, base: Engine) -> list[str]:
    """A text in pieces of `PIECE` characters, shorter ones where those would fill half of the model's positions."""
    limit, size = base.model.max_length, PIECE
    while True:
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        # half is left for whatever an adapted model has in front: it is to be measured on the same pieces
        if limit is None or size == 1 or all(len(base.renderer.raw(p)) <= limit // 2 for p in pieces):
            return pieces
        size //= 2


def reference(base: Engine, text: str, prompts: int, *, answer_tokens: int = ANSWER, seed: int = 0) -> Reference:
    """Measure the base: bits per byte of a text, and sampled answers to the first `prompts` general prompts."""
    pieces = cut(text, base)
    asked = list(PROMPTS[:prompts])
    answers = base.generate([_ask(p) for p in asked], Sampling(max_tokens=answer_tokens, temperature=1.0, seed=seed))
    tokens = [list(a.tokens) for a in answers]
    return Reference(
        pieces=pieces,
        bits_per_byte=bits_per_byte(base, pieces),
        prompts=asked,
        answers=tokens,
        log_probs=_answer_log_probs(base, [_ask(p) for p in asked], tokens),
    )


def bits_per_byte(engine: Engine, pieces: Sequence[str]) -> float:
    """Code length of a text in bits per byte of UTF-8; each piece starts anew (`Renderer.split`)."""
    bits, size = code_lengths(engine, pieces).sum(0)
    return float(bits / size)


def code_lengths(engine: Engine, pieces: Sequence[str]) -> np.ndarray:
    """(P, 2): of each piece its code length in bits and its bytes; zeros where nothing of it is predicted."""
    split = [engine.renderer.split(piece) for piece in pieces]
    told = [i for i, (_, tokens) in enumerate(split) if tokens]
    rows = np.zeros((len(pieces), 2))
    found = engine.token_log_probs([split[i][0] for i in told], [split[i][1] for i in told])
    for i, values in zip(told, found, strict=True):
        rows[i] = -float(values.sum()) / math.log(2), len(engine.renderer.decode(split[i][1]).encode())
    return rows


def kl(engine: Engine, conversations: Sequence[Conversation], reference: Reference) -> float:
    """KL(base ‖ adapted) in nats per token on the base's own answers.

    Args:
        engine: the adapted model.
        conversations: the general prompts as the method asks them (with its shots, where it has any).
        reference: what the base said.
    """
    nats, tokens = kl_terms(engine, conversations, reference).sum(0)
    return float(nats / tokens)


def kl_terms(engine: Engine, conversations: Sequence[Conversation], reference: Reference) -> np.ndarray:
    """(prompts, 2): of each answer Σ log p_base − log p_adapted in nats, and its tokens. Args as in `kl`."""
    adapted = _answer_log_probs(engine, conversations, reference.answers)
    nats = np.asarray(reference.log_probs) - np.asarray(adapted)
    return np.stack([nats, [float(len(a)) for a in reference.answers]], axis=1)


def _answer_log_probs(
    engine: Engine, conversations: Sequence[Conversation], answers: Sequence[Sequence[int]]
) -> list[float]:
    prompts = [engine.renderer.prompt(c) for c in conversations]
    return [float(values.sum()) for values in engine.token_log_probs(prompts, answers)]


def _ask(prompt: str) -> Conversation:
    return (Message("user", prompt),)


def _head(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")

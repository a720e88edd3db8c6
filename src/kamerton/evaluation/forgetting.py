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
    prompts, rest, size = [], [], 0
    for piece in pieces:
        given, tokens = engine.renderer.split(piece)
        if not tokens:
            continue
        prompts.append(given)
        rest.append(tokens)
        size += len(engine.renderer.decode(tokens).encode())
    nats = -sum(float(values.sum()) for values in engine.token_log_probs(prompts, rest))
    return nats / math.log(2) / size


def kl(engine: Engine, conversations: Sequence[Conversation], reference: Reference) -> float:
    """KL(base ‖ adapted) in nats per token on the base's own answers.

    Args:
        engine: the adapted model.
        conversations: the general prompts as the method asks them (with its shots, where it has any).
        reference: what the base said.
    """
    adapted = _answer_log_probs(engine, conversations, reference.answers)
    tokens = sum(len(a) for a in reference.answers)
    return float((np.sum(reference.log_probs) - np.sum(adapted)) / tokens)


def _answer_log_probs(
    engine: Engine, conversations: Sequence[Conversation], answers: Sequence[Sequence[int]]
) -> list[float]:
    prompts = [engine.renderer.prompt(c) for c in conversations]
    return [float(values.sum()) for values in engine.token_log_probs(prompts, answers)]


def _ask(prompt: str) -> Conversation:
    return (Message("user", prompt),)


def _head(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")

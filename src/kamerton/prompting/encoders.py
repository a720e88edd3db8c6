"""Texts → vectors, for choosing shots by meaning. An encoder is one class and one line in `ENCODERS`.

`base` is the mean of the base's last hidden states over a text's tokens. A causal language model was not trained for
this: its states share a large common part, so whoever compares them takes the mean of a pool off first (`Vectors`).
Every other name is a sentence encoder (`retrieval/encoder.py`), whose vectors are compared as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kamerton.base.load import Base
from kamerton.inference.pooled import mean_states
from kamerton.prompting.shots import question_text
from kamerton.retrieval import encoder as retrieval
from kamerton.retrieval.encoder import load_encoder
from kamerton.tasks.example import Conversation, Example

ENCODERS: dict[str, str] = {
    "base": "kamerton.prompting.encoders:BaseEncoder",
}

PASS_TOKENS = 4096
"""Tokens that are encoded at once."""


class Encoder(Protocol):
    """Made for a base; turns N texts into (N, D) float32 vectors. With `keep` it remembers them.

    `common` says whether all of its vectors share a part that tells nothing.
    """

    common: bool

    def __call__(self, texts: Sequence[str], *, keep: bool = False) -> NDArray[np.float32]: ...


def get_encoder(name: str, base: Base) -> Encoder:
    """An encoder of `ENCODERS` for a base, or a sentence encoder by its name, hub id or folder.

    Raises:
        MissingExtra, ModelError: as `load_encoder`.
    """
    if name not in ENCODERS:
        return SentenceEncoder(load_encoder(name, device=str(base.model.device)))
    module, _, attribute = ENCODERS[name].partition(":")
    encoder: Encoder = getattr(import_module(module), attribute)(base)
    return encoder


class BaseEncoder:
    """Mean of the base's last hidden states over a text; one that is longer than the model's positions is cut."""

    common = True

    def __init__(self, base: Base) -> None:
        self._base = base
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str], *, keep: bool = False) -> NDArray[np.float32]:
        """(N texts) → (N, H)."""
        new = sorted({t for t in texts if t not in self._known})
        found = self._known if keep else {t: self._known[t] for t in texts if t in self._known}
        model, renderer = self._base.model, self._base.renderer
        rows = [(renderer.raw(t) or [renderer.end_id])[: model.max_length] for t in new]
        with model.inference() if new else nullcontext(), torch.inference_mode():
            found.update(zip(new, mean_states(rows, model.states, PASS_TOKENS), strict=True))
        return np.stack([found[t] for t in texts])


class SentenceEncoder:
    """A sentence-transformers model; of what is too long for it the end is read."""

    common = False

    def __init__(self, encoder: retrieval.Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str], *, keep: bool = False) -> NDArray[np.float32]:
        """(N texts) → (N, D)."""
        new = sorted({t for t in texts if t not in self._known})
        found = {**self._known, **dict(zip(new, self._encoder.questions(new), strict=True))}
        if keep:
            self._known = found
        return np.stack([found[t] for t in texts])


class Vectors:
    """A pool of examples as unit vectors, and the nearest of them to a question.

    Vectors with a common part are taken around the pool's mean.

    Args:
        examples: the pool, at least one.
        encoder: turns questions into vectors.
    """

    def __init__(self, examples: Sequence[Example], encoder: Encoder) -> None:
        self._examples, self._encoder = list(examples), encoder
        raw = encoder([question_text(e.messages) for e in examples], keep=True)
        self._mean = raw.mean(0, dtype=np.float64) * encoder.common
        self.unit = _unit(raw - self._mean)  # (N, D)

    def __call__(self, conversation: Conversation, count: int) -> list[Example]:
        """The `count` nearest examples by cosine, nearest last; of equal ones the earlier counts as nearer."""
        (query,) = _unit(self._encoder([question_text(conversation)]) - self._mean)
        order = np.argsort(-(self.unit @ query), kind="stable")[:count]
        return [self._examples[i] for i in order[::-1]]


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)

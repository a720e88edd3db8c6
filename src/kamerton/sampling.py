"""How answers are sampled, as plain values; what becomes of logits by them is in `inference/sampling.py`.

Apart from it, so that what only names these settings (a chat with a server elsewhere) loads no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kamerton.errors import KamertonError


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        max_tokens: the longest answer, in tokens, its end token included.
        temperature: 0 takes the likeliest token each time (greedy).
        top_k: keep the k likeliest tokens.
        top_p: keep the smallest set of likeliest tokens that holds this much probability.
        min_p: keep tokens at least this fraction as likely as the likeliest one.
        stop: the answer ends before the first of these strings.
        n: answers for each conversation.
        seed: the same seed gives the same answers, whatever the batch (up to rounding, which in bfloat16 can turn a
            close decision).

    Raises:
        KamertonError: a value outside its range.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, need: str) -> None:
            if not ok:
                raise KamertonError(f"{name} is {getattr(self, name)!r}", where="sampling", mend=f"use {need}")

        def number(value: object) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        elif isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        check(whole(self.max_tokens) and self.max_tokens >= 1, "max_tokens", "a whole number from 1 up")
        check(number(self.temperature) and self.temperature >= 0, "temperature", "a number from 0 (greedy) up")
        check(self.top_k is None or (whole(self.top_k) and self.top_k >= 1), "top_k", "a whole number from 1 up")
        check(self.top_p is None or (number(self.top_p) and 0 < self.top_p <= 1), "top_p", "a number in (0, 1]")
        check(self.min_p is None or (number(self.min_p) and 0 <= self.min_p <= 1), "min_p", "a number in [0, 1]")
        strings = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        check(strings, "stop", "a list of strings that are not empty")
        check(whole(self.n) and self.n >= 1, "n", "a whole number from 1 up")
        check(whole(self.seed), "seed", "a whole number")

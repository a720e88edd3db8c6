"""What is measured, how much of it, and the names that figures have for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kamerton.assessment.judge import JudgeOptions
from kamerton.errors import KamertonError

TEMPERATURES = (0.5, 0.7, 1.0)


@dataclass(frozen=True)
class FidelitySettings:
    """What `assess` measures.

    Attributes:
        temperatures: of the frontier; figures of samples are given at each.
        samples: answers to each question at a temperature.
        judge: train judges for the reverse cross-entropy.
        judge_options: how.
        phrasings: so many phrasings of the instruction, the task's own included; 0 or 1: none.
        bins: of the calibration error.
        seed: of sampling, clusters, judges and resampling.
        max_batch_tokens: bound on tokens held at once.

    Raises:
        KamertonError: a value outside its range.
    """

    temperatures: tuple[float, ...] = TEMPERATURES
    samples: int = 4
    judge: bool = False
    judge_options: JudgeOptions = field(default_factory=JudgeOptions)
    phrasings: int = 4
    bins: int = 10
    seed: int = 0
    max_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        t = self.temperatures
        if not t or len(set(t)) != len(t) or not all(math.isfinite(x) and x >= 0 for x in t):
            raise KamertonError(
                f"temperatures {', '.join(f'{x:g}' for x in t) or 'are none'} do not do", where="--frontier",
                mend="give different numbers from 0 up: 0.5,0.7,1.0",
            )  # fmt: skip
        least_of = {"samples": 2, "bins": 2, "phrasings": 0, "seed": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value < least:
                raise KamertonError(f"{name} is {value}", where=f"--{name}", mend=f"use {least} or more")


def temperatures(text: str) -> tuple[float, ...]:
    """Temperatures as the command line has them: `0.5,0.7,1.0`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise KamertonError(f"{text!r} is no list of numbers", where="--frontier", mend="write 0.5,0.7,1.0") from None


TITLES: dict[str, str] = {
    "self_bleu": "self-BLEU within questions",
    "self_bleu_across": "self-BLEU across questions",
    **{f"distinct_{n}": f"distinct-{n} within questions" for n in (1, 2, 3)},
    **{f"distinct_{n}_across": f"distinct-{n} across questions" for n in (1, 2, 3)},
    **{f"precision_{n}": f"{n}-gram precision" for n in (1, 2, 3)},
    **{f"recall_{n}": f"{n}-gram recall" for n in (1, 2, 3)},
    "length": "tokens of an answer",
    "length_ratio": "tokens over the references'",
    "ended": "share that ends inside the limit",
    "entropy": "entropy, nats an answer",
    "mauve": "MAUVE",
    "reverse": "reverse cross-entropy, nats an answer",
    "reverse_token": "reverse cross-entropy, nats a token",
    "forward": "forward cross-entropy, nats an answer",
    "forward_token": "forward cross-entropy, nats a token",
    "bits_per_byte_more": "bits per byte above the base",
    "kl": "KL from the base, nats a token",
}
"""Names of figures for people; a figure that is not here has its own name."""

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("As distributions", ("mauve", "reverse", "reverse_token", "entropy")),
    ("Wording shared with the references", tuple(f"{k}_{n}" for k in ("precision", "recall") for n in (1, 2, 3))),
    ("Diversity", ("self_bleu", "distinct_1", "distinct_2", "distinct_3", "self_bleu_across", "distinct_1_across",
                   "distinct_2_across", "distinct_3_across")),
    ("Length", ("length", "length_ratio", "ended")),
)  # fmt: skip
"""How the page orders figures of samples; what is in none of them comes first (the task's metrics)."""


def ordered(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Figures' names in the page's groups, empty ones left out."""
    grouped = {name for _, members in GROUPS for name in members}
    out = [("The task's metrics", [name for name in names if name not in grouped])]
    out += [(title, [name for name in members if name in names]) for title, members in GROUPS]
    return [(title, members) for title, members in out if members]

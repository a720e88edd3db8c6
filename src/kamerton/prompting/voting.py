"""Majority votes over sampled answers (Wang et al. 2022, arXiv 2203.11171)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kamerton.evaluation.metrics import normalise
from kamerton.evaluation.value_metrics import last_number


@dataclass(frozen=True, slots=True)
class Vote:
    """Who won.

    Attributes:
        winner: the number of the first answer of the winning group.
        groups: each group's first answer and its weight, heaviest first.
    """

    winner: int
    groups: tuple[tuple[str, float], ...]


def ballot(text: str, numeric: bool) -> str | None:
    """What an answer votes for: its number to nine digits, or its text as exact match compares it.

    None, no vote, where there is no number or no text.
    """
    if not numeric:
        return normalise(text) or None
    number = last_number(text)
    if number is None or not math.isfinite(number):
        return None
    return f"{number + 0.0:.9g}"


def vote(texts: Sequence[str], weights: Sequence[float], *, numeric: bool = False) -> Vote:
    """The answer with the greatest sum of weights; of equal ones the one that came first.

    Answers without a vote count only where no answer has one.

    Args:
        texts: at least one answer.
        weights: of each, not negative.
        numeric: answers are compared as numbers.
    """
    ballots = [ballot(t, numeric) for t in texts]
    if not any(b is not None for b in ballots):
        ballots = [normalise(t) for t in texts]
    first: dict[str, int] = {}
    total: dict[str, float] = {}
    for i, (b, weight) in enumerate(zip(ballots, weights, strict=True)):
        if b is not None:
            first.setdefault(b, i)
            total[b] = total.get(b, 0.0) + weight
    order = sorted(total, key=lambda b: (-total[b], first[b]))
    return Vote(first[order[0]], tuple((texts[first[b]], total[b]) for b in order))

"""What a look at a model in training comes to in figures: diversity, length, and reward over the start's.

The measures are those of `evaluation/diversity.py` and mean the same here. Across questions one sample of each is
taken; there are as many such sets as samples, and the figure is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kamerton.evaluation import diversity
from kamerton.evaluation.figures import Figure, mean
from kamerton.objectives.looks import Look, Looks


@dataclass(frozen=True)
class Shape:
    """How a set of answers looks; None: it cannot be said (one question, answers without words).

    Attributes:
        within, across: self-BLEU of the answers to one question, and of answers to different questions; 0 … 100.
        distinct_1, distinct_2: distinct n-grams over all n-grams, across questions; 0 … 1.
        length: tokens over those of the references.
        ended: share of answers that end inside the limit.
    """

    within: float | None = None
    across: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    length: float | None = None
    ended: float | None = None


def shape(looks: Looks, look: Look) -> Shape:
    """The samples of a look."""
    split = diversity.words()
    sets = list(zip(*look.texts, strict=True))
    lengths = np.array([[len(tokens) for tokens in row] for row in look.tokens])
    return Shape(
        _value(diversity.self_bleu(look.texts, split)),
        _mean(sets, lambda texts: diversity.self_bleu_across(texts, split)),
        _mean(sets, lambda texts: diversity.distinct_across(texts, 1, split)),
        _mean(sets, lambda texts: diversity.distinct_across(texts, 2, split)),
        _value(diversity.length_ratio(lengths, looks.reference_tokens)),
        _value(diversity.ended(np.array(look.ended))),
    )


def reference_shape(looks: Looks) -> Shape:
    """The references of the same questions, one each."""
    split, texts = diversity.words(), [e.answers[0] for e in looks.examples]
    return Shape(
        across=_value(diversity.self_bleu_across(texts, split)),
        distinct_1=_value(diversity.distinct_across(texts, 1, split)),
        distinct_2=_value(diversity.distinct_across(texts, 2, split)),
        length=1.0,
    )


def gain(look: Look) -> Figure | None:
    """By how much a token of the samples scores above one of the start's samples, by the same discriminators."""
    if not look.scores:
        return None
    each = np.array(look.scores).mean(1) - np.array(look.start_scores).mean(1)
    return mean(each) if np.isfinite(each).all() else None


def _mean(sets: Sequence[Sequence[str]], measure: Callable[[Sequence[str]], Figure | None]) -> float | None:
    found = [value for texts in sets if (value := _value(measure(texts))) is not None]
    return sum(found) / len(found) if found else None


def _value(figure: Figure | None) -> float | None:
    return figure.value if figure is not None and math.isfinite(figure.value) else None

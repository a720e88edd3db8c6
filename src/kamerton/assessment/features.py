"""Features of answers for MAUVE, from the frozen base: the mean over an answer's tokens of the last layer's states.

An answer is read behind an empty question, by the base without whatever was tuned. So MAUVE sees what is said and how
often, and is blind to which question it was said to; the task's metric, n-grams by question and the judge see that.
(Read behind their questions, answers that were shuffled among all questions were hardly told from the references: what
varies most in such features is the question, and both sets share it. See docs/fidelity.md.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kamerton.base import Base, CausalModel
from kamerton.evaluation import clusters, mauve
from kamerton.evaluation.figures import Figure
from kamerton.inference.pooled import mean_states
from kamerton.inference.prefix import SharedPrefix
from kamerton.tasks.example import Message

Array = np.ndarray[Any, Any]
Sets = Sequence[Sequence[str]]
"""Texts by question: N lists."""


def features(
    base: Base, texts: Sequence[str], *, max_tokens: int = 8192, progress: Callable[[int, int], None] | None = None
) -> Array:
    """(M, H) float32: for each answer the mean final hidden state over its tokens, end token included.

    An encoder–decoder's are those of its encoder on the answer. An answer longer than half of the model's positions is
    cut.
    """
    model, renderer = base.model, base.renderer
    answers = [renderer.answer(text) for text in texts]
    if model.max_length is not None:
        answers = [a[: model.max_length // 2] for a in answers]
    with torch.inference_mode(), model.inference():
        read = model.states
        if isinstance(model, CausalModel):
            prefix = SharedPrefix(model, renderer.prompt((Message("user", ""),)))
            read = lambda rows: list(prefix.forward(rows).rows.split([len(row) for row in rows]))  # noqa: E731
        return np.stack(mean_states(answers, read, max_tokens, progress))


def mauve_figures(
    base: Base, references: Sets, sets: Mapping[Any, Sets], others: Sequence[str], *, max_tokens: int, seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[Any, Figure], Figure | None, int]:  # fmt: skip
    """MAUVE of several sets of samples against the references, all over one quantisation.

    References together weigh as much in it as all samples together, so that a number does not hang on how many samples
    there are. Equal texts go through the model once.

    Args:
        references: of each of the N questions its references.
        sets: by any key, of each question its samples.
        others: references of other questions, one each: a set that differs from the references by chance only. Not
            part of the quantisation.

    Returns:
        The figure of each set, that of `others`, and the number of buckets.
    """
    number: dict[str, int] = {}
    weights: list[float] = []

    def count(texts: Sets, share: float) -> list[list[int]]:
        places = []
        for own in texts:
            places.append([number.setdefault(text, len(number)) for text in own])
            weights.extend([0.0] * (len(number) - len(weights)))
            for place in places[-1]:
                weights[place] += share / len(own)
        return places

    known = count(references, 1.0)
    placed = {key: count(texts, 1 / len(sets)) for key, texts in sets.items()}
    beside = count([[text] for text in others], 0.0)
    vectors = features(base, list(number), max_tokens=max_tokens, progress=progress)
    heavy = np.array(weights) > 0
    smaller = min(sum(map(len, references)), *(sum(map(len, texts)) for texts in sets.values()))
    split = clusters.quantiser(vectors[heavy], np.array(weights)[heavy], mauve.buckets_for(smaller), seed=seed)
    labels = split(vectors)

    def rows(places: list[list[int]]) -> Array:
        return mauve.histograms([labels[own].tolist() for own in places], split.buckets)

    wanted = rows(known)
    found = {key: mauve.figure(wanted, rows(places)) for key, places in placed.items()}
    pairs = min(len(beside), len(known))
    level = mauve.figure(wanted[:pairs], rows(beside[:pairs])) if pairs > 1 else None
    return found, level, split.buckets

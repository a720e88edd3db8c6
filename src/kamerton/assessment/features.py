"""Features of answers for MAUVE, from the frozen base: the mean over an answer's tokens of the last layer's states.

Two views. *Alone*: the answer behind an empty question, so that only what is said counts. *With its question*: the
answer behind the question as the untouched base would be asked it, so that an answer that belongs to another question
shows. The base is read without whatever was tuned, and every text goes through it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kamerton.base import Base, CausalModel
from kamerton.evaluation import clusters, mauve
from kamerton.evaluation.figures import Figure
from kamerton.inference.prefix import SharedPrefix, common_prefix, fill
from kamerton.tasks.example import Conversation, Message

Array = np.ndarray[Any, Any]
Text = tuple[Conversation, str]
"""A question and an answer to it."""

EMPTY: Conversation = (Message("user", ""),)


def features(
    base: Base, texts: Sequence[Text], *, max_tokens: int = 8192, progress: Callable[[int, int], None] | None = None
) -> Array:
    """(M, H) float32: for each text the mean final hidden state over its answer's tokens, end token included.

    An encoder–decoder's are those of its encoder on the answer alone. A question that leaves no room is cut.
    """
    model, renderer = base.model, base.renderer
    answers = [renderer.answer(text) for _, text in texts]
    if model.max_length is not None:
        answers = [a[: model.max_length // 2] for a in answers]
    if not isinstance(model, CausalModel):
        with torch.inference_mode(), model.inference():
            return np.stack([
                model.states([a])[0].float().mean(0).cpu().numpy() for a in answers
            ])  # fmt: skip
    prompts = [
        renderer.prompt(renderer.fit(conversation, model.prompt_limit(len(answer)))[0])
        for (conversation, _), answer in zip(texts, answers, strict=True)
    ]
    shared = common_prefix(prompts)
    rows = [[*p[shared:], *a] for p, a in zip(prompts, answers, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out: list[Array] = [np.empty(0)] * len(rows)
    done = 0
    with torch.inference_mode(), model.inference():
        prefix = SharedPrefix(model, prompts[0][:shared] if prompts else ())
        for batch in fill([len(rows[i]) for i in order], max_tokens):
            part = [order[i] for i in batch]
            hidden = prefix.forward([rows[i] for i in part])
            for i, states in zip(part, hidden.rows.split([len(rows[i]) for i in part]), strict=True):
                out[i] = states[-len(answers[i]) :].float().mean(0).cpu().numpy()
            done += len(part)
            if progress is not None:
                progress(done, len(rows))
    return np.stack(out)


def mauve_figures(
    base: Base, references: Sequence[Sequence[Text]], sets: Mapping[Any, Sequence[Sequence[Text]]],
    others: Sequence[Text], *, with_question: bool, max_tokens: int, seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[Any, Figure], Figure | None, int]:  # fmt: skip
    """MAUVE of several sets of samples against the references, all over one quantisation.

    References together weigh as much in it as all samples together, so that a number does not hang on how many samples
    there are.

    Args:
        references: of each of the N questions its references.
        sets: by any key, of each question its samples.
        others: references of other questions: what a model as good as they are would score. Not part of the
            quantisation.
        with_question: features of answers with their question or alone.

    Returns:
        The figure of each set, that of `others`, and the number of buckets.
    """

    def view(text: Text) -> Text:
        return text if with_question else (EMPTY, text[1])

    number: dict[Text, int] = {}
    weights: list[float] = []

    def count(texts: Sequence[Sequence[Text]], share: float) -> list[list[int]]:
        places = []
        for own in texts:
            places.append([number.setdefault(view(text), len(number)) for text in own])
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

"""A generator and a query encoder that are trained together: the model that holds both, and what the loss needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from kamerton.base.encoder_decoder import EncoderDecoderModel
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.rendering import Renderer
from kamerton.retrieval.asking import example_source, question_of, with_passages
from kamerton.retrieval.encoder import Encoder
from kamerton.retrieval.index import PassageIndex
from kamerton.tasks.example import Conversation, Example, Task


class QueryingModel(LanguageModel):
    """A generator with the query encoder that is trained beside it; `querying` makes one.

    Attributes:
        queries: the query encoder.
        trained: the generator's parameters that are trained.
    """

    queries: Encoder
    trained: list[nn.Parameter]


class _Causal(QueryingModel, CausalModel):
    pass


class _EncoderDecoder(QueryingModel, EncoderDecoderModel):
    pass


def querying(model: LanguageModel, queries: Encoder) -> QueryingModel:
    """A generator, causal or encoder–decoder, with the query encoder beside it."""
    made: QueryingModel
    if isinstance(model, CausalModel):
        made = _Causal(model.hf, model._front, inserts=model.inserts, inferring=model._enter)
    else:
        made = _EncoderDecoder(model.hf, model._front, inferring=model._enter)
    made.queries, made.trained = queries, []
    return made


def trainable(queries: Encoder, rate: float) -> nn.Module:
    """The query encoder's module with all weights trained, at `rate` times the generator's learning rate."""
    module: nn.Module = queries.model
    for parameter in module.parameters():
        parameter.requires_grad_(True)
        parameter.rate = rate  # type: ignore[attr-defined]
    return module


@dataclass
class Parts:
    """What the marginal loss needs of an index.

    Attributes:
        vectors: (N, D) of all passages, which never change.
        ask: puts a passage, by its number, into a conversation.
        question: what is searched for.
        without: numbers of the passages that an example must not be shown.
        metric: of the vectors, "cosine" or "dot".
        notes: what the user should know.
    """

    vectors: np.ndarray
    ask: Callable[[Conversation, int], Conversation]
    question: Callable[[Conversation], str]
    without: Callable[[Example], tuple[int, ...]]
    metric: str
    notes: list[str] = field(default_factory=list)

    def scale(self, given: float | None) -> float:
        """The scale of similarities: as given, else the usual one of the metric."""
        return scale_of(self.metric, given)


def scale_of(metric: str, given: float | None) -> float:
    """Cosines lie between −1 and 1 and are trained with a scale of 20 (sentence-transformers); dot products with 1."""
    return given if given is not None else {"cosine": 20.0}.get(metric, 1.0)


def marginal_parts(folder: str | Path, renderer: Renderer, task: Task, limit: int | None) -> Parts:
    """Read an index for the marginal loss."""
    index = PassageIndex.open(folder)
    hits, vectors = index.vectors()
    numbers: dict[str, list[int]] = {}
    for i, hit in enumerate(hits):
        numbers.setdefault(hit.source, []).append(i)

    def ask(conversation: Conversation, number: int) -> Conversation:
        return with_passages(conversation, [hits[number]])

    def without(example: Example) -> tuple[int, ...]:
        return tuple(numbers.get(example_source(example.id), ()))

    notes = []
    if limit is not None and hits:
        longest = max(range(len(hits)), key=lambda i: len(hits[i].passage.text))
        over = sum(renderer.example(ask(e.messages, longest), e.answers[0], limit=limit).cut for e in task.train)
        if over:
            notes.append(
                f"with the longest passage {over} of {len(task.train)} training examples are cut to {limit} tokens"
            )
    return Parts(vectors, ask, question_of, without, index.about["encoder"]["metric"], notes)

"""RAG-sequence: the answer's likelihood with the passage summed out (Lewis et al. 2020, arXiv 2005.11401, section 2.1).

    loss = −log Σ_d p(d|x) p(y|x, d),    p(d|x) = softmax over the k best passages of  scale · q(x)·d

q(x) is the query encoder's vector, trained together with the generator; the passages' vectors d are kept in a matrix
and never change, as in the paper. Which k passages are summed over is decided anew at every step, by the query encoder
as it is then; the choice itself carries no gradient. Sums run over questions and are divided by the step's answer
tokens, so the loss is in nats a token like that of supervised fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from kamerton.base.load import Base
from kamerton.base.model import LanguageModel
from kamerton.errors import RecipeError, TaskError
from kamerton.rendering import Rendered, Renderer
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training.batches import Batch, make_batch, order, portion
from kamerton.training.objective import Loss

Ask = Callable[[Conversation, int], Conversation]
"""A conversation and the number of a passage → the conversation with the passage in it."""


class Queries(Protocol):
    """The trained query encoder: texts → vectors (N, D) with gradient."""

    model: Any

    def question_vectors(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A training example as this objective needs it.

    Attributes:
        example: the example.
        question: what is searched for.
        targets: tokens of its answer, end token included.
        without: numbers of passages that it must not be shown (itself, where examples are the documents).
    """

    example: Example
    question: str
    targets: int
    without: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MarginalBatch:
    """Questions, each once with every of its k passages.

    Attributes:
        batch: B · k rows, the passages of a question one after another.
        questions: B texts.
        places: (B, k) numbers of the passages.
        owners: (N,) the row of each target.
    """

    batch: Batch
    questions: tuple[str, ...]
    places: np.ndarray
    owners: np.ndarray

    @property
    def count(self) -> float:
        """Answer tokens, each once."""
        return self.batch.count / self.places.shape[1]

    @property
    def examples(self) -> int:
        return len(self.questions)

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    def halves(self) -> tuple[MarginalBatch, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single question."""
        count, each = self.places.shape
        out = []
        for first, last in [(0, count // 2), (count // 2, count)] if count > 1 else []:
            own = (self.owners >= first * each) & (self.owners < last * each)
            out.append(MarginalBatch(
                self.batch.part(first * each, last * each), self.questions[first:last], self.places[first:last],
                self.owners[own] - first * each,
            ))  # fmt: skip
        return tuple(out)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Validation questions; their passages are found when the loss is asked for, by the encoder as it is then."""

    asked: tuple[Asked, ...]

    @property
    def count(self) -> float:
        return float(sum(a.targets for a in self.asked))

    @property
    def examples(self) -> int:
        return len(self.asked)

    @property
    def tokens(self) -> int:
        return 0


class RetrievalMarginal:
    """The marginal likelihood of the first accepted answer of each example.

    The model that it is called with has the query encoder as `queries` (`retrieval.joint.QueryingModel`).

    Args:
        renderer: turns examples into tokens and loss weights.
        train, validation: examples.
        vectors: (N, D) of all passages.
        ask: puts a passage into a conversation.
        question: what is searched for.
        without: numbers of the passages that a training example must not be shown.
        passages: k.
        scale: of the similarities.
        batch_size, max_tokens, limit, seed: as in supervised fine-tuning; a question counts with all its k passages.
    """

    name = "retrieval-marginal"
    dealt: ClassVar[tuple[str, ...]] = ("steps", "validation")
    encoder_decoder = True

    def __init__(
        self,
        renderer: Renderer,
        train: Sequence[Example],
        validation: Sequence[Example],
        *,
        vectors: np.ndarray,
        ask: Ask,
        question: Callable[[Conversation], str],
        without: Callable[[Example], tuple[int, ...]] = lambda _: (),
        passages: int = 4,
        scale: float = 20.0,
        batch_size: int = 8,
        max_tokens: int = 4096,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if not train:
            mend = "give a train split, or use retrieval, which trains nothing"
            raise TaskError("there are no training examples", mend=mend)
        self._renderer, self._ask, self._limit = renderer, ask, limit

        def asked(example: Example, hide: bool) -> Asked:
            targets = len(renderer.answer(example.answers[0]))
            if limit is not None:
                targets = min(targets, limit if renderer.encoder_decoder else limit // 2)
            return Asked(example, question(example.messages), targets, without(example) if hide else ())

        self._train = [asked(e, True) for e in train]
        self._held_out = tuple(asked(e, False) for e in validation)
        self.vectors = torch.as_tensor(vectors)
        hidden = max((len(a.without) for a in self._train), default=0)
        self.passages = min(passages, len(vectors) - hidden)
        if self.passages < 1:
            raise TaskError("the index has too few passages to choose among", mend="add documents")
        self.scale, self.batch_size, self.max_tokens, self.seed = scale, min(batch_size, len(train)), max_tokens, seed
        self.notes: list[str] = []
        self.accumulation = 1

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> RetrievalMarginal:
        """For a base, a task and the options of the method `rag`."""
        from kamerton.retrieval.joint import marginal_parts

        if not hasattr(options, "query_rate"):
            raise RecipeError("retrieval-marginal needs documents and a query encoder", mend="use the method rag")
        parts = marginal_parts(options.index, base.renderer, task, limit)
        made = cls(
            base.renderer, task.train, task.validation, vectors=parts.vectors, ask=parts.ask, question=parts.question,
            without=parts.without, passages=options.passages, scale=parts.scale(options.scale),
            batch_size=options.batch_size, max_tokens=options.max_tokens, limit=limit, seed=seed,
        )  # fmt: skip
        made.notes += parts.notes
        return made

    @property
    def epoch_examples(self) -> int:
        return len(self._train)

    def batches(self, step: int, model: LanguageModel) -> Sequence[MarginalBatch]:
        picked = [self._train[i] for i in order(step, self.batch_size, len(self._train), self.seed)]
        return self._batches(model, picked)

    def validation(self) -> Sequence[HeldOut]:
        return [HeldOut(self._held_out)] if self._held_out else []

    def loss(self, model: LanguageModel, batch: MarginalBatch | HeldOut) -> Loss:
        if isinstance(batch, HeldOut):
            return Loss(total=torch.stack([self.loss(model, b).total for b in self._batches(model, batch.asked)]).sum())
        rows = batch.batch
        log_probs = model.target_log_probs(rows)
        device = log_probs.device
        weights = torch.as_tensor(rows.weights, device=device, dtype=log_probs.dtype)
        owners = torch.as_tensor(batch.owners, device=device)
        answers = log_probs.new_zeros(batch.places.size).index_add(0, owners, weights * log_probs)
        passages = self.log_prior(_queries(model), batch.questions, batch.places)
        return Loss(total=marginal(passages.to(device), answers.view(batch.places.shape)).sum())

    def log_prior(self, queries: Queries, questions: Sequence[str], places: np.ndarray) -> Tensor:
        """log p(d|x) of the passages that were found (B, k), with gradient to the query encoder."""
        vectors = queries.question_vectors(questions).float()  # (B, D)
        found = self.vectors.to(vectors.device)[torch.as_tensor(places, device=vectors.device)]  # (B, k, D)
        return torch.log_softmax(self.scale * torch.einsum("bd,bkd->bk", vectors, found), dim=1)

    @torch.no_grad()
    def find(self, queries: Queries, asked: Sequence[Asked]) -> np.ndarray:
        """The numbers of the k best passages of each question (B, k), best first."""
        training = queries.model.training
        queries.model.eval()  # dropout would find others
        try:
            vectors = queries.question_vectors([a.question for a in asked]).float().cpu()
        finally:
            queries.model.train(training)
        similar = vectors @ self.vectors.T  # (B, N)
        for row, a in zip(similar, asked, strict=True):
            row[list(a.without)] = -torch.inf
        return similar.topk(self.passages, dim=1).indices.numpy()

    def _batches(self, model: LanguageModel, asked: Sequence[Asked]) -> list[MarginalBatch]:
        places = self.find(_queries(model), asked)
        groups = [
            [self._renderer.example(self._ask(a.example.messages, int(i)), a.example.answers[0], limit=self._limit)
             for i in row] for a, row in zip(asked, places, strict=True)
        ]  # fmt: skip
        sizes = [sum(len(r.tokens) for r in group) for group in groups]
        out: list[list[int]] = []
        used, most = 0, portion(sizes, self.max_tokens, self.accumulation)
        for i in sorted(range(len(groups)), key=lambda i: (sizes[i], i)):
            if not out or used + sizes[i] > most:
                out.append([])
                used = 0
            out[-1].append(i)
            used += sizes[i]
        return [_batch([groups[i] for i in part], [asked[i].question for i in part], places[part]) for part in out]


def marginal(passages: Tensor, answers: Tensor) -> Tensor:
    """−log Σ_d p(d|x) p(y|x, d) from log p(d|x) (B, k) and log p(y|x, d) (B, k) → (B,) in nats."""
    return -torch.logsumexp(passages + answers, dim=1)


def _batch(groups: Sequence[Sequence[Rendered]], questions: Sequence[str], places: np.ndarray) -> MarginalBatch:
    rows = [r for group in groups for r in group]
    owners = np.repeat(np.arange(len(rows)), [sum(w != 0 for w in r.weights) for r in rows])
    return MarginalBatch(make_batch(rows), tuple(questions), places, owners)


def _queries(model: LanguageModel) -> Queries:
    queries: Queries = model.queries  # type: ignore[attr-defined]
    return queries

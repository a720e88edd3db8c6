"""Supervised fine-tuning: the negative log-likelihood of the reference answer given the conversation.

loss = −Σ w_t log p(y_t | x, y_<t) / Σ w_t, over answer tokens and the end token; the prompt carries no loss. The sums
run over the whole optimiser step, so accumulation and the number of processes leave the loss unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kamerton.base.load import Base
from kamerton.base.model import LanguageModel
from kamerton.errors import TaskError
from kamerton.rendering import Renderer
from kamerton.tasks.example import Example, Task
from kamerton.training.batches import Batch, microbatches, order
from kamerton.training.objective import Loss


class Supervised:
    """Next-token loss on the first accepted answer of each example.

    Args:
        renderer: turns examples into tokens and loss weights.
        train: examples to learn from.
        validation: examples that choose the best checkpoint; may be empty.
        batch_size: examples in an optimiser step.
        max_tokens: tokens in one pass through the model; a step of more is accumulated.
        accumulation: at least so many passes to a step.
        limit: longest example in tokens; what is longer is cut by the renderer's rules and counted in `notes`.
        seed: of the order of examples.

    Raises:
        TaskError: no training examples, or one whose answer carries no loss.
    """

    name = "supervised"
    encoder_decoder = True

    def __init__(
        self,
        renderer: Renderer,
        train: Sequence[Example],
        validation: Sequence[Example],
        *,
        batch_size: int = 16,
        max_tokens: int = 4096,
        accumulation: int = 1,
        limit: int | None = None,
        seed: int = 0,
        share_prefix: bool = True,
    ) -> None:
        if not train:
            mend = "give a train split, or use a method that needs none"
            raise TaskError("there are no training examples", mend=mend)
        self._train = [renderer.example(e.messages, e.answers[0], limit=limit) for e in train]
        self._held_out = [renderer.example(e.messages, e.answers[0], limit=limit) for e in validation]
        empty = [e.id for e, r in zip(train, self._train, strict=True) if not any(r.weights)]
        if empty:
            raise TaskError(
                f"{len(empty)} of {len(train)} training examples have no token that carries loss (first: {empty[0]})",
                mend="check the answer column",
            )
        self.batch_size = min(batch_size, len(train))
        self.max_tokens, self.accumulation, self.seed, self.share_prefix = max_tokens, accumulation, seed, share_prefix
        self.notes: list[str] = []
        for name, rendered in (("training", self._train), ("validation", self._held_out)):
            cut = sum(r.cut for r in rendered)
            if cut:
                self.notes.append(f"{cut} of {len(rendered)} {name} examples were cut to {limit} tokens")

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> Supervised:
        """For a base, a task and the options of a trained method."""
        return cls(
            base.renderer, task.train, task.validation, batch_size=options.batch_size, max_tokens=options.max_tokens,
            limit=limit, seed=seed,
        )  # fmt: skip

    @property
    def epoch_examples(self) -> int:
        return len(self._train)

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of an optimiser step."""
        return sum(len(r.tokens) for r in self._train) / len(self._train) * self.batch_size

    def batches(self, step: int, model: LanguageModel) -> Sequence[Batch]:  # noqa: ARG002 - data, not rollouts
        picked = [self._train[i] for i in order(step, self.batch_size, len(self._train), self.seed)]
        return microbatches(picked, self.max_tokens, parts=self.accumulation, share=self.share_prefix)

    def validation(self) -> Sequence[Batch]:
        return microbatches(self._held_out, self.max_tokens, share=self.share_prefix)

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        log_probs = model.target_log_probs(batch)
        weights = torch.as_tensor(batch.weights, device=log_probs.device, dtype=log_probs.dtype)
        return Loss(total=-(weights * log_probs).sum())

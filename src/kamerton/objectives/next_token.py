"""What all objectives share that learn from fixed tokens: −Σ w_t log p(y_t | y_<t) / Σ w_t over weighted positions.

The sums run over the whole optimiser step, so accumulation and the number of processes leave the loss unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from kamerton.base.model import LanguageModel
from kamerton.rendering import Rendered
from kamerton.training.batches import Batch, microbatches, order
from kamerton.training.objective import Loss


class NextToken:
    """Next-token loss on rows of tokens with loss weights.

    Args:
        train: rows to learn from.
        held_out: rows that choose the best checkpoint; may be empty.
        batch_size: rows in an optimiser step.
        max_tokens: tokens in one pass through the model; a step of more is accumulated.
        accumulation: at least so many passes to a step.
        seed: of the order of rows.
        share_prefix: compute what the rows of a pass have in common at their start only once.
    """

    name = "next-token"
    dealt: ClassVar[tuple[str, ...]] = ("steps", "validation")

    def __init__(
        self,
        train: Sequence[Rendered],
        held_out: Sequence[Rendered],
        *,
        batch_size: int = 16,
        max_tokens: int = 4096,
        accumulation: int = 1,
        seed: int = 0,
        share_prefix: bool = True,
    ) -> None:
        self._train, self._held_out = list(train), list(held_out)
        self.batch_size = min(batch_size, len(train))
        self.max_tokens, self.accumulation, self.seed, self.share_prefix = max_tokens, accumulation, seed, share_prefix
        self.notes: list[str] = []

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
        return microbatches(self._held_out, self.max_tokens, parts=self.accumulation, share=self.share_prefix)

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        log_probs = model.target_log_probs(batch)
        weights = torch.as_tensor(batch.weights, device=log_probs.device, dtype=log_probs.dtype)
        return Loss(total=-(weights * log_probs).sum())

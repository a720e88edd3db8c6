"""Next-token loss of recurrent models, by truncated back-propagation through time (Williams & Peng 1990).

The corpus is cut into as many parallel streams as a step has rows. A step reads the next `context` tokens of each, from
the state that the step before left; the gradient ends where the step begins. So the model learns from what lies far
behind without the memory for it. The state is part of every checkpoint. Each epoch cuts the streams at other places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kamerton.base.model import LanguageModel
from kamerton.base.recurrent import State
from kamerton.base.recurrent_model import carried
from kamerton.objectives.packed_contexts import LOGITS, Stream
from kamerton.training.objective import Loss

VALIDATION_STREAMS, SHORTEST = 16, 1024
"""Streams that are validated on at once, each of at least so many tokens: each starts from no state."""


@dataclass(frozen=True, slots=True)
class Strips:
    """(B, T + 1) tokens, T of which are read.

    Attributes:
        fresh: the streams start here, from no state.
        weights: (B, T) 0 on what only fills rows up, None where all count.
        carry: whether the state is kept for the next step (not in validation).
        step: whose microbatch it is; first: which of the streams its first row is.
    """

    ids: np.ndarray
    fresh: bool
    weights: np.ndarray | None = None
    carry: bool = True
    step: int = 0
    first: int = 0

    @property
    def count(self) -> float:
        return float(self.ids.shape[0] * (self.ids.shape[1] - 1) if self.weights is None else self.weights.sum())

    @property
    def examples(self) -> int:
        return int(self.ids.shape[0])

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[0] * (self.ids.shape[1] - 1))

    def halves(self) -> tuple[Strips, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single stream."""
        count = len(self.ids)
        cuts = [(0, count // 2), (count // 2, count)] if count > 1 else []
        return tuple(
            replace(self, ids=self.ids[a:b], weights=None if self.weights is None else self.weights[a:b],
                    first=self.first + a)
            for a, b in cuts
        )  # fmt: skip


class Truncated:
    """Language modelling with a state that is carried from step to step.

    Args:
        train, held_out: the streams; no `held_out` where nothing is validated.
        context: tokens through which the gradient goes back.
        batch_size: parallel streams.
        seed: of where the streams are cut.
    """

    name = "truncated"

    def __init__(self, train: Stream, held_out: Stream | None, *, context: int, batch_size: int, seed: int = 0) -> None:
        self.train, self.held_out, self.context, self.seed = train, held_out, context, seed
        self.batch_size = min(batch_size, (len(train) - 1) // context)
        self.steps = (len(train) - 1) // self.batch_size // context
        self.notes: list[str] = []
        # behind the step before, and behind the streams of this one: a step that is made again starts where it did
        self._state: State | None = None
        self._step, self._behind = -1, dict[int, State]()

    @property
    def epoch_examples(self) -> int:
        return self.steps * self.batch_size

    def batches(self, step: int, model: LanguageModel) -> Sequence[Strips]:  # noqa: ARG002 - data, not rollouts
        epoch, within = divmod(step, self.steps)
        used = self.steps * self.context
        spare = len(self.train) - used * self.batch_size
        shift = int(np.random.default_rng([self.seed, epoch]).integers(spare)) if epoch and spare > 1 else 0
        starts = shift + np.arange(self.batch_size) * used + within * self.context
        starts = np.minimum(starts, len(self.train) - 1 - self.context)
        ids = np.stack([self.train.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        return [Strips(ids, fresh=within == 0, step=step)]

    def validation(self) -> Sequence[Strips]:
        if self.held_out is None:
            return []
        return self.strips(self.held_out, max(1, min(VALIDATION_STREAMS, len(self.held_out) // SHORTEST)))

    def strips(self, stream: Stream, streams: int) -> list[Strips]:
        """All of a stream, every token but the first a target once, read by so many rows side by side."""
        targets = len(stream) - 1
        length = -(-targets // streams)
        ids = np.full((streams, length + 1), stream.end, dtype=np.int64)
        weights = np.zeros((streams, length))
        for row in range(streams):
            part = stream.tokens[row * length : min((row + 1) * length, targets) + 1]
            ids[row, : len(part)] = part
            weights[row, : max(len(part) - 1, 0)] = 1.0
        return [Strips(ids, True, weights, carry=False)]

    def loss(self, model: LanguageModel, batch: Strips) -> Loss:
        """The negative log-likelihood of all targets, in nats."""
        ids = torch.as_tensor(batch.ids, device=model.device)
        if batch.carry:
            if batch.step != self._step:
                self._state, self._step, self._behind = self._carried(), batch.step, {}
            own = slice(batch.first, batch.first + len(ids))
            start = None if batch.fresh or self._state is None else tuple(p[:, own].contiguous() for p in self._state)
            total, state = self._part(model, ids, start, None)
            self._behind[batch.first] = tuple(part.detach() for part in state)
            return Loss(total)
        total = ids.new_zeros((), dtype=torch.float32)
        at: State | None = None
        weights = torch.as_tensor(batch.weights, device=model.device, dtype=torch.float32)
        for place in range(0, ids.shape[1] - 1, self.context):
            part = ids[:, place : place + self.context + 1]
            value, at = self._part(model, part, at, weights[:, place : place + part.shape[1] - 1])
            total = total + value
        return Loss(total)

    @staticmethod
    def _part(model: LanguageModel, ids: Tensor, state: State | None, weights: Tensor | None) -> tuple[Tensor, State]:
        hidden, after = carried(model, ids[:, :-1], state)
        chunk = max(512, LOGITS // model.hf.get_output_embeddings().weight.shape[0])
        log_probs = model.log_probs(hidden.flatten(0, 1), ids[:, 1:].flatten(), chunk=chunk)
        return -(log_probs if weights is None else log_probs * weights.flatten()).sum(), after

    def _carried(self) -> State | None:
        """The state behind all streams, as far as they have been read."""
        if not self._behind:
            return self._state
        parts = [self._behind[first] for first in sorted(self._behind)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))

    def state(self) -> dict[str, Tensor]:
        return {f"carried/{i}": part for i, part in enumerate(self._carried() or ())}

    def restore(self, state: dict[str, Tensor]) -> None:
        parts = [state[f"carried/{i}"] for i in range(len(state))]
        self._state, self._step, self._behind = tuple(parts) if parts else None, -1, {}

"""Next-token loss on packed contexts: a corpus as one stream of tokens, cut into pieces of one length.

The stream is: end token, document, end token, document, …, end token. So every token but the first is a target once,
and an end token is what a document starts from. Each epoch cuts the stream at other places (a random shift) and takes
the pieces in another random order; both are pure functions of seed and epoch, so that resuming needs no state.

Attention reaches over a whole piece, as GPT-2 and GPT-3 were trained, or stays inside each document. A model with
routed experts adds its load-balancing loss (`expert_balance.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch

from kamerton.base.model import CausalModel, LanguageModel
from kamerton.objectives.expert_balance import Balance
from kamerton.training.batches import order
from kamerton.training.objective import Loss

LOGITS = 2**25
"""Logits that are held at once (128 MiB in float32): more go through the output layer in chunks."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A corpus as tokens.

    Attributes:
        tokens: (N,) ids, on disk or in memory; the first one is an end token.
        end: the id of the end token.
        bytes: bytes of UTF-8 of the documents.
    """

    tokens: np.ndarray
    end: int
    bytes: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Pack:
    """A microbatch of pieces of one stream.

    Attributes:
        rows: token ids that are read, each row on its own.
        targets: (N,) the token behind each of them, row after row.
        weights: (N,) 0 where a target was counted elsewhere already (windows that overlap), else 1.
        pieces: contexts in it.
        starts: where each of them begins in the stream, where that is known.
    """

    rows: tuple[tuple[int, ...], ...]
    targets: np.ndarray
    weights: np.ndarray
    pieces: int
    starts: tuple[int, ...] = ()

    @property
    def count(self) -> float:
        return float(self.weights.sum())

    @property
    def examples(self) -> int:
        return self.pieces

    @property
    def tokens(self) -> int:
        return len(self.targets)

    def halves(self) -> tuple[Pack, ...]:
        """Two microbatches whose summed losses are that of this one; () where no row is left to part it at.

        Of experts whose load is balanced, the balance is then that of each half.
        """
        if self.pieces < 2:
            return ()
        ends = np.cumsum([len(row) for row in self.rows])
        middle = int(np.searchsorted(ends, len(self.targets) / 2)) + 1
        middle = min(max(middle, 1), len(self.rows) - 1)
        at, pieces = int(ends[middle - 1]), self.pieces // 2
        return (
            Pack(self.rows[:middle], self.targets[:at], self.weights[:at], pieces, self.starts[:pieces]),
            Pack(self.rows[middle:], self.targets[at:], self.weights[at:], self.pieces - pieces, self.starts[pieces:]),
        )


class PackedContexts:
    """Causal language modelling on packed contexts.

    Args:
        train: the stream to learn from.
        held_out: the stream that is validated on; None for none.
        context: tokens that are read at once.
        batch_size: contexts in an optimiser step.
        max_tokens: tokens in one pass through the model; a step of more is accumulated.
        within_documents: attention stays inside each document.
        seed: of shifts and order.
        balance: coefficient of the experts' load-balancing loss; 0 for models without experts.
    """

    name = "causal"
    dealt: ClassVar[tuple[str, ...]] = ("steps", "validation")

    def __init__(
        self, train: Stream, held_out: Stream | None, *, context: int, batch_size: int, max_tokens: int = 16384,
        within_documents: bool = False, seed: int = 0, balance: float = 0.0,
    ) -> None:  # fmt: skip
        self.train, self.held_out, self.context = train, held_out, context
        self.within_documents, self.seed, self.balance = within_documents, seed, balance
        self.pieces = (len(train) - 1) // context
        self.batch_size, self.max_tokens = min(batch_size, self.pieces), max(max_tokens, context)
        self.notes: list[str] = []
        self._balance: Balance | None = None
        if not balance:  # which is a mean over a pass
            self.accumulation = 1

    @property
    def epoch_examples(self) -> int:
        return self.pieces

    def start_of(self, epoch: int, piece: int) -> int:
        """Where a piece of an epoch starts: the stream is cut at another place each time, and goes on at its start."""
        shift = int(np.random.default_rng([self.seed, epoch, 1]).integers(self.context)) if epoch else 0
        # the last piece may not reach beyond the stream: then it ends with it
        return min(piece * self.context + shift, len(self.train) - 1 - self.context)

    def batches(self, step: int, model: LanguageModel) -> Sequence[Pack]:  # noqa: ARG002 - data, not rollouts
        picked = order(step, self.batch_size, self.pieces, self.seed)
        first = step * self.batch_size
        starts = [self.start_of((first + i) // self.pieces, piece) for i, piece in enumerate(picked)]
        most = self._pass(len(starts))
        cut = [starts[i : i + most] for i in range(0, len(starts), most)]
        packs = [self.pack([self.train.tokens[s : s + self.context + 1] for s in part], self.train.end) for part in cut]
        return [replace(pack, starts=tuple(part)) for pack, part in zip(packs, cut, strict=True)]

    def named(self, batch: Pack) -> list[str]:
        """What a microbatch was made of, for people: the tokens of the corpus."""
        return [f"tokens {s:,} to {s + self.context:,} of the corpus" for s in batch.starts]

    def _pass(self, windows: int) -> int:
        """Windows in one pass, of so many."""
        return max(1, min(self.max_tokens // self.context, -(-windows // getattr(self, "accumulation", 1))))

    def pack(self, windows: Sequence[np.ndarray], end: int, skip: Sequence[int] | None = None) -> Pack:
        """Windows of n + 1 tokens, n of which are read.

        Args:
            skip: of each window, the first targets that carry no loss; default: none.
        """
        rows: list[tuple[int, ...]] = []
        for window in windows:
            read = window[:-1]
            cuts = np.flatnonzero(read == end).tolist() if self.within_documents else []
            edges = sorted({0, *cuts, len(read)})
            ids = read.tolist()
            rows += [tuple(ids[a:b]) for a, b in pairwise(edges)]
        weights = [np.ones(len(w) - 1) for w in windows]
        for weight, n in zip(weights, skip or (), strict=False):
            weight[:n] = 0.0
        targets = np.concatenate([w[1:] for w in windows]).astype(np.int64)
        return Pack(tuple(rows), targets, np.concatenate(weights), len(windows))

    def validation(self) -> Sequence[Pack]:
        return [] if self.held_out is None else self.windows(self.held_out, self.context)

    def windows(self, stream: Stream, stride: int) -> list[Pack]:
        """All of a stream, every token but the first a target once.

        Args:
            stride: new targets of each window; below the context, windows overlap, and every target but the first ones
                has at least context − stride tokens before it.
        """
        last = len(stream) - 1  # targets
        ends = [*range(min(self.context, last), last, stride), last]
        windows, skip, done = [], [], 0
        for end in dict.fromkeys(ends):
            start = max(0, end - self.context)
            windows.append(np.asarray(stream.tokens[start : end + 1]))
            skip.append(done - start)
            done = end
        most = self._pass(len(windows))
        return [self.pack(windows[i : i + most], stream.end, skip[i : i + most]) for i in range(0, len(windows), most)]

    def loss(self, model: LanguageModel, batch: Pack) -> Loss:
        """The negative log-likelihood of all targets, in nats."""
        assert isinstance(model, CausalModel)
        if self.balance and self._balance is None:
            self._balance = Balance(model.hf)
        watched: Any = self._balance.watch() if self._balance is not None else nullcontext([])
        with watched as routed:
            hidden = model.forward(batch.rows).rows
        targets = torch.as_tensor(batch.targets, device=hidden.device)
        vocabulary = model.hf.get_output_embeddings().weight.shape[0]
        log_probs = model.log_probs(hidden, targets, chunk=max(512, LOGITS // vocabulary))
        if batch.count == len(batch.targets):
            total = -log_probs.sum()
        else:
            total = -(torch.as_tensor(batch.weights, device=hidden.device, dtype=log_probs.dtype) * log_probs).sum()
        if self._balance is None or not torch.is_grad_enabled():
            return Loss(total)
        extra, metrics = self._balance.loss(routed)
        # the mean over tokens, in the currency of sums
        return Loss(total + self.balance * batch.count * extra, {k: v * batch.count for k, v in metrics.items()})

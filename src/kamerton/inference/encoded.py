"""Generating and scoring with an encoder–decoder model.

The encoder reads each distinct prompt once. The decoder's start tokens are read once for each prompt too, and what they
and the encoder's states gave in keys and values is copied for all samples or continuations of it. Rows of a batch are
decoded in step, finished rows leave; sampling, filters and streams of random numbers are those of causal models.

What it leaves out: refilling of finished rows' places, and sharing of what continuations of a prompt begin with beyond
the start tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kamerton.base.encoder_decoder import DecoderCache, EncoderDecoderModel, Memory
from kamerton.inference.generate import PREFILL_TOKENS, Decoder, Row
from kamerton.inference.prefix import fill
from kamerton.inference.sampling import Sampling
from kamerton.inference.score import Scorer, Tree

Tokens = tuple[int, ...]


class _Reader:
    """The encoder's states of prompts, computed once for as long as they are needed.

    Args:
        model: the model.
        uses: every prompt that will be asked for, as often as it will be.
        max_tokens: tokens of one pass, padding included.
    """

    def __init__(self, model: EncoderDecoderModel, uses: Sequence[Tokens], max_tokens: int) -> None:
        self.model, self.max_tokens, self.computed = model, min(max_tokens, PREFILL_TOKENS), 0
        self._front = model.front().soft
        self._left: dict[Tokens, int] = {}
        for prompt in uses:
            self._left[prompt] = self._left.get(prompt, 0) + 1
        self._states: dict[Tokens, Tensor] = {}

    def begin(self, rows: Sequence[Tokens]) -> tuple[Memory, DecoderCache, Tensor, Tensor]:
        """Take some prompts, equal ones side by side, and read the start tokens behind them.

        Returns:
            The memory and the cache with one row for each distinct prompt, (D, H) hidden states of the last start
            token, and (B,) which of the D each row is.
        """
        distinct = list(dict.fromkeys(rows))
        unread = sorted((p for p in distinct if p not in self._states), key=lambda p: -len(p))
        for batch in fill([len(p) + self._front for p in unread], self.max_tokens):
            chosen = [unread[i] for i in batch]
            self.computed += sum(map(len, chosen)) + self._front * len(chosen)
            self._states.update(zip(chosen, self.model.encode(chosen).rows(), strict=True))
        memory = Memory.of([self._states[p] for p in distinct])
        number = {p: i for i, p in enumerate(distinct)}
        which = torch.tensor([number[p] for p in rows], device=self.model.device)
        for prompt in rows:
            self._left[prompt] -= 1
            if not self._left[prompt]:
                del self._states[prompt]
        cache = self.model.fresh(len(distinct))
        hidden = self.model.begin(memory, cache)
        self.computed += len(self.model.start) * len(distinct)
        return memory, cache, hidden, which


class EncodedDecoder(Decoder):
    """`Decoder` for an encoder–decoder model."""

    def __init__(
        self, model: EncoderDecoderModel, sampling: Sampling, end_ids: Sequence[int],
        stopped: Callable[[list[int]], bool], max_tokens: int, *further: object,
    ) -> None:  # fmt: skip
        # what is inherited calls only what all models have
        super().__init__(model, sampling, end_ids, stopped, max_tokens, *further)  # type: ignore[arg-type]
        self._own = model

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], room: Sequence[int]) -> Iterator[list[Row]]:
        front = len(self._own.front()) + len(self._own.start)
        items = self._items(prompts, room)
        items.sort(key=lambda item: (-len(item.tokens), tuple(item.tokens)))
        self.asked += sum(len(item.tokens) + front for item in items) * self.sampling.n
        rows = [row for item in items for row in item.samples]
        read = [tuple(row.prompt.tokens) for row in rows]
        reader = _Reader(self._own, read, self.max_tokens)
        # a row keeps keys and values of its prompt and of its longest possible answer
        kept = [len(row.prompt.tokens) + front + row.prompt.room for row in rows]
        for batch in fill(kept, self.max_tokens):
            yield from self._together(reader, rows[batch.start : batch.stop], read[batch.start : batch.stop])
        self.computed += reader.computed

    def _together(self, reader: _Reader, rows: list[Row], prompts: list[Tokens]) -> Iterator[list[Row]]:
        memory, cache, hidden, which = reader.begin(prompts)
        yield self._advance(rows, hidden[which])
        keep = which  # the cache's rows that are wanted next
        while True:
            live = [i for i, row in enumerate(rows) if not row.finish]
            if not live:
                return
            if len(live) < len(rows):
                rows, keep = [rows[i] for i in live], keep[torch.tensor(live, device=keep.device)]
            if len(keep) != len(memory.lengths) or not bool(
                (keep == torch.arange(len(keep), device=keep.device)).all()
            ):
                memory = memory.select(keep)
                cache = cache.select(keep, memory.hidden.shape[1])
            keep = torch.arange(len(rows), device=keep.device)
            self.asked += len(rows)
            reader.computed += len(rows)
            hidden = self._own.decode(torch.tensor([[row.tokens[-1]] for row in rows]), memory, cache)[:, -1]
            yield self._advance(rows, hidden)


class EncodedScorer(Scorer):
    """`Scorer` and `Ranker` for an encoder–decoder model."""

    def __init__(
        self, model: EncoderDecoderModel, max_tokens: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(model, max_tokens, progress)  # type: ignore[arg-type]
        self._own = model

    def best(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> list[int]:
        """As `Ranker.best`, by scoring every choice."""
        totals = [tree.totals(edges) for tree, edges in zip(trees, self.edges(prompts, trees), strict=True)]
        return [values.index(max(values)) for values in totals]

    @torch.inference_mode()
    def edges(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> list[Tensor]:
        front = len(self._own.front()) + len(self._own.start)
        self.ask(prompts, trees, front - 1)  # an answer's last token is not read
        out = [torch.empty(len(tree.edges)) for tree in trees]
        rows = [(tuple(prompt), i, path) for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True))
                for path in {tuple(path): None for path in tree.paths}]  # fmt: skip
        # equal prompts side by side, so that they are read once; then answers of about equal length
        rows.sort(key=lambda row: (-len(row[0]), row[0], len(row[2])))
        left = [0] * len(prompts)
        for _, i, _ in rows:
            left[i] += 1
        done = left.count(0)
        reader = _Reader(self._own, [prompt for prompt, _, _ in rows], self.max_tokens)
        for batch in fill([len(prompt) + front + len(path) for prompt, _, path in rows], self.max_tokens):
            chosen = rows[batch.start : batch.stop]
            targets = [trees[i].edges[list(path), 1] for _, i, path in chosen]
            for (_, i, path), values in zip(
                chosen, self._batch_of(reader, [r[0] for r in chosen], targets), strict=True
            ):
                out[i][list(path)] = values
                left[i] -= 1
                done += not left[i]
            if self.progress is not None:
                self.progress(done, len(prompts))
        self.computed += reader.computed
        return out

    def _batch_of(self, reader: _Reader, prompts: list[Tokens], targets: list[Tensor]) -> list[Tensor]:
        """Log-probabilities of each row's targets (T_b,), behind its prompt."""
        memory, cache, first, which = reader.begin(prompts)
        lengths = torch.tensor([len(t) - 1 for t in targets])  # what the decoder reads of each row
        hidden = first
        if int(lengths.max()):
            read = torch.nn.utils.rnn.pad_sequence([t[:-1] for t in targets], batch_first=True)
            memory = memory.select(which)
            cache = cache.select(which, memory.hidden.shape[1])
            states = self._own.decode(read, memory, cache)
            real = torch.arange(read.shape[1]) < lengths[:, None]
            hidden = torch.cat([first, states[real.to(states.device)]])
            reader.computed += int(lengths.sum())
        # first tokens are predicted from their prompt's start token, all others from the one before them, in order
        places = torch.cat([which.cpu(), len(first) + torch.arange(int(lengths.sum()))])
        tokens = torch.cat([torch.stack([t[0] for t in targets]), *(t[1:] for t in targets)])
        flat = self._log_probs(hidden, places, tokens).cpu()
        starts, rest = flat[: len(targets)], flat[len(targets) :].split(lengths.tolist())
        return [torch.cat([start[None], others]) for start, others in zip(starts, rest, strict=True)]

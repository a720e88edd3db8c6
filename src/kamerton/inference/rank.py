"""The best of many choices, without computing them all.

A log-probability only falls along a path through the tree of choices, so what a path has lost so far bounds what it can
reach. The search opens the likeliest open nodes first and stops when a finished choice is ahead of everything open: the
same answer as scoring every choice (uniform-cost search), after a fraction of the tree. All questions of a batch search
side by side, one pass a round.

How much it saves depends on how sure the model is. On the 77 intents of banking77 the demo model with eight examples in
its prompt opens 14 of 229 inner nodes for a question, and is two to five times faster than scoring them all; without
examples it opens 89, which search does slower than one pass over the whole tree. So a search that has opened an eighth
of its tree is given up for that one pass (a fifth is lost then), and small trees are not searched at all.

What it leaves out: the scores of the choices that lost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kamerton.base import CausalModel
from kamerton.base.attention import RowCache
from kamerton.base.output_chunks import OUTPUT_CHUNK
from kamerton.inference.prefix import SharedPrefix, fill
from kamerton.inference.score import PASS_TOKENS, Scorer, Tree

WIDTH = 4
"""Nodes of one question that are opened in one round: more waste work, fewer make more rounds."""
SMALLEST = 64
"""Inner nodes of the smallest tree that is searched; up to there one pass over all of it is quicker."""
PART = 8
"""A search is given up when it has opened one node in so many."""


@dataclass(eq=False, slots=True)
class _Search:
    """One question: its tree and the nodes that are open, likeliest first."""

    index: int
    slot: int
    tree: Tree
    open: list[tuple[float, int, int]] = field(default_factory=list)  # (−log-probability, choice or −1, node)
    opened: int = 0

    def take(self, width: int) -> list[tuple[float, int]]:
        """The nodes to be opened next."""
        taken: list[tuple[float, int]] = []
        while self.open and len(taken) < width and self.open[0][1] < 0:
            value, _, node = heapq.heappop(self.open)
            taken.append((-value, node))
        self.opened += len(taken)
        return taken


class Ranker:
    """Finds the likeliest continuation of many prompts.

    Args:
        model: the model.
        max_tokens: cache columns of all rows together, and tokens of one pass.
        progress: called with the prompts done and their number.
    """

    def __init__(self, model: CausalModel, max_tokens: int, progress: Callable[[int, int], None] | None = None) -> None:
        self.model, self.max_tokens, self.progress = model, min(max_tokens, PASS_TOKENS), progress
        self._scorer = Scorer(model, max_tokens)
        self._outputs = self.computed = 0

    @property
    def asked(self) -> int:
        return self._scorer.asked

    @property
    def outputs(self) -> int:
        return self._outputs + self._scorer.outputs

    @torch.inference_mode()
    def best(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> list[int]:
        """The number of the likeliest continuation of each prompt, the first of equals.

        Args:
            prompts: token ids, each at least one.
            trees: of the continuations of each prompt, at least one continuation.
        """
        prefix = SharedPrefix.of(self.model, prompts)
        owns = [prompt[prefix.tokens :] for prompt in prompts]
        self._scorer.ask(prompts, trees, self.model.soft_tokens)
        out: dict[int, int] = {}
        searched = [i for i, tree in enumerate(trees) if len(tree) >= SMALLEST]
        searched.sort(key=lambda i: -len(owns[i]))
        depth = max((max(trees[i].depths) for i in searched), default=0)
        for batch in fill([len(owns[i]) for i in searched], self.max_tokens, depth):
            chosen = [searched[i] for i in batch]
            cache = RowCache(len(chosen), len(owns[chosen[0]]) + self.model.inserted + depth)
            asked = [prompts[i] for i in chosen]
            hidden = prefix.forward([owns[i] for i in chosen], cache=cache, prompts=asked)
            searches = [_Search(i, slot, trees[i]) for slot, i in enumerate(chosen)]
            self._grow(hidden.last(), [(search, 0, 0.0) for search in searches])
            while searches := self._round(searches, cache, prefix, out):
                pass
            self._tell(len(out), len(trees))
        left = [i for i in range(len(trees)) if i not in out]
        done = len(out)
        self._scorer.progress = lambda n, _: self._tell(done + n, len(trees))
        edges = self._scorer.behind(prefix, [prompts[i] for i in left], [trees[i] for i in left])
        for i, values in zip(left, edges, strict=True):
            totals = trees[i].totals(values)
            out[i] = totals.index(max(totals))
        self.computed += prefix.computed
        return [out[i] for i in range(len(prompts))]

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    def _round(
        self, searches: list[_Search], cache: RowCache, prefix: SharedPrefix, out: dict[int, int]
    ) -> list[_Search]:
        """Open nodes of every search that is not decided and not given up; returns those searches."""
        rows: list[list[int]] = []
        slots: list[int] = []
        new: list[tuple[_Search, int, float]] = []
        places: list[int] = []
        live, start = [], 0
        for search in searches:
            if search.open[0][1] >= 0:
                out[search.index] = search.open[0][1]
                continue
            if search.opened >= len(search.tree) // PART:
                continue
            taken = search.take(WIDTH)
            live.append(search)
            for value, node in taken:
                path = search.tree.line(node)
                rows.append(path)
                slots.append(search.slot)
                new.append((search, node, value))
                places.append(start + len(path) - 1)
                start += len(path)
        if rows:
            before = cache.lengths.clone()
            hidden = prefix.forward(rows, cache=cache, slots=slots)
            cache.lengths.copy_(before)  # the prompts stay, what was opened is written over
            self._grow(hidden.rows[torch.tensor(places, device=hidden.rows.device)], new)
        return live

    def _grow(self, hidden: Tensor, opened: list[tuple[_Search, int, float]]) -> None:
        """Add the children of opened nodes, from the nodes' (N, H) hidden states."""
        self._outputs += len(opened)
        for start in range(0, len(opened), OUTPUT_CHUNK):
            part = opened[start : start + OUTPUT_CHUNK]
            logits = self.model.output(hidden[start : start + OUTPUT_CHUNK]).float()
            norms = torch.logsumexp(logits, -1)
            which = [i for i, (search, node, _) in enumerate(part) for _ in search.tree.children[node]]
            tokens = [token for search, node, _ in part for token, _, _ in search.tree.children[node]]
            index = torch.tensor(which, dtype=torch.long, device=logits.device)
            values = (logits[index, torch.tensor(tokens, device=logits.device)] - norms[index]).tolist()
            at = 0
            for search, node, value in part:
                for _, child, choice in search.tree.children[node]:
                    heapq.heappush(search.open, (-(value + values[at]), choice, child))
                    at += 1

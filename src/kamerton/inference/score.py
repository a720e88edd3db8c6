"""Log-probabilities of given continuations.

The continuations of one prompt become a tree: tokens that several of them begin with are one node. Prompt and tree go
through the model as one row in which a node sees the prompt, its ancestors and itself, at the position it would have
alone (the tree attention of SpecInfer, Miao et al. 2023, used here for scoring). A leaf needs no computation of its
own: only its parent's prediction counts. The output layer runs once for each inner node, in chunks, of which the
normaliser and the children's logits are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kamerton.base import CausalModel
from kamerton.base.output_chunks import OUTPUT_CHUNK
from kamerton.inference.prefix import SharedPrefix, fill

PASS_TOKENS = 4096
"""Tokens of one pass, padding included."""


class Tree:
    """Continuations of one prompt as a tree of tokens. The root, node 0, is the prompt's last token.

    Args:
        continuations: token ids, each at least one.

    Attributes:
        tokens: (M,) tokens of the inner nodes 1 … M, parents before children.
        depths: (M,) their depths, from 1.
        sees: (M, M) booleans: which inner nodes a node sees (its ancestors and itself).
        edges: (E, 2) parent node and token of every edge, by parent.
        paths: for every continuation its edges.
        children: for every node 0 … M its edges as token, inner node that it leads to, and the continuation that ends
            there (−1: none).
    """

    def __init__(self, continuations: Sequence[Sequence[int]]) -> None:
        children: list[dict[int, int]] = [{}]
        up, token_of = [-1], [-1]
        walks = []
        for continuation in continuations:
            node, walk = 0, []
            for token in continuation:
                child = children[node].get(token)
                if child is None:
                    child = children[node][token] = len(children)
                    children.append({})
                    up.append(node)
                    token_of.append(token)
                node = child
                walk.append(node)
            walks.append(walk)
        inner = [node for node in range(len(children)) if children[node] or node == 0]
        number = {node: i for i, node in enumerate(inner)}
        depth = [0] * len(children)
        sees = torch.zeros(len(inner), len(inner), dtype=torch.bool)
        for node in inner[1:]:
            depth[node] = depth[up[node]] + 1
            sees[number[node]] = sees[number[up[node]]]
            sees[number[node], number[node]] = True
        self.tokens = [token_of[node] for node in inner[1:]]
        self.depths = [depth[node] for node in inner[1:]]
        self.sees = sees[1:, 1:]
        edge_of: dict[int, int] = {}
        for node in inner:
            for child in children[node].values():
                edge_of[child] = len(edge_of)
        self.edges = torch.tensor([[number[up[n]], token_of[n]] for n in edge_of], dtype=torch.long).view(-1, 2)
        self.paths = [[edge_of[node] for node in walk] for walk in walks]
        choice_of: dict[int, int] = {}
        for i, walk in enumerate(walks):
            choice_of.setdefault(walk[-1], i)
        # a path that ends where others go on would be a leaf and an inner node at once: both are children then
        self.children: list[list[tuple[int, int, int]]] = [
            [
                (token_of[child], number.get(child, -1), kind)
                for child in children[node].values()
                for kind in ([choice_of[child]] if child in choice_of else []) + ([-1] if children[child] else [])
            ]
            for node in inner
        ]
        self._up = [0, *(number[up[node]] for node in inner[1:])]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chain(self) -> bool:
        """Whether the tree does not fork, so that plain causal attention does."""
        return self.depths == list(range(1, len(self) + 1))

    def line(self, node: int) -> list[int]:
        """Tokens from the root to an inner node, which is not the root."""
        tokens = []
        while node:
            tokens.append(self.tokens[node - 1])
            node = self._up[node]
        return tokens[::-1]

    def totals(self, edges: Tensor) -> list[float]:
        """Sum over each continuation's path of (E,) log-probabilities."""
        flat = torch.tensor([edge for path in self.paths for edge in path], dtype=torch.long)
        owner = torch.tensor([i for i, path in enumerate(self.paths) for _ in path], dtype=torch.long)
        return torch.zeros(len(self.paths), dtype=torch.float64).index_add_(0, owner, edges.double()[flat]).tolist()


@lru_cache(maxsize=256)
def tree_of(continuations: tuple[tuple[int, ...], ...]) -> Tree:
    """`Tree`, remembered: the same choices come with every question of a task."""
    return Tree(continuations)


class Scorer:
    """Scores trees of continuations behind prompts.

    Args:
        model: the model.
        max_tokens: tokens of one pass, padding included.
        progress: called with the prompts done and their number.
    """

    def __init__(self, model: CausalModel, max_tokens: int, progress: Callable[[int, int], None] | None = None) -> None:
        self.model, self.max_tokens, self.progress = model, min(max_tokens, PASS_TOKENS), progress
        self.asked = self.computed = self.outputs = 0

    @torch.inference_mode()
    def edges(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> list[Tensor]:
        """Log-probability of every edge of every tree.

        Args:
            prompts: token ids, each at least one.
            trees: of the continuations of each prompt.

        Returns:
            For each prompt (E,) float32 on the CPU, in the order of its tree's edges.
        """
        prefix = SharedPrefix.of(self.model, prompts)
        self.ask(prompts, trees, self.model.soft_tokens)
        out = self.behind(prefix, prompts, trees)
        self.computed += prefix.computed
        return out

    def ask(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], front: int) -> None:
        """Count what a program without sharing would have computed."""
        self.asked += sum(front + len(prompt) + len(path) for prompt, tree in zip(prompts, trees, strict=True)
                          for path in tree.paths)  # fmt: skip

    def behind(self, prefix: SharedPrefix, prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> list[Tensor]:
        """`edges` of prompts that are a prefix and at least one token of their own."""
        owns = [prompt[prefix.tokens :] for prompt in prompts]
        rows = [[*own, *tree.tokens] for own, tree in zip(owns, trees, strict=True)]
        out = {i: torch.empty(0) for i, tree in enumerate(trees) if not tree.paths}
        order = sorted((i for i in range(len(rows)) if i not in out), key=lambda i: -len(rows[i]))
        for batch in fill([len(rows[i]) for i in order], self.max_tokens):
            chosen = [order[i] for i in batch]
            scores = self._batch(prefix, [rows[i] for i in chosen], [prompts[i] for i in chosen],
                                 [trees[i] for i in chosen])  # fmt: skip
            out.update(zip(chosen, scores, strict=True))
            if self.progress is not None:
                self.progress(len(out), len(rows))
        return [out[i] for i in range(len(rows))]

    def _batch(
        self, prefix: SharedPrefix, rows: list[list[int]], prompts: list[Sequence[int]], trees: Sequence[Tree]
    ) -> list[Tensor]:
        owns = [len(prompt) - prefix.tokens for prompt in prompts]
        arguments: dict[str, Any] = {"prompts": prompts}
        if not all(tree.chain for tree in trees):
            longest = max(map(len, rows))
            mask = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
            for b, (own, tree) in enumerate(zip(owns, trees, strict=True)):
                mask[b, own : own + len(tree), own : own + len(tree)] = tree.sees
            arguments["tree"] = mask.to(self.model.device)
            arguments["depths"] = [
                [*range(own), *(own - 1 + depth for depth in tree.depths)]
                for own, tree in zip(owns, trees, strict=True)
            ]
        hidden = prefix.forward(rows, **arguments).rows
        places, tokens, start = [], [], 0
        for row, own, tree in zip(rows, owns, trees, strict=True):
            places.append(start + own - 1 + tree.edges[:, 0])
            tokens.append(tree.edges[:, 1])
            start += len(row)
        flat = self._log_probs(hidden, torch.cat(places), torch.cat(tokens)).cpu()
        return list(flat.split([len(tree.edges) for tree in trees]))

    def _log_probs(self, hidden: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        """(E,) log-probability of `tokens` after the hidden states at `places`, which ascend."""
        parents, parent_of = torch.unique_consecutive(places, return_inverse=True)
        self.outputs += len(parents)
        out = []
        for start in range(0, len(parents), OUTPUT_CHUNK):
            chunk = parents[start : start + OUTPUT_CHUNK]
            first, last = torch.searchsorted(parent_of, torch.tensor([start, start + len(chunk)])).tolist()
            logits = self.model.output(hidden[chunk.to(hidden.device)]).float()
            which = (parent_of[first:last] - start).to(hidden.device)
            out.append(logits[which, tokens[first:last].to(hidden.device)] - torch.logsumexp(logits, -1)[which])
        return torch.cat(out)

"""`VllmEngine`: an `Engine` whose tokens and log-probabilities come out of vLLM.

Prompts, ends, stop strings and the choice of tokens are Kamerton's, so that answers are those of the torch backend, up
to rounding. Soft tokens in front of a prompt, and those that a network makes of it, go to vLLM as embeddings beside the
prompt's tokens. Log-probabilities of short continuations come of decoding them with their tokens given, behind the
prompt that vLLM keeps; long ones go through the layers in one pass.

What it leaves out: keys and values that are trained (prefix tuning), weights beside the layers (bottleneck adapters),
encoders and encoder–decoders.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kamerton.base import CausalModel
from kamerton.base.work import Work
from kamerton.errors import KamertonError
from kamerton.inference.continuous import Job, Token, grown
from kamerton.inference.engine import Engine, Progress
from kamerton.inference.generate import FirstToken, Row, items_of
from kamerton.inference.sampling import Sampling
from kamerton.inference.score import Tree
from kamerton.inference.vllm.batch import Request, VllmBatch, Weights
from kamerton.inference.vllm.choosing import Wish

SHORT = 32
"""Continuations below so many tokens are decoded token by token, as their prompt need not be read again for them."""


class VllmEngine(Engine):
    """An engine that computes in vLLM.

    Args:
        engine: the engine that it stands in for; its model gives soft tokens and is read where states are asked for.
        weights: the model's weights in vLLM.
        adapter: the LoRA adapter that belongs to every request, or None.
    """

    def __init__(self, engine: Engine, weights: Weights, adapter: Any = None) -> None:
        super().__init__(engine.model, engine.renderer, max_batch_tokens=engine.max_batch_tokens)
        assert isinstance(engine.model, CausalModel)
        self.causal: CausalModel = engine.model
        self.torch, self.weights, self.adapter = engine, weights, adapter
        self._soft: Tensor | None = None
        self.batch = self.running_batch(0, 0)

    def running_batch(self, max_tokens: int, max_rows: int) -> VllmBatch:  # noqa: ARG002
        """A batch that others' requests join; its bounds are those that vLLM was started with."""
        return VllmBatch(
            self.weights, self.asked, self.model.soft_tokens, self.renderer.end_ids, self.adapter, self._worked
        )

    def asked(self, prompt: Sequence[int]) -> Mapping[str, Any]:
        """vLLM's input: token ids, and where there are soft tokens their embeddings among them."""
        from vllm.inputs.engine import embeds_input, tokens_input

        if not self.model.soft_tokens:
            return tokens_input(list(prompt))
        with torch.no_grad():
            front = self._front()
            inserts = self.causal.inserts
            own = front[:0] if inserts is None else inserts.make([list(prompt)])[0].to(front)
        place = len(prompt) if inserts is None else inserts.sharable(len(prompt))
        n, m = len(front), len(own)
        length = n + len(prompt) + m
        embeds = torch.zeros(length, front.shape[1], dtype=front.dtype)
        embeds[:n] = front
        embeds[n + place : n + place + m] = own
        ids = [*[0] * n, *prompt[:place], *[0] * m, *prompt[place:]]
        real = [*[False] * n, *[True] * place, *[False] * m, *[True] * (len(prompt) - place)]
        return embeds_input(embeds, prompt_token_ids=ids, is_token_ids=real)

    def _front(self) -> Tensor:
        """(n, H) soft tokens in front of every prompt, on the CPU in the model's type."""
        if self._soft is None:
            found = self.model.front().embeddings
            width = self.model.hf.get_input_embeddings().weight.shape[1]
            soft = torch.zeros(0, width) if found is None else found.detach()
            self._soft = soft.to("cpu", self.model.dtype).clone()
        return self._soft

    # -- in place of the torch backend's ------------------------------------------------------------------------------

    def _decode(
        self, prompts: list[list[int]], sampling: Sampling, samples: int | None = None, first: FirstToken | None = None
    ) -> Iterator[list[Row]]:
        if not prompts:
            return
        if samples is not None:
            sampling = replace(sampling, n=samples)
        heard: deque[list[Token] | Exception] = deque()
        job = Job(prompts, self._rooms(prompts, sampling), sampling, heard.append, self._stopping(sampling), first)
        rows = [row for item in items_of(prompts, job.room, sampling) for row in item.samples]
        left = len(rows)
        with self._working():
            self.batch.join(job)
        try:
            while left:
                with self._working():
                    self.batch.step()
                while heard:
                    tokens = heard.popleft()
                    if isinstance(tokens, Exception):
                        raise tokens
                    left -= sum(bool(token.finish) for token in tokens)
                    self.usage.generated_tokens += len(tokens)
                    yield from grown(rows, tokens)
        finally:
            job.cancelled = True
            self.batch.drop()

    def _edges(
        self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], progress: Progress | None
    ) -> list[Tensor]:
        self._check(prompts, trees)
        out = [torch.zeros(len(tree.edges)) for tree in trees]
        left = [0] * len(trees)
        requests: list[Request] = []

        def over(number: int) -> None:
            left[number] -= 1
            if progress is not None and not left[number]:
                progress(left.count(0), len(trees))

        with self._working():
            try:
                for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
                    paths = _longest(tree.paths)
                    left[i] = len(paths)
                    requests += [self._score(prompt, tree, path, out[i], partial(over, i)) for path in paths]
                while any(left):
                    self.weights.step()
            finally:
                self.weights.end(requests)  # where something went wrong
        return out

    def _score(
        self, prompt: Sequence[int], tree: Tree, path: Sequence[int], out: Tensor, over: Callable[[], None]
    ) -> Request:
        """Ask for the log-probabilities of the tokens along a path, into `out` (E,)."""
        tokens = tree.edges[torch.tensor(path, dtype=torch.long), 1].tolist()
        whole = len(tokens) >= SHORT and not self.model.soft_tokens  # vLLM scores no embeddings in a prompt
        known = tokens[:-1] if whole else []
        asked = self.asked([*prompt, *known])
        given, length = tokens[len(known) :], len(prompt) + len(known) + self.model.soft_tokens
        found: list[float] = []

        def hear(_token: int, logprob: float, _top: tuple[tuple[int, float], ...]) -> bool:
            found.append(logprob)
            if len(found) == len(given):
                scored = request.scored[-len(known) :] if known else []
                out[torch.tensor(path, dtype=torch.long)] = torch.tensor([*scored, *found])
                over()
            return False

        request = self.weights.add(
            asked, length, len(given), Wish(forced=given), (), hear, self._worked, adapter=self.adapter, scored=whole
        )
        return request

    def _best(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], progress: Progress | None) -> list[int]:
        totals = [t.totals(e) for t, e in zip(trees, self._edges(prompts, trees, progress), strict=True)]
        return [values.index(max(values)) for values in totals]

    def _next(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        wishes = [Wish(keep=True) for _ in prompts]
        heard: list[int] = []

        def hear(token: int, *_: object) -> bool:
            heard.append(token)
            return False

        with self._working():
            requests = [
                self.weights.add(
                    self.asked(prompt), len(prompt) + self.model.soft_tokens, 1, wish, (), hear, self._worked,
                    adapter=self.adapter,
                )
                for prompt, wish in zip(prompts, wishes, strict=True)
            ]  # fmt: skip
            try:
                while len(heard) < len(prompts):
                    self.weights.step()
            finally:
                self.weights.end(requests)
        return torch.stack([wish.kept for wish in wishes if wish.kept is not None]).to(self.model.device)

    def _room(self, number: int, prompt: Sequence[int], need: int = 1) -> int:
        room, most = super()._room(number, prompt, need), self.weights.needs.positions
        left = most - self.model.soft_tokens - len(prompt)
        if left < need:
            raise KamertonError(
                f"its prompt has {len(prompt)} tokens and its answer needs {need}; vLLM was started for {most}",
                where=f"conversation {number}", mend="raise evaluation.max_batch_tokens (of a server --batch-tokens)",
            )  # fmt: skip
        return min(room, left)

    @contextmanager
    def _working(self) -> Iterator[None]:
        if self.weights.closed:
            raise KamertonError("vLLM has been closed", where="backend: vllm", mend="load the model again")
        start = time.perf_counter()
        try:
            yield  # nothing of the torch model is made ready: it computes soft tokens at most
        finally:
            self.usage.seconds += time.perf_counter() - start

    def _worked(self, work: Work, asked: int) -> None:
        """Count what one request took, of how many tokens; the model's own counters, so that FLOPs are known."""
        self.model.work.add(tokens=work.tokens, pairs=work.pairs, outputs=work.outputs)
        self.usage.asked_tokens += asked
        self.usage.computed_tokens += work.tokens
        self.usage.outputs += work.outputs


def _longest(paths: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Paths that are not the beginning of another one; each once."""
    begun = {tuple(path[:n]) for path in paths for n in range(1, len(path))}
    return [path for path in dict.fromkeys(map(tuple, paths)) if path and path not in begun]

"""What the other rooms call: `Engine` generates answers to conversations and scores continuations of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from kamerton.base import CausalModel, EncoderDecoderModel, LanguageModel
from kamerton.base.encoder_decoder import causal
from kamerton.errors import KamertonError, ResourceError
from kamerton.inference.continuous import Batch, RunningBatch
from kamerton.inference.encoded import EncodedDecoder, EncodedScorer
from kamerton.inference.generate import PREFILL_TOKENS, Decoder, FirstToken, Row
from kamerton.inference.prefix import SharedPrefix, fill
from kamerton.inference.rank import Ranker
from kamerton.inference.sampling import Sampling
from kamerton.inference.score import PASS_TOKENS, Scorer, Tree, tree_of
from kamerton.memory import asked_for, give_back, out_of_memory
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        text: what the model said, without its end token and cut before a stop string.
        tokens: the sampled tokens, end token included.
        logprobs: of each token, in nats, under the model at temperature 1 without filters.
        finish: "stop" at an end token or a stop string, "length" where the room was used up.
        prompt_tokens: tokens that the model read for it, soft tokens included.
        extra_tokens: tokens that were generated on the way to it and are not in `tokens` (other samples, reasoning).
        details: how it came about (reasoning, votes, sources), as JSON; kept beside the answer.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    prompt_tokens: int
    extra_tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def generated_tokens(self) -> int:
        """All tokens that were generated for it."""
        return len(self.tokens) + self.extra_tokens


@dataclass
class Usage:
    """What an engine did since it was made. Sharing is the difference between asked and computed.

    Attributes:
        asked_tokens: tokens that would have gone through the layers without sharing: a prompt once for each sample or
            continuation, each continuation, and generated tokens but for an answer's last.
        computed_tokens: tokens that went through the layers, soft and generated ones included.
        generated_tokens: tokens of answers.
        outputs: positions that went through the output layer.
        seconds: time spent in calls.
    """

    asked_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    outputs: int = 0
    seconds: float = 0.0


class Engine:
    """Generates and scores with one model.

    Args:
        model: the model, causal or encoder–decoder, with its adapter and front if it has any.
        renderer: its renderer.
        max_batch_tokens: bound on memory: tokens whose keys and values are kept at once beside the shared prefix.
            Where memory runs out all the same it is halved, and the call is made again; `notes` then says so.
    """

    def __init__(self, model: LanguageModel, renderer: Renderer, *, max_batch_tokens: int = 8192) -> None:
        if max_batch_tokens < 1:
            raise KamertonError(f"max_batch_tokens is {max_batch_tokens}", mend="use a whole number from 1 up")
        self.model, self.renderer, self.max_batch_tokens = model, renderer, max_batch_tokens
        self.usage = Usage()
        self.notes: list[str] = []
        whole = not isinstance(model, EncoderDecoderModel)
        self._decoder: Any = Decoder if whole else EncodedDecoder
        self._scorer: Any = Scorer if whole else EncodedScorer
        self._ranker: Any = Ranker if whole else EncodedScorer

    # -- answers ----------------------------------------------------------------------------------------------------

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        *,
        progress: Progress | None = None,
        on_token: Callable[[int, int], None] | None = None,
        first: FirstToken | None = None,
        begun: Sequence[Sequence[int]] = (),
    ) -> list[Answer]:
        """Sample `sampling.n` answers to each conversation.

        Args:
            conversations: the conversations, each up to the model's turn.
            sampling: how to sample.
            progress: called with the answers finished and their number.
            on_token: called with the number of the answer and the token id, for each token as it is sampled.
            first: corrects what each answer's first token is chosen from; called with (B, V) float32 logits and the
                numbers of their conversations. The answers' log-probabilities stay those of the model.
            begun: for each conversation token ids that its answers begin with already; they stand behind the prompt and
                are not part of the answers. Causal models only.

        Returns:
            len(conversations) × n answers, conversation by conversation, in the order given.

        Raises:
            KamertonError: a prompt fills the model's positions.
            ModelError: `begun` on an encoder–decoder.
        """
        total, done = len(conversations) * sampling.n, 0
        rows: list[Row | None] = [None] * total
        prompts = [self.renderer.prompt(c) for c in conversations]
        if begun:
            causal(self.model, "going on from a part of an answer")
            prompts = [[*prompt, *more] for prompt, more in zip(prompts, begun, strict=True)]
        for step in self._decode(prompts, sampling, first=first):
            for row in step:
                if on_token is not None:
                    on_token(row.index, row.tokens[-1])
                if row.finish:
                    rows[row.index] = row
                    done += 1
                    if progress is not None:
                        progress(done, total)
        front = self.model.soft_tokens
        return [self._answer(row, sampling, front) for row in rows if row is not None]

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        """Sample one answer and give its text in pieces as it grows, each whole characters.

        The pieces joined are the text that `generate` gives. `sampling.n` is taken as 1.
        """
        given = ""
        for step in self._decode([self.renderer.prompt(conversation)], sampling, samples=1):
            (row,) = step
            text = self.text(row.tokens, sampling)
            safe = len(text) if row.finish else safe_length(text, sampling.stop)
            if safe > len(given):
                yield text[len(given) : safe]
                given = text[:safe]

    def running_batch(self, max_tokens: int, max_rows: int) -> RunningBatch | None:
        """A batch that requests join while it runs; None where one is answered after another (encoder–decoders).

        Args:
            max_tokens: bound on rows × columns of its cache.
            max_rows: rows at once.
        """
        if not isinstance(self.model, CausalModel):
            return None
        return Batch(self.model, self.renderer.end_ids, max_tokens, max_rows)

    # -- log-probabilities ------------------------------------------------------------------------------------------

    def score(
        self,
        conversations: Sequence[Conversation],
        continuations: Sequence[Sequence[str]],
        *,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Log-probability in nats of each continuation of each conversation, its end token included.

        Args:
            conversations: the conversations, each up to the model's turn.
            continuations: for each conversation the answers to be scored.
            progress: called with the conversations done and their number.

        Raises:
            KamertonError: a prompt with a continuation does not fit into the model's positions.
            ValueError: not one sequence of continuations for each conversation.
        """
        if len(conversations) != len(continuations):
            raise ValueError(f"{len(conversations)} conversations, {len(continuations)} sequences of continuations")
        prompts, trees = self._encode(conversations, continuations)
        edges = self._edges(prompts, trees, progress)
        return [tree.totals(values) for tree, values in zip(trees, edges, strict=True)]

    def rank(
        self,
        conversations: Sequence[Conversation],
        choices: Sequence[Sequence[str]],
        *,
        progress: Progress | None = None,
    ) -> list[int]:
        """The number of the likeliest choice of each conversation: the greatest of what `score` gives, found sooner.

        Args:
            conversations: the conversations, each up to the model's turn.
            choices: for each conversation at least one choice.
            progress: called with the conversations done and their number.

        Raises:
            KamertonError: a prompt with a choice does not fit into the model's positions.
            ValueError: not one sequence of choices for each conversation, or an empty one.
        """
        if len(conversations) != len(choices) or not all(map(len, choices)):
            raise ValueError(
                f"{len(conversations)} conversations need as many sequences of choices, none of them empty"
            )
        prompts, trees = self._encode(conversations, choices)
        self._check(prompts, trees)
        return self.fitting(_lengths(prompts, trees), PASS_TOKENS, lambda: self._best(prompts, trees, progress))

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Progress | None = None,
    ) -> list[Answer]:  # fmt: skip
        """`rank` as answers: the likeliest choice, `sampling.n` times for each conversation; nothing is sampled."""
        best = self.rank(conversations, choices, progress=progress)
        return [
            Answer(options[i], (), (), "stop", self.prompt_tokens(c))
            for c, options, i in zip(conversations, choices, best, strict=True)
            for _ in range(sampling.n)
        ]

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Tokens that the model reads for a conversation, soft ones included."""
        return len(self.renderer.prompt(conversation)) + self.model.soft_tokens

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]:
        """Cut a conversation that leaves fewer than `room` positions for an answer, as in training (`Renderer.fit`).

        Returns:
            The conversation, and whether it was cut.
        """
        return self.renderer.fit(conversation, self.model.prompt_limit(room))

    def next_log_probs(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability in nats of every token as the next one.

        Args:
            prompts: token ids of at least one prompt, each at least one token; the model's front is added.

        Returns:
            (N, V) float32, on the model's device.
        """
        return self.fitting([*map(len, prompts)], PREFILL_TOKENS, lambda: self._next(prompts))

    def _next(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        front = self.model.soft_tokens
        self.usage.asked_tokens += sum(map(len, prompts)) + len(prompts) * front
        limit = min(PREFILL_TOKENS, self.max_batch_tokens)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: list[Tensor] = [torch.empty(0)] * len(prompts)
        with self._working(), torch.inference_mode():
            if isinstance(self.model, CausalModel):
                prefix = SharedPrefix.of(self.model, prompts)
                shared = prefix.tokens
                read = lambda rows: prefix.forward([row[shared:] for row in rows], prompts=rows).last()  # noqa: E731
            else:
                shared, prefix, read = 0, None, self.model.next_hidden
            for batch in fill([len(prompts[i]) - shared for i in order], limit):
                part = [order[i] for i in batch]
                hidden = read([prompts[i] for i in part])
                for i, logits in zip(part, self.model.output(hidden).float(), strict=True):
                    found[i] = logits.log_softmax(-1)
        soft = self.model.front().soft
        self.usage.computed_tokens += prefix.computed if prefix else sum(map(len, prompts)) + soft * len(prompts)
        self.usage.outputs += len(prompts)
        return torch.stack(found)

    def token_log_probs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probability in nats of each token of each continuation.

        Args:
            prompts: token ids, each at least one; the model's front is added.
            continuations: token ids, one continuation for each prompt; those of equal prompts share it.

        Returns:
            For each continuation a float32 tensor as long as it, on the CPU.
        """
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts, {len(continuations)} continuations")
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError("a prompt without tokens: the model has nothing to predict the first token from")
            groups.setdefault(tuple(prompt), []).append(i)
        trees = [Tree([continuations[i] for i in members]) for members in groups.values()]
        out: list[Tensor] = [torch.empty(0)] * len(prompts)
        edges = self._edges(list(groups), trees, None)
        for members, tree, values in zip(groups.values(), trees, edges, strict=True):
            for i, path in zip(members, tree.paths, strict=True):
                out[i] = values[path]  # a copy: an ordinary tensor, that may take part in training
        return out

    def _encode(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> tuple[list[list[int]], list[Tree]]:
        known: dict[str, tuple[int, ...]] = {}

        def encode(text: str) -> tuple[int, ...]:
            if text not in known:
                known[text] = tuple(self.renderer.answer(text))
            return known[text]

        trees = [tree_of(tuple(encode(text) for text in texts)) for texts in continuations]
        return [self.renderer.prompt(c) for c in conversations], trees

    def _check(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> None:
        for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
            self._room(i, prompt, max(map(len, tree.paths), default=0))

    # -- inside -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _working(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self.model.inference():
                yield
        finally:
            self.usage.seconds += time.perf_counter() - start

    def _decode(
        self, prompts: list[list[int]], sampling: Sampling, samples: int | None = None, first: FirstToken | None = None
    ) -> Iterator[list[Row]]:
        if not prompts:
            return
        room, stopped = self._rooms(prompts, sampling), self._stopping(sampling)
        if samples is not None:
            sampling = replace(sampling, n=samples)
        longest = max(len(prompt) + left for prompt, left in zip(prompts, room, strict=True))
        told: dict[int, int] = {}
        while True:
            decoder = self._decoder(self.model, sampling, self.renderer.end_ids, stopped, self.max_batch_tokens, first)
            with self._working():
                try:
                    for step in decoder.run(prompts, room):
                        # each answer has its own random numbers: made again, it has the same tokens
                        new = [row for row in step if len(row.tokens) > told.get(row.index, 0)]
                        told.update((row.index, len(row.tokens)) for row in new)
                        self.usage.generated_tokens += len(new)
                        if new:
                            yield new
                    return
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    asked = asked_for(error)
                finally:
                    self._count(decoder)
            del decoder
            rows = len(prompts) * sampling.n
            self._lower(min(self.max_batch_tokens, rows * longest), longest, "a question with its answer", asked)

    def _rooms(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[int]:
        """The longest answer to each prompt, in tokens."""
        return [min(sampling.max_tokens, self._room(i, prompt)) for i, prompt in enumerate(prompts)]

    def _stopping(self, sampling: Sampling) -> Callable[[list[int]], bool]:
        """Whether the text of an answer's tokens holds a stop string."""
        longest = max((len(s.encode()) for s in sampling.stop), default=0) + 8

        def stopped(tokens: list[int]) -> bool:
            # a stop string of n bytes spans at most n tokens; eight more keep it off the window's edge
            tail = self.renderer.decode(tokens[-longest:])
            return any(s in tail for s in sampling.stop)

        return stopped

    def _edges(
        self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], progress: Progress | None
    ) -> list[Tensor]:
        self._check(prompts, trees)

        def edges() -> list[Tensor]:
            scorer = self._scorer(self.model, self.max_batch_tokens, progress)
            with self._working():
                found: list[Tensor] = scorer.edges(prompts, trees)
            self._count(scorer)
            return found

        return self.fitting(_lengths(prompts, trees), PASS_TOKENS, edges)

    def _best(self, prompts: Sequence[Sequence[int]], trees: Sequence[Tree], progress: Progress | None) -> list[int]:
        ranker = self._ranker(self.model, self.max_batch_tokens, progress)
        with self._working():
            best: list[int] = ranker.best(prompts, trees)
        self._count(ranker)
        return best

    def fitting(self, lengths: Sequence[int], most: int, call: Callable[[], T]) -> T:
        """A call, made again with half as many tokens at once (`max_batch_tokens`) for as long as memory runs out.

        Args:
            lengths: tokens of its rows.
            most: tokens that it takes at once, whatever is allowed.

        Raises:
            ResourceError: one row at a time is too much.
        """
        longest = max(lengths, default=0)
        while True:
            try:
                return call()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                asked = asked_for(error)
            used = min(self.max_batch_tokens, most, longest * len(lengths))
            self._lower(used, longest, "a question with its answers", asked)

    def _lower(self, used: int, longest: int, what: str, asked: str) -> None:
        """Take half as many tokens at once from now on.

        Raises:
            ResourceError: one row at a time was too much already.
        """
        give_back()
        if used <= longest:
            raise ResourceError(
                f"memory ran out{asked}: {what} of {longest:,} tokens does not fit",
                mend="shorten it, ask for shorter answers, or use a smaller base",
            )
        self.max_batch_tokens = max(1, used // 2)
        self.notes[:] = [
            f"memory ran out: {self.max_batch_tokens:,} tokens are computed at once (evaluation.max_batch_tokens: "
            f"{self.max_batch_tokens} asks for that from the start); answers are the same"
        ]

    def _count(self, worker: Decoder | Scorer | Ranker) -> None:
        self.usage.asked_tokens += worker.asked
        self.usage.computed_tokens += worker.computed
        self.usage.outputs += worker.outputs

    def _room(self, number: int, prompt: Sequence[int], need: int = 1) -> int:
        """Positions that are left behind a prompt; refuses where fewer than `need` are."""
        room = self.model.answer_limit(len(prompt))
        if room is None:
            return 2**31
        if room < need:
            raise KamertonError(
                f"its prompt has {len(prompt)} tokens and its answer needs {need}; the model has "
                f"{self.model.max_length} positions",
                where=f"conversation {number}", mend="shorten it, or take fewer shots",
            )  # fmt: skip
        return room

    def text(self, tokens: Sequence[int], sampling: Sampling) -> str:
        """What the tokens of an answer say, without the end token and cut before a stop string."""
        text = self.renderer.decode(tokens[:-1] if tokens[-1] in self.renderer.end_ids else tokens)
        cuts = [text.find(s) for s in sampling.stop if s in text]
        return text[: min(cuts)] if cuts else text

    def _answer(self, row: Row, sampling: Sampling, front: int) -> Answer:
        return Answer(
            text=self.text(row.tokens, sampling),
            tokens=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            finish="stop" if row.finish == "stop" else "length",
            prompt_tokens=len(row.prompt.tokens) + front,
        )


def _lengths(prompts: Sequence[Sequence[int]], trees: Sequence[Tree]) -> list[int]:
    return [len(prompt) + len(tree) for prompt, tree in zip(prompts, trees, strict=True)]


def safe_length(text: str, stop: Sequence[str]) -> int:
    """How much of a text cannot change any more: no unfinished character, no beginning of a stop string."""
    length = len(text.rstrip("\ufffd"))
    for s in stop:
        for size in range(min(len(s) - 1, length), 0, -1):
            if text[:length].endswith(s[:size]):
                length -= size
                break
    return length

"""From a request's questions to the pieces of its answers, whichever way the model makes them.

What one prompt gives is decoded in the running batch and comes token by token. Methods that need more than that answer
through their own `generate`, in a thread; their text comes in one piece, and with it whatever they tell of it (sources,
reasoning, votes).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kamerton.inference import Answer, Sampling
from kamerton.inference.continuous import Token
from kamerton.inference.growing import GrowingText
from kamerton.inference.runner import Ticket
from kamerton.serving.errors import ApiError
from kamerton.serving.hub import Hub, Served
from kamerton.tasks.example import Conversation


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        index: the number of the answer within the request.
        text: what is new.
        tokens: the tokens that came with it.
        finish: "stop" or "length" where it is the last piece, else "".
        details: what a method tells of the answer, with the last piece.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One request under way.

    Attributes:
        served: who answers.
        sampling: how.
        pieces: the answers, piece by piece; to be read once.
        ticket: ends it.
        prompt_tokens: tokens read; `answer_tokens`: tokens written so far.
    """

    served: Served
    sampling: Sampling
    pieces: AsyncIterator[Piece]
    ticket: Ticket
    prompt_tokens: int
    answer_tokens: int = 0

    def usage(self) -> dict[str, int]:
        """OpenAI's counts."""
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.answer_tokens,
            "total_tokens": self.prompt_tokens + self.answer_tokens,
        }  # fmt: skip


async def begin(
    hub: Hub, served: Served, asked: Conversation | Sequence[list[int]], sampling: Sampling, *, top: int = 0,
    exact: bool = False, ticket: Ticket,
) -> Run:  # fmt: skip
    """Set a request going.

    Args:
        hub: where the models are.
        served: who is asked.
        asked: one conversation, or prompts as token ids.
        sampling: how answers are sampled.
        top: likeliest tokens to tell of at each place.
        exact: the client named `max_tokens`, so less room than that is an error.
        ticket: ends it.

    Raises:
        ApiError, KamertonError: it cannot be answered.
    """
    started = time.perf_counter()
    if not served.plain:
        assert isinstance(asked, tuple)
        answers = await _whole(hub, served, asked, sampling, ticket)
        hub.measures.read.labels(served.name).inc(answers[0].prompt_tokens)
        hub.measures.first.labels(served.name).observe(time.perf_counter() - started)
        run = Run(served, sampling, _given(answers), ticket, answers[0].prompt_tokens)
        run.pieces = _counted(hub, run, run.pieces, started)
        return run
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[list[Token] | Exception] = asyncio.Queue()

    def told(tokens: list[Token] | Exception) -> None:
        with suppress(RuntimeError):  # the server has stopped
            loop.call_soon_threadsafe(heard.put_nowait, tokens)

    def join() -> int:
        prompts = list(_prompts(served, asked))
        for prompt in prompts:
            _check_room(served, len(prompt), sampling.max_tokens if exact else 1)
        served.engine.ask(prompts, sampling, told, top=top, ticket=ticket)
        return sum(map(len, prompts)) + served.engine.model.soft_tokens * len(prompts)

    read = await asyncio.wrap_future(hub.runner.call(join))
    hub.measures.read.labels(served.name).inc(read)
    count = sampling.n * (1 if isinstance(asked, tuple) else len(asked))
    run = Run(served, sampling, _decoded(served, sampling, heard, count), ticket, read)
    run.pieces = _counted(hub, run, run.pieces, started)
    return run


def _prompts(served: Served, asked: Conversation | Sequence[list[int]]) -> Sequence[list[int]]:
    if isinstance(asked, tuple):
        return [served.adapted.renderer.prompt(served.adapted.prepare(asked))]
    return asked


def _check_room(served: Served, prompt: int, need: int) -> None:
    room = served.engine.model.answer_limit(prompt)
    if room is None or room >= need:
        return
    raise ApiError(
        400, f"the model has {served.engine.model.max_length} positions, the prompt takes "
        f"{served.engine.model.max_length - room}, the answer may need {need}; shorten one of them",  # type: ignore[operator]
        code="context_length_exceeded",
    )  # fmt: skip


async def _whole(
    hub: Hub, served: Served, asked: Conversation, sampling: Sampling, ticket: Ticket
) -> list[Answer]:  # fmt: skip
    def work() -> list[Answer]:
        with hub.runner.under(ticket), hub.runner.turn:
            return served.adapted.generate([asked], sampling)

    return await asyncio.get_running_loop().run_in_executor(hub.threads, work)


async def _given(answers: Sequence[Answer]) -> AsyncIterator[Piece]:
    for i, a in enumerate(answers):
        tokens = tuple(Token(i, t, p, (), "") for t, p in zip(a.tokens, a.logprobs, strict=False))
        yield Piece(i, a.text, tokens, a.finish, {**a.details, "generated_tokens": a.generated_tokens})


async def _decoded(
    served: Served, sampling: Sampling, heard: asyncio.Queue[list[Token] | Exception], count: int
) -> AsyncIterator[Piece]:
    texts = [GrowingText(served.engine, sampling) for _ in range(count)]
    waiting: list[list[Token]] = [[] for _ in range(count)]
    left = count
    while left:
        tokens = await heard.get()
        if isinstance(tokens, Exception):
            raise tokens
        for token in tokens:
            piece = texts[token.index].add(token.token, last=bool(token.finish))
            waiting[token.index].append(token)
            left -= bool(token.finish)
            if piece or token.finish:
                yield Piece(token.index, piece, tuple(waiting[token.index]), token.finish)
                waiting[token.index] = []


async def _counted(hub: Hub, run: Run, pieces: AsyncIterator[Piece], started: float) -> AsyncIterator[Piece]:
    """The pieces, with their numbers going to the measures; the request ends however this ends."""
    name, first = run.served.name, run.served.plain
    try:
        async for piece in pieces:
            if first:
                hub.measures.first.labels(name).observe(time.perf_counter() - started)
                first = False
            count = piece.details.get("generated_tokens", len(piece.tokens))
            run.answer_tokens += count
            hub.measures.written.labels(name).inc(count)
            yield piece
        hub.measures.whole.labels(name).observe(time.perf_counter() - started)
    finally:
        run.ticket.cancel()

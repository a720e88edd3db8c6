"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from kamerton.inference import Sampling
from kamerton.inference.continuous import Token
from kamerton.inference.runner import Ticket
from kamerton.serving.answering import Piece, Run, begin
from kamerton.serving.delivery import deliver
from kamerton.serving.errors import ApiError
from kamerton.serving.hub import Hub, Served
from kamerton.serving.sampled import finite, sampling_of, shown
from kamerton.serving.schema import ChatRequest, Turn
from kamerton.tasks.example import Conversation, Message

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    hub: Hub = request.app.state.hub
    served = hub.model(body.model)
    conversation = conversation_of(body.messages, hub)
    longest = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = sampling_of(body, hub.limits, longest, hub.limits.answer)
    top = body.top_logprobs or 0
    if top and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if top and not served.plain:
        told = f"{served.name} ({served.adapted.method}) tells no alternatives of its tokens; leave top_logprobs out"
        raise ApiError(400, told, param="top_logprobs", code="unsupported_parameter")

    async def go(ticket: Ticket) -> Run:
        return await begin(hub, served, conversation, sampling, top=top, exact=longest is not None, ticket=ticket)

    options = body.stream_options
    return await deliver(
        hub, request, go, ChatShape(served, sampling, bool(body.logprobs)), stream=bool(body.stream),
        usage=options is not None and options.include_usage,
    )  # fmt: skip


def conversation_of(turns: Sequence[Turn], hub: Hub) -> Conversation:
    """A request's messages as a conversation.

    Raises:
        ApiError: 400, there are too many, or the last one is the model's own.
    """
    if len(turns) > hub.limits.messages:
        raise ApiError(
            400, f"{len(turns)} messages, this server takes {hub.limits.messages}", param="messages",
            code="too_many_messages",
        )  # fmt: skip
    return messages_of(turns)


def messages_of(turns: Sequence[Turn]) -> Conversation:
    """The same for as many messages as there are.

    Raises:
        ApiError: 400, the last one is the model's own.
    """
    if turns[-1].role == "assistant":
        raise ApiError(400, "the last message is the model's own; end with the user's", param="messages")
    return tuple(Message("system" if m.role == "developer" else m.role, m.words) for m in turns)


class ChatShape:
    """Chat completions and their chunks."""

    def __init__(self, served: Served, sampling: Sampling, logprobs: bool) -> None:
        self.served, self.sampling, self.logprobs = served, sampling, logprobs
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk([self._choice(i, {"role": "assistant", "content": ""})]) for i in range(self.sampling.n)]

    def event(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        choice = self._choice(piece.index, {**delta, **_told(piece)}, piece.finish or None)
        if self.logprobs:
            choice["logprobs"] = self._logprobs(piece.tokens)
        return self._chunk([choice])

    def usage_event(self, run: Run) -> dict[str, Any]:
        return {**self._chunk([]), "usage": run.usage()}

    def whole(self, pieces: list[Piece], run: Run) -> dict[str, Any]:
        choices = []
        for i in range(self.sampling.n):
            own = [piece for piece in pieces if piece.index == i]
            message = {"role": "assistant", "content": "".join(p.text for p in own), "refusal": None, **_told(own[-1])}
            found = self._logprobs([t for p in own for t in p.tokens]) if self.logprobs else None
            choices.append({"index": i, "message": message, "finish_reason": own[-1].finish, "logprobs": found})
        return {**self._frame("chat.completion"), "choices": choices, "usage": run.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._frame("chat.completion.chunk"), "choices": choices}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}

    @staticmethod
    def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}

    def _logprobs(self, tokens: list[Token] | tuple[Token, ...]) -> dict[str, Any]:
        renderer = self.served.adapted.renderer
        content = []
        for t in tokens:
            if t.token in renderer.end_ids:
                continue
            likeliest = [_token(renderer, token, logprob) for token, logprob in t.top]
            content.append({**_token(renderer, t.token, t.logprob), "top_logprobs": likeliest})
        return {"content": content, "refusal": None}


def _token(renderer: Any, token: int, logprob: float) -> dict[str, Any]:
    text, raw = shown(renderer, token)
    return {"token": text, "logprob": finite(logprob), "bytes": raw}


def _told(piece: Piece) -> dict[str, Any]:
    """What a method says of its answer, as further fields of the message: the sources by themselves."""
    rest = {k: v for k, v in piece.details.items() if k not in ("sources", "generated_tokens")}
    sources = {"sources": piece.details["sources"]} if "sources" in piece.details else {}
    return {**sources, **({"details": rest} if rest else {})}

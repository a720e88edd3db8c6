"""`POST /v1/completions`: texts that are gone on from, without a template."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from kamerton.inference import Sampling
from kamerton.inference.continuous import Token
from kamerton.inference.runner import Ticket
from kamerton.rendering import Renderer
from kamerton.serving.answering import Piece, Run, begin
from kamerton.serving.delivery import deliver
from kamerton.serving.errors import ApiError
from kamerton.serving.hub import Hub, Served
from kamerton.serving.sampled import finite, sampling_of, shown
from kamerton.serving.schema import CompletionRequest

router = APIRouter()
DEFAULT = 16
"""Tokens of an answer where the request does not say, as in OpenAI's protocol."""


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on from texts."""
    hub: Hub = request.app.state.hub
    served = hub.model(body.model)
    if served.conversations_only:
        told = f"{served.name} ({served.adapted.method}) answers conversations; use /v1/chat/completions"
        raise ApiError(400, told, param="model", code="conversations_only")
    sampling = sampling_of(body, hub.limits, body.max_tokens, DEFAULT)
    prompts = _prompts(body, served, hub)

    async def go(ticket: Ticket) -> Run:
        exact, top = body.max_tokens is not None, body.logprobs or 0
        return await begin(hub, served, prompts, sampling, top=top, exact=exact, ticket=ticket)

    shape = CompletionShape(served, sampling, len(prompts), body.logprobs is not None)
    options = body.stream_options
    return await deliver(
        hub, request, go, shape, stream=bool(body.stream), usage=options is not None and options.include_usage
    )


def _prompts(body: CompletionRequest, served: Served, hub: Hub) -> list[list[int]]:
    given: list[Any] = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if isinstance(given[0], int):
        given = [given]
    if len(given) > hub.limits.prompts:
        told = f"{len(given)} prompts, this server takes {hub.limits.prompts}"
        raise ApiError(400, told, param="prompt", code="too_many_prompts")
    prompts = [served.adapted.renderer.raw(one) if isinstance(one, str) else list(one) for one in given]
    known = served.engine.model.hf.get_input_embeddings().num_embeddings
    if any(token >= known for prompt in prompts for token in prompt):
        raise ApiError(400, f"a token id that the model does not have; it has {known}", param="prompt")
    if not all(prompts):
        told = "an empty prompt, and this model has no token that texts begin with; give some text"
        raise ApiError(400, told, param="prompt", code="empty_prompt")
    return prompts


class CompletionShape:
    """Text completions and their chunks."""

    def __init__(self, served: Served, sampling: Sampling, prompts: int, logprobs: bool) -> None:
        self.served, self.count, self.logprobs = served, prompts * sampling.n, logprobs
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._written = [0] * self.count

    def opening(self) -> list[dict[str, Any]]:
        return []

    def event(self, piece: Piece) -> dict[str, Any]:
        return self._frame([self._choice([piece])])

    def usage_event(self, run: Run) -> dict[str, Any]:
        return {**self._frame([]), "usage": run.usage()}

    def whole(self, pieces: list[Piece], run: Run) -> dict[str, Any]:
        choices = [self._choice([piece for piece in pieces if piece.index == i]) for i in range(self.count)]
        return {**self._frame(choices), "usage": run.usage()}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.served.name,
            "choices": choices,
        }  # fmt: skip

    def _choice(self, own: list[Piece]) -> dict[str, Any]:
        index, text = own[0].index, "".join(piece.text for piece in own)
        found = self._logprobs(index, [t for piece in own for t in piece.tokens]) if self.logprobs else None
        return {"index": index, "text": text, "finish_reason": own[-1].finish or None, "logprobs": found}

    def _logprobs(self, index: int, tokens: list[Token]) -> dict[str, Any]:
        renderer = self.served.adapted.renderer
        out: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for t in tokens:
            if t.token in renderer.end_ids:
                continue
            text = _word(renderer, t.token)
            out["tokens"].append(text)
            out["token_logprobs"].append(finite(t.logprob))
            out["top_logprobs"].append({_word(renderer, token): finite(logprob) for token, logprob in t.top})
            out["text_offset"].append(self._written[index])
            self._written[index] += len(text)
        return out


def _word(renderer: Renderer, token: int) -> str:
    """A token's text; of a part of a character its bytes, as OpenAI writes them, so that no two are written alike."""
    text, raw = shown(renderer, token)
    return "bytes:" + "".join(f"\\x{b:02x}" for b in raw) if "\ufffd" in text and raw else text

"""The chat page at `/`, and what it asks beside OpenAI's own addresses.

The page's files need no key: they hold nothing, and the page itself asks for the key. What is sent to addresses of ours
must come from the page or from a program, not from another site's page. A judgement is acknowledged after its commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from starlette.responses import Response

from kamerton.feedback.records import Candidate
from kamerton.feedback.store import FeedbackStore, StoreError
from kamerton.inference.runner import Ticket
from kamerton.methods.history import answer_room, fit_turns
from kamerton.serving.chat import conversation_of, messages_of
from kamerton.serving.delivery import watched
from kamerton.serving.errors import ApiError, json_response
from kamerton.serving.guard import HEADERS, own_page
from kamerton.serving.hub import Hub, Served
from kamerton.serving.pages import add_static, read_static
from kamerton.serving.schema import Name, Seed, Strict, Text, Turn
from kamerton.tasks.example import Conversation
from kamerton.tasks.newest import newest_turns

router = APIRouter()
add_static(router, read_static("page.css", "chat.css", "theme.js", "page.js", "chat.js", "chat-wire.js"), {}, HEADERS)
add_static(router, read_static("chat.html"), {"/": "chat.html"}, HEADERS)


def _ours(request: Request) -> None:
    """Refuse what another site's page sends."""
    if not own_page({name.lower(): value for name, value in request.headers.items()}):
        raise ApiError(403, "another site's page cannot send this", code="cross_site")


class PromptRequest(Strict):
    """A conversation that is shown as a model would see it."""

    model: Name
    messages: Annotated[list[Turn], Field(min_length=1)]


class FitRequest(Strict):
    """A conversation that one or two models are to answer."""

    models: Annotated[list[Name], Field(min_length=1, max_length=2)]
    messages: Annotated[list[Turn], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class Settings(Strict):
    """How an answer was sampled; stored with it."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    seed: Seed | None = None


class Judged(Strict):
    """An answer that somebody judges."""

    model: Name
    text: Text
    settings: Settings = Settings()


class Judgement(Strict):
    """What somebody says of one answer, or of two."""

    labeller: Name = Field("chat", description="whose judgement it is")
    messages: Annotated[list[Turn], Field(min_length=1)]
    answers: Annotated[list[Judged], Field(min_length=1, max_length=2)]
    kind: Literal["thumbs", "comparison"]
    scores: Annotated[list[float], Field(min_length=1, max_length=2)] | None = Field(
        description="one for each answer, 1 the good one and 0 the other; null takes the judgement back"
    )


@router.get("/page/settings", response_model=None)
async def settings(request: Request) -> Response:
    """What the page must know: whether judgements are stored, and the longest answer."""
    hub: Hub = request.app.state.hub
    return json_response({"feedback": request.app.state.feedback is not None, "max_tokens": hub.limits.answer})


@router.post("/page/prompt", response_model=None, dependencies=[Depends(_ours)])
async def prompt(body: PromptRequest, request: Request) -> Response:
    """The conversation as the model sees it: the renderer's text with special tokens, and how many tokens that is."""
    hub: Hub = request.app.state.hub
    served, conversation = hub.model(body.model), conversation_of(body.messages, hub)
    with hub.place():
        return json_response(await watched(hub, request, _seen(hub, served, conversation)))


async def _seen(hub: Hub, served: Served, conversation: Conversation) -> dict[str, Any]:
    renderer = served.adapted.renderer

    def work() -> dict[str, Any]:
        asked = served.adapted.prepare(conversation)
        read = len(renderer.prompt(asked))
        return {
            "model": served.name, "method": served.adapted.method, "text": renderer.text(asked), "tokens": read,
            "soft_tokens": served.engine.model.soft_tokens, "passes": "one" if served.plain else "several",
        }  # fmt: skip

    found: dict[str, Any] = await _computed(hub, served, work)
    return found


@router.post("/page/fit", response_model=None, dependencies=[Depends(_ours)])
async def fit(body: FitRequest, request: Request) -> Response:
    """How many of the oldest turns a conversation has to lose until all these models can answer it."""
    hub: Hub = request.app.state.hub
    served, conversation = [hub.model(name) for name in body.models], messages_of(body.messages)
    with hub.place():
        return json_response({"dropped": await watched(hub, request, _dropped(hub, served, conversation, body))})


async def _dropped(hub: Hub, models: Sequence[Served], conversation: Conversation, body: FitRequest) -> int:
    conversation, dropped = newest_turns(conversation, lambda asked: len(asked) <= hub.limits.messages)
    for served in models:
        room = answer_room(served.adapted, hub.limits.answer) if body.max_tokens is None else body.max_tokens
        work = partial(fit_turns, served.adapted, conversation, room)
        conversation, more = await _computed(hub, served, work)
        dropped += more
    return dropped


async def _computed(hub: Hub, served: Served, work: Callable[[], Any]) -> Any:
    """What is computed with a model, in its turn."""
    ticket = Ticket()

    def alone() -> Any:
        with hub.runner.under(ticket), hub.runner.turn:
            return work()

    try:
        if served.plain:
            return await asyncio.wrap_future(hub.runner.call(work))
        return await asyncio.get_running_loop().run_in_executor(hub.threads, alone)
    finally:
        ticket.cancel()


@router.post("/page/feedback", response_model=None, dependencies=[Depends(_ours)])
async def feedback(body: Judgement, request: Request) -> Response:
    """Store a judgement, or take it back; answered when it is on the disk."""
    store: FeedbackStore | None = request.app.state.feedback
    if store is None:
        raise ApiError(404, "this server keeps no feedback; start it with --feedback FILE", code="no_feedback")
    conversation = conversation_of(body.messages, request.app.state.hub)
    answers = [Candidate(a.text, a.model, a.settings.model_dump(exclude_none=True)) for a in body.answers]
    if len({(a.text, a.model) for a in answers}) < len(answers):
        raise ApiError(400, "the two answers are the same", param="answers")
    try:
        label = await run_in_threadpool(store.judge, conversation, answers, body.labeller, body.kind, body.scores)
    except StoreError as error:
        raise ApiError(503, error.message, code="store_unavailable") from None
    return json_response({"label": label.id, "item": label.item, "undone": label.undone is not None})

"""The application: routers and what every request passes.

Another page or group of addresses is a router of its own and one line in `make_app`; it finds models, places and
measures in `request.app.state.hub`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from kamerton.feedback.store import FeedbackStore
from kamerton.methods.method import Adapted
from kamerton.serving import chat, chat_page, completions, embeddings, errors, info
from kamerton.serving.api_guard import Guard
from kamerton.serving.hub import Hub
from kamerton.serving.runner import Server
from kamerton.serving.schema import ErrorAnswer
from kamerton.serving.settings import Settings


def make_app(models: Mapping[str, Adapted], settings: Settings, feedback: FeedbackStore | None = None) -> FastAPI:
    """The server's application.

    Args:
        models: what is served, by name.
        settings: limits and manners.
        feedback: where the page's judgements go; None: it asks for none.
    """
    hub = Hub(models, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hub.start()
        try:
            yield
        finally:
            hub.close()

    # no pages that load scripts from elsewhere: the description is at /openapi.json
    app = FastAPI(
        title="Kamerton", lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"4XX": {"model": ErrorAnswer, "description": "what is wrong, in OpenAI's shape"}},
    )  # fmt: skip
    app.state.hub, app.state.feedback = hub, feedback
    app.state.embedder = embeddings.Embedder(settings.embeddings) if settings.embeddings else None
    errors.install(app)
    for part in (chat, completions, embeddings, info, chat_page):
        app.include_router(part.router)
    app.add_middleware(Guard, hub=hub)
    if settings.cors:
        # outside the guard: a browser's first question (OPTIONS) brings no key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    return app


def make_server(app: FastAPI) -> Server:
    """A server for what `make_app` gives, that tells the models when it is asked to stop."""
    hub: Hub = app.state.hub
    return Server(app, hub.stop, hub.limits.grace)

"""The labelling page as an app: one question at a time, labels that are stored before they are acknowledged.

The page is told texts alone: which model wrote what, and what the file calls an item, stays here. A label names its
question by a number, is checked against it, and comes with a token, so that one that is sent twice is stored once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from kamerton.feedback.assignments import answer, assign, assignment, next_assignment, progress
from kamerton.feedback.records import RATINGS, Kind, labeller_name
from kamerton.feedback.results import Results, results_of
from kamerton.feedback.store import FeedbackStore, Outdated
from kamerton.serving.pages import RequestError, add_errors, add_static, read_body, read_static
from kamerton.serving.results_page import results_page

if TYPE_CHECKING:
    from kamerton.serving.live import Sampler

LARGEST = 1 << 16
"""Bytes of a request; labels are small."""
_NUMBER = Annotated[int, Field(ge=1, le=2**53)]
_NAME = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    labeller: _NAME


class _LabelBody(_Body):
    question: _NUMBER
    scores: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(max_length=100)
    seconds: float | None = Field(None, ge=0, le=1e7, allow_inf_nan=False)
    token: str = Field(pattern=r"^[0-9a-zA-Z-]{8,64}$")


class _UndoBody(_Body):
    label: _NUMBER


def label_app(store: FeedbackStore, kind: Kind, sampler: Sampler | None = None) -> FastAPI:
    """The app; put `Guard` in front of it.

    Args:
        store: where labels go.
        kind: what is asked.
        sampler: samples answers meanwhile; None: the items are there.
    """
    app = FastAPI(title="Kamerton label", docs_url=None, redoc_url=None, openapi_url=None)
    add_errors(app)
    add_static(app, read_static("page.css", "page.js", "label.css", "label.js", "theme.js", "results.css"), {})
    add_static(app, read_static("label.html"), {"/": "label.html"})
    computed = _Kept(lambda: results_of(store))

    def state(labeller: str) -> dict[str, Any]:
        name = labeller_name(labeller)
        assign(store, name, kind)
        asked, done, last = next_assignment(store, name, kind), progress(store, name, kind), store.last(name, kind)
        question = asked and {
            "id": asked.id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in asked.item.prompt],
            "answers": [asked.item.answers[i].text for i in asked.shown],
        }
        return {
            "labeller": name, "kind": kind, "done": done.done, "skipped": done.skipped, "total": done.total,
            "last": last and last.id, "question": question, "sampling": sampler and sampler.state(),
        }  # fmt: skip

    def label(body: _LabelBody) -> dict[str, Any]:
        name, asked = labeller_name(body.labeller), assignment(store, body.question)
        if asked is None or asked.labeller != name or asked.kind != kind:
            raise RequestError(404, f"{name} was not asked question {body.question}", "no_such_question")
        scores = None if body.scores is None else tuple(body.scores)
        if kind == "rating" and scores is not None and any(score not in RATINGS for score in scores):
            raise RequestError(422, f"a rating is a whole number from {RATINGS[0]} to {RATINGS[-1]}", "invalid_request")
        answer(store, asked, scores, seconds=body.seconds, token=body.token)
        return state(name)

    def undo(body: _UndoBody) -> dict[str, Any]:
        store.undo(body.labeller, body.label)
        return state(body.labeller)

    def again(body: _Body) -> dict[str, Any]:
        store.undo_skipped(body.labeller, kind)
        return state(body.labeller)

    async def do(request: Request, model: type[Any], act: Callable[[Any], dict[str, Any]]) -> JSONResponse:
        body = await read_body(request, model)
        try:
            found = await run_in_threadpool(act, body)
        except Outdated as error:
            raise RequestError(409, str(error), "outdated") from None
        return JSONResponse(found, headers={"cache-control": "no-store"})

    @app.post("/api/state")
    async def _state(request: Request) -> JSONResponse:
        return await do(request, _Body, lambda body: state(body.labeller))

    @app.post("/api/labels")
    async def _labels(request: Request) -> JSONResponse:
        return await do(request, _LabelBody, label)

    @app.post("/api/undo")
    async def _undo(request: Request) -> JSONResponse:
        return await do(request, _UndoBody, undo)

    @app.post("/api/skipped")
    async def _skipped(request: Request) -> JSONResponse:
        return await do(request, _Body, again)

    @app.get("/results")
    async def _results() -> HTMLResponse:
        page = await run_in_threadpool(lambda: results_page(computed.get(store.state()), store.path.name))
        return HTMLResponse(page, headers={"cache-control": "no-store"})

    @app.get("/healthz")
    async def _health() -> dict[str, str]:
        return {"status": "ok"}

    return app


class _Kept:
    """Results, computed again when something was stored since; by one thread at a time."""

    def __init__(self, compute: Callable[[], Results]) -> None:
        self._compute, self._lock = compute, threading.Lock()
        self._state: tuple[int, ...] | None = None
        self._results: Results | None = None

    def get(self, state: tuple[int, ...]) -> Results:
        with self._lock:
            if self._results is None or self._state != state:
                self._results, self._state = self._compute(), state
            return self._results

"""Readers of what comes over HTTP: requests to `kamerton serve`, to the labelling page and to a live report, and what a
server behind a URL answers to `kamerton chat`. All in this process: requests go into the application, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import HTTPHandler, Request, build_opener
from urllib.response import addinfourl

from fuzzing.mutations import Case

Made = Callable[[str, str, int], Callable[[Callable[[Path], Iterator[Any]]], Any]]


class NotRefused(Exception):
    """An answer that a request must not get: a status of 500 and above, or an error in another shape."""


async def call(app: Any, request: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[int, bytes, Any]:
    """Send a request as an HTTP client would; returns status, body, headers.

    Args:
        request: the first line `METHOD /path?query`, then lines `name: value`, an empty line, the body.
    """
    head, _, body = request.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    given = [(b"host", b"localhost"), *(headers or [])]
    for line in lines:
        name, _, value = line.partition(b":")
        given.append((name.strip().lower(), value.strip()))
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "http",
        "method": method.decode("latin-1").upper() or "GET", "path": path.decode("utf-8", "replace") or "/",
        "raw_path": path, "query_string": query, "root_path": "", "headers": given, "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    parts, started = [{"type": "http.request", "body": body, "more_body": False}], {}
    out = bytearray()
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        elif message["type"] == "http.response.body":
            out.extend(message.get("body", b""))
            if not message.get("more_body", False):
                done.set()

    await app(scope, receive, send)
    return int(started.get("status", 0)), bytes(out), started.get("headers", [])


def checked(status: int, body: bytes, headers: Any) -> None:
    """Raise what a request must not lead to."""
    from kamerton.errors import KamertonError

    if (status >= 500 and status != 503) or status == 0:
        raise NotRefused(f"status {status}: {body[:300]!r}")
    if b"Traceback (most recent" in body:
        raise NotRefused("a traceback")
    for name, value in headers:
        if b"\n" in value or b"\r" in value:
            raise NotRefused(f"a header of two lines: {name!r}")
    if status >= 400:
        kind = dict(headers).get(b"content-type", b"")
        message = json.loads(body)["error"]["message"] if b"json" in kind else str(status)
        raise KamertonError(f"{status} {message}")


def _loop(app: Any, lifespan: bool) -> Iterator[Callable[[Case], Any]]:
    """A function that sends a case's request into an application that lives as long as the generator."""
    loop = asyncio.new_event_loop()
    context = app.router.lifespan_context(app) if lifespan else None
    if context is not None:
        loop.run_until_complete(context.__aenter__())

    def read(case: Case) -> None:
        checked(*loop.run_until_complete(call(app, case.get("request.txt", b""))))

    try:
        yield read
    finally:
        if context is not None:
            loop.run_until_complete(context.__aexit__(None, None, None))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _posts(path: str, *bodies: Any) -> list[Case]:
    head = f"POST {path}\ncontent-type: application/json\n\n"
    return [{"request.txt": head.encode() + json.dumps(body).encode()} for body in bodies]


def _gets(*targets: str) -> list[Case]:
    return [{"request.txt": f"GET {target}\naccept: */*\n\n".encode()} for target in targets]


def _serve(folder: Path) -> Iterator[Any]:
    import tiny
    from kamerton.base import load_base
    from kamerton.feedback.store import FeedbackStore
    from kamerton.serving.app import make_app
    from kamerton.serving.settings import Limits, Settings

    base = load_base(tiny.save(folder / "base", layers=1), dtype="float32", device="cpu")
    models = {
        "small": tiny.fit(base, "zero-shot", folder / "z"),
        "few": tiny.fit(base, "few-shot", folder / "f", shots=2),
    }
    store = FeedbackStore(folder / "f.sqlite")
    settings = Settings(Limits(answer=4, n=2, messages=5, prompts=3, seconds=8, grace=0.1), hosts=("localhost",))
    app = make_app(models, settings, store)
    turns = [{"role": "system", "content": "Which colour?"}, {"role": "user", "content": "the green river"}]
    chat = {"model": "small", "messages": turns, "max_tokens": 2, "temperature": 0.5, "seed": 1, "stop": ["x"]}
    seeds = [
        *_posts("/v1/chat/completions", chat, {**chat, "stream": True}, {**chat, "model": "few", "n": 2},
                {**chat, "logprobs": True, "top_logprobs": 2}),
        *_posts("/v1/completions", {"model": "small", "prompt": "the", "max_tokens": 2},
                {"model": "small", "prompt": [[1, 2], [3]], "max_tokens": 1, "logprobs": 1}),
        *_posts("/page/prompt", {"model": "small", "messages": turns}),
        *_posts("/page/fit", {"models": ["small"], "messages": turns, "max_tokens": 3}),
        *_posts("/page/feedback", {"messages": turns, "answers": [{"text": "a", "model": "small"}], "labeller": "ann",
                                   "kind": "thumbs", "scores": [1]}),
        *_gets("/", "/healthz", "/v1/models", "/v1/models/small", "/metrics", "/openapi.json", "/static/page.css",
               ),
    ]  # fmt: skip
    for read in _loop(app, True):
        yield seeds, read
    store.close()


def _label(folder: Path) -> Iterator[Any]:
    from kamerton.feedback.records import Candidate, make_item
    from kamerton.feedback.store import FeedbackStore
    from kamerton.serving.guard import Guard
    from kamerton.serving.label_app import label_app
    from kamerton.tasks.example import conversation

    store = FeedbackStore(folder / "f.sqlite")
    answers = [Candidate("x", "m"), Candidate("y")]
    store.add([make_item(conversation([("user", f"q {n}")]), answers, name=str(n)) for n in range(4)])
    app = label_app(store, "comparison")
    seeds = [
        *_posts("/api/state", {"labeller": "ann"}),
        *_posts(
            "/api/labels", {"labeller": "ann", "question": 1, "scores": [1, 0], "seconds": 2.5, "token": "abcdefgh1"}
        ),
        *_posts("/api/undo", {"labeller": "ann", "label": 1}),
        *_posts("/api/skipped", {"labeller": "ann"}),
        *_gets("/", "/results", "/healthz", "/static/page.js", "/?key=abc"),
    ]
    guard = Guard(app, key=None)
    guard.router = app.router  # type: ignore[attr-defined]
    for read in _loop(guard, False):
        yield seeds, read
    store.close()


def _report(folder: Path) -> Iterator[Any]:
    from kamerton.serving.guard import Guard
    from kamerton.serving.report_app import report_app
    from synthetic_comparison import FIVE, write_comparison

    write_comparison(folder / "made", FIVE[:2], seeds=(0,), examples=4)
    seeds = _gets("/", "/api/state", "/api/curves", "/api/cell?label=few-shot&seed=0", "/api/answers", "/results.json",
                  "/static/report.js", "/healthz")  # fmt: skip
    for read in _loop(Guard(report_app(folder / "made"), key="0123456789abcdef", open_paths=("/healthz",)), False):
        key = b"\nauthorization: Bearer 0123456789abcdef\n"
        keyed = [{"request.txt": case["request.txt"].replace(b"\n", key, 1)} for case in seeds]
        yield keyed, read


class _Answers(HTTPHandler):
    """A server that answers with the parts of a case, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.case: Case = {}

    def http_open(self, request: Request) -> addinfourl:  # type: ignore[override]
        name = "models.json" if request.full_url.endswith("/models") else "answer.txt"
        if request.full_url.endswith(("/prompt", "/fit")):
            name = "page.json"
        head, _, body = self.case.get(name, b"{}").partition(b"\n\n") if name == "answer.txt" else (b"", b"", b"")
        body = body if name == "answer.txt" else self.case.get(name, b"{}")
        headers = HTTPMessage()
        headers["content-type"] = head.decode("latin-1").strip() or "application/json"
        found = addinfourl(BytesIO(body), headers, request.full_url, 200)
        found.msg = "OK"  # type: ignore[attr-defined]
        return found


def _wire(folder: Path) -> Iterator[Any]:
    del folder
    from kamerton.chat.model import Reply
    from kamerton.chat.remote import RemoteModels
    from kamerton.chat.wire import Wire
    from kamerton.inference import Sampling
    from kamerton.tasks.example import conversation

    answers = _Answers()
    before = Wire.__init__

    class Here(Wire):
        def __init__(self, *given: Any) -> None:
            before(self, *given)
            self._opener = build_opener(answers)

    import kamerton.chat.remote as remote

    remote.Wire = Here  # type: ignore[misc]
    asked = conversation([("user", "q"), ("assistant", "a"), ("user", "q")])

    def read(case: Case) -> None:
        answers.case = case
        models = RemoteModels("http://127.0.0.1:1/v1")
        str((models.context, models.about, models.names))
        reply = Reply()
        models.answer(asked, Sampling(max_tokens=2), reply, lambda _text: None, lambda _n: None)
        models.prompt(asked, Sampling(max_tokens=2))
        str(reply.details), str(reply.answer_tokens)

    events = [{"choices": [{"delta": {"content": "Hi"}}]}, {"choices": [{"delta": {"reasoning_content": "hm"}}]},
              {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}]  # fmt: skip
    stream = b"text/event-stream\n\n" + b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
    whole = (
        b"application/json\n\n"
        + json.dumps(
            {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
        ).encode()
    )
    theirs = json.dumps({"data": [{"id": "one", "max_model_len": 4096}, {"id": "two"}]}).encode()
    ours = json.dumps(
        {"data": [{"id": "s", "owned_by": "kamerton", "method": "lora", "base": "demo", "context": 64}]}
    ).encode()
    page = json.dumps({"dropped": 0, "text": "a", "tokens": 3, "soft_tokens": 0, "passes": "one"}).encode()
    seeds = [
        {"models.json": listed, "answer.txt": answer, "page.json": page}
        for listed in (theirs, ours) for answer in (stream, stream + b"data: [DONE]\n\n", whole)
    ]  # fmt: skip
    try:
        yield seeds, read
    finally:
        remote.Wire = Wire  # type: ignore[misc]


def register(reader: Made) -> None:
    """Add these readers to the others."""
    reader("serve", "requests to kamerton serve", 20)(_serve)
    reader("label", "requests to the labelling page", 60)(_label)
    reader("report", "requests to a live report", 60)(_report)
    reader("chat-server", "what a server answers to kamerton chat", 60)(_wire)

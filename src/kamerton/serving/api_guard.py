"""What every request passes before anything reads it: the caller's name for us, its key, its size.

Written against ASGI itself, so that a client's leaving and the pieces of a stream pass through unchanged.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kamerton.serving.errors import ApiError
from kamerton.serving.guard import brings_key, fits, hostname
from kamerton.serving.hub import Hub

OPEN = (
    "/healthz", "/", "/static/page.css", "/static/chat.css", "/static/theme.js", "/static/page.js",
    "/static/chat.js", "/static/chat-wire.js",
)  # fmt: skip
"""Addresses that need no key: what watches over the server asks there, and the page's files, which ask for the key."""


class Guard:
    """Refuses requests under foreign names, without the key, or that are too large; counts all of them.

    Args:
        app: what is behind it.
        hub: settings and measures.
    """

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self.app, self.hub, self.settings = app, hub, hub.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, counted)
        finally:
            # the route's own name, so that nobody can fill the measures with addresses
            path = getattr(scope.get("route"), "path", "other")
            self.hub.measures.requests.labels(path, str(status)).inc()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(scope, Headers(scope=scope))
        if refused is not None:
            await refused.response()(scope, receive, send)
            return
        # the body is read here: what is raised inside `receive` later is taken for a mistake in the JSON
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.settings.limits.seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return  # the client has gone
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > self.settings.limits.body:
                        await self._too_large().response()(scope, receive, send)
                        return
        except TimeoutError:
            await ApiError(408, "the body did not come in time", code="timeout").response()(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def again() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self.app(scope, again, send)

    def _refused(self, scope: Scope, headers: Headers) -> ApiError | None:
        hosts, key = [host.strip("[]") for host in self.settings.hosts], self.settings.key
        if hosts and hostname(headers.get("host", "")) not in hosts:
            return ApiError(403, "called by a name that is not this machine's own; use localhost", code="host")
        asked = key is not None and scope["path"] not in OPEN and scope["method"] != "OPTIONS"
        if key is not None and asked and not brings_key(headers, key):
            told = "no valid API key; send it as: Authorization: Bearer KEY"
            return ApiError(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None if fits(headers.get("content-length"), self.settings.limits.body) else self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a body of more than {self.settings.limits.body} bytes", code="body_too_large")

"""How answers leave: as one JSON object, or as server-sent events while they grow.

A request holds its place until its last byte is sent or its client has gone, whichever comes first; a client that goes
away ends what is decoded for it. Errors before the first piece are answers with their status; later ones are an event
of the stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kamerton.errors import KamertonError
from kamerton.inference.continuous import Cancelled
from kamerton.inference.runner import Ticket
from kamerton.serving.answering import Piece, Run
from kamerton.serving.errors import ApiError, in_words, json_response
from kamerton.serving.hub import Hub

log = logging.getLogger("kamerton.serving")
DONE = b"data: [DONE]\n\n"
SLACK = 5.0
"""Seconds behind its deadline in which a stream can say that it is late."""


class Shape(Protocol):
    """How one kind of request words its answer."""

    def opening(self) -> list[dict[str, Any]]:
        """Events before any text."""
        ...

    def event(self, piece: Piece) -> dict[str, Any]:
        """The event of a piece."""
        ...

    def usage_event(self, run: Run) -> dict[str, Any]:
        """The event behind the last piece that holds the counts."""
        ...

    def whole(self, pieces: list[Piece], run: Run) -> dict[str, Any]:
        """The answer in one."""
        ...


async def deliver(
    hub: Hub, request: Request, begin: Callable[[Ticket], Coroutine[Any, Any, Run]], shape: Shape, *, stream: bool,
    usage: bool,
) -> Response:  # fmt: skip
    """Answer a request.

    Args:
        hub: gives it a place.
        request: whose client is watched.
        begin: sets it going.
        shape: words it.
        stream: piece by piece.
        usage: counts at the end of a stream.
    """
    hub.take()
    ticket, held = Ticket(), True
    deadline = asyncio.get_running_loop().time() + hub.limits.seconds
    try:
        run = await _watched(hub, request, begin(ticket), deadline)
        if stream:
            held = False  # the stream gives the place back
            return _Stream(_events(hub, run, shape, usage, deadline), hub, ticket, deadline)
        pieces = await _watched(hub, request, _all(run.pieces), deadline)
        return json_response(shape.whole(pieces, run))
    except (ApiError, KamertonError):
        raise
    except Cancelled:
        raise _stopped() from None
    except Exception:
        log.exception("a request failed")
        raise
    finally:
        if held:
            ticket.cancel()
            hub.give_back()


async def watched(hub: Hub, request: Request, work: Awaitable[Any]) -> Any:
    """The result of some work, unless its client goes away, its time is up or the server stops before that."""
    return await _watched(hub, request, work, asyncio.get_running_loop().time() + hub.limits.seconds)


async def _all(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _watched(hub: Hub, request: Request, work: Awaitable[Any], deadline: float) -> Any:
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    ended = asyncio.ensure_future(hub.ended.wait())
    try:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait({task, gone, ended}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            hub.measures.gone.inc()
            raise ApiError(499, "the client has gone")
        raise _stopped() if ended.done() else _late(hub)
    finally:
        for each in (task, gone, ended):
            each.cancel()
        await asyncio.gather(task, gone, ended, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(hub: Hub, run: Run, shape: Shape, usage: bool, deadline: float) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    ended = asyncio.ensure_future(hub.ended.wait())
    try:
        for event in shape.opening():
            yield _data(event)
        pieces = run.pieces.__aiter__()
        while True:
            following = asyncio.ensure_future(pieces.__anext__())
            try:
                await asyncio.wait({following, ended}, timeout=max(0.0, deadline - loop.time()),
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                if not following.done():
                    raise _stopped() if ended.done() else _late(hub)
                piece = following.result()
            except StopAsyncIteration:
                break
            finally:
                following.cancel()
            yield _data(shape.event(piece))
        if usage:
            yield _data(shape.usage_event(run))
    except Cancelled:
        yield _data(_stopped().body())
    except Exception as error:
        if not isinstance(error, ApiError | KamertonError):
            log.exception("a stream failed")
        yield _data(in_words(error).body())
    finally:
        ended.cancel()
    yield DONE


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def _late(hub: Hub) -> ApiError:
    return ApiError(408, f"it took more than {hub.limits.seconds:g} seconds; ask for fewer tokens", code="timeout")


def _stopped() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})


class _Stream(StreamingResponse):
    """A stream that holds a place until it is over, also where it never begins."""

    def __init__(self, content: AsyncIterator[bytes], hub: Hub, ticket: Ticket, deadline: float) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._hub, self._ticket, self._whole = hub, ticket, False
        self._deadline = deadline + SLACK

    async def stream_response(self, send: Send) -> None:
        await super().stream_response(send)
        self._whole = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # a client that does not read what it asked for would hold its place for ever
            async with asyncio.timeout_at(self._deadline):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("a client did not read its stream")
        finally:
            if not self._whole:
                self._hub.measures.gone.inc()
            self._ticket.cancel()
            self._hub.give_back()

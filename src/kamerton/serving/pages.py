"""What pages are made of: files of this package under fixed names, bodies of requests that are checked, errors as JSON.

Files are read once, at the start; a request's path is looked up among their names and never reaches the file system.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from kamerton.errors import KamertonError, ResourceError
from kamerton.serving.guard import error_body

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI, Request
    from pydantic import BaseModel
    from starlette.responses import Response

    Model = TypeVar("Model", bound=BaseModel)

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
NONE: Mapping[str, str] = MappingProxyType({})
_MOST_LISTED = 3
"""Wrong fields that an error names."""


class RequestError(Exception):
    """A request that cannot be answered: a status from 400 on, a sentence, a short code."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def read_static(*names: str) -> dict[str, bytes]:
    """Files of `static/` by their names."""
    folder = files("kamerton.serving") / "static"
    return {name: (folder / name).read_bytes() for name in names}


def add_static(
    app: FastAPI | APIRouter, static: Mapping[str, bytes], pages: Mapping[str, str], headers: Mapping[str, str] = NONE
) -> None:
    """Routes for files: each under `/static/NAME`, and pages under paths of their own.

    Args:
        static: contents by name.
        pages: the name of a file by its path, `{"/": "label.html"}`.
        headers: further ones, where no guard in front adds them.
    """
    from starlette.responses import Response

    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in static.items()}

    def route(path: str, name: str) -> None:
        async def answer(request: Request) -> Response:
            own = {**headers, "etag": tags[name], "cache-control": "no-cache"}
            if request.headers.get("if-none-match") == tags[name]:
                return Response(status_code=304, headers=own)
            return Response(static[name], media_type=f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8", headers=own)

        app.add_route(path, answer, methods=["GET"])

    for name in static:
        route(f"/static/{name}", name)
    for path, name in pages.items():
        route(path, name)


async def read_body(request: Request, model: type[Model]) -> Model:
    """A request's body as a checked record.

    Raises:
        RequestError: 415, it is not said to be JSON; 422, it is not what the record wants, with the field's name.
    """
    from pydantic import ValidationError

    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "send the body as application/json", "unsupported_media_type")
    body = await request.body()
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = [
            f"{'.'.join(str(part) for part in e['loc']) or 'the body'}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        message = "; ".join(found[:_MOST_LISTED]) + ("; …" if len(found) > _MOST_LISTED else "")
        raise RequestError(422, re.sub(r"\s+", " ", message), "invalid_request") from None


def add_errors(app: FastAPI) -> None:
    """All errors in one shape, without a traceback; what the store cannot write is 503, so that a page tries again."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    from kamerton.feedback.store import StoreError

    def told(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> Response:
        # ASCII only: a message may quote half of a character
        return Response(error_body(message, code), status, dict(headers or {}), "application/json")

    def handle(kind: type[Exception], answer: Callable[[Exception], Response]) -> None:
        async def handler(_request: Request, error: Exception) -> Response:
            return answer(error)

        app.add_exception_handler(kind, handler)

    def http(error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return told(error.status_code, str(error.detail), "http_error", error.headers)

    def request(error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return told(error.status, str(error), error.code)

    def invalid(error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return told(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}", "invalid_request")

    handle(HTTPException, http)
    handle(RequestError, request)
    handle(KamertonError, lambda error: told(400, str(error), "invalid_request"))
    handle(ResourceError, lambda error: told(503, str(error), "store_unavailable"))
    handle(StoreError, lambda error: told(503, str(error), "store_unavailable"))
    handle(RequestValidationError, invalid)
    handle(sqlite3.Error, lambda error: told(503, f"the store cannot be used: {error}", "store_unavailable"))

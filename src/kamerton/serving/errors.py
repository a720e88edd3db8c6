"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kamerton.errors import KamertonError, ResourceError
from kamerton.memory import no_room, out_of_memory

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
         429: "rate_limit_error", 503: "service_unavailable_error"}  # fmt: skip


class ApiError(Exception):
    """An answer with a status of 4xx or 5xx.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field that is to blame.
        code: a word for programs.
        headers: further headers.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: what a client sent comes back in errors, and may hold what UTF-8 cannot say."""
    return Response(json.dumps(value, allow_nan=False), status, headers, media_type="application/json")


def from_user(error: KamertonError) -> ApiError:
    """A mistake that the rooms below found in a request, or what the machine has too little of for it."""
    if isinstance(error, ResourceError):
        return ApiError(503, str(error), code="insufficient_resources")
    return ApiError(400, str(error), code="invalid_request")


def in_words(error: Exception) -> ApiError:
    """Any error as an answer; what is not the client's fault tells nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, KamertonError):
        return from_user(error)
    if out_of_memory(error):
        return from_user(no_room(error))
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error of an application leave in this shape."""

    @app.exception_handler(ApiError)
    async def _own(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(KamertonError)
    async def _mistake(_: Request, error: KamertonError) -> Response:
        return from_user(error).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        words = {404: "there is nothing at this address", 405: "this address does not take this method"}
        told = words.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, told, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return invalid(error).response()

    @app.exception_handler(Exception)
    async def _inside(_: Request, error: Exception) -> Response:
        return in_words(error).response()


def invalid(error: RequestValidationError) -> ApiError:
    """What a description of the request did not allow; the first mistake."""
    first = _first(error.errors())
    # pydantic names the branches of a union too, which no client knows
    place = [str(part) for part in first["loc"][1:] if "[" not in str(part) and part != "str"]
    param = ".".join(place) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field: {param}", param=param, code="unknown_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if first["loc"][:1] == ("body",) and not place:
        hint = "send a JSON object with content-type application/json"
        return ApiError(400, f"the body is not what is expected here ({message[:1].lower()}{message[1:]}); {hint}")
    return ApiError(400, f"{param}: {message[:1].lower()}{message[1:]}", param=param, code="invalid_value")


def _first(errors: Sequence[Any]) -> Any:
    """The first mistake; of a field that may be of several kinds, one of the kind that it is."""
    field = errors[0]["loc"][:2]
    own = [error for error in errors if error["loc"][:2] == field]
    return next((error for error in own if not error["type"].endswith("_type")), own[0])

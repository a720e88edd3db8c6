"""Requests to a server that speaks OpenAI's protocol, by the standard library alone; whatever goes wrong is one line.

The key goes to the address that was given and nowhere else: a server that sends elsewhere is not followed.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kamerton.errors import KamertonError
from kamerton.serving.guard import is_loopback

QUICK, SLOW = 30.0, 600.0
"""Seconds that a list of models, and the next piece of an answer, may take."""
LONGEST = 300
"""Characters of what a server says is wrong."""
_ENDPOINTS = ("/chat/completions", "/completions", "/models")


class ServerError(KamertonError):
    """What a server refused.

    Attributes:
        status: of HTTP; 0 where the answer itself says it.
        code: the server's word for it.
    """

    status, code = 0, ""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def is_url(target: str) -> bool:
    """Whether a target is an address and not a name or folder."""
    return target.lower().startswith(("http://", "https://"))


def api_address(url: str) -> str:
    """The address of an API from what people give: without a path it is `/v1`; one of its endpoints is taken off.

    Raises:
        KamertonError: it names no host, or has a query.
    """
    parts = urlsplit(url)
    try:
        named = bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:
        named = False
    plain = all("!" <= c <= "~" for c in url)
    if not named or not plain or parts.query or parts.fragment or parts.username is not None:
        raise KamertonError("is no address of a server", where=url, mend="write it as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    for end in _ENDPOINTS:
        path = path.removesuffix(end)
    return urlunsplit((parts.scheme.lower(), parts.netloc, path or "/v1", "", ""))


class Wire:
    """A server.

    Args:
        address: of its API, see `api_address`.
        key: sent as a bearer token.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address, self._key = address, key
        handlers: list[Any] = [_Stay()]
        if is_loopback(urlsplit(address).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy's localhost is another machine
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def root(self) -> str:
        """What stands before `/v1`."""
        return self.address.removesuffix("/v1")

    def get(self, address: str) -> Any:
        """A JSON value."""
        with self.open(address, None, QUICK) as response:
            return parsed(response.read(), self.address)

    def post(self, address: str, body: dict[str, Any]) -> Any:
        """A JSON value in answer to another one."""
        with self.open(address, body, SLOW) as response:
            return parsed(response.read(), self.address)

    @contextmanager
    def open(self, address: str, body: dict[str, Any] | None, seconds: float) -> Iterator[HTTPResponse]:
        """The answer to a request, to be read inside the block.

        Raises:
            ServerError: the server refused it.
            KamertonError: it does not answer, or breaks off inside the block.
        """
        headers = {"accept": "application/json, text/event-stream", "user-agent": "kamerton"}
        if self._key is not None:
            # a header's letters are bytes: what is not ASCII goes as UTF-8
            headers["authorization"] = "Bearer " + self._key.encode().decode("latin-1")
        data = None
        if body is not None:
            headers["content-type"], data = "application/json", json.dumps(body).encode()
        try:
            request = urllib.request.Request(address, data, headers)
            with self._opener.open(request, timeout=seconds) as response:
                yield response
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, HTTPException) as error:
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> KamertonError:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__
        mend = "check the address, and that the server runs"
        return KamertonError(f"does not answer ({reason})", where=self.address, mend=mend)

    def _refused(self, error: urllib.error.HTTPError) -> ServerError:
        try:
            raw = error.read(65536)
        except (OSError, HTTPException):
            raw = b""
        message, code = _told(raw)
        message = message or f"the server said {error.code} {error.reason}"
        mend = None
        if 300 <= error.code < 400:
            mend = f"give the address that it names: {error.headers.get('location', 'none')}"
        elif error.code == 401:
            mend = "give --api-key or set KAMERTON_API_KEY"
        found = ServerError(message[:LONGEST].rstrip(". "), where=self.address, mend=mend)
        found.status, found.code = error.code, code
        return found


def parsed(data: str | bytes, address: str) -> Any:
    """A JSON value.

    Raises:
        KamertonError: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise foreign(address) from None


def foreign(address: str) -> KamertonError:
    """What is said of an answer that is not one of the protocol."""
    return KamertonError("what answers there does not speak OpenAI's protocol", where=address, mend="check the address")


def refused_in_answer(told: Any, address: str) -> ServerError | None:
    """The error that an answer (or an event of a stream) holds in place of what was asked for."""
    if not isinstance(told, dict) or not told.get("error"):
        return None
    message, code = _words(told)
    error = ServerError((message or "the server failed")[:LONGEST].rstrip(". "), where=address)
    error.code = code
    return error


def _told(raw: bytes) -> tuple[str, str]:
    """Message and code of an error's body, in the shapes that servers have for it."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return "", ""  # a page of a proxy, say: the status tells more
    return _words(value) if isinstance(value, dict) else ("", "")


def _words(value: dict[str, Any]) -> tuple[str, str]:
    error = value.get("error", value)
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message") or error.get("detail") or ""
    code = error.get("code") or error.get("type") or ""
    return message if isinstance(message, str) else json.dumps(message), str(code)

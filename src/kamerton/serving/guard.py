"""Who may ask, and how much at once: the checks that every page of ours puts in front of its routes.

* A server on loopback answers without a key, but only to requests that name it as this machine: a page elsewhere whose
  name was pointed at 127.0.0.1 (DNS rebinding) is refused.
* Any other host wants a key, compared in constant time: as `Authorization: Bearer KEY`, or once as `?key=KEY`, which a
  browser keeps as a cookie that holds a digest of it. The address is then shown without the key.
* What changes something must come from our own page: another site's page cannot send it (CSRF).
* A body has a largest size, counted while it comes in.

All of it is ASGI middleware without a framework, so that it stands in front of any app.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from kamerton.errors import KamertonError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "kamerton"
KEY_VARIABLE = "KAMERTON_API_KEY"
SAFE = ("GET", "HEAD", "OPTIONS")
SHORTEST_KEY = 16

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
}  # fmt: skip
"""Sent with every answer: nothing runs or loads in a page but our own files."""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine as only this machine can reach it."""
    if host.casefold().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, key: str | None) -> None:
    """Refuse to listen where others can reach us without a key, or with one that is soon guessed.

    Raises:
        KamertonError: so.
    """
    mend = f"give --api-key, or set {KEY_VARIABLE}"
    if key is None and not is_loopback(host):
        raise KamertonError("can be reached by others, and there is no key", where=f"--host {host}", mend=mend)
    if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        mend = "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        what = f"is no key of at least {SHORTEST_KEY} letters, digits and signs"
        raise KamertonError(what, where="--api-key", mend=mend)


def same_key(given: str | None, key: str) -> bool:
    """Whether a key is the one, in a time that tells nothing about it."""
    return hmac.compare_digest((given or "").encode("utf-8", "surrogatepass"), key.encode())


def brings_key(headers: Mapping[str, str], key: str) -> bool:
    """Whether a request's bearer token is the key."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # headers are read as Latin-1: so are the bytes that came, for a key may hold any character
    right = key.encode().decode("latin-1")
    return scheme.lower() == "bearer" and same_key(given.strip(" \t"), right)


def error_body(message: str, code: str) -> bytes:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


class Guard:
    """The checks above, in front of an app.

    Args:
        app: what is asked when they pass.
        key: None: only requests to this machine's own names pass.
        largest: bytes of a body.
        open_paths: answered without a key (a health check).
    """

    def __init__(self, app: App, *, key: str | None, largest: int = 1 << 20, open_paths: tuple[str, ...] = ()) -> None:
        self._app, self._key, self._largest, self._open = app, key, largest, open_paths
        # the cookie outlives a restart and does not tell the key
        self._digest = key and hmac.new(key.encode(), b"kamerton page", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_headers(send)
        if self._key is None and not is_loopback(hostname(headers.get("host", ""))):
            await _refuse(send, 403, "this server answers to localhost only", "wrong_host")
        elif self._key is not None and scope["path"] not in self._open and not self._known(scope, headers):
            await self._ask_key(scope, headers, send)
        elif self._key is not None and scope["method"] == "GET" and _query(scope, "key") is not None:
            await self._keep_key(scope, send)
        elif scope["method"] not in SAFE and not own_page(headers):
            await _refuse(send, 403, "another site's page cannot send this", "cross_site")
        elif not fits(headers.get("content-length"), self._largest):
            await _refuse(send, 413, f"the body has more than {self._largest} bytes", "too_large")
        else:
            await self._bounded(scope, receive, send)

    def _known(self, scope: Scope, headers: dict[str, str]) -> bool:
        assert self._key is not None
        assert self._digest is not None
        if brings_key(headers, self._key):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and same_key(cookie.value, self._digest):
            return True
        return scope["method"] == "GET" and same_key(_query(scope, "key"), self._key)

    async def _ask_key(self, scope: Scope, headers: dict[str, str], send: Send) -> None:
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            wrong = "<p role=alert>That is not the key.</p>" if _query(scope, "key") is not None else ""
            await _answer(send, 401, _KEY_PAGE.replace("WRONG", wrong).encode(), "text/html; charset=utf-8")
        else:
            extra = [(b"www-authenticate", b"Bearer")]
            await _refuse(send, 401, "this server wants a key: Authorization: Bearer KEY", "invalid_api_key", extra)

    async def _keep_key(self, scope: Scope, send: Send) -> None:
        rest = urlencode([pair for pair in _pairs(scope) if pair[0] != "key"])
        # one slash only: two would be another host's address
        where = "/" + scope["path"].lstrip("/").replace("\\", "%5C") + (f"?{rest}" if rest else "")
        where = "".join(c if c.isascii() and c.isprintable() and c != " " else "_" for c in where)
        cookie = f"{COOKIE}={self._digest}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
        extra = [(b"location", where.encode()), (b"set-cookie", cookie.encode())]
        await _answer(send, 303, b"", "text/plain", extra)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        read, started, over = 0, False, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal read, over
            message = await receive()
            read += len(message.get("body") or b"")
            if read > self._largest:
                over = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if over and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except Exception:
            if not over:
                raise
        if over and not started:
            await _refuse(send, 413, f"the body has more than {self._largest} bytes", "too_large")


def hostname(host: str) -> str:
    """The name of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def own_page(headers: dict[str, str]) -> bool:
    """Whether a request is a program's, or our own page's; browsers say where it comes from."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.casefold() == headers.get("host", "").casefold()
    except ValueError:
        return False


def fits(length: str | None, largest: int) -> bool:
    """Whether a body may be as long as its header says; what says nothing is counted while it comes."""
    return length is None or not length.isdecimal() or (len(length) < 19 and int(length) <= largest)


def _pairs(scope: Scope) -> list[tuple[str, str]]:
    try:
        return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return []


def _query(scope: Scope, name: str) -> str | None:
    return next((value for key, value in _pairs(scope) if key == name), None)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return wrapped


async def _refuse(
    send: Send, status: int, message: str, code: str, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    await _answer(send, status, error_body(message, code), "application/json", extra)


async def _answer(
    send: Send, status: int, body: bytes, kind: str, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [
        (b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store"),
        *(extra or []),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_KEY_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Kamerton: key</title>
<h1>Kamerton</h1>WRONG
<form method="get"><p><label for="key">This server wants its key.</label></p>
<p><input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></p></form></html>
"""

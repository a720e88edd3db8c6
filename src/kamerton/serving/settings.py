"""Limits and manners of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask.

    Attributes:
        body: bytes of a request.
        messages: messages of a conversation.
        prompts: prompts, or texts to embed, in one request.
        answer: the longest answer in tokens; what `max_tokens` is where a request does not say.
        n: answers to one prompt.
        requests: requests at once; more are told to come back (429).
        rows: answers that are decoded at once.
        tokens: tokens that a model's running batch keeps keys and values of at once.
        seconds: the longest that a request may take.
        grace: seconds that running answers are given when the server stops.
    """

    body: int = 2 * 2**20
    messages: int = 256
    prompts: int = 64
    answer: int = 1024
    n: int = 16
    requests: int = 64
    rows: int = 64
    tokens: int = 65536
    seconds: float = 600.0
    grace: float = 10.0


@dataclass(frozen=True)
class Settings:
    """How the server behaves.

    Attributes:
        limits: what may be asked.
        key: what requests must bring as a bearer token; None: nothing.
        hosts: names under which the server may be called; empty: any. Without a key only loopback names are allowed,
            so that a page of somebody else's that has its name point here cannot talk to it.
        cors: origins whose pages may call it.
        embeddings: the encoder of /v1/embeddings, None for none.
    """

    limits: Limits = Limits()
    key: str | None = None
    hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    embeddings: str | None = None

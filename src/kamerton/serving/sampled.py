"""From the fields of a request to a `Sampling`, limits checked; and a token as the protocol shows it."""

from __future__ import annotations

import secrets
from typing import Any

from kamerton.inference import Sampling
from kamerton.rendering import Renderer
from kamerton.serving.errors import ApiError
from kamerton.serving.schema import Common
from kamerton.serving.settings import Limits


def sampling_of(body: Common, limits: Limits, asked: int | None, default: int) -> Sampling:
    """How a request wants to be answered.

    Args:
        body: the request.
        limits: of the server.
        asked: the longest answer that it names.
        default: the longest answer where it names none.

    Raises:
        ApiError: it asks for too much, or for what is not there.
    """
    field = body.unsupported()
    if field is not None:
        raise ApiError(400, f"{field} is not supported; leave it out", param=field, code="unsupported_parameter")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options are for streams; set stream, or leave them out", param="stream_options")
    if asked is not None and asked > limits.answer:
        raise ApiError(
            400, f"max_tokens is {asked}, this server gives at most {limits.answer}", param="max_tokens",
            code="max_tokens_too_large",
        )  # fmt: skip
    n = body.n or 1
    if n > limits.n:
        raise ApiError(400, f"n is {n}, this server gives at most {limits.n} answers", param="n", code="n_too_large")
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return Sampling(
        max_tokens=asked or min(default, limits.answer),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k, top_p=body.top_p, min_p=body.min_p, stop=body.stops, n=n, seed=seed,
    )  # fmt: skip


def shown(renderer: Renderer, token: int) -> tuple[str, list[int] | None]:
    """A token's text, and its bytes where they are known."""
    tokenizer: Any = renderer.tokenizer
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if "\ufffd" not in text:
        return text, list(text.encode())
    piece = tokenizer.convert_ids_to_tokens(token)
    table = _byte_table()
    if piece and all(c in table for c in piece):  # a part of a character, in a byte-level vocabulary
        return text, [table[c] for c in piece]
    return text, None


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it; what is impossible is −9999, as in OpenAI's answers."""
    return max(-9999.0, logprob)


def _byte_table() -> dict[str, int]:
    """The bytes that the characters of a byte-level vocabulary stand for (Radford et al. 2019)."""
    if not _TABLE:
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in visible]
        _TABLE.update({chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(others)})
    return _TABLE


_TABLE: dict[str, int] = {}

"""What a server's answers have to be, as far as a chat reads them: what is not so is of another protocol."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kamerton.chat.wire import foreign


class _Told(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Delta(_Told):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    details: dict[str, Any] | None = None


class _Choice(_Told):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Usage(_Told):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answered(_Told):
    """An event of a stream, or a whole answer."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None


class _Entry(_Told):
    id: str | int | None = None
    owned_by: str | None = None
    method: str | None = None
    base: str | None = None
    context: int | None = None


class Listed(_Told):
    """`/v1/models`."""

    data: list[_Entry] | None = None


class Prompt(_Told):
    """`/page/prompt`."""

    text: str
    tokens: int
    soft_tokens: int
    passes: str


class Fit(_Told):
    """`/page/fit`."""

    dropped: int


def known(kind: type[BaseModel], value: Any, address: str) -> Any:
    """The value itself, once it is known to be what the protocol has there.

    Raises:
        KamertonError: it is not.
    """
    try:
        kind.model_validate(value)
    except ValidationError:
        raise foreign(address) from None
    return value

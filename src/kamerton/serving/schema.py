"""What requests hold. Types are strict, numbers bounded, unknown fields refused.

Fields of OpenAI's protocol that would change the answer and are not implemented are refused by name unless they have
their neutral value; fields that change nothing (`user`, `metadata`, …) are taken and not used.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def _plain(text: str) -> str:
    found = _CONTROL.search(text)
    if found:
        code = ord(found.group())
        what = "half of a character" if code >= 0xD800 else "a control character"
        raise ValueError(f"{what} (U+{code:04X}) in a text; leave it out")
    return text


Text = Annotated[str, AfterValidator(_plain)]
Name = Annotated[str, Field(max_length=256), AfterValidator(_plain)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class Strict(BaseModel):
    """Exactly these fields, exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ErrorDetail(Strict):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Strict):
    """The answer to a request that cannot be served."""

    error: ErrorDetail


class Part(Strict):
    """A part of a message's content; only text is read."""

    type: Literal["text"]
    text: Text


class Turn(Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1)]
    name: Name | None = None

    @property
    def words(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Common(Strict):
    """What chat and plain completions have in common."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy; default: 1")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31)] | None = Field(None, description="keep the k likeliest tokens")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Seed | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # refused unless neutral
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # without effect
    user: Name | None = None

    def unsupported(self) -> str | None:
        """A field that asks for what is not there."""
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", *self._refused()):
            if getattr(self, name):
                return name
        return None

    def _refused(self) -> tuple[str, ...]:
        return ()

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Common):
    """A conversation to be answered."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any | None = None
    functions: list[Any] | None = None
    modalities: list[Name] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: dict[Name, Text] | None = None
    service_tier: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None

    def unsupported(self) -> str | None:
        if self.response_format not in (None, {"type": "text"}):
            return "response_format"
        if self.modalities not in (None, ["text"]):
            return "modalities"
        if self.tool_choice not in (None, "none"):
            return "tool_choice"
        return super().unsupported()

    def _refused(self) -> tuple[str, ...]:
        return ("tools", "functions")


Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(Common):
    """A text to be gone on from, as it is, without a template."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Text | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    def unsupported(self) -> str | None:
        if self.best_of is not None and self.best_of != (self.n or 1):
            return "best_of"
        return super().unsupported()

    def _refused(self) -> tuple[str, ...]:
        return ("echo", "suffix")


class EmbeddingsRequest(Strict):
    """Texts to be embedded."""

    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Name | None = None

"""Models behind a URL: any server that speaks OpenAI's protocol. Answers come as server-sent events.

The oldest turns that no longer fit are dropped here too. A server of ours says how many those are; of any other one it
is known only from its refusal, and then one turn more is dropped until it answers. A field that a server does not know
(`stream_options`, `top_k`, …) is left out from then on, and the chat says so.
"""

from __future__ import annotations

import json
import re
from typing import Any

from kamerton.chat.events import event_data
from kamerton.chat.model import Grown, Progress, Reply, clean
from kamerton.chat.protocol import Answered, Fit, Listed, Prompt, known
from kamerton.chat.telling import seen
from kamerton.chat.wire import SLOW, ServerError, Wire, api_address, parsed, refused_in_answer
from kamerton.errors import KamertonError
from kamerton.recipe_errors import closest
from kamerton.sampling import Sampling
from kamerton.tasks.example import Conversation, Message
from kamerton.tasks.newest import newest_turns, turns_of

_TOO_LONG = re.compile(
    r"context.{0,12}(length|window|size|limit)|maximum context|(prompt|input|conversation) is too long|too many tokens",
    re.IGNORECASE,
)
_SPARE = ("stream_options", "seed", "top_k", "min_p", "top_p", "temperature", "max_tokens")
"""Fields that an answer can be given without."""


class RemoteModels:
    """The models of a server.

    Args:
        url: where it is.
        name: the model to begin with; default: the server's first.
        key: the API key.

    Raises:
        KamertonError: it does not answer, or has no such model.
    """

    def __init__(self, url: str, *, name: str | None = None, key: str | None = None) -> None:
        self._wire = Wire(api_address(url), key)
        self._known = self._list(name)
        self.names = list(self._known)
        self.name = name if name is not None else self.names[0]
        self._left_out: set[str] = set()
        self._dropped: tuple[Message | None, int, int] = (None, 0, 0)  # first message, turns dropped, of how many

    def _list(self, name: str | None) -> dict[str, dict[str, Any]]:
        try:
            found = self._wire.get(f"{self._wire.address}/models")
        except ServerError as error:
            if error.status in (404, 405) and name is not None:
                return {name: {}}  # some servers have one model and list none
            raise
        listed = known(Listed, found, self._wire.address).get("data")
        models = {
            str(one["id"]): one for one in listed or () if isinstance(one, dict) and "id" in one
            if one.get("method") != "embeddings"
        }  # fmt: skip
        if not models and name is None:
            raise KamertonError("the server lists no models", where=self._wire.address, mend="name one with --model")
        if name is not None and name not in models:
            if any(map(self._ours, models.values())):
                raise KamertonError(f"has no model {name!r}", where=self._wire.address, mend=closest(name, models))
            models[name] = {}  # a list may leave some out; the server refuses what it does not have
        return models

    @staticmethod
    def _ours(entry: dict[str, Any]) -> bool:
        return entry.get("owned_by") == "kamerton"

    @property
    def ours(self) -> bool:
        """Whether the server is `kamerton serve`, which tells more than the protocol has."""
        return self._ours(self._known.get(self.name, {}))

    @property
    def context(self) -> int | None:
        entry = self._known.get(self.name, {})
        found = entry.get("context") or entry.get("max_model_len")
        return found if isinstance(found, int) else None

    @property
    def about(self) -> list[str]:
        entry = self._known.get(self.name, {})
        method = f", method {entry.get('method')} on {entry.get('base')}" if self.ours else ""
        more = f"; {len(self.names)} models, /model lists them" if len(self.names) > 1 else ""
        return [f"{self._wire.address}: model {self.name}{method}{more}"]

    def answer(
        self, conversation: Conversation, sampling: Sampling, reply: Reply, grown: Grown, progress: Progress,  # noqa: ARG002
    ) -> None:  # fmt: skip
        asked = self._beginning(conversation, sampling, reply)
        while True:
            body = {"model": self.name, "messages": _turns(asked), "stream": True} | self._fields(sampling)
            try:
                self._stream(body, reply, grown)
                return
            except ServerError as error:
                if reply.text or error.status not in (0, 400, 413, 422):
                    raise
                field = self._refused_field(error, body)
                if field is not None:
                    self._left_out.add(field)
                    reply.notes.append(f"the server does not take {field}: it is left out")
                    continue
                shorter, more = _newest(asked, turns_of(asked) - 1)
                if not more or not (error.code == "context_length_exceeded" or _TOO_LONG.search(error.message)):
                    raise
                asked, reply.dropped = shorter, reply.dropped + more
                self._dropped = (_first(conversation), reply.dropped, turns_of(conversation))

    def prompt(self, conversation: Conversation, sampling: Sampling) -> str:
        reply = Reply()
        asked = self._beginning(conversation, sampling, reply)
        if not self.ours:
            sent = json.dumps(_turns(asked), ensure_ascii=False, indent=1)
            return f"{sent}\n(this is what is sent; the server renders it by its own template)"
        told = self._wire.post(f"{self._wire.root}/page/prompt", {"model": self.name, "messages": _turns(asked)})
        found = known(Prompt, told, self._wire.address)
        return seen(
            clean(found["text"]), tokens=found["tokens"], soft_tokens=found["soft_tokens"], dropped=reply.dropped,
            several=found["passes"] == "several",
        )  # fmt: skip

    def _beginning(self, conversation: Conversation, sampling: Sampling, reply: Reply) -> Conversation:
        """The conversation without the turns that are known not to fit."""
        turns, dropped = turns_of(conversation), 0
        first, before, of = self._dropped
        if self.ours and turns > 1:
            wanted = {"models": [self.name], "messages": _turns(conversation), "max_tokens": sampling.max_tokens}
            fits = self._wire.post(f"{self._wire.root}/page/fit", wanted)
            dropped = min(max(known(Fit, fits, self._wire.address)["dropped"], 0), turns - 1)
        elif first == _first(conversation) and turns >= of:
            dropped = before
        kept, reply.dropped = _newest(conversation, turns - dropped) if dropped else (conversation, 0)
        return kept

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
            "min_p": sampling.min_p, "seed": sampling.seed, "max_tokens": sampling.max_tokens,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        kept = {name: value for name, value in fields.items() if value is not None and name not in self._left_out}
        if "max_tokens" in self._left_out and "max_completion_tokens" not in self._left_out:
            kept["max_completion_tokens"] = sampling.max_tokens  # its newer name
        return kept

    @staticmethod
    def _refused_field(error: ServerError, body: dict[str, Any]) -> str | None:
        """The field that a server does not know, by its words."""
        if error.code == "context_length_exceeded" or _TOO_LONG.search(error.message):
            return None
        unknown = re.search(r"unknown|unsupported|not supported|unrecognized|extra|not permitted|unexpected",
                            f"{error.code} {error.message}", re.IGNORECASE)  # fmt: skip
        named = [name for name in _SPARE if name in body and re.search(rf"\b{name}\b", error.message)]
        return named[0] if unknown and named else None

    def _stream(self, body: dict[str, Any], reply: Reply, grown: Grown) -> None:
        address = self._wire.address
        with self._wire.open(f"{address}/chat/completions", body, SLOW) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                self._read(parsed(response.read(), address), reply, grown)  # it answers in one piece
                reply.finish = reply.finish or "stop"
                return
            for data in event_data(response):
                if data == "[DONE]":
                    reply.finish = reply.finish or "stop"
                    return
                self._read(parsed(data, address), reply, grown)
        if not reply.finish:
            raise KamertonError("the answer broke off", where=address, mend="/retry asks again")

    def _read(self, told: Any, reply: Reply, grown: Grown) -> None:
        """One event, or the whole answer."""
        error = refused_in_answer(told, self._wire.address)
        if error is not None:
            raise error
        known(Answered, told, self._wire.address)
        usage = told.get("usage") or {}
        reply.prompt_tokens = usage.get("prompt_tokens", reply.prompt_tokens)
        reply.answer_tokens = usage.get("completion_tokens", reply.answer_tokens)
        for choice in told.get("choices") or ():
            delta = choice.get("delta") or choice.get("message") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                reply.details["reasoning"] = reply.details.get("reasoning", "") + clean(thought)
            if "sources" in delta:
                reply.details["sources"] = delta["sources"]
            reply.details.update(delta.get("details") or {})
            reply.finish = choice.get("finish_reason") or reply.finish
            if delta.get("content"):
                grown(clean(delta["content"]))


def _turns(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": m.role, "content": clean(m.content)} for m in conversation]


def _newest(conversation: Conversation, turns: int) -> tuple[Conversation, int]:
    return newest_turns(conversation, lambda asked: turns_of(asked) <= turns)


def _first(conversation: Conversation) -> Message | None:
    """What a conversation is known by: what was said first."""
    return next((m for m in conversation if m.role == "user"), None)

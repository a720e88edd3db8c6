"""One turn of a conversation in OpenAI's or ShareGPT's words → a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamerton.errors import TaskError
from kamerton.tasks.columns import text_of
from kamerton.tasks.example import Message, Role
from kamerton.tasks.readers import Row

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def message_of(turn: Any, row: Row) -> Message:
    """One turn; its content may be a list of text parts.

    Raises:
        TaskError: it is no object, its role is not known, or its content is not text; with the row's place.
    """
    if not isinstance(turn, Mapping):
        mend = 'write {"role": "user", "content": "…"}'
        raise TaskError("a turn is not an object", where=row.place, mend=mend)
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if str(role).lower() not in ROLES:
        known = ", ".join(ROLES)
        raise TaskError(f"role {role!r} is not known", where=row.place, mend=f"use one of: {known}")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise TaskError("a turn has a part that is not text", where=row.place, mend="keep text parts only")
        content = "".join(str(part) for part in parts)
    return Message(ROLES[str(role).lower()], text_of(content, row, "content"))

"""What was said: a system prompt and turns. In a file it is a line of JSON with `messages`, as task files have them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kamerton.errors import KamertonError, TaskError
from kamerton.feedback.lines import Line, read_lines
from kamerton.files import write_text
from kamerton.tasks.columns import ALIASES
from kamerton.tasks.example import Conversation, Message
from kamerton.tasks.readers import Row
from kamerton.tasks.turns import message_of


@dataclass
class History:
    """A conversation.

    Attributes:
        system: the system prompt; None or "" for none.
        turns: what was said, the user first; an answer stands behind its question.
    """

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def conversation(self, question: str | None = None) -> Conversation:
        """All of it, and a further question."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self.turns, *((Message("user", question),) if question is not None else ()))

    def last_question(self) -> int | None:
        """Its place among the turns; None where nothing was asked."""
        return max((i for i, m in enumerate(self.turns) if m.role == "user"), default=None)

    def take_back(self) -> str | None:
        """Remove the last question with what was answered to it; returns the question, None where there is none."""
        at = self.last_question()
        if at is None:
            return None
        question = self.turns[at].content
        del self.turns[at:]
        return question

    def record(self) -> dict[str, Any]:
        """As a line of a file.

        Raises:
            KamertonError: there is no answer that could be saved.
        """
        said = self.conversation()
        if not said or said[-1].role != "assistant":
            raise KamertonError("there is no answer to be saved yet", mend="ask something first")
        return {"messages": [{"role": m.role, "content": m.content} for m in said]}


def save(history: History, path: Path) -> tuple[int, bool]:
    """Put a conversation into a file of conversations: a line of its own, or in place of its own beginning.

    Returns:
        The line's number among the conversations, and whether it replaced one that was there.

    Raises:
        KamertonError: there is no answer yet, or the file holds something else.
    """
    record = history.record()
    mine = record["messages"]
    rows = []
    if path.exists() and path.stat().st_size:
        for line in _lines(path):
            if "messages" not in line.record:
                mend = "save to another file"
                raise TaskError("has its turns in another column than messages", where=line.place, mend=mend)
            rows.append(line.record)
    # what was saved earlier of the same conversation
    place = next((i for i, row in enumerate(rows) if mine[: len(row["messages"])] == row["messages"]), None)
    if place is None:
        rows.append(record)
    else:
        rows[place] = {**rows[place], **record}
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows) if place is None else place + 1, place is not None


def load(path: Path, number: int | None = None) -> tuple[History, int, int]:
    """A conversation from a file.

    Args:
        path: JSON lines with `messages` (or `conversations`), in OpenAI's or ShareGPT's words.
        number: which one, from 1; default: the last.

    Returns:
        The conversation, its number, and how many the file has.

    Raises:
        KamertonError: no such file or conversation, or a line is none; with its place.
    """
    lines = _lines(path)
    at = len(lines) if number is None else number
    if not 1 <= at <= len(lines):
        raise KamertonError(f"has {len(lines)} conversations", where=path, mend=f"take 1 to {len(lines)}")
    said = _messages(lines[at - 1])
    system = "\n\n".join(m.content for m in said if m.role == "system") or None
    return History(system, [m for m in said if m.role != "system"]), at, len(lines)


def _lines(path: Path) -> list[Line]:
    if path.is_dir():
        raise TaskError("is a folder", where=path, mend="name a file")
    lines = read_lines(path)
    for line in lines:
        _messages(line)
    if not lines:
        raise TaskError("has no conversations", where=path, mend="name another file")
    return lines


def _messages(line: Line) -> list[Message]:
    turns = next((line.record[name] for name in ALIASES["messages"] if name in line.record), None)
    if not isinstance(turns, list) or not turns:
        mend = 'write {"messages": [{"role": "user", "content": "…"}, …]}, or name another file'
        raise TaskError("is no conversation", where=line.place, mend=mend)
    return [message_of(turn, Row({}, line.place)) for turn in turns]

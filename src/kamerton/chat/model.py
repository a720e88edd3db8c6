"""What a chat asks of whoever answers, wherever that is; and what it hears of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from kamerton.sampling import Sampling
from kamerton.tasks.example import Conversation

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    """A text that a terminal can be given and a server takes: control characters and halves of characters as U+FFFD.

    A model can write the characters by which a terminal is told to do things.
    """
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


@dataclass
class Reply:
    """An answer, filled in as it grows.

    Attributes:
        text: what came so far.
        dropped: oldest turns that the model was not asked with, because they did not fit.
        finish: "stop", "length" or "stopped" where somebody stopped it; "" while it grows.
        prompt_tokens, answer_tokens: tokens read and written; None where that is not told.
        seconds: since it was asked; `first`: until the first text came, None before.
        pieces: pieces in which the text came.
        details: what a method tells of the answer: sources, reasoning, votes.
        notes: what the user should know about how it was asked.
    """

    text: str = ""
    dropped: int = 0
    finish: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float = 0.0
    first: float | None = None
    pieces: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def speed(self) -> float | None:
        """Tokens a second, from the first to the last where the text came in pieces; None where it is not known."""
        written = self.answer_tokens
        if written is None or written < 2 or self.first is None:
            return None
        if self.pieces > 1 and self.seconds > self.first:
            return (written - 1) / (self.seconds - self.first)
        return written / self.seconds if self.seconds > 0 else None


Grown = Callable[[str], None]
"""Called with each new piece of an answer's text."""
Progress = Callable[[str], None]
"""Called with a few words while nothing can be shown yet."""


class ChatModel(Protocol):
    """One or several models that can be talked to.

    Attributes:
        names: what they are called.
        name: the one that answers.
        context: its positions in tokens; None where that is not known.
        about: what is said of them at the beginning, a line each.
    """

    names: list[str]
    name: str

    @property
    def context(self) -> int | None: ...

    @property
    def about(self) -> list[str]: ...

    def answer(
        self, conversation: Conversation, sampling: Sampling, reply: Reply, grown: Grown, progress: Progress
    ) -> None:
        """Answer a conversation, less the oldest turns where they do not fit; `reply` is filled in on the way.

        Raises:
            KamertonError: it cannot be answered; `reply` keeps what came before that.
        """
        ...

    def prompt(self, conversation: Conversation, sampling: Sampling) -> str:
        """What the model sees of a conversation, special tokens written out, and how many tokens that is."""
        ...

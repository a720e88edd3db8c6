"""Judged answers as pairs: which of two answers to a question is the better one."""

from __future__ import annotations

from dataclasses import dataclass

from kamerton.tasks.example import Conversation, Example


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question.

    Attributes:
        id: of the example.
        messages: the conversation up to the answer.
        chosen, rejected: the better and the worse answer.
        margin: by how much it is better, where the data say so.
    """

    id: str
    messages: Conversation
    chosen: str
    rejected: str
    margin: float | None = None


def pairs_of(example: Example) -> list[Pair]:
    """All pairs of judged answers with different scores: of k ranked answers, k (k − 1) / 2."""
    found = sorted(example.graded, key=lambda g: -g.score)
    return [
        Pair(example.id, example.messages, better.answer, worse.answer, example.margin if len(found) == 2 else None)
        for i, better in enumerate(found)
        for worse in found[i + 1 :]
        if better.score > worse.score
    ]

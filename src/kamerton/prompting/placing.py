"""Puts solved examples before a question: which of a pool, in which order, and as many as fit the model's positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kamerton.prompting.shots import with_shots
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example

Nearest = Callable[[Conversation, int], list[Example]]
"""The so many examples of a pool that are nearest to a question, nearest last."""


class Placer:
    """Places shots.

    Args:
        pool: the shots; unless they are picked for each question, the first `count` are shown and the others are
            spares: an example in training is not shown to itself, a spare stands in.
        count: how many are shown.
        renderer, room: the prompt has at most `room` tokens (None: no bound); where it has more, shots go, first ones
            first.
        nearest: the order of a question's shots by nearness, or with `pick` the shots themselves.
        pick: shots are picked for each question.
        alike: a spare stands in only for a shot with the same answer.
    """

    def __init__(
        self, pool: Sequence[Example], count: int, renderer: Renderer, room: int | None, *,
        nearest: Nearest | None = None, pick: bool = False, alike: bool = False,
    ) -> None:  # fmt: skip
        self._pool, self._count, self._renderer, self._room = list(pool), count, renderer, room
        self._nearest, self._pick, self._alike = nearest, pick, alike

    def put(self, conversation: Conversation, without: str = "") -> Conversation:
        """The conversation with its shots; `without` is the id of an example that must not be among them."""
        shots = self._shots(conversation, without)
        asked = with_shots(conversation, shots)
        while shots and self._room is not None and len(self._renderer.prompt(asked)) > self._room:
            shots = shots[1:]  # where nearness orders them, the least similar one goes first
            asked = with_shots(conversation, shots)
        return asked

    def _shots(self, conversation: Conversation, without: str) -> list[Example]:
        if self._pick and self._nearest is not None:
            found = self._nearest(conversation, self._count + bool(without))
            return [e for e in found if e.id != without][-self._count :]
        shown, spares = self._pool[: self._count], self._pool[self._count :]
        left = [e for e in shown if e.id == without]
        if left:
            fit = [e for e in spares if not self._alike or e.answers[0] == left[0].answers[0]]
            shown = [e for e in shown if e.id != without] + fit[:1]
        if self._nearest is not None:
            ids = {e.id for e in shown}
            shown = [e for e in self._nearest(conversation, len(self._pool)) if e.id in ids]
        return shown


def shots_in(asked: Conversation, conversation: Conversation) -> int:
    """Shots in a prepared conversation: its assistant turns, less those that the question itself has."""
    return sum(m.role == "assistant" for m in asked) - sum(m.role == "assistant" for m in conversation)

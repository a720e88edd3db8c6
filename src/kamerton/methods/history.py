"""How much of a long conversation a model is asked.

It fits if its prompt leaves the answer its room, thoughts included, and if the method shows as many shots or passages
as it does for the last question alone: what was said long ago does not take their place.
"""

from __future__ import annotations

from kamerton.errors import ModelError
from kamerton.methods.method import Adapted
from kamerton.tasks.example import Conversation
from kamerton.tasks.newest import newest_turns


def fit_turns(adapted: Adapted, conversation: Conversation, room: int) -> tuple[Conversation, int]:
    """Drop the oldest turns until a model can answer the conversation.

    Args:
        adapted: the model.
        conversation: up to the user's last question.
        room: tokens that the answer may need.

    Returns:
        As `newest_turns`. A last question that does not fit even alone is left to the model to refuse.
    """
    model = adapted.engine.model
    if model.max_length is None:
        return conversation, 0
    least: list[int] = []

    def fits(asked: Conversation) -> bool:
        try:
            left = model.answer_limit(len(adapted.renderer.prompt(adapted.prepare(asked))))
            if (left is not None and left < room) or adapted.shorten(asked, room)[1]:
                return False
        except ModelError:  # not even the template fits
            return False
        if not least:
            least.append(adapted.shown(newest_turns(conversation, lambda _: False)[0]))
        return adapted.shown(asked) >= least[0]

    return newest_turns(conversation, fits)


def answer_room(adapted: Adapted, max_tokens: int) -> int:
    """Tokens that a long conversation leaves for an answer: `max_tokens`, and at most half of the model's positions."""
    most = adapted.engine.model.max_length
    return max_tokens if most is None else min(max_tokens, most // 2)

"""Of a long conversation its newest turns, with the system prompt before them.

A turn is what the user says and what is answered to it; it goes as a whole, the oldest first, and the last question
always stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from kamerton.tasks.example import Conversation


def newest_turns(conversation: Conversation, fits: Callable[[Conversation], bool]) -> tuple[Conversation, int]:
    """Drop the oldest turns until the conversation fits.

    Args:
        conversation: perhaps a system prompt, then turns; the last one is the user's.
        fits: whether a conversation is short enough; one with fewer turns fits if one with more does.

    Returns:
        The conversation with as many of the newest turns as fit, at least its last question, and how many were dropped.
    """
    system = next((i for i, m in enumerate(conversation) if m.role != "system"), len(conversation))
    starts = [i for i, m in enumerate(conversation) if m.role == "user"]
    if len(starts) < 2 or fits(conversation):
        return conversation, 0

    def without(count: int) -> Conversation:
        return (*conversation[:system], *conversation[starts[count] :])

    dropped = 1 + bisect_left(range(1, len(starts) - 1), True, key=lambda count: fits(without(count)))
    return without(dropped), dropped


def turns_of(conversation: Conversation) -> int:
    """Turns of a conversation: as many as the user's messages."""
    return sum(m.role == "user" for m in conversation)

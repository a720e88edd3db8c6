"""The rows of a split with judged answers → examples.

What teaches nothing is left out, and rows of one question are joined. How many and where is said in notes; nothing is
dropped silently.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kamerton.errors import TaskError
from kamerton.tasks.example import Conversation, SplitName
from kamerton.tasks.preference_shape import Judgements, LeftOut, averaged
from kamerton.tasks.preferences import pairs_of
from kamerton.tasks.readers import Row

if TYPE_CHECKING:
    from kamerton.tasks.shapes import Asked

SHOWN = 3
"""Places that a note names."""
_NUMBER = re.compile(r"(:\d+|, record \d+)$")


def judged_examples(
    rows: Sequence[Row], make: Callable[[Row], Asked], judgements: Judgements, split: SplitName
) -> tuple[list[Asked], list[str]]:
    """The examples of a split, and notes on what was left out and joined.

    Raises:
        TaskError: a record breaks its form, or every record was left out.
    """
    made: list[Asked] = []
    left: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        try:
            made.append(make(row))
        except LeftOut as reason:
            left[str(reason)].append(row.place)
    if rows and not made:
        reasons = "; ".join(f"{reason} ({len(places):,})" for reason, places in left.items())
        place = next(iter(left.values()))[0]
        raise TaskError(f"none of the {len(rows):,} records can be used: {reasons}", where=place, mend="mend the file")
    notes = [f"{split}: {_count(len(p))} left out because {reason} ({_places(p)})" for reason, p in left.items()]
    if judgements.joined:
        read, made = len(made), _join(made, judgements)
        if len(made) < read:
            notes.append(f"{split}: {read:,} rows are {len(made):,} questions with their judged answers")
    without = sum(not pairs_of(asked.example) for asked in made)
    if without:
        notes.append(f"{split}: {without:,} of {len(made):,} questions have no two answers of which one is better")
    return made, notes


def _join(made: Sequence[Asked], judgements: Judgements) -> list[Asked]:
    """Examples with the same conversation as one, under the id of the first."""
    groups: dict[tuple[Conversation, str], list[Asked]] = defaultdict(list)
    for asked in made:
        groups[asked.example.messages, asked.by].append(asked)
    out = []
    for group in groups.values():
        graded = averaged(g for asked in group for g in asked.example.graded)
        example = replace(group[0].example, graded=graded, answers=judgements.accepted(graded))
        out.append(replace(group[0], example=example))
    return out


def _count(count: int) -> str:
    return "1 record was" if count == 1 else f"{count:,} records were"


def _places(places: Sequence[str]) -> str:
    """The first places; what they share with the first one is said once."""
    shown = [places[0]]
    head = _NUMBER.sub("", places[0])
    for place in places[1:SHOWN]:
        shown.append(place[len(head) :].lstrip(", ") if _NUMBER.sub("", place) == head else place)
    return ", ".join(shown) + (", …" if len(places) > SHOWN else "")

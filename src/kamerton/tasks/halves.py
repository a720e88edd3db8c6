"""Halves of surrogate pairs in data: what is left of an emoji that a program cut in the middle.

JSON can hold them (`"\\ud83d"`), and nothing can be done with them: they are no characters, and neither UTF-8 nor a
tokenizer takes them. Each is replaced by U+FFFD, the sign for a character that cannot be known, and counted.
"""

from __future__ import annotations

import re
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def replace_halves(value: Any) -> tuple[Any, int]:
    """A value with every half of a surrogate pair in its texts, keys included, replaced by U+FFFD.

    Returns:
        The value, itself where nothing was replaced, and how many there were.
    """
    if isinstance(value, str):
        return (value, 0) if value.isascii() else _HALF.subn("\ufffd", value)
    if isinstance(value, dict):
        pairs = [(replace_halves(key), replace_halves(item)) for key, item in value.items()]
        count = sum(key[1] + item[1] for key, item in pairs)
        return ({key[0]: item[0] for key, item in pairs}, count) if count else (value, 0)
    if isinstance(value, list):
        items = [replace_halves(item) for item in value]
        count = sum(item[1] for item in items)
        return ([item[0] for item in items], count) if count else (value, 0)
    return value, 0


def halves_note(count: int, where: str) -> str:
    """The note about them: how many, and where the first one was."""
    many = "half of a surrogate pair was" if count == 1 else "halves of surrogate pairs were"
    return f"{count:,} {many} replaced by U+FFFD, the first at {where}"

"""What is said of an answer behind it: its sources, its reasoning, its votes, its counts; and of a prompt."""

from __future__ import annotations

from typing import Any

from kamerton.chat.model import Reply
from kamerton.sampling import Sampling

_LONGEST = 2000
"""Characters of a reasoning that are shown; /details has all of it."""
_SHORT, _MOST_VOTES = 60, 5
"""Characters of a text that is only named, and answers that were voted for, that are shown."""


def told(reply: Reply, sampling: Sampling) -> list[str]:
    """Notes behind an answer: what its method tells, and whether it was cut."""
    lines = []
    details = reply.details
    thought = str(details.get("reasoning") or details.get("thought") or "").strip()
    if thought:
        more = " … /details has all of it" if len(thought) > _LONGEST else ""
        lines.append(f"(reasoning: {thought[:_LONGEST]}{more})")
    lines += [f"({_votes(details['votes'])})"] if _is_list(details.get("votes")) else []
    sources = details.get("sources")
    if _is_list(sources):
        lines += [f"[{n}] {_source(one)}" for n, one in enumerate(sources or (), start=1)]
    if reply.finish == "length":
        lines.append(f"(cut at the longest answer; /set max_tokens, {sampling.max_tokens} now, makes it longer)")
    elif reply.finish == "stopped":
        lines.append("(stopped)")
    return lines


def counts(reply: Reply) -> str:
    """Tokens and speed of an answer."""
    read, written = reply.prompt_tokens, reply.answer_tokens
    if read is None and written is None:
        parts = ["the server tells no counts"]
    else:
        parts = [f"{read or 0:,} tokens read, {written or 0:,} written"]
    parts.append(f"{reply.seconds:.2f} s")
    if reply.first is not None:
        parts.append(f"the first after {reply.first:.2f} s")
    if reply.speed is not None:
        parts.append(f"{reply.speed:.1f} tokens/s")
    return ", ".join(parts)


def seen(text: str, *, tokens: int, soft_tokens: int, dropped: int, several: bool) -> str:
    """What a model sees, with notes behind it.

    Args:
        text: special tokens written out.
        tokens: how many that is; `soft_tokens`: trained ones before them that are no words.
        dropped: oldest turns that it is not asked with.
        several: whether the method takes several passes.
    """
    notes = [f"{tokens:,} tokens"]
    notes += [f"behind {soft_tokens} trained soft tokens that are no words"] if soft_tokens else []
    notes += [f"without the {dropped} oldest turns"] if dropped else []
    notes += ["the method takes several passes, this is what the first begins with"] if several else []
    return f"{text}\n({'; '.join(notes)})"


def short(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _votes(groups: list[Any]) -> str:
    """Groups of answers that say the same: the first one's text and the group's weight, heaviest first."""
    shown = []
    for group in groups[:_MOST_VOTES]:
        text, weight = group if isinstance(group, list) and len(group) == 2 else (group, 1)
        shown.append(f"{weight:.3g} for {short(str(text))}")
    more = len(groups) - len(shown)
    return f"votes: {'; '.join(shown)}{f'; and {more} more' if more else ''}"


def _source(one: Any) -> str:
    if not isinstance(one, dict):
        return str(one)
    place, source = str(one.get("place") or ""), str(one.get("source") or "")
    share = f", probability {one['probability']:.2f}" if isinstance(one.get("probability"), float) else ""
    return f"{place} ({source}{share})" if place and source else f"{place or source}{share}"

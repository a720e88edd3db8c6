"""Thought of a bounded length before the answer: budget forcing (s1, Muennighoff et al. 2025, arXiv 2501.19393, 3.1).

The answer begins with `<think>`. Thought is sampled until the closing tag; where `budget` tokens are spent it is
closed by force, and where it was closed early it goes on behind "Wait", up to `continuations` times and never beyond
the budget. Then the answer is sampled behind the closed thought. All of it works on token ids, so what was sampled is
what is gone on from; only the tags and "Wait" are put in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kamerton.inference import Answer, Engine, Sampling
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation

OPEN, CLOSE = "<think>", "</think>"
BEFORE, BEHIND = f"{OPEN}\n", f"\n{CLOSE}\n"
"""What an answer begins with, and what closes a thought by force."""


@dataclass(frozen=True, slots=True)
class Forcing:
    """How thought is bounded.

    Attributes:
        budget: the longest thought in tokens, the tags not counted; 0: none.
        continuations: how often a thought that was closed early goes on.
        wait: what is put behind it then, on a new line.
    """

    budget: int
    continuations: int = 0
    wait: str = "Wait,"

    def room(self, renderer: Renderer) -> int:
        """Tokens that are needed before the answer."""
        return self.budget + len(renderer.answer(BEFORE, end=False)) + len(renderer.answer(BEHIND, end=False))


@dataclass(slots=True)
class Thought:
    """One thought in the making.

    Attributes:
        tokens: of the thought itself, "Wait" among them.
        closing: tokens behind it up to and including the closing tag, sampled or forced.
        logprobs: of the sampled tokens of the thought.
        sampled: all tokens that were sampled for it, the closing ones too.
        closed: "model" where it closed the thought itself, "end" where it ended its turn instead, "budget" where it was
            forced.
        continued: how often it went on behind "Wait".
    """

    tokens: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: int = 0
    closed: str = ""
    continued: int = 0


def think(
    engine: Engine, prompts: Sequence[Conversation], sampling: Sampling, forcing: Forcing,
    progress: Callable[[int, int], None] | None = None,
) -> list[Thought]:  # fmt: skip
    """`sampling.n` thoughts to each conversation, closed; the answer's own limit is not heeded here."""
    renderer = engine.renderer
    begin, wait = renderer.answer(BEFORE, end=False), renderer.answer(f"\n{forcing.wait}", end=False)
    forced, n = renderer.answer(BEHIND, end=False), sampling.n
    if not forcing.budget:  # nothing is thought: the tags stand side by side
        return [Thought(closing=list(forced), closed="budget") for _ in range(len(prompts) * n)]
    thoughts = [Thought() for _ in range(len(prompts) * n)]
    alive = list(range(len(thoughts)))
    for turn in range(forcing.continuations + 1):
        if turn == 0:  # one prefill for all thoughts about a question
            plan = replace(sampling, max_tokens=forcing.budget, stop=(CLOSE,))
            said = engine.generate(prompts, plan, begun=[begin] * len(prompts), progress=progress)
        else:
            said = _further(engine, [prompts[i // n] for i in alive], [[*begin, *thoughts[i].tokens] for i in alive],
                            [forcing.budget - len(thoughts[i].tokens) for i in alive], sampling)  # fmt: skip
        for i, a in zip(alive, said, strict=True):
            _add(thoughts[i], a, renderer, forcing.budget)
        alive = [
            i for i in alive
            if turn < forcing.continuations and thoughts[i].closed != "budget"
            and len(thoughts[i].tokens) + len(wait) < forcing.budget
        ]  # fmt: skip
        for i in alive:
            thoughts[i].tokens += wait
            thoughts[i].closing = []
            thoughts[i].continued += 1
        if not alive:
            break
    for t in thoughts:
        if not t.closing:
            t.closing = list(forced)
    return thoughts


def _further(
    engine: Engine, prompts: Sequence[Conversation], begun: Sequence[Sequence[int]], room: Sequence[int],
    sampling: Sampling,
) -> list[Answer]:  # fmt: skip
    """Thoughts that go on, each with the room that is left to it: those of one room together."""
    out: dict[int, Answer] = {}
    for size in sorted(set(room)):
        some = [i for i, r in enumerate(room) if r == size]
        plan = replace(sampling, max_tokens=size, n=1, stop=(CLOSE,))
        said = engine.generate([prompts[i] for i in some], plan, begun=[begun[i] for i in some])
        out.update(zip(some, said, strict=True))
    return [out[i] for i in range(len(room))]


def _add(thought: Thought, a: Answer, renderer: Renderer, budget: int) -> None:
    """What was sampled, parted into thought and closing."""
    tokens, logprobs = list(a.tokens), list(a.logprobs)
    thought.sampled += len(tokens)
    if tokens and tokens[-1] in renderer.end_ids:  # it ended its turn without closing the thought
        tokens, thought.closed = tokens[:-1], "end"
    else:
        thought.closed = "budget" if a.finish == "length" else "model"
    whole = renderer.decode(tokens)
    text = whole.partition(CLOSE)[0] if thought.closed == "model" else _without_part(whole)
    own = _tokens_before(renderer, tokens, text)
    if thought.closed == "model":
        thought.closing = tokens[own:]
    thought.tokens += tokens[:own]
    thought.logprobs += logprobs[:own]
    assert len(thought.tokens) <= budget


def _without_part(text: str) -> str:
    """A text without the beginning of a closing tag at its end."""
    for size in range(len(CLOSE) - 1, 0, -1):
        if text.endswith(CLOSE[:size]):
            return text[:-size]
    return text


def _tokens_before(renderer: Renderer, tokens: Sequence[int], text: str) -> int:
    """How many whole tokens the beginning of a text takes; a token that holds a part of the tag belongs to the tag."""
    count = len(tokens)
    while count and len(renderer.decode(tokens[:count])) > len(text):
        count -= 1
    return count

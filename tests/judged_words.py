"""Judged answers that a rule makes: an answer is four words, and the more of them are warm, the better it is.

PYTEST_DONT_REWRITE: the module asserts nothing.
"""

from __future__ import annotations

import functools
import itertools
import random

from kamerton.tasks.example import Example, Graded, Task, conversation
from tiny import WORDS

WARM, COLD = WORDS[:20], WORDS[20:]


def judged(count: int, seed: int, *, start: int = 0, answers: int = 2, gap: int = 2) -> tuple[Example, ...]:
    """Questions with answers whose warm words differ in number by at least `gap` from one to the next, best first."""
    rng = random.Random(seed)
    steps = [s for s in _falling(answers) if all(a - b >= gap for a, b in itertools.pairwise(s))]
    out = []
    for n in range(start, start + count):
        graded = []
        for warm in rng.choice(steps):
            words = rng.sample(WARM, warm) + rng.sample(COLD, 4 - warm)
            rng.shuffle(words)
            graded.append(Graded(" ".join(words), float(warm)))
        said = " ".join(rng.choices(WORDS, k=rng.randint(2, 7)))
        turns = conversation([("system", "Say four words."), ("user", f"{said} {n}")])
        out.append(Example(f"words-{n}", turns, (graded[0].answer,), graded=tuple(graded)))
    return tuple(out)


def _falling(length: int) -> list[tuple[int, ...]]:
    """All falling sequences of numbers from 4 to 0."""
    if length == 0:
        return [()]
    return [(n, *rest) for rest in _falling(length - 1) for n in range(4, -1, -1) if not rest or n > rest[0]]


@functools.cache
def words_task(train: int = 120, validation: int = 30, test: int = 60, *, answers: int = 2, gap: int = 2) -> Task:
    """A task of such questions."""
    sizes = (train, validation, test)
    splits = [judged(size, i + 1, start=1000 * i, answers=answers, gap=gap) for i, size in enumerate(sizes)]
    return Task("words", *splits, metrics=("token-f1",), max_answer_tokens=12)

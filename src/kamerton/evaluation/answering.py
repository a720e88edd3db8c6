"""Run a model over a split: rank closed choices, generate everything else, and judge the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kamerton import processes
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Answer, Sampling
from kamerton.tasks.example import Conversation, Example

Watch = Callable[[int, int], None]


class Answerer(Protocol):
    """What evaluation sees of an adapted model."""

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, progress: Watch | None = None
    ) -> list[Answer]: ...

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Watch | None = None,
    ) -> list[Answer]: ...  # fmt: skip

    def prompt_tokens(self, conversation: Conversation) -> int: ...

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]: ...


@dataclass(frozen=True)
class Answers:
    """What a model said to a split.

    Attributes:
        texts: one answer for each example.
        prompt_tokens: tokens that the model read for each, shots and soft tokens included.
        generated_tokens: tokens that it wrote, those on the way included (none for a choice that is only ranked).
        cut: questions that had to be cut to fit the model's positions.
        answers: the whole answers.
    """

    texts: list[str]
    prompt_tokens: list[int]
    generated_tokens: list[int]
    cut: int = 0
    answers: list[Answer] = field(default_factory=list)


def answer(
    model: Answerer, examples: Sequence[Example], sampling: Sampling, *, progress: Watch | None = None
) -> Answers:
    """Answer every example: of closed sets one choice is chosen, the rest is generated. One answer each.

    A question too long for the model is cut as in training, and counted. Several processes answer a share each, and all
    of them get all answers.
    """
    cut = 0

    def ask(own: Sequence[Example]) -> list[Answer]:
        nonlocal cut
        answers, cut = _answer(model, own, sampling, progress)
        return answers

    answers = processes.deal(examples, ask)
    return Answers(
        [a.text for a in answers], [a.prompt_tokens for a in answers], [a.generated_tokens for a in answers],
        sum(processes.gathered(cut)), answers,
    )  # fmt: skip


def _answer(
    model: Answerer, examples: Sequence[Example], sampling: Sampling, progress: Watch | None
) -> tuple[list[Answer], int]:
    """The answers, and how many questions were cut."""
    read = getattr(model, "read_examples", None)
    if read is not None:  # a head reads what an example is made of, not how it is asked
        found: list[Answer]
        found, cut = read(examples, progress=progress)
        return found, cut
    closed = [i for i, e in enumerate(examples) if e.choices]
    free = [i for i, e in enumerate(examples) if not e.choices]
    total = len(examples)
    # a choice is a few words, and so is given the room of an answer
    asked = [model.shorten(e.messages, sampling.max_tokens) for e in examples]

    def tell(offset: int) -> Watch:
        return lambda done, _: progress(offset + done, total) if progress is not None else None

    said: dict[int, Answer] = {}
    if closed:
        choices = [examples[i].choices for i in closed]
        chosen = model.choose([asked[i][0] for i in closed], choices, sampling, progress=tell(0))
        said.update(zip(closed, chosen, strict=True))
    if free:
        generated = model.generate([asked[i][0] for i in free], sampling, progress=tell(len(closed)))
        said.update(zip(free, generated, strict=True))
    return [said[i] for i in range(total)], sum(cut for _, cut in asked)


def judge(texts: Sequence[str], examples: Sequence[Example], metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Per metric the statistics of each answer, (N, S)."""
    return {name: get_metric(name, examples).statistics(texts, examples) for name in metrics}


def values(statistics: dict[str, np.ndarray], examples: Sequence[Example]) -> dict[str, float]:
    """Per metric its value over all answers."""
    return {
        name: float(get_metric(name, examples).aggregate(rows.sum(axis=0), len(rows)))
        for name, rows in statistics.items()
    }


def latency(model: Answerer, examples: Sequence[Example], sampling: Sampling, count: int = 5) -> float:
    """Median seconds for one question answered alone, over the first `count` examples after one that warms up."""
    times = []
    for example in [examples[0], *examples[:count]]:
        start = time.perf_counter()
        answer(model, [example], sampling)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))

"""Which head an encoder gets for a task, found from the task's examples.

| examples have | head | paper |
| --- | --- | --- |
| words | tagging | Devlin et al. 2019, arXiv 1810.04805 |
| one closed set of choices | classification | likewise |
| choices of their own | choice: one number for each, the highest is taken (SWAG) | likewise |
| a context in which answers stand | span | likewise |
| numbers as answers | regression | likewise (STS-B) |
"""

from __future__ import annotations

import re

from kamerton.base.encoder import Head
from kamerton.errors import TaskError
from kamerton.tasks.example import Example, Task, answered

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def texts_of(example: Example) -> tuple[str, ...]:
    """The one or two texts that an encoder reads of an example."""
    if example.segments:
        return example.segments
    return (next((m.content for m in reversed(example.messages) if m.role == "user"), ""),)


def number_of(answer: str) -> float | None:
    """The number that an answer is; None for one that is anything else."""
    text = answer.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def head_of(task: Task, seed: int) -> Head:
    """The head for a task.

    Raises:
        TaskError: its answers are free text, which no head gives; or no training answer stands in its context.
    """
    train = answered(task.train)
    if not train:
        raise TaskError("there are no training examples", where=task.name, mend="give a train split")
    every = (*train, *answered(task.validation), *answered(task.test))
    if all(e.words for e in train):
        tags = sorted({tag for e in every for tag in e.answers[0].split()}, key=lambda t: (t != "O", t))
        return Head("tagging", tuple(tags), seed=seed)
    if all(e.choices for e in train):
        sets = {e.choices for e in every}
        if len(sets) == 1:
            return Head("classification", next(iter(sets)), seed=seed)
        return Head("choice", seed=seed)
    if any(e.spans for e in train):
        return Head("span", no_answer=_no_answer(every), seed=seed)
    if all(number_of(e.answers[0]) is not None for e in train):
        return Head("regression", seed=seed)
    if any(len(e.segments) == 2 for e in train) and any(e.answers[0] in e.segments[-1] for e in train):
        raise TaskError("no training answer stands in its context", where=task.name, mend="check columns: answer")
    raise TaskError(
        "the answers are free text, which an encoder does not write",
        where=task.name, mend="use a causal base; or a task of labels, choices, numbers, answers in a context, or tags",
    )  # fmt: skip


def _no_answer(examples: tuple[Example, ...]) -> str | None:
    """The answer of questions whose context does not say it: the text that answers most of those without a span."""
    texts = [e.answers[0] for e in examples if not e.spans and len(e.segments) == 2]
    if not texts:
        return None
    most = max(sorted(set(texts)), key=texts.count)
    return most if texts.count(most) > 1 or len(texts) == 1 else None

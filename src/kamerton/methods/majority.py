"""`majority`: one answer to everything, the one that training examples have most often. What must be beaten.

Where every example has its own choices it is the place that is right most often; of numbers it is their mean, which
alone has the least squared error; of tags the commonest tag for every word. The base is not asked at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kamerton.base.load import Base
from kamerton.errors import KamertonError
from kamerton.inference import Answer, Sampling
from kamerton.methods.method import Adapted, Run
from kamerton.tasks.example import Conversation, Example, Task, answered
from kamerton.training import Budget
from kamerton.tuning.parameterisation import Options


class MajorityOptions(Options):
    """The majority has no options."""


class Majority:
    """The commonest training answer."""

    name = "majority"
    summary = "the commonest training answer to everything"
    trains = "nothing"
    paper = "none"
    options = MajorityOptions
    encoder = True
    encoder_decoder = True

    def seeded(self, options: MajorityOptions) -> bool:  # noqa: ARG002
        return False

    @staticmethod
    def check(base: Base, task: Task, options: MajorityOptions) -> None:  # noqa: ARG004
        """Refuse a task without training answers."""
        if not answered(task.train):
            raise KamertonError("there are no training answers to count", where=task.name, mend="give a train split")

    def fit(self, base: Base, task: Task, budget: Budget, options: MajorityOptions, run: Run) -> Adapted:  # noqa: ARG002
        self.check(base, task, options)
        return Constant(base, base.model, method=self.name, options=options, state=commonest(answered(task.train)))

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:  # noqa: ARG002
        return Constant(base, base.model, method=self.name, options=MajorityOptions(), state=about["state"])


def commonest(examples: Sequence[Example]) -> dict[str, Any]:
    """The answer, the tag or the place of the right choice that examples have most often (the first of equals)."""

    def most(values: Sequence[Any]) -> Any:
        counts = Counter(values)
        return min(counts, key=lambda value: (-counts[value], value))

    if all(e.words for e in examples):
        return {"tag": most([tag for e in examples for tag in e.answers[0].split()])}
    if all(e.choices for e in examples) and len({e.choices for e in examples}) > 1:
        return {"place": most([e.choices.index(e.answers[0]) for e in examples if e.answers[0] in e.choices])}
    answers = [e.answers[0] for e in examples]
    try:
        if not any(e.choices for e in examples):
            return {"answer": f"{sum(map(float, answers)) / len(answers):.4f}"}
    except ValueError:  # they are no numbers
        pass
    return {"answer": most(answers)}


class Constant(Adapted):
    """Says the same to everything."""

    def _say(self, choices: Sequence[str] = (), words: int = 1) -> Answer:
        if "place" in self.state:
            text = choices[min(self.state["place"], len(choices) - 1)] if choices else ""
        else:
            text = self.state["answer"] if "answer" in self.state else " ".join([self.state["tag"]] * words)
        return Answer(text, (), (), "stop", 0)

    def read_examples(
        self, examples: Sequence[Example], *, progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[Answer], int]:
        """An answer to each example; none is cut."""
        if progress is not None:
            progress(len(examples), len(examples))
        return [self._say(e.choices, len(e.words)) for e in examples], 0

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, **_: Any) -> list[Answer]:
        return [self._say(words=len(c[-1].content.split())) for c in conversations for _ in range(sampling.n)]

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, **_: Any
    ) -> list[Answer]:  # fmt: skip
        return [self._say(c) for c, _ in zip(choices, conversations, strict=True) for _ in range(sampling.n)]

    def stream(self, conversation: Conversation, sampling: Sampling) -> Any:
        yield self.generate([conversation], sampling)[0].text

    def prompt_tokens(self, conversation: Conversation) -> int:  # noqa: ARG002
        return 0

"""What self-consistency and best-of-n share: several answers are sampled to a question, and one comes out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted, FitRecord, Run, Wrapped
from kamerton.methods.prompted import PromptingMethod, State, inside
from kamerton.tasks.example import Conversation, Task
from kamerton.training import Budget


class SeveralAnswers(PromptingMethod):
    """A method that samples; its options have `samples`, `temperature` and `top_p`."""

    reads_answers = True

    def own_seeded(self, options: Any) -> bool:  # noqa: ARG002
        return True

    def check(self, base: Base, task: Task, options: Any) -> None:  # noqa: ARG002
        if any(e.choices for e in task.test) and not any(getattr(m, "thinks", False) for m, _ in inside(options)):
            raise TaskError(
                f"{self.name} has nothing to sample where choices are ranked without a chain", where=task.name,
                mend=f"use {self.name} over chain-of-thought",
            )  # fmt: skip

    def before(
        self, base: Base, task: Task, budget: Budget, options: Any, run: Run, record: FitRecord,  # noqa: ARG002
    ) -> State:  # fmt: skip
        return {"metric": task.metrics[0]}


class Several(Wrapped):
    """Samples answers of the model inside.

    Args:
        inner: the model inside.
        method, options: what made this one.
        state: names the task's first metric.
    """

    def __init__(self, inner: Adapted, method: str, options: Any, state: State) -> None:
        super().__init__(inner, method=method, options=options, own=lambda c: c, state=state)
        self._plan, self._metric = options, str(state["metric"])

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        """The whole answer in one piece: there is none before all are sampled."""
        yield self.generate([conversation], replace(sampling, n=1))[0].text

    def _sampled(self, sampling: Sampling) -> Sampling:
        top_p = self._plan.top_p if self._plan.top_p < 1 else None
        return replace(
            sampling, n=sampling.n * self._plan.samples, temperature=self._plan.temperature, top_p=top_p, top_k=None,
            min_p=None,
        )  # fmt: skip

    def _groups(self, flat: Sequence[Any]) -> list[list[Any]]:
        """What was sampled, one after another, by answer that comes out of it."""
        size = self._plan.samples
        return [list(flat[i : i + size]) for i in range(0, len(flat), size)]

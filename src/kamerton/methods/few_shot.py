"""Few-shot: solved training examples in front of the question (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Literal

from pydantic import Field

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.evaluation.forgetting import ANSWER
from kamerton.methods.method import Adapted, FitRecord, Run, Wrapped
from kamerton.methods.prompted import PromptingMethod, PromptingOptions, State, front_inside
from kamerton.prompting.shots import NearestShots, random_shots, with_shots
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example, Task, example_from
from kamerton.training import Budget


class FewShotOptions(PromptingOptions):
    """Options of few-shot prompting."""

    shots: int = Field(8, gt=0, description="solved examples in the prompt")
    selection: Literal["random", "nearest"] = Field(
        "random", description="drawn once by the seed, or for each question the most similar ones (tf–idf)"
    )


class FewShot(PromptingMethod):
    """Solved examples before the question; fewer where they do not fit the model's context, and said so."""

    name = "few-shot"
    summary = "solved examples in front of the question"
    paper = "Brown et al. 2020, arXiv 2005.14165"
    options = FewShotOptions

    def own_seeded(self, options: FewShotOptions) -> bool:
        return options.selection == "random"

    def before(
        self, base: Base, task: Task, budget: Budget, options: FewShotOptions, run: Run, record: FitRecord
    ) -> State:
        if not task.train:
            raise TaskError("few-shot needs training examples", where=task.name, mend="give a train split")
        # a budget of examples holds for examples that are shown as for examples that are trained on
        pool = task.train[: budget.examples] if budget.examples is not None else task.train
        if len(pool) < options.shots:
            record.notes.append(f"only {len(pool)} training examples for {options.shots} shots: all are used")
        # one more than is shown: an example in training is not shown to itself
        kept = random_shots(pool, options.shots + 1, run.seed) if options.selection == "random" else pool
        return {
            "pool": [asdict(e) for e in kept], "room": _room(base.renderer, task), "front": front_inside(options),
        }  # fmt: skip

    def asking(self, base: Base, options: FewShotOptions, state: State) -> Callable[[Conversation], Conversation]:
        shots = _Shots(base, options, state)
        return lambda conversation: shots.put(conversation)

    def training_example(self, base: Base, options: FewShotOptions, state: State) -> Callable[[Example], Example]:
        shots = _Shots(base, options, state)
        return lambda example: replace(example, messages=shots.put(example.messages, without=example.id))

    def check(self, adapted: Adapted, task: Task, options: FewShotOptions, record: FitRecord) -> None:
        most = min(options.shots, len(adapted.state["pool"]))
        asked = [(e, adapted.own(e.messages)) for e in task.test] if isinstance(adapted, Wrapped) else []
        fewer = sum(_count(messages, e) < most for e, messages in asked)
        if fewer:
            record.notes.append(
                f"{options.shots} shots do not fit the context for {fewer} of {len(task.test)} test questions: fewer "
                "are used"
            )


class _Shots:
    """Puts as many shots before a question as fit."""

    def __init__(self, base: Base, options: FewShotOptions, state: State) -> None:
        self._pool = [example_from(record) for record in state["pool"]]
        self._count, self._renderer = options.shots, base.renderer
        self._room = base.model.prompt_limit(int(state["room"]), int(state["front"]))
        self._nearest = NearestShots(self._pool) if options.selection == "nearest" else None

    def put(self, conversation: Conversation, without: str = "") -> Conversation:
        if self._nearest is None:
            shots = [e for e in self._pool if e.id != without][: self._count]
        else:
            found = self._nearest(conversation, self._count + bool(without))
            shots = [e for e in found if e.id != without][-self._count :]
        asked = with_shots(conversation, shots)
        while shots and self._room is not None and len(self._renderer.prompt(asked)) > self._room:
            shots = shots[1:]  # nearest last: the least similar one goes first
            asked = with_shots(conversation, shots)
        return asked


def _room(renderer: Renderer, task: Task) -> int:
    """Tokens that are kept free behind a prompt: for an answer, the longest choice, or a general answer."""
    choices = {choice for e in task.test for choice in e.choices}
    return max([task.max_answer_tokens, ANSWER, *(len(renderer.answer(c)) for c in choices)])


def _count(asked: Conversation, example: Example) -> int:
    """Shots in a prepared conversation: its assistant turns, less those that the question itself has."""
    return sum(m.role == "assistant" for m in asked) - sum(m.role == "assistant" for m in example.messages)

"""Few-shot: solved training examples in front of the question (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.evaluation.forgetting import ANSWER
from kamerton.methods.method import Adapted, FitRecord, Prepare, Run
from kamerton.prompting.shots import NearestShots, random_shots, with_shots
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example, Message, Task
from kamerton.training import Budget
from kamerton.tuning.parameterisation import Options


class FewShotOptions(Options):
    """Options of few-shot prompting."""

    shots: int = Field(8, gt=0, description="solved examples in the prompt")
    selection: Literal["random", "nearest"] = Field(
        "random", description="drawn once by the seed, or for each question the most similar ones (tf–idf)"
    )


class FewShot:
    """Solved examples before the question; fewer where they do not fit the model's context, and said so."""

    name = "few-shot"
    summary = "solved examples in front of the question"
    trains = "nothing"
    paper = "Brown et al. 2020, arXiv 2005.14165"
    options = FewShotOptions

    def seeded(self, options: FewShotOptions) -> bool:
        return options.selection == "random"

    def fit(self, base: Base, task: Task, budget: Budget, options: FewShotOptions, run: Run) -> Adapted:
        if not task.train:
            raise TaskError("few-shot needs training examples", where=task.name, mend="give a train split")
        # a budget of examples holds for examples that are shown as for examples that are trained on
        pool = task.train[: budget.examples] if budget.examples is not None else task.train
        notes = []
        if len(pool) < options.shots:
            notes.append(f"only {len(pool)} training examples for {options.shots} shots: all are used")
        state = {
            "pool": [asdict(e) for e in (
                random_shots(pool, options.shots, run.seed) if options.selection == "random" else pool
            )],
            "room": _room(base.renderer, task),
        }  # fmt: skip
        adapted = self._adapted(base, options, state, run.max_batch_tokens)
        fewer = sum(_count(adapted.prepare(e.messages), e) < min(options.shots, len(pool)) for e in task.test)
        if fewer:
            asked = f"{fewer} of {len(task.test)} test questions"
            notes.append(f"{options.shots} shots do not fit the context for {asked}: fewer are used")
        adapted.record = FitRecord(notes=notes)
        return adapted

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:  # noqa: ARG002
        return self._adapted(base, FewShotOptions(**about["options"]), about["state"], 8192)

    def _adapted(self, base: Base, options: FewShotOptions, state: dict[str, Any], max_batch_tokens: int) -> Adapted:
        pool = [_example(record) for record in state["pool"]]
        limit = base.model.max_length
        room = None if limit is None else limit - min(int(state["room"]), limit // 2)
        prepare = _prepare(pool, options, base.renderer, room)
        return Adapted(
            base,
            base.model,
            method=self.name,
            options=options,
            prepare=prepare,
            state=state,
            max_batch_tokens=max_batch_tokens,
        )


def _prepare(pool: Sequence[Example], options: FewShotOptions, renderer: Renderer, room: int | None) -> Prepare:
    nearest = NearestShots(pool) if options.selection == "nearest" else None

    def prepare(conversation: Conversation) -> Conversation:
        shots = list(pool[: options.shots]) if nearest is None else nearest(conversation, options.shots)
        asked = with_shots(conversation, shots)
        while shots and room is not None and len(renderer.prompt(asked)) > room:
            shots = shots[1:]  # nearest last: the least similar one goes first
            asked = with_shots(conversation, shots)
        return asked

    return prepare


def _room(renderer: Renderer, task: Task) -> int:
    """Tokens that are kept free behind a prompt: for an answer, the longest choice, or a general answer."""
    choices = {choice for e in task.test for choice in e.choices}
    return max([task.max_answer_tokens, ANSWER, *(len(renderer.answer(c)) for c in choices)])


def _count(asked: Conversation, example: Example) -> int:
    """Shots in a prepared conversation: its assistant turns, less those that the question itself has."""
    return sum(m.role == "assistant" for m in asked) - sum(m.role == "assistant" for m in example.messages)


def _example(record: dict[str, Any]) -> Example:
    messages = tuple(Message(**m) for m in record["messages"])
    return Example(**{
        **record, "messages": messages, "answers": tuple(record["answers"]), "choices": tuple(record["choices"]),
    })  # fmt: skip

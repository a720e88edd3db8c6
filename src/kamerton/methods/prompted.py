"""Methods that decide how a model is asked: wrappers over any other method, named by the option `over`.

`few-shot`, `chain-of-thought`, `retrieval` and their like change what a model is asked or how its answers are read.
What stands inside may be the untouched base (`zero-shot`, the default), a trained method, or another wrapper:
`few-shot: {over: lora}` trains LoRA on questions with shots in front and asks it the same way,
`self-consistency: {over: {chain-of-thought: {over: lora}}}` votes over the chains of a model that was trained on worked
solutions. A method inside is trained on exactly what it will be asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from kamerton.base.load import Base
from kamerton.base.model import LanguageModel
from kamerton.base.work import flops
from kamerton.errors import RecipeError
from kamerton.evaluation.forgetting import ANSWER
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Adapted, FitRecord, Method, Run, Wrapped, with_answers
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget
from kamerton.tuning.parameterisation import Options

State = dict[str, Any]
OVER = "the method whose model is asked: a name, or a name with its options"


class PromptingOptions(Options):
    """Options that every wrapper has."""

    over: str | dict[str, Any] = Field("zero-shot", validate_default=True, description=OVER)

    @field_validator("over")
    @classmethod
    def _known(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        """The method inside with all of its options, so that a saved model does not depend on later defaults."""
        name, given = _entry(value)
        try:
            method = get_method(name)
            options = parse_options(method, given).model_dump()
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return {name: options} if options else name


def _entry(value: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if len(value) != 1:
        raise ValueError(f"over names one method, not {len(value)}; write over: lora, or over: {{lora: {{rank: 8}}}}")
    name, options = next(iter(value.items()))
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"options of {name} must be a mapping; write over: {{{name}: {{option: value}}}}")
    return name, dict(options or {})


def method_inside(options: PromptingOptions) -> tuple[Method, Options]:
    """The method that `over` names, and its options."""
    name, given = _entry(options.over)
    method = get_method(name)
    return method, parse_options(method, given)


def inside(options: Any) -> Iterator[tuple[Method, Any]]:
    """Every method inside a wrapper with its options, outermost first."""
    while isinstance(options, PromptingOptions):
        method, options = method_inside(options)
        yield method, options


def asks_only(over: str | dict[str, Any], name: str, mend: str) -> None:
    """Refuse what is inside a wrapper that needs plain answers and scores.

    Raises:
        ValueError: one of the methods in `over` reads answers itself.
    """
    method, given = get_method(_entry(over)[0]), _entry(over)[1]
    options = parse_options(method, given)
    for one in (method, *(m for m, _ in inside(options))):
        if isinstance(one, PromptingMethod) and one.reads_answers:
            raise ValueError(f"{name} cannot stand over {one.name}; {mend}")


def trains(method: Method, options: Any) -> bool:
    """Whether a method trains anything, itself or inside."""
    if isinstance(options, PromptingOptions):
        return trains(*method_inside(options))
    return method.trains != "nothing"


def front_inside(options: PromptingOptions) -> int:
    """Positions that what is inside takes in front of every sequence (soft prompts)."""
    method, inner = method_inside(options)
    if isinstance(inner, PromptingOptions):
        return front_inside(inner)
    front = getattr(method, "front", None)
    return int(front(inner)) if front is not None else 0


@contextmanager
def spending(record: FitRecord, model: Adapted | LanguageModel) -> Iterator[None]:
    """Count what is done with a model inside the block as spent on fitting: seconds and FLOPs."""
    counted = model if isinstance(model, LanguageModel) else model.engine.model
    before, start = counted.work.copy(), time.perf_counter()
    try:
        yield
    finally:
        record.seconds += time.perf_counter() - start
        record.flops += flops((counted.work - before).of_all(), counted.hf)


def within(task: Task, budget: Budget) -> Task:
    """The task with as many training examples as a budget lets a method see, where it bounds them."""
    return task if budget.examples is None else replace(task, train=task.train[: budget.examples])


def room_for_answer(renderer: Renderer, task: Task, extra: int = 0) -> int:
    """Tokens kept free behind a prompt: for an answer, the longest choice, or a general answer; `extra` before it."""
    choices = {choice for e in task.test for choice in e.choices}
    return extra + max([task.max_answer_tokens, ANSWER, *(len(renderer.answer(c)) for c in choices)])


def prompt_room(base: Base, state: State) -> int | None:
    """The longest prompt in tokens, from a state's `room` (for the answer) and `front` (soft prompts inside)."""
    return base.model.prompt_limit(int(state["room"]), int(state["front"]))


class PromptingMethod:
    """Base of all wrappers; a subclass says how a conversation is asked, and, where it wants, how answers are read."""

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[str] = "nothing"
    paper: ClassVar[str]
    options: ClassVar[type[PromptingOptions]]
    cost: ClassVar[str] = ""
    """What it adds to the method inside, in a few words; none: its prompt."""
    shows_examples: ClassVar[bool] = False
    """Whether training examples stand in its prompts."""
    reads_answers: ClassVar[bool] = False
    """Whether its answers are more than what a model says or scores: read behind a chain, voted on, corrected."""
    thinks: ClassVar[bool] = False
    """Whether something is sampled before a choice among a closed set, so that several samples can differ there."""

    # -- what a subclass gives ----------------------------------------------------------------------------------------

    def own_seeded(self, options: Any) -> bool:  # noqa: ARG002
        """Whether the seed changes what this wrapper itself does."""
        return False

    def before(self, base: Base, task: Task, budget: Budget, options: Any, run: Run, record: FitRecord) -> State:  # noqa: ARG002
        """Everything that is chosen before the method inside is fitted, as JSON."""
        return {}

    def asking(self, base: Base, options: Any, state: State) -> Callable[[Conversation], Conversation]:  # noqa: ARG002
        """How a conversation is asked."""
        return lambda conversation: conversation

    def training_example(self, base: Base, options: Any, state: State) -> Callable[[Example], Example]:
        """How an example is put to a method inside that is trained; by default it is asked as every other."""
        ask = self.asking(base, options, state)
        return lambda example: replace(example, messages=ask(example.messages))

    def inside_task(self, base: Base, task: Task, options: Any, state: State) -> Task:
        """The task that the method inside is fitted on: where it trains, its examples as they will be asked."""
        if not trains(*method_inside(options)):
            return task
        put = self.training_example(base, options, state)
        return replace(task, train=tuple(map(put, task.train)), validation=tuple(map(put, task.validation)))

    def after(self, inner: Adapted, task: Task, options: Any, state: State, run: Run, record: FitRecord) -> State:  # noqa: ARG002
        """What is chosen with the fitted model inside, by validation examples; the state, extended."""
        return state

    def wrap(self, inner: Adapted, options: Any, state: State) -> Adapted:
        """The model around the fitted one."""
        own = self.asking(inner.base, options, state)
        return Wrapped(inner, method=self.name, options=options, own=own, state=state)

    def check(self, base: Base, task: Task, options: Any) -> None:
        """Refuse a base or a task with which a fit would fail, before anything is computed."""

    def remark(self, adapted: Adapted, task: Task, options: Any, record: FitRecord) -> None:
        """Say in the record's notes what the user should know of the test questions (never of their answers)."""

    # -- the method ---------------------------------------------------------------------------------------------------

    def seeded(self, options: Any) -> bool:
        method, inner_options = method_inside(options)
        return self.own_seeded(options) or method.seeded(inner_options)

    def fit(self, base: Base, task: Task, budget: Budget, options: Any, run: Run) -> Adapted:
        """Choose, fit the method inside on what it will be asked, choose again, wrap."""
        method, inner_options = method_inside(options)
        task, left_out = with_answers(task)
        self.check(base, within(task, budget), options)
        record = FitRecord(notes=left_out)
        state = self.before(base, task, budget, options, run, record)
        asked = self.inside_task(base, task, options, state)
        inner = method.fit(base, asked, budget, inner_options, replace(run, folder=run.folder / "over"))
        state = self.after(inner, task, options, state, run, record)
        adapted = self.wrap(inner, options, state)
        adapted.record = joined(inner.record, record)
        self.remark(adapted, task, options, adapted.record)
        return adapted

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:
        inner = load_adapted(folder / "over", base)
        return self.wrap(inner, self.options(**about["options"]), about["state"])


def joined(inner: FitRecord, own: FitRecord) -> FitRecord:
    """One record of a wrapper and what is inside: costs added, the rest side by side."""
    return replace(
        inner,
        chosen={**inner.chosen, **own.chosen},
        search=[*inner.search, *own.search],
        seconds=inner.seconds + own.seconds,
        tokens=inner.tokens + own.tokens,
        flops=inner.flops + own.flops,
        notes=[*inner.notes, *own.notes],
        findings=[*inner.findings, *own.findings],
        marks=[*inner.marks, *own.marks],
    )

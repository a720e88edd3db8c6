"""A thinking budget: thought between tags and of a bounded length before the answer (s1, arXiv 2501.19393)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from kamerton.base.encoder_decoder import causal
from kamerton.base.load import Base
from kamerton.errors import ModelError, TaskError
from kamerton.inference import Answer, Sampling
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, Wrapped
from kamerton.methods.prompted import (
    PromptingMethod,
    PromptingOptions,
    State,
    asks_only,
    method_inside,
    trains,
    within,
)
from kamerton.prompting.thinking import BEFORE, BEHIND, CLOSE, Forcing, Thought, think
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget


class ThinkingBudgetOptions(PromptingOptions):
    """Options of thinking-budget."""

    max_tokens: int = Field(128, gt=0, description="the longest thought in tokens; then it is closed by force")
    continuations: int = Field(0, ge=0, description="times that a thought which was closed early goes on")
    wait: str = Field("Wait,", min_length=1, description="what is put behind such a thought, on a new line")
    trigger: str | None = Field(
        None, description="said behind the question; none: the model is only made to begin a thought"
    )

    @field_validator("over")
    @classmethod
    def _plain(cls, over: str | dict[str, Any]) -> str | dict[str, Any]:
        asks_only(over, "thinking-budget", "turn the two round, or leave one out")
        return over


class ThinkingBudget(PromptingMethod):
    """A thought of at most so many tokens, then the answer."""

    name = "thinking-budget"
    summary = "thought in <think> tags, ended or continued by force, before the answer"
    cost = "no training; a thought is generated before each answer"
    paper = "Muennighoff et al. 2025, arXiv 2501.19393"
    options = ThinkingBudgetOptions
    reads_answers = True
    thinks = True
    encoder_decoder = False

    def check(self, base: Base, task: Task, options: ThinkingBudgetOptions) -> None:
        causal(base.model, self.name)
        renderer = base.renderer
        if renderer.decode(renderer.answer(BEHIND, end=False)) != BEHIND:
            raise ModelError(
                f"the tokenizer does not give {CLOSE} back as text, so nothing tells where a thought ends",
                where=f"base: {base.info.name}", mend="use a tokenizer in which the tag is no special token",
            )  # fmt: skip
        if trains(*method_inside(options)) and not any(e.reasoning for e in task.train):
            raise TaskError(
                f"thinking-budget (over {method_inside(options)[0].name}) needs training examples with a worked "
                "solution, and none has one",
                where=task.name, mend="name their column under columns: reasoning, or use it over zero-shot",
            )  # fmt: skip

    def before(
        self, base: Base, task: Task, budget: Budget, options: ThinkingBudgetOptions, run: Run, record: FitRecord,  # noqa: ARG002
    ) -> State:  # fmt: skip
        pool = within(task, budget).train
        without = sum(not e.reasoning for e in pool)
        if without and trains(*method_inside(options)):
            record.notes.append(f"{without} of {len(pool)} training examples have no worked solution and are not used")
        return {}

    def asking(
        self, base: Base, options: ThinkingBudgetOptions, state: State  # noqa: ARG002
    ) -> Callable[[Conversation], Conversation]:  # fmt: skip
        return lambda conversation: _told(conversation, options)

    def training_example(
        self, base: Base, options: ThinkingBudgetOptions, state: State  # noqa: ARG002
    ) -> Callable[[Example], Example]:  # fmt: skip
        """The answer with its worked solution as the thought."""

        def put(e: Example) -> Example:
            text = f"{BEFORE}{(e.reasoning or '').strip()}{BEHIND}{e.answers[0]}"
            return replace(e, messages=_told(e.messages, options), answers=(text,), choices=())

        return put

    def inside_task(self, base: Base, task: Task, options: ThinkingBudgetOptions, state: State) -> Task:
        """What is trained inside is trained to think and to answer; answers have room for the thought."""
        if not trains(*method_inside(options)):
            return task
        put = self.training_example(base, options, state)
        train, validation = (tuple(put(e) for e in part if e.reasoning) for part in (task.train, task.validation))
        room = task.max_answer_tokens + _forcing(options).room(base.renderer)
        return replace(task, train=train, validation=validation, max_answer_tokens=room)

    def wrap(self, inner: Adapted, options: ThinkingBudgetOptions, state: State) -> Adapted:
        return Forced(inner, options, state)


def _forcing(options: ThinkingBudgetOptions) -> Forcing:
    return Forcing(options.max_tokens, options.continuations, options.wait)


def _told(conversation: Conversation, options: ThinkingBudgetOptions) -> Conversation:
    if not options.trigger:
        return conversation
    last = conversation[-1]
    return (*conversation[:-1], replace(last, content=f"{last.content}\n\n{options.trigger}"))


class Forced(Wrapped):
    """Thinks inside its budget, then answers; the thought is in the answer's details."""

    def __init__(
        self, inner: Adapted, options: ThinkingBudgetOptions, state: State | None = None, *,
        forcing: Forcing | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            inner, method=ThinkingBudget.name, options=options, own=lambda c: _told(c, options), state=state or {},
            frames=bool(options.trigger),
        )  # fmt: skip
        self.forcing = forcing or _forcing(options)

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        asked = [self.prepare(c) for c in conversations]
        thoughts = think(self.engine, asked, sampling, self.forcing)
        begun = [self._begun(t) for t in thoughts]
        each = [c for c in asked for _ in range(sampling.n)]
        said = self.engine.generate(each, replace(sampling, n=1), begun=begun, progress=progress)
        return [self._read(a, t, c) for a, t, c in zip(said, thoughts, each, strict=True)]

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,  # noqa: ARG002
    ) -> list[Answer]:  # fmt: skip
        """Two stages: a thought is generated, then the choices are ranked as the answer behind it."""
        asked = [self.prepare(c) for c in conversations]
        thoughts = think(self.engine, asked, sampling, self.forcing)
        out = []
        for i, t in enumerate(thoughts):
            options = choices[i // sampling.n]
            prompt = [*self.renderer.prompt(asked[i // sampling.n]), *self._begun(t)]
            if self.renderer.decode(t.closing).endswith(CLOSE):  # the model would say the line break itself
                prompt += self.renderer.answer("\n", end=False)
            rows = self.engine.token_log_probs([prompt] * len(options), [self.renderer.answer(c) for c in options])
            best = int(np.argmax([float(row.sum()) for row in rows]))
            front = self.prompt_tokens(conversations[i // sampling.n])
            details = {**self._told_of(t), "log_prob": _mean(t.logprobs)}
            out.append(Answer(options[best], (), (), "stop", front, t.sampled, details))
        return out

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        """The whole answer in one piece: thought comes first."""
        yield self.generate([conversation], replace(sampling, n=1))[0].text

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]:
        return super().shorten(conversation, room + self.forcing.room(self.renderer))

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        words = {"model": "the model", "end": "the end of its turn", "budget": "force, the budget being spent"}
        found = Counter(words[a.details["closed"]] for a in answers)
        tokens = np.mean([a.details["thought_tokens"] for a in answers]) if answers else 0.0
        went_on = sum(a.details["continued"] > 0 for a in answers)
        return [
            *super().findings(examples, answers),
            Finding(
                "How thoughts were closed", ("closed by", "answers"), tuple(found.most_common()),
                note=f"{tokens:.0f} tokens of thought in the mean, of {self.forcing.budget}; {went_on} of "
                f"{len(answers)} went on behind {self.forcing.wait!r}",
            ),
        ]  # fmt: skip

    def _begun(self, t: Thought) -> list[int]:
        return [*self.renderer.answer(BEFORE, end=False), *t.tokens, *t.closing]

    def _told_of(self, t: Thought) -> dict[str, Any]:
        return {
            "thought": self.renderer.decode(t.tokens).strip(), "thought_tokens": len(t.tokens), "closed": t.closed,
            "continued": t.continued,
        }  # fmt: skip

    def _read(self, a: Answer, t: Thought, asked: Conversation) -> Answer:
        both = [*t.logprobs, *a.logprobs]
        return replace(
            a, text=a.text.strip(), extra_tokens=t.sampled, prompt_tokens=self.engine.prompt_tokens(asked),
            details={**self._told_of(t), "log_prob": _mean(both)},
        )  # fmt: skip


def _mean(logprobs: Sequence[float]) -> float:
    return float(np.mean(logprobs)) if logprobs else 0.0

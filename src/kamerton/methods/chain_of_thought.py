"""Chain of thought: the model writes its way to the answer first (Wei et al. 2022, arXiv 2201.11903).

Without shots it is told to go step by step (Kojima et al. 2022, arXiv 2205.11916). Over a trained method it becomes
fine-tuning on worked solutions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.inference import Answer, Sampling
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, Wrapped
from kamerton.methods.prompted import (
    PromptingMethod,
    PromptingOptions,
    State,
    asks_only,
    front_inside,
    inside,
    method_inside,
    prompt_room,
    room_for_answer,
    trains,
    within,
)
from kamerton.prompting.extraction import Rule, rule_for, worked
from kamerton.prompting.placing import Placer, shots_in
from kamerton.prompting.shots import random_shots
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example, Task, example_from
from kamerton.training import Budget


class ChainOfThoughtOptions(PromptingOptions):
    """Options of chain of thought."""

    shots: int = Field(0, ge=0, description="worked solutions in the prompt; 0: the model is told to go step by step")
    max_tokens: int = Field(256, gt=0, description="the longest chain in tokens, the answer's own not counted")
    marker: str = Field("The answer is", min_length=1, description="what stands before the answer")
    trigger: str = Field("Let's think step by step.", description="said behind the question where there are no shots")

    @field_validator("over")
    @classmethod
    def _plain(cls, over: str | dict[str, Any]) -> str | dict[str, Any]:
        asks_only(over, "chain-of-thought", "turn the two round, or leave one out")
        return over


class ChainOfThought(PromptingMethod):
    """A chain, then the answer: read out of what was generated, or ranked among the choices behind the chain."""

    name = "chain-of-thought"
    summary = "reasoning before the answer; over a trained method, training on worked solutions"
    cost = "no training; a chain is generated before each answer"
    paper = "Wei et al. 2022, arXiv 2201.11903"
    options = ChainOfThoughtOptions
    reads_answers = True
    thinks = True

    def own_seeded(self, options: ChainOfThoughtOptions) -> bool:
        return options.shots > 0

    def check(self, base: Base, task: Task, options: ChainOfThoughtOptions) -> None:  # noqa: ARG002
        if (options.shots or _uses_examples(options)) and not any(e.reasoning for e in task.train):
            use = f"{options.shots} shots" if options.shots else f"over {method_inside(options)[0].name}"
            raise TaskError(
                f"chain-of-thought ({use}) needs training examples with a worked solution, and none has one",
                where=task.name,
                mend="name their column under columns: reasoning, or use chain-of-thought without shots over zero-shot",
            )  # fmt: skip

    def before(
        self, base: Base, task: Task, budget: Budget, options: ChainOfThoughtOptions, run: Run, record: FitRecord
    ) -> State:
        pool = within(task, budget).train
        known = [e for e in pool if e.reasoning]
        shown = options.shots or _uses_examples(options)
        if shown and len(known) < len(pool):
            record.notes.append(
                f"{len(pool) - len(known)} of {len(pool)} training examples have no worked solution and are not used"
            )
        if options.shots > len(known):
            record.notes.append(f"only {len(known)} worked solutions for {options.shots} shots: all are used")
        kept = random_shots(known, options.shots + 1, run.seed) if options.shots else []
        rule = rule_for(options.marker, (*task.train, *task.validation), task.metrics[0])
        return {
            "pool": [asdict(replace(e, answers=(self._worked(e, options),))) for e in kept],
            "room": room_for_answer(base.renderer, task, options.max_tokens), "front": front_inside(options),
            "rule": asdict(rule),
        }  # fmt: skip

    def asking(
        self, base: Base, options: ChainOfThoughtOptions, state: State
    ) -> Callable[[Conversation], Conversation]:
        if not options.shots:
            return lambda conversation: _told(conversation, options)
        placer = self._placer(base, options, state)
        return lambda conversation: placer.put(conversation)

    def training_example(
        self, base: Base, options: ChainOfThoughtOptions, state: State
    ) -> Callable[[Example], Example]:
        placer = self._placer(base, options, state) if options.shots else None

        def put(e: Example) -> Example:
            asked = placer.put(e.messages, without=e.id) if placer is not None else _told(e.messages, options)
            return replace(e, messages=asked, answers=(self._worked(e, options),), choices=())

        return put

    def inside_task(self, base: Base, task: Task, options: ChainOfThoughtOptions, state: State) -> Task:
        """Examples that are shown or trained on inside are worked solutions; answers have room for a chain."""
        put = self.training_example(base, options, state)

        def solved(examples: tuple[Example, ...]) -> tuple[Example, ...]:
            return tuple(put(e) for e in examples if e.reasoning)

        if _uses_examples(options):
            task = replace(task, train=solved(task.train))
        if trains(*method_inside(options)):
            task = replace(task, validation=solved(task.validation))
        return replace(task, max_answer_tokens=task.max_answer_tokens + options.max_tokens)

    def wrap(self, inner: Adapted, options: ChainOfThoughtOptions, state: State) -> Adapted:
        return Thinking(inner, options, self.asking(inner.base, options, state), state)

    def remark(self, adapted: Adapted, task: Task, options: ChainOfThoughtOptions, record: FitRecord) -> None:
        most = min(options.shots, len(adapted.state["pool"]))
        own = adapted.own if isinstance(adapted, Wrapped) else adapted.prepare
        fewer = sum(shots_in(own(e.messages), e.messages) < most for e in task.test) if most else 0
        if fewer:
            record.notes.append(
                f"{options.shots} worked solutions do not fit the context for {fewer} of {len(task.test)} test "
                "questions: fewer are used"
            )

    def _placer(self, base: Base, options: ChainOfThoughtOptions, state: State) -> Placer:
        pool = [example_from(e) for e in state["pool"]]
        return Placer(pool, options.shots, base.renderer, prompt_room(base, state))

    def _worked(self, e: Example, options: ChainOfThoughtOptions) -> str:
        return worked(e.reasoning or "", options.marker, e.answers[0])


def _uses_examples(options: ChainOfThoughtOptions) -> bool:
    """Whether what is inside is trained, or shows training examples itself."""
    return trains(*method_inside(options)) or any(
        isinstance(m, PromptingMethod) and m.shows_examples for m, _ in inside(options)
    )


def _told(conversation: Conversation, options: ChainOfThoughtOptions) -> Conversation:
    """The question, and behind it that the model should think and how its answer is found."""
    last = conversation[-1]
    text = f'{last.content}\n\n{options.trigger} Then end with "{options.marker} …".'
    return (*conversation[:-1], replace(last, content=text))


class Thinking(Wrapped):
    """Generates a chain and an answer; gives the answer, with the chain in its details."""

    def __init__(
        self, inner: Adapted, options: ChainOfThoughtOptions, own: Callable[[Conversation], Conversation], state: State
    ) -> None:
        super().__init__(
            inner, method=ChainOfThought.name, options=options, own=own, state=state, frames=not options.shots
        )  # fmt: skip
        self._rule, self._marker, self._chain = Rule(**state["rule"]), options.marker, options.max_tokens

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        said = self.inner.generate([self.own(c) for c in conversations], self._plan(sampling), progress=progress)
        return [self._read(a) for a in said]

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """Two stages: a chain is generated, then the choices are ranked as the answer behind it."""
        asked = [self.own(c) for c in conversations]
        said = self.inner.generate(asked, self._plan(sampling), progress=progress)
        chains = [self._rule(a.text).reasoning for a in said]
        owner = [i for i in range(len(asked)) for _ in range(sampling.n)]
        behind = [[worked(chain, self._marker, c) for c in choices[i]] for i, chain in zip(owner, chains, strict=True)]
        scores = self.inner.score([asked[i] for i in owner], behind)
        return [
            Answer(
                choices[i][int(np.argmax(row))], (), (), a.finish, a.prompt_tokens, a.generated_tokens,
                {**a.details, "reasoning": chain, "found": "ranked", "log_prob": _mean(a.logprobs)},
            )
            for i, row, a, chain in zip(owner, scores, said, chains, strict=True)
        ]  # fmt: skip

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        return super().stream(conversation, self._plan(sampling))

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]:
        return super().shorten(conversation, room + self._chain)

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        found = Counter(a.details["found"] for a in answers)
        long = sum(a.finish == "length" for a in answers)
        return [
            *super().findings(examples, answers),
            Finding(
                "How answers were found behind their chains", ("found by", "answers"), tuple(found.most_common()),
                note=f"{long} of {len(answers)} chains used up their room",
            ),
        ]  # fmt: skip

    def _plan(self, sampling: Sampling) -> Sampling:
        return replace(sampling, max_tokens=sampling.max_tokens + self._chain)

    def _read(self, a: Answer) -> Answer:
        read = self._rule(a.text)
        split = _tokens_before(self.renderer, a.tokens, a.text[: read.start])
        return replace(
            a, text=read.answer, tokens=a.tokens[split:], logprobs=a.logprobs[split:],
            extra_tokens=a.extra_tokens + split,
            details={
                **a.details, "reasoning": read.reasoning, "found": read.found, "log_prob": _mean(a.logprobs),
            },
        )  # fmt: skip


def _mean(logprobs: Sequence[float]) -> float:
    """Log-probability per token, in nats: of chain and answer together."""
    return float(np.mean(logprobs)) if logprobs else 0.0


def _tokens_before(renderer: Renderer, tokens: Sequence[int], text: str) -> int:
    """How many tokens the text before an answer takes."""
    return bisect_left(range(len(tokens)), len(text), key=lambda k: len(renderer.decode(tokens[:k])))

"""Retrieval: passages of documents in front of the question (after Lewis et al. 2020, arXiv 2005.11401).

The search is not trained. Passages are found by words, by vectors, or by both; numbered, with their sources, they
stand in front of what the user said last. Around a method that is trained (`over: lora`) it trains on questions with
passages in front. The query encoder trained together with the generator, as in the paper, is the method `rag`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from kamerton.base.load import Base
from kamerton.inference import Answer, Sampling
from kamerton.methods.documents import (
    DEPTHS,
    DocumentOptions,
    check_documents,
    document_state,
    found_again,
    opened,
    own_source,
    quality,
    questions,
    recall,
    save_index,
)  # fmt: skip
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, Wrapped
from kamerton.methods.prompted import PromptingMethod, PromptingOptions, State, front_inside, prompt_room
from kamerton.retrieval.asking import Asker, cited, question_of
from kamerton.retrieval.index import HOWS, How
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget

Progress = Callable[[int, int], None]


class RetrievalOptions(DocumentOptions, PromptingOptions):
    """Options of retrieval."""

    search: How = Field("hybrid", description="vector, full-text, or hybrid (both, by reciprocal rank fusion)")


class Retrieval(PromptingMethod):
    """Passages with their sources before the question; fewer where they do not fit, and said so."""

    name = "retrieval"
    summary = "passages of documents in front of the question"
    paper = "Lewis et al. 2020, arXiv 2005.11401"
    options = RetrievalOptions

    def before(
        self, base: Base, task: Task, budget: Budget, options: RetrievalOptions, run: Run, record: FitRecord
    ) -> State:
        state, notes = document_state(base, task, budget, options, run, front_inside(options))
        record.notes += notes
        return state

    def asking(self, base: Base, options: RetrievalOptions, state: State) -> Callable[[Conversation], Conversation]:
        asker = _asker(base, options, state)
        return lambda conversation: asker.put(conversation)[0]

    def training_example(self, base: Base, options: RetrievalOptions, state: State) -> Callable[[Example], Example]:
        asker = _asker(base, options, state)
        return lambda e: replace(e, messages=asker.put(e.messages, without=own_source(e))[0])

    def wrap(self, inner: Adapted, options: RetrievalOptions, state: State) -> Adapted:
        return Retrieving(inner, options, state)

    def check(self, base: Base, task: Task, options: RetrievalOptions) -> None:  # noqa: ARG002
        check_documents(task, options)

    def remark(self, adapted: Adapted, task: Task, options: RetrievalOptions, record: FitRecord) -> None:
        assert isinstance(adapted, Retrieving)
        adapted.asker.look_up(questions(task.test))
        asked = [adapted.shorten(e.messages, task.max_answer_tokens)[0] for e in task.test]
        fewer = sum(len(adapted.asker.put(c)[1]) < len(adapted.asker.find(c)) for c in asked)
        if fewer:
            record.notes.append(
                f"{options.passages} passages do not fit the context for {fewer} of {len(task.test)} test questions: "
                "fewer are used"
            )

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:
        return super().load(base, folder, {**about, "state": found_again(about["state"], folder)})


class Retrieving(Wrapped):
    """A model that is asked with passages; its answers carry their sources."""

    def __init__(self, inner: Adapted, options: RetrievalOptions, state: State) -> None:
        self.asker = _asker(inner.base, options, state)
        own: Callable[[Conversation], Conversation] = lambda conversation: self.asker.put(conversation)[0]  # noqa: E731
        super().__init__(inner, method="retrieval", options=options, own=own, state=state)
        self._sampling = Sampling()

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, progress: Progress | None = None
    ) -> list[Answer]:
        asked, sources = self._put(conversations)
        self._sampling = sampling
        return _with_sources(self.inner.generate(asked, sampling, progress=progress), sources, sampling.n)

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Progress | None = None,
    ) -> list[Answer]:  # fmt: skip
        asked, sources = self._put(conversations)
        self._sampling = sampling
        return _with_sources(self.inner.choose(asked, choices, sampling, progress=progress), sources, sampling.n)

    def shown(self, conversation: Conversation) -> int:
        asked, hits = self.asker.put(conversation)
        return len(hits) + self.inner.shown(asked)

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        index, asked = self.asker.index, questions(examples)
        found = {str(how): index.search_all(asked, DEPTHS[-1], how) for how in HOWS}
        return [
            recall(examples, found, self.asker.how),
            quality(self.inner, examples, answers, self._sampling, self.inner.method),
            *self.inner.findings(examples, answers),
        ]

    def _put(self, conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[list[dict[str, Any]]]]:
        self.asker.look_up([question_of(c) for c in conversations])  # all at once: the encoder likes batches
        pairs = [self.asker.put(c) for c in conversations]
        return [asked for asked, _ in pairs], [cited(hits) for _, hits in pairs]

    def _save_weights(self, folder: Path) -> None:
        super()._save_weights(folder)
        save_index(self.state, folder)


def _asker(base: Base, options: RetrievalOptions, state: State) -> Asker:
    index = opened(options, state)
    return Asker(index, base.renderer, count=options.passages, how=options.search, room=prompt_room(base, state))


def _with_sources(answers: Sequence[Answer], sources: Sequence[list[dict[str, Any]]], n: int) -> list[Answer]:
    return [replace(a, details={**a.details, "sources": sources[i // n]}) for i, a in enumerate(answers)]

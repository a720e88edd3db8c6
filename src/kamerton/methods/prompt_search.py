"""Prompt search: several phrasings of the instruction, the best one by validation; says where a score hangs on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, field_validator

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.evaluation.answering import answer, judge
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, Wrapped
from kamerton.methods.prompted import PromptingMethod, PromptingOptions, State, joined, method_inside, spending, trains
from kamerton.prompting.phrasings import Phrasing, phrasings, spread_p_value
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget

FRAGILE = 0.05
"""A method is fragile where its best and worst phrasing differ with a p-value below this."""


class PromptSearchOptions(PromptingOptions):
    """Options of prompt search."""

    phrasings: tuple[str | Phrasing, ...] | None = Field(
        None, description="instructions, or mappings with system and question; none: ten frames of the project's"
    )
    questions: int = Field(128, gt=0, description="validation questions on which they are scored")

    @field_validator("phrasings", mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        """Each phrasing made here, so that a mistake is told in its own words."""
        if not isinstance(given, list | tuple):
            return given
        if not given:
            raise ValueError("phrasings is empty; write some, or leave the option out")
        return tuple(_phrasing(i, one) for i, one in enumerate(given, 1))


def _phrasing(number: int, given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    try:
        return Phrasing(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(f"phrasing {number}, {name}: {first['msg'].removeprefix('Value error, ')}") from None


class PromptSearch(PromptingMethod):
    """The phrasing that does best on validation.

    Where nothing inside is trained, what is inside is fitted anew for each phrasing, so that shots are phrased as the
    question is. A method that is trained is trained once, on the first phrasing.
    """

    name = "prompt-search"
    summary = "the best of several phrasings of the instruction"
    cost = "no training; validation questions × phrasings once"
    paper = "Sclar et al. 2023, arXiv 2310.11324"
    options = PromptSearchOptions

    def asking(self, base: Base, options: PromptSearchOptions, state: State) -> Callable[[Conversation], Conversation]:  # noqa: ARG002
        return Phrasing(**state["phrasing"])

    def wrap(self, inner: Adapted, options: PromptSearchOptions, state: State) -> Adapted:
        own = self.asking(inner.base, options, state)
        return Wrapped(inner, method=self.name, options=options, own=own, state=state, frames=True)

    def check(self, base: Base, task: Task, options: PromptSearchOptions) -> None:  # noqa: ARG002
        if not task.validation:
            raise TaskError(
                "prompt-search scores phrasings on validation questions, and there are none", where=task.name,
                mend="give a validation split",
            )  # fmt: skip

    def fit(self, base: Base, task: Task, budget: Budget, options: PromptSearchOptions, run: Run) -> Adapted:
        self.check(base, task, options)
        asked = task.validation[: options.questions]
        method, inner_options = method_inside(options)
        once = trains(method, inner_options)
        metric = get_metric(task.metrics[0], asked)
        plan = Sampling(max_tokens=task.max_answer_tokens, seed=run.seed)
        record, tried = FitRecord(), phrasings(options.phrasings, asked[0].messages)
        fitted: list[Adapted] = []
        rows = []
        for i, phrasing in enumerate(tried):
            run.report("choosing the phrasing", i / len(tried), phrasing.name)
            if not once or i == 0:
                folder = run.folder / "over" if once else run.folder / f"over-{i}"
                inner = method.fit(base, _put(task, phrasing), budget, inner_options, replace(run, folder=folder))
            fitted.append(self.wrap(inner, options, {"phrasing": phrasing.model_dump()}))
            with spending(record, inner):
                said = answer(fitted[-1], asked, plan)
            rows.append(judge(said.texts, asked, task.metrics[:1])[task.metrics[0]])
        statistics = np.stack(rows)  # (P, N, S)
        scores = [float(metric.aggregate(r.sum(0), float(len(asked)))) for r in statistics]
        best = max(range(len(tried)), key=lambda i: scores[i] if metric.higher_is_better else -scores[i])
        for i, one in enumerate(fitted):
            if i != best and not once:  # what was fitted for the others was spent too
                record.seconds += one.inner.record.seconds  # type: ignore[attr-defined]
                record.flops += one.inner.record.flops  # type: ignore[attr-defined]
        self._tell(
            record, tried, scores, best, spread_p_value(statistics, metric.aggregate, seed=run.seed), task, asked
        )
        chosen = fitted[best]
        chosen.record = joined(chosen.inner.record, record)  # type: ignore[attr-defined]
        return chosen

    def _tell(
        self, record: FitRecord, tried: list[Phrasing], scores: list[float], best: int, p: float, task: Task,
        asked: tuple[Example, ...],
    ) -> None:  # fmt: skip
        name = task.metrics[0]
        record.chosen["phrasing"] = tried[best].name
        record.search = [{"phrasing": t.name, name: s} for t, s in zip(tried, scores, strict=True)]
        several, spread = len(tried) > 1, max(scores) - min(scores)
        if several and p < FRAGILE:
            record.marks.append("fragile")
        order = sorted(range(len(tried)), key=lambda i: (i != best, -scores[i]))
        record.findings.append(Finding(
            "Phrasings of the instruction", ("phrasing", name, "system message", "question"),
            tuple((tried[i].name, scores[i], tried[i].system, tried[i].question) for i in order),
            note=f"on {len(asked)} validation questions; the first one was taken. "
            + (f"Best and worst differ by {spread:.3g}, p = {p:.2g} (paired permutation of all phrasings)"
               if several else "There was nothing to choose from"),
        ))  # fmt: skip


def _put(task: Task, phrasing: Phrasing) -> Task:
    """The task with every question in a phrasing."""

    def put(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(e, messages=phrasing(e.messages)) for e in examples)

    return replace(task, train=put(task.train), validation=put(task.validation), test=put(task.test))

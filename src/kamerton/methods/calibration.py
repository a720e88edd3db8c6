"""Contextual calibration: take a prompt's own leaning off the answers (Zhao et al. 2021, arXiv 2102.09690).

The leaning is what the prompt makes of content-free questions, or, with `inputs: validation`, of real ones on average
(batch calibration, Zhou et al. 2023, arXiv 2309.17249).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.evaluation.answering import answer, judge, values
from kamerton.inference import Answer, Sampling
from kamerton.methods.few_shot import EACH, FewShot
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, Wrapped
from kamerton.methods.prompted import OVER, PromptingMethod, PromptingOptions, State, asks_only, spending
from kamerton.prompting.calibration import calibrate, calibrate_first, content_free, leaning
from kamerton.prompting.phrasings import PHRASINGS, Phrasing
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example, Task, example_from
from kamerton.training import Budget

KEPT = 1024
"""Leanings of prompts that are kept; shots that all questions share make one."""


class CalibrationOptions(PromptingOptions):
    """Options of calibration."""

    over: str | dict[str, Any] = Field("few-shot", validate_default=True, description=OVER)
    inputs: tuple[str, ...] | Literal["validation"] = Field(
        ("N/A", "[MASK]", ""), description="content-free questions, or validation: the mean over validation questions"
    )
    variant: Literal["diagonal", "identity"] = Field("diagonal", description="divide by p_cf, or subtract it")
    by: Literal["choice", "first-token"] = Field(
        "choice", description="closed choices by their whole probability, or by that of their first token"
    )
    orders: int = Field(5, ge=0, description="orders of the shots on which it is tried out for the report")
    phrasings: int = Field(4, ge=0, le=len(PHRASINGS), description="phrasings on which it is tried out for the report")
    questions: int = Field(64, gt=0, description="validation questions on which it is tried out, or that are inputs")

    @field_validator("inputs")
    @classmethod
    def _some(cls, inputs: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not inputs:
            raise ValueError("inputs is empty; write some, or leave the option out")
        return inputs

    @field_validator("over")
    @classmethod
    def _plain(cls, over: str | dict[str, Any]) -> str | dict[str, Any]:
        asks_only(over, "calibration", "use it over few-shot or a trained method")
        return over


class Calibration(PromptingMethod):
    """Answers corrected by what the same prompt makes of questions that say nothing, or of many."""

    name = "calibration"
    summary = "answers corrected by the prompt's own leaning"
    cost = "no training; three more questions for each different prompt"
    paper = "Zhao et al. 2021, arXiv 2102.09690"
    options = CalibrationOptions
    reads_answers = True

    def check(self, base: Base, task: Task, options: CalibrationOptions) -> None:
        if options.by == "first-token":
            for choices in sorted({e.choices for e in (*task.validation, *task.test) if e.choices}):
                first_tokens(base.renderer, choices, task.name)
        if options.inputs == "validation" and not task.validation:
            raise TaskError(
                "calibration by validation questions has none", where=task.name, mend="give a validation split"
            )

    def before(
        self, base: Base, task: Task, budget: Budget, options: CalibrationOptions, run: Run, record: FitRecord,  # noqa: ARG002
    ) -> State:  # fmt: skip
        if options.inputs != "validation":
            return {"inputs": list(options.inputs)}
        return {"inputs": [e.messages[-1].content for e in task.validation[: options.questions]]}

    def after(
        self, inner: Adapted, task: Task, options: CalibrationOptions, state: State, run: Run, record: FitRecord
    ) -> State:  # fmt: skip
        asked = task.validation[: options.questions]
        if not asked:
            record.notes.append("no validation questions on which calibration could be tried out")
            return state
        plan = Sampling(max_tokens=task.max_answer_tokens, seed=run.seed)
        name, rows = task.metrics[0], []
        with spending(record, inner):
            for group, variants in _variants(inner, options, run.seed).items():
                scores = []
                for i, variant in enumerate(variants):
                    run.report("trying calibration out", i / len(variants), group)
                    both = [variant, self.wrap(variant, options, state)]
                    said = [answer(model, asked, plan).texts for model in both]
                    scores.append([values(judge(texts, asked, [name]), asked)[name] for texts in said])
                for when, column in zip(("before", "after"), np.array(scores).T, strict=True):
                    rows.append((group, when, float(column.mean()), float(column.std(ddof=1)), float(column.min()),
                                 float(column.max())))  # fmt: skip
        if rows:
            record.findings.append(Finding(
                "Calibration on validation", ("over", "calibration", f"mean {name}", "deviation", "lowest", "highest"),
                tuple(rows), note=f"{len(asked)} validation questions; nothing was chosen by them",
            ))  # fmt: skip
        return state

    def wrap(self, inner: Adapted, options: CalibrationOptions, state: State) -> Adapted:
        return Calibrated(inner, options, state)


def first_tokens(renderer: Renderer, choices: Sequence[str], where: str = "calibration") -> list[int]:
    """The first token of each choice.

    Raises:
        TaskError: two choices share it.
    """
    seen: dict[int, str] = {}
    for choice in choices:
        token = renderer.answer(choice)[0]
        if token in seen:
            raise TaskError(
                f"the choices {seen[token]!r} and {choice!r} begin with the same token, which calibration by "
                "first-token cannot tell apart", where=where, mend="use by: choice",
            )  # fmt: skip
        seen[token] = choice
    return list(seen)


def _variants(inner: Adapted, options: CalibrationOptions, seed: int) -> dict[str, list[Adapted]]:
    """The model inside with other orders of its shots, and with other phrasings."""
    shots = inner.state["pool"][: inner.options.shots] if inner.method == FewShot.name else []  # type: ignore[attr-defined]
    out: dict[str, list[Adapted]] = {}

    def with_pool(pool: list[dict[str, Any]]) -> Adapted:
        assert isinstance(inner, Wrapped)
        return FewShot().wrap(inner.inner, inner.options, {**inner.state, "pool": pool})

    if len(shots) > 1 and options.orders > 1 and inner.options.selection not in EACH:  # type: ignore[attr-defined]
        rng = np.random.default_rng([seed, 25])
        orders = [rng.permutation(len(shots)) for _ in range(options.orders)]
        out[f"{options.orders} orders of the shots"] = [with_pool([shots[i] for i in order]) for order in orders]
    if options.phrasings > 1:
        phrased = []
        for phrasing in PHRASINGS[: options.phrasings]:
            model = with_pool([_put(e, phrasing) for e in inner.state["pool"]]) if shots else inner
            phrased.append(Wrapped(model, method="phrasing", options=options, own=phrasing, frames=True))
        out[f"{options.phrasings} phrasings"] = list(phrased)
    return out


def _put(record: dict[str, Any], phrasing: Phrasing) -> dict[str, Any]:
    example: Example = example_from(record)
    return asdict(replace(example, messages=phrasing(example.messages)))


class Calibrated(Wrapped):
    """Chooses, and begins its answers, by calibrated probabilities."""

    def __init__(self, inner: Adapted, options: CalibrationOptions, state: State) -> None:
        super().__init__(inner, method=Calibration.name, options=options, own=lambda c: c, state=state)
        self._plan, self._inputs = options, tuple(state["inputs"])
        self._leanings: dict[Any, Any] = {}

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        asked = [self.prepare(c) for c in conversations]
        empty = [self._empty(c, a) for c, a in zip(conversations, asked, strict=True)]
        keys = [(e, tuple(options)) for e, options in zip(empty, choices, strict=True)]
        new = [key for key in dict.fromkeys(keys) if key not in self._leanings]
        scores = self._scores([c for e, _ in new for c in e], [options for e, options in new for _ in e])
        for i, key in enumerate(new):
            size = len(self._inputs)
            self._leanings[key] = leaning(np.array(scores[i * size : (i + 1) * size]))
        out, front = [], self.engine.model.soft_tokens
        for a, key, row in zip(asked, keys, self._scores(asked, choices, progress), strict=True):
            best = int(np.argmax(calibrate(np.array(row), self._leanings[key], self._plan.variant)))
            one = Answer(key[1][best], (), (), "stop", len(self.renderer.prompt(a)) + front)
            out += [one] * sampling.n
        self._trim()
        return out

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        asked = [self.prepare(c) for c in conversations]
        empty = [self._empty(c, a) for c, a in zip(conversations, asked, strict=True)]

        def first(logits: Tensor, numbers: Sequence[int]) -> Tensor:
            cf = torch.stack([self._first_leaning(empty[i]) for i in numbers]).to(logits.device)
            self._trim(KEPT // 16)  # one number for each word of the vocabulary
            return calibrate_first(logits, cf, self._plan.variant)

        return self.engine.generate(asked, sampling, progress=progress, first=first)

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        """The whole answer in one piece."""
        yield self.generate([conversation], replace(sampling, n=1))[0].text

    def _empty(self, conversation: Conversation, asked: Conversation) -> tuple[Conversation, ...]:
        """The prepared conversation with other questions in it; the shots stay those of the real one."""
        return tuple(content_free(asked, conversation[-1].content, text) for text in self._inputs)

    def _scores(
        self, asked: Sequence[Conversation], choices: Sequence[Sequence[str]],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[float]]:  # fmt: skip
        """Log-probabilities of whole choices, or of their first tokens."""
        if self._plan.by == "choice":
            return self.engine.score(asked, choices, progress=progress)
        prompts = [self.renderer.prompt(c) for c in asked]
        tokens = [first_tokens(self.renderer, options) for options in choices]
        flat = self.engine.token_log_probs(
            [p for p, row in zip(prompts, tokens, strict=True) for _ in row], [[t] for row in tokens for t in row]
        )
        numbers = iter(float(x[0]) for x in flat)
        return [[next(numbers) for _ in row] for row in tokens]

    def _first_leaning(self, empty: tuple[Conversation, ...]) -> Tensor:
        """(V,) log p_cf of first tokens."""
        if empty not in self._leanings:
            log_p = self.engine.next_log_probs([self.renderer.prompt(c) for c in empty])
            self._leanings[empty] = torch.logsumexp(log_p, 0) - float(np.log(len(log_p)))
        found: Tensor = self._leanings[empty]
        return found

    def _trim(self, most: int = KEPT) -> None:
        """Forget the oldest leanings."""
        for key in list(self._leanings)[: max(0, len(self._leanings) - most)]:
            del self._leanings[key]

"""Few-shot: solved training examples in front of the question (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.methods.method import Adapted, Finding, FitRecord, Run, Wrapped
from kamerton.methods.prompted import (
    PromptingMethod,
    PromptingOptions,
    State,
    asks_only,
    front_inside,
    prompt_room,
    room_for_answer,
    spending,
    within,
)
from kamerton.prompting.encoders import ENCODERS, Encoder, Vectors, get_encoder
from kamerton.prompting.orders import global_entropy, local_entropy, orders, probabilities
from kamerton.prompting.placing import Nearest, Placer, shots_in
from kamerton.prompting.shots import NearestShots, balanced_shots, diverse_shots, random_shots
from kamerton.retrieval.encoder import MINILM, find_encoder
from kamerton.tasks.example import Conversation, Example, Task, example_from
from kamerton.training import Budget

EACH = ("nearest", "embeddings")
"""Selections that pick shots for each question."""
BY_MEANING = ("embeddings", "diverse")
"""Selections by vectors."""


class FewShotOptions(PromptingOptions):
    """Options of few-shot prompting."""

    shots: int = Field(8, gt=0, description="solved examples in the prompt")
    selection: Literal["random", "nearest", "embeddings", "diverse", "balanced"] = Field(
        "random",
        description="drawn once by the seed (random, diverse, balanced over labels), or for each question the most "
        "similar ones (nearest: tf–idf; embeddings)",
    )
    order: Literal["drawn", "nearest-last", "searched"] = Field(
        "drawn", description="as selected; most similar to the question last; or the best by entropy on validation"
    )
    encoder: str = Field(
        "base",
        description="vectors of embeddings and diverse: base (the base's mean hidden states), minilm, a hub id, or a "
        "folder with a sentence-transformers model",
    )
    entropy: Literal["global", "local"] = Field("global", description="what a searched order maximises")
    orders: int = Field(24, gt=1, description="orders that are tried, drawn by the seed where there are more")
    probes: int = Field(64, gt=0, description="validation questions on which orders are tried")

    @field_validator("order")
    @classmethod
    def _searchable(cls, order: str, info: ValidationInfo) -> str:
        if order == "searched" and info.data.get("selection") in EACH:
            raise ValueError(
                f"selection {info.data['selection']} picks other shots for each question, so there is no order to "
                "search; use order nearest-last"
            )
        if order == "searched" and "over" in info.data:
            asks_only(info.data["over"], "few-shot with a searched order", "use another order")
        return order

    @field_validator("encoder")
    @classmethod
    def _encoder(cls, name: str) -> str:
        if name not in (*ENCODERS, MINILM) and "/" not in name:
            known = ", ".join((*ENCODERS, MINILM))
            raise ValueError(f"unknown encoder '{name}'; use one of: {known}, a hub id (owner/name), a folder (./name)")
        return name


class FewShot(PromptingMethod):
    """Solved examples before the question; fewer where they do not fit the model's context, and said so."""

    name = "few-shot"
    summary = "solved examples in front of the question"
    paper = "Brown et al. 2020, arXiv 2005.14165"
    options = FewShotOptions
    shows_examples = True

    def __init__(self) -> None:
        self._encoders: dict[str, tuple[Base, Encoder]] = {}

    def own_seeded(self, options: FewShotOptions) -> bool:
        return options.selection not in EACH

    def check(self, base: Base, task: Task, options: FewShotOptions) -> None:  # noqa: ARG002
        if not task.train:
            raise TaskError("few-shot needs training examples", where=task.name, mend="give a train split")
        if options.order == "searched":
            _searchable(task, options)
        if options.selection == "balanced" and (len({e.choices for e in task.train}) > 1 or not task.train[0].choices):
            raise TaskError(
                "few-shot balances over labels, and this task has no choices that all its examples share",
                where=task.name, mend="use selection random or diverse",
            )  # fmt: skip
        if options.selection in BY_MEANING and options.encoder not in ENCODERS:
            find_encoder(options.encoder)

    def before(
        self, base: Base, task: Task, budget: Budget, options: FewShotOptions, run: Run, record: FitRecord
    ) -> State:
        # a budget of examples holds for examples that are shown as for examples that are trained on
        pool = within(task, budget).train
        if len(pool) < options.shots:
            record.notes.append(f"only {len(pool)} training examples for {options.shots} shots: all are used")
        with spending(record, base.model):
            kept = self._selected(base, pool, options, run.seed)
        return {
            "pool": [asdict(e) for e in kept], "room": room_for_answer(base.renderer, task),
            "front": front_inside(options),
        }  # fmt: skip

    def _selected(
        self, base: Base, pool: tuple[Example, ...], options: FewShotOptions, seed: int
    ) -> list[Example] | tuple[Example, ...]:
        # one more than is shown: an example in training is not shown to itself
        more = options.shots + 1
        if options.selection == "random":
            return random_shots(pool, more, seed)
        if options.selection == "diverse":
            return diverse_shots(pool, Vectors(pool, self._encoder(base, options)).unit, more, seed)
        if options.selection == "balanced":
            shown, spares = balanced_shots(pool, options.shots, seed)
            return [*shown, *spares]
        if options.selection == "embeddings":
            Vectors(pool, self._encoder(base, options))  # here, where its cost is counted; the encoder keeps them
        return pool

    def asking(self, base: Base, options: FewShotOptions, state: State) -> Callable[[Conversation], Conversation]:
        placer = self._placer(base, options, state)
        return lambda conversation: placer.put(conversation)

    def training_example(self, base: Base, options: FewShotOptions, state: State) -> Callable[[Example], Example]:
        placer = self._placer(base, options, state)
        return lambda example: replace(example, messages=placer.put(example.messages, without=example.id))

    def after(
        self, inner: Adapted, task: Task, options: FewShotOptions, state: State, run: Run, record: FitRecord
    ) -> State:
        if options.order != "searched":
            return state
        pool = state["pool"]
        shown, spares = pool[: options.shots], pool[options.shots :]
        asked = _probes(task, options)
        choices = [e.choices for e in asked]
        tried, found = orders(len(shown), options.orders, run.seed), []
        with spending(record, inner):
            for i, order in enumerate(tried):
                run.report("choosing the order of the shots", i / len(tried), f"order {i + 1} of {len(tried)}")
                variant = self.wrap(inner, options, {**state, "pool": [shown[j] for j in order]})
                scores = variant.score([e.messages for e in asked], choices)
                if options.entropy == "global":
                    found.append(global_entropy(probabilities(np.array(scores))))
                else:  # choices may differ in number between questions
                    found.append(float(np.mean([local_entropy(probabilities(np.array([row]))) for row in scores])))
        best = max(range(len(tried)), key=found.__getitem__)  # the drawn order where all are alike
        record.chosen["order"] = list(tried[best])
        rows = sorted(zip(found, tried, strict=True), key=lambda row: -row[0])
        record.findings.append(Finding(
            "Orders of the shots", ("order", f"{options.entropy} entropy, nats"),
            tuple((" ".join(str(i + 1) for i in order), value) for value, order in rows),
            note=f"over {len(asked)} validation questions, without their answers; the first order was taken",
        ))  # fmt: skip
        return {**state, "pool": [*(shown[i] for i in tried[best]), *spares]}

    def remark(self, adapted: Adapted, task: Task, options: FewShotOptions, record: FitRecord) -> None:
        most = min(options.shots, len(adapted.state["pool"]))
        fewer = 0
        if isinstance(adapted, Wrapped):
            fewer = sum(shots_in(adapted.own(e.messages), e.messages) < most for e in task.test)
        if fewer:
            record.notes.append(
                f"{options.shots} shots do not fit the context for {fewer} of {len(task.test)} test questions: fewer "
                "are used"
            )

    def _placer(self, base: Base, options: FewShotOptions, state: State) -> Placer:
        pool = [example_from(e) for e in state["pool"]]
        nearest: Nearest | None = None
        if options.selection in EACH or options.order == "nearest-last":
            by_meaning = options.selection in BY_MEANING
            nearest = Vectors(pool, self._encoder(base, options)) if by_meaning else NearestShots(pool)
        return Placer(
            pool, options.shots, base.renderer, prompt_room(base, state), nearest=nearest,
            pick=options.selection in EACH, alike=options.selection == "balanced",
        )  # fmt: skip

    def _encoder(self, base: Base, options: FewShotOptions) -> Encoder:
        """One encoder for all of a fit: it keeps what it encoded."""
        known = self._encoders.get(options.encoder)
        if known is None or known[0] is not base:
            known = self._encoders[options.encoder] = (base, get_encoder(options.encoder, base))
        return known[1]


def _probes(task: Task, options: FewShotOptions) -> tuple[Any, ...]:
    return tuple(e for e in task.validation if e.choices)[: options.probes]


def _searchable(task: Task, options: FewShotOptions) -> None:
    asked = _probes(task, options)
    if not asked:
        raise TaskError(
            "an order of shots is searched on validation questions with choices, and there are none",
            where=task.name, mend="give a validation split of a choice task, or use order drawn",
        )  # fmt: skip
    if options.entropy == "global" and len({e.choices for e in asked}) > 1:
        raise TaskError(
            "global entropy needs the same choices for all questions", where=task.name, mend="use entropy local"
        )

"""What methods that use documents share: their options, the index they search, and what they show in the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from kamerton.base.load import Base
from kamerton.errors import ModelError, TaskError
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Answer, Sampling
from kamerton.methods.method import Adapted, Finding, Run
from kamerton.methods.prompted import State, room_for_answer, within
from kamerton.retrieval.asking import build, example_source, holds, question_of
from kamerton.retrieval.documents import DocumentError, find
from kamerton.retrieval.encoder import MINILM, find_encoder
from kamerton.retrieval.hits import Hit
from kamerton.retrieval.index import Entry, PassageIndex
from kamerton.tasks.example import Example, Task, answered
from kamerton.training import Budget
from kamerton.tuning.parameterisation import Options

OWN = "index"
"""The folder of an index that a method made itself, inside the folder of the saved model."""
DEPTHS = (1, 3, 5, 10)
"""Passages among which recall is counted."""
CLOSED_BOOK = 200
"""Test questions that are asked once more without passages, at most."""


class DocumentOptions(Options):
    """Options of all methods that use documents."""

    index: str | None = Field(None, description="folder of an index that `kamerton index add` made")
    documents: str | list[str] | None = Field(
        None, description="files and folders to index; none, and no index: the solved training examples"
    )
    encoder: str | None = Field(
        None,
        description="minilm, a hub id, or a folder: the encoder that makes the index here (none: minilm), or that must "
        "have made the index that is named",
    )
    passages: int = Field(3, gt=0, description="passages for a question, at most")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.index is not None and self.documents is not None:
            raise ValueError("index and documents are both given; leave one out")
        return self


def check_documents(task: Task, options: DocumentOptions) -> None:
    """Refuse an index or documents that are not there.

    Raises:
        KamertonError: what is missing, as one line.
    """
    if options.index is not None:
        _not_empty(PassageIndex.open(options.index, options.encoder))
        return
    find_encoder(options.encoder or MINILM)
    named = [options.documents] if isinstance(options.documents, str) else options.documents
    if named is not None and not find(named).files:
        raise DocumentError("no documents are here", where=", ".join(named), mend="name others, or an index")
    if named is None and not task.train:
        raise TaskError(
            "there are no documents", where=task.name, mend="name an index or documents, or give a train split"
        )


def _not_empty(index: PassageIndex) -> list[Entry]:
    """The documents of an index that has some."""
    entries = index.entries()
    if not entries:
        raise ModelError("the index is empty", where=index.folder, mend="add documents: kamerton index add")
    return entries


def document_state(
    base: Base, task: Task, budget: Budget, options: DocumentOptions, run: Run, front: int
) -> tuple[State, list[str]]:
    """The index that a fit searches, as part of the method's state, and notes on it.

    An index that the options name is used where it is; one that is made here travels with the saved model.

    Args:
        front: positions that soft prompts take in front of every sequence.
    """
    if options.index is not None:
        index = PassageIndex.open(options.index, options.encoder)
        notes: list[str] = []
    else:
        named = [options.documents] if isinstance(options.documents, str) else options.documents or []
        # a budget of examples holds for examples that are shown as for examples that are trained on
        pool = answered(within(task, budget).train)
        index, notes = build(run.folder / OWN, named, pool, encoder=options.encoder or MINILM, watch=run.report)
    entries = _not_empty(index)
    notes.append(f"index of {len(entries)} documents, {len(index)} passages, fingerprint {index.fingerprint[:12]}")
    state = {
        "index": str(index.folder.resolve()), "own": options.index is None,
        "encoder": index.about["encoder"]["fingerprint"],
    }  # fmt: skip
    return {**state, "room": room_for_answer(base.renderer, task), "front": front}, notes


def opened(options: DocumentOptions, state: State) -> PassageIndex:
    """The index of a state; the encoder that the options name beside an index must be the one that made it."""
    return PassageIndex.open(state["index"], options.encoder if options.index is not None else None)


def save_index(state: State, folder: Path) -> None:
    """Put an index that the method made beside the saved model."""
    if state["own"] and Path(state["index"]).resolve() != (folder / OWN).resolve():
        shutil.rmtree(folder / OWN, ignore_errors=True)
        shutil.copytree(state["index"], folder / OWN, ignore=shutil.ignore_patterns(".lock"))


def found_again(state: State, folder: Path) -> State:
    """The state of a saved model, with its index where it is now."""
    return {**state, "index": str((folder / OWN).resolve())} if state["own"] else state


def own_source(example: Example) -> str:
    """The document that a training example must not be shown: itself."""
    return example_source(example.id)


# -- the report -------------------------------------------------------------------------------------------------------


def recall(examples: Sequence[Example], found: Mapping[str, Sequence[Sequence[Hit]]], shown: str) -> Finding:
    """How often the first passages of each search hold an accepted answer.

    Args:
        examples: the test set.
        found: for each search the passages of each question, best first.
        shown: the search whose passages the model was shown.
    """
    first: dict[str, list[int | None]] = {}
    for name, hits in found.items():
        first[name] = [
            next((i for i, hit in enumerate(one) if holds(hit.passage.text, e.answers)), None)
            for e, one in zip(examples, hits, strict=True)
        ]
    rows = tuple(
        (f"recall@{k}", *(sum(i is not None and i < k for i in places) / len(examples) for places in first.values()))
        for k in DEPTHS
    )
    return Finding(
        "Passages that hold the answer", ("", *found), rows,
        note=f"share of {len(examples)} test questions for which one of the first k passages holds the words of an "
        f"accepted answer in a row, whatever their case; the model was shown those of: {shown}",
    )  # fmt: skip


def quality(
    model: Adapted, examples: Sequence[Example], answers: Sequence[Answer], sampling: Sampling, what: str
) -> Finding:
    """How good answers are where a passage held the answer, where none did, and without passages.

    Args:
        model: the model inside, asked the first `CLOSED_BOOK` questions once more, without passages.
        examples: the test set.
        answers: what was said to it; their details name the passages.
        sampling: how it was answered.
        what: the model inside, in words.
    """
    name = "accuracy" if all(e.choices for e in examples) else "token-f1"

    def value(texts: Sequence[str], picked: Sequence[Example]) -> float | None:
        if not picked:
            return None
        metric = get_metric(name, picked)
        return float(metric.aggregate(metric.statistics(texts, picked).sum(axis=0), len(picked)))

    def row(title: str, which: Sequence[int]) -> tuple[Any, ...]:
        return title, len(which), value([answers[i].text for i in which], [examples[i] for i in which])

    held = [
        any(holds(source["text"], e.answers) for source in a.details.get("sources", ()))
        for e, a in zip(examples, answers, strict=True)
    ]
    part = range(min(CLOSED_BOOK, len(examples)))
    asked = [examples[i] for i in part]
    texts = [""] * len(asked)
    for closed in (True, False):
        which = [i for i, e in enumerate(asked) if bool(e.choices) == closed]
        questions = [model.shorten(asked[i].messages, sampling.max_tokens)[0] for i in which]
        if closed:
            said = model.choose(questions, [asked[i].choices for i in which], sampling)
        else:
            said = model.generate(questions, sampling)
        for i, one in zip(which, said[:: sampling.n], strict=True):
            texts[i] = one.text
    rows = (
        row("with passages", range(len(examples))),
        row("with passages, one of which holds the answer", [i for i, yes in enumerate(held) if yes]),
        row("with passages, none of which holds the answer", [i for i, yes in enumerate(held) if not yes]),
        row(f"with passages, the first {len(asked)} questions", part),
        (f"without passages, the first {len(asked)} questions", len(asked), value(texts, asked)),
    )
    return Finding(
        "Answers with and without passages", ("", "questions", name), rows,
        note=f"without passages the same model is asked ({what}); a closed-book method of its own is the fairer rival",
    )  # fmt: skip


def questions(examples: Sequence[Example]) -> list[str]:
    """What is searched for, for each example."""
    return [question_of(e.messages) for e in examples]

"""The plain records that every other room speaks of: messages, examples, tasks.

A task is examples in three splits, how they are asked (already written into their messages) and the metrics that judge
answers. Nothing here knows a model or a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer that was judged: the higher its score among answers to the same question, the better."""

    answer: str
    score: float


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its accepted answers.

    Attributes:
        id: unique within its task, stable between runs.
        messages: the conversation up to the model's turn.
        answers: accepted answers; the first one is trained on. Empty only in train, for a question whose judged answers
            are all bad.
        choices: a closed set: answers are ranked; empty: answers are generated.
        reasoning: a worked solution, for chain-of-thought methods.
        group: what kind of example this is (a format, a label, a source), for reports; "" where there is none.
        graded: answers that people or programs judged, best first; empty where none were.
        margin: by how much the first of two judged answers is better, where the data say so.
        segments: what an encoder reads, where that is not the last message: one text, or a pair (of a question about a
            context: the question, then the context).
        spans: characters at which the accepted answers begin in the context, -1 for one that is not there; empty where
            none of them is, or there is no context.
        words: of a sentence that is tagged; the answer is their tags, with a space between.
    """

    id: str
    messages: Conversation
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    reasoning: str | None = None
    group: str = ""
    graded: tuple[Graded, ...] = ()
    margin: float | None = None
    segments: tuple[str, ...] = ()
    spans: tuple[int, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Examples in three splits, and the metrics that judge answers to them.

    Attributes:
        name: a short name for reports.
        train, validation, test: the splits; validation chooses, test is read once per cell.
        metrics: names of metrics, the first one decides.
        max_answer_tokens: the longest answer that is generated, in tokens.
        notes: one line for everything that was cut, removed or found while reading (duplicates, limits, …).
        source: where the examples came from (a path, a hub id, `embedded:dates`).
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metrics: tuple[str, ...]
    max_answer_tokens: int = 64
    notes: tuple[str, ...] = field(default=())
    source: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that can change a result: all examples of all splits, and the metrics."""
        return fingerprint(
            {
                "train": [record_of(e) for e in self.train],
                "validation": [record_of(e) for e in self.validation],
                "test": [record_of(e) for e in self.test],
                "metrics": self.metrics,
                "max_answer_tokens": self.max_answer_tokens,
            }
        )


def record_of(example: Example) -> dict[str, Any]:
    """An example as plain values, without the fields that only some tasks have where it has none."""
    record = asdict(example)
    if not example.graded:
        del record["graded"]
    if example.margin is None:
        del record["margin"]
    for name in ("segments", "spans", "words"):
        if not record[name]:
            del record[name]
    return record


def example_from(record: Mapping[str, Any]) -> Example:
    """An example from what `record_of` (or `dataclasses.asdict`) and JSON made of it.

    Raises:
        KeyError, TypeError: it is none.
    """
    texts = [*(turn[key] for turn in record["messages"] for key in ("role", "content")), *record["answers"]]
    if not all(isinstance(text, str) for text in (*texts, *record["choices"])):
        raise TypeError("a message, an answer or a choice is no text")
    return Example(**{
        **record, "messages": tuple(Message(**m) for m in record["messages"]), "answers": tuple(record["answers"]),
        "choices": tuple(record["choices"]), "graded": tuple(Graded(**g) for g in record.get("graded", ())),
        **{name: tuple(record.get(name, ())) for name in ("segments", "spans", "words")},
    })  # fmt: skip


def fingerprint(value: object) -> str:
    """SHA-256 (hex, 64 characters) of a value that JSON can hold, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def answered(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The examples that have a reference answer."""
    return tuple(example for example in examples if example.answers)


def conversation(turns: Iterable[tuple[Role, str]]) -> Conversation:
    """A conversation from (role, content) pairs."""
    return tuple(Message(role, content) for role, content in turns)

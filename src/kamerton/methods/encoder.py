"""An encoder with a trained head, as evaluation and serving see it: it reads examples and picks among what they allow.

Trained methods on an encoder are the same parameterisations on another loss: every copy of the base gets a fresh head
for the task (`headed`), and what comes out answers through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kamerton.base.encoder import EncoderModel, Head
from kamerton.base.load import Base
from kamerton.base.task_head import head_of, texts_of
from kamerton.errors import KamertonError
from kamerton.inference import Answer, Sampling
from kamerton.inference.head_answers import read
from kamerton.inference.head_rows import Rows, run
from kamerton.methods.method import Adapted
from kamerton.objectives.head_options import HeadOptions
from kamerton.tasks.example import Conversation, Example, Task

Watch = Callable[[int, int], None]


def headed(base: Base, head: Head) -> Base:
    """A base every copy of which (`reload`) has a fresh head; its own model stays as it is."""
    return replace(base, request={**base.request, "head": head})


def head_state(task: Task, seed: int) -> dict[str, Any]:
    """What a model with a head must know to be loaded and asked, as JSON: the head, and whether it reads pairs."""
    pair = any(len(texts_of(e)) == 2 for e in task.train)
    return {"head": head_of(task, seed).to_dict(), "pair": pair}


class HeadAnswers(Adapted):
    """An encoder with a head.

    Args:
        base, model, rest: as `Adapted`.
        state: what `head_state` gave.
        limit: longest row in tokens.
    """

    def __init__(self, base: Base, model: EncoderModel, *, state: dict[str, Any], limit: int | None, **rest: Any):
        super().__init__(base, model, state=state, **rest)
        self.head = Head.from_dict(state["head"])
        self._choice: HeadOptions = getattr(self.options, "head", None) or HeadOptions.model_validate({})
        self._rows = Rows(
            base.renderer.tokenizer, self.head, limit=limit, window=self._choice.window, stride=self._choice.stride
        )

    def read_examples(self, examples: Sequence[Example], *, progress: Watch | None = None) -> tuple[list[Answer], int]:
        """An answer to each example, and how many of them had to be cut to fit the model."""
        encoded = [self._rows.example(e) for e in examples]
        model, pad_id = self.engine.model, self.renderer.tokenizer.pad_token_id or 0
        assert isinstance(model, EncoderModel)
        answers: dict[int, Answer] = {}
        o = self._choice

        def ask() -> None:
            with model.inference(), torch.inference_mode():
                for i, logits in run(encoded, model.logits, pad_id, self.engine.max_batch_tokens):
                    said = read(self.head, examples[i], encoded[i], logits, longest=o.longest, threshold=o.threshold)
                    answers[i] = Answer(said.text, (), (), "stop", encoded[i].tokens, details=said.details)
                    if progress is not None:
                        progress(len(answers), len(examples))

        self.engine.fitting([e.tokens for e in encoded], self.engine.max_batch_tokens, ask)
        return [answers[i] for i in range(len(examples))], sum(e.cut for e in encoded)

    def example(self, conversation: Conversation, choices: Sequence[str] = ()) -> Example:
        """What a conversation asks: its last message, as one text or as a pair with an empty line between.

        Of a question about a context the question stands behind the context, as tasks put it to causal models.
        """
        (text,) = texts_of(Example("", conversation, ("",)))
        if not self.state["pair"]:
            return Example("", conversation, ("",), tuple(choices))
        mark = "\n\n" if "\n\n" in text else "\n"
        first, found, second = text.rpartition(mark) if self.head.kind == "span" else text.partition(mark)
        if not found:
            raise KamertonError("the question is one text, and this model reads two", mend="put an empty line between")
        segments = (second, first) if self.head.kind == "span" else (first, second)
        return Example("", conversation, ("",), tuple(choices), segments=segments)

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, progress: Watch | None = None
    ) -> list[Answer]:  # fmt: skip
        """The head's answer, `sampling.n` times: it has one only."""
        if self.head.kind == "choice":
            raise KamertonError("this model chooses among given answers", mend="ask it a question with choices")
        answers, _ = self.read_examples([self.example(c) for c in conversations], progress=progress)
        return [one for one in answers for _ in range(sampling.n)]

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Watch | None = None,
    ) -> list[Answer]:  # fmt: skip
        """The likeliest choice; of a classification only its own classes can be asked for."""
        for listed in choices:
            strange = [c for c in listed if c not in self.head.labels]
            if self.head.kind != "choice" and strange:
                mend = f"use some of: {', '.join(self.head.labels)}" if self.head.labels else "ask without choices"
                raise KamertonError(f"{strange[0]!r} is no class of this model", mend=mend)
        examples = [self.example(c, listed) for c, listed in zip(conversations, choices, strict=True)]
        answers, _ = self.read_examples(examples, progress=progress)
        return [one for one in answers for _ in range(sampling.n)]

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        yield self.generate([conversation], replace(sampling, n=1))[0].text

    def score(self, *_: Any, **__: Any) -> list[list[float]]:
        raise KamertonError("an encoder gives texts no probability", mend="use a causal base")

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]:  # noqa: ARG002
        """Nothing: long texts are read in windows, or cut while they are made into rows."""
        return conversation, False

    def _save_weights(self, folder: Path) -> None:
        super()._save_weights(folder)
        # transformers' pipelines want it beside the model, or beside the adapter
        self.renderer.tokenizer.save_pretrained(folder)

    def prompt_tokens(self, conversation: Conversation) -> int:
        return self._rows.example(self.example(conversation, ("",))).tokens

"""Supervised fine-tuning: the negative log-likelihood of the reference answer given the conversation.

The loss runs over answer tokens and the end token; the prompt carries none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kamerton.base.load import Base
from kamerton.base.task_head import head_of
from kamerton.errors import RecipeError, TaskError
from kamerton.objectives.head import HeadLoss
from kamerton.objectives.next_token import NextToken
from kamerton.rendering import Renderer
from kamerton.tasks.example import Example, Task, answered
from kamerton.training.batches import Batch


class Supervised(NextToken):
    """Next-token loss on the first accepted answer of each example.

    Args:
        renderer: turns examples into tokens and loss weights.
        train: examples to learn from; those whose judged answers are all bad are left out and counted in `notes`.
        validation: examples that choose the best checkpoint; may be empty.
        limit: longest example in tokens; what is longer is cut by the renderer's rules and counted in `notes`.
        rest: of `NextToken`.

    Raises:
        TaskError: no training examples, none with an answer, or one whose answer carries no loss.
    """

    name = "supervised"
    encoder_decoder = True
    encoder = True

    def __init__(
        self,
        renderer: Renderer,
        train: Sequence[Example],
        validation: Sequence[Example],
        *,
        limit: int | None = None,
        **rest: Any,
    ) -> None:
        if not train:
            mend = "give a train split, or use a method that needs none"
            raise TaskError("there are no training examples", mend=mend)
        given, train = len(train), answered(train)
        if not train:
            mend = "add questions that have a good answer"
            raise TaskError(f"none of the {given} training questions has an answer to learn", mend=mend)
        rendered = [renderer.example(e.messages, e.answers[0], limit=limit) for e in train]
        held_out = [renderer.example(e.messages, e.answers[0], limit=limit) for e in answered(validation)]
        empty = [e.id for e, r in zip(train, rendered, strict=True) if not any(r.weights)]
        if empty:
            raise TaskError(
                f"{len(empty)} of {len(train)} training examples have no token that carries loss (first: {empty[0]})",
                mend="check the answer column",
            )
        super().__init__(rendered, held_out, **rest)
        if len(train) < given:
            self.notes.append(
                f"{given - len(train)} of {given} training questions were left out: none of their answers is a good one"
            )
        self._ids = [e.id for e in train]
        for name, rows in (("training", rendered), ("validation", held_out)):
            cut = sum(r.cut for r in rows)
            if cut:
                self.notes.append(f"{cut} of {len(rows)} {name} examples were cut to {limit} tokens")

    def named(self, batch: Batch) -> list[str]:
        """What a microbatch was made of, for people: the ids of its examples."""
        known: dict[tuple[int, ...], str] = {}
        for row, name in zip(self._train, self._ids, strict=True):
            known.setdefault(tuple(row.tokens), f"example {name}")
        return [known.get((*batch.prefix, *row), "an example") for row in batch.rows]

    @staticmethod
    def check(base: Base, task: Task, options: Any) -> None:
        """Refuse a task whose answers an encoder's head does not give, and options of a head that nothing has."""
        if base.model.encoder:
            head_of(task, 0)
        elif options.head is not None:
            message = f"{base.info.architecture} is no encoder and gets no head"
            raise RecipeError(message, where="head", mend="leave it out")

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> Any:
        """For a base, a task and the options of a trained method; on an encoder it is the loss of its head."""
        if base.model.encoder:
            return HeadLoss.build(base, task, options, limit=limit, seed=seed)
        return cls(
            base.renderer, task.train, task.validation, batch_size=options.batch_size, max_tokens=options.max_tokens,
            limit=limit, seed=seed,
        )  # fmt: skip

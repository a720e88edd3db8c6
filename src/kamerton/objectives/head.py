"""What an encoder's head learns from reference answers (Devlin et al. 2019, arXiv 1810.04805, section 4).

| head | loss of one target |
| --- | --- |
| classification, choice | −log p(the right class, or the right choice among those of its question) |
| regression | (number − answer)² |
| span | −½ (log p(start) + log p(end)) over the tokens of a window |
| tagging | −log p(tag) of a word's first token |

It stands in the place of the supervised objective where the base is an encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kamerton.base.encoder import EncoderModel, Head
from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.inference.head_answers import IGNORED, Target, target
from kamerton.inference.head_rows import Encoded, Rows, groups, padded
from kamerton.objectives.head_options import HeadOptions
from kamerton.tasks.example import Example, Task, answered
from kamerton.training.batches import order, portion
from kamerton.training.objective import Loss


@dataclass(frozen=True, slots=True)
class HeadBatch:
    """A microbatch: examples with what the head is to give."""

    encoded: tuple[Encoded, ...]
    targets: tuple[Target, ...]
    count: float

    @property
    def examples(self) -> int:
        return len(self.encoded)

    @property
    def tokens(self) -> int:
        return sum(e.tokens for e in self.encoded)

    def halves(self) -> tuple[HeadBatch, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single example."""
        count = len(self.encoded)
        # only the sum of the parts' counts matters: the step's is what the loss is divided by
        cuts = [(0, count // 2), (count // 2, count)] if count > 1 else []
        return tuple(
            HeadBatch(self.encoded[a:b], self.targets[a:b], self.count * (b - a) / count) for a, b in cuts
        )  # fmt: skip


class HeadLoss:
    """The loss of a head.

    Args:
        head: the head.
        rows: makes rows of examples.
        train: examples to learn from.
        validation: examples that choose the best checkpoint; may be empty.
        batch_size: examples in an optimiser step.
        max_tokens: tokens in one pass, padding included; a step of more is accumulated.
        seed: of the order of examples.
        pad_id: of the tokenizer.

    Raises:
        TaskError: there is nothing that the head could learn.
    """

    name = "supervised"
    dealt: ClassVar[tuple[str, ...]] = ("steps", "validation")

    def __init__(
        self, head: Head, rows: Rows, train: Sequence[Example], validation: Sequence[Example], *, batch_size: int = 16,
        max_tokens: int = 4096, seed: int = 0, pad_id: int = 0,
    ) -> None:  # fmt: skip
        self.head, self.max_tokens, self.seed, self.pad_id = head, max_tokens, seed, pad_id
        self.notes: list[str] = []
        self.accumulation = 1
        self._train = self._read(rows, answered(train), "training")
        self._held_out = self._read(rows, answered(validation), "validation")
        if not self._train:
            raise TaskError(f"no training example has what a {head.kind} head learns", mend="check the answer column")
        self.batch_size = min(batch_size, len(self._train))

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> HeadLoss:
        """For a base whose copies have a head, a task and the options of a trained method."""
        head, tokenizer = base.request["head"], base.renderer.tokenizer
        o = options.head or HeadOptions.model_validate({})
        rows = Rows(tokenizer, head, limit=limit, window=o.window, stride=o.stride)
        return cls(
            head, rows, task.train, task.validation, batch_size=options.batch_size, max_tokens=options.max_tokens,
            seed=seed, pad_id=tokenizer.pad_token_id or 0,
        )  # fmt: skip

    def _read(self, rows: Rows, examples: Sequence[Example], what: str) -> list[tuple[Encoded, Target]]:
        made = [(e, rows.example(e)) for e in examples]
        pairs = [(encoded, target(self.head, e, encoded)) for e, encoded in made]
        kept = [(encoded, wanted) for encoded, wanted in pairs if wanted is not None]
        if len(kept) < len(pairs):
            why = "their answer does not stand in the context" if self.head.kind == "span" else "they have no target"
            self.notes.append(f"{len(pairs) - len(kept)} of {len(pairs)} {what} examples were left out: {why}")
        cut = sum(encoded.cut for encoded, _ in kept)
        if cut:
            self.notes.append(f"{cut} of {len(kept)} {what} examples were cut to {rows.limit or rows.window} tokens")
        return kept

    @property
    def epoch_examples(self) -> int:
        return len(self._train)

    def batches(self, step: int, model: Any) -> Sequence[HeadBatch]:  # noqa: ARG002 - data, not rollouts
        return self._cut([self._train[i] for i in order(step, self.batch_size, len(self._train), self.seed)])

    def validation(self) -> Sequence[HeadBatch]:
        return self._cut(self._held_out)

    def _cut(self, picked: Sequence[tuple[Encoded, Target]]) -> list[HeadBatch]:
        most = portion([encoded.tokens for encoded, _ in picked], self.max_tokens, self.accumulation)
        return [
            HeadBatch(
                tuple(picked[i][0] for i in group), tuple(picked[i][1] for i in group),
                sum(self._size(picked[i][1]) for i in group),
            )
            for group in groups([encoded for encoded, _ in picked], most)
        ]  # fmt: skip

    def _size(self, wanted: Target) -> float:
        """Targets of an example: one, its windows, or its tagged words."""
        if self.head.kind == "span":
            return float(len(wanted))  # type: ignore[arg-type]
        if self.head.kind == "tagging":
            return float(sum(tag != IGNORED for row in wanted for tag in row))  # type: ignore[union-attr]
        return 1.0

    def loss(self, model: EncoderModel, batch: HeadBatch) -> Loss:
        rows = [row for encoded in batch.encoded for row in encoded.rows]
        logits = model.logits(padded(rows, self.pad_id))
        return Loss(total=self._total(logits, batch))

    def _total(self, logits: Tensor, batch: HeadBatch) -> Tensor:
        wanted: Any = batch.targets
        device, kind = logits.device, self.head.kind
        if kind == "classification":
            return cross_entropy(logits, torch.tensor(wanted, device=device), reduction="sum")
        if kind == "regression":
            return ((logits[:, 0] - torch.tensor(wanted, device=device)) ** 2).sum()
        if kind == "choice":
            sizes = [len(encoded.rows) for encoded in batch.encoded]
            parts = zip(logits.split(sizes), wanted, strict=True)
            return torch.stack([one.logsumexp(0) - one[right] for one, right in parts]).sum()
        longest = logits.shape[1]
        if kind == "span":
            places = torch.tensor([pair for windows in wanted for pair in windows], device=device)  # (B, 2)
            real = torch.tensor([len(r.ids) for e in batch.encoded for r in e.rows], device=device)
            padding = torch.arange(longest, device=device) >= real[:, None]
            logits = logits.masked_fill(padding[:, :, None], -float("inf"))
            return cross_entropy(logits, places, reduction="sum") / 2
        tags = [[*row, *([IGNORED] * (longest - len(row)))] for rows in wanted for row in rows]
        return cross_entropy(
            logits.flatten(0, 1), torch.tensor(tags, device=device).flatten(), ignore_index=IGNORED, reduction="sum"
        )  # fmt: skip

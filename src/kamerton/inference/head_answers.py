"""A head's logits → answers, and reference answers → what a head is to give.

A span is chosen over all windows of a context: the pair of start and end with the highest sum of logits, the start not
behind the end, at most `longest` tokens (Devlin et al. 2019, section 4.2). Where a task has questions without an answer
(section 4.3) the window's first token stands for that, and its lowest score over the windows is compared with the best
span's: only if no window has the answer there is none. A word's tag is its first token's, in the window where it has
most context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kamerton.base.encoder import Head
from kamerton.base.task_head import number_of, texts_of
from kamerton.inference.head_rows import Encoded, Row
from kamerton.tasks.example import Example

IGNORED = -100
"""The target of a token whose tag is not asked."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and how sure the head is of it where that is a probability."""

    text: str
    probability: float | None = None

    @property
    def details(self) -> dict[str, Any]:
        return {} if self.probability is None else {"probability": round(self.probability, 4)}


def read(
    head: Head, example: Example, encoded: Encoded, logits: Sequence[Tensor], *, longest: int = 30,
    threshold: float = 0.0,
) -> Said:  # fmt: skip
    """The answer to an example; a classification chooses among those of its choices that are labels, else among all.

    Args:
        logits: for each row of the example (C,), () for a choice, (T, 2) or (T, C).
        longest: tokens of the longest span.
        threshold: by how much "no answer" must score higher than the best span.
    """
    if head.kind == "classification":
        allowed = [head.labels.index(c) for c in example.choices if c in head.labels] or list(range(len(head.labels)))
        p = logits[0][allowed].softmax(0)
        best = int(p.argmax())
        return Said(head.labels[allowed[best]], float(p[best]))
    if head.kind == "regression":
        return Said(f"{float(logits[0].reshape(())):.4f}")
    if head.kind == "choice":
        p = torch.stack(list(logits)).reshape(-1).softmax(0)
        best = int(p.argmax())
        return Said(example.choices[best], float(p[best]))
    if head.kind == "span":
        return Said(_span(head, texts_of(example)[-1], encoded.rows, logits, longest, threshold))
    return Said(" ".join(_tags(head, len(example.words or texts_of(example)[0].split()), encoded.rows, logits)))


def _span(
    head: Head, context: str, rows: Sequence[Row], logits: Sequence[Tensor], longest: int, threshold: float
) -> str:
    best, found, nothing = -float("inf"), head.no_answer or "", float("inf")
    for row, scores in zip(rows, logits, strict=True):
        start, end = scores.unbind(1)  # (T,) each
        nothing = min(nothing, float(start[0] + end[0]))
        inside = torch.tensor([place is not None for place in row.spans], device=scores.device)
        if not bool(inside.any()):
            continue
        pairs = start[:, None] + end[None, :]  # (T, T)
        allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(longest - 1) & inside[:, None] & inside[None, :]
        pairs = pairs.masked_fill(~allowed, -float("inf"))
        score = float(pairs.max())
        if score > best:
            first, last = divmod(int(pairs.argmax()), len(start))
            (begin, _), (_, stop) = row.spans[first] or (0, 0), row.spans[last] or (0, 0)
            best, found = score, context[begin:stop].strip()
    if head.no_answer is not None and nothing - best > threshold:
        return head.no_answer
    return found


def _tags(head: Head, words: int, rows: Sequence[Row], logits: Sequence[Tensor]) -> list[str]:
    """A tag for each word; `O`, or the first tag, for one of which the tokenizer leaves nothing."""
    tags = ["O" if "O" in head.labels else head.labels[0]] * words
    seen: dict[int, int] = {}
    for row, scores in zip(rows, logits, strict=True):
        best = scores.argmax(1).tolist()
        for place, word in enumerate(row.words):
            around = min(place, len(row.ids) - 1 - place)  # tokens of context on the poorer side
            if word >= 0 and around > seen.get(word, -1):
                seen[word], tags[word] = around, head.labels[best[place]]
    return tags


Target = int | float | tuple[tuple[int, int], ...] | tuple[tuple[int, ...], ...]
"""A class or choice, a number, for each window (start, end), or for each window its tokens' tags."""


def target(head: Head, example: Example, encoded: Encoded) -> Target | None:
    """What the head is to give for the first accepted answer; None where it cannot give that."""
    answer = example.answers[0]
    if head.kind == "classification":
        return head.labels.index(answer) if answer in head.labels else None
    if head.kind == "choice":
        return example.choices.index(answer) if answer in example.choices else None
    if head.kind == "regression":
        return number_of(answer)
    if head.kind == "span":
        return _span_targets(head, example, encoded.rows)
    tags = [head.labels.index(tag) if tag in head.labels else IGNORED for tag in answer.split()]
    found = tuple(tuple(IGNORED if word < 0 else tags[word] for word in row.words) for row in encoded.rows)
    return found if any(tag != IGNORED for row in found for tag in row) else None


def _span_targets(head: Head, example: Example, rows: Sequence[Row]) -> tuple[tuple[int, int], ...] | None:
    """(first, last) token of the answer in each window; (0, 0) where it is not whole in it, or there is none."""
    found = next(((s, s + len(a)) for s, a in zip(example.spans, example.answers, strict=False) if s >= 0), None)
    if found is None:
        return tuple((0, 0) for _ in rows) if example.answers[0] == head.no_answer else None
    out = []
    for row in rows:
        first = next((i for i, p in enumerate(row.spans) if p is not None and p[0] <= found[0] < p[1]), None)
        # a token may begin with the space before its word
        last = next((i for i, p in enumerate(row.spans) if p is not None and p[0] < found[1] <= p[1]), None)
        out.append((0, 0) if first is None or last is None else (first, last))
    return tuple(out) if any(pair != (0, 0) for pair in out) else None

"""Rollouts as data: answers with what was computed of them, as checkpoints keep them and as microbatches use them.

Answers to one question share its prompt, so a microbatch is best made of them alone: the prompt then goes through the
model once for all of them. Where prompts are short that makes many small passes, and answers to different questions,
sorted by length, are taken together. Whichever computes less is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kamerton.rendering import Rendered
from kamerton.training.batches import Batch, cut, make_batch, portion
from kamerton.training.packed import as_tensor, from_tensor, rows_from, rows_state

PASS = 64
"""Tokens that a pass costs beside those that it computes."""


@dataclass
class Rollouts:
    """Answers of one round of sampling.

    Attributes:
        rows: prompts and answers, loss on the answers.
        groups: (B,) which question each answer is to.
        counts: (B,) what each answer adds to what the step's summed loss is divided by.
        values: by name (N,) float32 numbers of all answers' tokens, row after row.
        metrics: of the round, to report.
        sampled: tokens that were read (a prompt once) and written for it, those of groups left out included.
        asked: questions that were asked for it.
    """

    rows: list[Rendered]
    groups: np.ndarray
    counts: np.ndarray
    values: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    sampled: int = 0
    asked: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(r.tokens) - r.prompt_length for r in self.rows]

    def split(self, name: str) -> list[Tensor]:
        """Values by answer."""
        return list(self.values[name].split(self.lengths))

    def state(self) -> dict[str, Tensor]:
        """All of it, as tensors."""
        return {
            **rows_state(self.rows),
            "groups": torch.as_tensor(self.groups), "counts": torch.as_tensor(self.counts),
            "about": as_tensor({"metrics": self.metrics, "sampled": self.sampled, "asked": self.asked}),
            **{f"values/{name}": value for name, value in self.values.items()},
        }  # fmt: skip

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Rollouts:
        """What `state` gave."""
        values = {k.removeprefix("values/"): v for k, v in state.items() if k.startswith("values/")}
        groups, counts = state["groups"].cpu().numpy(), state["counts"].cpu().numpy()
        return cls(rows_from(state), groups, counts, values, **from_tensor(state["about"]))


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """A microbatch of answers.

    Attributes:
        batch: prompts and answers.
        values: by name (N,) float32 numbers of its targets.
        count: what its part of the loss is divided by.
        examples: questions asked for it; `tokens`: those of its rows, and those sampled for the step (in its first
            microbatch).
        metrics: of the round, to report as they are.
        per_token: the step's count over the step's tokens: makes a sum over tokens one that is divided by the count.
    """

    batch: Batch
    values: Mapping[str, Tensor]
    count: float
    examples: int
    tokens: int
    metrics: Mapping[str, float]
    per_token: float

    def halves(self) -> tuple[PolicyBatch, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single answer."""
        count = len(self.batch.rows)
        if count < 2:
            return ()
        middle = count // 2
        targets = int((self.batch.owners < middle).sum())
        first, second = self.batch.halves()
        # what is divided by is the step's: only the sum of the parts' counts matters
        part = self.count * middle / count
        return (
            replace(
                self, batch=first, values={k: v[:targets] for k, v in self.values.items()}, count=part,
                tokens=self.tokens - second.tokens,
            ),
            replace(
                self, batch=second, values={k: v[targets:] for k, v in self.values.items()}, count=self.count - part,
                examples=0, tokens=second.tokens,
            ),
        )  # fmt: skip


def policy_batches(
    rollouts: Rollouts, picked: Sequence[int], max_tokens: int, *, fresh: bool = False, parts: int = 1
) -> list[PolicyBatch]:
    """Microbatches of some answers, which make up one optimiser step.

    Args:
        picked: their numbers.
        max_tokens: tokens in one pass.
        fresh: whether what was sampled is counted here.
        parts: about so many microbatches or more.
    """
    split = {name: rollouts.split(name) for name in rollouts.values}
    # where all answers are left out of the loss it is 0, whatever it is divided by
    total = float(rollouts.counts[list(picked)].sum()) or 1.0
    per_token = total / sum(rollouts.lengths[i] for i in picked)
    out: list[PolicyBatch] = []
    rows = [rollouts.rows[i] for i in picked]
    max_tokens = portion([len(r.tokens) for r in rows], max_tokens, parts)
    for group in grouped(rows, rollouts.groups[list(picked)], max_tokens):
        numbers = [picked[i] for i in group]
        batch = make_batch([rollouts.rows[i] for i in numbers])
        values = {name: torch.cat([parts[i] for i in numbers]) for name, parts in split.items()}
        asked, sampled = (rollouts.asked, rollouts.sampled) if fresh and not out else (0, 0)
        out.append(PolicyBatch(
            batch, values, float(rollouts.counts[numbers].sum()), asked, batch.tokens + sampled, rollouts.metrics,
            per_token,
        ))  # fmt: skip
    if not any(b.count for b in out):
        out[0] = replace(out[0], count=total)
    return out


def grouped(rows: Sequence[Rendered], groups: Sequence[int] | np.ndarray, max_tokens: int) -> list[list[int]]:
    """The numbers of the rows of each microbatch: those of a group alone, or all by length, whichever costs less."""
    by_length = cut(rows, max_tokens)
    members: dict[int, list[int]] = {}
    for i, g in enumerate(groups):
        members.setdefault(int(g), []).append(i)
    by_group: list[list[int]] = []
    for own in members.values():
        prompt = min(rows[i].prompt_length for i in own)
        # a prompt is counted once: it is computed once
        part, used = list[int](), prompt
        for i in sorted(own, key=lambda i: (len(rows[i].tokens), rows[i].tokens)):
            size = len(rows[i].tokens) - prompt
            if part and used + size > max_tokens:
                by_group.append(part)
                part, used = [], prompt
            part.append(i)
            used += size
        by_group.append(part)
    return min(by_length, by_group, key=lambda plan: _cost(rows, plan))


def _cost(rows: Sequence[Rendered], plan: Sequence[Sequence[int]]) -> int:
    """Tokens that a plan computes, with what its passes cost."""
    total = 0
    for part in plan:
        batch = make_batch([rows[i] for i in part])
        total += PASS + len(batch.prefix) + sum(map(len, batch.rows))
    return total

"""Reward modelling: a number for an answer, learned from judgements.

A linear head reads the final hidden state of the last token that the template writes of an answer. Two judged answers
are a pair, with loss −log σ(r_w − r_l − m), m their margin where the data have one (Llama 2, arXiv 2307.09288, section
3.2.2). More of them are a ranking, with the negative log-likelihood of Plackett and Luce: the best one is picked from
all, the next from what is left, −Σ_i (r_i − log Σ_{j ≥ i} exp r_j); of answers with equal scores none is held against
the other. An answer alone with a thumb up or down has −log σ(±r), or, of several thumbs, their mixture by the share
that is up. `centre` adds c (Σ r)² over a pair, which fixes the level that pairs leave open (Eisenstein et al. 2023,
arXiv 2312.09244); of k answers, c (2 mean r)².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kamerton.base.encoder_decoder import causal
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.errors import TaskError
from kamerton.inference.reward_model import judged_tokens
from kamerton.rendering import Rendered, Renderer
from kamerton.tasks.example import Example
from kamerton.training.batches import Batch, cut, make_batch, order
from kamerton.training.objective import Loss
from kamerton.tuning.parameterisation import Options


class RewardOptions(Options):
    """How a reward model learns."""

    margin: bool = Field(True, description="use the margins of pairs, where the data have them")
    centre: float = Field(0.0, ge=0, description="weight of the squared sum of a pair's rewards; 0: any level will do")


@dataclass(frozen=True)
class Judgement:
    """Answers to one question as tokens, best first.

    Attributes:
        rows: prompt and answer each.
        scores: of the answers; of one alone, the share of thumbs that are up.
        margin: of a pair, 0 where there is none.
    """

    rows: tuple[Rendered, ...]
    scores: tuple[float, ...]
    margin: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(len(r.tokens) for r in self.rows)


@dataclass(frozen=True)
class Judgements:
    """A microbatch: whole judgements, their rows one after another."""

    batch: Batch
    members: tuple[Judgement, ...]

    @property
    def count(self) -> float:
        return float(len(self.members))

    @property
    def examples(self) -> int:
        return len(self.members)

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    def halves(self) -> tuple[Judgements, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single judgement."""
        count = len(self.members)
        if count < 2:
            return ()
        first, second = self.members[: count // 2], self.members[count // 2 :]
        rows = sum(len(m.rows) for m in first)
        return (
            Judgements(self.batch.part(0, rows), first),
            Judgements(self.batch.part(rows, len(self.batch.rows)), second),
        )


class ScalarHead(nn.Module):
    """(B, H) hidden states → (B,) rewards, in float32. Starts at zero: no opinion."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            rewards: Tensor = self.score(hidden.float())[:, 0]
        return rewards


def pairwise(better: Tensor, worse: Tensor, margin: float = 0.0) -> Tensor:
    """−log σ(r_w − r_l − m)."""
    return -F.logsigmoid(better - worse - margin)


def plackett_luce(rewards: Tensor, scores: Sequence[float]) -> Tensor:
    """() negative log-likelihood of a ranking: (k,) rewards of answers with these scores, in any order."""
    judged = torch.tensor(scores, dtype=torch.float64, device=rewards.device)
    left = (judged[None, :] < judged[:, None]) | torch.eye(len(judged), dtype=torch.bool, device=rewards.device)
    return (torch.where(left, rewards[None, :], -torch.inf).logsumexp(1) - rewards).sum()


def judgement_loss(rewards: Tensor, judged: Judgement, options: RewardOptions) -> Tensor:
    """() loss of one judgement from its answers' (k,) rewards."""
    if len(judged.scores) == 1:
        return -(judged.scores[0] * F.logsigmoid(rewards[0]) + (1 - judged.scores[0]) * F.logsigmoid(-rewards[0]))
    if len(judged.scores) == 2:
        loss = pairwise(rewards[0], rewards[1], judged.margin if options.margin else 0.0)
    else:
        loss = plackett_luce(rewards, judged.scores)
    return loss + options.centre * (2 * rewards.mean()) ** 2 if options.centre else loss


def in_order(rewards: np.ndarray, scores: Sequence[float]) -> tuple[float, int]:
    """How many pairs with different scores have their rewards in that order (ties: half), and of how many."""
    if len(scores) == 1:
        return 0.5 * (1 + float(np.sign(rewards[0] * (scores[0] - 0.5)))), 1
    right, pairs = 0.0, 0
    for i, a in enumerate(scores):
        for j, b in enumerate(scores):
            if a > b:
                right, pairs = right + 0.5 * (1 + float(np.sign(rewards[i] - rewards[j]))), pairs + 1
    return right, pairs


class RewardModeling:
    """Learns a reward from judged answers.

    Args:
        renderer: turns answers into tokens.
        train, validation: examples; those without judgements are left out, and counted.
        head: reads the reward.
        options: of the loss.
        batch_size: judgements in an optimiser step; the answers of one are never parted.
        max_tokens, limit, seed: as in supervised fine-tuning.

    Raises:
        TaskError: nothing was judged.
    """

    name = "reward-modeling"
    dealt: ClassVar[tuple[str, ...]] = ("steps", "validation")

    def __init__(
        self, renderer: Renderer, train: Sequence[Example], validation: Sequence[Example], head: ScalarHead,
        options: RewardOptions, *, batch_size: int, max_tokens: int, limit: int | None, seed: int,
    ) -> None:  # fmt: skip
        self.o, self.head, self.max_tokens, self.seed = options, head, max_tokens, seed
        self._train, self.notes = judgements(renderer, train, limit, "training")
        self._held_out, notes = judgements(renderer, validation, limit, "validation")
        self.notes += notes
        if not self._train:
            raise TaskError(
                "no training example has judged answers",
                mend="give preference data: pairs, ranked or graded answers, or thumbs",
            )
        self.batch_size, self.accumulation = min(batch_size, len(self._train)), 1

    @property
    def epoch_examples(self) -> int:
        return len(self._train)

    def batches(self, step: int, model: LanguageModel) -> Sequence[Judgements]:  # noqa: ARG002 - data, not rollouts
        picked = order(step, self.batch_size, len(self._train), self.seed)
        return judgement_batches([self._train[i] for i in picked], self.max_tokens, self.accumulation)

    def validation(self) -> Sequence[Judgements]:
        return judgement_batches(self._held_out, self.max_tokens, self.accumulation)

    def loss(self, model: LanguageModel, batch: Judgements) -> Loss:
        rewards = self.head(last_hidden(causal(model, "a reward model"), batch.batch))
        parts = rewards.split([len(m.rows) for m in batch.members])
        total = torch.stack([judgement_loss(r, m, self.o) for r, m in zip(parts, batch.members, strict=True)]).sum()
        accuracy = gap = level = 0.0
        for r, m in zip(parts, batch.members, strict=True):
            values = r.detach().cpu().numpy()
            right, pairs = in_order(values, m.scores)
            accuracy += right / pairs
            gap += float(values[0] - values[-1])
            level += float(values.mean())
        return Loss(total, {"accuracy": accuracy, "margin": gap, "reward": level})


def last_hidden(model: CausalModel, batch: Batch) -> Tensor:
    """(B, H) final hidden states of the last token of each row."""
    return model.forward(batch.rows, prefix=batch.prefix).last()


def judgement_batches(judged: Sequence[Judgement], max_tokens: int, parts: int = 1) -> list[Judgements]:
    """Microbatches of at most `max_tokens` tokens (one judgement may exceed it), at least `parts`."""
    whole = [Rendered(tuple(t for r in m.rows for t in r.tokens), ()) for m in judged]
    return [
        Judgements(make_batch([r for m in part for r in m.rows]), part)
        for part in (tuple(judged[i] for i in group) for group in cut(whole, max_tokens, parts=parts))
    ]


def judgements(
    renderer: Renderer, examples: Sequence[Example], limit: int | None, what: str
) -> tuple[list[Judgement], list[str]]:
    """Examples with judged answers as tokens, and notes on what was cut or left out."""
    thumbs = {e.graded[0].score for e in examples if len(e.graded) == 1}
    readable = _readable(thumbs)
    found, without, undecided, cut_rows = [], 0, 0, 0
    for e in examples:
        graded = sorted(e.graded, key=lambda g: -g.score)
        if not graded:
            without += 1
        elif (len(graded) == 1 and not readable) or (len(graded) > 1 and graded[0].score == graded[-1].score):
            undecided += 1
        else:
            rows = tuple(_row(*judged_tokens(renderer, e.messages, g.answer, limit)) for g in graded)
            scores = tuple(g.score for g in graded) if len(graded) > 1 else (_up(graded[0].score, thumbs),)
            found.append(Judgement(rows, scores, (e.margin or 0.0) if len(graded) == 2 else 0.0))
            cut_rows += sum(r.cut for r in rows)
    notes = []
    if without and found:
        notes.append(f"{without} of {len(examples)} {what} examples have no judged answers")
    if undecided:
        notes.append(
            f"{undecided} of {len(examples)} {what} examples were left out: equal scores, or one answer whose score is "
            "neither up nor down (from 0 to 1, or −1 and 1)"
        )
    if cut_rows:
        notes.append(f"{cut_rows} {what} answers were cut to {limit} tokens")
    return found, notes


def _row(tokens: Sequence[int], cut_: bool) -> Rendered:
    """A row of which only the last token counts: what stands before it may be shared."""
    return Rendered(tuple(tokens), (0.0,) * (len(tokens) - 1) + (1.0,), cut_)


def _readable(scores: set[float]) -> bool:
    """Whether scores of answers that stand alone say up or down."""
    return scores <= {-1.0, 1.0} or all(0 <= s <= 1 for s in scores)


def _up(score: float, scores: set[float]) -> float:
    """The share of thumbs that are up."""
    return 0.5 * (1 + score) if scores <= {-1.0, 1.0} else score

"""Direct preference optimisation: the better of two answers is made likelier against the worse one, without a reward.

The policy's own log-ratio to a frozen reference is the reward, r(x, y) = β log π(y|x) / π_ref(y|x), and the loss of a
pair is −log σ(r_w − r_l) (Rafailov et al. 2023, arXiv 2305.18290, equation 7). With label smoothing ε it is
−(1 − ε) log σ(z) − ε log σ(−z), z = r_w − r_l: pairs may be labelled the wrong way round (conservative DPO). `ipo` is
(h − 1 / 2β)², h the difference of log-ratios (Azar et al. 2023, arXiv 2310.12036, equation 17), each taken as the mean
over the answer's tokens, as TRL computes it: a sum would make the loss grow with length.

The reference is the model as it was when the stage began. Its log-probabilities are computed once for each pair and
kept, in groups that never change, so that not a bit depends on the order in which pairs are met. Validated by the loss
on held-out pairs; without any, by the task's metric on answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kamerton import processes
from kamerton.base.load import Base
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.base.output_chunks import OUTPUT_CHUNK
from kamerton.errors import TaskError
from kamerton.objectives.dpo_options import DpoOptions
from kamerton.objectives.judged import Judged, judged, judged_loss
from kamerton.objectives.preference_pairs import PairRows, RowPair, pair_batch, pair_batches, row_pairs
from kamerton.objectives.reference import Reference
from kamerton.tasks.example import Task
from kamerton.tasks.preferences import pairs_of
from kamerton.training.batches import Batch, microbatches, order
from kamerton.training.objective import Loss

WATCHED = OUTPUT_CHUNK
"""Tokens of chosen answers at which the divergence to the reference is measured."""


@dataclass(frozen=True)
class Preferences:
    """A microbatch of pairs with their reference log-probabilities, (P, 2) in nats; `held_out`: of validation."""

    rows: PairRows
    reference: Tensor
    held_out: bool = False

    @property
    def count(self) -> float:
        return self.rows.count

    @property
    def examples(self) -> int:
        return self.rows.examples

    @property
    def tokens(self) -> int:
        return self.rows.tokens

    def halves(self) -> tuple[Preferences, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single pair."""
        count = self.examples
        cuts = [(0, count // 2), (count // 2, count)] if count > 1 else []
        return tuple(replace(self, rows=self.rows.part(a, b), reference=self.reference[a:b]) for a, b in cuts)


@dataclass
class Look:
    """What a validation saw: KL to the reference in nats a token, and sums over held-out pairs."""

    step: float
    kl: float
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # pairs, right, margin, log-ratios of both answers

    def mean(self, name: str) -> float | None:
        """`accuracy`, `margin` (β included), `chosen` or `rejected` (log-ratio, nats an answer); None: no pairs."""
        place = ("accuracy", "margin", "chosen", "rejected").index(name) + 1
        return self.sums[place] / self.sums[0] if self.sums[0] else None


def preference_loss(ratios: Tensor, lengths: Tensor, options: DpoOptions) -> Tensor:
    """(P,) losses of pairs.

    Args:
        ratios: (P, 2) log π(y|x) / π_ref(y|x) in nats, the better answer first.
        lengths: (P, 2) answer tokens.
        options: which loss, with which β.
    """
    if options.loss == "ipo":
        means = ratios / lengths
        return (means[:, 0] - means[:, 1] - 1 / (2 * options.beta)) ** 2
    z = options.beta * (ratios[:, 0] - ratios[:, 1])
    return -(1 - options.label_smoothing) * F.logsigmoid(z) - options.label_smoothing * F.logsigmoid(-z)


def pair_log_probs(model: LanguageModel, rows: PairRows) -> Tensor:
    """(P, 2) log-probabilities of whole answers in nats, end token included, with gradient."""
    log_probs = model.target_log_probs(rows.batch)
    owners = torch.as_tensor(rows.owners, device=log_probs.device)
    return log_probs.new_zeros(2 * len(rows.numbers)).index_add(0, owners, log_probs).view(-1, 2)


class Dpo:
    """The stage that learns from preferences.

    Args:
        base: its renderer writes the rows; answers are judged with it where there are no held-out pairs.
        task: pairs are those of its training examples' graded answers.
        options: of the stage.
        batch_size: pairs in an optimiser step.
        max_tokens, limit, seed: as in supervised fine-tuning; both rows of a pair count.

    Raises:
        TaskError: no training example has a pair of judged answers.
    """

    name = "dpo"
    dealt: ClassVar[tuple[str, ...]] = ("steps",)
    warm_start: ClassVar[str] = "supervised"
    encoder_decoder = True

    def __init__(
        self, base: Base, task: Task, options: DpoOptions, *, batch_size: int, max_tokens: int, limit: int | None,
        seed: int,
    ) -> None:  # fmt: skip
        self.check(base, task, None)
        self.task, self.o, self.seed, self.max_tokens = task, options, seed, max_tokens
        self.renderer, self._device, self._half = base.renderer, base.model.device, base.model.dtype == torch.bfloat16
        self.pairs, self.notes = row_pairs(self.renderer, task.train, limit, "training")
        self.held_out, notes = row_pairs(self.renderer, task.validation, limit, "validation")
        self.notes += notes
        if not self.pairs:
            raise TaskError("the two answers of every training pair are cut to the same tokens", where=task.name,
                            mend="raise limit")  # fmt: skip
        if task.validation and not self.held_out:
            self.notes.append(f"no validation example has a pair: {task.metrics[0]} on answers decides what is kept")
        self.batch_size, self.accumulation = min(batch_size, len(self.pairs)), 1
        self.validates = "the loss on held-out pairs" if self.held_out else task.metrics[0]
        self.looks: list[Look] = []
        self._known: dict[int, Tensor] = {}
        met = order(0, len(self.pairs), len(self.pairs), seed)
        width = max(1, min(self.batch_size, max_tokens // max(p.tokens for p in self.pairs)))
        self._groups = [met[i : i + width] for i in range(0, len(met), width)]
        self._group = {n: i for i, group in enumerate(self._groups) for n in group}
        self._model: LanguageModel | None = None
        self._reference: Reference | None = None

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> Dpo:
        """For a base, a task and the options of a trained method; `options.dpo` are those of this stage."""
        return cls(
            base, task, options.dpo or DpoOptions.model_validate({}), batch_size=options.batch_size,
            max_tokens=options.max_tokens, limit=limit, seed=seed,
        )  # fmt: skip

    @staticmethod
    def check(base: Base, task: Task, options: Any) -> None:  # noqa: ARG004
        """Refuse a task without preferences."""
        if not any(pairs_of(e) for e in task.train):
            raise TaskError(
                "dpo learns from pairs of answers, and no training example has two answers with different scores",
                where=task.name, mend="give preference data (chosen and rejected answers), or objective: supervised",
            )  # fmt: skip

    @property
    def epoch_examples(self) -> int:
        return len(self.pairs)

    def begin(self, model: LanguageModel, module: nn.Module) -> None:
        """The model is at its start, which is the reference from now on."""
        self._model, self._reference = model, Reference(module, self._device)

    # -- batches ------------------------------------------------------------------------------------------------------

    def batches(self, step: int, model: LanguageModel) -> Sequence[Preferences]:
        picked = order(step, self.batch_size, len(self.pairs), self.seed)
        missing = [self._groups[g] for g in dict.fromkeys(self._group[n] for n in picked if n not in self._known)]
        found = self._at_start(model, [pair_batch(self.pairs, numbers) for numbers in missing])
        for numbers, values in zip(missing, found, strict=True):
            self._known |= dict(zip(numbers, values, strict=True))
        parts = pair_batches(self.pairs, picked, self.max_tokens, self.accumulation)
        return [Preferences(rows, torch.stack([self._known[n] for n in rows.numbers])) for rows in parts]

    def validation(self) -> Sequence[Preferences | Judged]:
        if not self.held_out:
            return [Judged(tuple(self.task.validation))] if self.task.validation else []
        assert self._model is not None
        parts = pair_batches(self.held_out, range(len(self.held_out)), self.max_tokens)
        found = self._at_start(self._model, parts)
        return [Preferences(rows, values, held_out=True) for rows, values in zip(parts, found, strict=True)]

    def _at_start(self, model: LanguageModel, parts: Sequence[PairRows]) -> list[Tensor]:
        """(P, 2) log-probabilities of the reference, of each microbatch; dealt out between processes."""
        assert self._reference is not None
        reference = self._reference

        def read(rows: PairRows) -> Tensor:
            with self._mixed(), reference.in_place(self.seed):
                return pair_log_probs(model, rows).cpu()

        return [found.to(self._device) for found in processes.deal(parts, lambda own: [read(rows) for rows in own])]

    def _mixed(self) -> torch.autocast:
        """The reference is computed as the policy is: in bfloat16 where the base is.

        Without the cache of cast weights: the start's weights come and go inside.
        """
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def loss(self, model: LanguageModel, batch: Preferences | Judged) -> Loss:
        if isinstance(batch, Judged):
            return judged_loss(judged(model, self.renderer, self.task, batch), self.task, batch)
        log_probs = pair_log_probs(model, batch.rows)
        ratios = log_probs - batch.reference
        lengths = torch.as_tensor(batch.rows.lengths, device=ratios.device)
        total = preference_loss(ratios, lengths, self.o).sum()
        seen, told = ratios.detach(), log_probs.detach().sum(0)
        margins = self.o.beta * (seen[:, 0] - seen[:, 1])
        right = float((margins > 0).sum() + 0.5 * (margins == 0).sum())  # a tie is a coin's throw
        sums = [batch.count, right, float(margins.sum()), *seen.sum(0).tolist()]
        if batch.held_out and self.looks:
            self.looks[-1].sums = [a + b for a, b in zip(self.looks[-1].sums, sums, strict=True)]
        return Loss(total, {
            "accuracy": sums[1], "margin": sums[2], "chosen": float(told[0]), "rejected": float(told[1]),
            "chosen_ratio": sums[3], "rejected_ratio": sums[4],
        })  # fmt: skip

    # -- what validations see -----------------------------------------------------------------------------------------

    def look(self, step: int, model: LanguageModel) -> None:
        """Measure how far the model is from the reference; the held-out losses that follow add theirs to it."""
        self.looks = [look for look in self.looks if look.step < step]
        self.looks.append(Look(step, self._divergence(model)))

    @torch.no_grad()
    def _divergence(self, model: LanguageModel) -> float:
        """Mean KL(π ‖ π_ref) in nats over the whole vocabulary, at positions of chosen answers; NaN: unknown."""
        if not isinstance(model, CausalModel) or self._reference is None:
            return float("nan")
        total, count = 0.0, 0
        for batch in self._watched:
            with self._mixed():
                now = model.output(model.target_hidden(batch)).float().log_softmax(-1)
                with self._reference.in_place(self.seed):
                    then = model.output(model.target_hidden(batch)).float().log_softmax(-1)
            total += float((now.exp() * (now - then)).sum())
            count += len(now)
        return total / count

    @cached_property
    def _watched(self) -> list[Batch]:
        """The first chosen answers, of held-out pairs where there are any, up to `WATCHED` tokens (at least one)."""
        rows = list(dict.fromkeys(p.chosen for p in self.held_out or self.pairs))
        ends = np.cumsum([len(r.tokens) - r.prompt_length for r in rows])
        return microbatches(rows[: max(1, int((ends <= WATCHED).sum()))], self.max_tokens)

    def state(self) -> dict[str, Tensor]:
        """What the validations saw."""
        rows = [[look.step, look.kl, *look.sums] for look in self.looks]
        return {"looks": torch.tensor(rows, dtype=torch.float64).view(-1, 7)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.looks = [Look(step, kl, sums) for step, kl, *sums in state["looks"].tolist()]


__all__ = ["Dpo", "Look", "PairRows", "Preferences", "RowPair", "pair_log_probs", "preference_loss"]

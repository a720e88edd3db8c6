"""Rejection-sampling fine-tuning: sample K answers, keep the best one, train on it, again and again.

Llama 2 (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3): to each of `queries` questions K answers are sampled
from the model as it is, at one or several temperatures; the one with the highest reward becomes a target of next-token
loss. A round lasts for `passes` passes over the answers that were kept in it; then the next questions are answered by
the model as it has become, until the budget ends. After `rounds` rounds nothing is sampled any more, and training goes
on with the answers of the last one.

Of equal best rewards the answer that was sampled first is kept. Whatever is left out is counted: answers below `least`,
and, with `ties: leave-out`, questions whose answers all have the same reward, which say nothing of what is better. A
round that keeps nothing samples the next questions at once; where a whole pass over the training examples gave nothing,
training goes on with the answers of the round before, and stops with an error where there was none.

What it leaves out: answers of earlier rounds (Llama 2 mixed them in from its fourth round on), and a KL penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kamerton import processes
from kamerton.base.load import Base
from kamerton.base.model import LanguageModel
from kamerton.errors import RewardError, TaskError
from kamerton.evaluation.best_of import best
from kamerton.inference import Sampling
from kamerton.objectives.judged import Judged, judged, judged_loss
from kamerton.objectives.rejection_options import RejectionOptions
from kamerton.objectives.rejection_rounds import Round, round_of, rounds_state
from kamerton.objectives.rollouts import Rollout, sample
from kamerton.rendering import Rendered
from kamerton.rewards import build_reward
from kamerton.rewards.reward import Learning, Reward, checked
from kamerton.tasks.example import Task
from kamerton.training.batches import Rows, microbatches, order
from kamerton.training.objective import Loss, Stateful
from kamerton.training.packed import as_tensor, from_tensor, rows_from, rows_state

_STRIDE = 1_009
"""Between the seeds of rounds; temperatures lie closer."""


@dataclass(frozen=True, slots=True)
class Kept(Rows):
    """A microbatch of kept answers; a round's first one has the tokens of its samples too.

    Attributes:
        sampled: tokens that were read and written for the round.
        reward, best: of the round's answers, in the mean: all of them, the best of each question.
    """

    sampled: int
    reward: float
    best: float

    @property
    def tokens(self) -> int:
        return self.batch.tokens + self.sampled

    def halves(self) -> tuple[Kept, ...]:
        return tuple(
            replace(self, batch=b, sampled=0 if i else self.sampled) for i, b in enumerate(self.batch.halves())
        )


class RejectionSampling:
    """Best of K, round after round.

    Args:
        base: its renderer asks; the reward may read the base.
        task: questions are those of its training examples.
        options: of the stage.
        reward: what says how good an answer is.
        batch_size, max_tokens, limit, seed: as in supervised fine-tuning.

    Attributes:
        rounds: what each round came to.
        looks: (step, distance of the task's first metric from its best value) at validations.
        cut: questions that were cut to fit, as often as they were asked.

    Raises:
        TaskError: no training examples.
    """

    name = "rejection-sampling"
    dealt: ClassVar[tuple[str, ...]] = ("steps",)
    warm_start: ClassVar[str] = "supervised"
    encoder_decoder = True

    def __init__(
        self, base: Base, task: Task, options: RejectionOptions, reward: Reward, *, batch_size: int, max_tokens: int,
        limit: int | None, seed: int,
    ) -> None:  # fmt: skip
        if not task.train:
            raise TaskError("there are no training examples", where=task.name, mend="give a train split")
        self.task, self.o, self.reward, self.seed = task, options, reward, seed
        self.renderer, self.batch_size, self.max_tokens, self._limit = base.renderer, batch_size, max_tokens, limit
        self._device, self._half = base.model.device, base.model.dtype == torch.bfloat16
        self._room = options.max_answer_tokens or task.max_answer_tokens
        closed = sum(bool(e.choices) for e in task.train)
        self.notes: list[str] = [
            f"{closed} of {len(task.train)} training questions have a closed set of answers: what is sampled to them "
            "is said freely, and ranked on validation"
        ] if closed else []  # fmt: skip
        self.rounds: list[Round] = []
        self.looks: list[tuple[int, float]] = []
        self._kept: list[Rendered] = []
        self.cut = 0
        self._begun, self._drawn, self._at, self.accumulation = 0, 0, 0, 1
        self._module: nn.Module | None = None

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> RejectionSampling:
        """For a base, a task and the options of a trained method."""
        own = options.rejection_sampling or RejectionOptions.model_validate({})
        return cls(
            base, task, own, build_reward(options.reward, base, task), batch_size=options.batch_size,
            max_tokens=options.max_tokens, limit=limit, seed=seed,
        )  # fmt: skip

    @property
    def epoch_examples(self) -> int:
        return len(self.task.train)

    def begin(self, model: LanguageModel, module: nn.Module) -> None:  # noqa: ARG002
        """The model is at its start; its module says what is switched off (dropout) while answers are sampled."""
        self._module = module

    # -- batches ------------------------------------------------------------------------------------------------------

    def batches(self, step: int, model: LanguageModel) -> Sequence[Kept]:
        """Microbatches of kept answers; at a round's first step its answers are sampled before."""
        sampled = self._round(step, model) if self._due(step) else 0
        size = min(self.batch_size, len(self._kept))
        picked = order(step - self._begun, size, len(self._kept), self.seed + _STRIDE * len(self.rounds))
        now = self.rounds[-1]
        parts = microbatches([self._kept[i] for i in picked], self.max_tokens, parts=self.accumulation)
        return [Kept(b, sampled if i == 0 else 0, now.mean, now.best[-1]) for i, b in enumerate(parts)]

    def _due(self, step: int) -> bool:
        if not self._kept:
            return True
        size = min(self.batch_size, len(self._kept))
        length = -(-self.o.passes * len(self._kept) // size)  # steps; the last one begins the next pass where it must
        left = self.o.rounds is None or len(self.rounds) < self.o.rounds
        return left and step - self._begun >= length

    def _round(self, step: int, model: LanguageModel) -> int:
        """Sample and keep until something was kept: the tokens that it took."""
        spent = 0
        size = min(self.o.queries, len(self.task.train))
        for _ in range(-(-len(self.task.train) // size)):
            numbers = order(self._drawn, size, len(self.task.train), self.seed + 1)
            kept, tokens = self._answer(step, model, numbers)
            self._drawn += 1
            spent += tokens
            if kept:
                self._kept = kept
                break
        if not self._kept:
            raise RewardError(
                f"no answer was kept in a pass over all {len(self.task.train)} training questions, "
                f"{self.o.samples} answers each (best reward {max(r.best[-1] for r in self.rounds):.3g})",
                where=self.reward.name,
                mend="lower rejection_sampling.least, raise rejection_sampling.samples, or set ties: keep",
            )  # fmt: skip
        self._begun = step
        return spent

    def _answer(self, step: int, model: LanguageModel, numbers: Sequence[int]) -> tuple[list[Rendered], int]:
        """The answers to some questions that are kept, and the tokens that all of them took."""
        queries = [(n, self._asked(model, n)) for n in numbers]
        groups: list[list[Rollout]] = [[] for _ in numbers]
        tokens = 0
        with torch.no_grad(), self._mixed(), self._steady():
            for i, (temperature, count) in enumerate(self.o.parts()):
                plan = Sampling(max_tokens=self._room, temperature=temperature, n=count,
                                seed=self.seed * 1_000_003 + self._drawn * _STRIDE + i)  # fmt: skip
                said = sample(model, self.renderer, queries, plan)
                for place, group in enumerate(groups):
                    group += said[place * count : (place + 1) * count]
                tokens += sum(len(a.said) for a in said)
                tokens += sum(a.rendered.prompt_length for a in said[::count])
        rewards = self._judge(numbers, groups, step)
        kept, below, equal = [], 0, 0
        for group, row in zip(groups, rewards, strict=True):
            top = best(row)
            same = bool((row == row[0]).all())
            equal += same
            if self.o.least is not None and row[top] < self.o.least:
                below += 1
            elif not (same and self.o.ties == "leave-out"):
                kept.append(group[top].rendered)
        questions = [self.task.train[n].messages[-1].content for n in numbers]
        figures = {"kept": len(kept), "below": below, "equal": equal, "tokens": tokens}
        self.rounds.append(round_of(step, questions, groups, rewards, **figures))
        return kept, tokens

    def _judge(self, numbers: Sequence[int], groups: Sequence[Sequence[Rollout]], step: int) -> np.ndarray:
        """(Q, K) rewards of answers; a reward that learns sees them afterwards."""
        examples = [self.task.train[n] for n, group in zip(numbers, groups, strict=True) for _ in group]
        texts = [a.text for group in groups for a in group]
        values = processes.agreed(checked(self.reward.name, examples, texts, self.reward(examples, texts)))
        if isinstance(self.reward, Learning):
            self.reward.observe(examples, texts, step)
        return values.reshape(len(numbers), -1)

    def _asked(self, model: LanguageModel, number: int) -> Any:
        """A question as it is asked, cut where it leaves no room for an answer."""
        limit = self._limit
        if limit is not None and not model.encoder_decoder:  # the two of an encoder–decoder have positions of their own
            limit -= min(self._room, limit // 2)
        room = min((r for r in (model.prompt_limit(self._room), limit) if r is not None), default=None)
        asked, cut = self.renderer.fit(self.task.train[number].messages, room)
        self.cut += cut
        return asked

    def _mixed(self) -> torch.autocast:
        """Sampling computes as the loss does: in bfloat16 where the base is."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False)

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """Answers are those of the model as it is used later, without dropout."""
        dropping = [m for m in self._module.modules() if m.training] if self._module is not None else []
        for module in dropping:
            module.training = False
        try:
            yield
        finally:
            for module in dropping:
                module.training = True

    # -- losses -------------------------------------------------------------------------------------------------------

    def loss(self, model: LanguageModel, batch: Kept | Judged) -> Loss:
        """−Σ w log p of kept answers; of validation examples how far the metric is from its best."""
        if isinstance(batch, Judged):
            statistics = judged(model, self.renderer, self.task, batch)
            found = judged_loss(statistics, self.task, batch)
            self.looks = [
                *((s, v) for s, v in self.looks if s < self._at),
                (self._at, float(found.total) / batch.count),
            ]
            return found
        log_probs = model.target_log_probs(batch.batch)
        weights = torch.as_tensor(batch.batch.weights, device=log_probs.device, dtype=log_probs.dtype)
        metrics = {"reward": batch.reward * batch.count, "best": batch.best * batch.count}
        return Loss(-(weights * log_probs).sum(), metrics)

    def validation(self) -> Sequence[Judged]:
        return [Judged(tuple(self.task.validation))] if self.task.validation else []

    def look(self, step: int, model: LanguageModel) -> None:  # noqa: ARG002
        """A validation comes: remember the step."""
        self._at = step

    # -- state of the stage -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The round's kept answers and where it began, figures of all rounds, and what the reward has learnt."""
        out = {
            **rows_state(self._kept),
            "place": torch.tensor([self._begun, self._drawn, self.cut]),
            "told": as_tensor({"rounds": rounds_state(self.rounds), "looks": self.looks}),
        }
        if isinstance(self.reward, Stateful):
            out |= {f"reward/{k}": v for k, v in self.reward.state().items()}
        return out

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._kept = rows_from(state)
        self._begun, self._drawn, self.cut = state["place"].tolist()
        told = from_tensor(state["told"])
        self.rounds = [Round(**r) for r in told["rounds"]]
        self.looks = [(int(s), float(v)) for s, v in told["looks"]]
        if isinstance(self.reward, Stateful):
            own = {k.removeprefix("reward/"): v for k, v in state.items() if k.startswith("reward/")}
            self.reward.restore(own)

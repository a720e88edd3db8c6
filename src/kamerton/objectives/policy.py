"""What policy gradients (GRPO, PPO) share: answers sampled, rewarded, and their probabilities under three policies.

A round samples answers with `inference/` (a prompt once for all answers to it) and rewards them. Probabilities are
those that the answers were sampled with, softmax(logits / T), under the policy as it is (with gradient), as it was when
it sampled (*old*) and at its start. The start is the trained numbers' own start put in place for a pass, so policy and
reference share all frozen weights; it is read once a round, and only where a divergence is asked for. Where a round is
used for one step only, the old probabilities are the present ones and cost nothing. Dropout is off throughout: a ratio
of probabilities would hold its noise.

An answer that reached the limit has no end token; it is rewarded as it stands. `truncated: mask` takes its tokens out
of the loss, `overlong` makes answers worth less the nearer they come to the limit.

Several processes sample a share of the questions each and exchange the answers, so that rewards and advantages are
those of all answers to a question. What it leaves out: filters (top-p, top-k), which give tokens the probability 0 that
the policy does not.
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
from kamerton.base.encoder_decoder import causal
from kamerton.base.load import Base
from kamerton.base.model import CausalModel
from kamerton.errors import TaskError
from kamerton.evaluation.answering import answer, judge
from kamerton.inference import Engine, Sampling
from kamerton.objectives.judged import Judged, judged_loss
from kamerton.objectives.looks import SAMPLES, Looks
from kamerton.objectives.policy_batches import PolicyBatch, Rollouts, grouped, policy_batches
from kamerton.objectives.policy_options import PolicyOptions
from kamerton.objectives.probabilities import token_log_probs
from kamerton.objectives.rollouts import Rollout, sample
from kamerton.rewards import build_reward
from kamerton.rewards.reward import Learning, Reward, checked, notes_of
from kamerton.tasks.example import Example, Task, answered
from kamerton.training.batches import make_batch, order
from kamerton.training.checkpoint import copied_weights, weights_in_place
from kamerton.training.objective import Loss, Stateful


@dataclass(frozen=True)
class Group:
    """Answers to one question, with what each is worth: its reward, and that less what its length costs."""

    answers: list[Rollout]
    rewards: np.ndarray
    worth: np.ndarray

    @property
    def equal(self) -> bool:
        return bool(np.ptp(self.worth) < 1e-9)


class Policy:
    """Base of policy gradients; a subclass has the formula: what a round's answers teach, and the loss of their tokens.

    Args:
        base: that is trained.
        task: whose training examples are asked.
        options: of the stage.
        reward: says how good answers are.
        max_tokens: tokens in one pass through the model.
        limit: longest prompt with its answer, in tokens.
        seed: of the order of questions and of the answers.

    Raises:
        TaskError: no training examples, or examples with closed choices.
    """

    name: ClassVar[str]
    dealt: ClassVar[tuple[str, ...]] = ("steps",)
    warm_start: ClassVar[str] = "supervised"
    unanswered: ClassVar[bool] = True
    options: ClassVar[type[PolicyOptions]]

    def __init__(
        self, base: Base, task: Task, options: Any, reward: Reward, *, max_tokens: int = 4096, limit: int | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        causal(base.model, self.name)
        self.check(base, task, options)
        self.task, self.o, self.reward, self.seed, self.max_tokens = task, options, reward, seed, max_tokens
        self.renderer, self._limit = base.renderer, limit
        self._device, self._half = base.model.device, base.model.dtype == torch.bfloat16
        self.longest: int = options.max_answer_tokens or task.max_answer_tokens
        self._cut: list[str] = []
        shown = replace(task, train=answered(task.train), validation=answered(task.validation))
        self.looks = Looks(self.renderer, shown, limit=limit, seed=seed, score=None)
        self._rounds = self._asked = self._left = 0
        self.accumulation = 1
        self._rollouts: Rollouts | None = None
        self._start: dict[str, Tensor] = {}
        self._module: nn.Module = nn.Module()
        self._queries = [e.messages for e in task.train]

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:  # noqa: ARG003
        """Refuse a task to which no answer is said."""
        if not task.train:
            raise TaskError("there are no training examples", where=task.name, mend="give a train split")
        closed = next((e.id for e in task.train if e.choices), None)
        if closed is not None:
            raise TaskError(
                f"{cls.name} rewards answers that are said, and choices are ranked (first: {closed})", where=task.name,
                mend="leave the choices out of the task, or use objective: supervised",
            )  # fmt: skip

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> Policy:
        """For a base, a task and the options of a trained method; `options.grpo` (say) are those of this stage."""
        own = getattr(options, cls.name) or cls.options.model_validate({})
        reward = build_reward(options.reward, base, task)
        return cls(base, task, own, reward, max_tokens=options.max_tokens, limit=limit, seed=seed)

    @property
    def notes(self) -> list[str]:
        """What was cut, and what the reward has to say."""
        return [*self._cut, *notes_of(self.reward)]

    @property
    def epoch_examples(self) -> int:
        return len(self.task.train)

    def begin(self, model: CausalModel, module: nn.Module) -> None:
        """The model is at its start: remember it."""
        model.frozen = None  # answers are never met again, so what lower layers gave for them is not kept
        self._module, self._start = module, copied_weights(module)
        rooms = [model.prompt_limit(self.longest), None if self._limit is None else self._limit - self.longest]
        room = min((r for r in rooms if r is not None), default=None)
        fitted = [self.renderer.fit(e.messages, room) for e in self.task.train]
        self._queries = [messages for messages, _ in fitted]
        if cut := sum(c for _, c in fitted):
            self._cut.append(f"{cut} of {len(fitted)} questions were cut to {room} tokens")

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @property
    def group(self) -> int:
        """Answers to each question."""
        return 1

    @property
    def reuse(self) -> int:
        """Optimiser steps on each round of answers."""
        raise NotImplementedError

    @property
    def tries(self) -> int:
        """Times that questions are sampled for a round, at most."""
        return 1

    def teaches(self, group: Group) -> bool:  # noqa: ARG002
        """Whether a group is learned from; others are left out."""
        return True

    def old(self, hidden: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Further numbers of tokens under the policy that sampled them, from (N, H) hidden states."""
        return {}

    @property
    def needs_old(self) -> bool:
        """Whether tokens' old probabilities are computed before the first step."""
        return self.reuse > 1

    @property
    def by_token(self) -> bool:
        """Whether losses are means over all tokens; else over answers, whose tokens' weights make up one (or so)."""
        return True

    def learn(self, rollouts: Rollouts, groups: Sequence[Group]) -> None:
        """Put what the loss needs of each token beside it: `advantages` and `weights` (N,), and whatever else."""
        raise NotImplementedError

    def pick(self, place: int, count: int) -> list[int]:  # noqa: ARG002
        """The numbers of the answers, of so many, that the round's step number `place` is made on."""
        return list(range(count))

    def token_losses(self, now: Tensor, hidden: Tensor, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(N,) losses of tokens from their log-probabilities `now` (N,), and by name (N,) numbers to report."""
        raise NotImplementedError

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Where it is in the questions, the round that is still used, the reward's own state, and the looks."""
        out = {"place": torch.tensor([self._rounds, self._asked, self._left]), "looks": self.looks.state()}
        if self._left and self._rollouts is not None:
            out |= {f"rollouts/{k}": v for k, v in self._rollouts.state().items()}
        if isinstance(self.reward, Stateful):
            out |= {f"reward/{k}": v for k, v in self.reward.state().items()}
        return out

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._rounds, self._asked, self._left = (int(n) for n in state["place"])
        self.looks.restore(state["looks"])
        held = {k.removeprefix("rollouts/"): v for k, v in state.items() if k.startswith("rollouts/")}
        self._rollouts = Rollouts.of(held) if held else None
        if isinstance(self.reward, Stateful):
            self.reward.restore({k.removeprefix("reward/"): v for k, v in state.items() if k.startswith("reward/")})

    # -- a round ------------------------------------------------------------------------------------------------------

    def batches(self, step: int, model: CausalModel) -> Sequence[PolicyBatch]:  # noqa: ARG002
        """Microbatches of the next step; answers are sampled first where the round before is used up."""
        fresh = not self._left
        if fresh:
            with self._at_rest():
                self._rollouts, self._left = self._round(model), self.reuse
        assert self._rollouts is not None
        picked = self.pick(self.reuse - self._left, len(self._rollouts.rows))
        self._left -= 1
        return policy_batches(self._rollouts, picked, self.max_tokens, fresh=fresh, parts=self.accumulation)

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Without dropout and, outside the loss too, computed as the loss is: in bfloat16 where the base is.

        Without the cache of cast weights: the start's weights come and go inside.
        """
        training = self._module.training
        self._module.eval()
        try:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False):
                yield
        finally:
            self._module.train(training)

    def _round(self, model: CausalModel) -> Rollouts:
        asked: list[Group] = []
        kept: list[Group] = []
        for _ in range(self.tries):
            found = self._answered(model)
            asked += found
            kept += [g for g in found if self.teaches(g)]
            if len(kept) >= len(found):
                break
        # where nothing teaches anything the last answers stand for it: the divergence to the start still counts
        kept = kept[: len(found)] or found
        rows = [a.rendered for g in kept for a in g.answers]
        numbers = np.repeat(np.arange(len(kept)), self.group)
        rollouts = Rollouts(
            rows, numbers, np.ones(len(rows)), metrics=self._figures(asked),
            sampled=sum(g.answers[0].rendered.prompt_length + sum(len(a.said) for a in g.answers) for g in asked),
            asked=len(asked),
        )  # fmt: skip
        rollouts.values = self._probabilities(model, rollouts)
        self.learn(rollouts, kept)
        if self.o.truncated == "mask":
            ended = torch.tensor([float(a.ended) for g in kept for a in g.answers])
            rollouts.values["weights"] *= ended.repeat_interleave(torch.tensor(rollouts.lengths))
        if self.by_token:
            rollouts.counts = np.array([float(w.sum()) for w in rollouts.split("weights")])
        self._rounds += 1
        return rollouts

    def _answered(self, model: CausalModel) -> list[Group]:
        """Answers to the next questions, and their rewards."""
        size = len(self.task.train)
        numbers = order(self._asked, self.o.queries, size, self.seed)
        sampling = Sampling(max_tokens=self.longest, temperature=self.o.temperature, n=self.group,
                            seed=self.seed * 7_919 + self._asked)  # fmt: skip
        answers = sample(model, self.renderer, [(n, self._queries[n]) for n in numbers], sampling)
        examples, texts = [self.task.train[a.query] for a in answers], [a.text for a in answers]
        rewards = self._rewarded(examples, texts)
        if isinstance(self.reward, Learning):
            self.reward.observe(examples, texts, self._rounds)
        self._asked += 1
        worth = rewards - np.array([self._too_long(len(a.said)) for a in answers])
        parts = [slice(i, i + self.group) for i in range(0, len(answers), self.group)]
        return [Group(answers[p], rewards[p], worth[p]) for p in parts]

    def _rewarded(self, examples: Sequence[Example], texts: Sequence[str]) -> np.ndarray:
        """(B,) rewards of answers, each one finite."""
        return processes.agreed(checked(self.reward.name, examples, texts, self.reward(examples, texts)))

    def _too_long(self, tokens: int) -> float:
        """DAPO's soft punishment (equation 13): 0 up to `overlong` tokens before the limit, 1 at the limit."""
        return max(0.0, tokens - self.longest + self.o.overlong) / self.o.overlong if self.o.overlong else 0.0

    def _figures(self, groups: Sequence[Group]) -> dict[str, float]:
        """What is reported of all answers of a round, those that are left out included."""
        rewards = np.concatenate([g.rewards for g in groups])
        answers = [a for g in groups for a in g.answers]
        out = {
            "reward": float(rewards.mean()), "reward_spread": float(rewards.std()),
            "length": float(np.mean([len(a.said) for a in answers])),
            "ended": float(np.mean([a.ended for a in answers])),
        }  # fmt: skip
        # a sum of rewards has means of its parts, of the answers that it saw last
        out |= {f"reward: {name}": mean for name, mean in getattr(self.reward, "means", {}).items()}
        if self.group > 1:
            out["group_spread"] = float(np.mean([g.rewards.std() for g in groups]))
            out["equal"] = float(np.mean([g.equal for g in groups]))
        return out

    @torch.no_grad()
    def _probabilities(self, model: CausalModel, rollouts: Rollouts) -> dict[str, Tensor]:
        """By name (N,) of all tokens: log-probabilities `old` and `start`, as far as they are needed."""
        found: dict[str, list[Tensor]] = {}

        def read(name: str, more: bool) -> None:
            for group in grouped(rollouts.rows, rollouts.groups, self.max_tokens):
                batch = make_batch([rollouts.rows[i] for i in group])
                hidden = model.target_hidden(batch)
                values = {name: self._log_probs(model, hidden, batch.targets)[0], **(self.old(hidden) if more else {})}
                for key, value in values.items():
                    parts = value.cpu().split([rollouts.lengths[i] for i in group])
                    rows = found.setdefault(key, [torch.empty(0)] * len(rollouts.rows))
                    for i, part in zip(group, parts, strict=True):
                        rows[i] = part

        if self.needs_old:
            read("old", True)
        if self.o.kl:
            with weights_in_place(self._start, self._module):
                read("start", False)
        return {name: torch.cat(rows) for name, rows in found.items()}

    def _log_probs(self, model: CausalModel, hidden: Tensor, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        return token_log_probs(model, hidden, torch.as_tensor(targets, device=hidden.device), self.o.temperature)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def loss(self, model: CausalModel, batch: PolicyBatch | Judged) -> Loss:
        """Σ w_t ℓ_t over the answers' tokens; of validation, how far greedy answers are from the best."""
        if isinstance(batch, Judged):
            return self._judged(model, batch)
        training = self._module.training
        self._module.eval()
        hidden = model.target_hidden(batch.batch)
        now, entropy = self._log_probs(model, hidden, batch.batch.targets)
        values = {name: value.to(now.device) for name, value in batch.values.items()}
        losses, figures = self.token_losses(now, hidden, replace(batch, values=values))
        self._module.train(training)
        sums = {name: float(x.detach().sum()) * batch.per_token for name, x in (*figures.items(), ("entropy", entropy))}
        return Loss((values["weights"] * losses).sum(), sums | {k: v * batch.count for k, v in batch.metrics.items()})

    @property
    def validates(self) -> str:
        """What decides on validation."""
        return self.task.metrics[0] if self.o.keep_by == "metric" else f"reward {self.reward.name}"

    # -- validation ---------------------------------------------------------------------------------------------------

    def validation(self) -> Sequence[Judged]:
        held_out = answered(self.task.validation) if self.o.keep_by == "metric" else self.task.validation
        return [Judged(tuple(held_out))] if held_out else []

    def _judged(self, model: CausalModel, batch: Judged) -> Loss:
        """Greedy answers under the task's first metric, or under the reward where that decides."""
        examples, metric = batch.held_out, self.task.metrics[0]
        texts = answer(Engine(model, self.renderer), examples, Sampling(max_tokens=self.task.max_answer_tokens)).texts
        if all(e.answers for e in examples):
            statistics = judge(texts, examples, [metric])[metric]
            self.looks.judged(statistics)
            if self.o.keep_by == "metric":
                return judged_loss(statistics, self.task, batch)
        value, best = float(self._rewarded(examples, texts).mean()), self.reward.range[1]
        return Loss(torch.tensor(((best if np.isfinite(best) else 0.0) - value) * batch.count))

    def look(self, step: int, model: CausalModel) -> None:
        """Sample answers for the report, and reward them."""
        with self._at_rest():
            self.looks.take(step, model)
        look = self.looks.taken[-1]
        examples: list[Example] = [e for e in self.looks.examples for _ in range(SAMPLES)]
        rewards = self._rewarded(examples, [text for texts in look.texts for text in texts]).tolist()
        look.scores = [rewards[i : i + SAMPLES] for i in range(0, len(rewards), SAMPLES)]

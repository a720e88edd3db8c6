"""Adversarial training: what is trained is moved by a discriminator that tells reference answers from the model's.

It goes on from a supervised start, and two paths carry the signal. On *references*, at each position of a reference
answer, the discriminator scores every next token and the model descends −Σ_v π(v|c) d(c, v): an exact expectation,
without sampling, at about the cost of a supervised step. On *rollouts*, answers are sampled and every token is rewarded
(policy gradient with group-relative advantages, `rollouts.py`). Beside it stand the supervised loss as an anchor and
the KL divergence to the start. With the correction of adversarial inverse reinforcement learning (Fu et al. 2018, arXiv
1710.11248) what is judged is d − log π/π_ref, so that d estimates log p_data/π_ref.

The discriminators are in `rewards/`: `factored.py`, `attention.py`, and how two of them judge each other's part in
`discriminator.py`. Which checkpoint is kept is decided by the task's metric on answers
to validation examples, and the supervised start is a candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kamerton.base.encoder_decoder import causal
from kamerton.base.load import Base
from kamerton.base.model import CausalModel
from kamerton.base.output_chunks import OUTPUT_CHUNK
from kamerton.errors import TaskError
from kamerton.inference import Sampling
from kamerton.inference.features import Features
from kamerton.inference.sampling import draws
from kamerton.objectives.adversarial_batches import References, Sampled
from kamerton.objectives.adversarial_options import AdversarialOptions
from kamerton.objectives.judged import Judged, judged, judged_loss
from kamerton.objectives.looks import Looks, mean_scores
from kamerton.objectives.policy_batches import grouped
from kamerton.objectives.rollouts import Rollout, advantages, sample
from kamerton.rendering import Rendered
from kamerton.rewards.attention import Attentive
from kamerton.rewards.discriminator import Control, CrossFitted
from kamerton.rewards.factored import Factored, normed
from kamerton.rewards.pairs import Pairs, Tokens, tensors, tokens_of
from kamerton.tasks.example import Task
from kamerton.training.batches import cut, make_batch, order
from kamerton.training.checkpoint import copied_weights, weights_in_place
from kamerton.training.objective import Loss

DISCRIMINATORS: dict[str, type[Factored]] = {"factored": Factored, "attention": Attentive}

FEWEST = 8
"""References below which two discriminators would have too little to learn from; then there is one."""


WARMUP_PASSES = 4
"""How often the discriminators' warm-up goes over the references that it reads."""


class Adversarial:
    """The adversarial stage behind a supervised one.

    Args:
        base: frozen; its states are the discriminator's features.
        task: references are the first accepted answers of its training examples.
        options: of the stage.
        batch_size, max_tokens, limit, seed: as in supervised fine-tuning.

    Raises:
        TaskError: no training examples, or references that are all equal.
    """

    name = "adversarial"
    warm_start: ClassVar[str] = "supervised"
    layout: ClassVar[str] = "pairs by row"
    diverged: ClassVar[str] = " or adversarial.discriminator_rate"

    def __init__(
        self, base: Base, task: Task, options: AdversarialOptions, *, batch_size: int, max_tokens: int,
        limit: int | None, seed: int,
    ) -> None:  # fmt: skip
        causal(base.model, "adversarial training")
        if not task.train:
            raise TaskError("there are no training examples", mend="give a train split")
        self.task, self.o, self.seed, self.max_tokens = task, options, seed, max_tokens
        self.renderer, self._device, self._half = base.renderer, base.model.device, base.model.dtype == torch.bfloat16
        self._rendered = [self.renderer.example(e.messages, e.answers[0], limit=limit) for e in task.train]
        if len({r.tokens[r.prompt_length :] for r in self._rendered}) == 1 and len(self._rendered) > 1:
            raise TaskError(
                "all reference answers are equal, so there is nothing to tell apart", mend="use objective: supervised"
            )
        self.batch_size = min(batch_size, len(self._rendered))
        self.notes: list[str] = []
        folds = 2 if options.cross_fitting and len(self._rendered) >= FEWEST else 1
        if folds == 1 and options.cross_fitting:
            self.notes.append(
                f"{len(self._rendered)} references are too few for two discriminators (from {FEWEST}): one judges what "
                "it was trained on"
            )
        if options.path != "references" and max(len(r.tokens) - r.prompt_length for r in self._rendered) <= 2:
            self.notes.append("answers are one token long: path references says all that rollouts can")
        # halves that do not depend on the order of the file's rows
        self._fold = np.random.default_rng([seed, 17]).permutation(len(self._rendered)) % folds
        self._features = Features(base.model.hf)
        embedding = normed(base.model.hf.get_input_embeddings().weight.detach())  # once for all judges
        torch.manual_seed(seed + 1)
        kind = DISCRIMINATORS[options.discriminator]
        self.judges = CrossFitted(
            [kind(self._features.width, embedding, options.rank).to(embedding.device) for _ in range(folds)],
            learning_rate=options.discriminator_rate, decay=options.decay, penalty=options.penalty,
            replay=options.replay,
            control=Control(low=options.low, high=options.high, steps=options.steps, fixed=not options.controller),
        )  # fmt: skip
        self.looks = Looks(
            self.renderer, task, limit=limit, seed=seed, score=self._mean_scores if options.weight else None
        )
        self._start: dict[int, Tensor] = {}
        met = order(0, len(self._rendered), len(self._rendered), seed)
        width = max(1, min(self.batch_size, max_tokens // max(len(r.tokens) for r in self._rendered)))
        self._groups = [met[i : i + width] for i in range(0, len(met), width)]
        self._group = {n: i for i, group in enumerate(self._groups) for n in group}
        self._warm: dict[str, Tensor] = {}
        self._module: nn.Module | None = None
        self._pending: list[Pairs] = []
        self._ready = False

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> Adversarial:
        """For a base, a task and the options of a trained method; `options.adversarial` are those of this stage."""
        return cls(
            base, task, options.adversarial or AdversarialOptions.model_validate({}), batch_size=options.batch_size,
            max_tokens=options.max_tokens, limit=limit, seed=seed,
        )  # fmt: skip

    @property
    def epoch_examples(self) -> int:
        return len(self._rendered)

    def begin(self, model: CausalModel, module: nn.Module) -> None:
        """The model is at its supervised start: remember it."""
        self._module, self._warm = module, copied_weights(module)
        self._features.count_for(model)

    # -- state of the stage -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The discriminators, their optimisers and what they are still to see."""
        out = {f"judges/{k}": v for k, v in self.judges.state().items()}
        for i, pairs in enumerate(self._pending):
            out |= tensors(pairs.real, f"pending/{i}/real") | tensors(pairs.fake, f"pending/{i}/fake")
        out["ready"] = torch.tensor([float(self._ready)])
        out["looks"] = self.looks.state()
        return out

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.judges.restore({k.removeprefix("judges/"): v for k, v in state.items() if k.startswith("judges/")})
        numbers = sorted({int(k.split("/")[1]) for k in state if k.startswith("pending/")})
        sides = [(tokens_of(state, f"pending/{i}/real"), tokens_of(state, f"pending/{i}/fake")) for i in numbers]
        self._pending = [Pairs(real, fake) for real, fake in sides]
        self._ready = bool(state["ready"].item())
        if "looks" in state:  # a checkpoint of an older version has none
            self.looks.restore(state["looks"])

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        """The model as it was at its supervised start, for as long as this lasts."""
        assert self._module is not None
        dropping = [m for m in self._module.modules() if isinstance(m, nn.Dropout) and m.training]
        try:
            for module in dropping:
                module.eval()
            with weights_in_place(self._warm, self._module):
                yield
        finally:
            for module in dropping:
                module.train()

    # -- batches ------------------------------------------------------------------------------------------------------

    def batches(self, step: int, model: CausalModel) -> Sequence[Any]:
        """Train the discriminators as far as that is due, then references and, where asked for, rollouts."""
        with self._mixed():
            return self._batches(step, model)

    def _mixed(self) -> torch.autocast:
        """What is computed outside the loss is computed as the loss is: in bfloat16 where the base is.

        Without the cache of cast weights: the start's weights come and go inside.
        """
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False)

    def _batches(self, step: int, model: CausalModel) -> Sequence[Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if not self._ready and self.o.weight:
            distinct = max(1, self.o.warmup_steps // WARMUP_PASSES)
            for i in range(self.o.warmup_steps):
                # the batches of the first steps, again and again: what is read of them will be needed there
                self._collect(model, self._references(i % distinct, model), generator)
                self._teach(1, generator)
            self._ready = True
        if self.o.weight and self._pending:
            self._teach(self.judges.control.due(), generator)
        self._generator = generator
        references: list[Any] = self._references(step, model)
        if self.o.path == "references" or not self.o.weight:
            return references
        total = sum(b.count for b in references)
        return [*references, *self._rollouts(step, model, total)]

    def _references(self, step: int, model: CausalModel) -> list[References]:
        picked = order(step, self.batch_size, len(self._rendered), self.seed)
        rows = [self._rendered[i] for i in picked]
        out = []
        for group in cut(rows, self.max_tokens):
            numbers = [picked[i] for i in group]
            batch = make_batch([rows[i] for i in group])
            features = self._read([self._rendered[n] for n in numbers])
            counts = [len(f) for f in features]
            own = torch.as_tensor(np.repeat(np.arange(len(numbers)), counts), device=features[0].device)
            owners, start = np.repeat(numbers, counts), self._started(numbers, model)
            out.append(References(batch, owners, torch.cat(features), own, start))
        return out

    def _read(self, rows: Sequence[Rendered]) -> list[Tensor]:
        """For each row (targets, F): features of the positions before its targets."""
        found = self._features([r.tokens for r in rows], [r.prompt_length - 1 for r in rows], alone=True)
        return [f[: r.target_count] for f, r in zip(found, rows, strict=True)]

    def _read_groups(self, answers: Sequence[Rollout]) -> list[Tensor]:
        """As `_read`, of sampled answers, those to one query together: its tokens are read once for all of them."""
        out = []
        for _, group in itertools.groupby(answers, key=lambda a: a.query):
            rows = [a.rendered for a in group]
            found = self._features.once([r.tokens for r in rows], [r.prompt_length - 1 for r in rows])
            out += [f[: r.target_count] for f, r in zip(found, rows, strict=True)]
        return out

    @torch.no_grad()
    def _started(self, numbers: Sequence[int], model: CausalModel) -> Tensor:
        """(N, H) hidden states of the supervised start at examples' targets, kept between epochs."""
        if not self._needs_start:
            return torch.zeros(sum(self._rendered[n].target_count for n in numbers), 0)
        if any(n not in self._start for n in numbers):
            with self._at_start():
                # in groups that never change, as the first pass meets them: not a bit depends on which are asked for
                for group in dict.fromkeys(self._group[n] for n in numbers if n not in self._start):
                    rows = [self._rendered[n] for n in self._groups[group]]
                    hidden = model.target_hidden(make_batch(rows)).split([r.target_count for r in rows])
                    self._start |= dict(zip(self._groups[group], hidden, strict=True))
        return torch.cat([self._start[n] for n in numbers])

    @property
    def _needs_start(self) -> bool:
        return self.o.weight > 0 and (self.o.kl > 0 or self.o.correction)

    # -- the discriminators -------------------------------------------------------------------------------------------

    def _teach(self, steps: int, generator: torch.Generator) -> None:
        with torch.autocast(self._device.type, enabled=False):  # their backward pass in float32 too
            for pairs in self._pending:
                self.judges.train(pairs, steps, generator)
        self._pending = []

    @torch.no_grad()
    def _collect(self, model: CausalModel, references: Sequence[References], generator: torch.Generator) -> None:
        """What the model would say in place of each reference token, for the discriminators."""
        for r in references:
            log_start = self._start_log_probs(model, r.start)
            # before the first step the model is its supervised start, whose states are kept
            log_p = log_start
            if log_p is None:
                log_p = model.output(model.target_hidden(r.batch)).float().log_softmax(-1)
            real = torch.as_tensor(r.batch.targets, device=log_p.device)
            self._see(r, [self._substitutes(real, log_p, log_start, generator)])

    def _substitutes(
        self, real: Tensor, log_p: Tensor, log_start: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, S) tokens drawn from the model in place of references', and offsets: (N, 1) of those and of these."""
        noise = torch.rand(len(log_p), self.o.substitutes, generator=generator, dtype=torch.float64).numpy()
        fake = draws(log_p, noise)

        def offset(tokens: Tensor) -> Tensor:
            if log_start is None or not self.o.correction:
                return torch.zeros(tokens.shape, device=log_p.device)
            return (log_p - log_start).gather(1, tokens)

        return fake, offset(real[:, None]), offset(fake)

    def _see(self, r: References, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Put what was drawn at positions of references, part by part, beside the references' own tokens."""
        fake, of_real, of_fake = (torch.cat(column) for column in zip(*parts, strict=True))
        real = torch.as_tensor(r.batch.targets, device=fake.device)
        folds = torch.as_tensor(self._fold[r.owners], device=fake.device)
        own = Tokens(r.features, real, folds, r.rows, of_real[:, 0])
        # every draw is an answer of its own behind the same question
        draws = [replace(own, tokens=fake[:, i], offset=of_fake[:, i]) for i in range(fake.shape[1])]
        self._told(Pairs(own, reduce(Tokens.and_then, draws)))

    def _told(self, pairs: Pairs) -> None:
        """Judge pairs now, and learn from them before the next step."""
        self._pending.append(pairs)
        self.judges.watch(pairs)

    def _start_log_probs(self, model: CausalModel, start: Tensor) -> Tensor | None:
        """(N, V) log-probabilities of the supervised start, from its hidden states."""
        if start.shape[1] == 0:
            return None
        with torch.no_grad():
            return model.output(start).float().log_softmax(-1)

    # -- losses -------------------------------------------------------------------------------------------------------

    def loss(self, model: CausalModel, batch: References | Sampled | Judged) -> Loss:
        if isinstance(batch, Judged):
            statistics = judged(model, self.renderer, self.task, batch)
            self.looks.judged(statistics)
            return judged_loss(statistics, self.task, batch)
        if isinstance(batch, Sampled):
            return self._policy(model, batch)
        hidden = model.target_hidden(batch.batch)
        total, sums = hidden.new_zeros((), dtype=torch.float32), dict[str, float]()
        contexts, seen = self._contexts(batch), list[tuple[Tensor, Tensor, Tensor]]()
        for i in range(0, len(hidden), OUTPUT_CHUNK):
            part = slice(i, i + OUTPUT_CHUNK)
            value, metrics = self._positions(model, batch, hidden[part], part, contexts, seen)
            total = total + value
            for name, x in metrics.items():
                sums[name] = sums.get(name, 0.0) + x
        if seen:
            self._see(batch, seen)
        c = self.judges.control
        for name, x in (("auc", c.held_out), ("trained_auc", c.trained), ("trust", c.trust), ("scale", c.scale)):
            sums[name] = x * batch.count
        return Loss(total, sums)

    def _contexts(self, r: References) -> Tensor | None:
        """(N, rank) contexts of references to their judges; None where they have no say. A row is never cut here."""
        if not self.o.weight or self.o.path == "rollouts":
            return None
        return self.judges.contexts(r.features, r.rows, torch.as_tensor(self._fold[r.owners], device=r.features.device))

    def _positions(
        self, model: CausalModel, r: References, hidden: Tensor, part: slice, contexts: Tensor | None,
        seen: list[tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The summed loss at some positions of references, and sums to report; `seen` gets the model's own tokens."""
        log_p = model.output(hidden).float().log_softmax(-1)  # (N, V)
        targets = torch.as_tensor(r.batch.targets[part], device=hidden.device)
        weights = torch.as_tensor(r.batch.weights[part], device=hidden.device, dtype=log_p.dtype)
        supervised = -(weights * log_p.gather(1, targets[:, None])[:, 0]).sum()
        total = self.o.anchor * supervised
        metrics = {"supervised": float(supervised.detach())}
        if not self.o.weight:
            return total, metrics
        log_start = self._start_log_probs(model, r.start[part])
        p = log_p.exp()
        if log_start is not None:
            kl = (p * (log_p - log_start)).sum()
            metrics["kl"] = float(kl.detach())
            # with the correction d is the reward of a problem that has this divergence in it
            total = total + (self.o.kl + (self._signal if self.o.correction else 0.0)) * kl
        metrics["entropy"] = float(-(p * log_p).sum().detach())
        if contexts is not None:
            folds = torch.as_tensor(self._fold[r.owners[part]], device=hidden.device)
            reward = (p * self.judges.vocabulary(contexts[part], folds)).sum()
            metrics["reward"] = float(reward.detach())
            total = total - self._signal * reward
            seen.append(self._substitutes(targets, log_p.detach(), log_start, self._generator))
        return total, metrics

    @property
    def _signal(self) -> float:
        """The weight of the adversarial signal, as far as it can be trusted."""
        return self.o.weight * self.judges.control.trust

    def _rollouts(self, step: int, model: CausalModel, count: float) -> list[Sampled]:
        """Sampled answers with advantages; the discriminators will see their tokens."""
        numbers = order(step, min(self.o.queries, len(self._rendered)), len(self._rendered), self.seed + 1)
        queries = []
        for n in numbers:
            room = model.prompt_limit(self.task.max_answer_tokens)
            queries.append((n, self.renderer.fit(self.task.train[n].messages, room)[0]))
        sampling = Sampling(max_tokens=self.task.max_answer_tokens, temperature=self.o.temperature, n=self.o.group,
                            seed=self.seed * 7_919 + step)  # fmt: skip
        answers = sample(model, self.renderer, queries, sampling)
        features = self._read_groups(answers)
        rewards = []
        for a, f in zip(answers, features, strict=True):
            tokens = torch.as_tensor(a.rendered.tokens[a.rendered.prompt_length :], device=f.device)
            rewards.append(self.judges.tokens(f, tokens, int(self._fold[a.query])).cpu().numpy())
        gains = advantages(rewards, [a.query for a in answers], self.o.discount)
        self._see_answers(model, numbers, answers, features)
        total = sum(map(len, gains))
        out = []
        for group in grouped([a.rendered for a in answers], [a.query for a in answers], self.max_tokens):
            batch = make_batch([answers[i].rendered for i in group])
            out.append(Sampled(batch, np.concatenate([gains[i] for i in group]), count / total))
        return out

    def _see_answers(
        self, model: CausalModel, numbers: Sequence[int], answers: Sequence[Rollout], features: Sequence[Tensor]
    ) -> None:
        rows = [self._rendered[n] for n in numbers]
        real = self._tokens(model, numbers, rows, self._read(rows))
        self._told(
            Pairs(real, self._tokens(model, [a.query for a in answers], [a.rendered for a in answers], features))
        )

    def _tokens(
        self, model: CausalModel, owners: Sequence[int], rows: Sequence[Rendered], features: Sequence[Tensor]
    ) -> Tokens:
        """The answers' tokens of rows, in their contexts."""
        device, counts = features[0].device, [r.target_count for r in rows]
        said = [r.tokens[r.prompt_length :][:n] for r, n in zip(rows, counts, strict=True)]
        return Tokens(
            torch.cat(list(features)), torch.as_tensor(np.concatenate(said), device=device),
            torch.as_tensor(np.repeat(self._fold[list(owners)], counts), device=device),
            torch.as_tensor(np.repeat(np.arange(len(rows)), counts), device=device), self._ratio(model, rows, owners),
        )  # fmt: skip

    @torch.no_grad()
    def _ratio(self, model: CausalModel, rows: Sequence[Rendered], owners: Sequence[int]) -> Tensor:
        """(N,) log π/π_ref of the answers' tokens, row after row; zeros without the correction."""
        if not self.o.correction:
            return torch.zeros(sum(r.target_count for r in rows), device=model.device)
        groups = grouped(rows, owners, self.max_tokens)
        batches = [make_batch([rows[i] for i in group]) for group in groups]
        ratios = [model.target_log_probs(batch) for batch in batches]
        with self._at_start():
            ratios = [now - model.target_log_probs(batch) for now, batch in zip(ratios, batches, strict=True)]
        of_row: dict[int, Tensor] = {}
        for group, ratio in zip(groups, ratios, strict=True):
            of_row |= dict(zip(group, ratio.split([rows[i].target_count for i in group]), strict=True))
        return torch.cat([of_row[i] for i in range(len(rows))])

    def _policy(self, model: CausalModel, batch: Sampled) -> Loss:
        """−Σ A_t log π(a_t), in the units of the references' sum."""
        log_p = model.target_log_probs(batch.batch)
        gains = torch.as_tensor(batch.advantages, device=log_p.device, dtype=log_p.dtype)
        return Loss(-self._signal * batch.share * (gains * log_p).sum())

    # -- validation ---------------------------------------------------------------------------------------------------

    def validation(self) -> Sequence[Judged]:
        return [Judged(tuple(self.task.validation))] if self.task.validation else []

    def look(self, step: int, model: CausalModel) -> None:
        """Sample answers for the report."""
        with self._mixed():
            self.looks.take(step, model)

    def _mean_scores(self, rows: Sequence[Rendered], owners: Sequence[int | None]) -> list[float]:
        folds = [None if n is None else int(self._fold[n]) for n in owners]
        return mean_scores(self.judges, self._read(rows), rows, folds)

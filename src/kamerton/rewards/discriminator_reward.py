"""`discriminator`: a discriminator that is trained beside the policy, on real answers against its rollouts.

Generative adversarial reward modelling (arXiv 2305.06176): no labels of preference are needed, only
reference answers. The features are the frozen base's, and two discriminators judge only what they never saw
(`discriminator.py`), as in adversarial training; what is new is that any objective that learns from rewards can use it.
The reward of an answer is the mean of its tokens' scores, times how far they can be trusted: 0 until references and
rollouts are told apart.

What it leaves out: the correction by log π/π_ref (a reward knows no policy). An answer that was cut at the limit is
read as if it had ended there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kamerton.base.encoder_decoder import causal
from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.inference.features import Features
from kamerton.rendering import Rendered
from kamerton.rewards.attention import Attentive
from kamerton.rewards.discriminator import Control, CrossFitted
from kamerton.rewards.factored import Factored, normed
from kamerton.rewards.pairs import Pairs, Tokens
from kamerton.rewards.reward import checked
from kamerton.tasks.example import Example, Task
from kamerton.tuning.parameterisation import Options

KINDS: dict[str, type[Factored]] = {"factored": Factored, "attention": Attentive}

FEWEST = 8
"""References below which two discriminators would have too little to learn from; then there is one."""


class DiscriminatorOptions(Options):
    """Options of `discriminator`."""

    aggregate: Literal["mean", "sum"] = Field("mean", description="of the scores of an answer's tokens")
    clip: float = Field(4.0, gt=0, description="a token's score, a log-odds, is kept within plus and minus this")
    discriminator: Literal["factored", "attention"] = Field(
        "factored", description="what it reads of an answer: the position before a token, or all before it by attention"
    )
    rank: int = Field(32, gt=0, description="width of the discriminator's product")
    rate: float = Field(3e-3, gt=0, description="learning rate of the discriminators")
    decay: float = Field(0.01, ge=0, description="weight decay of the discriminators")
    penalty: float = Field(0.01, ge=0, description="R1 and R2 penalty on the discriminators")
    replay: int = Field(4096, ge=0, description="tokens of older answers that each discriminator keeps")
    steps: float = Field(2.0, gt=0, description="steps of the discriminators on each batch of answers, at first")
    controller: bool = Field(
        True, description="more steps where the held-out AUC is below the band, fewer above; and the reward is scaled "
        "by trust",
    )  # fmt: skip
    low: float = Field(0.6, gt=0.5, lt=1, description="lower edge of the band of the held-out AUC")
    high: float = Field(0.9, gt=0.5, le=1, description="upper edge of the band")
    seed: int = Field(0, ge=0, description="of its weights and of what it draws")


class DiscriminatorReward:
    """How much an answer looks like a reference.

    Raises:
        TaskError: no references, or references that are all equal.
        RecipeError: the base is an encoder–decoder.
    """

    summary: ClassVar[str] = "a discriminator trained beside the policy: how much an answer looks like a reference"
    options: ClassVar[type[Options]] = DiscriminatorOptions
    short: ClassVar[str] = ""
    name = "discriminator"
    range = (-np.inf, np.inf)

    def __init__(self, base: Base, task: Task, options: DiscriminatorOptions) -> None:
        self.check(base, task, options)
        self.o, self._renderer, self._limit = options, base.renderer, base.model.max_length
        self.folds = 2 if len(task.train) >= FEWEST else 1
        # halves that do not depend on the order of the file's rows
        halves = np.random.default_rng([options.seed, 17]).permutation(len(task.train)) % self.folds
        self._fold = {example.id: int(fold) for example, fold in zip(task.train, halves, strict=True)}
        self._features, self._references = Features(base.model.hf, limit=0), Features(base.model.hf)
        self._last: dict[Rendered, Tensor] = {}
        self._before = 0.0  # operations before the run was stopped and resumed
        embedding, kind = normed(base.model.hf.get_input_embeddings().weight.detach()), KINDS[options.discriminator]
        with torch.random.fork_rng(devices=[]):  # whoever draws next draws what it would have drawn
            torch.manual_seed(options.seed + 1)
            judges = [
                kind(self._features.width, embedding, options.rank).to(embedding.device) for _ in range(self.folds)
            ]
        self.judges = CrossFitted(
            judges, learning_rate=options.rate, decay=options.decay, penalty=options.penalty, replay=options.replay,
            control=Control(low=options.low, high=options.high, steps=options.steps, fixed=not options.controller),
        )  # fmt: skip

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> DiscriminatorReward:
        return cls(base, task, options)

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:  # noqa: ARG003
        causal(base.model, "a discriminator")
        if not task.train:
            raise TaskError("there are no training examples", where=task.name, mend="give a train split")
        if len({example.answers[0] for example in task.train}) == 1 and len(task.train) > 1:
            what = "all reference answers are equal, so there is nothing to tell apart"
            raise TaskError(what, where=task.name, mend="use reward: exact")

    @property
    def flops(self) -> float:
        """Operations so far of the base that is read; the discriminators themselves are small beside it."""
        return self._before + self._features.flops + self._references.flops

    @property
    def notes(self) -> list[str]:
        c, one = self.judges.control, "" if self.folds == 2 else " (one judges what it was trained on)"
        return [
            f"discriminator: at the end references and answers are told apart with a held-out AUC of {c.held_out:.2f}"
            f"{one}, on what it was trained on {c.trained:.2f}; its reward counts {c.trust:.0%}"
        ]

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        rows = self._rows(examples, answers)
        values, self._last = [], dict(zip(rows, self._read(rows), strict=True))
        for example, row in zip(examples, rows, strict=True):
            features = self._last[row]
            said = torch.as_tensor(row.tokens[row.prompt_length :], device=features.device)
            scores = self.judges.tokens(features, said, self._fold_of(example)).double()
            scores = scores.clamp(-self.o.clip, self.o.clip)  # one unheard-of token would drown all others
            values.append(float(scores.mean() if self.o.aggregate == "mean" else scores.sum()))
        return checked(self.name, examples, answers, np.array(values) * self.judges.control.trust)

    def observe(self, examples: Sequence[Example], answers: Sequence[str], step: int) -> None:
        """Learn to tell these answers from the references of their questions."""
        if not answers:
            return
        generator = torch.Generator().manual_seed(self.o.seed * 1_000_003 + step)
        asked = list({example.id: example for example in examples}.values())
        real, fake = self._rows(asked, [e.answers[0] for e in asked]), self._rows(examples, answers)
        known = self._references([r.tokens for r in real], [r.prompt_length - 1 for r in real], alone=True)
        with torch.inference_mode(False), torch.enable_grad():
            of_real = self._tokens(asked, real, [f[: _said(r)] for f, r in zip(known, real, strict=True)])
            pairs = Pairs(of_real, self._tokens(examples, fake, self._read(fake)))
            self.judges.watch(pairs)
            with torch.autocast(pairs.real.features.device.type, enabled=False):
                self.judges.train(pairs, self.judges.control.due(), generator)

    def state(self) -> dict[str, Tensor]:
        """The discriminators, their optimisers, the answers that they keep, and the balance."""
        return {**self.judges.state(), "flops": torch.tensor(self.flops, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._before = float(state["flops"])
        self.judges.restore({name: value for name, value in state.items() if name != "flops"})
        self._last = {}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _rows(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Rendered]:
        return [
            self._renderer.example(e.messages, a, limit=self._limit) for e, a in zip(examples, answers, strict=True)
        ]

    def _read(self, rows: Sequence[Rendered]) -> list[Tensor]:
        """For each row (targets, F): features of the positions before its targets; the last call's are remembered."""
        new = list(dict.fromkeys(row for row in rows if row not in self._last))
        read = self._features([r.tokens for r in new], [r.prompt_length - 1 for r in new], alone=True)
        found = {row: features[: _said(row)] for row, features in zip(new, read, strict=True)}
        return [found[row] if row in found else self._last[row] for row in rows]

    def _fold_of(self, example: Example) -> int:
        """The half of a question; one that is no training example has one by its name."""
        return self._fold.get(example.id, zlib.crc32(example.id.encode()) % self.folds)

    def _tokens(self, examples: Sequence[Example], rows: Sequence[Rendered], features: Sequence[Tensor]) -> Tokens:
        device, counts = features[0].device, list(map(_said, rows))
        folds = np.repeat([self._fold_of(e) for e in examples], counts)
        said = np.concatenate([r.tokens[r.prompt_length :] for r in rows])
        return Tokens(
            torch.cat(list(features)), torch.as_tensor(said, device=device), torch.as_tensor(folds, device=device),
            torch.as_tensor(np.repeat(np.arange(len(rows)), counts), device=device),
            torch.zeros(sum(counts), device=device),
        )  # fmt: skip


def _said(row: Rendered) -> int:
    """Tokens of a row's answer."""
    return len(row.tokens) - row.prompt_length

"""Two discriminators that judge only what they never saw, and how much their word counts.

What gives the scores is in `factored.py` and `attention.py`. On small data a discriminator memorises the references,
and its score then says nothing about new answers. `CrossFitted` trains one on each half of them, and a reference is
judged only by the one that never saw it (cross-fitting, Chernozhukov et al. 2018). How well references and answers are
told apart there, the held-out AUC, decides how much is trained and how much the signal is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kamerton.errors import KamertonError
from kamerton.rewards.factored import Factored
from kamerton.rewards.pairs import Pairs, Tokens, tensors, tokens_of


def auc(real: Tensor, fake: Tensor) -> float:
    """The chance that a reference's token scores above the model's: (N,) and (M,) scores → 0 … 1; 0.5 for none."""
    if not len(real) or not len(fake):
        return 0.5
    both = torch.cat([real, fake])
    values, inverse, counts = both.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    ranks = (ends - (counts - 1) / 2)[inverse]  # mean rank among equals, from 1
    n, m = len(real), len(fake)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m)) if len(values) > 1 else 0.5


SCALES = torch.linspace(0, 1, 41, dtype=torch.float64)
"""Factors of the scores that are weighed against each other, from none to all."""


@dataclass
class Control:
    """Keeps two players on equal terms by the held-out AUC.

    Below the band the discriminator is trained more, above it less. At chance level its signal is noise: `trust` falls
    from 1 at the band's lower edge to 0 at an AUC of 0.5.

    Attributes:
        low, high: the band.
        steps: discriminator steps for each step of the generator; 1 / steps where it is below 1.
        fixed: keep `steps` and full trust whatever the AUC.
    """

    low: float = 0.6
    high: float = 0.9
    steps: float = 1.0
    fixed: bool = False
    most: float = 8.0
    least: float = 0.125
    held_out: float = 0.5
    trained: float = 0.5
    owed: float = 0.0
    losses: Tensor | None = None

    def saw(self, held_out: float, trained: float, keep: float = 0.9) -> None:
        """Take note of AUCs on references that the judge never saw, and on those that it was trained on."""
        self.held_out = keep * self.held_out + (1 - keep) * held_out
        self.trained = keep * self.trained + (1 - keep) * trained
        if self.fixed:
            return
        if self.held_out < self.low:
            self.steps = min(self.most, self.steps * 1.25)
        elif self.held_out > self.high:
            self.steps = max(self.least, self.steps / 1.25)

    @property
    def trust(self) -> float:
        if self.fixed:
            return 1.0
        return min(1.0, max(0.0, (self.held_out - 0.5) / (self.low - 0.5)))

    def judged(self, losses: Tensor, keep: float = 0.9) -> None:
        """Take note of the held-out loss with the scores at each of `SCALES`."""
        self.losses = losses if self.losses is None else keep * self.losses + (1 - keep) * losses

    @property
    def scale(self) -> float:
        """What scores are multiplied by to be the log-odds that they are taken for; 0 where they say nothing.

        A discriminator that has seen little is surer than it should be. The factor is the one with the least held-out
        loss (temperature scaling, Guo et al. 2017, arXiv 1706.04599).
        """
        if self.fixed or self.losses is None:
            return 1.0
        return float(SCALES[int(self.losses.argmin())])

    def due(self) -> int:
        """Discriminator steps that are due before the next step of the generator."""
        self.owed += self.steps
        whole = int(self.owed)
        self.owed -= whole
        return whole


@dataclass
class CrossFitted:
    """Discriminators, each trained on its part of the references, and judge of the others.

    Args:
        judges: two of them, or one that judges what it was trained on (where the references are too few).
        learning_rate, decay: of Adam (β₁ = 0.5) and of its weights.
        penalty: weight of R1 and R2.
        replay: answers of earlier steps that are mixed in, and references of earlier steps for further steps, each in
            tokens for each judge.
    """

    judges: list[Factored]
    learning_rate: float = 1e-3
    decay: float = 0.01
    penalty: float = 0.01
    replay: int = 4096
    control: Control = field(default_factory=Control)

    def __post_init__(self) -> None:
        self._optimisers = [
            torch.optim.AdamW(j.parameters(), lr=self.learning_rate, betas=(0.5, 0.999), weight_decay=self.decay)
            for j in self.judges
        ]
        self._old: list[Tokens | None] = [None for _ in self.judges]
        self._met: list[Tokens | None] = [None for _ in self.judges]

    @property
    def folds(self) -> int:
        return len(self.judges)

    def judge_of(self, fold: int) -> Factored:
        """The discriminator that never saw this half of the references."""
        return self.judges[(fold + 1) % self.folds]

    @torch.no_grad()
    def contexts(self, features: Tensor, rows: Tensor, folds: Tensor) -> Tensor:
        """(N, F) features of whole rows, (N,) rows and folds → (N, rank) contexts, to those who never saw them."""
        out = features.new_empty(len(features), self.judges[0].context.out_features)
        for fold in range(self.folds):
            mine = folds == fold
            out[mine] = self.judge_of(fold).contexts(features[mine], rows[mine])
        return out

    def vocabulary(self, contexts: Tensor, folds: Tensor) -> Tensor:
        """(N, rank) contexts and (N,) folds → (N, V) scores by those who never saw them, as large as is borne out."""
        contexts = contexts * self.control.scale  # scores are linear in them, and they are few
        out = contexts.new_empty(len(contexts), len(self.judges[0].embedding))
        for fold in range(self.folds):
            mine = folds == fold
            out[mine] = self.judge_of(fold).of_vocabulary(contexts[mine])
        return out

    @torch.no_grad()
    def tokens(self, features: Tensor, tokens: Tensor, fold: int) -> Tensor:
        """(N,) scores of the tokens of one answer by the one who never saw its half."""
        judge = self.judge_of(fold)
        return judge.of_tokens(judge.contexts(features, torch.zeros(len(tokens), device=features.device)), tokens)

    @torch.no_grad()
    def watch(self, pairs: Pairs) -> None:
        """Tell the controller how well references and answers are told apart."""
        held_out: list[float] = []
        trained: list[float] = []
        losses: list[Tensor] = []
        for fold in range(self.folds):
            half = pairs.half(fold)
            if len(half.real) and len(half.fake):
                own, other = self.judges[fold], self.judge_of(fold)
                unseen = _scores(other, half.real), _scores(other, half.fake)
                held_out.append(auc(*unseen))
                trained.append(auc(_scores(own, half.real), _scores(own, half.fake)))
                losses.append(scaled_losses(*unseen, half.real.offset, half.fake.offset))
        if held_out:
            self.control.saw(sum(held_out) / len(held_out), sum(trained) / len(trained))
            self.control.judged(torch.stack(losses).mean(0))

    def train(self, pairs: Pairs, steps: int, generator: torch.Generator) -> float:
        """Some steps on new pairs and older answers.

        The first step is on the new references; further ones are on references that were met lately, the new ones
        among them: many steps on a handful of references learn these by heart and forget all others.

        Returns:
            The mean loss in nats a token, 0 where no step was made.
        """
        total, made = 0.0, 0
        for fold, judge in enumerate(self.judges):
            new = pairs.half(fold)
            if not len(new.real):
                continue
            if not judge.whole_rows:
                new = new.loose()
            old, met = self._old[fold], self._met[fold]
            known = new.real if met is None else met.and_then(new.real)
            # as many rows of both sides are kept, so that both are of the same contexts: else these tell them apart
            few = new.fake.drawn(new.real.row_count(), generator) if self.replay else new.fake
            said = few if old is None else old.and_then(few)
            for number in range(steps):
                real, fake = new.real, new.fake
                if number and met is not None and len(met):
                    real = known.drawn(real.row_count(), generator)
                    fake = said.drawn(2 * fake.row_count(), generator)
                elif old is not None and len(old):
                    fake = fake.and_then(old.drawn(fake.row_count(), generator))
                loss = self._step(fold, Pairs(real, fake), generator)
                total, made = total + loss, made + 1
            self._old[fold] = said.at_most(self.replay, generator)
            # from a generator of its own: what is drawn for the answers depends on the answers alone
            chance = torch.Generator().manual_seed(int(known.tokens.sum()))
            self._met[fold] = known.at_most(self.replay, chance)
        return total / max(made, 1)

    def _step(self, fold: int, pairs: Pairs, generator: torch.Generator) -> float:
        judge, optimiser = self.judges[fold], self._optimisers[fold]
        real, fake = (_scores(judge, side) - side.offset for side in (pairs.real, pairs.fake))
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        if not bool(torch.isfinite(loss)):
            raise KamertonError(
                "the discriminator's loss is not a number; the weights of the last checkpoint are kept",
                mend="lower adversarial.discriminator_rate",
            )
        whole = loss
        for side in (pairs.real, pairs.fake) if self.penalty else ():
            whole = whole + self.penalty * judge.penalty(side.features, side.tokens, side.rows, generator)
        optimiser.zero_grad()
        whole.backward()
        optimiser.step()
        judge.changed()
        return float(loss.detach()) / 2

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what happens next, as tensors."""
        out: dict[str, Tensor] = {}
        for i, (judge, optimiser, old) in enumerate(zip(self.judges, self._optimisers, self._old, strict=True)):
            for name, parameter in judge.named_parameters():
                out[f"{i}/weight/{name}"] = parameter.detach().clone()
                for key, value in optimiser.state.get(parameter, {}).items():
                    out[f"{i}/{key}/{name}"] = torch.as_tensor(value).clone()
            out |= tensors(old, f"{i}/old") if old is not None else {}
            met = self._met[i]
            out |= tensors(met, f"{i}/met") if met is not None else {}
        c = self.control
        out["control"] = torch.tensor([c.steps, c.held_out, c.trained, c.owed], dtype=torch.float64)
        if c.losses is not None:
            out["losses"] = c.losses.clone()
        return out

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for i, (judge, optimiser) in enumerate(zip(self.judges, self._optimisers, strict=True)):
            for name, parameter in judge.named_parameters():
                parameter.copy_(state[f"{i}/weight/{name}"])
                moments = {k: state[f"{i}/{k}/{name}"] for k in ("step", "exp_avg", "exp_avg_sq")
                           if f"{i}/{k}/{name}" in state}  # fmt: skip
                if moments:
                    optimiser.state[parameter] = moments
            if f"{i}/old/tokens" in state:
                self._old[i] = tokens_of(state, f"{i}/old")
            if f"{i}/met/tokens" in state:  # a checkpoint of an older version has none
                self._met[i] = tokens_of(state, f"{i}/met")
            judge.changed()
        c = self.control
        c.steps, c.held_out, c.trained, c.owed = state["control"].tolist()
        c.losses = state["losses"].clone() if "losses" in state else None


def _scores(judge: Factored, tokens: Tokens) -> Tensor:
    """(N,) a judge's scores of tokens in their contexts."""
    return judge.of_tokens(judge.contexts(tokens.features, tokens.rows), tokens.tokens)


def scaled_losses(real: Tensor, fake: Tensor, real_offset: Tensor, fake_offset: Tensor) -> Tensor:
    """(S,) the loss in nats a token, on the CPU, of (N,) and (M,) scores at each of `SCALES`, less their offsets."""
    sides = ((real, real_offset), (fake, fake_offset))
    odds = [SCALES[:, None] * scores.cpu().double() - offset.cpu().double() for scores, offset in sides]
    return (F.softplus(-odds[0]).mean(1) + F.softplus(odds[1]).mean(1)) / 2

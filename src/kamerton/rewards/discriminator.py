"""A discriminator that scores every next token at once, and two of them that judge only what they never saw.

`Factored` gives a score to a token v in a context c, d(c, v) = ⟨A f(c), B e(v)⟩: f(c) are features of the context under
a frozen model, e(v) the token's embedding there. It learns to tell the tokens of reference answers from those that the
model puts in their place (Goodfellow et al. 2014, arXiv 1406.2661, on single tokens as in adversarial imitation: Ho &
Ermon 2016, arXiv 1606.03476). Being factored, it scores a whole vocabulary for the price of a thin output layer.

On small data a discriminator memorises the references, and its score then says nothing about new answers. `CrossFitted`
trains one on each half of them, and a reference is judged only by the one that never saw it (cross-fitting,
Chernozhukov et al. 2018). How well references and answers are told apart there, the held-out AUC, decides how much is
trained and how much the signal is trusted.

What it leaves out: a discriminator that attends over the whole answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kamerton.errors import KamertonError


class Factored(nn.Module):
    """d(c, v) = ⟨A f(c), B e(v)⟩.

    Args:
        features: width of a context's features.
        embedding: (V, H) embeddings of the vocabulary (`normed`); several discriminators share one.
        rank: width of the product.
    """

    embedding: Tensor

    def __init__(self, features: int, embedding: Tensor, rank: int = 32) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding, persistent=False)
        self.context = nn.Linear(features, rank, bias=False)
        self.token = nn.Linear(embedding.shape[1], rank, bias=False)
        for layer in (self.context, self.token):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5 * rank**-0.25)
        self._tokens: Tensor | None = None

    def of_tokens(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(N, F) features of contexts and (N,) token ids → (N,) scores, with gradient."""
        with torch.autocast(features.device.type, enabled=False):  # float32, also where the model computes in bfloat16
            return (self.context(features) * self.token(self.embedding[tokens])).sum(-1)

    @torch.no_grad()
    def of_vocabulary(self, features: Tensor) -> Tensor:
        """(N, F) → (N, V) scores of all tokens, without gradient."""
        with torch.autocast(features.device.type, enabled=False):
            if self._tokens is None:
                self._tokens = self.token(self.embedding)  # (V, r)
            return self.context(features) @ self._tokens.T

    def penalty(self, tokens: Tensor) -> Tensor:
        """() mean squared norm of the score's gradient by the context's features (R1 and R2, Mescheder et al. 2018).

        The score is linear in the features, so the gradient is Aᵀ B e(v), whatever the context.
        """
        with torch.autocast(self.embedding.device.type, enabled=False):
            return (self.token(self.embedding[tokens]) @ self.context.weight).pow(2).sum(-1).mean()

    def changed(self) -> None:
        """Forget what was computed from the weights."""
        self._tokens = None


def normed(embedding: Tensor) -> Tensor:
    """(V, H) embeddings, each brought to mean 0 and variance 1 over its numbers, in float32."""
    return F.layer_norm(embedding.float(), embedding.shape[-1:])


@dataclass(frozen=True)
class Pairs:
    """Tokens of references beside tokens of the model.

    Attributes:
        features: (N, F) of contexts; of the reference's, and in `fake_features` of the model's own where they differ.
        real: (N,) tokens of references; `fake`: (M,) tokens of the model.
        folds: (N,) the half of the references that each belongs to; `fake_folds`: (M,).
        real_offset, fake_offset: what is taken off the scores before they are judged: log π/π_ref of the token.
    """

    features: Tensor
    real: Tensor
    folds: Tensor
    fake_features: Tensor
    fake: Tensor
    fake_folds: Tensor
    real_offset: Tensor
    fake_offset: Tensor

    def half(self, fold: int) -> Pairs:
        """Those of one half of the references."""
        a, b = self.folds == fold, self.fake_folds == fold
        return Pairs(self.features[a], self.real[a], self.folds[a], self.fake_features[b], self.fake[b],
                     self.fake_folds[b], self.real_offset[a], self.fake_offset[b])  # fmt: skip


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
        replay: answers of earlier steps that are mixed in, in tokens for each judge.
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
        self._old: list[Pairs | None] = [None for _ in self.judges]

    @property
    def folds(self) -> int:
        return len(self.judges)

    def judge_of(self, fold: int) -> Factored:
        """The discriminator that never saw this half of the references."""
        return self.judges[(fold + 1) % self.folds]

    def vocabulary(self, features: Tensor, folds: Tensor) -> Tensor:
        """(N, F) features and (N,) folds → (N, V) scores by those who never saw them."""
        out = features.new_empty(len(features), len(self.judges[0].embedding))
        for fold in range(self.folds):
            mine = folds == fold
            out[mine] = self.judge_of(fold).of_vocabulary(features[mine])
        return out

    @torch.no_grad()
    def tokens(self, features: Tensor, tokens: Tensor, folds: Tensor) -> Tensor:
        """(N,) scores of tokens by those who never saw their half."""
        out = features.new_zeros(len(features))
        for fold in range(self.folds):
            mine = folds == fold
            out[mine] = self.judge_of(fold).of_tokens(features[mine], tokens[mine])
        return out

    @torch.no_grad()
    def watch(self, pairs: Pairs) -> None:
        """Tell the controller how well references and answers are told apart."""
        held_out: list[float] = []
        trained: list[float] = []
        for fold in range(self.folds):
            half = pairs.half(fold)
            if len(half.real) and len(half.fake):
                for judge, found in ((self.judge_of(fold), held_out), (self.judges[fold], trained)):
                    found.append(auc(judge.of_tokens(half.features, half.real),
                                     judge.of_tokens(half.fake_features, half.fake)))  # fmt: skip
        if held_out:
            self.control.saw(sum(held_out) / len(held_out), sum(trained) / len(trained))

    def train(self, pairs: Pairs, steps: int, generator: torch.Generator) -> float:
        """Some steps on new pairs and older answers; returns the mean loss in nats a token (0 where none was made)."""
        total, made = 0.0, 0
        for fold in range(self.folds):
            new = pairs.half(fold)
            if not len(new.real):
                continue
            old = self._old[fold]
            for _ in range(steps):
                mixed = new if old is None else _mix(new, old, generator)
                loss = self._step(fold, mixed)
                total, made = total + loss, made + 1
            self._old[fold] = new if old is None else _remember(old, new, self.replay, generator)
        return total / max(made, 1)

    def _step(self, fold: int, pairs: Pairs) -> float:
        judge, optimiser = self.judges[fold], self._optimisers[fold]
        real = judge.of_tokens(pairs.features, pairs.real) - pairs.real_offset
        fake = judge.of_tokens(pairs.fake_features, pairs.fake) - pairs.fake_offset
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        if not bool(torch.isfinite(loss)):
            raise KamertonError(
                "the discriminator's loss is not a number; the weights of the last checkpoint are kept",
                mend="lower adversarial.discriminator_rate",
            )
        whole = loss + self.penalty * (judge.penalty(pairs.real) + judge.penalty(pairs.fake))
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
            for name in Pairs.__dataclass_fields__ if old is not None else ():
                out[f"{i}/old/{name}"] = getattr(old, name)
        c = self.control
        out["control"] = torch.tensor([c.steps, c.held_out, c.trained, c.owed], dtype=torch.float64)
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
            if f"{i}/old/real" in state:
                self._old[i] = Pairs(**{n: state[f"{i}/old/{n}"] for n in Pairs.__dataclass_fields__})
            judge.changed()
        c = self.control
        c.steps, c.held_out, c.trained, c.owed = state["control"].tolist()


def _mix(new: Pairs, old: Pairs, generator: torch.Generator) -> Pairs:
    """New references and answers with as many answers of earlier steps."""
    index = torch.randint(len(old.fake), (len(new.fake),), generator=generator)
    return Pairs(
        new.features, new.real, new.folds, torch.cat([new.fake_features, old.fake_features[index]]),
        torch.cat([new.fake, old.fake[index]]), torch.cat([new.fake_folds, old.fake_folds[index]]), new.real_offset,
        torch.cat([new.fake_offset, old.fake_offset[index]]),
    )  # fmt: skip


def _remember(old: Pairs, new: Pairs, limit: int, generator: torch.Generator) -> Pairs:
    """The answers of earlier steps with the new ones among them, at most `limit`; which are dropped is chance."""
    features, fake = torch.cat([old.fake_features, new.fake_features]), torch.cat([old.fake, new.fake])
    folds, offset = torch.cat([old.fake_folds, new.fake_folds]), torch.cat([old.fake_offset, new.fake_offset])
    if len(fake) > limit:
        index = torch.randperm(len(fake), generator=generator)[:limit]
        features, fake, folds, offset = features[index], fake[index], folds[index], offset[index]
    none = new.features[:0], new.real[:0], new.folds[:0], new.real_offset[:0]
    return Pairs(none[0], none[1], none[2], features, fake, folds, none[3], offset)

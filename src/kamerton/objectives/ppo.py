"""PPO on answers, as InstructGPT and Llama 2-Chat use it (Ouyang et al. 2022, arXiv 2203.02155; Touvron et al. 2023,
arXiv 2307.09288, section 3.2.3), with the clipped surrogate of Schulman et al. 2017 (arXiv 1707.06347).

A token's reward is −β (log π_old − log π_start); to the last token's the answer's own reward is added. Advantages are
those of GAE over the values of a small head on the model's hidden states, which is trained beside it and not kept. Each
round of answers is gone over several times in minibatches; one minibatch is one optimiser step. β is fixed, or follows
a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kamerton.objectives.advantage import generalised_advantages, whitened
from kamerton.objectives.policy import Group, Policy
from kamerton.objectives.policy_batches import PolicyBatch, Rollouts
from kamerton.objectives.ppo_options import PpoOptions
from kamerton.objectives.surrogate import clipped_surrogate


class ValueHead(nn.Module):
    """(N, H) hidden states → (N,) values, through one hidden layer; 0 everywhere at first. Float32 throughout.

    A language model's last states differ most in what the next token is, and little in what matters here. So each
    feature is first put to mean 0 and spread 1, as measured on the first states that are met.
    """

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.learning_rate = rate
        self.centre, self.spread = torch.zeros(width), torch.zeros(width)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            if not bool(self.spread.any()):
                self.centre, self.spread = hidden.detach().mean(0), hidden.detach().std(0, unbiased=False) + 1e-4
            features = (hidden - self.centre.to(hidden.device)) / self.spread.to(hidden.device)
            return self.out(torch.nn.functional.gelu(self.inner(features)))[:, 0]


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (V_clipped − R)²), V_clipped at most `clip` away from the old value; all (N,)."""
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)


@dataclass
class Coefficient:
    """β of the KL penalty: fixed, or moved towards a target divergence by at most a fiftieth a round."""

    value: float
    target: float | None

    def saw(self, kl: float) -> None:
        """A round whose answers are `kl` nats from the start."""
        if self.target is not None:
            self.value *= 1 + 0.1 * float(np.clip(kl / self.target - 1, -0.2, 0.2))


@dataclass
class Spread:
    """The running standard deviation of all rewards so far (Welford's sums)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def saw(self, rewards: np.ndarray) -> None:
        """Take a round's rewards in."""
        n = len(rewards)
        apart = float(rewards.mean()) - self.mean
        total = self.count + n
        self.squares += float(((rewards - rewards.mean()) ** 2).sum()) + apart**2 * self.count * n / total
        self.mean += apart * n / total
        self.count = total

    @property
    def value(self) -> float:
        """1 while all rewards were equal."""
        spread = (self.squares / self.count) ** 0.5 if self.count else 0.0
        return spread if spread > 1e-8 else 1.0


class Ppo(Policy):
    """Proximal policy optimisation with a value head."""

    name = "ppo"
    options = PpoOptions
    diverged: ClassVar[str] = " or ppo.value_rate"
    o: PpoOptions
    needs_old = True

    def __init__(self, base: Any, *args: Any, **rest: Any) -> None:
        super().__init__(base, *args, **rest)
        torch.manual_seed(self.seed + 1)
        self.extra = ValueHead(base.model.hf.get_output_embeddings().in_features, self.o.value_rate).to(self._device)
        self.beta, self.spread = Coefficient(self.o.kl, self.o.kl_target), Spread()

    @property
    def reuse(self) -> int:
        return self.o.epochs * self.o.minibatches

    def pick(self, place: int, count: int) -> list[int]:
        epoch, part = divmod(place, self.o.minibatches)
        mixed = np.random.default_rng([self.seed, self._rounds, epoch]).permutation(count)
        return np.sort(np.array_split(mixed, self.o.minibatches)[part]).tolist()

    def old(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"value": self.extra(hidden)}

    def learn(self, rollouts: Rollouts, groups: Sequence[Group]) -> None:
        o, values = self.o, [v.double().numpy() for v in rollouts.split("value")]
        rewards = self._rewards(rollouts, np.concatenate([g.worth for g in groups]))
        gains = [generalised_advantages(r, v, o.discount, o.trace) for r, v in zip(rewards, values, strict=True)]
        advantages, value = np.concatenate(gains), np.concatenate(values)
        returns = advantages + value
        spread = float(returns.var())
        rollouts.metrics["explained"] = 1 - float(advantages.var()) / spread if spread > 1e-12 else 0.0
        rollouts.values |= {
            "advantages": torch.as_tensor(whitened(advantages) if o.whiten else advantages, dtype=torch.float32),
            "returns": torch.as_tensor(returns, dtype=torch.float32), "weights": torch.ones(len(returns)),
        }  # fmt: skip

    def _rewards(self, rollouts: Rollouts, worth: np.ndarray) -> list[np.ndarray]:
        """(T_i,) rewards of each answer's tokens, from (B,) rewards of answers; moves what follows them."""
        self.spread.saw(worth)
        out = [np.zeros(n) for n in rollouts.lengths]
        if self.o.kl:
            rollouts.values["moved"] = rollouts.values["old"] - rollouts.values["start"]
            moved = [m.double().numpy() for m in rollouts.split("moved")]
            out = [-self.beta.value * m for m in moved]
            rollouts.metrics |= {"kl": float(np.concatenate(moved).mean()), "kl_coefficient": self.beta.value}
            self.beta.saw(float(np.mean([m.sum() for m in moved])))
        for rewards, score in zip(out, worth / self.spread.value if self.o.normalise else worth, strict=True):
            rewards[-1] += score
        return out

    def token_losses(self, now: Tensor, hidden: Tensor, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        v = batch.values
        losses, clipped = clipped_surrogate(now - v["old"], v["advantages"], self.o.clip, self.o.clip)
        values = self.extra(hidden if self.o.value_trunk else hidden.detach())
        off = value_loss(values, v["value"], v["returns"], self.o.value_clip)
        return losses + self.o.value_weight * off, {"clipped": clipped, "value_loss": off}

    def state(self) -> dict[str, Tensor]:
        own = [self.beta.value, self.spread.count, self.spread.mean, self.spread.squares]
        head = {"head/centre": self.extra.centre, "head/spread": self.extra.spread}
        return {**super().state(), **head, "running": torch.tensor(own, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(dict(state))
        self.extra.centre, self.extra.spread = state["head/centre"], state["head/spread"]
        self.beta.value, self.spread.count, self.spread.mean, self.spread.squares = state["running"].tolist()

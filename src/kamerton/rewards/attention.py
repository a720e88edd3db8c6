"""A discriminator that attends over the answer: what it says of a token depends on all positions before it.

`Attentive` is `Factored` with more in the context's half of the product,

    d(c, v) = ⟨A f_t + Σ_h Σ_{s ≤ t} w_hts V_h f_s, B e(v)⟩.

The weights w are those of causal attention (Vaswani et al. 2017) with a few narrow heads, over the answer's positions
alone, whose features the frozen model has made. The token's half stays as it is, so that a whole vocabulary still costs
a thin output layer, and every path of the signal works as with the factored one.

What it leaves out: positions of its own (the features hold them), the prompt's positions, and more than one layer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kamerton.rewards.factored import Factored

HEADS = 2
KEY_SIZE = 16
"""Width of a head's queries and keys."""


class Attentive(Factored):
    """d(c, v) = ⟨A f_t + attention over f_1 … f_t, B e(v)⟩.

    Args:
        features, embedding, rank: as in `Factored`.
        heads: of the attention; each gives `rank` numbers, which are added up.
    """

    whole_rows: ClassVar[bool] = True

    def __init__(self, features: int, embedding: Tensor, rank: int = 32, heads: int = HEADS) -> None:
        super().__init__(features, embedding, rank)
        self.heads = heads
        self.query, self.key = (nn.Linear(features, heads * KEY_SIZE, bias=False) for _ in range(2))
        self.value = nn.Linear(features, heads * rank, bias=False)
        for layer, gain in ((self.query, 1.0), (self.key, 1.0), (self.value, rank**-0.25)):
            nn.init.normal_(layer.weight, std=features**-0.5 * gain)

    def contexts(self, features: Tensor, rows: Tensor) -> Tensor:
        if not len(features):
            return super().contexts(features, rows)
        lengths = rows.unique_consecutive(return_counts=True)[1]
        b, s = len(lengths), int(lengths.max())
        with torch.autocast(features.device.type, enabled=False):
            real = torch.arange(s, device=features.device)[None, :] < lengths[:, None]  # (B, S)

            def padded(x: Tensor) -> Tensor:  # (N, heads · D) → (B, heads, S, D)
                whole = x.new_zeros(b, s, x.shape[1])
                whole[real] = x
                return whole.view(b, s, self.heads, -1).transpose(1, 2)

            q, k, v = (padded(layer(features)) for layer in (self.query, self.key, self.value))
            # plain products: the penalty differentiates them twice, which fused kernels do not allow
            scores = q @ k.transpose(2, 3) * KEY_SIZE**-0.5  # (B, heads, S, S)
            later = torch.ones(s, s, dtype=torch.bool, device=features.device).triu(1)
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            return self.context(features) + (weights @ v).sum(1)[real]

    def penalty(self, features: Tensor, tokens: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """() the same mean as in `Factored`, estimated.

        A score depends on the features of many positions, and those of one position are in many scores. With random
        signs ε the squared norm of the gradient of Σ ε_t d_t is, on average, the sum of those of the single scores: one
        backward pass for all of them.
        """
        signs = torch.randint(2, (len(tokens),), generator=generator).to(features) * 2 - 1
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):  # the backward pass too
            leaf = features.detach().requires_grad_()
            scores = self.of_tokens(self.contexts(leaf, rows), tokens)
            (gradient,) = torch.autograd.grad((signs * scores).sum(), leaf, create_graph=True)
        return gradient.pow(2).sum() / max(len(tokens), 1)

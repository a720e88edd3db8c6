"""A discriminator that scores every next token at once, from the position before it.

`Factored` gives a score to a token v in a context c, d(c, v) = ⟨A f(c), B e(v)⟩: f(c) are features of the context under
a frozen model, e(v) the token's embedding there. It learns to tell the tokens of reference answers from those that the
model puts in their place (Goodfellow et al. 2014, arXiv 1406.2661, on single tokens as in adversarial imitation: Ho &
Ermon 2016, arXiv 1606.03476). Being factored, it scores a whole vocabulary for the price of a thin output layer.

One that reads more of a context overrides `contexts` and `penalty` (`attention.py`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Factored(nn.Module):
    """d(c, v) = ⟨A f(c), B e(v)⟩.

    Args:
        features: width of a context's features.
        embedding: (V, H) embeddings of the vocabulary (`normed`); several discriminators share one.
        rank: width of the product.
    """

    whole_rows: ClassVar[bool] = False
    """Whether a context is more than one position."""

    embedding: Tensor

    def __init__(self, features: int, embedding: Tensor, rank: int = 32) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding, persistent=False)
        self.context = nn.Linear(features, rank, bias=False)
        self.token = nn.Linear(embedding.shape[1], rank, bias=False)
        for layer in (self.context, self.token):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5 * rank**-0.25)
        self._tokens: Tensor | None = None

    def contexts(self, features: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """(N, F) features and (N,) numbers of the positions' rows → (N, rank) contexts, with gradient."""
        with torch.autocast(features.device.type, enabled=False):  # float32, also where the model computes in bfloat16
            return self.context(features)

    def of_tokens(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """(N, rank) contexts and (N,) token ids → (N,) scores, with gradient."""
        with torch.autocast(contexts.device.type, enabled=False):
            return (contexts * self.token(self.embedding[tokens])).sum(-1)

    @torch.no_grad()
    def of_vocabulary(self, contexts: Tensor) -> Tensor:
        """(N, rank) → (N, V) scores of all tokens, without gradient."""
        with torch.autocast(contexts.device.type, enabled=False):
            if self._tokens is None:
                self._tokens = self.token(self.embedding)  # (V, r)
            return contexts @ self._tokens.T

    def penalty(self, features: Tensor, tokens: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """() mean over tokens of the squared norm of the score's gradient by the features (R1 and R2, Mescheder et al.
        2018).

        The score is linear in the features, so the gradient is Aᵀ B e(v), whatever the context.
        """
        with torch.autocast(features.device.type, enabled=False):
            return (self.token(self.embedding[tokens]) @ self.context.weight).pow(2).sum(-1).mean()

    def changed(self) -> None:
        """Forget what was computed from the weights."""
        self._tokens = None


def normed(embedding: Tensor) -> Tensor:
    """(V, H) embeddings, each brought to mean 0 and variance 1 over its numbers, in float32."""
    return F.layer_norm(embedding.float(), embedding.shape[-1:])

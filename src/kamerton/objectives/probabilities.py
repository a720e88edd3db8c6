"""Log-probabilities of tokens at the temperature that they were sampled with, and the entropy of their distributions.

The output layer is the dearest part of a small model and runs in chunks. Where its weights are frozen, the gradient of
each log-probability by its own hidden state is computed in the forward pass and kept in place of logits ((N, H) in
place of (N, V)); nothing is then computed twice. Where they are trained, chunks are computed again in the backward
pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kamerton.base.model import OUTPUT_CHUNK, LanguageModel


def token_log_probs(
    model: LanguageModel, hidden: Tensor, targets: Tensor, temperature: float, chunk: int = OUTPUT_CHUNK
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) of targets, and the entropy of the whole.

    Args:
        hidden: (N, H) states from which the targets are predicted; `targets`: (N,) token ids.
        temperature: T > 0.

    Returns:
        (N,) log-probabilities in nats, with gradient, and (N,) entropies without; float32.
    """

    def one(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.output(h).float() / temperature
        total = torch.logsumexp(logits, dim=1)
        with torch.no_grad():
            entropy = total - ((logits - total[:, None]).exp() * logits).sum(1)
        return logits.gather(1, t[:, None])[:, 0] - total, entropy

    def linearised(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            inside = h.detach().requires_grad_()
            log_p, entropy = one(inside, t)
        (slope,) = torch.autograd.grad(log_p.sum(), inside)
        return log_p.detach() + ((h - h.detach()) * slope).float().sum(1), entropy

    learns = torch.is_grad_enabled() and hidden.requires_grad
    frozen = not any(p.requires_grad for p in model.hf.get_output_embeddings().parameters())
    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    if not learns or (not frozen and len(pieces) == 1):
        found = [one(h, t) for h, t in pieces]
    elif frozen:
        found = [linearised(h, t) for h, t in pieces]
    else:
        found = [checkpoint(one, h, t, use_reentrant=False) for h, t in pieces]
    log_probs, entropies = zip(*found, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)

"""Log-probabilities of tokens at the temperature that they were sampled with, and the entropy of their distributions.

The output layer is the dearest part of a small model and runs in chunks (`base/output_chunks.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kamerton.base.model import LanguageModel
from kamerton.base.output_chunks import OUTPUT_CHUNK, in_chunks


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

    log_probs, entropies = in_chunks(one, hidden, targets, chunk, layer=model.hf.get_output_embeddings())
    return log_probs, entropies

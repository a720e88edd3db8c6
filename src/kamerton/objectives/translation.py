"""Sequence to sequence from scratch: the answer's tokens behind what the encoder read, with smoothed labels.

A target's loss is (1 − ε) · −log p(y) + ε · the mean of −log p over the vocabulary (Szegedy et al. 2016, arXiv
1512.00567; ε = 0.1 in Vaswani et al. 2017). What is validated is the plain negative log-likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kamerton.base.encoder_decoder import EncoderDecoderModel
from kamerton.base.model import LanguageModel
from kamerton.objectives.next_token import NextToken
from kamerton.objectives.packed_contexts import LOGITS
from kamerton.rendering import Rendered
from kamerton.training.batches import Batch
from kamerton.training.objective import Loss

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a source and of its target, end tokens included."""


class Translation(NextToken):
    """Next-token loss of targets behind their sources.

    Args:
        train, held_out: pairs of token ids.
        smoothing: ε.
        options: of `NextToken`.
    """

    name = "translation"

    def __init__(self, train: Sequence[Pair], held_out: Sequence[Pair], *, smoothing: float, **options: Any) -> None:
        super().__init__([_row(p) for p in train], [_row(p) for p in held_out], share_prefix=False, **options)
        self.smoothing = smoothing

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        assert isinstance(model, EncoderDecoderModel)
        if not self.smoothing or not model.hf.training:
            return super().loss(model, batch)
        hidden = model.target_hidden(batch)
        targets = torch.as_tensor(batch.targets, device=hidden.device)
        chunk = max(512, LOGITS // model.hf.get_output_embeddings().weight.shape[0])
        total, plain = hidden.new_zeros(()), 0.0
        for start in range(0, len(targets), chunk):
            part = hidden[start : start + chunk], targets[start : start + chunk]
            if len(targets) <= chunk:
                value, own = self._smoothed(model, *part)
            else:  # a chunk's logits are computed again in the backward pass
                value, own = checkpoint(self._smoothed, model, *part, use_reentrant=False)
            total, plain = total + value, plain + float(own.detach())
        return Loss(total, {"nll": plain})

    def _smoothed(self, model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed smoothed loss, and the plain one."""
        logits = model.output(hidden).float()
        norm = torch.logsumexp(logits, dim=1)
        plain = (norm - logits.gather(1, targets[:, None])[:, 0]).sum()
        even = (norm - logits.mean(1)).sum()
        return (1 - self.smoothing) * plain + self.smoothing * even, plain


def _row(pair: Pair) -> Rendered:
    source, target = pair
    return Rendered((*source, *target), (0.0,) * len(source) + (1.0,) * len(target))

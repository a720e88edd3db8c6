"""A BERT-like model as the training loop sees it: spoiled tokens in, hidden states out, its two heads on top.

Rows are padded, attention leaves the padding out. The output layer (with BERT's transform before it) runs only at the
positions that are predicted, a seventh of all.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kamerton.base.model import LanguageModel


class MaskedModel(LanguageModel):
    """A `BertForPreTraining`."""

    encoder_decoder: ClassVar[bool] = False
    task_type = "FEATURE_EXTRACTION"
    hf: Any

    def read(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """(B, T) tokens, 1 where there is one, and 0 or 1 for the segment → (B, T, H) final hidden states."""
        hidden = self.hf.bert(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), token_type_ids=segments.to(self.device)
        ).last_hidden_state
        lengths = mask.sum(1)
        self.work.add(tokens=ids.numel(), pairs=int((lengths**2).sum()), passes=1, grad=hidden.requires_grad)
        return hidden

    def transform(self, hidden: Tensor) -> Tensor:
        """(N, H) final hidden states → (N, H) what the output layer reads (`log_probs`, `output`)."""
        return self.hf.cls.predictions.transform(hidden)

    def next_sentence(self, hidden: Tensor) -> Tensor:
        """(B, T, H) final hidden states → (B, 2) logits: 0, the second segment follows the first; 1, it does not."""
        return self.hf.cls.seq_relationship(self.hf.bert.pooler(hidden))

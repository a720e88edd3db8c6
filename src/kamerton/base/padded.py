"""A causal model without transformers' attention interface (GPT-1), read in padded rows.

Padding stands behind, where causal attention never looks. Enough to train and to score rows; there is no cache and no
tree, so such a model is not taken as a base by the rest of the program (`load.py` refuses it), and answers come from
transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kamerton.base.model import CausalModel
from kamerton.base.passes import Hidden


class PaddedModel(CausalModel):
    """See `CausalModel.forward`; of its arguments only `rows` is known here."""

    def forward(self, rows: Sequence[Sequence[int]], **arguments: Any) -> Hidden:
        if any(value is not None and len(value) for value in arguments.values()):
            raise NotImplementedError(f"{type(self.hf).__name__} reads rows alone")
        lengths = tuple(map(len, rows))
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = torch.as_tensor(row, dtype=torch.long)
        hidden = self._backbone()(input_ids=ids.to(self.device)).last_hidden_state
        real = torch.arange(ids.shape[1]) < torch.as_tensor(lengths)[:, None]
        pairs = sum(n * (n + 1) // 2 for n in lengths)
        self.work.add(tokens=ids.numel(), pairs=pairs, passes=1, grad=hidden.requires_grad)
        return Hidden(hidden[0, :0], hidden[real.to(hidden.device)], lengths)

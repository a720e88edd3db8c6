"""Plain values and rows of tokens as tensors, which is what checkpoints keep of objectives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kamerton.rendering import Rendered


def as_tensor(value: Any) -> Tensor:
    """A value that JSON can hold, as bytes in a tensor."""
    return torch.frombuffer(bytearray(json.dumps(value, ensure_ascii=False).encode()), dtype=torch.uint8)


def from_tensor(packed: Tensor) -> Any:
    """What `as_tensor` was given."""
    return json.loads(bytes(packed.cpu().numpy()).decode())


def rows_state(rows: Sequence[Rendered]) -> dict[str, Tensor]:
    """Prompts with answers, every answer token with loss: their tokens, and (B, 2) lengths of row and prompt."""
    return {
        "tokens": torch.tensor([t for r in rows for t in r.tokens], dtype=torch.long),
        "sizes": torch.tensor([[len(r.tokens), r.prompt_length] for r in rows], dtype=torch.long).reshape(-1, 2),
    }


def rows_from(state: Mapping[str, Tensor]) -> list[Rendered]:
    """What `rows_state` was given."""
    sizes = state["sizes"].tolist()
    rows = state["tokens"].split([size for size, _ in sizes]) if sizes else ()
    return [
        Rendered(tuple(row.tolist()), (0.0,) * prompt + (1.0,) * (size - prompt))
        for row, (size, prompt) in zip(rows, sizes, strict=True)
    ]

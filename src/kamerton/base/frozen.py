"""Lower layers that do not change: computed once for each sequence, and replayed from memory afterwards.

While the lower layers of a model are frozen, what they give for a sequence is the same in every epoch and at every
validation. `CausalModel.forward` asks here what is known already, lets only the other rows through the lower layers
(without gradient and without dropout: these are fixed features), and then runs the model with its lower layers replaced
for that one pass: they hand on what they are given, and the last of them gives the states that are known. Everything
else of the model runs as it is, so that models which scale their embeddings or add positions to them are right too.

What it leaves out: soft prompts, prefixes and caches of generation; passes with those go through all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

SHARE_OF_MEMORY = 0.25
"""The share of the free memory that the states may take."""

Tokens = tuple[int, ...]


def decoder_layers(hf: Any) -> nn.ModuleList | None:
    """The list of a transformers model's layers, lowest first; None where there is no such list."""
    decoder = hf.get_decoder()
    backbone = decoder if decoder is not None else hf.base_model
    count = hf.config.get_text_config().num_hidden_layers
    inside = [m for child in backbone.children() for m in child.children()]  # where encoders have them
    lists = [m for m in (*backbone.children(), *inside) if isinstance(m, nn.ModuleList) and len(m) == count]
    return lists[0] if lists else None


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


class FrozenLayers:
    """The states above the lower layers, by sequence.

    Args:
        hf: the transformers model.
        count: how many of its layers, from below, are frozen.
        limit: bytes that the states may take; default: a quarter of what is free.

    Attributes:
        bytes: what the states take.
        computed, replayed: sequences that went through the lower layers, and that did not have to.
    """

    def __init__(self, hf: Any, count: int, limit: int | None = None) -> None:
        layers = decoder_layers(hf)
        assert layers is not None
        self._hf, self._lower, self._upper = hf, list(layers)[:count], list(layers)[count:]
        self.limit = int(SHARE_OF_MEMORY * free_bytes(hf.device)) if limit is None else limit
        self._states: dict[Tokens, Tensor] = {}
        self._refused: set[int] = set()
        self._tuples = False
        self.recording = False
        self.bytes = self.computed = self.replayed = 0

    def missing(self, prefix: Sequence[int], rows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The rows whose states behind this prefix are not known."""
        front = tuple(prefix)
        unknown = {(*front, *row): row for row in rows if (*front, *row) not in self._states}
        self.replayed += len(rows) - len(unknown)
        return list(unknown.values())

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """A pass through the lower layers only; the list receives their states, (1, T, H)."""
        grabbed: list[Tensor] = []
        last = self._lower[-1]
        own = last.forward

        def grab(*args: Any, **kwargs: Any) -> Any:
            out = own(*args, **kwargs)
            self._tuples = isinstance(out, tuple)
            grabbed.append(out[0] if self._tuples else out)
            return out

        was = self._hf.training
        self._hf.eval()
        self.recording = True
        try:
            with torch.no_grad(), _forwards({last: grab, **dict.fromkeys(self._upper, self._hand_on)}):
                yield grabbed
        finally:
            self.recording = False
            self._hf.train(was)

    def keep(self, prefix: Sequence[int], rows: Sequence[Sequence[int]], states: Tensor) -> dict[Tokens, Tensor]:
        """Take the states (P + all rows' tokens, H) of a recorded pass; returns them by sequence, kept or not."""
        front = tuple(prefix)
        parts = states.split([len(front), *map(len, rows)])
        found = {}
        for row, part in zip(rows, parts[1:], strict=True):
            sequence = (*front, *row)
            found[sequence] = state = torch.cat([parts[0], part])
            size = state.numel() * state.element_size()
            if self.bytes + size <= self.limit:
                self._states[sequence] = state
                self.bytes += size
            else:
                self._refused.add(hash(sequence))
        self.computed += len(rows)
        return found

    @contextmanager
    def replay(
        self, prefix: Sequence[int], rows: Sequence[Sequence[int]], found: dict[Tokens, Tensor]
    ) -> Iterator[None]:
        """A pass through the upper layers only, on what is known and what was just `found`."""
        front = tuple(prefix)
        sequences = [(*front, *row) for row in rows]
        states = [self._states[s] if s in self._states else found[s] for s in sequences]
        packed = torch.cat([states[0][: len(front)], *(s[len(front) :] for s in states)])[None]

        def give(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
            return (packed,) if self._tuples else packed

        with _forwards({**dict.fromkeys(self._lower, self._hand_on), self._lower[-1]: give}):
            yield

    def note(self) -> str | None:
        """What the user should know: sequences for which there was no room."""
        if not self._refused:
            return None
        return (
            f"the frozen layers' outputs for {len(self._refused)} of {len(self._refused) + len(self._states)} texts "
            f"did not fit into {self.limit / 2**30:.2f} GiB and were computed again in each epoch"
        )

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if self._tuples else hidden


@contextmanager
def _forwards(other: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other forward functions of some modules, for as long as this lasts."""
    attributes: list[dict[str, Any]] = [module.__dict__ for module in other]
    for values, forward in zip(attributes, other.values(), strict=True):
        values["forward"] = forward
    try:
        yield
    finally:
        for values in attributes:
            del values["forward"]

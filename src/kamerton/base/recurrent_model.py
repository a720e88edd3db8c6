"""A recurrent model behind the surface of packs: shared prefixes, caches and trees of continuations, with states.

Where a transformer's caches hold keys and values (heads, positions, size) of each layer, here one pair stands for all
layers: the states (layers, positions, width) after each position. So everything that moves, copies or cuts caches works
on recurrent models unchanged; a prefix is continued from its last position, a row of a cache from the last one in use.

What it leaves out: trained keys and values (a recurrent model has none to stand before), and soft tokens inside rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kamerton.base.attention import LayerKeys, RowCache
from kamerton.base.draft import Draft
from kamerton.base.model import CausalModel
from kamerton.base.passes import Front, Hidden, Shared
from kamerton.base.recurrent import State
from kamerton.errors import ModelError


def as_keys(state: State, positions: int) -> LayerKeys:
    """A state (layers, 1, H) as the keys and values of so many positions; only the last one is ever read."""
    wide = [part[:, 0, None].expand(-1, positions, -1) for part in state]
    return [(wide[0], wide[-1])]


class RecurrentModel(CausalModel):
    """A `RecurrentForCausalLM`; see `CausalModel` for what its members mean."""

    @property
    def max_length(self) -> int | None:
        return None  # the state carries any length

    def keys_of(self, text: Sequence[int]) -> LayerKeys:  # noqa: ARG002
        raise ModelError("a recurrent model has no keys and values to train", mend="use full, or prompt-tuning")

    @property
    def _parts(self) -> int:
        return 2 if self.config.cell == "lstm" else 1

    def _state(self, keys: LayerKeys | None, rows: int) -> State | None:
        """What stands after the last position of a prefix, for so many rows."""
        if not keys or not keys[0][0].shape[1]:
            return None
        return tuple(part[:, None, -1].expand(-1, rows, -1).contiguous() for part in keys[0][: self._parts])

    def forward(
        self,
        rows: Sequence[Sequence[int]],
        *,
        prefix: Sequence[int] = (),
        shared: Shared | None = None,
        cache: RowCache | None = None,
        slots: Sequence[int] | None = None,
        tree: Tensor | None = None,
        depths: Sequence[Sequence[int]] | None = None,
        record: LayerKeys | None = None,
        prompts: Sequence[Sequence[int]] | None = None,  # noqa: ARG002 - nothing is put inside rows
        draft: Draft | None = None,  # noqa: ARG002 - it has none
    ) -> Hidden:
        front = Front() if shared is not None else self.front()
        if front.keys or self.inserts is not None:
            raise ModelError("a recurrent model has no keys and values to train", mend="use prompt-tuning, or full")
        embed, soft = self.hf.get_input_embeddings(), front.embeddings
        before = embed(torch.as_tensor(list(prefix), dtype=torch.long, device=self.device))
        if soft is not None:
            before = torch.cat([soft.to(before.dtype), before])
        at = self._state(shared.keys if shared is not None else None, 1)
        told = before
        if len(before):
            seen, at = self.hf.hidden(before[None], at)
            told = seen[0]
            if record is not None:
                assert at is not None
                record.extend(as_keys(at, len(before)))
        lengths = tuple(map(len, rows))
        total = sum(lengths)
        # products with weights are all there is: a token's work does not depend on what stands before it
        grad = torch.is_grad_enabled() and embed.weight.requires_grad
        self.work.add(tokens=len(before) + total, passes=0 if self._inferring else 1, grad=grad)
        if not rows:
            return Hidden(told, told[:0], ())
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = torch.as_tensor(row, dtype=torch.long)
        start = None if at is None else tuple(p.expand(-1, len(rows), -1).contiguous() for p in at)
        if cache is not None:
            start = self._resume(cache, list(range(len(rows))) if slots is None else list(slots), start)
        embeds = embed(ids.to(self.device))
        if tree is None:
            hidden, after = self.hf.hidden(embeds, start, lengths)
            if cache is not None:
                self._keep(cache, slots, lengths, after)
        else:
            assert depths is not None
            if cache is not None:
                raise ModelError("a tree behind a cache is not defined for a recurrent model")
            hidden = self._tree(embeds, start, tree, lengths)
        real = (torch.arange(ids.shape[1]) < torch.as_tensor(lengths)[:, None]).to(hidden.device)
        return Hidden(told, hidden[real], lengths)

    def _resume(self, cache: RowCache, slots: list[int], start: State | None) -> State | None:
        """The state of each row: its slot's last column, or what stands before all rows where its slot is empty."""
        used = cache.lengths[slots].tolist()
        if not any(used):
            return start
        width, layers = self.config.hidden_size, self.config.num_hidden_layers
        parts = []
        for n in range(self._parts):
            part = torch.zeros(layers, len(slots), width, dtype=self.dtype, device=self.device)
            if start is not None:
                part.copy_(start[n])
            buffer = (cache.keys, cache.values)[n][0]
            for row, (slot, length) in enumerate(zip(slots, used, strict=True)):
                if length:
                    part[:, row] = buffer[slot, :, length - 1]
            parts.append(part)
        return tuple(parts)

    def _keep(self, cache: RowCache, slots: Sequence[int] | None, lengths: Sequence[int], after: State) -> None:
        """Write the state behind each row into its slot, in the column of the row's last token."""
        keys, values = cache.layer(0, after[0].detach().transpose(0, 1))  # (B, layers, H): heads are layers
        for row, length in enumerate(lengths):
            slot = row if slots is None else slots[row]
            end = int(cache.lengths[slot]) + length
            for buffer, part in zip((keys, values), after, strict=False):
                buffer[slot, :, end - 1] = part[:, row].detach()
        used = list(range(len(lengths))) if slots is None else list(slots)
        cache.lengths[used] += torch.as_tensor(list(lengths))

    def _tree(self, embeds: Tensor, start: State | None, tree: Tensor, lengths: Sequence[int]) -> Tensor:
        """(B, S, H) hidden states where a token follows its parent: the last token before it that it sees."""
        b, s, _ = embeds.shape
        width, layers = self.config.hidden_size, self.config.num_hidden_layers
        places = torch.arange(s, device=embeds.device)
        sees = tree & (places[None, :] < places[:, None])  # those before it
        parents = torch.where(sees.any(2), s - 1 - sees.flip(2).int().argmax(2), -1)  # (B, S)
        # each token's state, the last column for what stands before the rows
        shape = (layers, b, s + 1, width)
        states = [embeds.new_zeros(shape) for _ in range(self._parts)]
        if start is not None:
            for part, given in zip(states, start, strict=True):
                part[:, :, s] = given
        out = embeds.new_zeros(b, s, width)
        real = (places[None, :] < torch.as_tensor(lengths, device=embeds.device)[:, None]).cpu()
        depth = torch.zeros(b, s + 1, dtype=torch.long)
        at = parents.cpu()
        for j in range(s):
            depth[:, j] = torch.where(at[:, j] >= 0, depth.gather(1, at[:, j : j + 1].clamp(min=0))[:, 0] + 1, 0)
        for level in range(int(depth[:, :s][real].max()) + 1):
            row, place = torch.nonzero((depth[:, :s] == level) & real, as_tuple=True)
            parent = torch.where(at[row, place] >= 0, at[row, place], s)
            before = tuple(part[:, row, parent].contiguous() for part in states)
            hidden, after = self.hf.hidden(embeds[row, place][:, None], before)
            out[row, place] = hidden[:, 0]
            for kept, new in zip(states, after, strict=True):
                kept[:, row, place] = new
        return out


def carried(model: Any, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
    """(B, T) tokens read behind a state → (B, T, H) hidden states, and the state behind them (for truncated BPTT)."""
    embeds = model.hf.get_input_embeddings()(tokens.to(model.device))
    hidden, after = model.hf.hidden(embeds, state)
    model.work.add(tokens=tokens.numel(), passes=1, grad=hidden.requires_grad)
    return hidden, after

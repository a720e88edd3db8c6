"""Kamerton's choice of tokens inside vLLM's loop: the same filters, the same random numbers, the same corrections.

vLLM takes the likeliest token of what it is shown. A request that wants something else (a sample, a token that is
given, a corrected first token) has a `Wish`, and `Choosing` shows vLLM one token alone in its row. So an answer that is
sampled has the tokens that the torch backend gives it, up to rounding. Log-probabilities that vLLM tells of are those
before any of this.

Wishes stay in this process: requests name theirs by a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from kamerton.inference.sampling import next_tokens
from kamerton.sampling import Sampling

NAME = "kamerton"
"""Where a request's extra arguments hold the number of its wish."""


@dataclass(eq=False)
class Wish:
    """How one request's tokens are chosen.

    Attributes:
        sampling: filters and temperature; alike for requests that are sampled alike. None: the likeliest token.
        key: of its stream of random numbers.
        forced: tokens that are taken whatever their probability.
        first: corrects what the first token is chosen from: (1, V) logits → (1, V).
        keep: keep the log-probabilities of the first token in `kept`, (V,) float32.
    """

    sampling: Sampling | None = None
    key: int = 0
    forced: Sequence[int] = ()
    first: Callable[[Tensor], Tensor] | None = None
    keep: bool = False
    kept: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether vLLM's own greedy choice is what is wanted."""
        return self.sampling is None and not self.forced and self.first is None and not self.keep


_wishes: dict[int, Wish] = {}
_numbers = itertools.count(1)


def enter(wish: Wish) -> int:
    """The number under which a request names its wish, until `leave`."""
    number = next(_numbers)
    _wishes[number] = wish
    return number


def leave(number: int | None) -> None:
    """Forget a wish."""
    if number is not None:
        _wishes.pop(number, None)


_Row = tuple[Wish, list[int]]
"""A wish, and the tokens that its request has so far (vLLM's own list, which grows)."""


class Choosing(LogitsProcessor):
    """vLLM's hook between logits and token."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._rows, batch_update, self._entered)

    @staticmethod
    def _entered(params: Any, prompt: list[int] | None, said: list[int]) -> _Row | None:  # noqa: ARG004
        wish = _wishes.get((params.extra_args or {}).get(NAME, 0))
        return None if wish is None else (wish, said)

    def apply(self, logits: Tensor) -> Tensor:
        """(B, V) float32 logits → with one token alone in the rows of requests that have wishes."""
        groups: dict[Any, list[tuple[int, Wish, int]]] = {}
        for i, (wish, said) in self._rows.items():
            step = len(said)
            if wish.keep and not step:
                # a prompt that is read in parts comes by more than once; the last time is the whole of it
                wish.kept = logits[i].log_softmax(-1).cpu()
            if step < len(wish.forced):
                _alone(logits, [i], torch.tensor([wish.forced[step]], device=logits.device))
            elif wish.first is not None and not step:
                shown = wish.first(logits[i : i + 1].clone())
                sampling = wish.sampling or Sampling(temperature=0.0)
                token, _ = next_tokens(logits[i : i + 1], sampling, [wish.key], [step], shown)
                _alone(logits, [i], token)
            elif wish.sampling is not None:
                groups.setdefault(wish.sampling, []).append((i, wish, step))
        for sampling, members in groups.items():
            rows = [i for i, _, _ in members]
            own = logits[rows]
            tokens, _ = next_tokens(own, sampling, [wish.key for _, wish, _ in members], [n for _, _, n in members])
            _alone(logits, rows, tokens)
        return logits


def _alone(logits: Tensor, rows: Sequence[int], tokens: Tensor) -> None:
    """Leave of each of these rows one token."""
    index = torch.tensor(rows, device=logits.device)
    logits[index] = -torch.inf
    logits[index, tokens.to(logits.device)] = 0.0

"""From logits to the next token: filters, and noise that belongs to an answer and not to its place in a batch.

The filters and their order are those of transformers (temperature, top-k, top-p, min-p), so that settings found
elsewhere mean the same here. Each answer draws its random numbers from a SplitMix64 stream of its own (Steele, Lea and
Flood 2014), keyed by the seed, the prompt's tokens and the number of the sample: an answer is the same whether it is
sampled alone, beside others, or in another order.

What it leaves out: repetition penalties, beam search and grammars.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kamerton.sampling import Sampling as Sampling

_NUCLEUS = 256
"""Tokens that are sorted first for top-p; where they hold too little probability, the whole vocabulary is sorted."""
_BLOCK = 256
"""Probabilities that are summed into one number for the first of two steps of inverse-CDF sampling."""


def stream_key(seed: int, prompt: Sequence[int], sample: int) -> int:
    """The 64-bit key of one answer's random numbers: from the seed, the prompt's tokens and the sample's number."""
    digest = hashlib.blake2b(f"{seed}:{sample}:".encode() + np.asarray(prompt, dtype="<i8").tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys: NDArray[np.uint64], steps: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Number `steps[i]` of the SplitMix64 stream `keys[i]`: (B,) floats in [0, 1) with 53 random bits."""
    z = keys + (steps + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature and filters: (B, V) float32 logits → (B, V), −inf where a token was filtered out.

    Raises:
        ValueError: the temperature is 0; greedy decoding takes no filters.
    """
    if sampling.temperature == 0:
        raise ValueError("greedy decoding takes no filters")
    logits = logits / sampling.temperature
    size = logits.shape[-1]
    if sampling.top_k is not None and sampling.top_k < size:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    if sampling.min_p:
        # p ≥ min_p · p_max, in logits
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(sampling.min_p), -torch.inf)
    return logits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until they hold `top_p`; the token that crosses it stays."""
    size = logits.shape[-1]
    total = torch.logsumexp(logits, -1, keepdim=True)
    width = min(_NUCLEUS, size)
    values, index = logits.topk(width, dim=-1)
    mass = (values - total).exp().cumsum(-1)
    if width < size and bool((mass[:, -1] < top_p).any()):
        values, index = logits.sort(dim=-1, descending=True)
        mass = (values - total).exp().cumsum(-1)
    # mass before a token decides: the first token stays whatever top_p is
    kept = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1) < top_p
    out = torch.full_like(logits, -torch.inf)
    return out.scatter_(1, index, values.masked_fill(~kept, -torch.inf))


def draw(logits: Tensor, noise: NDArray[np.float64]) -> Tensor:
    """One token a row: (B, V) filtered logits and (B,) uniform numbers → (B,) token ids."""
    return draws(logits, noise[:, None])[:, 0]


def draws(logits: Tensor, noise: NDArray[np.float64]) -> Tensor:
    """Tokens of each row by inverse CDF: (B, V) filtered logits and (B, S) uniform numbers → (B, S) token ids.

    The vocabulary is summed in blocks first and only the block that holds the number is searched: exact sums in float64
    at the price of one pass over the logits.
    """
    b, v = logits.shape
    top, best = logits.max(-1, keepdim=True)
    p = (logits - top).exp()
    if v % _BLOCK:
        p = torch.nn.functional.pad(p, (0, _BLOCK - v % _BLOCK))
    blocks = p.view(b, -1, _BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (B, V / block)
    target = torch.as_tensor(noise, device=logits.device) * sums[:, -1:]  # (B, S)
    block = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    chosen = blocks.gather(1, block[:, :, None].expand(b, block.shape[1], _BLOCK)).double()  # (B, S, block)
    rest = (target - before)[:, :, None]
    place = torch.searchsorted(chosen.cumsum(-1), rest, right=True).clamp_(max=_BLOCK - 1)
    # rounding can point one past the last token with probability; the likeliest token stands in for it
    dead = chosen.gather(2, place)[:, :, 0] == 0
    return torch.where(dead, best, block * _BLOCK + place[:, :, 0])


def _argmax(logits: Tensor) -> Tensor:
    if logits.device.type == "cpu":  # NumPy's is several times faster there
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def next_tokens(
    logits: Tensor, sampling: Sampling, keys: Sequence[int], steps: Sequence[int], corrected: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose one token a row.

    Args:
        logits: (B, V) of the next token.
        sampling: how to choose.
        keys: the rows' `stream_key`s; not used for greedy.
        steps: how many tokens each row has so far.
        corrected: (B, V) to choose from in place of `logits`.

    Returns:
        (B,) token ids and (B,) float32 log-probabilities under the unfiltered, uncorrected distribution at
        temperature 1.
    """
    logits = logits.float()
    shown = logits if corrected is None else corrected.float()
    if sampling.temperature == 0:
        tokens = _argmax(shown)
    else:
        noise = uniforms(np.array(keys, dtype=np.uint64), np.array(steps, dtype=np.uint64))
        tokens = draw(filter_logits(shown, sampling), noise)
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - torch.logsumexp(logits, -1)

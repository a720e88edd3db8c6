"""Attention over long rows with a backward pass of its own, against PyTorch's with a mask in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import architectures
from kamerton.base import CausalModel, Front, blocked, cascade

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def drawn(lengths: list[int], front: int, heads: int, groups: int, width: int, seed: int) -> Parts:
    """Queries, keys, values, front keys, front values."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    t = sum(lengths)
    own = some(t, heads * groups, width), some(t, heads, width), some(t, heads, width)
    return *own, some(heads, front, width), some(heads, front, width)


def plainly(parts: Parts, lengths: list[int], scaling: float) -> Tensor:
    """The same by PyTorch, a row at a time, with everything repeated and masked."""
    query, key, value, front_key, front_value = parts
    groups, front = query.shape[1] // key.shape[1], front_key.shape[1]
    out = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        keys = torch.cat([front_key, k.transpose(0, 1)], dim=1).repeat_interleave(groups, 0)
        values = torch.cat([front_value, v.transpose(0, 1)], dim=1).repeat_interleave(groups, 0)
        seen = torch.ones(len(q), front + len(q), dtype=torch.bool).tril(front)
        attended = scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=seen, scale=scaling)
        out.append(attended.transpose(0, 1))
    return torch.cat(out)


def both(parts: Parts, lengths: list[int], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """The result and all gradients, here and by PyTorch."""
    weights = torch.linspace(-1, 1, parts[0].numel(), dtype=torch.float64).view_as(parts[0])
    found = []
    for ours in (True, False):
        own: Parts = tuple(x.to(dtype if ours else x.dtype).requires_grad_() for x in parts)  # type: ignore[assignment]
        out = blocked.attend(*own, lengths, 0.3) if ours else plainly(own, lengths, 0.3)
        # a front of no tokens has no part in the result
        grads = torch.autograd.grad((out * weights.to(out.dtype)).sum(), own, allow_unused=True, materialize_grads=True)
        found.append((out.detach(), *grads))
    return found


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=4), front=st.integers(0, 7), heads=st.integers(1, 2),
    groups=st.integers(1, 3), block=st.integers(1, 12), largest=st.integers(1, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_rows_equal_pytorch_with_a_mask(
    lengths: list[int], front: int, heads: int, groups: int, block: int, largest: int, seed: int
) -> None:
    parts = drawn(lengths, front, heads, groups, 4, seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blocked, "BLOCK", block)
        patched.setattr(blocked, "_LARGEST", largest)
        ours, theirs = both(parts, lengths, torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_no_less_exact_than_the_fused_kernel(dtype: torch.dtype) -> None:
    lengths = [150, 70, 201]
    parts = tuple(x.to(dtype).double() for x in drawn(lengths, 0, 2, 2, 16, 0))
    ours, exact = both(parts, lengths, dtype)  # type: ignore[arg-type]
    own = [x.to(dtype).requires_grad_() for x in parts[:3]]
    kernel = []
    for q, k, v in zip(*(x.split(lengths) for x in own), strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
        kernel.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)[0].transpose(0, 1))
    out = torch.cat(kernel)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    theirs = torch.autograd.grad((out * weights.to(dtype)).sum(), own)
    for a, b, c in zip(ours[1:4], theirs, exact[1:4], strict=True):
        wrong = [float((x.double() - c).norm() / c.norm()) for x in (a, b)]
        assert wrong[0] < max(1.2 * wrong[1], 1e-5), wrong


def test_what_must_not_be_seen_may_be_of_any_size() -> None:
    query, key, value, front_key, front_value = drawn([5], 0, 1, 1, 4, 0)
    key[4] = 1e4 * query[0].sign()[0]  # the last key, which the first query must not see, has an enormous score there
    ours, theirs = both((query, key, value, front_key, front_value), [5], torch.float32)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "granite", "gemma2", "mistral-window"])
def test_models_compute_the_same_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and soft caps are none of its business, and are left to others."""
    hf = architectures.model(name)
    generator = torch.Generator().manual_seed(0)
    prefix, *rows = (torch.randint(3, architectures.VOCABULARY, (n,), generator=generator).tolist() for n in (4, 3, 8))
    soft = torch.randn(3, hf.config.hidden_size, generator=generator).requires_grad_()
    monkeypatch.setattr(cascade, "_LARGEST", 0)
    entered: list[bool] = []
    apply = blocked.attend

    def counted(*given: Any) -> Tensor:
        entered.append(True)
        return apply(*given)

    monkeypatch.setattr(blocked, "attend", counted)
    found = []
    for possible in (True, False):
        if not possible:
            monkeypatch.setattr(blocked, "usable", lambda *_: False)
        model = CausalModel(hf, front=lambda: Front(embeddings=soft))
        states = model.forward(rows, prefix=prefix).rows
        parameters = [soft, *(p for p in hf.parameters() if p.requires_grad)]
        found.append((states.detach(), *torch.autograd.grad(states.square().sum(), parameters, allow_unused=True)))
    assert bool(entered) == (name not in ("gemma2", "mistral-window"))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


def test_long_rows_of_one_length_are_left_to_pytorch() -> None:
    long = blocked.LONG
    assert [blocked.worth(*x) for x in (([long] * 2, 0), ([long] * 2, 1), ([long, long - 1], 0), ([long - 1] * 2, 0))] == [
        False, True, True, True,
    ]  # fmt: skip

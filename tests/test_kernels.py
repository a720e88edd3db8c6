"""Norm, rotation and log-probability with backward passes of their own, against transformers' and autograd's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.models.llama import modeling_llama as llama

from kamerton.base.encoder_decoder import model_for
from kamerton.base.kernels import Kernels, RmsNorm, Rotate, TargetLogProbs
from kamerton.base.model import CausalModel

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, value.numel(), dtype=torch.float32).view_as(value).to(value.dtype)
    return torch.autograd.grad((value * weights).sum(), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = llama.LlamaRMSNorm(16, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (3 * torch.randn(2, 5, 16)).to(dtype).requires_grad_()
    ours, theirs = RmsNorm.apply(x, norm.weight, 1e-5), norm(x)
    assert torch.equal(ours, theirs)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for a, b in zip(gradients(ours, x, norm.weight), gradients(theirs, x, norm.weight), strict=True):
        torch.testing.assert_close(a, b, **close)
    exact = [t.double().detach().requires_grad_() for t in (x, norm.weight)]
    assert dtype == torch.bfloat16 or torch.autograd.gradcheck(
        lambda a, w: RmsNorm.apply(a.float(), w.float(), 1e-5), exact, eps=1e-2, atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rotation(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = llama.LlamaRotaryEmbedding(LlamaConfig(**SIZES))
    cos, sin = embedding(torch.zeros(1), torch.arange(3, 10)[None])
    q, k = (torch.randn(1, 7, h, 8).to(dtype).requires_grad_() for h in (4, 2))
    theirs = llama.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    ours = [Rotate.apply(x, cos[:, :, None], sin[:, :, None]) for x in (q, k)]
    for x, a, b in zip((q, k), ours, theirs, strict=True):
        b = b.transpose(1, 2).to(dtype)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            gradients(a, x), gradients(b, x), rtol=1e-5, atol=1e-5 if dtype == q.float().dtype else 0.02
        )
    x, c, s = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3))  # halves that turn by different angles
    assert torch.autograd.gradcheck(lambda x: Rotate.apply(x, c, s), x.requires_grad_())


def test_log_probabilities() -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(6, 9)).requires_grad_()
    targets = torch.tensor([0, 8, 3, 3, 1, 7])
    ours, theirs = TargetLogProbs.apply(logits, targets), logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs)
    for _ in range(2):  # a second backward pass over the same logits is the first one
        torch.testing.assert_close(
            torch.autograd.grad((ours * torch.arange(6)).sum(), logits, retain_graph=True),
            torch.autograd.grad((theirs * torch.arange(6)).sum(), logits, retain_graph=True),
        )


@pytest.mark.parametrize(
    ("config", "kind", "replaced"),
    [
        (LlamaConfig(**SIZES, attention_bias=True), LlamaForCausalLM, 2 + 5),
        (MistralConfig(**SIZES, sliding_window=4), MistralForCausalLM, 5),  # its attention is not LLaMA's
        (Gemma2Config(**SIZES, head_dim=8), Gemma2ForCausalLM, 0),  # nor is its norm
    ],
)
def test_a_model_computes_the_same_with_them(config: Any, kind: Any, replaced: int) -> None:
    torch.manual_seed(0)
    hf = kind(config).train()
    for name, p in hf.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, 1.0, 0.3)
    assert len(Kernels(hf)._layers) == replaced
    rows, prefix = [[3, 4, 5, 6, 7, 8], [9, 10, 11]], [1, 2]
    targets = torch.tensor([4, 5, 6, 7, 8, 9, 10, 11, 12])
    found = []
    for with_them in (True, False):
        model = model_for(copy.deepcopy(hf))
        assert isinstance(model, CausalModel)
        if not with_them:
            model._kernels = Kernels(torch.nn.Module())
        states = model.forward(rows, prefix=prefix).rows
        loss = -model.log_probs(states, targets).sum()
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.hf.named_parameters()}))
    (ours, by_ours), (theirs, by_theirs) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert set(by_ours) == set(by_theirs)
    for name, grad in by_ours.items():
        torch.testing.assert_close(grad, by_theirs[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert all("forward" not in m.__dict__ for m in hf.modules())


def test_layers_that_others_hold_are_left_alone() -> None:
    hf = LlamaForCausalLM(LlamaConfig(**SIZES))
    kernels, norm = Kernels(hf), hf.model.norm
    norm.__dict__["forward"] = own = norm.forward
    with kernels.active():
        assert norm.__dict__["forward"] is own
        assert "forward" in hf.model.layers[0].self_attn.__dict__
    assert norm.__dict__["forward"] is own
    with torch.no_grad(), kernels.active():
        assert "forward" not in hf.model.layers[0].self_attn.__dict__

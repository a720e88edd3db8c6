"""Weights in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314), through bitsandbytes.

The matrices of the layers are stored as 4-bit codes, one float for each 64 of them, and those floats again in 8 bits:
about 4.1 bits a weight. A product dequantises its matrix for as long as it lasts and computes in the model's own data
type. Embeddings, norms and the output layer stay as they are.

What it leaves out: training the codes themselves (nothing can), and other formats (GPTQ, AWQ), which transformers
loads where a model folder comes in one of them.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kamerton.errors import MissingExtra

Quantise = Literal["nf4"]
"""The formats that a model can be brought into while it is loaded."""


def require_bitsandbytes() -> None:
    """Raise the error with the install command where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")


def loading(kind: Quantise, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told beside the name, so that weights are quantised while they are read."""
    import transformers

    require_bitsandbytes()
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    # without a map transformers would choose the first GPU by itself
    return {"quantization_config": config, "device_map": {"": str(device)}}


def kind_of(hf: Any) -> str | None:
    """The format of a model's weights: `nf4`, another one's name, or None where they are plain numbers."""
    config = getattr(hf.config, "quantization_config", None)
    if config is None or not getattr(hf, "is_quantized", False):
        return None
    values = config if isinstance(config, dict) else config.to_dict()
    return str(values.get("bnb_4bit_quant_type") or values.get("quant_method"))


def settle(hf: Any) -> None:
    """What a model that was loaded in 4 bits needs before it is used; others are left alone.

    Its layers are kept in one form: on processors with bfloat16 instructions bitsandbytes would repack a weight at the
    first evaluation, compute in bfloat16 from then on, and give no gradient any more. And what is not quantised is
    copied, because as long as one weight is a view of the file, all of the file that was read stays in memory.
    """
    packed = [m for m in hf.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    for module in packed:
        module.support_avx512bf16_for_cpu = False
    if packed:
        for weight in hf.parameters():
            if state_of(weight) is None and weight.device.type == "cpu":
                weight.data = weight.data.clone()


def state_of(weight: Tensor) -> Any:
    """The scales of a weight in 4 bits; None for a plain one."""
    return getattr(weight, "quant_state", None)


def shape(weight: Tensor) -> torch.Size:
    """The shape of the matrix that a weight stands for; packed 4-bit codes have another one themselves."""
    state = state_of(weight)
    return weight.shape if state is None else torch.Size(state.shape)


def parts(weight: Tensor) -> list[Tensor]:
    """The tensors that a weight is stored in: itself, or codes and scales."""
    state = state_of(weight)
    if state is None:
        return [weight]
    scales = [state.absmax] if state.state2 is None else [state.absmax, state.state2.absmax, state.offset.reshape(1)]
    return [weight, *scales]


def parameters(hf: nn.Module) -> int:
    """Number of weights that a model has, whatever they are stored in."""
    return sum(shape(p).numel() for p in hf.parameters())


def stored_bytes(hf: nn.Module) -> int:
    """Memory of the weights in bytes, scales included."""
    return sum(t.numel() * t.element_size() for p in hf.parameters() for t in parts(p))


@torch.no_grad()
def dequantise(hf: Any) -> None:
    """Replace, in place, all 4-bit layers by plain ones with the weights that they stand for, in their own type."""
    import bitsandbytes
    from transformers.pytorch_utils import Conv1D

    found = [(name, m) for name, m in hf.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    for name, module in found:
        weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, state_of(module.weight))
        bias = module.bias is not None
        plain: Any
        with torch.device("meta"):
            if issubclass(getattr(module, "source_cls", nn.Linear), Conv1D):  # GPT-2 keeps its matrices transposed
                plain, weight = Conv1D(module.out_features, module.in_features), weight.T.contiguous()
            else:
                plain = nn.Linear(module.in_features, module.out_features, bias=bias)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if bias:
            plain.bias = nn.Parameter(module.bias.data, requires_grad=False)
        hf.set_submodule(name, plain)
    if found:
        hf.hf_quantizer.remove_quantization_config(hf)  # or it would be saved as a quantised model
        hf.is_loaded_in_4bit = False

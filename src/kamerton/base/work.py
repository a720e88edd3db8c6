"""How much arithmetic a model did, counted where it happens and turned into FLOPs by its shapes.

Two FLOPs for a multiplication with its addition; norms, activations and softmax are left out (below a hundredth). A
gradient step costs the forward pass once more for the gradients of activations, and once more for those weights that
are trained. Checked against PyTorch's own counter in the tests.

An encoder–decoder's tokens go through three sets of weights: the encoder's once for each token of a prompt, the
decoder's once for each token of an answer, and the decoder's matrices that make keys and values of what the encoder
said once for each of its states. Padding goes through all of them and is counted.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from kamerton import processes
from kamerton.base.frozen import decoder_layers
from kamerton.base.growth import Growth, growth_of

_CROSS = re.compile(r"(EncDecAttention|encoder_attn|cross_attn|crossattention)\.")
_KEYS = re.compile(r"\.(k|v|k_proj|v_proj|key|value|key_proj|value_proj)(\.|$)")
_QUERY = re.compile(r"\.(q|q_proj|query|query_proj)$")
"""Names of a decoder's attention over the encoder's states, of its keys and values, and of queries."""


Heard = Callable[["Work", dict[str, int], bool], None]
_listener: Heard | None = None


@contextmanager
def listening(listener: Heard) -> Iterator[None]:
    """Inside the block a listener is told of every pass as it is counted: the counter, what is added, with gradient."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@dataclass
class Work:
    """Counters of one model: what was computed after sharing, not what was asked.

    Attributes:
        tokens: tokens through the layers; `pairs`: query–key pairs; `outputs`: positions through the output layer.
        passes: times that a layer prepared its weights for a pass (DoRA measures its rows).
        replayed, replayed_pairs: the part of tokens and pairs that did not go through layers that are frozen, because
            what these give was known (`frozen.py`).
        grad_tokens, grad_pairs, grad_outputs: the part of them that was computed with gradient.
        encoder_tokens, encoder_pairs: of an encoder; `tokens` and `pairs` are then the decoder's, pairs with the
            encoder's states included.
        memory: encoder states of which a decoder computed its keys and values.
        grad_encoder_tokens, grad_encoder_pairs, grad_memory: the part of them that was computed with gradient.
    """

    tokens: int = 0
    pairs: int = 0
    outputs: int = 0
    passes: int = 0
    replayed: int = 0
    replayed_pairs: int = 0
    grad_tokens: int = 0
    grad_pairs: int = 0
    grad_outputs: int = 0
    encoder_tokens: int = 0
    encoder_pairs: int = 0
    memory: int = 0
    grad_encoder_tokens: int = 0
    grad_encoder_pairs: int = 0
    grad_memory: int = 0

    def add(
        self, *, tokens: int = 0, pairs: int = 0, outputs: int = 0, passes: int = 0, replayed: int = 0,
        replayed_pairs: int = 0, keys: int = 0, grad: bool = False,
    ) -> None:  # fmt: skip
        """Count some work.

        Args:
            keys: positions whose keys and values a pass reads in each layer; only a listener is told of them.
        """
        if _listener is not None:
            told = {"tokens": tokens, "pairs": pairs, "outputs": outputs, "passes": passes, "replayed": replayed,
                    "replayed_pairs": replayed_pairs, "keys": keys}  # fmt: skip
            _listener(self, told, grad)
        self.passes += passes
        self.replayed += replayed
        self.replayed_pairs += replayed_pairs
        self.tokens += tokens
        self.pairs += pairs
        self.outputs += outputs
        if grad:
            self.grad_tokens += tokens
            self.grad_pairs += pairs
            self.grad_outputs += outputs

    def add_encoder(self, *, tokens: int = 0, pairs: int = 0, memory: int = 0, grad: bool = False) -> None:
        """Count some work of an encoder, or on its states."""
        self.encoder_tokens += tokens
        self.encoder_pairs += pairs
        self.memory += memory
        if grad:
            self.grad_encoder_tokens += tokens
            self.grad_encoder_pairs += pairs
            self.grad_memory += memory

    def belongs(self, model: Any) -> Work:
        """Say whose work it is: `owner()` is then the model, as long as it lives."""
        self.owner = weakref.ref(model)
        return self

    def copy(self) -> Work:
        return Work(**asdict(self))

    def of_all(self) -> Work:
        """The work of all processes of this launch together; all of them call it."""
        parts = processes.gathered(self)
        return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])

    def __add__(self, other: Work) -> Work:
        return Work(**{k: v + getattr(other, k) for k, v in asdict(self).items()})

    def __sub__(self, other: Work) -> Work:
        return Work(**{k: v - getattr(other, k) for k, v in asdict(self).items()})


def flops(work: Work, hf: Any, *, itself: bool = False) -> float:
    """Floating-point operations that some work took on a model (a transformers model, adapters inside).

    Of a stand-in (`stand_in.py`) they are those that the model which it stands for would take, or, asked for `itself`,
    its own.
    """
    if hf.config.is_encoder_decoder:
        return _encoder_decoder_flops(work, hf)
    config = hf.config.get_text_config()
    grown = Growth() if itself else growth_of(hf.config)
    head = hf.get_output_embeddings()  # none: a classifier, whose head is a matrix like any other
    weights = trained = prepared = below = 0
    seen = set() if head is None else {id(head.weight)}
    frozen = _frozen_layers(hf)
    inside = {id(m) for layer in frozen for m in layer.modules()}
    for module in hf.modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        if len(getattr(module, "lora_magnitude_vector", ())):  # B A is written out, through the unit matrix
            n, m = (grown.sizes.get(size, size) for size in (module.in_features, module.out_features))
            prepared += sum(n * rank * (n + m) for rank in module.r.values())
        for matrix, share in _others(module, config):
            count = round(share * grown.numel(matrix))
            weights += count
            trained += count if matrix.requires_grad else 0
            below += count if id(module) in inside else 0
        weight = getattr(module, "weight", None)
        if id(weight) in seen:  # a LoRA layer shows its base layer's weight as its own
            continue
        # every matrix is a product with the hidden state: Linear, GPT-2's Conv1D, a LoRA matrix
        if isinstance(weight, nn.Parameter) and weight.ndim == 2:
            seen.add(id(weight))
            count = grown.numel(weight)  # of the matrix, not of its packed codes
            weights += count
            trained += count if weight.requires_grad else 0
            below += count if id(module) in inside else 0
    heads = config.num_attention_heads  # a recurrent model has none, and no pairs
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    pair = 4 * (grown.width or heads * head_dim)  # scores and their weighted sum, for one pair in one layer
    attention, attention_below = pair * config.num_hidden_layers, pair * len(frozen)
    output = 0 if head is None else 2 * grown.numel(head.weight)
    forward = 2 * prepared * work.passes + 2 * weights * work.tokens + attention * work.pairs + output * work.outputs
    forward -= 2 * below * work.replayed + attention_below * work.replayed_pairs
    if not work.grad_tokens:
        return float(forward)
    # the gradient goes down to the lowest layer that is trained
    activations = 2 * (weights - below) * work.grad_tokens + 2 * (attention - attention_below) * work.grad_pairs
    activations += output * work.grad_outputs
    own = 2 * trained * work.grad_tokens + (
        output * work.grad_outputs if head is not None and head.weight.requires_grad else 0
    )
    return float(forward + activations + own)


def _others(module: nn.Module, config: Any) -> Iterator[tuple[nn.Parameter, float]]:
    """Matrices that are not a module's `weight`, with the share of tokens that go through each.

    Those of a recurrent layer, and the experts of a mixture, (E, …) at once, of which a token goes through a few.
    """
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from ((p, 1.0) for p in module.parameters(recurse=False) if p.ndim == 2)
        return
    for parameter in module.parameters(recurse=False):
        if parameter.ndim == 3 and parameter.shape[0] == getattr(config, "num_local_experts", None):
            yield parameter, config.num_experts_per_tok / config.num_local_experts


def _frozen_layers(hf: Any) -> list[nn.Module]:
    """The layers below the lowest one that is trained, where nothing under them is trained either."""
    layers = decoder_layers(hf)
    if layers is None or hf.get_input_embeddings().weight.requires_grad:
        return []
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    return list(layers)[: trained.index(True)] if any(trained) else []


def _encoder_decoder_flops(work: Work, hf: Any) -> float:
    head = hf.get_output_embeddings()
    weights, trained, pair = encoder_decoder_parts(hf)
    # scores and their weighted sum; attention over the encoder's states is as wide as the decoder's own
    done = [
        ("encoder", work.encoder_tokens, work.grad_encoder_tokens), ("memory", work.memory, work.grad_memory),
        ("decoder", work.tokens, work.grad_tokens),
    ]  # fmt: skip
    output = 2 * head.weight.numel()
    total = output * (work.outputs + work.grad_outputs * (2 if head.weight.requires_grad else 1))
    for part, tokens, grad in done:
        total += 2 * weights[part] * (tokens + grad) + 2 * trained[part] * grad
    total += 4 * pair["encoder"] * (work.encoder_pairs + 2 * work.grad_encoder_pairs)
    total += 4 * pair["decoder"] * (work.pairs + 2 * work.grad_pairs)
    return float(total)


def encoder_decoder_parts(hf: Any) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What an encoder–decoder's tokens go through: weights, trained weights, and the width of attention, all layers'.

    Each by part: `encoder`, `decoder`, and `memory`, the decoder's keys and values of the encoder's states.
    """
    head = hf.get_output_embeddings()
    inside = {id(module) for module in hf.get_encoder().modules()}
    weights, trained, pair = ({"encoder": 0, "memory": 0, "decoder": 0} for _ in range(3))
    seen = {id(head.weight)}
    for name, module in hf.named_modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        cross = _CROSS.search(name)
        part = "decoder" if id(module) not in inside else "encoder"
        for matrix, share in _others(module, hf.config):
            weights[part] += round(share * matrix.numel())
            trained[part] += round(share * matrix.numel()) if matrix.requires_grad else 0
        weight = getattr(module, "weight", None)
        if part == "decoder" and cross and _KEYS.search(name, cross.end() - 1):
            part = "memory"
        if not (isinstance(weight, nn.Parameter) and weight.ndim == 2):
            continue
        if _QUERY.search(name) and not cross:
            pair[part] += weight.shape[0]
        if id(weight) not in seen:  # a LoRA layer shows its base layer's weight as its own
            seen.add(id(weight))
            weights[part] += weight.numel()
            trained[part] += weight.numel() if weight.requires_grad else 0
    return weights, trained, pair

"""Prefix tuning: trained keys and values in front of every sequence, in every layer (Li & Liang 2021, arXiv
2101.00190), through peft.

The prefix can start from real activations: the keys and values that the model itself computes for a text, which the
paper found best where there are few examples (section 7.4). What is trained then is how far it moves away from them,
in units of each layer's own spread: values of the first layer are tens of times smaller than those of the last, and
one learning rate in absolute numbers is too large for one and too small for the other. The paper's MLP is an option;
its last layer starts at zero, so that it too begins at the activations. peft's file holds only the flat keys and
values, whatever way they were trained.

In an encoder–decoder the prefix stands in the decoder's self-attention, as in peft. The paper's BART has prefixes in
the encoder and in the attention over its states too; peft has no place for those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from kamerton.base.attention import LayerKeys
from kamerton.base.encoder_decoder import EncoderDecoderModel, model_for
from kamerton.base.load import Base
from kamerton.base.passes import Front
from kamerton.errors import ModelError
from kamerton.tasks.example import Task
from kamerton.tuning.encoders import Moved, Placed
from kamerton.tuning.layer_keys import as_computed, by_layer, file_layers, flat, slots, spread, stacked
from kamerton.tuning.parameterisation import Options, Tuned, load_peft
from kamerton.tuning.starts import STARTS, check_start


class PrefixOptions(Options):
    """Options of prefix tuning."""

    tokens: int = Field(100, gt=0, description="positions of the prefix")
    init: Literal["examples", "task", "labels", "vocabulary", "random"] = Field(
        "examples",
        description="start from the model's keys and values for: the instruction and solved examples as they stand in "
        "a prompt, the task's own words, its class labels, random words; or from random numbers",
    )
    reparameterise: Literal["scale", "mlp", "none"] = Field(
        "scale",
        description="train the distance from the start in units of each layer's spread, or the paper's MLP over "
        "embeddings (in the same units), or the keys and values themselves",
    )
    hidden: int = Field(512, gt=0, description="width of the MLP's embeddings and hidden layer")


class Prefix:
    """Keys and values in front of every sequence, in every layer."""

    name = "prefix-tuning"
    options = PrefixOptions
    encoder_decoder = True

    @staticmethod
    def check(base: Base, task: Task, options: PrefixOptions) -> None:
        """Refuse a start that the task does not have."""
        check_start(base, task, options.init, options.tokens)

    @staticmethod
    def attach(base: Base, options: PrefixOptions, task: Task, seed: int) -> Tuned:
        from peft import get_peft_model

        name = "vocabulary" if options.init == "random" else options.init  # random numbers take their size from these
        layers = base.model.keys_of(STARTS[name](base, task, options.tokens, seed).tolist())
        fresh = base.reload(frozen=True)
        torch.manual_seed(seed)
        peft = get_peft_model(fresh.model.hf, _config(fresh, layers, options.tokens))
        config, encoder = peft.peft_config["default"], peft.prompt_encoder["default"]
        shape = (config.num_attention_heads, options.tokens, config.token_dim // config.num_attention_heads)
        order = _order(fresh, config)
        if len(layers) != len(order) or any(x.shape != shape for pair in layers for x in pair):
            raise ModelError(
                f"{fresh.info.architecture} has layers with keys of other shapes, which prefix tuning cannot take",
                mend="use prompt-tuning",
            )
        start = stacked(layers)  # (L, 2, H_kv, n, D)
        first, unit = flat(start), flat(spread(start))
        if options.init == "random":  # peft's normal numbers, of the size that real keys and values have
            first = encoder.embedding.weight.detach()[:, : unit.shape[1]] * unit
        made: nn.Module = nn.Embedding.from_pretrained(first, freeze=False)
        if options.reparameterise != "none":
            network = _mlp(options.tokens, options.hidden, first.shape[1]) if options.reparameterise == "mlp" else None
            made = Moved(first, unit, network)
        if fresh.model.encoder_decoder:
            peft.prompt_encoder["default"] = Placed(made, order, config.num_layers).to(first.device)
        elif options.reparameterise != "none":
            peft.prompt_encoder["default"] = made.to(first.device)
        else:
            encoder.embedding.weight.data.copy_(first)
        return _tuned(fresh, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return _tuned(*load_peft(base, folder))


def _config(fresh: Base, layers: LayerKeys, tokens: int) -> Any:
    """peft's configuration; the sizes of a decoder behind an encoder are said, since peft takes the encoder's."""
    from peft import PrefixTuningConfig

    sizes = {}
    if fresh.model.encoder_decoder:
        heads, _, width = layers[0][0].shape
        sizes = {"num_layers": file_layers(len(layers)), "num_attention_heads": heads, "token_dim": heads * width}
    return PrefixTuningConfig(task_type=fresh.model.task_type, num_virtual_tokens=tokens, **sizes)


def _order(fresh: Base, config: Any) -> list[int]:
    """Which of the layers in peft's file each of the model's layers reads."""
    model = fresh.model
    return slots(model.decoder_layers) if isinstance(model, EncoderDecoderModel) else list(range(config.num_layers))


def _mlp(tokens: int, hidden: int, width: int) -> nn.Module:
    """The paper's reparameterisation: an embedding for each position and a two-layer network; zeros at first."""
    last = nn.Linear(hidden, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Embedding(tokens, hidden), nn.Linear(hidden, hidden), nn.Tanh(), last)


def _tuned(fresh: Base, peft: Any) -> Tuned:
    config = peft.peft_config["default"]
    order = _order(fresh, config)

    def front() -> Front:
        encoder = peft.prompt_encoder["default"]
        if config.inference_mode:
            numbers = encoder.embedding.weight
        else:
            places = torch.arange(config.num_virtual_tokens, device=encoder.embedding.weight.device)
            with torch.autocast(places.device.type, enabled=False):  # float32, as it is trained
                numbers = encoder(places)
        numbers = as_computed(numbers, fresh.model.dtype)
        keys = by_layer(numbers, config.num_layers, config.num_attention_heads)
        return Front(keys=[keys[i] for i in order])

    return Tuned(model_for(fresh.model.hf, front), peft, peft)

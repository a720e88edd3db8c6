"""Prefix tuning: trained keys and values in front of every sequence, in every layer (Li & Liang 2021, arXiv
2101.00190), through peft.

The prefix can start from real activations: the keys and values that the model itself computes for a text, which the
paper found best where there are few examples (section 7.4). What is trained then is how far it moves away from them,
in units of each layer's own spread: values of the first layer are tens of times smaller than those of the last, and
one learning rate in absolute numbers is too large for one and too small for the other. The paper's MLP is an option;
its last layer starts at zero, so that it too begins at the activations. peft's file holds only the flat keys and
values, whatever way they were trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from kamerton.base.load import Base
from kamerton.base.model import CausalModel, Front
from kamerton.errors import ModelError
from kamerton.tasks.example import Task
from kamerton.tuning.encoders import Moved
from kamerton.tuning.layer_keys import activations, as_computed, by_layer, flat, spread, stacked
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

    @staticmethod
    def check(base: Base, task: Task, options: PrefixOptions) -> None:
        """Refuse a start that the task does not have."""
        check_start(base, task, options.init, options.tokens)

    @staticmethod
    def attach(base: Base, options: PrefixOptions, task: Task, seed: int) -> Tuned:
        from peft import PrefixTuningConfig, get_peft_model

        name = "vocabulary" if options.init == "random" else options.init  # random numbers take their size from these
        layers = activations(base, STARTS[name](base, task, options.tokens, seed), "prefix tuning")
        fresh = base.reload()
        torch.manual_seed(seed)
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=options.tokens)
        peft = get_peft_model(fresh.model.hf, config)
        shape = (config.num_attention_heads, options.tokens, config.token_dim // config.num_attention_heads)
        if len(layers) != config.num_layers or any(x.shape != shape for pair in layers for x in pair):
            raise ModelError(
                f"{fresh.info.architecture} has layers with keys of other shapes, which prefix tuning cannot take",
                mend="use prompt-tuning",
            )
        start = stacked(layers)  # (L, 2, H_kv, n, D)
        encoder = peft.prompt_encoder["default"]
        with torch.no_grad():
            if options.init != "random":
                encoder.embedding.weight.copy_(flat(start))
            else:
                # of the size that real keys and values have
                encoder.embedding.weight.mul_(flat(spread(start)))
        if options.reparameterise != "none":
            first = encoder.embedding.weight
            network = None
            if options.reparameterise == "mlp":
                network = _mlp(options.tokens, options.hidden, first.shape[1])
            moved = Moved(first, flat(spread(start)), network)
            peft.prompt_encoder["default"] = moved.to(first.device)
        return _tuned(fresh, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return _tuned(*load_peft(base, folder))


def _mlp(tokens: int, hidden: int, width: int) -> nn.Module:
    """The paper's reparameterisation: an embedding for each position and a two-layer network; zeros at first."""
    last = nn.Linear(hidden, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Embedding(tokens, hidden), nn.Linear(hidden, hidden), nn.Tanh(), last)


def _tuned(fresh: Base, peft: Any) -> Tuned:
    config = peft.peft_config["default"]

    def front() -> Front:
        encoder = peft.prompt_encoder["default"]
        if config.inference_mode:
            numbers = encoder.embedding.weight
        else:
            places = torch.arange(config.num_virtual_tokens, device=encoder.embedding.weight.device)
            with torch.autocast(places.device.type, enabled=False):  # float32, as it is trained
                numbers = encoder(places)
        numbers = as_computed(numbers, fresh.model.dtype)
        return Front(keys=by_layer(numbers, config.num_layers, config.num_attention_heads))

    return Tuned(CausalModel(fresh.model.hf, front), peft, peft)

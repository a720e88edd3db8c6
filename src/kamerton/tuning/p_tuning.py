"""P-tuning: soft tokens that a small network computes from trained embeddings (Liu et al. 2021, arXiv 2103.10385),
through peft.

The network (an LSTM over the soft tokens, or an MLP on each) ties the soft tokens to one another while they are
trained; afterwards only what it gives is kept, as plain soft tokens. The paper starts from random numbers. Here the
network may also compute the distance from real tokens, in units of the spread of the model's embeddings, with its last
layer at zero at the start. The paper's other idea, soft tokens between the words of a template, is left out: a chat
template stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from kamerton.base.load import Base
from kamerton.tasks.example import Task
from kamerton.tuning.encoders import Moved
from kamerton.tuning.parameterisation import Options, Tuned, load_peft
from kamerton.tuning.prompt import embeddings_of, soft_tokens, spread
from kamerton.tuning.starts import STARTS, check_start


class PTuningOptions(Options):
    """Options of P-tuning."""

    tokens: int = Field(100, gt=0, description="number of soft tokens")
    encoder: Literal["lstm", "mlp"] = Field("mlp", description="the network: a bidirectional LSTM, or an MLP")
    hidden: int | None = Field(None, gt=0, description="width of the network; none: the model's width")
    layers: int = Field(2, gt=0, description="layers of the LSTM (the MLP always has three)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout between the LSTM's layers")
    init: Literal["examples", "task", "labels", "vocabulary", "random"] = Field(
        "examples",
        description="start from the instruction and solved examples as they stand in a prompt, from the task's own "
        "words, its class labels, random words; or from what a random network gives (the paper's)",
    )


class PTuning:
    """Soft tokens out of a network."""

    name = "p-tuning"
    options = PTuningOptions
    encoder_decoder = True

    @staticmethod
    def check(base: Base, task: Task, options: PTuningOptions) -> None:
        """Refuse a start that the task does not have."""
        check_start(base, task, options.init, options.tokens)

    @staticmethod
    def attach(base: Base, options: PTuningOptions, task: Task, seed: int) -> Tuned:
        from peft import PromptEncoderConfig, get_peft_model

        start = None
        if options.init != "random":
            start = embeddings_of(base, STARTS[options.init](base, task, options.tokens, seed))
        fresh = base.reload(frozen=True)
        torch.manual_seed(seed)
        config = PromptEncoderConfig(
            task_type=fresh.model.task_type, num_virtual_tokens=options.tokens,
            num_transformer_submodules=1,
            encoder_reparameterization_type=options.encoder.upper(), encoder_hidden_size=options.hidden,
            **({"encoder_num_layers": options.layers, "encoder_dropout": options.dropout}
               if options.encoder == "lstm" else {}),
        )  # fmt: skip
        peft = get_peft_model(fresh.model.hf, config)
        if start is not None:
            network = peft.prompt_encoder["default"]
            last = network.mlp_head[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            peft.prompt_encoder["default"] = Moved(start, spread(base), network)
        return soft_tokens(fresh, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return soft_tokens(*load_peft(base, folder))

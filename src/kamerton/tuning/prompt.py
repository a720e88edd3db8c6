"""Prompt tuning: n trained embeddings in front of every sequence (Lester et al. 2021, arXiv 2104.08691), through peft.

All weights stay frozen. In an encoder–decoder the soft tokens stand before the encoder's input, as in the paper. They
start from embeddings of the vocabulary: random normal starts are known to fail on small models (Lester et al.,
section 3.2). What is trained is the distance from there, in units of the spread of the model's embeddings
(`encoders.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import Base
from kamerton.base.passes import Front
from kamerton.tasks.example import Task
from kamerton.tuning.encoders import Moved
from kamerton.tuning.parameterisation import Options, Tuned, load_peft
from kamerton.tuning.starts import STARTS, check_start


class PromptOptions(Options):
    """Options of prompt tuning."""

    tokens: int = Field(100, gt=0, description="number of soft tokens")
    init: Literal["examples", "task", "labels", "vocabulary"] = Field(
        "examples",
        description="start from the instruction and solved examples as they stand in a prompt, from the task's own "
        "words (frequent tokens of its examples), from its class labels, or from random words",
    )
    reparameterise: Literal["scale", "none"] = Field(
        "scale",
        description="train the distance from the start in units of the embeddings' spread, or the numbers as they are",
    )


class PromptTuning:
    """Soft tokens in front of every sequence."""

    name = "prompt-tuning"
    options = PromptOptions
    encoder_decoder = True

    @staticmethod
    def check(base: Base, task: Task, options: PromptOptions) -> None:
        """Refuse a start that the task does not have."""
        check_start(base, task, options.init, options.tokens)

    @staticmethod
    def attach(base: Base, options: PromptOptions, task: Task, seed: int) -> Tuned:
        from peft import PromptTuningConfig, get_peft_model

        start = embeddings_of(base, STARTS[options.init](base, task, options.tokens, seed))
        fresh = base.reload(frozen=True)
        config = PromptTuningConfig(
            task_type=fresh.model.task_type,
            num_virtual_tokens=options.tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            num_transformer_submodules=1,  # an encoder–decoder has soft tokens before its encoder only
        )
        peft = get_peft_model(fresh.model.hf, config)
        if options.reparameterise == "none":
            with torch.no_grad():
                peft.prompt_encoder["default"].embedding.weight.copy_(start)
        else:
            peft.prompt_encoder["default"] = Moved(start, spread(base))
        return soft_tokens(fresh, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return soft_tokens(*load_peft(base, folder))


@torch.no_grad()
def embeddings_of(base: Base, ids: Tensor) -> Tensor:
    """(n,) token ids → (n, H) embeddings in float32, as the model's first layer sees them."""
    return base.model.hf.get_input_embeddings()(ids.to(base.model.device)).float()


@torch.no_grad()
def spread(base: Base) -> Tensor:
    """() standard deviation of the numbers in the model's token embeddings: the unit of what moves them."""
    embed = base.model.hf.get_input_embeddings()
    some = torch.arange(0, embed.weight.shape[0], max(1, embed.weight.shape[0] // 2048), device=base.model.device)
    return embed(some).float().std()


def soft_tokens(fresh: Base, peft: Any) -> Tuned:
    """What peft's encoder of soft tokens gives, in front of every sequence."""

    def front() -> Front:
        # our packs put the soft tokens in front themselves, once for all rows that share a prefix; in float32, in which
        # they are trained, also where the model computes in another type
        with torch.autocast(fresh.model.device.type, enabled=False):
            return Front(embeddings=peft.get_prompt(batch_size=1)[0])

    return Tuned(model_for(fresh.model.hf, front), peft, peft)

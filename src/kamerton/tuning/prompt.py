"""Prompt tuning: n trained embeddings in front of every sequence (Lester et al. 2021, arXiv 2104.08691), through peft.

All weights stay frozen. In an encoder–decoder the soft tokens stand before the encoder's input, as in the paper. They
start from embeddings of the vocabulary: random normal starts are known to fail on small models (Lester et al.,
section 3.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import Base
from kamerton.base.model import Front
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options, Tuned, load_peft


class PromptOptions(Options):
    """Options of prompt tuning."""

    tokens: int = Field(20, gt=0, description="number of soft tokens")
    init: Literal["task", "vocabulary"] = Field(
        "task", description="start from the task's own words (frequent tokens of its examples), or from random words"
    )


class PromptTuning:
    """Soft tokens in front of every sequence."""

    name = "prompt-tuning"
    options = PromptOptions
    encoder_decoder = True

    @staticmethod
    def attach(base: Base, options: PromptOptions, task: Task, seed: int) -> Tuned:
        from peft import PromptTuningConfig, get_peft_model

        fresh = base.reload()
        torch.manual_seed(seed)
        config = PromptTuningConfig(
            task_type=fresh.model.task_type,
            num_virtual_tokens=options.tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            num_transformer_submodules=1,  # an encoder–decoder has soft tokens before its encoder only
        )
        peft = get_peft_model(fresh.model.hf, config)
        if options.init == "task":
            ids = _task_tokens(base, task, options.tokens, seed)
            with torch.no_grad():
                weight = peft.prompt_encoder["default"].embedding.weight
                weight.copy_(fresh.model.hf.get_input_embeddings()(ids.to(fresh.model.device)).float())
        return _tuned(fresh, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return _tuned(*load_peft(base, folder))


def _tuned(fresh: Base, peft: Any) -> Tuned:
    # our packs put the soft tokens in front themselves, once for all rows that share a prefix
    return Tuned(model_for(fresh.model.hf, lambda: Front(embeddings=peft.get_prompt(batch_size=1)[0])), peft, peft)


def _task_tokens(base: Base, task: Task, count: int, seed: int) -> torch.Tensor:
    """(count,) token ids drawn from the task's training texts, each token's chance its frequency."""
    from kamerton.tasks.example import fingerprint

    texts = [m.content for e in task.train for m in e.messages] + [e.answers[0] for e in task.train]
    ids = [i for text in texts for i in base.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]]
    if not ids:
        ids = list(range(len(base.renderer.tokenizer)))
    generator = torch.Generator().manual_seed(seed + int(fingerprint(count)[:8], 16))
    distinct, counts = torch.tensor(ids).unique(return_counts=True)
    weights = counts.double().sqrt()  # the root: common words lead, but do not crowd out the rest
    picked = torch.multinomial(weights, count, replacement=len(distinct) < count, generator=generator)
    return distinct[picked]

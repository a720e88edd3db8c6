"""Full fine-tuning: every weight is trained, in float32 with the optimiser beside it.

Computed in bfloat16 where the base is; kept in float32, because steps of a small learning rate vanish in bfloat16's
eight bits. Saved as a model folder that transformers loads.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import Base, load_weights_folder
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options, Tuned


class FullOptions(Options):
    """Options of full fine-tuning."""

    freeze_embeddings: bool = Field(False, description="leave token embeddings (and a tied output layer) as they are")


class Full:
    """All weights."""

    name = "full"
    options = FullOptions
    encoder_decoder = True

    @staticmethod
    def attach(base: Base, options: FullOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        fresh = base.reload(dtype="float32")
        fresh.model.hf.requires_grad_(True)
        if options.freeze_embeddings:
            fresh.model.hf.get_input_embeddings().requires_grad_(False)
        return Tuned(model_for(fresh.model.hf), fresh.model.hf)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        hf = load_weights_folder(folder, base.model.dtype, base.model.device)
        return Tuned(model_for(hf), hf)

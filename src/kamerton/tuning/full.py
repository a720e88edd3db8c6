"""Full fine-tuning: every weight is trained, in float32 with the optimiser beside it.

Lower layers may be left as they are; what they give is then computed once for each text and kept (`base/frozen.py`).

Computed in bfloat16 where the base is; kept in float32, because steps of a small learning rate vanish in bfloat16's
eight bits. Saved as a model folder that transformers loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from kamerton.base.encoder_decoder import model_for
from kamerton.base.frozen import FrozenLayers, decoder_layers
from kamerton.base.load import Base, load_weights_folder
from kamerton.errors import ModelError, RecipeError
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options, Tuned


class FullOptions(Options):
    """Options of full fine-tuning."""

    freeze_layers: int = Field(0, ge=0, description="leave so many lower layers, and all below them, as they are")
    freeze_embeddings: bool = Field(False, description="leave token embeddings (and a tied output layer) as they are")


class Full:
    """All weights."""

    name = "full"
    options = FullOptions
    encoder_decoder = True
    encoder = True

    @staticmethod
    def check(base: Base, task: Task, options: FullOptions) -> None:  # noqa: ARG004
        """Refuse weights that cannot be trained, and layers that are not there."""
        if base.info.quantised:
            raise ModelError(
                f"weights in {base.info.quantised} cannot be trained",
                where="full",
                mend="use qlora, or leave quantise out of the base",
            )
        if options.freeze_layers and base.model.encoder_decoder:
            raise RecipeError(
                f"freeze_layers is not defined for an encoder–decoder base ({base.info.architecture})",
                where="full.freeze_layers", mend="leave it out",
            )  # fmt: skip
        if options.freeze_layers:
            _lower(base.model.hf, options.freeze_layers)

    @staticmethod
    def attach(base: Base, options: FullOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        Full.check(base, task, options)
        fresh = base.reload(dtype="float32")
        fresh.model.hf.requires_grad_(True)
        if options.freeze_embeddings:
            fresh.model.hf.get_input_embeddings().requires_grad_(False)
        model = model_for(fresh.model.hf)
        if options.freeze_layers:
            _freeze_lower(fresh.model.hf, options.freeze_layers)
        if options.freeze_layers and not model.encoder:
            model.frozen = FrozenLayers(fresh.model.hf, options.freeze_layers)
        return Tuned(model, fresh.model.hf)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        hf = load_weights_folder(folder, base.model.dtype, base.model.device)
        return Tuned(model_for(hf), hf)


def _lower(hf: Any, count: int) -> list[nn.Module]:
    """So many of the lowest layers, where that leaves one."""
    layers = decoder_layers(hf)
    if layers is None:
        mend = "leave freeze_layers out"
        raise ModelError(f"{type(hf).__name__} has no list of layers", where="full.freeze_layers", mend=mend)
    if count >= len(layers):
        raise RecipeError(
            f"{count} of {len(layers)} layers would be frozen",
            where="full.freeze_layers",
            mend=f"freeze at most {len(layers) - 1}",
        )
    return list(layers)[:count]


def _freeze_lower(hf: Any, count: int) -> None:
    """Freeze the lowest layers and the embeddings, of tokens and of positions, that stand below them."""
    for layer in _lower(hf, count):
        layer.requires_grad_(False)
    for module in hf.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)

"""A head on a frozen encoder: only the head is trained (linear probing; Devlin et al. 2019, section 5.3, and Peters et
al. 2019, arXiv 1903.05987, on when that is enough).

A pooler that came without weights belongs to the head. Saved as a whole model folder that transformers loads.
"""

from __future__ import annotations

from pathlib import Path

from kamerton.base.encoder import EncoderModel, new_modules
from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import Base, load_weights_folder
from kamerton.errors import RecipeError
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options, Tuned


class HeadOnlyOptions(Options):
    """Training the head alone has no options of its own."""


class HeadOnly:
    """The head's weights."""

    name = "head"
    options = HeadOnlyOptions
    encoder = True

    @staticmethod
    def check(base: Base, task: Task, options: HeadOnlyOptions) -> None:  # noqa: ARG004
        """Refuse a base that has no head of its own."""
        if not base.model.encoder:
            message = f"only an encoder is given a head, and {base.info.architecture} is none"
            raise RecipeError(message, where="head", mend="use lora, or an encoder (BERT, RoBERTa, …) as base")

    @staticmethod
    def attach(base: Base, options: HeadOnlyOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        fresh = base.reload(dtype="float32")  # small steps vanish in bfloat16
        model = fresh.model
        assert isinstance(model, EncoderModel)
        for name in new_modules(model):
            model.hf.get_submodule(name).requires_grad_(True)
        return Tuned(model, model.hf)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        hf = load_weights_folder(folder, base.model.dtype, base.model.device)
        return Tuned(model_for(hf), hf)

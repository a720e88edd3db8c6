"""QLoRA: LoRA on a copy of the base whose weights are in 4 bits (Dettmers et al. 2023, arXiv 2305.14314).

The copy is quantised to NF4 with double quantisation while it is loaded; the matrices are trained in float32 and
computed in the base's data type, as in LoRA. At step 0 the model is the quantised base, not the base.

What it leaves out: paged optimiser states. The matrices' optimiser is small, and gradients reach only the matrices.
"""

from __future__ import annotations

from pathlib import Path

from kamerton.base.load import Base
from kamerton.base.quantise import require_bitsandbytes
from kamerton.tasks.example import Task
from kamerton.tuning.lora import LoraOptions, attach_lora, tuned_lora
from kamerton.tuning.parameterisation import Tuned, load_injected
from kamerton.tuning.targets import resolve_targets


class QLora:
    """LoRA matrices on linear layers that are stored in 4 bits."""

    name = "qlora"
    options = LoraOptions
    encoder_decoder = True

    @staticmethod
    def check(base: Base, task: Task, options: LoraOptions) -> None:  # noqa: ARG004
        """Refuse targets that match no layer, and a machine without bitsandbytes."""
        require_bitsandbytes()
        resolve_targets(base, options.targets, "qlora.targets")

    @staticmethod
    def attach(base: Base, options: LoraOptions, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        return attach_lora(base.reload(quantise="nf4", frozen=options.bias == "none"), options, seed, "qlora.targets")

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return tuned_lora(*load_injected(base, folder, quantise="nf4"))

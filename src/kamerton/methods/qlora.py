"""`qlora`: LoRA matrices on 4-bit weights × an objective (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from kamerton.methods.lora import LoraMethod, LoraMethodOptions
from kamerton.tuning.qlora import QLora


class QLoraMethodOptions(LoraMethodOptions):
    """Options of the method `qlora`."""


class QLoraMethod(LoraMethod):
    """LoRA on a copy of the base whose weights are in NF4."""

    name = "qlora"
    summary = "LoRA beside weights in 4 bits"
    trains = "two matrices of rank r for each linear layer"
    paper = "Dettmers et al. 2023, arXiv 2305.14314"
    options = QLoraMethodOptions
    parameterisation = QLora

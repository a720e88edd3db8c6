"""Parameterisations: what is trained. Each is one short file and one line in the table below."""

from __future__ import annotations

from importlib import import_module

from kamerton.errors import RecipeError
from kamerton.tuning.parameterisation import Options, Parameterisation, Tuned

PARAMETERISATIONS: dict[str, str] = {
    "lora": "kamerton.tuning.lora:Lora",
    "qlora": "kamerton.tuning.qlora:QLora",
    "prompt-tuning": "kamerton.tuning.prompt:PromptTuning",
    "prefix-tuning": "kamerton.tuning.prefix:Prefix",
    "p-tuning": "kamerton.tuning.p_tuning:PTuning",
    "prompt-generator": "kamerton.tuning.prompt_generator:PromptGenerator",
    "ia3": "kamerton.tuning.ia3:Ia3",
    "adapter": "kamerton.tuning.adapter:Adapter",
    "full": "kamerton.tuning.full:Full",
    "head": "kamerton.tuning.head:HeadOnly",
}


def get_parameterisation(name: str) -> type[Parameterisation]:
    """A parameterisation by name."""
    if name not in PARAMETERISATIONS:
        raise RecipeError(f"unknown parameterisation '{name}'", mend=f"use one of: {', '.join(PARAMETERISATIONS)}")
    module, _, attribute = PARAMETERISATIONS[name].partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["PARAMETERISATIONS", "Options", "Parameterisation", "Tuned", "get_parameterisation"]

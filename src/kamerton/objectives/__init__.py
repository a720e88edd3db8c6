"""Objectives: what is optimised. Each is one short file with its formula and one line in the table below."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kamerton.errors import RecipeError

OBJECTIVES: dict[str, str] = {
    "supervised": "kamerton.objectives.supervised:Supervised",
    "language-modeling": "kamerton.objectives.language_modeling:LanguageModeling",
    "adversarial": "kamerton.objectives.adversarial:Adversarial",
    "rejection-sampling": "kamerton.objectives.rejection_sampling:RejectionSampling",
    "dpo": "kamerton.objectives.dpo:Dpo",
    "grpo": "kamerton.objectives.grpo:Grpo",
    "ppo": "kamerton.objectives.ppo:Ppo",
    "retrieval-marginal": "kamerton.objectives.retrieval_marginal:RetrievalMarginal",
}


def get_objective(name: str) -> Any:
    """The class of an objective; its `build` makes one for a base, a task and a method's options."""
    if name not in OBJECTIVES:
        raise RecipeError(f"unknown objective '{name}'", mend=f"use one of: {', '.join(OBJECTIVES)}")
    module, _, attribute = OBJECTIVES[name].partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["OBJECTIVES", "get_objective"]

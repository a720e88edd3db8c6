"""`gan-prompt`: generative adversarial prompt tuning, a prompt generator × the adversarial objective.

A small network turns each query into soft prompt tokens for the frozen model, and is trained against a discriminator
that tells reference answers from the model's own (Goodfellow et al. 2014, arXiv 1406.2661, for the principle). It
starts as prompt tuning, is trained with supervision first, and keeps the supervised start where the adversarial stage
brings nothing on validation examples.
"""

from __future__ import annotations

from pydantic import Field

from kamerton.methods.prompt_generator import PromptGeneratorMethod, PromptGeneratorMethodOptions


class GanPromptOptions(PromptGeneratorMethodOptions):
    """Options of the method `gan-prompt`."""

    objective: str = Field("adversarial", description="what is optimised")


class GanPrompt(PromptGeneratorMethod):
    """Soft tokens made of the query by a network that is trained against a discriminator."""

    name = "gan-prompt"
    summary = "soft tokens made of the query by a network that is trained against a discriminator"
    paper = "this project; Goodfellow et al. 2014, arXiv 1406.2661"
    options = GanPromptOptions

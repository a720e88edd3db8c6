"""Options of an encoder's head."""

from __future__ import annotations

from pydantic import Field

from kamerton.tuning.parameterisation import Options


class HeadOptions(Options):
    """How long texts are read, and how a span is chosen."""

    window: int = Field(384, ge=16, description="span: tokens of a window over a long context, the question included")
    stride: int = Field(128, ge=0, description="span and tagging: tokens that neighbouring windows share")
    longest: int = Field(30, gt=0, description="span: tokens of the longest answer")
    threshold: float = Field(0.0, description="span: by how much 'no answer' must score higher than the best span")

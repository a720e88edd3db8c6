"""What a parameterisation is: it decides which numbers are trained, and how they attach to a base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from torch import nn

from kamerton.base.load import Base
from kamerton.base.model import CausalModel
from kamerton.tasks.example import Task


class Options(BaseModel):
    """Base of all options: unknown names are refused, values are checked, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass
class Tuned:
    """A base with trainable parameters attached.

    Attributes:
        model: what objectives, evaluation and chat call.
        module: holds the trained parameters (those that require gradient).
        peft: the peft model, None for full fine-tuning.
    """

    model: CausalModel
    module: nn.Module
    peft: Any = None

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write what was trained, in the format that peft (or transformers, for full fine-tuning) loads."""
        folder.mkdir(parents=True, exist_ok=True)
        target = self.peft if self.peft is not None else self.model.hf
        target.save_pretrained(folder, safe_serialization=True)


class Parameterisation(Protocol):
    """One way of making a base trainable."""

    name: ClassVar[str]
    options: ClassVar[type[Options]]

    @staticmethod
    def attach(base: Base, options: Any, task: Task, seed: int) -> Tuned:
        """Attach fresh trainable parameters to a copy of the base, initialised by `seed`."""
        ...

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        """Attach what `Tuned.save` wrote."""
        ...

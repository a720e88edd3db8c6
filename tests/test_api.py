"""The same in Python: `kt.tune`, `kt.load`, `kt.evaluate`, `kt.compare`; and the whole on the demo model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kamerton as kt
import tiny
from kamerton.comparison.run import Watcher
from kamerton.methods import get_method
from kamerton.recipe import load_recipe

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

LORA = "- zero-shot\n- lora: {learning_rate: 0.01, batch_size: 8, validations: 2}"


@pytest.fixture(scope="module")
def recipe(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("api"), small_folder, LORA, seeds="[3]")


def asked() -> list[Any]:
    return [e.messages for e in tiny.colour_task().test]


GREEDY = {"max_tokens": 6}


def test_every_public_name_is_there() -> None:
    for name in kt.__all__:
        assert getattr(kt, name) is not None
        assert name in dir(kt)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kt.nothing
    assert set(kt.__all__) == set(kt._NAMES)


def test_compare_prints_progress_where_somebody_looks_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = kt.load_recipe(recipe, overrides={"methods": ["zero-shot"], "budget.steps": 2})
    assert isinstance(loaded, kt.Recipe)

    def said(**given: Any) -> str:
        kt.compare(loaded, output=tmp_path / "out", workers=1, **given)
        return capsys.readouterr().err

    assert said() == "", "nobody looks on here"
    assert "task colours" in said(progress=True)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert "1 cells are finished already, 0 to run" in said(), "a notebook"
    assert said(progress=False) == ""
    assert said(watcher=Watcher()) == ""


def test_import_is_light() -> None:
    code = (
        "import sys, kamerton; print([m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tune_load_evaluate(recipe: Path, tmp_path: Path, small_base: kt.Base) -> None:
    stages: list[str] = []
    adapted = kt.tune(
        recipe,
        "lora",
        output=tmp_path / "a",
        options={"rank": 2},
        report=lambda stage, *_: stages.append(stage),
    )
    assert adapted.options.rank == 2  # type: ignore[attr-defined]
    assert stages
    loaded = kt.load(tmp_path / "a")
    sampling = kt.Sampling(**GREEDY)  # type: ignore[arg-type]
    assert loaded.generate(asked(), sampling) == adapted.generate(asked(), sampling)
    result = kt.evaluate(loaded, recipe)
    assert result.answers == [a.text for a in adapted.generate([e.messages for e in result.examples], sampling)]
    assert result.metrics["exact-match"] == sum(result.right or []) / 16
    assert str(result).startswith("exact-match ")
    assert result._repr_markdown_().startswith("| metric | value |\n| --- | --- |\n| exact-match |")
    assert kt.evaluate(tmp_path / "a", recipe, split="validation").examples != result.examples
    same = kt.tune(load_recipe(recipe), "lora", output=tmp_path / "b", options={"rank": 2}, base=small_base, seed=3)
    assert same.generate(asked(), sampling) == adapted.generate(asked(), sampling)
    other = kt.tune(recipe, "lora", output=tmp_path / "c", options={"rank": 2}, seed=4)
    assert other.generate(asked(), sampling) != adapted.generate(asked(), sampling)


def test_tuned_again_in_its_folder_with_other_options(recipe: Path, tmp_path: Path) -> None:
    kt.tune(recipe, "lora", output=tmp_path, options={"rank": 2})
    kt.tune(recipe, "lora", output=tmp_path, options={"rank": 4})
    assert kt.load(tmp_path).options.rank == 4  # type: ignore[attr-defined]
    kt.tune(recipe, "zero-shot", output=tmp_path)
    assert kt.load(tmp_path).method == "zero-shot"


def test_a_base_named_by_a_relative_path_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    tiny.save(tmp_path / "project" / "model")
    tiny.write_recipe(tmp_path / "project", "model", LORA, seeds="[0]")
    monkeypatch.chdir(tmp_path / "project")
    kt.tune("colours.yaml", "zero-shot", output="tuned")
    monkeypatch.chdir(tmp_path)
    assert kt.load("project/tuned").method == "zero-shot"


def test_a_base_is_loaded_as_the_untouched_model(small_folder: Path, recipe: Path) -> None:
    found = kt.load(small_folder)
    assert found.method == "zero-shot"
    assert kt.evaluate(small_folder, recipe).metrics == kt.evaluate(found, recipe).metrics


def test_a_method_that_the_recipe_does_not_name(recipe: Path, tmp_path: Path) -> None:
    assert kt.tune(recipe, "few-shot", output=tmp_path, options={"shots": 1}).method == "few-shot"
    with pytest.raises(kt.KamertonError, match="unknown method"):
        kt.tune(recipe, "lorra", output=tmp_path)
    with pytest.raises(kt.KamertonError, match="has 2 methods; name one: zero-shot, lora"):
        kt.tune(recipe, output=tmp_path)
    with pytest.raises(kt.KamertonError, match=r"methods\.1\.lora.*lora has no option 'rnak'; did you mean rank"):
        kt.tune(recipe, "lora", output=tmp_path, options={"rnak": 1})
    with pytest.raises(kt.KamertonError, match="no split 'dev'"):
        kt.evaluate("demo", recipe, split="dev")


def test_examples_made_in_python(small_folder: Path, tmp_path: Path) -> None:
    """A recipe as a dictionary, a task as objects; and the comparison's winner can be loaded."""
    recipe = {
        "task": "dates", "base": {"model": str(small_folder), "dtype": "float32"},
        "methods": ["zero-shot", {"lora": {"learning_rate": 0.01, "batch_size": 8}}], "seeds": [0],
        "budget": {"steps": 60}, "forgetting": False,
    }  # fmt: skip
    task = tiny.colour_task()
    comparison = kt.compare(recipe, task=task, output=tmp_path / "out", workers=1)
    assert comparison.failed == []
    assert comparison.results["task"]["name"] == "colours"
    table = {row["label"]: row["value"] for row in comparison.results["verdict"]["rows"]}
    best = max(table, key=lambda label: (table[label], label == comparison.results["verdict"]["rows"][0]["label"]))
    winner = kt.load(tmp_path / "out")
    assert winner.method == best
    cell = kt.load(tmp_path / "out" / "cells" / "lora" / "seed-0")
    assert cell.method == "lora"
    lines = (tmp_path / "out/cells/lora/seed-0/answers.jsonl").read_text().splitlines()
    again = kt.evaluate(cell, recipe, task=task)
    assert [json.loads(line)["answer"] for line in lines] == again.answers
    assert table["lora"] == pytest.approx(again.metrics["exact-match"])
    with pytest.raises(kt.KamertonError, match="test split is empty"):
        kt.compare(recipe, task=replace(task, test=()), output=tmp_path / "no")


def test_a_comparison_without_a_winner(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"verdict": null}')
    with pytest.raises(kt.KamertonError, match="no winner yet"):
        kt.load(tmp_path)
    (tmp_path / "results.json").write_text('{"verd')
    with pytest.raises(kt.KamertonError, match=r"results\.json"):
        kt.load(tmp_path)


TRAINED = ("prompt-tuning", "prefix-tuning", "p-tuning", "p-tuning-v2", "prompt-generator", "gan-prompt", "ia3", "adapter",
           "lora", "qlora", "full")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_the_defaults_of_a_trained_method_beat_asking(demo: kt.Base, tmp_path: Path, method: str) -> None:
    """The demo model on `dates`, a small budget with the search inside it: far above the untouched base (about 1%)."""
    import torch

    torch.set_num_threads(2)
    recipe = {
        "task": {"embedded": "dates", "limit": {"train": 256, "validation": 32, "test": 60}}, "base": "demo",
        "methods": [method], "budget": {"examples": 256, "tokens": 6_000},
    }  # fmt: skip
    adapted = kt.tune(recipe, output=tmp_path, base=demo)
    trained, untouched = kt.evaluate(adapted, recipe).metrics, kt.evaluate(kt.load("demo", base=demo), recipe).metrics
    assert trained["exact-match"] > untouched["exact-match"] + 0.25


def test_every_trained_method_has_that_test() -> None:
    """`rag` is measured on questions that documents answer."""
    assert {m for m in tiny.CAUSAL if get_method(m).trains != "nothing"} - {"rag"} == set(TRAINED)

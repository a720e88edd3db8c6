"""The recipe: what it accepts, what it means, and that errors found later still know their line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.errors import KamertonError, RecipeError
from kamerton.recipe import Recipe, load_recipe
from kamerton.recipe_errors import closest
from kamerton.yaml_source import parse_yaml

RECIPE = """\
task: dates
base: demo
methods:
  - zero-shot
  - few-shot: {shots: 8}
  - lora: {rank: 16, label: lora-16}
  - lora:
      rank: 4
seeds: 2
budget: {tokens: 60_000, seconds: 1.5e2}
"""
EXAMPLES = [p for p in sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")) if "scratch" not in p.stem]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_fields_and_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.name == "mine"
    assert recipe.seeds == (0, 1)
    assert [m.label for m in recipe.methods] == ["zero-shot", "few-shot", "lora-16", "lora"]
    assert recipe.methods[2].options == {"rank": 16}
    assert recipe.methods[3].options == {"rank": 4}
    assert (recipe.budget.tokens, recipe.budget.seconds, recipe.budget.steps) == (60_000, 150.0, None)
    assert recipe.base.model == "demo"
    assert recipe.task.embedded == "dates"
    assert recipe.forgetting is not None
    assert recipe.forgetting.text.path == "embedded"
    assert recipe.source == recipe_file
    assert recipe.text == RECIPE


def test_later_errors_know_their_line(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    for path in (("methods", 2, "rank"), (*recipe.methods[2].path, "rank")):
        assert str(recipe.error(path, "too big", mend="use 8")) == (
            f"{recipe_file}:6: methods.2.lora.rank: too big; use 8"
        )
    assert f"{recipe_file}:8: methods.3.lora.rank" in str(recipe.error(("methods", 3, "rank"), "x"))
    assert f"{recipe_file}:1: task.limit.train" in str(recipe.task.error(("limit", "train"), "x"))


def test_survives_pickling(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    copy = pickle.loads(pickle.dumps(recipe))
    assert copy == recipe
    assert str(copy.error(("seeds",), "x")) == str(recipe.error(("seeds",), "x"))
    assert str(copy.task.error(("name",), "x")) == str(recipe.task.error(("name",), "x"))


def test_from_dict_equals_yaml(recipe_file: Path) -> None:
    assert Recipe.from_dict(yaml.safe_load(RECIPE), name="mine").model_dump() == load_recipe(recipe_file).model_dump()
    with pytest.raises(RecipeError, match=r"^recipe: budget\.tokens: must be greater than 0"):
        Recipe.from_dict({"task": "dates", "methods": ["lora"], "budget": {"tokens": -1}})


def test_overrides(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, overrides=["budget.steps=4", "methods.3.lora.rank=7", "base.dtype=float32"])
    assert recipe.budget.steps == 4
    assert recipe.methods[3].options == {"rank": 7}
    assert (recipe.base.model, recipe.base.dtype) == ("demo", "float32")
    assert load_recipe(recipe_file, overrides={"task.limit.train": 9}).task.limit.train == 9
    with pytest.raises(RecipeError, match=r"^override budget\.tokens: must be greater than 0, not -1"):
        load_recipe(recipe_file, overrides=["budget.tokens=-1"])
    with pytest.raises(RecipeError, match="no such field"):
        load_recipe(recipe_file, overrides=["methods.9.rank=1"])
    with pytest.raises(RecipeError, match="is not field=value"):
        load_recipe(recipe_file, overrides=["budget"])


def test_local_data_replaces_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "task:\n"
        "  data:\n"
        "    hub: some/set\n"
        "    local: {train: a.csv, test: [b.csv, c.csv], columns: {label: category}}\n"
        "  columns: {label: label}\n"
        "methods: [zero-shot]\n"
    )
    data = tmp_path / "copy"
    data.mkdir()
    recipe = load_recipe(path, data=data)
    assert recipe.task.data is not None
    assert recipe.task.data.hub is None
    assert recipe.task.data.train == (str(data / "a.csv"),)
    assert recipe.task.data.test == (str(data / "b.csv"), str(data / "c.csv"))
    assert recipe.task.columns["label"].source == ("category",)
    assert f"{path}:4: task.data.test" in str(recipe.task.error(("data", "test"), "x"))
    with pytest.raises(RecipeError, match="no such file or folder"):
        load_recipe(path, data=tmp_path / "nothing")
    file = data / "all.csv"
    file.write_text("text,label\n")
    replaced = load_recipe(path, data=file).task.data
    assert replaced is not None
    assert replaced.path == (str(file),)


def test_paths_start_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, here = tmp_path / "recipes", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    (folder / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(here)
    recipe = load_recipe(folder / "r.yaml")
    assert recipe.resolve("a.csv") == folder / "a.csv"
    (here / "a.csv").touch()
    assert recipe.resolve("a.csv") == here / "a.csv"
    (folder / "a.csv").touch()
    assert recipe.resolve("a.csv") == folder / "a.csv"


def test_yaml_follows_version_1_2() -> None:
    value, _ = parse_yaml("{a: no, b: on, c: 1e-3, d: 12:30, e: 2024-01-31, f: 007, g: true, 0: x, h: 1_000, i: 0x10}")
    assert value == {
        "a": "no", "b": "on", "c": 0.001, "d": "12:30", "e": "2024-01-31", "f": "007", "g": True, "0": "x", "h": 1000,
        "i": 16,
    }  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-999, 999) | st.text("abc yno:#-{}[]'\"", max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=3),
        max_leaves=12,
    )
)
def test_yaml_reads_what_pyyaml_writes(value: object) -> None:
    # quoting by PyYAML's own, older rules never changes a value here
    assert parse_yaml(yaml.safe_dump(value))[0] == value


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    said = str(path)
    try:
        load_recipe(path)
    except KamertonError as error:
        said = str(error)
    assert "\n" not in said
    assert str(path) in said


def test_labels_of_a_closed_set_may_be_numbers_or_yes() -> None:
    task = {"data": {"path": "x.csv"}, "labels": {0: "no", 1: "yes"}}
    assert Recipe.from_dict({"task": task, "methods": ["a"]}).task.labels == {"0": "no", "1": "yes"}


def test_closest() -> None:
    assert closest("columms", ["columns", "labels"]) == "did you mean columns?"
    assert closest("zzz", ["b", "a"]) == "known are: a, b"
    assert closest("TEXT", ["Text", "Label"]) == "did you mean Text?"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.methods
    assert recipe.output == f"runs/{path.stem}"

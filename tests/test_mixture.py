"""Instruction mixtures: proportions, phrasings, what is held out, errors at their lines, the metric over tasks."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kamerton.comparison.run import compare
from kamerton.errors import KamertonError, RecipeError, TaskError
from kamerton.evaluation.metrics import evaluate, get_metric
from kamerton.evaluation.statistics import estimate
from kamerton.recipe import Recipe, TaskSpec, load_recipe
from kamerton.tasks import Example, Message, Task, load_task

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder: Path, name: str, rows: int, *, labels: tuple[str, ...] = ("yes", "no"), text: str = "") -> Path:
    """A table of so many questions with labels."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"{text or name} question {i}", labels[i % len(labels)]] for i in range(rows))
    return folder / f"{name}.csv"


def part(path: Path, **more: Any) -> dict[str, Any]:
    return {
        "data": {"path": str(path)},
        "split": {"validation": 10, "test": 10},
        "instruction": "Answer {labels}.",
        **more,
    }


def load(parts: list[Any], held_out: list[Any] = [], **more: Any) -> Task:  # noqa: B006 (not changed)
    return load_task(Recipe.from_dict({
        "task": {"mixture": parts, "held_out": held_out, **more}, "methods": ["zero-shot"],
    }).task)  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return {name: write(folder, name, n) for name, n in (("small", 40), ("middle", 90), ("large", 300), ("unseen", 60))}


# -- mixing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cap=st.one_of(st.none(), st.integers(1, 320)), seed=st.integers(0, 99))
def test_tasks_are_mixed_in_proportion_to_their_size_up_to_the_cap(
    tables: dict[str, Path], cap: int | None, seed: int
) -> None:
    more = {"seed": seed} if cap is None else {"seed": seed, "cap": cap}
    task = load([part(tables[n]) for n in ("small", "middle", "large")], [part(tables["unseen"])], **more)
    sizes = {"small": 20, "middle": 70, "large": 280}
    expected = {name: min(n, cap or n) for name, n in sizes.items()}
    assert Counter(e.group for e in task.train) == expected
    assert Counter(e.group for e in task.validation) == {name: min(10, cap or 10) for name in sizes}
    assert {e.group for e in task.test} == {"unseen"}
    assert len(task.test) == 10
    ids = [e.id for split in (task.train, task.validation, task.test) for e in split]
    assert len(set(ids)) == len(ids)


def test_the_mixture_is_shuffled_so_that_any_first_part_is_a_sample(tables: dict[str, Path]) -> None:
    task = load([part(tables[n]) for n in ("middle", "large")], [part(tables["unseen"])])
    first = Counter(e.group for e in task.train[:100])
    assert 10 <= first["middle"] <= 33, "20 are expected of 70 in 350"
    limited = load(
        [part(tables[n]) for n in ("middle", "large")], [part(tables["unseen"])], limit={"train": 100, "test": 4}
    )
    assert limited.train == task.train[:100]
    assert limited.test == task.test[:4]
    assert "train: a sample of 100 of 350 examples is used" in limited.notes


def test_the_order_of_files_and_of_runs_changes_nothing(tables: dict[str, Path], tmp_path: Path) -> None:
    one = load([part(tables["small"]), part(tables["middle"])], [part(tables["unseen"])])
    assert one == load([part(tables["small"]), part(tables["middle"])], [part(tables["unseen"])])
    lines = tables["middle"].read_text().splitlines()
    (tmp_path / "middle.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    other = load([part(tables["small"]), part(tmp_path / "middle.csv")], [part(tables["unseen"])])
    assert [e.messages for e in one.train] == [e.messages for e in other.train]
    assert (
        one.fingerprint
        != load([part(tables["small"]), part(tables["middle"])], [part(tables["unseen"])], seed=1).fingerprint
    )


def test_no_held_out_question_is_trained_on(tables: dict[str, Path], tmp_path: Path) -> None:
    """A task that has the test questions of the held-out one among its own loses them."""
    leak = write(tmp_path, "leak", 60, text="unseen")
    cut = {"validation": 10, "test": 10, "seed": 5}
    task = load([part(tables["small"]), part(leak, split=cut)], [part(tables["unseen"])])
    asked = {e.messages for e in task.test}
    assert not asked & {e.messages for e in (*task.train, *task.validation)}
    removed = sum(
        int(m.group(1)) for n in task.notes if (m := re.match(r"(?:train|validation): (\d+) examples were removed", n))
    )
    assert removed > 0
    assert len(task.train) + len(task.validation) == 30 + 50 - removed


def test_without_held_out_tasks_the_test_is_of_the_mixed_ones(tables: dict[str, Path]) -> None:
    task = load([part(tables["small"]), part(tables["middle"])])
    assert Counter(e.group for e in task.test) == {"small": 10, "middle": 10}


# -- phrasings ------------------------------------------------------------------------------------------------------

PHRASINGS = [
    {"instruction": "Is it so? {labels}"},
    "Say yes or no: {text}",
    {"template": "{text}, or not?", "instruction": "Decide: {labels}.", "instruct_in": "user"},
]


def phrase(example: Example) -> int:
    first, last = example.messages[0], example.messages[-1].content
    return 0 if first.content.startswith("Is it so? ") else 1 if last.startswith("Say yes or no: ") else 2


def test_every_phrasing_is_used_and_each_question_once(tables: dict[str, Path]) -> None:
    task = load([part(tables["large"], phrasings=PHRASINGS)], [part(tables["unseen"])])
    used = Counter(phrase(e) for e in task.train)
    assert set(used) == {0, 1, 2}
    assert min(used.values()) > 0.2 * len(task.train)
    assert len({e.messages for e in task.train}) == len(task.train)
    second = next(e for e in task.train if phrase(e) == 1)
    assert [m.role for m in second.messages] == ["system", "user"]
    assert second.messages[0].content == "Answer no, yes.", "what a phrasing leaves out is the task's own"
    third = next(e for e in task.train if phrase(e) == 2)
    assert re.fullmatch(r"Decide: no, yes\.\n\nlarge question \d+, or not\?", third.messages[-1].content)


def test_the_same_question_is_asked_alike_in_every_split(tmp_path: Path) -> None:
    """So a question that is in two splits is still found and removed."""
    for split, rows in (("train", 60), ("test", 30)):
        write(tmp_path, split, rows, text="same")
    spec = {
        "data": {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}, "phrasings": PHRASINGS,
        "split": {"validation": 5},
    }  # fmt: skip
    task = load_task(TaskSpec.model_validate(spec))
    assert len(task.train) + len(task.validation) == 30
    assert not {e.messages for e in task.train} & {e.messages for e in task.test}
    other = load_task(TaskSpec.model_validate({**spec, "seed": 1}))
    assert {e.messages for e in task.test} != {e.messages for e in other.test}, "the seed draws the phrasings"


# -- tasks of other recipes, local copies, errors -------------------------------------------------------------------

RECIPE = """\
task:
  mixture:
    - recipe: parts/one.yaml
      limit: {train: 12}
    - name: two
      data: {hub: some/where, local: {path: two.csv}}
      split: {validation: 5, test: 5}
  held_out:
    - parts/three.yaml
methods: [zero-shot]
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        write(tmp_path / "parts", name, 40)
        write(tmp_path / "copies" / name, name, 50)
        (tmp_path / "parts" / f"{name}.yaml").write_text(
            f"task:\n  data: {name}.csv\n  split: {{validation: 5, test: 5}}\n  instruction: Answer.\nmethods: [lora]\n"
        )
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_tasks_of_other_recipes_and_local_copies(folders: Path) -> None:
    task = load_task(load_recipe(folders / "r.yaml", data=folders / "copies").task)
    assert Counter(e.group for e in task.train) == {"one": 12, "two": 40}
    assert Counter(e.group for e in task.test) == {"three": 5}
    assert str(folders / "copies/one/one.csv") in task.source
    text = RECIPE.replace("{hub: some/where, local: {path: two.csv}}", "parts/two.csv")
    (folders / "r.yaml").write_text(text)
    own = load_task(load_recipe(folders / "r.yaml").task)
    assert Counter(e.group for e in own.train) == {"one": 12, "two": 30}, "files of a recipe are beside that recipe"
    changed = load_recipe(folders / "r.yaml", overrides=["task.cap=7", "task.mixture.1.limit.train=3"])
    assert Counter(e.group for e in load_task(changed.task).train) == {"one": 7, "two": 3}


FAULTS: dict[str, tuple[str, str, str]] = {
    "no such recipe": ("parts/one.yaml", "parts/on.yaml", r"r\.yaml:3: task\.mixture\.0: no such recipe 'parts/on\.yaml'; name"),
    "unknown field": ("limit: {train: 12}", "limits: {train: 12}", r"r\.yaml:4: task\.mixture\.0\.limits: unknown field 'limits'; did"),
    "wrong value": ("limit: {train: 12}", "limit: {train: -1}", r"r\.yaml:4: task\.mixture\.0\.limit\.train: must be greater"),
    "two of a name": ("name: two", "name: one", r"r\.yaml:5: task\.mixture\.1: the name 'one' is taken by another task; give"),
    "seen": ("parts/three.yaml", "parts/one.yaml", r"the name 'one' is taken"),
    "seen by another name": (
        "- parts/three.yaml", "- {recipe: parts/one.yaml, name: three}", r"r\.yaml:9: task\.held_out\.0: has the data of mixture\.0",
    ),
    "cap": ("  held_out:", "  cap: 0\n  held_out:", r"r\.yaml:8: task\.cap: must be greater than 0, not 0; change"),
    "metrics of a mixture": ("  held_out:", "  metrics: [accuracy]\n  held_out:", r"task: a mixture takes no metrics; it takes cap"),
    "a mixture in a mixture": (
        "- parts/three.yaml", "- {mixture: [dates]}", r"a mixture is made of tasks, not of mixtures; list them",
    ),
    "a phrasing": (
        "limit: {train: 12}", "phrasings:\n        - instruction: Well?\n        - {template: '{txet}'}",
        r"r\.yaml:6: task\.mixture\.0\.phrasings\.1\.template: no column 'txet'; did you mean text\? the file has: text, label",
    ),
    "no score from 0 to 1": ("name: two", "name: two\n      metrics: [bleu]", r"bleu is no score from 0 to 1 .*; give two another"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[name.replace(" ", "-") for name in FAULTS])
def test_faults_are_one_line_at_their_place(folders: Path, fault: str) -> None:
    from kamerton.comparison.run import check_task

    old, new, says = FAULTS[fault]
    assert old in RECIPE
    text = RECIPE.replace("{hub: some/where, local: {path: two.csv}}", "parts/two.csv")
    (folders / "r.yaml").write_text(text.replace(old, new))

    def read() -> None:
        recipe = load_recipe(folders / "r.yaml")
        check_task(load_task(recipe.task), recipe.task)

    with pytest.raises(KamertonError, match=says) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_fault_in_the_other_recipe_names_that_file(folders: Path) -> None:
    other = folders / "parts/one.yaml"
    other.write_text(other.read_text().replace("instruction: Answer.", "instrction: Answer."))
    with pytest.raises(RecipeError, match=r"one\.yaml:4: task\.instrction: unknown field"):
        load_recipe(folders / "r.yaml")
    other.write_text("methods: [lora]\n")
    with pytest.raises(RecipeError, match=r"one\.yaml: has no task to take; give"):
        load_recipe(folders / "r.yaml")


def test_a_folder_without_a_tasks_copy_is_one_line(folders: Path) -> None:
    (folders / "copies/two/two.csv").unlink()
    (folders / "copies/two").rmdir()
    with pytest.raises(RecipeError, match=r"copies/two: no such folder; give a folder that holds one for each task"):
        load_recipe(folders / "r.yaml", data=folders / "copies")


def test_held_out_without_a_mixture_is_one_line() -> None:
    with pytest.raises(RecipeError, match="held_out and cap belong to a mixture"):
        Recipe.from_dict({"task": {"data": "a.csv", "held_out": ["dates"]}, "methods": ["lora"]})


# -- the metric -----------------------------------------------------------------------------------------------------


def examples(group: str, answers: list[str]) -> list[Example]:
    return [Example(f"{group}-{i}", (Message("user", str(i)),), (a,), group=group) for i, a in enumerate(answers)]


def test_every_task_counts_the_same_by_its_own_metric() -> None:
    two = [*examples("a", ["x"] * 8), *examples("b", ['{"k": 1, "l": 2}', '{"k": 3, "l": 4}'])]
    said = [*["x"] * 6, "y", "y", '{"k": 1, "l": 2}', '{"k": 3, "l": 0}']
    metric = get_metric("by-group:a=accuracy,b=json-f1", two)
    own = [
        evaluate(get_metric("accuracy"), said[:8], two[:8]), evaluate(get_metric("json-f1"), said[8:], two[8:]),
    ]  # fmt: skip
    assert evaluate(metric, said, two) == pytest.approx((0.75 + 0.75) / 2) == pytest.approx(np.mean(own))
    table = metric.statistics(said, two)
    only = table[8:]
    assert float(metric.aggregate(only.sum(0), 2.0)) == pytest.approx(own[1]), (
        "a group that is not there does not count"
    )


@given(st.integers(0, 1000))
def test_its_value_on_a_resample_is_that_of_the_resampled_answers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [*examples("a", ["x", "y"] * 6), *examples("b, c=d%", ["u"] * 5)]
    said = [rng.choice(["x", "y", "u"]) for _ in groups]
    metric = get_metric("by-group:a=macro-f1,b%2C c%3Dd%25=token-f1", groups)
    picked = rng.integers(0, len(groups), len(groups))
    sums = metric.statistics(said, groups)[picked].sum(0)
    parts = []
    for group, name in (("a", "macro-f1"), ("b, c=d%", "token-f1")):
        mine = [i for i in picked if groups[i].group == group]
        judge = get_metric(name, [e for e in groups if e.group == group])
        if mine:
            table = judge.statistics([said[i] for i in mine], [groups[i] for i in mine])
            parts.append(float(judge.aggregate(table.sum(0), float(len(mine)))))
    assert float(metric.aggregate(sums, float(len(picked)))) == pytest.approx(np.mean(parts))
    found = estimate({0: metric.statistics(said, groups)}, metric, resamples=50)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(
    "name", ["by-group:", "by-group:a", "by-group:a=accuracy,,b=x", "by-group:a=bleu", "by-group:a=acuracy"]
)
def test_a_wrong_name_is_one_line(name: str) -> None:
    with pytest.raises(TaskError, match=r"names no metric|no score from 0 to 1|unknown metric"):
        get_metric(name, examples("a", ["x"]))


def test_a_comparison_on_a_mixture_shows_each_held_out_task(small_folder: Path, tmp_path: Path) -> None:
    """From recipe to report: the mean over tasks decides, and the groups are the tasks with their own scores."""
    names = {"one": 40, "three": 40, "four": 30}
    for name, rows in names.items():
        write(tmp_path, name, rows, labels=("red", "blue", "green") if name == "four" else ("red", "blue"))
    recipe = Recipe.from_dict({
        "name": "mix", "base": {"model": str(small_folder), "dtype": "float32"}, "forgetting": False, "seeds": 1,
        "task": {"mixture": [part(tmp_path / "one.csv", phrasings=["{text}?", "Colour of {text}"])],
                 "held_out": [part(tmp_path / "three.csv"), part(tmp_path / "four.csv")]},
        "methods": ["zero-shot"],
    })  # fmt: skip
    found = compare(recipe, output=tmp_path / "out", workers=1).results
    (method,) = found["methods"]
    assert set(method["groups"]) == {"three", "four"}
    parts = [g["value"] for g in method["groups"].values()]
    (row,) = found["verdict"]["rows"]
    assert row["value"] == pytest.approx(np.mean(parts))
    html = (tmp_path / "out/report.html").read_text()
    assert "mean over tasks (accuracy)" in html
    assert "Score by group" in html
    assert "by-group:" not in json.dumps(found["verdict"]["sentences"])


def test_race_and_mixture_judge_validation_by_its_own_tasks(tables: dict[str, Path]) -> None:
    """Validation has other groups than the test: the metric's name covers both."""
    task = load([part(tables["small"]), part(tables["middle"])], [part(tables["unseen"])])
    metric = get_metric(task.metrics[0], task.validation)
    right = [e.answers[0] for e in task.validation]
    assert evaluate(metric, right, task.validation) == 1.0
    assert evaluate(metric, ["?"] * len(right), [replace(e) for e in task.validation]) == 0.0

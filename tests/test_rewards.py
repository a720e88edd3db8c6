"""Rewards that a program gives: verifiers on cases worked by hand, functions of the user's own, sums, and every mistake
in the line that is promised. Reward models, judges and discriminators are in test_learned_rewards.py."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import tiny
from kamerton.base import Base
from kamerton.cli.main import app
from kamerton.comparison.run import Watcher, compare
from kamerton.errors import KamertonError, MissingExtra, RecipeError, RewardError, TaskError
from kamerton.methods import get_method, option_files, parse_options, with_paths
from kamerton.methods.defined import check_fits
from kamerton.recipe import load_recipe
from kamerton.rewards import REWARDS, build_reward, get_reward
from kamerton.rewards.parse import canonical, check_reward, parse_reward, reward_files
from kamerton.rewards.reward import Learning, checked, notes_of
from kamerton.rewards.total import Total
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training.objective import Stateful

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


def example(*answers: str, choices: tuple[str, ...] = (), id: str = "x") -> Example:
    return Example(id=id, messages=conversation([("user", "How much?")]), answers=answers, choices=choices)


def reward(name: str, **options: Any) -> Any:
    """A verifier that needs no base."""
    kind = get_reward(name)
    return kind(kind.options(**options))  # type: ignore[call-arg]


def one(name: str, answer: str, /, *answers: str, choices: tuple[str, ...] = (), **options: Any) -> float:
    """The reward of one answer."""
    (value,) = reward(name, **options)([example(*answers, choices=choices)], [answer])
    return float(value)


# -- the thought ------------------------------------------------------------------------------------------------------

THOUGHT = "<think>It is 7, or 8.</think> 9"


@pytest.mark.parametrize(
    ("text", "thought", "expected"),
    [
        (THOUGHT, "cut", 1),
        (THOUGHT, "required", 1),
        ("9", "cut", 1),
        ("9", "required", 0),
        ("It is 7.</think> 9", "cut", 1),  # the template has opened the thought
        ("<think>a</think><think>b</think>9", "cut", 1),
        ("<think>It is 9", "cut", 0),  # a number in a thought that never ended is no answer
        ("<think>It is 9", "kept", 1),
        ("<think>9</think> 8", "cut", 0),
        ("<think>9</think>", "cut", 0),
    ],
)
def test_only_what_stands_behind_the_thought_is_looked_at(text: str, thought: str, expected: int) -> None:
    assert one("numeric", text, "9", thought=thought) == expected


# -- verifiers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        (" Blue  whale", {}, 1),
        ("blue", {}, 0),
        ("blue whale.", {}, 0),
        ("“blue whale”.", {"bare": True}, 0),  # the full stop is outside of the quotes
        ("“Blue whale.”", {"bare": True}, 1),
        ("BLUE WHALE", {"ignore_case": False}, 0),
        ("blue whale", {"ignore_case": False}, 1),
        ("I think so. #### blue whale", {"after": "####"}, 1),
        ("#### red #### blue whale", {"after": "####"}, 1),
        ("blue whale", {"after": "####"}, 0),
        ("bluе whale", {}, 0),  # a Cyrillic letter
        ("ｂｌｕｅ whale", {}, 1),  # NFKC
    ],
)
def test_exact(answer: str, options: dict[str, Any], expected: int) -> None:
    assert one("exact", answer, "blue whale", "orca", **options) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "options", "expected"),
    [
        ("He pays 3 · 24 = $72.", "72", {}, 1),
        ("72 apples, not 73", "72", {}, 0),  # the last one counts
        ("#### 1,234.50", "1234.5", {}, 1),
        ("1234.50 euros", "#### 1,234.5", {}, 1),
        ("1\u202f234", "1234", {}, 1),
        ("1\u2009234", "1234", {}, 1),
        ("−3", "-3", {}, 1),
        ("3/4 of it", "0.75", {}, 1),
        (r"\boxed{\frac{3}{4}}", "0.75", {}, 1),
        (r"\boxed{1{,}234}", "1234", {}, 1),
        (r"so \boxed{12}, as 3 + 9", "12", {"after": r"\boxed{"}, 1),
        (r"so \boxed{12}, as 3 + 9", "12", {}, 0),
        ("#### 5 apples in 2 bags", "5", {"after": "####"}, 1),
        ("5", "5", {"after": "####"}, 0),
        ("5", "3 and 5 #### 5", {"after": "####"}, 0),
        ("#### 5", "6 #### 5", {"after": "####"}, 1),
        ("1e-3", "0.001", {}, 1),
        ("101", "100", {"relative": 0.01}, 1),
        ("101.1", "100", {"relative": 0.01}, 0),
        ("99", "98.5", {"absolute": 0.5}, 1),
        ("99", "98.4", {"absolute": 0.5}, 0),
        ("0.0000001", "0", {}, 1),
        ("1e999", "1", {}, 0),
        ("none", "1", {}, 0),
        ("", "1", {}, 0),
    ],
)
def test_numeric(answer: str, reference: str, options: dict[str, Any], expected: int) -> None:
    assert one("numeric", answer, reference, **options) == expected


NUMBERS = st.decimals(-(10**9), 10**9, places=2).map(float)
WRITTEN = st.sampled_from(
    ["{:.2f}", "{:,.2f}", "It is ${:,.2f}.", r"\boxed{{{:.2f}}}", "= {:.2f} m", "{:.6e}…", "**{:,.2f}**"]
)


@given(NUMBERS, WRITTEN, WRITTEN, st.sampled_from(["", "3 + 4 = 7, so ", "<think>1</think>"]))
def test_numeric_does_not_depend_on_how_a_number_is_written(x: float, said: str, wanted: str, before: str) -> None:
    tolerance = {"relative": 1e-6, "absolute": 0.006}
    assert one("numeric", before + said.format(x), wanted.format(x), **tolerance) == 1
    assert one("numeric", before + said.format(x + 1 + abs(x) / 100), wanted.format(x), **tolerance) == 0


@given(st.text(), st.text(min_size=1))
def test_verifiers_give_a_number_for_any_text(answer: str, reference: str) -> None:
    for name, options in (("exact", {}), ("exact", {"bare": True, "after": "#"}), ("format", {}),
                          ("format", {"pattern": "think-answer"}), ("length", {"maximum": 9, "unit": "words"}),
                          ("regex", {"pattern": r"(\d+)|x", "answer": True})):  # fmt: skip
        assert -1 <= one(name, answer, reference, **options) <= 1
    assert one("numeric", answer, "1") in (0, 1)
    assert one("choice", answer, "b", choices=("a", "b")) in (0, 1)


CITIES = ("a river", "the dark forest", "forest", "market")


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("forest", 2),
        ("Forest.", 2),
        ("C", 2),
        ("(c)", 2),
        ("c)", 2),
        ("C. forest", 2),
        ("B) forest", 1),  # the letter decides
        ("The answer is C", 2),
        ("The answer is (D).", 3),
        ("answer: A\nbecause B is wrong", 0),
        ("First I thought: answer is A. But the answer is **D**", 3),
        ("It is in the dark forest, I think", 1),  # the longer one
        ("market or forest", None),
        ("A boat", None),  # an article is no letter
        ("E", None),
        ("", None),
        ("marketing", None),
    ],
)
def test_choice(answer: str, picked: int | None) -> None:
    verifier = reward("choice")
    assert verifier.pick(answer, example("forest", choices=CITIES)) == picked
    for i, right in enumerate(CITIES):
        assert one("choice", answer, right, choices=CITIES) == (i == picked)


def test_choice_reads_letters_of_references_and_choices_that_are_letters() -> None:
    assert one("choice", "the dark forest", "B", choices=CITIES) == 1
    assert one("choice", "B", "B", choices=("B", "A")) == 1  # by its text, not its place
    assert one("choice", "The answer is A.", "B", choices=("B", "A")) == 0
    assert one("choice", "B", "forest", choices=CITIES, letters=False) == 0


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("call 555-1234", {"pattern": r"\d{3}-\d{4}"}, 1),
        ("call 555-1234", {"pattern": r"\d{3}-\d{4}", "whole": True}, 0),
        (" 555-1234\n", {"pattern": r"\d{3}-\d{4}", "whole": True}, 1),
        ("SORRY", {"pattern": "sorry"}, 0),
        ("SORRY", {"pattern": "sorry", "ignore_case": True}, 1),
        ("Sorry, no.", {"pattern": "(?i)sorry", "absent": True}, 0),
        ("Yes.", {"pattern": "(?i)sorry", "absent": True}, 1),
        ("x = red; x = Blue", {"pattern": r"x = (\w+)", "answer": True}, 1),
        ("x = blue; x = red", {"pattern": r"x = (\w+)", "answer": True}, 0),
        ("y", {"pattern": r"x = (\w+)", "answer": True}, 0),
        ("blue!", {"pattern": r"\w+", "answer": True}, 1),
    ],
)
def test_regex(answer: str, options: dict[str, Any], expected: int) -> None:
    assert one("regex", answer, "blue", **options) == expected


@pytest.mark.parametrize(
    ("answer", "pattern", "expected"),
    [
        ("<think>a</think>b", "think", 1),
        ("  <think>\na\n</think>\n\nb\n", "think", 1),
        ("<think></think>b", "think", 0),
        ("<think>a</think>", "think", 0),
        ("a<think>a</think>b", "think", 0),
        ("</think>a<think>b", "think", 0),
        ("<think>a</think>b</think>", "think", 0),
        ("<think>a<think>b</think>c", "think", 0),
        ("<think>a", "think", 0),
        ("b", "think", 0),
        ("a</think>b", "thought", 1),
        ("<think>a</think>b", "thought", 0),
        ("a</think>", "thought", 0),
        ("<think>a</think><answer>b</answer>", "think-answer", 1),
        ("<think>a</think> so <answer>b</answer>", "think-answer", 0),
        ("<think>a</think><answer>b</answer>.", "think-answer", 0),
        ("<answer>b</answer><think>a</think>", "think-answer", 0),
        ("Answer: a\nb", "Answer: .+", 1),
        ("So, Answer: a", "Answer: .+", 0),
    ],
)
def test_format(answer: str, pattern: str, expected: int) -> None:
    assert one("format", answer, "b", pattern=pattern) == expected


@pytest.mark.parametrize(
    ("length", "options", "expected"),
    [
        (0, {"maximum": 20, "buffer": 4}, 0),
        (16, {"maximum": 20, "buffer": 4}, 0),
        (17, {"maximum": 20, "buffer": 4}, -0.25),  # (L_max − L_cache − |y|) / L_cache
        (19, {"maximum": 20, "buffer": 4}, -0.75),
        (20, {"maximum": 20, "buffer": 4}, -1),
        (99, {"maximum": 20, "buffer": 4}, -1),
        (18, {"maximum": 20}, -0.5),  # a fifth
        (20, {"target": 20}, 0),
        (25, {"target": 20}, -0.25),
        (10, {"target": 20}, -0.5),
        (0, {"target": 20}, -1),
        (50, {"target": 20}, -1),
        (22, {"target": 20, "buffer": 4}, -0.5),
    ],
)
def test_length(length: int, options: dict[str, int], expected: float) -> None:
    assert one("length", "word " * length, "b", unit="words", **options) == expected
    assert one("length", "c" * length, "b", unit="characters", **options) == expected


def test_length_in_tokens_counts_the_thought_unless_told_otherwise(small_base: Base) -> None:
    task, text = tiny.colour_task(), "<think>red</think>blue window"
    tokens = len(small_base.renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
    spec = {"length": {"target": tokens}}
    assert build_reward(spec, small_base, task)(task.train[:1], [text]).tolist() == [0]
    behind = len(small_base.renderer.tokenizer("blue window", add_special_tokens=False)["input_ids"])
    spec = {"length": {"target": behind, "thought": "cut"}}
    assert build_reward(spec, small_base, task)(task.train[:1], [text]).tolist() == [0]


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ('{"n": 3}', {}, 1),
        ('<think>{"n": -1}</think> {"n": 3}', {}, 1),
        ('{"n": -3}', {}, 0),
        ('{"n": -3}', {"parsed": 0.25}, 0.25),
        ("{n: 3}", {"parsed": 0.25}, 0),
        ('```json\n{"n": 3}\n```', {}, 1),
        ('```\n{"n": 3}\n```', {}, 1),
        ('```json\n{"n": 3}\n```', {"fence": False}, 0),
        ('Here: {"n": 3}', {}, 0),
        ("[" * 100_000, {}, 0),
    ],
)
def test_json_schema(answer: str, options: dict[str, Any], expected: float, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="the extra json-schema is not installed")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert one("json-schema", answer, "b", document=SCHEMA, **options) == expected
    assert one("json-schema", answer, "b", document=str(file), **options) == expected


def test_json_that_is_nested_deeply_stops_nothing() -> None:
    pytest.importorskip("jsonschema", reason="the extra json-schema is not installed")
    deep = {"type": "array", "items": {"$ref": "#"}}
    assert one("json-schema", "[[[]]]", "b", document=deep) == 1
    assert one("json-schema", "[" * 900 + "]" * 900, "b", document=deep, parsed=0.5) == 0


def test_json_schema_fetches_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="the extra json-schema is not installed")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for document, line in (
        (str(tmp_path / "none.json"), f"{tmp_path}/none.json: no such schema; check the path"),
        (str(broken), f"{broken}: the schema is not JSON (Expecting property name enclosed in double quotes: line 1 "
         "column 2 (char 1)); mend the file"),
        ({"type": "strnig"}, "reward json-schema: the schema is wrong at type: 'strnig' is not valid under any of the "
         "given schemas; mend the schema"),
        ({"$ref": "https://example.invalid/x.json"}, "reward json-schema: example x: the schema refers to "
         "'https://example.invalid/x.json', which is not in it; put that part under $defs of the schema"),
    ):  # fmt: skip
        with pytest.raises(RewardError) as caught:
            one("json-schema", "{}", "b", document=document)
        assert str(caught.value) == line


def test_json_schema_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jsonschema", "jsonschema.exceptions", "jsonschema.validators"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        reward("json-schema", document={})
    assert str(caught.value) == "jsonschema is not installed; run: pip install 'kamerton[json-schema]'"


@pytest.mark.parametrize(
    ("name", "bad", "line"),
    [
        ("numeric", example("many"), "reward numeric: example x: the answer 'many' has no number; use another reward, "
         "or mend the answer"),
        ("choice", example("many"), "reward choice: example x: has no choices; use exact, or give the task choices"),
        ("choice", example("many", choices=("one", "two")), "reward choice: example x: the answer 'many' is none of its "
         "choices; mend the answer or the choices"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_verified_are_named(name: str, bad: Example, line: str) -> None:
    with pytest.raises(RewardError) as caught:
        reward(name).fits(bad)
    assert str(caught.value) == line


def test_a_verifier_that_raises_names_the_example() -> None:
    verifier = reward("exact")
    verifier._even = lambda text: 1 / 0
    with pytest.raises(RewardError) as caught:
        verifier([example("a")], ["a"])
    assert str(caught.value) == (
        "reward exact: example x: raises ZeroDivisionError: division by zero; set another reward"
    )


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_of_the_task_are_rewards(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    examples, right = task.train[:2], task.train[0].answers[0]
    answers = [right.upper(), f"<think>a</think>{task.train[1].answers[0]}"]
    assert build_reward(None, small_base, task).name == "exact-match"
    for spec in (None, "exact-match", {"metric": "exact-match"}, {"metric": {}}, {"exact-match": {}}):
        assert build_reward(spec, small_base, task)(examples, answers).tolist() == [1, 0]
    cut = build_reward({"exact-match": {"thought": "cut"}}, small_base, task)
    assert cut(examples, answers).tolist() == [1, 1]
    f1 = build_reward("token-f1", small_base, task)
    assert f1(examples[:1], [f"{right} sea"]) == pytest.approx([2 / 3])
    numeric = Task("n", (example("100"),), (), (), ("numeric",))
    assert build_reward("numeric:0.1", small_base, numeric)(numeric.train, ["109"]).tolist() == [1]
    assert build_reward(None, small_base, numeric)(numeric.train, ["109"]).tolist() == [0]
    (tmp_path / "own.py").write_text(
        "def error(answer, example):\n    return len(answer)\nerror.higher_is_better = False\n"
    )
    own = Task("n", (example("100"),), (), (), (f"{tmp_path}/own.py:error",))
    less = build_reward(None, small_base, own)
    assert less(own.train, ["abc"]).tolist() == [-3]
    assert less.range == (-1, 0)


def test_a_metric_that_is_no_mean_is_refused(small_base: Base) -> None:
    task = Task("t", (example("a"),), (), (), ("macro-f1",))
    with pytest.raises(TaskError) as caught:
        build_reward(None, small_base, task)
    line = "macro-f1 is no mean over examples, so one answer has no reward; name another metric or reward"
    assert str(caught.value) == f"t: {line}"
    with pytest.raises(RecipeError) as refused:
        check_reward(["exact", "bleu"], small_base, task)
    assert str(refused.value) == f"reward: metric: {line.replace('macro-f1', 'bleu')}"


# -- functions --------------------------------------------------------------------------------------------------------

FUNCTIONS = """
import math

def brief(question, answer, references):
    assert question == "How much?" and isinstance(references, list)
    return 1 / len(answer)

def words(questions, answers, references):
    return [len(a.split()) for a in answers]

def nan(question, answer, references):
    return math.nan if answer == "b" else True

def text(question, answer, references):
    return "good"

def nothing(question, answer, references):
    pass

def huge(question, answer, references):
    return 10 ** 400

def single(questions, answers, references):
    return 1.0

def short(questions, answers, references):
    return [1.0]

def boom(questions, answers, references):
    raise RuntimeError("out of\\nluck")

def bounded(question, answer, references):
    return 1 / len(answer) - 1
bounded.range = (-2, 0)
"""
X, Y = example("a", id="x"), example("a", id="y")


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    return str(tmp_path / "own.py")


def test_functions_get_plain_data(functions: str, small_base: Base) -> None:
    task = tiny.colour_task()
    brief = build_reward(f"{functions}:brief", small_base, task)
    assert brief.name == "own.py:brief"
    assert brief([X, Y], ["ab", "abcd"]).tolist() == [0.5, 0.25]
    words = build_reward({"function": {"function": f"{functions}:words", "batch": True}}, small_base, task)
    assert words([X, Y], ["ab", "ab cd"]).tolist() == [1, 2]
    assert words([], []).tolist() == []
    assert notes_of(words) == []


@pytest.mark.parametrize(
    ("function", "batch", "line"),
    [
        ("brief", False, "example y: raises ZeroDivisionError: division by zero; mend the function, or set on_error: skip"),
        ("nan", False, "example x: returns nan (float); return one finite number, or set on_error: skip"),
        ("text", False, "example x: returns 'good' (str); return one finite number, or set on_error: skip"),
        ("nothing", False, "example x: returns None (NoneType); return one finite number, or set on_error: skip"),
        ("huge", False, f"example x: returns 1{'0' * 59} … (int); return one finite number, or set on_error: skip"),
        ("single", True, "example x: returns 1.0 (float); return a list with a number for each answer"),
        ("short", True, "example x: returns 1 values for 2 answers; return a list with a number for each answer"),
        ("boom", True, "example x: raises RuntimeError: out of luck; mend the function, or set on_error: skip"),
    ],
)  # fmt: skip
def test_functions_that_are_wrong_name_reward_and_example(
    functions: str, function: str, batch: bool, line: str
) -> None:
    own = reward("function", function=f"{functions}:{function}", batch=batch)
    with pytest.raises(RewardError) as caught:
        own([X, Y], ["b", ""])
    assert str(caught.value) == f"reward own.py:{function}: {line}"


def test_answers_are_skipped_and_counted_where_the_recipe_says_so(functions: str) -> None:
    own = reward("function", function=f"{functions}:nan", on_error="skip")
    assert own([X, Y], ["b", "a"]).tolist() == [0, 1]
    assert own([X, Y], ["a", "b"]).tolist() == [1, 0]
    note = "reward own.py:nan: 2 of 4 answers skipped and given 0; first, example x: returns nan (float)"
    assert notes_of(own) == [note]
    again = reward("function", function=f"{functions}:nan", on_error="skip")
    again.restore(own.state())
    assert notes_of(again) == ["reward own.py:nan: 2 of 4 answers skipped and given 0"]
    bounded = reward("function", function=f"{functions}:bounded", on_error="skip")
    assert bounded([X, Y], ["", "ab"]).tolist() == [-2, -0.5]  # its own lowest
    lower = reward("function", function=f"{functions}:bounded", on_error="skip", lowest=-5)
    assert lower([X], [""]).tolist() == [-5]
    boom = reward("function", function=f"{functions}:boom", batch=True, on_error="skip")
    assert boom([X, Y], ["a", "b"]).tolist() == [0, 0]
    assert isinstance(own, Stateful)
    assert not isinstance(own, Learning)


# -- sums -------------------------------------------------------------------------------------------------------------


def test_sums_are_weighted_and_their_parts_are_known(small_base: Base) -> None:
    task = tiny.colour_task()
    spec = ["exact", {"format": "think", "weight": 0.25}, {"length": {"maximum": 5, "unit": "characters"}, "weight": 2}]
    total = build_reward(spec, small_base, task)
    assert isinstance(total, Total)
    right, wrong = f"<think>a</think>{task.train[0].answers[0]}", "abcde"
    examples = [task.train[0], task.train[0]]
    parts = total.parts(examples, [right, wrong])
    assert {name: values.tolist() for name, values in parts.items()} == {
        "exact": [1, 0], "format": [1, 0], "length": [-1, -1]
    }  # fmt: skip
    assert total(examples, [right, wrong]).tolist() == [1 + 0.25 - 2, -2]
    assert total.means == {"exact": 0.5, "format": 0.5, "length": -1}
    assert (total.name, total.range) == ("exact + 0.25 format + 2 length", (-2, 1.25))
    turned = build_reward({"exact": {}, "weight": -1}, small_base, task)
    assert turned(examples, [right, wrong]).tolist() == [-1, 0]
    assert turned.range == (-1, 0)
    twice = build_reward([{"regex": "a"}, {"regex": "b", "weight": 0}], small_base, task)
    assert list(twice.parts(examples, ["a", "b"])) == ["regex", "regex (2)"]
    assert twice(examples, ["a", "b"]).tolist() == [1, 0]


@given(st.lists(st.tuples(st.sampled_from(["exact", "numeric", "format"]), st.floats(-2, 2)), min_size=1, max_size=4))
def test_a_sum_is_the_sum(parts: list[tuple[str, float]]) -> None:
    examples, answers = [example("5")] * 3, ["5", "<think>a</think> 5", "6"]
    made = [(reward(name), weight) for name, weight in parts]
    expected = sum(weight * r(examples, answers) for r, weight in made)
    total = Total(made)
    values = total(examples, answers)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert total.range[0] - 1e-9 <= values.min()
    assert values.max() <= total.range[1] + 1e-9


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1.0], "gives 1 values for 2 answers, the first to example x; give one number for each answer"),
        (1.0, "gives no list for 2 answers, the first to example x; give one number for each answer"),
        ([[1.0], [2.0]], "gives 2 × 1 values for 2 answers, the first to example x; give one number for each answer"),
        ([1.0, math.nan], "gives nan for an answer to example y; give a finite number"),
        ([-math.inf, 1.0], "gives -inf for an answer to example x; give a finite number"),
        (["a", "b"], "gives no numbers; give one number for each answer"),
    ],
)
def test_what_is_no_number_for_each_answer_is_refused(values: Any, line: str) -> None:
    with pytest.raises(RewardError) as caught:
        checked("own", [X, Y], ["a", "b"], values)
    assert str(caught.value) == f"reward own: {line}"


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("nummeric", "unknown reward 'nummeric'; did you mean numeric?"),
        ("exact-mach", "unknown reward 'exact-mach'; did you mean exact-match?"),
        (3, "a reward must be a name, or a name with its options, not 3; write a name, {name: {option: value}}, or a list of "
         "these"),
        ([], "reward is an empty list; write a name, {name: {option: value}}, or a list of these"),
        ({"exact": {}, "numeric": {}}, "a reward has one name, and a weight beside it; this names exact, numeric; write a list of rewards to sum them: - {numeric: {}, weight: 1}"),
        ({"weight": 1}, "a reward has one name, and a weight beside it; this names nothing; write a list of rewards to sum them: - {numeric: {}, weight: 1}"),
        ({"exact": {}, "weight": "much"}, "weight must be a number, not 'much'; write weight: 0.5"),
        ({"exact": {}, "weight": math.inf}, "weight must be a number, not inf; write weight: 0.5"),
        ({"exact": "x"}, "options of exact must be a mapping, not 'x'; write exact: {option: value}"),
        ({"exact-match": "x"}, "options of exact-match must be a mapping, not 'x'; write exact-match: {option: value}"),
        ({"numeric": {"relativ": 1}}, "reward numeric has no option 'relativ'; did you mean relative?"),
        ({"numeric": {"relative": -1}}, "numeric.relative: input should be greater than or equal to 0, not -1; see: kamerton rewards numeric"),
        ("regex", "reward regex needs pattern; write regex: {pattern: …}"),
        ({"regex": "("}, "regex.pattern: '(' is no regular expression (missing ), unterminated subpattern at position 0); mend the pattern"),
        ({"regex": {"pattern": "a", "absent": True, "answer": True}}, "regex: absent and answer cannot both be set; leave one of them out"),
        ("length", "length: length needs either maximum or target; write length: {maximum: 200}"),
        ({"length": {"maximum": 5, "buffer": 6}}, "length: buffer is 6, more than maximum 5; lower buffer"),
        ({"judge": {"lowest": 5, "highest": 5}}, "judge: lowest 5 is not below highest 5; write lowest: 1, highest: 10"),
        ({"judge": {"grade_prompt": "Grade it: {anwser}"}}, "judge.grade_prompt: there is no {anwser}; use {question}, {answer}, {reference}, {rubric}, {lowest}, {highest}"),
        ({"judge": {"compare_prompt": "{first}?"}}, "judge.compare_prompt: {second} is nowhere in it; put it where the answer should stand"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_one_line(spec: Any, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_reward(spec)
    assert str(caught.value) == line
    with pytest.raises(RecipeError) as refused:  # and where a method's options are read
        parse_options(get_method("lora"), {"objective": "supervised", "reward": spec})
    assert str(refused.value) == f"lora.reward: {line}"


@pytest.mark.parametrize("spec", ["exact", "token-f1", "own.py:f", {"numeric": {"after": "####"}}, {"regex": "a", "weight": 0.5},
                                  ["exact", {"format": None}]])  # fmt: skip
def test_what_is_saved_has_all_options_and_means_the_same(spec: Any) -> None:
    whole = canonical(spec)
    assert parse_reward(whole) == parse_reward(spec)
    assert canonical(json.loads(json.dumps(whole))) == whole
    options = parse_options(get_method("lora"), {"reward": spec})
    assert parse_options(get_method("lora"), json.loads(json.dumps(options.model_dump()))).reward == options.reward  # type: ignore[attr-defined]


METHODS = """\
- lora:
    learning_rate: 0.01
    objective: {objective}
    reward:
      - exact
      - {reward}
"""


def test_paths_start_from_the_recipe_and_files_are_part_of_a_result(small_folder: Path, tmp_path: Path) -> None:
    text = METHODS.format(objective="supervised", reward="own.py:brief")
    path = tiny.write_recipe(tmp_path / "a", small_folder, text)
    (tmp_path / "a" / "own.py").write_text(FUNCTIONS)
    (tmp_path / "a" / "rm").mkdir()
    recipe = load_recipe(path)
    options = with_paths(recipe, recipe.methods[0].options)
    assert options["reward"] == ["exact", f"{tmp_path}/a/own.py:brief"]
    places = [{"reward-model": "rm"}, {"judge": {"model": "some/hub-id"}}, {"judge": "./rm"}, {"function": "package.own:f"},
              {"json-schema": {"document": "s.json"}}, {"json-schema": {"document": {"type": "object"}}}]  # fmt: skip
    assert with_paths(recipe, {"reward": places})["reward"] == [
        {"reward-model": f"{tmp_path}/a/rm"}, {"judge": {"model": "some/hub-id"}}, {"judge": f"{tmp_path}/a/rm"},
        {"function": "package.own:f"}, {"json-schema": {"document": f"{tmp_path}/a/s.json"}},
        {"json-schema": {"document": {"type": "object"}}},
    ]  # fmt: skip
    assert reward_files(options["reward"]) == [tmp_path / "a" / "own.py"]
    before = option_files(options)
    (tmp_path / "a" / "own.py").write_text(FUNCTIONS + "\n")
    assert list(option_files(options)) == list(before) == [f"{tmp_path}/a/own.py"]
    assert option_files(options) != before


@pytest.mark.parametrize(
    ("reward_", "objective", "line"),
    [
        ("nummeric", "supervised", "11: methods.0.lora.reward: unknown reward 'nummeric'; did you mean numeric?"),
        (
            "exact",
            "supervised",
            "11: methods.0.lora.reward: it is not read by objective supervised; set objective: grpo",
        ),
    ],
)
def test_the_recipes_line_is_named(reward_: str, objective: str, line: str, small_folder: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path, small_folder, METHODS.format(objective=objective, reward=reward_))
    with pytest.raises(KamertonError) as caught:
        compare(path, output=tmp_path / "out", watcher=Watcher())
    assert str(caught.value) == f"{path}:{line}"


def test_a_reward_is_checked_before_the_first_cell(small_base: Base, functions: str, tmp_path: Path) -> None:
    task = tiny.colour_task()
    for spec, line in (
        ("numeric", f"reward: numeric: example {task.train[0].id}: the answer {task.train[0].answers[0]!r} has no "
         "number; use another reward, or mend the answer"),
        (["exact", "choice"], f"reward: choice: example {task.train[0].id}: has no choices; use exact, or give the task "
         "choices"),
        (f"{functions}:brif", f"reward: function: {functions}: no function 'brif'; did you mean brief?"),
        (f"{tmp_path}/none.py:f", f"reward: function: {tmp_path}/none.py: no such file; check the path before the colon"),
        ({"reward-model": f"{tmp_path}/none"}, f"reward: reward-model: {tmp_path}/none: no such model folder; check the "
         "path, or use a hub id, or 'demo'"),
        ({"judge": f"{tmp_path}/none"}, f"reward: judge: {tmp_path}/none: no such model folder; check the path, or use "
         "a hub id, or 'demo'"),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            check_reward(spec, small_base, task)
        assert str(caught.value) == line
    check_reward(["exact", f"{functions}:brief", "judge", "discriminator", {"length": 9}], small_base, task)
    same = Task("same", (example("a"), example("a", id="y")), (), (), ("exact-match",))
    with pytest.raises(RecipeError) as caught:
        check_reward("discriminator", small_base, same)
    assert str(caught.value) == (
        "reward: discriminator: all reference answers are equal, so there is nothing to tell apart; use reward: exact"
    )
    method = get_method("lora")
    options = parse_options(method, {"reward": "exact"})
    with pytest.raises(RecipeError, match="it is not read by objective supervised; set objective: grpo"):
        check_fits(small_base, task, method, options)


def test_the_command_lists_rewards_and_their_options() -> None:
    said = CliRunner().invoke(app, ["rewards"], env={"COLUMNS": "200"}).output
    assert all(name in said for name in REWARDS)
    for name in REWARDS:
        page = CliRunner().invoke(app, ["rewards", name], env={"COLUMNS": "200"}).output
        assert all(option in page for option in get_reward(name).options.model_fields)
    failed = CliRunner().invoke(app, ["rewards", "exacct"])
    assert str(failed.exception) == "unknown reward 'exacct'; did you mean exact?"


def test_a_reward_says_whether_it_reads_accepted_answers(small_base: Base, tmp_path: Path) -> None:
    """Only those that do not may choose among answers at inference."""
    (tmp_path / "own.py").write_text(
        "def blind(question, answer, references):\n    return 1.0\n\nblind.needs_references = False\n\n"
        "def reads(question, answer, references):\n    return float(answer in references)\n"
    )
    task = tiny.colour_task()

    def reads(spec: Any) -> bool:
        return bool(build_reward(spec, small_base, task).needs_references)  # type: ignore[attr-defined]

    blind = ["format", {"regex": "[0-9]+"}, {"length": {"maximum": 9}}, {"function": f"{tmp_path}/own.py:blind"}]
    assert [reads(spec) for spec in blind] == [False] * 4
    assert not reads([{"format": "think"}, {"length": {"maximum": 9}, "weight": 0.5}])
    seeing = ["exact", {"regex": {"pattern": "[a-z]+", "answer": True}}, {"function": f"{tmp_path}/own.py:reads"}]
    assert all(reads(spec) for spec in seeing)
    assert reads([{"format": "think"}, "exact"])

"""Judged answers from files: every form, what is left out, joined or refused, and who copes with bad answers only."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.base import Base
from kamerton.errors import TaskError
from kamerton.methods import load_adapted
from kamerton.objectives.supervised import Supervised
from kamerton.recipe import Recipe, TaskSpec, load_recipe
from kamerton.tasks import Example, Message, Task, load_task
from kamerton.tasks.example import Graded, conversation
from kamerton.tasks.layouts import hh_record
from kamerton.tasks.preference_shape import averaged, common_start
from kamerton.tasks.preferences import Pair, pairs_of

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("KAMERTON_DATA", ROOT.parent / "shared" / "data"))
PAIR = Graded("good", 1.0), Graded("bad", 0.0)


def spec(**fields: Any) -> TaskSpec:
    return Recipe.from_dict({"task": fields, "methods": ["zero-shot"]}).task


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> Task:
    """A task whose training examples are these rows; validation and test are pairs that are no part of the matter."""
    data = {"train": str(write(tmp_path / "rows.jsonl", rows))}
    for name in ("validation", "test"):
        held_out = [{**rows[0], **_question(rows[0], name)}]
        data[name] = str(write(tmp_path / f"{name}.jsonl", held_out))
    return load_task(spec(data=data, **fields))


def _question(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The first row with another question."""
    out: dict[str, Any] = {}
    if "instruction" in row:
        return {"instruction": name}
    if "prompt" in row:
        out["prompt"] = name if isinstance(row["prompt"], str) else turns(("user", name))
    for side in ("chosen", "rejected"):
        said = row.get(side)
        if isinstance(said, str) and "prompt" not in row:
            out[side] = f"{name}? {said}"
        if isinstance(said, list) and said[0].get("role") == "user":
            out[side] = [*turns(("user", name)), said[-1]]
    return out


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def only(task: Task) -> Example:
    (example,) = task.train
    return example


# pairs


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"prompt": "2+2?", "chosen": " good ", "rejected": "bad"}, [("user", "2+2?")]),
        (
            {
                "prompt": turns(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")),
                "chosen": turns(("assistant", "good")), "rejected": turns(("assistant", "bad")),
            },
            [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (
            {"prompt": "c", "chosen": {"role": "assistant", "content": "good"}, "rejected": turns(("gpt", "bad"))},
            [("user", "c")],
        ),
        (
            {
                "chosen": turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "good")),
                "rejected": turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "bad")),
            },
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (
            {
                "prompt": "c",  # as in UltraFeedback: the question beside whole conversations
                "chosen": turns(("user", "c"), ("assistant", "good")),
                "rejected": turns(("user", "c"), ("assistant", "bad")),
            },
            [("user", "c")],
        ),
        ({"chosen": "The sky is good", "rejected": "The sky is bad"}, [("user", "The sky is")]),
        ({"instruction": "Do.", "input": "x", "output": "o", "chosen": "good", "rejected": "bad"},
         [("user", "Do.\n\nx")]),
        ({"system": "S", "prompt": "q", "chosen": "good", "rejected": "bad"}, [("system", "S"), ("user", "q")]),
    ],
    ids=["text", "messages", "one message", "implicit messages", "both", "implicit text", "alpaca", "system"],
)  # fmt: skip
def test_pairs(tmp_path: Path, row: dict[str, Any], asked: Any) -> None:
    task = load(tmp_path, [row])
    example = only(task)
    assert example.messages == conversation(asked)
    assert example.graded == PAIR
    assert example.answers == ("good",)
    assert pairs_of(example) == [Pair(example.id, example.messages, "good", "bad")]
    assert task.metrics == ("rouge-l", "token-f1")


def test_several_last_turns_are_one_answer(tmp_path: Path) -> None:
    chosen = turns(("user", "a"), ("assistant", "one"), ("assistant", "two"))
    example = only(load(tmp_path, [{"chosen": chosen, "rejected": turns(("user", "a"), ("assistant", "bad"))}]))
    assert [g.answer for g in example.graded] == ["one\n\ntwo", "bad"]
    assert example.messages == conversation([("user", "a")])


def test_margins_and_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "a": "good", "b": "bad", "m": m} for m in (1.5, "2", None)]
    columns = {"chosen": "a", "rejected": "b", "margin": "m"}
    task = load(tmp_path, rows, columns=columns)
    assert sorted((pairs_of(e)[0].margin for e in task.train), key=str) == [1.5, 2.0, None]


def test_pairs_of_one_question_stay_apart(tmp_path: Path) -> None:
    """What won one pair may be worse than what lost another."""
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "a"}]
    task = load(tmp_path, rows)
    assert {(p.chosen, p.rejected) for e in task.train for p in pairs_of(e)} == {("a", "b"), ("c", "a")}


def test_a_recipe_that_maps_an_answer_is_not_overruled(tmp_path: Path) -> None:
    rows = [{"instruction": f"i {n}", "output": "o", "chosen": "a", "rejected": "b"} for n in range(3)]
    mapped = {"instruction": "instruction", "output": "output"}
    assert not only(load(tmp_path, rows[:1], columns=mapped)).graded
    assert only(load(tmp_path, rows[:1])).graded


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n // 3}", "chosen": "a", "rejected": f"b {n}"} for n in range(60)]
    first, second = (
        load_task(spec(data=str(write(tmp_path / f"{i}.jsonl", part)), limit={"train": 20}))
        for i, part in enumerate((rows, rows[::-1]))
    )
    for name in ("train", "validation", "test"):
        assert [(e.messages, e.graded) for e in getattr(first, name)] == [
            (e.messages, e.graded) for e in getattr(second, name)
        ]


# lists and single judgements


@pytest.mark.parametrize(
    "answers", [["best", "middle", "worst"], '["best", "middle", "worst"]', [{"text": "best"}, "middle", "worst"]]
)
def test_ranked_lists(tmp_path: Path, answers: Any) -> None:
    example = only(load(tmp_path, [{"prompt": "q", "ranked": answers}]))
    assert example.answers == ("best",)
    assert [(p.chosen, p.rejected) for p in pairs_of(example)] == [
        ("best", "middle"), ("best", "worst"), ("middle", "worst"),
    ]  # fmt: skip


def test_graded_lists(tmp_path: Path) -> None:
    items = [{"answer": "b", "score": 2}, {"completion": "a", "score": 8.5}, {"text": "c", "score": "2"}]
    example = only(load(tmp_path, [{"prompt": "q", "graded": items}]))
    assert example.graded == (Graded("a", 8.5), Graded("b", 2.0), Graded("c", 2.0))
    assert [(p.chosen, p.rejected) for p in pairs_of(example)] == [("a", "b"), ("a", "c")]


def test_scores_of_one_question_are_joined(tmp_path: Path) -> None:
    """A row for each answer, on any scale; an answer that is judged twice has the mean; equal best ones all count."""
    rows = [
        {"prompt": "q", "completion": "a", "score": 4}, {"prompt": "q", "completion": "b", "score": 9},
        {"prompt": "r", "completion": "x", "score": -0.5}, {"prompt": "q", "completion": "a", "score": 10},
        {"prompt": "s", "completion": "y", "score": 3}, {"prompt": "s", "completion": "z", "score": 3},
    ]  # fmt: skip
    task = load(tmp_path, rows)
    found = {e.messages[-1].content: e for e in task.train}
    assert found["q"].graded == (Graded("b", 9.0), Graded("a", 7.0))
    assert found["q"].id == "rows.jsonl:1"
    assert (found["q"].answers, found["r"].answers, found["s"].answers) == (("b",), ("x",), ("y", "z"))
    assert "train: 6 rows are 3 questions with their judged answers" in task.notes
    assert "train: 2 of 3 questions have no two answers of which one is better" in task.notes


@pytest.mark.parametrize(("up", "down"), [(True, False), ("True", "false")])
def test_thumbs(tmp_path: Path, up: Any, down: Any) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": up}, {"prompt": "q", "completion": "b", "label": down},
        {"prompt": "r", "completion": "x", "label": down}, {"prompt": "q", "completion": "c", "label": up},
        {"prompt": "q", "completion": "c", "label": up}, {"prompt": "q", "completion": "d", "label": up},
        {"prompt": "q", "completion": "d", "label": down},
    ]  # fmt: skip
    task = load(tmp_path, rows)
    found = {e.messages[-1].content: e for e in task.train}
    assert found["q"].graded == (Graded("a", 1.0), Graded("c", 1.0), Graded("d", 0.5), Graded("b", 0.0))
    assert found["q"].answers == ("a", "c"), "one thumb up and one down is no good answer"
    assert found["r"].answers == ()
    assert found["r"].graded == (Graded("x", 0.0),)


def test_other_thumbs_where_the_shape_is_stated(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "answer": "a", "label": "up"}, {"question": "q", "answer": "b", "label": 0},
        {"question": "v", "answer": "a", "label": 1},
    ]  # fmt: skip
    write(tmp_path / "v.jsonl", rows[2:])
    write(tmp_path / "t.jsonl", [{"question": "t", "answer": "a", "label": 1}])
    files = {"train": write(tmp_path / "a.jsonl", rows[:2]), "validation": tmp_path / "v.jsonl"}
    data = {**{name: str(file) for name, file in files.items()}, "test": str(tmp_path / "t.jsonl")}
    assert only(load_task(spec(data=data, shape="preference"))).graded == (Graded("a", 1.0), Graded("b", 0.0))


def test_what_is_no_preference_stays_what_it_was(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "completion": f"c {n}", "label": "ab"[n % 2]} for n in range(20)]
    task = load_task(spec(data=str(write(tmp_path / "a.jsonl", rows))))
    assert not any(e.graded for e in task.train)
    assert task.metrics == ("exact-match", "token-f1")


def test_questions_with_bad_answers_only(tmp_path: Path, small_base: Base) -> None:
    """In train they stay, and supervised training leaves them out; validation and test have nothing to hold to."""
    rows = [{"prompt": f"red {n}", "completion": "blue", "label": n % 4 > 0} for n in range(80)]
    task = load_task(spec(data=str(write(tmp_path / "a.jsonl", rows))))
    bad = sum(not e.answers for e in task.train)
    assert bad > 8
    assert all(e.answers for e in (*task.validation, *task.test))
    removed = [n for n in task.notes if "none of their answers is a good one" in n]
    assert removed
    gone = sum(int(re.findall(r": (\d+) questions were removed", n)[0]) for n in removed)
    assert len(task.train) + len(task.validation) + len(task.test) + gone == 80
    assert bad + gone == 20
    objective = Supervised(small_base.renderer, task.train, task.validation)
    assert objective.epoch_examples == len(task.train) - bad
    said = f"{bad} of {len(task.train)} training questions were left out: none of their answers is a good one"
    assert objective.notes == [said]
    with pytest.raises(TaskError, match=r"^none of the 2 training questions has an answer to learn; add"):
        Supervised(small_base.renderer, [e for e in task.train if not e.answers][:2], ())
    for name, options in (("lora", {"learning_rate": 0.01}), ("prompt-tuning", {"learning_rate": 0.1, "tokens": 30}),
                          ("few-shot", {"shots": 2})):  # fmt: skip
        adapted = tiny.fit(small_base, name, tmp_path / name, task=task, **options)
        assert adapted.record.notes.count(said) == 1, name
        adapted.save(tmp_path / "saved" / name)
        load_adapted(tmp_path / "saved" / name, small_base)


def test_learning_the_best_answers_is_what_learning_them_alone_is(tmp_path: Path, small_base: Base) -> None:
    """The same batches as from a file of prompts with the chosen answers as completions."""
    rows = [{"prompt": f"red {n}", "chosen": f"blue {n}", "rejected": "x"} for n in range(40)]
    pairs = load_task(spec(data=str(write(tmp_path / "a.jsonl", rows))))
    plain = load_task(
        spec(data=str(write(tmp_path / "b.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows])))
    )
    both = []
    for task in (pairs, plain):
        train = sorted(task.train, key=lambda e: e.messages[-1].content)
        objective = Supervised(small_base.renderer, train, task.validation, batch_size=8)
        both.append([b.tokens for step in range(3) for b in objective.batches(step, small_base.model)])
    assert both[0] == both[1]


# hh-rlhf


HH = "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:"


def test_conversations_of_hh_rlhf(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"{HH} good", "rejected": f"{HH} bad"},
        {"chosen": "\n\nHuman: a\n\nAssistant: x\n\nAssistant:  y", "rejected": "\n\nHuman: a\n\nAssistant: Human: z"},
        {"chosen": f"{HH}", "rejected": f"{HH} bad"},
        {"chosen": "\n\nHuman: p\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"},
        {"chosen": "\n\nHuman: p\n\nAssistant: x\n\nHuman: q", "rejected": "\n\nHuman: p\n\nAssistant: y"},
        *({"chosen": f"\n\nHuman: {n}\n\nAssistant: x", "rejected": f"\n\nHuman: {n}\n\nAssistant: y"} for n in "vt"),
    ]
    files = [str(write(tmp_path / f"{n}.jsonl", part)) for n, part in (("a", rows[:5]), ("v", rows[5:6]))]
    data = {"train": files[0], "validation": files[1], "test": str(write(tmp_path / "t.jsonl", rows[6:]))}
    task = load_task(spec(data=data, reader="hh-rlhf"))
    found = {e.id: e for e in task.train}
    assert set(found) == {"a.jsonl:1", "a.jsonl:2"}
    asked = [("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]
    assert found["a.jsonl:1"].messages == conversation(asked)  # type: ignore[arg-type]
    assert found["a.jsonl:1"].graded == PAIR
    assert [g.answer for g in found["a.jsonl:2"].graded] == ["x\n\ny", "Human: z"]
    first = str(tmp_path / "a.jsonl")
    assert [n for n in task.notes if "left out" in n] == [
        f"train: 1 record was left out because an answer is empty ({first}:3)",
        f"train: 1 record was left out because the conversations differ before their last turn ({first}:4)",
        f"train: 1 record was left out because a conversation does not end with the assistant's turn ({first}:5)",
    ]


def test_a_reader_of_records_reads_hub_sets_and_every_format(tmp_path: Path) -> None:
    """As on the hub (a folder in its layout), as Parquet and as JSON lines: the same examples."""
    import datasets

    def text(n: int, end: str) -> str:
        return f"\n\nHuman: question {n}\n\nAssistant: {end}"

    rows = [{"chosen": text(n, "good"), "rejected": text(n, "bad")} for n in range(20)]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "set" / "train.parquet"))
    write(tmp_path / "a.jsonl", rows)
    found = [
        load_task(spec(data=data, reader="hh-rlhf"))
        for data in ({"hub": str(tmp_path / "set")}, str(tmp_path / "set" / "train.parquet"), str(tmp_path / "a.jsonl"))
    ]
    assert {e.graded for task in found for e in task.train} == {PAIR}
    assert len({tuple(e.messages for e in task.train) for task in found}) == 1
    assert len(found[0].train) == 16


def test_the_real_hh_rlhf() -> None:
    folder = DATA / "hh-rlhf"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set KAMERTON_DATA to the folder of data sets")
    recipe = load_recipe(ROOT / "examples" / "hh.yaml", data=folder, overrides={"task.limit": {}})
    task = load_task(recipe.task)
    examples = [*task.train, *task.validation, *task.test]
    assert len(examples) == 2312 - 4
    (left,) = [n for n in task.notes if "left out" in n]
    assert re.fullmatch(
        r"train: 4 records were left out because an answer is empty \(.*test\.jsonl\.gz:87, :517, .*", left
    )
    for e in examples:
        roles = [m.role for m in e.messages]
        assert roles == [("user", "assistant")[n % 2] for n in range(len(roles))]
        assert roles[-1] == "user"
        assert len(pairs_of(e)) == 1
    assert any(len(e.messages) > 6 for e in examples)


def test_the_real_instructions_with_preferences() -> None:
    file = DATA / "rasbt_sft_dpo" / "instruction-data-with-preference.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there; set KAMERTON_DATA to the folder of data sets")
    rows = json.loads(file.read_text(encoding="utf-8"))
    equal = sum(row["chosen"].strip() == row["rejected"].strip() for row in rows)
    found = load_task(spec(data=str(file)))
    mapped = load_task(
        spec(data=str(file), template="{instruction}\n\n{input}", columns={"chosen": "chosen", "rejected": "rejected"})
    )
    for task in (found, mapped):
        examples = [*task.train, *task.validation, *task.test]
        assert len(examples) == len(rows) - equal
        assert any(f"{equal} records were left out because the two answers are equal" in n for n in task.notes)
    assert found.fingerprint == mapped.fingerprint


# bad input


OK = {"prompt": "p", "chosen": "a", "rejected": "b"}
CONVERSATION = {side: turns(("user", "u"), ("assistant", side)) for side in ("chosen", "rejected")}
SCORED = {"prompt": "p", "completion": "a", "score": 1}
NUMBER = r"not a number; write a number, or take it out of the text: score: {from: …, pattern: '(\d+)'}"

BROKEN: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("a key is missing", [OK, {"prompt": "p", "chosen": "a"}], {},
     "rows.jsonl:2: rejected is missing; write it, or remove the record"),
    ("null", [OK, {**OK, "chosen": None}], {}, "rows.jsonl:2: chosen is missing; write it, or remove the record"),
    ("no prompt", [OK, {**OK, "prompt": " "}], {}, "rows.jsonl:2: the question is empty; write it, or remove the record"),
    ("text and turns", [OK, {**OK, "chosen": turns(("assistant", "a"))}], {},
     "rows.jsonl:2: of chosen and rejected one is text and one is turns; write both as text, or both as turns"),
    ("a role", [{**CONVERSATION, "chosen": turns(("robot", "u"), ("assistant", "a"))}], {},
     "rows.jsonl:1: role 'robot' is not known; use one of: system, developer, user, human, assistant, gpt, bot, model"),
    ("no user", [{side: turns(("assistant", side)) for side in ("chosen", "rejected")}], {},
     "rows.jsonl:1: chosen and rejected have no user's turn; name the prompt's column: columns: {prompt: …}, or begin "
     "both with the user's turn"),
    ("margin", [OK, {**OK, "margin": "wide"}], {},
     "rows.jsonl:2: margin is 'wide', " + NUMBER.replace("score", "margin")),
    ("margin below 0", [OK, {**OK, "margin": -1}], {},
     "rows.jsonl:2: margin is -1, below 0; swap chosen and rejected, or write 0"),
    ("a prompt that is answered", [{"prompt": turns(("user", "a"), ("assistant", "b")), "ranked": ["a", "b"]}], {},
     "rows.jsonl:1: the prompt ends with the assistant's turn; end it with the user's turn"),
    ("an answered prompt of a pair",
     [{**OK, "prompt": turns(("user", "a"), ("assistant", "b"))}], {},
     "rows.jsonl:1: the prompt ends with the assistant's turn; end it with the user's turn"),
    ("no list", [{"prompt": "p", "ranked": "a, b"}], {},
     'rows.jsonl:1: ranked is not a list; write ["best", "worse"]'),
    ("bad JSON", [{"prompt": "p", "ranked": '["a", "b"'}], {},
     'rows.jsonl:1: ranked is not JSON; write ["best", "worse"]'),
    ("an item without score", [{"prompt": "p", "graded": [{"answer": "a"}]}], {},
     'rows.jsonl:1: an item of graded has no score; write [{"answer": "…", "score": 4}, …]'),
    ("an item without answer", [{"prompt": "p", "graded": [{"score": 1}]}], {},
     'rows.jsonl:1: an item of graded has no answer; write [{"answer": "…", "score": 4}, …]'),
    ("score", [SCORED, {**SCORED, "score": "4 of 10"}], {}, "rows.jsonl:2: score is '4 of 10', " + NUMBER),
    ("NaN", [SCORED, {**SCORED, "score": float("nan")}], {}, "rows.jsonl:2: score is nan, " + NUMBER),
    ("true", [SCORED, {**SCORED, "score": True}], {}, "rows.jsonl:2: score is True, " + NUMBER),
    ("no score", [SCORED, {"prompt": "p", "completion": "b"}], {},
     "rows.jsonl:2: score is missing; write it, or remove the record"),
    ("no thumb", [{"prompt": "p", "completion": "a", "label": "fine"}], {"shape": "preference"},
     "rows.jsonl:1: label is 'fine', which is neither a thumb up nor down; write true or false (1 or 0, up or down)"),
    ("user's answer", [{"prompt": "p", "completion": turns(("user", "a")), "score": 1}], {},
     "rows.jsonl:1: completion has turns that are not the assistant's; keep the assistant's turns there, and the others "
     "in the prompt"),
    ("all equal", [{**OK, "rejected": "a "}, {**OK, "chosen": "b"}], {},
     "rows.jsonl:1: none of the 2 records can be used: the two answers are equal (2); mend the file"),
    ("another column", [{"prompt": "p", "chosen": "a", "worse": "b"}], {"shape": "preference"},
     "recipe: task.shape: preference needs chosen and rejected, ranked, graded, or an answer with its score or label; "
     "map them: columns: {chosen: …, rejected: …}; the file has: prompt, chosen, worse"),
    ("no prompt column", [{"ranked": ["a", "b"], "chosen": "c"}], {"shape": "preference"},
     "recipe: task.shape: preference needs a prompt; map it: columns: {prompt: …}; the file has: ranked, chosen"),
    ("merged", [OK], {"merge_answers": True},
     "recipe: task.merge_answers: is not for judged answers; leave it out; rows of scores and labels with the same prompt "
     "are one example already"),
    ("a template for conversations", [CONVERSATION], {"template": "{x}"},
     "recipe: task.template: has nothing to write: the conversations are whole; leave the template out, or map chosen and "
     "rejected to the answers alone"),
    ("hh without its reader", [{"chosen": f"{HH} good", "rejected": f"{HH} bad"}], {},
     r"recipe: task.reader: is not given, and chosen and rejected are conversations of \n\nHuman: … \n\nAssistant: … "
     "turns; set reader: hh-rlhf"),
    ("no hh", [{"chosen": f"{HH} good", "rejected": f"{HH} bad"}, OK], {"reader": "hh-rlhf"},
     r"rows.jsonl:2: chosen is not a conversation of \n\nHuman: … \n\nAssistant: … turns; mend the record, or leave "
     "reader: hh-rlhf out"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "fields", "line"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_bad_input_is_one_line(tmp_path: Path, rows: list[dict[str, Any]], fields: dict[str, Any], line: str) -> None:
    if "template" in fields:
        rows = [{**row, "x": "x"} for row in rows]
    with pytest.raises(TaskError) as caught:
        load_task(spec(data=str(write(tmp_path / "rows.jsonl", rows)), **fields))
    assert str(caught.value).replace(f"{tmp_path}/", "") == line


LEFT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (OK, {**OK, "rejected": "a"}, "the two answers are equal"),
    (OK, {**OK, "rejected": "a\n "}, "the two answers are equal"),
    (OK, {**OK, "rejected": ""}, "an answer is empty"),
    ({"prompt": "p", "ranked": ["a", "b"]}, {"prompt": "p", "ranked": ["a"]}, "ranked has fewer than two answers"),
    ({"prompt": "p", "ranked": ["a", "b"]}, {"prompt": "p", "ranked": ["a", "b", "a"]}, "two answers are equal"),
    ({"prompt": "p", "ranked": ["a", "b"]}, {"prompt": "p", "ranked": ["a", " "]}, "an answer is empty"),
    ({"prompt": "p", "graded": [{"answer": "a", "score": 1}]}, {"prompt": "p", "graded": []}, "graded has no answers"),
    (SCORED, {**SCORED, "completion": ""}, "an answer is empty"),
    (
        CONVERSATION, {**CONVERSATION, "chosen": turns(("user", "v"), ("assistant", "a"))},
        "the conversations differ before their last turn",
    ),
    (
        CONVERSATION, {**CONVERSATION, "chosen": turns(("user", "u"))},
        "a conversation does not end with the assistant's turn",
    ),
    (
        {**CONVERSATION, "prompt": "u"}, {**CONVERSATION, "prompt": "v"},
        "the prompt is not the end of what the conversations have in common",
    ),
    (
        {"chosen": "It is so", "rejected": "It is not"}, {"chosen": "green", "rejected": "grey"},
        "chosen and rejected have no common start to be the prompt",
    ),
    (
        {"chosen": "It is so", "rejected": "It is not"}, {"chosen": "It is", "rejected": "It is not"},
        "an answer is empty",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("good", "poor", "why"), LEFT)
def test_what_teaches_nothing_is_left_out_and_counted(
    tmp_path: Path, good: dict[str, Any], poor: dict[str, Any], why: str
) -> None:
    task = load(tmp_path, [good, poor])
    assert [e.id for e in task.train] == ["rows.jsonl:1"]
    assert f"train: 1 record was left out because {why} ({tmp_path / 'rows.jsonl'}:2)" in task.notes
    task = load(tmp_path, [good, *[poor] * 5])
    assert len(task.train) == 1
    places = f"{tmp_path / 'rows.jsonl'}:2, :3, :4, …"
    assert f"train: 5 records were left out because {why} ({places})" in task.notes


def test_an_empty_answer_can_be_given_a_text(tmp_path: Path) -> None:
    task = load(tmp_path, [{**OK, "rejected": ""}], empty_answer="none")
    assert only(task).graded == (Graded("a", 1.0), Graded("none", 0.0))


def test_the_instruction_is_not_put_twice(tmp_path: Path) -> None:
    asked = turns(("system", "Be brief."), ("user", "p"))
    for rows in ([{**OK, "prompt": asked}], [OK]):
        example = only(load(tmp_path, rows, instruction="Be brief."))
        assert example.messages == conversation([("system", "Be brief."), ("user", "p")])
    first = [{**OK, "prompt": turns(("user", "Be brief.\n\np"))}]
    example = only(load(tmp_path, first, instruction="Be brief.", instruct_in="user"))
    assert example.messages == (Message("user", "Be brief.\n\np"),)


# properties


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.dictionaries(WORDS, st.floats(-10, 10), min_size=1, max_size=7))
def test_pairs_are_all_ordered_ones_and_no_others(scores: dict[str, float]) -> None:
    graded = averaged(Graded(answer, score) for answer, score in scores.items())
    assert [g.score for g in graded] == sorted(scores.values(), reverse=True)
    pairs = pairs_of(Example("e", conversation([("user", "q")]), (graded[0].answer,), graded=graded))
    assert all(scores[p.chosen] > scores[p.rejected] for p in pairs)
    wanted = {(a, b) for a in scores for b in scores if scores[a] > scores[b]}
    assert {(p.chosen, p.rejected) for p in pairs} == wanted
    assert len(pairs) == len(wanted)
    k = len(scores)
    if len(set(scores.values())) == k:
        assert len(pairs) == k * (k - 1) // 2


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=3))
def test_a_common_start_is_one_and_cuts_no_word(start: list[str], first: list[str], second: list[str]) -> None:
    a, b = " ".join([*start, *first]), " ".join([*start, *second])
    end = common_start(a, b)
    assert a[:end] == b[:end]
    assert end == len(a) or not (a[end - 1 : end].isalnum() and a[end].isalnum())
    assert end == len(b) or not (b[end - 1 : end].isalnum() and b[end].isalnum())
    assert end >= len(" ".join(start[:-1])), "whole words that both begin with are in it"


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(WORDS, st.dictionaries(WORDS, st.integers(0, 9), min_size=2, max_size=5)), min_size=3, max_size=9
    )
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, dict[str, int]]]
) -> None:
    """As a list for each question, and as a row for each answer in any order: the same judged answers."""
    made = [(f"{n} {question}", {a.strip(): s for a, s in scores.items()}) for n, (question, scores) in enumerate(made)]
    folder = tmp_path_factory.mktemp("t")
    lists = [{"prompt": q, "graded": [{"answer": a, "score": s} for a, s in scores.items()]} for q, scores in made]
    rows = [{"prompt": q, "completion": a, "score": s} for q, scores in made for a, s in scores.items()]
    wanted = {q: {Graded(a, float(s)) for a, s in scores.items()} for q, scores in made}
    for name, part in (("lists", lists), ("rows", rows), ("back", rows[::-1])):
        task = load_task(spec(data=str(write(folder / f"{name}.jsonl", part)), split={"validation": 1, "test": 1}))
        examples = (*task.train, *task.validation, *task.test)
        assert {e.messages[-1].content: set(e.graded) for e in examples} == wanted
        for e in examples:
            assert set(e.answers) == {g.answer for g in e.graded if g.score == e.graded[0].score}


SAID = st.text(st.sampled_from("ab \n:é"), min_size=1, max_size=8).filter(lambda t: t.strip())


@settings(deadline=None, max_examples=60)
@given(st.lists(SAID, min_size=1, max_size=7))
def test_turns_of_hh_rlhf_come_back(said: list[str]) -> None:
    said = [" ".join(text.split()) for text in said]
    text = "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {t}" for n, t in enumerate(said))
    record = hh_record(spec(data="x.jsonl"), {"chosen": text, "other": 1}, "x:1")
    assert [t["content"] for t in record["chosen"]] == said
    assert [t["role"] for t in record["chosen"]] == [("user", "assistant")[n % 2] for n in range(len(said))]
    assert record["other"] == 1

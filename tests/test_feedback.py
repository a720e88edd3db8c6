"""The loop of feedback: answers for labelling, labels that are checked and merged, and the task that comes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.api import load
from kamerton.base import Base
from kamerton.errors import KamertonError
from kamerton.feedback import export, merge
from kamerton.feedback.exporting import model_fingerprint
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted
from kamerton.recipe import Recipe, load_recipe
from kamerton.tasks import load_task
from kamerton.tasks.example import Example, Graded, conversation
from kamerton.tasks.preferences import pairs_of
from tiny import Cli

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Sampling(max_tokens=6, temperature=1.0, n=3, seed=5)
QUESTIONS = tiny.colours(40, 1)


@pytest.fixture(scope="module")
def model(small_folder: Path, small_base: Base) -> Adapted:
    """In float32: in bfloat16, which some processors prefer, rounding differs from batch to batch."""
    return load(small_folder, base=small_base)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# export


def test_answers_are_different_and_the_models_own(model: Adapted, tmp_path: Path) -> None:
    done = export(model, QUESTIONS, tmp_path / "a.jsonl", PLAN)
    rows = read(tmp_path / "a.jsonl")
    assert (done.written, done.kept, done.labelled, done.choices, done.cut) == (len(rows), 0, 0, 0, 0)
    assert len(rows) + done.alike == len(QUESTIONS)
    assert sum(len(row["answers"]) < 3 for row in rows) == done.fewer
    by_id = {e.id: e for e in QUESTIONS}
    asked = [by_id[row["id"]].messages for row in rows]
    many = model.generate(asked, Sampling(max_tokens=6, temperature=1.0, n=12, seed=5))
    for i, row in enumerate(rows):
        assert [(t["role"], t["content"]) for t in row["prompt"]] == [(m.role, m.content) for m in asked[i]]
        assert (row["chosen"], row["scores"]) == (None, None)
        texts = [a.text.strip() for a in many[i * 12 : (i + 1) * 12]]
        assert row["answers"] == list(dict.fromkeys(t for t in texts if t))[:3]
        assert len(set(row["answers"])) == len(row["answers"]) > 1


def test_the_same_settings_give_the_same_file_wherever_it_was_stopped(
    model: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    export(model, QUESTIONS, whole, PLAN)
    monkeypatch.setattr("kamerton.feedback.exporting.CHUNK", 7)

    class Stopped(Exception):
        pass

    def stop(_stage: str, share: float, _text: str) -> None:
        if share > 0.3:
            raise Stopped

    with pytest.raises(Stopped):
        export(model, QUESTIONS, parts, PLAN, report=stop)
    there = parts.read_text()
    assert 0 < len(there) < len(whole.read_text())
    done = export(model, QUESTIONS, parts, PLAN)
    assert done.kept == there.count("\n")
    assert parts.read_text() == whole.read_text()
    other = tmp_path / "seed.jsonl"
    export(model, QUESTIONS, other, Sampling(max_tokens=6, temperature=1.0, n=3, seed=6))
    assert [r["answers"] for r in read(other)] != [r["answers"] for r in read(whole)]


def test_lines_that_are_there_are_never_changed(model: Adapted, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    export(model, QUESTIONS[:10], path, PLAN)
    rows = read(path)
    rows[2]["chosen"], rows[4]["scores"], rows[5]["remark"] = 1, [1, None, 2.5][: len(rows[4]["answers"])], "why?"
    text = "\ufeff" + "".join(f"{json.dumps(row, indent=None, separators=(',', ':'))}\r\n" for row in rows)
    path.write_bytes(text.encode().rstrip())
    done = export(model, QUESTIONS, path, PLAN)
    assert (done.kept, done.labelled) == (len(rows), 2)
    assert path.read_bytes().startswith(text.encode().rstrip())
    assert len({row["id"] for row in read_any(path)}) == done.written > len(rows)
    before = path.read_bytes()
    assert export(model, QUESTIONS, path, PLAN).kept == done.written
    assert path.read_bytes() == before


def read_any(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def test_a_file_of_others_is_refused(model: Adapted, small_base: Base, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    export(model, QUESTIONS[:4], path, PLAN)
    before = path.read_bytes()
    says = r"a\.jsonl:1: has answers of another model or other settings; choose another --output; what is there is left"
    for plan in (
        Sampling(max_tokens=6, temperature=0.9, n=3, seed=5),
        Sampling(max_tokens=6, temperature=1.0, n=2, seed=5),
    ):
        with pytest.raises(KamertonError, match=says):
            export(model, QUESTIONS, path, plan)
    trained = tiny.fit(small_base, "lora", tmp_path / "fit", learning_rate=0.01)
    with pytest.raises(KamertonError, match=says):
        export(trained, QUESTIONS, path, PLAN)
    renamed = [Example(QUESTIONS[0].id, conversation([("user", "another")]), ("x",))]
    with pytest.raises(KamertonError, match=r"a\.jsonl:1: colour-0 is another question there"):
        export(model, renamed, path, PLAN)
    assert path.read_bytes() == before


def test_labels_that_are_written_meanwhile_are_not_lost(
    model: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamerton.feedback.exporting.CHUNK", 5)
    path = tmp_path / "a.jsonl"

    def label(_stage: str, share: float, _text: str) -> None:
        if share > 0.4:
            rows = read(path)
            rows[0]["chosen"] = 0
            write(path, rows)

    with pytest.raises(KamertonError, match=r"a\.jsonl: was changed while answers were sampled; run the same command"):
        export(model, QUESTIONS, path, PLAN, report=label)
    assert read(path)[0]["chosen"] == 0
    assert export(model, QUESTIONS, path, PLAN).labelled == 1


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Sampling(n=2), "temperature 0 gives the same answer each time; take one such as 0.8 or 1.0"),
        (Sampling(n=1, temperature=1.0), "1 answers to a question cannot be compared; ask for 2 or more"),
    ],
)
def test_settings_that_give_nothing_to_compare(model: Adapted, tmp_path: Path, plan: Sampling, says: str) -> None:
    with pytest.raises(KamertonError) as caught:
        export(model, QUESTIONS, tmp_path / "a.jsonl", plan)
    assert str(caught.value) == says
    assert not list(tmp_path.iterdir())


def test_questions_with_choices_are_not_for_people(model: Adapted, tmp_path: Path) -> None:
    closed = Example("closed", conversation([("user", "which?")]), ("a",), choices=("a", "b"))
    assert export(model, [*QUESTIONS[:3], closed], tmp_path / "a.jsonl", PLAN).choices == 1
    with pytest.raises(
        KamertonError, match="every question has choices, so there is nothing to judge; set choices: false"
    ):
        export(model, [closed], tmp_path / "b.jsonl", PLAN)


def test_a_model_is_known_by_its_weights(small_base: Base, small_folder: Path, tmp_path: Path) -> None:
    first = tiny.fit(small_base, "lora", tmp_path / "a", learning_rate=0.01)
    first.save(tmp_path / "saved")
    one, again = (model_fingerprint(load(tmp_path / "saved")) for _ in range(2))
    assert one == again
    tiny.fit(small_base, "lora", tmp_path / "b", learning_rate=0.01, seed=1).save(tmp_path / "other")
    assert len({one, model_fingerprint(load(tmp_path / "other")), model_fingerprint(load(small_folder))}) == 3


# import


PROMPT = [{"role": "user", "content": "q"}]
LINE = {"id": "x", "prompt": PROMPT, "answers": ["a", "b", "c"], "chosen": None, "scores": None}


def test_labels_become_judged_answers(tmp_path: Path) -> None:
    rows = [
        {**LINE, "chosen": 1},
        {**LINE, "id": "y", "prompt": [{"role": "user", "content": "r"}], "scores": [1, None, 3]},
        {**LINE, "id": "z", "prompt": [{"role": "user", "content": "s"}]},
        {**LINE, "id": "z", "prompt": [{"role": "user", "content": "t"}], "scores": [None, None, None]},
    ]
    done = merge([write(tmp_path / "a.jsonl", rows)], tmp_path / "p.jsonl")
    assert (done.total, done.new, done.changed, done.same, done.unlabelled) == (2, 2, 0, 0, 2)
    first, second = read(tmp_path / "p.jsonl")
    assert first == {
        "id": "x", "prompt": PROMPT,
        "graded": [{"answer": "b", "score": 1.0}, {"answer": "a", "score": 0.0}, {"answer": "c", "score": 0.0}],
    }  # fmt: skip
    assert second["graded"] == [{"answer": "c", "score": 3.0}, {"answer": "a", "score": 1.0}]


def test_the_newer_label_wins(tmp_path: Path) -> None:
    """Later lines, later files, and all of them after what was there; the order of the answers does not matter."""
    target = tmp_path / "p.jsonl"
    old = write(tmp_path / "a.jsonl", [{**LINE, "chosen": 0}, {**LINE, "answers": ["a", "b"], "chosen": 0}])
    assert merge([old], target).new == 2
    done = merge([old], target)
    assert (done.total, done.new, done.changed, done.same) == (2, 0, 0, 2)
    newer = write(tmp_path / "b.jsonl", [{**LINE, "answers": ["c", "b", "a"], "chosen": 0}])
    newest = write(tmp_path / "c.jsonl", [{**LINE, "chosen": 1}, {**LINE, "answers": ["a", "d"], "chosen": 1}])
    done = merge([newer, newest], target)
    assert (done.total, done.new, done.changed, done.same) == (3, 1, 2, 0)
    assert [row["graded"][0]["answer"] for row in read(target)] == ["b", "a", "d"]
    doubled = target.read_text() * 2
    target.write_text(doubled)
    done = merge([newest], target)
    assert (done.total, done.repeated) == (3, 3)


BROKEN: list[tuple[str, str, str]] = [
    ("no JSON", '{"id": ', "a.jsonl:2: broken JSON at column 8: Expecting value; write one complete JSON object a line"),
    ("no object", "[1]", 'a.jsonl:2: is not an object; write each line as {"prompt": …, "answers": …}'),
    ("no prompt", json.dumps({**LINE, "prompt": None}),
     'a.jsonl:2: prompt is not a list of turns; write "prompt": [{"role": "user", "content": "…"}]'),
    ("no question", json.dumps({**LINE, "prompt": [{"role": "assistant", "content": "a"}]}),
     'a.jsonl:2: prompt does not end with a user\'s turn; write "prompt": [{"role": "user", "content": "…"}]'),
    ("one answer", json.dumps({**LINE, "answers": ["a"]}),
     "a.jsonl:2: answers are not at least two different texts; leave the answers as they were exported"),
    ("equal answers", json.dumps({**LINE, "answers": ["a", "a"], "chosen": 0}),
     "a.jsonl:2: answers are not at least two different texts; leave the answers as they were exported"),
    ("no texts", json.dumps({**LINE, "answers": ["a", 1]}),
     "a.jsonl:2: answers is not a list of texts; leave the answers as they were exported"),
    ("out of range", json.dumps({**LINE, "chosen": 3}),
     "a.jsonl:2: chosen is 3; write the number of the best answer, 0 to 2"),
    ("a text", json.dumps({**LINE, "chosen": "b"}),
     'a.jsonl:2: chosen is "b"; write the number of the best answer, 0 to 2'),
    ("true", json.dumps({**LINE, "chosen": True}),
     "a.jsonl:2: chosen is true; write the number of the best answer, 0 to 2"),
    ("two labels", json.dumps({**LINE, "chosen": 0, "scores": [1, 2, 3]}),
     "a.jsonl:2: has both chosen and scores; fill in one of them"),
    ("too few scores", json.dumps({**LINE, "scores": [1, 2]}),
     "a.jsonl:2: scores is not a list of one number for each answer; write 3 numbers, null for an answer without one"),
    ("scores in quotes", json.dumps({**LINE, "scores": [1, "2", 3]}),
     "a.jsonl:2: a score is '2', not a number; write it without quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_line_is_one_line_and_nothing_is_written(tmp_path: Path, line: str, says: str) -> None:
    target = tmp_path / "p.jsonl"
    merge([write(tmp_path / "good.jsonl", [{**LINE, "chosen": 0}])], target)
    before = target.read_bytes()
    (tmp_path / "a.jsonl").write_text(json.dumps({**LINE, "chosen": 2}) + "\n" + line + "\n")
    with pytest.raises(KamertonError) as caught:
        merge([tmp_path / "a.jsonl"], target)
    assert str(caught.value).replace(f"{tmp_path}/", "") == says
    assert target.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"good.jsonl", "p.jsonl", "a.jsonl"}


def test_other_files_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", [{**LINE, "chosen": 0}])
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    none = write(tmp_path / "none.jsonl", [LINE, LINE])
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": 1}\n{"b": "\xe9"}\n')
    for files, into, says in (
        ([good], pairs, "pairs.jsonl:1: has no graded answers, so it is no file of labels; give another file with --into"),
        ([good], good, "good.jsonl: is to be read and written; name another file with --into"),
        ([none], tmp_path / "p.jsonl",
         'none.jsonl: none of the 2 lines has a label; fill in "chosen" (the number of the best answer, from 0) or '
         '"scores" in some of them'),
        ([tmp_path / "no.jsonl"], tmp_path / "p.jsonl",
         "no.jsonl: cannot be read: No such file or directory; check the path"),
        ([tmp_path / "latin.jsonl"], tmp_path / "p.jsonl", "latin.jsonl:2: is not UTF-8; save the file as UTF-8"),
    ):  # fmt: skip
        with pytest.raises(KamertonError) as caught:
            merge(files, into)
        assert str(caught.value).replace(f"{tmp_path}/", "") == says
    assert not (tmp_path / "p.jsonl").exists()


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=6).filter(str.strip)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(TEXT, min_size=2, max_size=4, unique_by=str.strip), st.one_of(st.none(), st.integers(0, 1))
        ),
        min_size=4, max_size=8,
    )
)  # fmt: skip
def test_labels_come_back_as_pairs(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[list[str], int | None]]
) -> None:
    """Export's format → import → a task: what people chose wins over each of the others, and nothing else is a pair."""
    if sum(chosen is not None for _, chosen in made) < 3:
        return
    folder = tmp_path_factory.mktemp("t")
    rows = [
        {"id": f"e{n}", "prompt": [{"role": "user", "content": f"q {n}"}], "answers": answers, "chosen": chosen}
        for n, (answers, chosen) in enumerate(made)
    ]
    merge([write(folder / "a.jsonl", rows)], folder / "p.jsonl")
    fields = {"data": str(folder / "p.jsonl"), "split": {"validation": 1, "test": 1}}
    task = load_task(Recipe.from_dict({"task": fields, "methods": ["zero-shot"]}).task)
    examples = (*task.train, *task.validation, *task.test)
    found = {(e.messages[-1].content, p.chosen, p.rejected) for e in examples for p in pairs_of(e)}
    assert found == {
        (f"q {n}", answers[chosen].strip(), other.strip())
        for n, (answers, chosen) in enumerate(made) if chosen is not None
        for i, other in enumerate(answers) if i != chosen
    }  # fmt: skip


# the commands, end to end


def test_from_a_tuned_model_over_labels_to_the_next_one(cli: Cli, small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, small_folder, "- lora: {learning_rate: 0.01, validations: 2}")
    assert cli("tune", recipe, "lora", "--output", tmp_path / "tuned")[0] == 0
    label, target = tmp_path / "label.jsonl", tmp_path / "preferences.jsonl"
    asked = ("feedback", "export", tmp_path / "tuned", recipe, "--output", label, "--count", 30)
    status, out, _ = cli(*asked)
    rows = read(label)
    assert status == 0
    assert out.startswith(f"{label}: {len(rows)} questions\n")
    assert len(rows) > 20
    for row in rows[:-2]:  # what nobody likes: long answers
        row["chosen"] = min(range(len(row["answers"])), key=lambda i: (len(row["answers"][i]), i))
    write(label, rows)
    status, out, _ = cli(*asked)
    assert (status, out.split("\n")[0]) == (
        0, f"{label}: {len(rows)} questions ({len(rows)} were there, {len(rows) - 2} of them labelled)",
    )  # fmt: skip
    assert read(label) == rows
    assert cli("feedback", "import", label, "--into", target) == (
        0, f"{target}: {len(rows) - 2} questions with judged answers ({len(rows) - 2} new, 0 changed, 0 as they were)\n"
        "2 lines without a label were left out\n", "",
    )  # fmt: skip
    (tmp_path / "next.yaml").write_text(
        f"task: {{data: preferences.jsonl, max_answer_tokens: 6}}\nbase: {{model: {small_folder}, dtype: float32}}\n"
        "methods:\n- lora: {learning_rate: 0.01, validations: 2}\nbudget: {steps: 4}\n"
    )
    task = load_task(load_recipe(tmp_path / "next.yaml").task)
    examples = (*task.train, *task.validation, *task.test)
    assert {(e.messages, e.answers[0]) for e in examples} == {
        (conversation([(t["role"], t["content"]) for t in row["prompt"]]), row["answers"][row["chosen"]])
        for row in rows[:-2]
    }
    assert all(e.graded[0] == Graded(e.answers[0], 1.0) for e in examples)
    status, out, _ = cli("recipe", "check", tmp_path / "next.yaml", "--show", 1)
    assert status == 0
    assert f"pairs     {len(task.train)} train, " in out
    first = task.train[0].graded
    assert f"\nchosen    {first[0].answer}\nrejected  {first[1].answer}\n" in out
    assert cli("tune", tmp_path / "next.yaml", "--output", tmp_path / "next")[0] == 0
    assert (tmp_path / "next" / "adapter_model.safetensors").is_file()


def test_mistakes_at_the_command_line(cli: Cli, small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, small_folder, "- zero-shot")
    asked = ("feedback", "export", small_folder, recipe, "--output", tmp_path / "a.jsonl")
    for more, says in (
        (("--split", "tests"), "error: no split 'tests'; use train, validation, test\n"),
        (("--temperature", "0"), "error: temperature 0 gives the same answer each time; take one such as 0.8 or 1.0\n"),
    ):
        status, _, err = cli(*asked, *more)
        assert (status, err) == (2, says)
    status, _, err = cli("feedback", "import", tmp_path / "none.jsonl", "--into", tmp_path / "p.jsonl")
    assert (status, err.count("\n")) == (2, 1)

"""Tasks from files: every format and shape, splits, duplicates, limits, and the example recipes on real data."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.errors import TaskError
from kamerton.recipe import Recipe, TaskSpec, load_recipe
from kamerton.tasks import Example, Message, Task, load_task
from kamerton.tasks.example import conversation
from kamerton.tasks.layouts import LAYOUTS, slot_json, snips, squad
from kamerton.tasks.splits import question_key

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("KAMERTON_DATA", ROOT.parent / "shared" / "data"))
ROWS = [{"text": f"message number {n}", "label": "ab"[n % 2]} for n in range(40)]


def spec(**fields: Any) -> TaskSpec:
    return Recipe.from_dict({"task": fields, "methods": ["zero-shot"]}).task


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> Task:
    """A task cut from these rows."""
    return load_task(spec(data={"path": str(write(tmp_path / "rows.jsonl", rows))}, **fields))


def everything(task: Task) -> list[Example]:
    return [*task.train, *task.validation, *task.test]


def texts(task: Task) -> set[tuple[str, str]]:
    return {(e.messages[-1].content, e.answers[0]) for e in everything(task)}


# formats


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": f'{n}: a "quoted", comma', "label": "ab"[n % 2]} for n in range(30)]
    lines = [(row["text"], row["label"]) for row in rows]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "lines.json", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "nested.json").write_text(json.dumps({"set": {"rows": rows}}))
    quoted = ['"{}",{}'.format(text.replace('"', '""'), label) for text, label in lines]
    (tmp_path / "a.csv").write_text("\ufefftext,label\r\n" + "\r\n".join(quoted), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "\n".join(f"{text}\t{label}" for text, label in lines))
    (tmp_path / "bare.tsv").write_text("\n".join(f"x\t{text}\t{label}" for text, label in lines))
    (tmp_path / "a.txt").write_text("\n".join(f"{label} {text}" for text, label in lines))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    wanted = {(text, label) for text, label in lines}
    options: dict[str, dict[str, Any]] = {
        "nested.json": {"field": "set.rows"},
        "bare.tsv": {"header": False, "columns": {"text": 1, "label": 2}},
        "a.txt": {"format": "lines", "pattern": "(?P<label>[ab]) (?P<text>.*)"},
    }
    fingerprints = set()
    names = ["a.jsonl", "lines.json", "a.json", "nested.json", "a.csv", "a.tsv", "bare.tsv", "a.txt", "a.parquet"]
    for name in [*names, "a.jsonl.gz"]:
        task = load_task(spec(data={"path": str(tmp_path / name)}, **options.get(name, {})))
        assert texts(task) == wanted, name
        fingerprints.add(tuple(e.messages for e in everything(task)))
    assert len(fingerprints) == 1  # not even the order depends on the format


def test_a_record_over_several_lines_keeps_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('text,label\n"one\ntwo\nthree",a\n"four",zz\n')
    with pytest.raises(TaskError, match=r"a\.csv:5: label 'zz'"):
        load_task(spec(data={"path": str(file)}, labels=["a", "b"]))
    with pytest.raises(TaskError, match=r"a\.csv:2: label 'a'"):
        load_task(spec(data={"path": str(file)}, labels=["zz", "b"]))


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_separators_of_spreadsheets_are_found_with_a_note(tmp_path: Path, mark: str, name: str) -> None:
    """A comma in a text does not make a column, a separator within quotes neither."""
    lines = [f"text{mark}label", f'"one{mark} two"{mark}a', *(f"wait, what {n}{mark}{'ab'[n % 2]}" for n in range(20))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    task = load_task(spec(data={"path": str(tmp_path / "a.csv")}))
    assert {(f"one{mark} two", "a"), ("wait, what 3", "b")} <= texts(task)
    assert [n for n in task.notes if "separated" in n] == [
        f"{tmp_path / 'a.csv'}: columns are separated by {name}, as its header shows"
    ]
    told = load_task(spec(data={"path": str(tmp_path / "a.csv")}, delimiter=mark))
    assert texts(told) == texts(task)
    assert not [n for n in told.notes if "separated" in n]
    (tmp_path / "b.csv").write_text("text,label\n" + "".join(f"a;b {n},{'ab'[n % 2]}\n" for n in range(20)))
    assert ("a;b 3", "b") in texts(load_task(spec(data={"path": str(tmp_path / "b.csv")})))


def test_known_columns_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ID,Text , LABEL\n" + "".join(f"{n},t {n},{'ab'[n % 2]}\n" for n in range(20)))
    task = load_task(spec(data={"path": str(tmp_path / "a.csv")}, template="{text} ({ID})"))
    assert ("t 3 (3)", "b") in texts(task)
    rows = [{"Question": f"q {n}", "question": f"exact {n}", "Answer": f"a {n}"} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ("exact 3", "a 3") in texts(load_task(spec(data={"path": str(tmp_path / "a.jsonl")})))


def test_input_and_output_alone_are_a_prompt_and_its_completion(tmp_path: Path) -> None:
    rows = [{"input": f"q {n}", "output": f"a {n}"} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(spec(data={"path": str(tmp_path / "a.jsonl")}))
    assert ("q 3", "a 3") in texts(task)
    assert task.metrics == ("exact-match", "token-f1")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"instruction": "do", **row}) + "\n" for row in rows))
    both = load_task(spec(data={"path": str(tmp_path / "b.jsonl")}))
    assert ("do\n\nq 3", "a 3") in texts(both), "with an instruction they are Alpaca's"


def test_a_developer_speaks_as_the_system(tmp_path: Path) -> None:
    first = {"role": "developer", "content": "Be short."}
    rows = [{"messages": [first, {"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}]}
            for n in range(20)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(spec(data={"path": str(tmp_path / "a.jsonl")}))
    assert all(e.messages[0] == Message("system", "Be short.") for e in task.test)


def test_surrogate_pairs_of_old_programs_can_be_read(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "pizza \U0001f355", "label": "a"}]
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    as_utf16 = raw.encode("utf-16-be")
    units = [as_utf16[i] * 256 + as_utf16[i + 1] for i in range(0, len(as_utf16), 2)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(chr(unit).encode("utf-8", "surrogatepass") for unit in units))
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(TaskError, match=r"a\.jsonl:41: is not utf-8; set encoding: cesu-8"):
        load_task(spec(data={"path": path}))
    task = load_task(spec(data={"path": path}, encoding="cesu-8"))
    assert ("pizza \U0001f355", "a") in texts(task)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_halves_of_surrogate_pairs_are_replaced_and_counted(tmp_path: Path, name: str) -> None:
    """What programs leave that cut an emoji in the middle; whole pairs are characters and stay."""
    rows: list[dict[str, object]] = [{"prompt": f"p {n}", "completion": f"c {n}"} for n in range(20)]
    rows[3] = {"prompt": "cut \ud83d", "completion": "whole \U0001f355"}
    rows[7] = {"prompt": "a \udc00", "completion": ["b \ud800 \ud800", "c"], "more": {"\ud83d": None}}
    lines = [json.dumps(row) for row in rows]
    (tmp_path / name).write_text("\n".join(lines) if name == "a.jsonl" else f"[{', '.join(lines)}]")
    task = load_task(spec(data={"path": str(tmp_path / name)}))
    examples = (*task.train, *task.validation, *task.test)
    assert {e.messages[-1].content: e.answers for e in examples if not e.answers[0].startswith("c ")} == {
        "cut \ufffd": ("whole \U0001f355",),
        "a \ufffd": ("b \ufffd \ufffd", "c"),
    }
    (note,) = [n for n in task.notes if "surrogate" in n]
    place = "a.jsonl:4" if name == "a.jsonl" else "a.json, record 4"
    assert re.fullmatch(rf"5 halves of surrogate pairs were replaced by U\+FFFD, the first at .*{place}", note)
    assert task.fingerprint


def test_a_reader_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def read(path):\n    for n in range(30):\n        yield {'prompt': f'{path.name} {n}', 'completion': str(n)}\n"
    )
    (tmp_path / "x.bin").write_bytes(b"\x00")
    task = load_task(spec(data={"path": str(tmp_path / "x.bin")}, reader=f"{tmp_path}/mine.py:read"))
    assert ("x.bin 3", "3") in texts(task)


def test_hub_layout(tmp_path: Path) -> None:
    """A folder in the hub's layout goes the way of a hub id; class numbers become names."""
    import datasets

    features = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["card_arrival", "top_up"]),
    })  # fmt: skip
    for name, start in (("train", 0), ("validation", 100)):
        data = {"text": [f"m {start + n}" for n in range(20)], "label": [n % 2 for n in range(20)]}
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(data, features=features).to_parquet(str(folder / f"{name}.parquet"))
    where = {"hub": str(tmp_path / "set"), "splits": {"train": "train", "test": "validation"}}
    task = load_task(spec(data=where))
    assert task.test[0].choices == ("card arrival", "top up")
    assert len(task.test) == 20
    assert len(task.train) + len(task.validation) == 20
    where["splits"] = {"train": "trian"}
    with pytest.raises(TaskError, match=r"has no split 'trian'; did you mean train\?"):
        load_task(spec(data=where))


# shapes


def one(tmp_path: Path, row: dict[str, Any], **fields: Any) -> Example:
    """The example of one row, found again by its id among others of its shape."""
    rows: list[dict[str, Any]] = [{**row, "id": f"r{n}"} for n in range(20)]
    key = next(k for k in ("messages", "conversations", "instruction", "prompt", "text", "question") if k in row)
    for n, other in enumerate(rows):
        if n and isinstance(row[key], str):
            other[key] = f"{row[key]} {n}"
        elif n:
            turns = [dict(turn) for turn in row[key]]
            content = "content" if "content" in turns[0] else "value"
            turns[0][content] += f" {n}"
            other[key] = turns
    columns = {"id": "id", **fields.pop("columns", {})}
    task = load(tmp_path, rows, columns=columns, **fields)
    return next(e for e in everything(task) if e.id == "r0")


def test_alpaca(tmp_path: Path) -> None:
    e = one(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"}, instruction="Be brief.")
    assert e.messages == conversation([("system", "Be brief."), ("user", "Add.\n\n1 2")])
    assert e.answers == ("3",)
    assert one(tmp_path, {"instruction": "Add.", "input": "", "output": "3"}).messages[-1].content == "Add."


def test_prompt_completion_text_or_messages(tmp_path: Path) -> None:
    e = one(tmp_path, {"prompt": "2+2", "completion": " 4 "})
    assert (e.messages, e.answers) == (conversation([("user", "2+2")]), ("4",))
    turns = [{"role": "user", "content": "2+2"}]
    e = one(tmp_path, {"prompt": turns, "completion": [{"role": "assistant", "content": "4"}], "text": "t"})
    assert (e.messages, e.answers) == (conversation([("user", "2+2")]), ("4",))


def test_messages_and_sharegpt(tmp_path: Path) -> None:
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    e = one(tmp_path, {"messages": [{"role": r, "content": c} for r, c in turns]}, instruction="I")
    assert e.messages == conversation([("system", "I\n\nS"), *turns[1:4]])  # type: ignore[list-item]
    assert e.answers == ("d",)
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    e = one(tmp_path, {"conversations": shared}, instruction="I", instruct_in="user")
    assert (e.messages, e.answers) == (conversation([("user", "I\n\na")]), ("b",))


def test_labels(tmp_path: Path) -> None:
    task = load(tmp_path, ROWS, labels={"a": "good news", "b": "bad news"}, instruction="One of: {labels}.")
    assert task.metrics == ("accuracy", "macro-f1")
    for e in everything(task):
        assert e.choices == ("good news", "bad news")
        assert e.messages[0].content == "One of: good news, bad news."
        number = int(e.messages[1].content.split()[-1])
        assert e.answers == (("good news", "bad news")[number % 2],)
    assert everything(load(tmp_path, ROWS, choices=False))[0].choices == ()
    readable = [{"text": f"t {n}", "label": ("top_up-failed", "Refund")[n % 2]} for n in range(30)]
    assert everything(load(tmp_path, readable))[0].choices == ("Refund", "top up failed")
    numbers = [{"text": f"t {n}", "label": n % 11} for n in range(99)]
    assert everything(load(tmp_path, numbers))[0].choices == tuple(map(str, range(11)))


def test_pairs_by_template(tmp_path: Path) -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "yes"}
    rows = [{**row, "premise": f"It rains. {n}", "label": ("yes", "no")[n % 2]} for n in range(30)]
    task = load(tmp_path, rows, template="{premise}\n{{so}} {hypothesis}")
    assert {e.messages[0].content.split("\n")[1] for e in everything(task)} == {"{so} It is wet."}


@pytest.mark.parametrize("answer", [["Rome", "Roma", "Rome"], {"text": ["Rome", "Roma"], "answer_start": [0, 6]}])
def test_questions_with_several_answers(tmp_path: Path, answer: Any) -> None:
    e = one(tmp_path, {"question": "Capital?", "context": "Rome, Roma.", "answers": answer})
    assert e.answers == ("Rome", "Roma")
    assert e.messages[0].content == "Rome, Roma.\n\nCapital?"


def test_no_answer(tmp_path: Path) -> None:
    row = {"question": "Capital?", "answers": []}
    with pytest.raises(TaskError, match=r"rows\.jsonl:1: the answer is empty; .*empty_answer"):
        one(tmp_path, row)
    assert one(tmp_path, row, empty_answer="none").answers == ("none",)


@pytest.mark.parametrize(
    ("choices", "answer", "first"),
    [
        (["x", "y"], 1, 0),
        (["x", "y"], 2, 1),
        (["x", "y"], "y", 0),
        (["x", "y"], "B", 0),
        (["x", "y"], "1", 0),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2", 0),
        ('["x", "y"]', 1.0, 0),
        (["5", "y", "2"], "y", 0),
    ],
)
def test_choices_of_ones_own(tmp_path: Path, choices: Any, answer: Any, first: int) -> None:
    e = one(tmp_path, {"question": "Which?", "choices": choices, "answer": answer}, first_choice=first)
    assert e.answers == ("y",)
    assert e.choices[1] == "y"


def test_choices_from_columns_or_split_text(tmp_path: Path) -> None:
    row = {"text": "Which?", "one": "x", "two": "y", "right": 0}
    e = one(tmp_path, row, columns={"id": "id", "choices": ["one", "two"], "answer": "right"})
    assert (e.choices, e.answers) == (("x", "y"), ("x",))
    row = {"text": "Which?", "all": "x | y|z", "right": "C"}
    mapped = {"id": "id", "choices": {"from": "all", "split": "|"}, "answer": "right"}
    e = one(tmp_path, row, columns=mapped, template="{text}\n{choices}")
    assert (e.choices, e.answers) == (("x", "y", "z"), ("z",))
    assert e.messages[0].content == "Which?\nA. x\nB. y\nC. z"


def test_reasoning_by_pattern(tmp_path: Path) -> None:
    row = {"question": "2+3?", "answer": "Two and <<2+3=5>>three\nmake 5.\n#### 5"}
    columns = {
        "id": "id",
        "reasoning": {"from": "answer", "pattern": r"(?s)^(.*?)\s*####", "remove": "<<[^>]*>>"},
        "answer": {"from": "answer", "pattern": r"####\s*(.+)$"},
    }
    e = one(tmp_path, row, columns=columns)
    assert (e.answers, e.reasoning) == (("5",), "Two and three\nmake 5.")


def test_layouts() -> None:
    parts = [
        {"text": "play "},
        {"text": "Pizza", "entity": "artist"},
        {"text": " and "},
        {"text": "Tea", "entity": "artist"},
    ]
    record = snips(json.dumps({"PlayMusic": [{"data": parts}]}))[0]
    assert record["prompt"] == "play Pizza and Tea"
    assert json.loads(record["completion"]) == {"intent": "PlayMusic", "artist": ["Pizza", "Tea"]}
    assert slot_json("A", []) == '{"intent": "A"}'
    qas = [{"id": 1, "question": "Q", "answers": [{"text": "x"}, {"text": "x"}]}, {"id": 2, "question": "R"}]
    records = squad(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": qas}]}]}))
    assert [r["answers"] for r in records] == [["x"], []]
    answerable = LAYOUTS["squad-answerable"](json.dumps({"data": [{"paragraphs": [{"context": "C", "qas": qas}]}]}))
    assert [r["answers"] for r in answerable] == [["x"]]


# splits


def test_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    first = load(tmp_path, ROWS, limit={"train": 20})
    shuffled = ROWS[:]
    random.Random(1).shuffle(shuffled)
    second = load(tmp_path, shuffled, limit={"train": 20})
    for name in ("train", "validation", "test"):
        assert [e.messages for e in getattr(first, name)] == [e.messages for e in getattr(second, name)]
    assert load(tmp_path, ROWS, limit={"train": 20}).fingerprint == first.fingerprint
    given = []
    for rows in (ROWS, shuffled):  # and neither does it where every split is given
        names = {"train": rows, "validation": [{"text": "v", "label": "a"}], "test": [{"text": "t", "label": "a"}]}
        data = {name: str(write(tmp_path / f"{name}.jsonl", part)) for name, part in names.items()}
        given.append([e.messages for e in load_task(spec(data=data, limit={"train": 20})).train])
    assert given[0] == given[1]
    other = load(tmp_path, ROWS, split={"seed": 1})
    assert {e.messages for e in other.test} != {e.messages for e in first.test}


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1)), min_size=30, max_size=120),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_no_question_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], validation: int, test: int
) -> None:
    if len({n for n, _ in pairs}) < 12 or len({label for _, label in pairs}) < 2:
        return
    rows = [{"text": ("Hello  %d", "hello %d ")[label] % n, "label": "ab"[label]} for n, label in pairs]
    task = load(tmp_path_factory.mktemp("t"), rows, split={"validation": validation, "test": test})
    keys = [{question_key(e) for e in part} for part in (task.train, task.validation, task.test)]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert len(everything(task)) == len(rows)
    assert len({e.id for e in everything(task)}) == len(rows)


def test_duplicates_across_given_splits_are_removed_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [*ROWS, {"text": " MESSAGE number  100", "label": "b"}, ROWS[0]])
    write(tmp_path / "val.jsonl", [{"text": "message number 100", "label": "a"}, {"text": "v", "label": "b"}])
    write(
        tmp_path / "test.jsonl",
        [{"text": "Message number 100", "label": "a"}, {"text": "message number 7", "label": "a"}],
    )
    files = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
    task = load_task(spec(data={name: str(tmp_path / file) for name, file in files.items()}))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [40, 1, 2]
    assert "validation: 1 examples were removed because test has the same question" in task.notes
    assert "train: 2 examples were removed because validation or test has the same question" in task.notes
    assert "train: 1 rows repeat a question of the same split and were kept" in task.notes


def test_contradictions_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"same {n // 2}", "label": "ab"[n % 2]} for n in range(80)]
    task = load(tmp_path, rows)
    questions = len(task.train) // 2
    assert any(f"; {questions} questions have different answers" in note for note in task.notes)


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "author": f"p{n // 4}"} for n, row in enumerate(ROWS)]
    task = load(tmp_path, rows, split={"by": "author", "test": 0.2})
    authors = [
        {int(e.messages[0].content.split()[-1]) // 4 for e in part} for part in (task.train, task.validation, task.test)
    ]
    assert sum(map(len, authors)) == 10
    assert len(task.test) == 8


def test_merged_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n // 3}", "completion": f"a {n}"} for n in range(90)]
    task = load(tmp_path, rows, merge_answers=True)
    assert {len(e.answers) for e in (*task.test, *task.validation)} == {3}
    assert {len(e.answers) for e in task.train} == {1}


def test_a_limit_is_a_sample_and_says_so(tmp_path: Path) -> None:
    whole = load(tmp_path, ROWS)
    task = load(tmp_path, ROWS, limit={"train": 5})
    assert task.train == whole.train[:5]
    assert task.test == whole.test
    assert f"train: a sample of 5 of {len(whole.train)} examples is used" in task.notes


# real data


FOLDERS = {
    "banking77": "banking77", "snips": "snips", "sst2": "sst2", "e2e": "e2e", "gsm8k": "gsm8k", "cola": "cola",
    "rte": "cb_rte_superglue", "codah": "codah", "squad": "squad2_cs224n",
    "squad-open": "squad2_cs224n", "stsb": "stsb",
    "instructions": "rasbt_sft_dpo", "hh": "hh-rlhf", "grpo": "gsm8k", "mawps": "mawps",
}  # fmt: skip


def test_every_example_recipe_has_a_place_here() -> None:
    paths = {path.stem for path in (ROOT / "examples").glob("*.yaml") if "scratch" not in path.stem}
    assert paths == {
        *FOLDERS,
        "dates",
        "methods",
        "mixture",
        "dpo",
    }


def test_the_example_mixture_on_local_copies() -> None:
    missing = [n for n in ("sst2", "cola", "snips", "codah", "banking77") if not (DATA / n).is_dir()]
    if missing:
        pytest.skip(f"{DATA} has no {missing[0]}; set KAMERTON_DATA to the folder of data sets")
    task = load_task(load_recipe(ROOT / "examples" / "mixture.yaml", data=DATA).task)
    assert {e.group for e in task.train} == {"sst2", "cola", "snips"}
    assert {e.group for e in task.test} == {"codah", "banking77"}
    assert [sum(e.group == name for e in task.train) for name in ("sst2", "cola", "snips")] == [256] * 3


@pytest.mark.parametrize("name", FOLDERS)
def test_example_recipes_on_local_copies(name: str) -> None:
    folder = DATA / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set KAMERTON_DATA to the folder of data sets")
    recipe = load_recipe(ROOT / "examples" / f"{name}.yaml", data=folder)
    task = load_task(recipe.task)
    limits = recipe.task.limit
    for part in ("train", "validation", "test"):
        examples, most = getattr(task, part), getattr(limits, part)
        assert len(examples) > 40
        assert most is None or len(examples) <= most
        for e in examples:
            assert e.answers[0]
            assert not e.choices or e.answers[0] in e.choices
    if name == "squad-open":
        assert all("\n" not in e.messages[-1].content for e in task.test), "the question alone"
    if name == "banking77":
        assert len(task.test[0].choices) == 77
    if name == "snips":
        assert all(json.loads(e.answers[0])["intent"] for e in task.train)
    if name == "gsm8k":
        assert all(e.reasoning and "<<" not in e.reasoning and "####" not in e.reasoning for e in task.train)
    if name == "e2e":
        assert max(len(e.answers) for e in task.test) > 3

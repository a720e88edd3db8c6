"""Language modelling: the loss against transformers' own, no token lost between pieces, texts from files, whole runs."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import kamerton as kt
import tiny
from kamerton.base import Base
from kamerton.errors import KamertonError, RecipeError, TaskError
from kamerton.methods import get_method, load_adapted, option_files, parse_options
from kamerton.objectives.language_modeling import LanguageModeling
from kamerton.objectives.texts import example_text, hold_out, pieces, read_texts
from kamerton.tasks.example import Task
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "the river and the stone " * 12
NO_TASK = Task("none", (), (), (), ())


def build(base: Base, task: Task | None = None, *, limit: int | None = None, **options: Any) -> LanguageModeling:
    parsed = parse_options(get_method("lora"), {"objective": "language-modeling", **options})
    return LanguageModeling.build(base, task or tiny.colour_task(), parsed, limit=limit, seed=0)


def test_the_loss_is_that_of_transformers_over_all_tokens(small_base: Base) -> None:
    """Labels are the input, as for pretraining; the mean over the tokens of all texts, not of means of texts."""
    goal = build(small_base, batch_size=5)
    batches = goal.batches(0, small_base.model)
    with torch.no_grad():
        total = sum(float(goal.loss(small_base.model, b).total) for b in batches)
    count = sum(b.count for b in batches)
    hf = transformers.AutoModelForCausalLM.from_pretrained(small_base.info.source, dtype=torch.float32).eval()
    expected, tokens = 0.0, 0
    for batch in batches:
        assert batch.prefix == (), "a shared prefix would carry no loss"
        for row in batch.rows:
            ids = torch.tensor([row])
            with torch.no_grad():
                expected += float(hf(input_ids=ids, labels=ids).loss) * (len(row) - 1)
            tokens += len(row) - 1
    assert count == tokens
    assert total / count == pytest.approx(expected / tokens, abs=1e-5)


def test_separators_of_unicode_end_no_line_of_a_file_of_texts(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_texts(tmp_path / "a.jsonl") == [text]


def test_halves_of_surrogate_pairs_in_texts_are_replaced_and_counted(small_base: Base, tmp_path: Path) -> None:
    lines = [{"text": "one two \ud83d three"}, {"text": "four five"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    goal = build(small_base, texts=str(tmp_path / "a.jsonl"))
    said = f"1 half of a surrogate pair was replaced by U+FFFD, the first at {tmp_path / 'a.jsonl'}"
    assert said in goal.notes


def test_texts_of_examples_hold_question_and_answer_and_no_instruction(small_base: Base) -> None:
    example = tiny.colour_task().train[0]
    text = example_text(example)
    assert text == f"{example.messages[1].content}\n{example.answers[0]}"
    (row,) = pieces(small_base.renderer, text, None)
    assert small_base.renderer.decode(row.tokens) == text
    assert row.tokens[-1] == small_base.renderer.tokenizer.eos_token_id
    assert row.weights == (0.0,) + (1.0,) * (len(row.tokens) - 1)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(2, 40), words=st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=60))
def test_every_token_but_the_first_is_a_target_once(length: int, words: list[str]) -> None:
    renderer = _renderer()
    (whole,) = pieces(renderer, " ".join(words), None)
    rows = pieces(renderer, " ".join(words), length)
    assert [t for r in rows for t, w in zip(r.tokens, r.weights, strict=True) if w] == list(whole.tokens[1:])
    assert all(2 <= len(r.tokens) <= length for r in rows)
    for before, after in pairwise(rows):
        assert after.tokens[0] == before.tokens[-1]


_RENDERER: list[Any] = []


def _renderer() -> Any:
    from kamerton.rendering import Renderer

    if not _RENDERER:
        _RENDERER.append(Renderer(tiny.tokenizer()))
    return _RENDERER[0]


def test_texts_from_files(small_base: Base, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first\n\nstill first")
    (tmp_path / "deep" / "b.md").write_text("# second")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth", "more": 1}\n')
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert sorted(read_texts(tmp_path)) == sorted(["first\n\nstill first", "third", "fourth", "# second"])
    goal = build(small_base, NO_TASK, texts=str(tmp_path))
    assert goal.epoch_examples == 3
    assert len(goal.validation()) == 1
    skipped = f"1 file was not read (.png): texts are .txt, .md, .jsonl, packed or not; folder {tmp_path}"
    assert goal.notes == [skipped, "4 texts: 3 pieces to learn from, 1 pieces are held out"]
    goal = build(small_base, NO_TASK, texts=str(tmp_path / "a.txt"), limit=4)
    assert "1 of 1 texts are longer than 4 tokens and are read as" in goal.notes[0]


def test_packed_texts_are_read_as_they_are(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    texts = {"a.txt": "first\r\nstill first\u2028", "b.jsonl": '{"text": "third\u2028"}\n\n{"text": "fourth"}'}
    packings = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    for suffix, pack in packings.items():
        folder = tmp_path / f"packed{suffix}"
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}{suffix}").write_bytes(pack(text.encode()))
        assert read_texts(folder) == ["first\nstill first\u2028", "third\u2028", "fourth"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.txt", None, "gone.txt: no such file or folder; give texts"),
        ("a.pdf", b"x", r"a.pdf: is not a file of texts; give .txt, .md, .jsonl"),
        (
            "a.pdf.gz",
            b"x",
            r"a.pdf.gz: is not a file of texts; give .txt, .md, .jsonl, packed \(.gz, .bz2, .xz, .zst\)",
        ),
        ("a.txt.gz", b"x", r"a.txt.gz: cannot be read: Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 999)[:60],
            r"a.jsonl.gz: cannot be read: Compressed file ended",
        ),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n"\xff'), r"a.jsonl.gz: is not UTF-8 \(byte 15\)"),
        ("a.txt", b"\xff\xfe", r"a.txt: is not UTF-8 \(byte 0\)"),
        ("a.txt", b"  \n", "a.txt: has no text"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', "a.jsonl:2: has no field text"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: has no field text"),
    ],
)
def test_bad_texts_are_one_line(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KamertonError, match=says) as caught:
        read_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_options_that_do_not_fit(small_base: Base) -> None:
    with pytest.raises(RecipeError, match="texts are not read by objective supervised; add objective: language-model"):
        parse_options(get_method("full"), {"texts": "a.txt"})
    with pytest.raises(RecipeError, match="unknown objective 'lm'; use one of: supervised, "):
        parse_options(get_method("full"), {"objective": "lm"})
    with pytest.raises(TaskError, match="no training examples; give a train split, or the option texts"):
        build(small_base, NO_TASK)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=50))
def test_what_is_held_out_is_never_trained_on(sizes: list[int]) -> None:
    texts: Any = [[f"{i}.{n}" for n in range(size)] for i, size in enumerate(sizes)]
    train, held_out = hold_out(texts)
    assert sorted([*train, *held_out]) == sorted(row for rows in texts for row in rows)
    assert not set(train) & set(held_out)
    assert train
    assert bool(held_out) == (sum(sizes) > 1)
    if len(sizes) > 1:  # whole texts
        assert not {r.partition(".")[0] for r in train} & {r.partition(".")[0] for r in held_out}


@pytest.mark.parametrize("name", ["lora", "prompt-tuning", "full"])
def test_every_trained_method_learns_texts(small_base: Base, name: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for n in range(8):
        (tmp_path / "texts" / f"{n}.txt").write_text(TEXT[n:], encoding="utf-8")
    # no examples that a soft prompt could start from
    start = {"init": "vocabulary", "tokens": 20} if name == "prompt-tuning" else {}
    adapted = fit(
        small_base, name, tmp_path / "fit", **start, task=NO_TASK, objective="language-modeling", texts=str(tmp_path / "texts"),
        learning_rate=2e-2, batch_size=4, budget=kt.Budget(steps=16),
    )  # fmt: skip
    held_out = [row["validation_loss"] for row in adapted.record.curve if "validation_loss" in row]
    assert held_out[-1] < held_out[0] - 0.3
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    asked = [e.messages for e in tiny.colour_task().test[:2]]
    assert again.score(asked, [["red", "blue"]] * 2) == adapted.score(asked, [["red", "blue"]] * 2)


def test_the_learning_rate_is_searched_on_held_out_texts(small_base: Base, tmp_path: Path) -> None:
    """The task has no validation examples; the texts have."""
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(TEXT[n:], encoding="utf-8")
    task = Task("t", tiny.colour_task().train, (), tiny.colour_task().test, ("exact-match",))
    adapted = fit(
        small_base, "lora", tmp_path / "fit", task=task, objective="language-modeling", texts=str(tmp_path),
        budget=kt.Budget(steps=9),
    )  # fmt: skip
    assert len(adapted.record.search) == 3
    assert adapted.record.chosen


def test_a_recipe_finds_its_texts_beside_it_and_sees_when_they_change(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "field").mkdir()
    (tmp_path / "field" / "a.txt").write_text(TEXT, encoding="utf-8")
    methods = "  - lora: {objective: language-modeling, texts: field, learning_rate: 0.01}"
    recipe = tiny.write_recipe(tmp_path, small_folder, methods, seeds="1", forgetting="false")
    kt.tune(recipe, output=tmp_path / "out")
    options = json.loads((tmp_path / "out" / "kamerton.json").read_text())["options"]
    assert options["texts"] == str(tmp_path / "field")
    before = option_files(options)
    (tmp_path / "field" / "b.txt").write_text("more", encoding="utf-8")
    after = option_files({"over": {"lora": options}})
    assert before.keys() == after.keys() == {str(tmp_path / "field")}
    assert before != after
    (tmp_path / "field" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(KamertonError, match=r"b\.txt: is not UTF-8"):
        kt.tune(recipe, output=tmp_path / "tuned")

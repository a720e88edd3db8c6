"""Tokenizers: every text comes back, the saved folder is the trained one, figures by hand, bags of words, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.text.tokenizers import KINDS, train
from kamerton.text.tokenizers.bag_of_words import BagOfWords
from kamerton.text.tokenizers.compare import measure

SENTENCES = [
    f"the {a} {v} a {b} in the year {1000 + 7 * i}, and the river was cold."
    for i, (a, v, b) in enumerate(
        (a, v, b) for a in ("cat", "dog", "horse") for v in ("sees", "hears") for b in ("bird", "mouse", "cow")
    )
] * 4  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("made")
    return {kind: train([text], kind, 400, folder / kind, split_digits=kind != "words") for kind in KINDS} | {
        "folder": folder
    }


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=150, deadline=None)
def test_what_loses_nothing_gives_every_text_back(made: dict[str, Any], text: str) -> None:
    for kind in ("byte-bpe", "unigram"):
        ids = made[kind](text, add_special_tokens=False)["input_ids"]
        if kind == "byte-bpe" or "▁" not in text:
            assert made[kind].decode(ids) == text, kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_what_was_trained(made: dict[str, Any], kind: str) -> None:
    """By transformers, and by the library's own reader of tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = made["folder"] / kind
    loaded, raw = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for line in (*SENTENCES[:6], "Zoë's 12 naïve words\tand more", ""):
        ids = made[kind](line)["input_ids"]
        assert loaded(line)["input_ids"] == ids
        assert raw.encode(line).ids == ids
    assert loaded.all_special_tokens == made[kind].all_special_tokens
    assert len(loaded) <= 400
    assert not (made["folder"] / f"{kind}.half").exists()


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "wordpiece", "unigram"])
def test_digits_are_split_and_nothing_else_is(made: dict[str, Any], kind: str) -> None:
    tokens = made[kind].tokenize("the year 1007, and")
    assert [t.strip("▁Ġ#") for t in tokens if any(c.isdigit() for c in t)] == list("1007")
    assert (
        made[kind].decode(made[kind]("year 1007", add_special_tokens=False)["input_ids"]).replace(" ", "") == "year1007"
    )


def test_byte_bpe_is_that_of_the_library(text: Path, tmp_path: Path) -> None:
    """The same merges as ByteLevelBPETokenizer learns."""
    from tokenizers import ByteLevelBPETokenizer

    peer = ByteLevelBPETokenizer()
    peer.train(
        [str(text)], vocab_size=320, min_frequency=0, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False
    )
    ours = train([text], "byte-bpe", 320, tmp_path / "t")
    # the peer's file ends lines that ours has read without their ends
    assert ours.tokenize("the horse hears a mouse") == peer.encode("the horse hears a mouse").tokens


def test_a_language_without_spaces(tmp_path: Path) -> None:
    path = tmp_path / "zh.txt"
    path.write_text("今天天气很好我们去公园\n明天天气不好我们在家\n今天我们在公园很好\n" * 20, encoding="utf-8")
    cut = train([path], "unigram", 320, tmp_path / "t")
    pieces = cut.tokenize("今天我们去公园")
    assert len(pieces) < len("今天我们去公园"), "words are found without spaces"
    assert cut.decode(cut("今天我们去公园", add_special_tokens=False)["input_ids"]) == "今天我们去公园"


def test_chatml(text: Path, tmp_path: Path) -> None:
    cut = train([text], "byte-bpe", 400, tmp_path / "t", chat_template="chatml", special=["<think>"])
    shown = cut.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert cut.eos_token == "<|im_end|>"
    assert len(cut("<think>", add_special_tokens=False)["input_ids"]) == 1


def test_figures_by_hand(made: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "few.txt"
    path.write_text("the cat zebra, the dog\n", encoding="utf-8")
    found = measure("w", made["words"], "few", [path])
    assert (found.fertility, found.unknown, found.split_words) == (6 / 5, 1 / 6, 0.0)
    assert found.bytes_per_token == pytest.approx(22 / 6)
    assert found.round_trip == 0.0
    assert measure("b", made["byte-bpe"], "few", [path]).round_trip == 1.0


def test_bags_of_words_by_hand(made: dict[str, Any]) -> None:
    texts = ["the cat sees the dog", "a bird hears a mouse", "the cow"]
    bag = BagOfWords(made["words"], "counts")
    the = made["words"].convert_tokens_to_ids("the")
    assert bag(texts)[:, the].toarray().ravel().tolist() == [2, 0, 1]
    weighted = BagOfWords(made["words"]).fit(texts)
    vectors = weighted(texts).toarray()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)
    sklearn = pytest.importorskip("sklearn.feature_extraction.text", reason="the extra [dev] is not installed")
    peer = sklearn.TfidfVectorizer(tokenizer=str.split, token_pattern=None).fit(texts).transform(texts).toarray()
    np.testing.assert_allclose(vectors @ vectors.T, peer @ peer.T, atol=1e-12)
    assert weighted.nearest("which dog sees a cat", texts, 1)[0][0] == 0


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["tokenizer", *map(str, args)])
    if isinstance(result.exception, KamertonError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_from_the_command_line(text: Path, tmp_path: Path) -> None:
    code, said = run("train", text, "--vocab-size", 320, "--output", tmp_path / "t")
    assert code == 0, said
    page = tmp_path / "p.html"
    code, said = run("show", tmp_path / "t", "the <b>cat</b> sees", "--html", page)
    assert code == 0
    assert "<b>" not in page.read_text()
    assert "&lt;" in page.read_text()
    code, said = run("compare", tmp_path / "t", "--text", f"en={text}", "--json")
    assert json.loads(said)[0]["text"] == "en"
    assert json.loads(said)[0]["round_trip"] == 1.0


def test_wrong_bytes_are_said(tmp_path: Path) -> None:
    """Broken characters are counted where a tokenizer is trained and where several are compared; no text is refused."""
    broken, picture = tmp_path / "broken.txt", tmp_path / "picture.txt"
    broken.write_bytes(
        "a naïve text, and one that is not UTF-8: na".encode() + b"\xefve\n" + b"caf\xe9\n\xef\xbf\xbd\n"
    )
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    note = "2 characters are not UTF-8: each was read as �; convert the text to UTF-8 where that is wrong"
    for kind, size in (("byte-bpe", 300), ("wordpiece", 200), ("words", 50)):
        code, said = run("train", broken, "--kind", kind, "--vocab-size", size, "--output", tmp_path / kind)
        assert (code, said.count(f"note: {note}\n")) == (0, 1)
    code, said = run("compare", tmp_path / "byte-bpe", tmp_path / "words", "--text", f"en={broken}")
    assert (code, said.count(f"note: en: {note}\n")) == (0, 1)
    code, said = run("compare", tmp_path / "words", "--text", f"en={broken}", "--json")
    assert json.loads(said)[0]["notes"] == [note]
    for args in (("train", picture, "--output", tmp_path / "o"), ("compare", tmp_path / "words", "--text", picture)):
        code, said = run(*args)
        assert code == 2
        assert "picture.txt: is a PNG image, no text; leave it out" in said
    assert not (tmp_path / "o").exists()


def test_a_long_line_puts_no_broken_letter_into_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamerton.text.lines.LONGEST", 1001)
    path = tmp_path / "ru.txt"
    path.write_text("Съешь же ещё этих мягких французских булок " * 100, encoding="utf-8")
    assert "�" not in train([path], "bpe", 60, tmp_path / "bpe").get_vocab()
    assert "7 lines of more than a megabyte were cut" in run("train", path, "--output", tmp_path / "b")[1]


def test_bad_input_is_one_line(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    many = tmp_path / "many.txt"
    many.write_text(" ".join(map(chr, range(0x4E00, 0x4E00 + 300))), encoding="utf-8")
    empty, records = tmp_path / "e.txt", tmp_path / "r.jsonl"
    empty.write_text("\n")
    records.write_text('{"text": "the cat"}\n{"words": 1}\n')
    for args, says in [
        (("train", text, "--kind", "bpe", "--vocab-size", 9, "--output", tmp_path / "o"), "tokens are fewer than the"),
        (("train", text, "--vocab-size", 99, "--output", tmp_path / "o"), "99 tokens are fewer than the 256 letters"),
        (("train", empty, "--output", tmp_path / "o"), "there is no text in it"),
        (("train", records, "--kind", "words", "--output", tmp_path / "o"), "r.jsonl:2: is no record with a text"),
        (("train", text, "--chat-template", "none", "--output", tmp_path / "o"), "none: there is no such file"),
        (("train", text, "--vocab-size", 100, "--output", tmp_path / "o"), "special tokens; give at least 258\n"),
        (("train", many, "--kind", "bpe", "--vocab-size", 290, "--output", tmp_path / "o"), ", or --kind byte-bpe\n"),
        (("show", tmp_path, "x"), "no config.json"),
        (
            ("compare", "./nosuch", "--text", text),
            "./nosuch: no such folder; check the path, or give a hub id, or demo",
        ),
        (("show", f"{tmp_path.name}/nosuch", "x"), f"{tmp_path.name}/nosuch: no such folder; check the path"),
        (("show", "a/b/c", "x"), "a/b/c: no such folder; check the path"),
        (("compare", tmp_path, "--text", "nowhere.txt"), "--text nowhere.txt: there is no such file"),
    ]:
        code, said = run(*args)
        assert code == 2, (args, said)
        assert says in f"{said}\n"
        assert "\n" not in said.strip()

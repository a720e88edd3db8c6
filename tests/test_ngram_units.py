"""Units of n-gram models: unknown tokens of tokenizers are unknown, every unit has a name of its own that files keep."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kamerton.cli.main import app
from kamerton.text.lines import lines
from kamerton.text.ngrams import NgramModel, estimate, open_units
from kamerton.text.ngrams.arpa import write_arpa
from kamerton.text.ngrams.counts import batches
from kamerton.text.ngrams.typing_help import complete
from kamerton.text.tokenizers import train

TEXT = [f"the {a} sees a {b} by the river." for a in ("cat", "dog", "horse") for b in ("bird", "mouse", "cow")] * 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "words", "unigram", "byte-bpe"])
def test_what_a_tokenizer_does_not_know_is_unknown(kind: str, text: Path, tmp_path: Path) -> None:
    """Else bits per byte would be given for text that is not in the tokens."""
    train([text], kind, 400, tmp_path / "t")
    ours = estimate([text], open_units(str(tmp_path / "t"), [text]), 3)
    assert len(set(ours.units.names)) == ours.units.size
    scored = ours.score(batches([b"the cat sees a \xe4\xbd\xa0."]))
    if kind in ("unigram", "byte-bpe"):
        assert (scored.unknown, scored.bits_per_byte is None) == (0, False)
    else:
        assert (scored.unknown, scored.bits_per_byte) == (1, None)
    kenlm = pytest.importorskip("kenlm", reason="the extra [dev] is not installed")
    write_arpa(ours, tmp_path / "m.arpa")
    for line in (TEXT[0], "the 你 sees"):
        logs = ours.log_probs(ours.units.sentences([line.encode()]))[1:] / math.log(10)
        peer = [x[0] for x in kenlm.Model(str(tmp_path / "m.arpa")).full_scores(" ".join(ours.units.split(line)))]
        np.testing.assert_allclose(logs, peer, atol=2e-5)


@pytest.mark.parametrize("kind", ["characters", "words"])
def test_control_characters_have_names_that_files_keep(kind: str, tmp_path: Path) -> None:
    path, zero = tmp_path / "t.txt", tmp_path / "zero.jsonl"  # a zero byte in a file is refused, in a record it is text
    path.write_bytes("a\rb c\td \x0b\x0c\x1cz\u2028x\x85y\u00a0r\nab ab\n".encode())
    zero.write_text('{"text": "d \\u0000z"}\n')
    ours = estimate([path, zero], open_units(kind, [path, zero]), 2)
    ours.save(tmp_path / "m")
    assert NgramModel.load(tmp_path / "m").units.names == ours.units.names
    if kind == "characters":
        assert ours.units.join(ours.units.encode("a\rb\t \x00")) == "a\rb\t \x00"
    kenlm = pytest.importorskip("kenlm", reason="the extra [dev] is not installed")
    write_arpa(ours, tmp_path / "m.arpa")
    theirs = kenlm.Model(str(tmp_path / "m.arpa"))
    for line in lines([path, zero]):
        logs = ours.log_probs(ours.units.sentences([line]))[1:] / math.log(10)
        peer = [x[0] for x in theirs.full_scores(" ".join(ours.units.split(line.decode())))]
        np.testing.assert_allclose(logs, peer, atol=2e-5)


def test_a_half_typed_word_behind_a_sign(text: Path) -> None:
    ours = estimate([text], open_units("words", [text]), 3)
    assert complete(ours, '"the ca')[0][0] == "cat"
    assert complete(ours, "by the river. (th")[0][0] == "the"
    assert complete(ours, "by the (")[0][1] > 0, "behind a sign nothing has been typed"


def test_a_corrected_line_keeps_its_spaces(text: Path, tmp_path: Path) -> None:
    estimate([text], open_units("words", [text]), 3).save(tmp_path / "m")
    said = CliRunner().invoke(app, ["ngram", "correct", str(tmp_path / "m"), " the  caat sees a cow, by teh river."])
    assert said.output == " the  cat sees a cow, by the river.\n"


def test_lines_read_together_are_those_read_one_by_one() -> None:
    """Ends of lines, wrong bytes at them, signs that look like ends."""
    words = open_units(
        "words", names=["<unk>", "<s>", "</s>", "a", "b", "-", "<", "s", ">", "/", "\ufffd", "␀", "it's"]
    )
    batch = [b"a b", b"it's a-", b"b \xc3", b"\xa9 a", b"</s> <s>", b" \t x", b"'", b"a\0b \r b"]
    alone = [[1, *words.encode(line.decode("utf-8", "replace")), 2] for line in batch]
    assert words.sentences(batch).tolist() == [n for line in alone for n in line]
    assert words.sentences([b"a"]).tolist() == [1, 3, 2]

"""Tokenizers beside other implementations of the same thing: SentencePiece's own encoder, WordPiece as its paper has it,
the classes of the `tokenizers` library; and texts that are hard to bring back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.text.lines import lines
from kamerton.text.tokenizers import train
from kamerton.text.tokenizers.compare import measure

NOUNS = ("river", "rivers", "walker", "talker", "market", "basket", "naïveté", "forest")
VERBS = ("walks to", "talked of", "is walking by", "forgets", "remembers")
SENTENCES = [f"The {a} {v} the {b}, {i}." for i, (a, v, b) in enumerate(
    (a, v, b) for a in NOUNS for v in VERBS for b in NOUNS)]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unigram(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train([text], "unigram", 420, tmp_path_factory.mktemp("made") / "unigram")


@pytest.fixture(scope="module")
def peer(unigram: Any) -> Any:
    """SentencePiece's encoder on the pieces that ours learned."""
    spm = pytest.importorskip("sentencepiece", reason="the extra [dev] is not installed")
    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="protobuf is not installed")
    model = pb.ModelProto()
    kinds = pb.ModelProto.SentencePiece
    for piece, score in json.loads(unigram.backend_tokenizer.to_str())["model"]["vocab"]:
        kind = kinds.BYTE if re.fullmatch(r"<0x..>", piece) else kinds.NORMAL
        kind = {"<unk>": kinds.UNKNOWN, "<s>": kinds.CONTROL, "</s>": kinds.CONTROL, "<pad>": kinds.CONTROL}.get(
            piece, kind
        )
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = pb.TrainerSpec.UNIGRAM, True
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = "identity", True
    model.normalizer_spec.remove_extra_whitespaces, model.normalizer_spec.escape_whitespaces = False, True
    return spm.SentencePieceProcessor(model_proto=model.SerializeToString())


WORDS = st.sampled_from(
    [*NOUNS, *VERBS, "The", "the ", " ", "  ", "7", "31", ".", ", ", "Zoë", "你好", "🙂", "\n", "xq", "<0x"]
)


@given(st.lists(WORDS, max_size=9).map("".join))
@example(" a word").via("a text that begins with a space")
@settings(max_examples=300, deadline=None)
def test_unigram_cuts_as_sentencepiece_does(unigram: Any, peer: Any, line: str) -> None:
    ours = unigram(line, add_special_tokens=False)["input_ids"]
    assert unigram.convert_ids_to_tokens(ours) == [peer.id_to_piece(i) for i in peer.encode(line)]


@given(st.lists(st.one_of(WORDS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=4),
                          st.sampled_from(["<0x41>", "<0x0A>", "<0xFF", "0x41>"])), max_size=6).map("".join))  # fmt: skip
@example(" ").via("spaces alone")
@example("  two before, two behind  ").via("spaces at the ends")
@example("<0x41>").via("the name of a byte")
@settings(max_examples=300, deadline=None)
def test_unigram_gives_back_spaces_at_the_ends_and_the_names_of_bytes(unigram: Any, line: str) -> None:
    assert unigram.decode(unigram(line, add_special_tokens=False)["input_ids"]) == line


def test_bpe_gives_back_spaces_at_the_ends(text: Path, tmp_path: Path) -> None:
    made = train([text], "bpe", 200, tmp_path / "t")
    for line in ("  The river", " ", "The  river ", "river"):
        assert made.decode(made(line, add_special_tokens=False)["input_ids"]) == line


def test_bpe_learns_what_the_librarys_class_learns(text: Path, tmp_path: Path) -> None:
    from tokenizers import SentencePieceBPETokenizer

    peer = SentencePieceBPETokenizer()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    peer.train_from_iterator(
        SENTENCES, vocab_size=220, min_frequency=0, limit_alphabet=1000, special_tokens=special, show_progress=False
    )
    made = train([text], "bpe", 220, tmp_path / "t")
    for line in [*SENTENCES[::17], "a forester talks"]:
        assert made.tokenize(line) == peer.encode(line).tokens


def test_wordpiece_is_that_of_its_paper(text: Path, tmp_path: Path) -> None:
    """Its cuts are the longest match first (Schuster & Nakajima 2012)."""
    made = train([text], "wordpiece", 220, tmp_path / "t")

    def longest_first(word: str) -> list[str]:
        out, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in vocabulary:
                    break
            else:
                return ["[UNK]"]
            out.append(piece)
            start = end
        return out

    vocabulary = made.get_vocab()
    for word in (*NOUNS, "forestwalker", "talks", "walkings", "rivermarket", "qq", "xylophone"):
        assert made.tokenize(word) == longest_first(word), word
    assert made.tokenize("a ##b") == ["a", "[UNK]", "[UNK]", "b"], "what is inside words is no special token"
    assert made.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]


ASK = """
import sys, json
from pathlib import Path
from kamerton.text.tokenizers import KINDS, train
print(json.dumps([train([Path(sys.argv[1])], kind, 420, Path(sys.argv[2]) / kind).get_vocab() for kind in KINDS]))
"""


def test_trained_again_it_is_the_same(text: Path, tmp_path: Path) -> None:
    """In another process, where the library's tables are in another order: every token has the same number."""
    said = [
        subprocess.run([sys.executable, "-c", ASK, str(text), str(tmp_path)], capture_output=True, check=True).stdout
        for _ in range(3)
    ]
    first, *others = map(json.loads, said)
    assert all(other == first for other in others)


def test_no_kind_grows_over_its_size(text: Path, tmp_path: Path) -> None:
    """What is refused and what is made meet without a gap: the smallest size that is allowed is kept to."""
    for kind in ("bpe", "wordpiece", "unigram", "byte-bpe"):
        with pytest.raises(KamertonError) as refused:
            train([text], kind, 20, tmp_path / kind)
        least = int(re.search(r"at least (\d+)", str(refused.value))[1])  # type: ignore[index]
        for size in (least - 1, least, least + 20):
            try:
                made = train([text], kind, size, tmp_path / kind)
            except KamertonError as again:
                least = int(re.search(r"at least (\d+)", str(again))[1])  # type: ignore[index]
                assert size < least
            else:
                assert size >= least
                assert len(made) <= size


def test_words_that_are_cut_are_counted_behind_a_space(text: Path, tmp_path: Path) -> None:
    """As they stand in a text, whether the tokenizer writes a space before it or not."""
    few = tmp_path / "few.txt"
    few.write_text("the river, the retalk\n", encoding="utf-8")
    for kind in ("bpe", "unigram", "byte-bpe", "wordpiece"):
        made = train([text], kind, 600, tmp_path / kind)
        # the line's words as they are cut in it
        cut = [
            len(made.tokenize(f"a {word}")) - len(made.tokenize("a")) > 1 for word in ("the", "river", "the", "retalk")
        ]
        assert cut[-1]
        assert measure(kind, made, "few", [few]).split_words == sum(cut) / 4, kind


def test_many_letters(tmp_path: Path) -> None:
    """An alphabet that does not fit beside the bytes is refused; one that fits leaves all bytes in."""
    path = tmp_path / "t.txt"
    path.write_text(
        "\n".join("".join(chr(0x4E00 + (i * 7 + j) % 500) for j in range(12)) for i in range(400)), encoding="utf-8"
    )
    with pytest.raises(KamertonError, match="600 tokens are fewer than"):
        train([path], "unigram", 600, tmp_path / "o")
    made = train([path], "unigram", 800, tmp_path / "o")
    assert {f"<0x{b:02X}>" for b in range(256)} <= set(made.get_vocab())
    assert made.decode(made("Zoë ÿ 🙂 一", add_special_tokens=False)["input_ids"]) == "Zoë ÿ 🙂 一"


def test_a_broken_template_is_one_line(text: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}")
    result = CliRunner().invoke(app, ["tokenizer", "train", str(text), "--vocab-size", "400", "--chat-template", str(template),
                                      "--output", str(tmp_path / "o")])  # fmt: skip
    assert isinstance(result.exception, KamertonError)
    assert "--chat-template, line 2: is no template" in str(result.exception)
    assert not (tmp_path / "o").exists()


def test_the_mark_at_the_beginning_of_a_file_is_no_letter(tmp_path: Path) -> None:
    import gzip

    for name, pack in (("t.txt", bytes), ("t.txt.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbfone\n\nt\n"))
        assert list(lines([tmp_path / name])) == [b"one", b"t"]
    (tmp_path / "short.txt").write_bytes(b"a")
    assert list(lines([tmp_path / "short.txt"])) == [b"a"]

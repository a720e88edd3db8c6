"""N-gram models: against definitions computed naively, KenLM reading our file, sums over the vocabulary, disk, typing."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.text.lines import Seen, documents, lines
from kamerton.text.ngrams import SMOOTHINGS, NgramModel, estimate, open_units
from kamerton.text.ngrams import counts as counting
from kamerton.text.ngrams.arpa import write_arpa
from kamerton.text.ngrams.counts import Packing, batches, count, merged, tally
from kamerton.text.ngrams.katz import good_turing
from kamerton.text.ngrams.kneser_ney import discounts
from kamerton.text.ngrams.typing_help import complete, correct, next_units
from kamerton.text.ngrams.units import BOS, EOS, UNK

ANIMALS = ("cat", "dog", "bird", "horse", "mouse", "cow")
VERBS = ("sees", "hears", "follows", "likes")


def text(seed: int = 0, sentences: int = 600) -> list[str]:
    """Sentences with something to learn, and words of all frequencies."""
    rng = np.random.default_rng(seed)

    def rare() -> str:
        return f"w{int(rng.zipf(1.5)) % 300}"

    out = []
    for _ in range(sentences):
        a, b = rng.choice(ANIMALS, 2, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
        tail = " ".join(["", *(rare() for _ in range(rng.integers(0, 5)))])
        out.append(f"the {a} {rng.choice(VERBS, p=[0.5, 0.3, 0.15, 0.05])} a {b}{tail}.")
    return out


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text("\n".join(text()) + "\n")
    return path


@pytest.fixture(scope="module")
def held(train: Path) -> Path:
    path = train.with_name("held.txt")
    path.write_text("\n".join(text(1, 80)) + "\n\n")
    return path


def model(path: Path, kind: str = "words", order: int = 3, smoothing: str = "kneser-ney") -> NgramModel:
    return estimate([path], open_units(kind, [path]), order, smoothing)


# -- counts -----------------------------------------------------------------------------------------------------------


def naive(path: Path, kind: str, order: int) -> list[Counter[tuple[str, ...]]]:
    """Counts by the book."""
    units, out = open_units(kind, [path]), [Counter[tuple[str, ...]]() for _ in range(order)]
    for line in path.read_text().splitlines():
        row = ["<s>", *units.split(line), "</s>"]
        for n in range(1, order + 1):
            out[n - 1].update(tuple(row[i : i + n]) for i in range(len(row) - n + 1))
    return out


@pytest.mark.parametrize("memory", [1 << 30, 2000])
def test_counts_are_those_of_the_text_also_from_disk(train: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(counting, "LINES", 7)
    spilled = []
    own = counting._Counter._spill
    monkeypatch.setattr(counting._Counter, "_spill", lambda self: (spilled.append(self.packing.order), own(self)))
    units = open_units("words", [train])
    found = count([train], units, 4, memory=memory)
    assert (len(spilled) > 20) == (memory == 2000)
    for n, (ours, theirs) in enumerate(zip(found, naive(train, "words", 4), strict=True), start=1):
        named = {tuple(units.names[u] for u in gram): c for gram, c in zip(ours.grams, ours.counts, strict=True)}
        assert named == dict(theirs), n
        assert [tuple(g) for g in ours.grams] == sorted(tuple(g) for g in ours.grams)


@given(st.integers(1, 9), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_packing_keeps_order_and_comes_back(order: int, bits: int, data: st.DataObject) -> None:
    bits = min(bits, 32)
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=order, max_size=order), min_size=1, max_size=12)
    )
    packing, flat = Packing(order, bits), np.array(rows, dtype=np.uint32).ravel()
    packed = packing.pack(flat, np.arange(len(rows)) * order)
    assert packing.unpack(packed).tolist() == rows
    found, counts = tally(packed)
    want = Counter(map(tuple, rows))
    assert packing.unpack(found).tolist() == [list(r) for r in sorted(want)]
    assert counts.tolist() == [want[r] for r in sorted(want)]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30), min_size=1, max_size=5
    ),
    st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_runs_are_merged_as_if_they_had_been_one(runs: list[list[tuple[int, int]]], block: int) -> None:
    made = [tally(np.array(rows, dtype=np.uint64).T.copy()) for rows in runs]
    parts = list(merged(made, block))
    found = [tuple(map(int, row)) for packed, _ in parts for row in packed.T]
    want = Counter(row for rows in runs for row in rows)
    assert found == sorted(want)
    assert [int(c) for _, counts in parts for c in counts] == [want[row] for row in found]


# -- probabilities ----------------------------------------------------------------------------------------------------


def by_the_book(path: Path, order: int) -> dict[tuple[str, ...], float]:
    """Interpolated modified Kneser–Ney with dictionaries, n-gram by n-gram, as Chen & Goodman write it."""
    raw = naive(path, "words", order)
    vocabulary = [w for (w,) in raw[0] if w != "<s>"] + ["<unk>"]
    adjusted: list[dict[tuple[str, ...], int]] = []
    for n in range(1, order + 1):
        if n == order:
            adjusted.append(dict(raw[n - 1]))
            continue
        before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for gram in raw[n]:
            before[gram[1:]].add(gram[0])
        adjusted.append({g: c if g[0] == "<s>" else len(before[g]) for g, c in raw[n - 1].items() if g != ("<s>",)})

    def probability(gram: tuple[str, ...]) -> float:
        if not gram[:-1]:
            lower, table = 1 / len(vocabulary), adjusted[0]
            followers = dict(table)
        else:
            lower, table = probability(gram[1:]), adjusted[len(gram) - 1]
            followers = {g: c for g, c in table.items() if g[:-1] == gram[:-1]}
        if not followers:
            return lower
        t = Counter(min(c, 5) for c in table.values())
        y = t[1] / (t[1] + 2 * t[2])
        d = [0.0] + [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
        total = sum(followers.values())
        c = followers.get(gram, 0)
        mass = sum(d[min(x, 3)] for x in followers.values()) / total
        return (c - d[min(c, 3)]) / total + mass * lower

    asked = {g for n in range(order) for g in list(raw[n])[:40] if g != ("<s>",)}
    asked |= {("the", "<unk>"), ("the", "cat", "</s>"), ("cat", "cat"), ("w1", "w2", "the")}
    return {g: probability(g) for g in asked}


def test_kneser_ney_is_that_of_the_book(train: Path) -> None:
    ours = model(train)
    assert ours.notes == [], "the discounts are estimated"
    for gram, p in by_the_book(train, 3).items():
        history = [ours.units.number(w) for w in gram[:-1]]
        assert ours.following(history)[ours.units.number(gram[-1])] == pytest.approx(p, rel=1e-9), gram


def test_discounts_by_hand() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [10, 6, 3, 2, 1])
    y = 10 / 22
    assert discounts(counts) == pytest.approx((1 - 2 * y * 6 / 10, 2 - 3 * y * 3 / 6, 3 - 4 * y * 2 / 3))
    assert discounts(np.array([1, 1, 2, 5])) is None, "nothing was seen three times"


def test_good_turing_by_hand() -> None:
    counts = np.repeat([1, 2, 3, 4, 5, 6, 20], [60, 25, 14, 9, 6, 4, 1])
    found = good_turing(counts)
    assert found is not None
    common = 6 * 4 / 60
    assert found[1] == pytest.approx((2 * 25 / 60 / 1 - common) / (1 - common))
    assert found[5] == pytest.approx((6 * 4 / 6 / 5 - common) / (1 - common))
    assert found[6] == 1.0
    # what is taken away is what Good–Turing gives to the unseen: n_1
    assert sum((1 - found[r]) * r * n for r, n in zip(range(1, 6), (60, 25, 14, 9, 6), strict=True)) == pytest.approx(
        60
    )


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_probabilities_sum_to_one_behind_anything(train: Path, kind: str, smoothing: str) -> None:
    ours = model(train, kind, 4, smoothing)
    rng = np.random.default_rng(0)
    for _ in range(60):
        history = [int(u) for u in rng.integers(0, ours.units.size, size=rng.integers(0, 5)) if u not in (BOS, EOS)]
        p = ours.following([BOS, *history] if rng.random() < 0.5 else history)
        assert p.sum() == pytest.approx(1.0, abs=1e-9)
        assert p.min() >= 0
    seen = ours.following([BOS, *ours.units.encode("the cat")])
    assert seen.sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("wrong", ["discount", "weight"])
def test_a_wrong_estimate_does_not_sum_to_one(train: Path, wrong: str) -> None:
    """That the property above can fail."""
    ours = model(train)
    if wrong == "discount":
        ours.orders[2].probs = np.log(np.exp(ours.orders[2].probs) + 0.01)
    else:
        ours.orders[1].backoffs = np.zeros(len(ours.orders[1].keys))
    assert abs(ours.following([BOS, *ours.units.encode("the")]).sum() - 1) > 0.005


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_text_is_scored_as_its_units_one_by_one(train: Path, held: Path, smoothing: str) -> None:
    ours = model(train, "words", 4, smoothing)
    for line in list(lines([held]))[:12]:
        row = ours.units.sentences([line, line])
        logs = ours.log_probs(row)
        np.testing.assert_array_equal(logs[: len(logs) // 2], logs[len(logs) // 2 :])
        for i in range(1, len(row) // 2):
            p = ours.following(row[:i].tolist())[row[i]]
            assert math.exp(logs[i]) == pytest.approx(float(p), rel=1e-9)


def test_shares_of_counts_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a b\na c\na b\nb\n")
    ours = model(path, "words", 2, "mle")
    p = dict(zip(ours.units.names, ours.following([BOS, ours.units.number("a")]), strict=True))
    assert (p["b"], p["c"], p["a"]) == pytest.approx((2 / 3, 1 / 3, 0))
    scored = ours.score(batches([b"a a"]))
    assert scored.impossible == 2, "a behind a, and the end behind a"
    assert scored.perplexity == math.inf
    assert ours.score(batches([b"a b"])).perplexity == pytest.approx((3 / 4 * 2 / 3 * 1) ** (-1 / 3))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_kenlm_reads_our_file_and_says_the_same(train: Path, held: Path, tmp_path: Path, smoothing: str) -> None:
    kenlm = pytest.importorskip("kenlm", reason="the extra [dev] is not installed")
    for kind in ("words", "bytes"):
        ours = model(train, kind, 4, smoothing)
        write_arpa(ours, tmp_path / "m.arpa")
        theirs, mine, its, units = kenlm.Model(str(tmp_path / "m.arpa")), 0.0, 0.0, 0
        for line in lines([held]):
            logs = ours.log_probs(ours.units.sentences([line]))[1:] / math.log(10)
            peer = np.array([x[0] for x in theirs.full_scores(" ".join(ours.units.split(line.decode())))])
            possible = np.isfinite(logs)
            np.testing.assert_allclose(logs[possible], peer[possible], atol=2e-5)
            assert (peer[~possible] < -90).all()
            mine, its, units = mine + logs[possible].sum(), its + peer[possible].sum(), units + possible.sum()
        assert 10 ** (-mine / units) == pytest.approx(10 ** (-its / units), rel=1e-4)


def test_smoothing_helps_and_longer_contexts_too(train: Path, held: Path) -> None:
    def of(order: int, smoothing: str) -> float:
        return model(train, "bytes", order, smoothing).score(batches(lines([held]))).perplexity

    assert of(1, "kneser-ney") > of(2, "kneser-ney") > of(5, "kneser-ney")
    assert of(5, "kneser-ney") < of(5, "katz") < of(5, "mle") == math.inf


def test_bits_per_byte(train: Path, held: Path) -> None:
    ours = model(train, "bytes", 3)
    scored, size = ours.score(batches(lines([held]))), sum(len(x) + 1 for x in lines([held]))
    assert scored.bytes == size
    assert scored.bits_per_byte == pytest.approx(math.log2(scored.perplexity) * scored.units / size)
    assert scored.units == size, "every byte, and the end of a line is one"
    words = model(train).score(batches([b"the zebra sees a cat."]))
    assert (words.unknown, words.bits_per_byte) == (1, None)


# -- saving, samples, typing ------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(train: Path, held: Path, tmp_path: Path) -> None:
    ours = model(train, "characters", 4)
    ours.save(tmp_path / "m")
    again = NgramModel.load(tmp_path / "m")
    row = ours.units.sentences(list(lines([held])))
    np.testing.assert_array_equal(again.log_probs(row), ours.log_probs(row))
    drawn = [m.sample(np.random.default_rng(3), longest=60) for m in (ours, again)]
    assert drawn[0] == drawn[1]
    assert UNK not in drawn[0]
    (tmp_path / "m/3-probs.npy").write_bytes((tmp_path / "m/2-probs.npy").read_bytes())
    with pytest.raises(KamertonError, match="is damaged: arrays of the wrong length; train it again"):
        NgramModel.load(tmp_path / "m")


def test_samples_have_the_models_shares(train: Path) -> None:
    ours, rng = model(train), np.random.default_rng(0)
    second = Counter(ours.units.names[ours.sample(rng, longest=2)[1]] for _ in range(400))
    p = ours.following([BOS, ours.units.number("the")])
    assert second["cat"] / 400 == pytest.approx(float(p[ours.units.number("cat")]), abs=0.08)


def test_help_with_typing(train: Path) -> None:
    ours = model(train)
    assert next_units(ours, "the cat", 1)[0][0] == "sees"
    assert complete(ours, "the cat fo") == [("follows", 1.0)]
    assert [w for w, _ in complete(ours, "the ", 2)] == ["cat", "dog"]
    assert complete(ours, "the qq") == []

    def put_right(line: str) -> str:
        return " ".join(meant for _, meant in correct(ours, line))

    assert put_right("teh cta sess a brid .") == "the cat sees a bird ."
    assert put_right("the cat sees a bird .") == "the cat sees a bird ."
    # known words in a place where they never stand
    assert put_right("the sees a dog .") != ""
    assert put_right("the xylophones sees a dog .") == "the xylophones sees a dog ."
    with pytest.raises(KamertonError, match="only one of words"):
        complete(model(train, "bytes"), "a")


def test_a_tokenizers_units(train: Path, held: Path, tmp_path: Path) -> None:
    import tiny

    tiny.tokenizer().save_pretrained(tmp_path / "t")
    ours = model(train, str(tmp_path / "t"), 3)
    assert ours.units.lossless
    line = b"the cat\tsees \xc3\xa9 a dog."
    assert ours.units.join(ours.units.encode(line.decode())) == line.decode()
    assert ours.score(batches(lines([held]))).bits_per_byte is not None
    ours.save(tmp_path / "m")
    assert NgramModel.load(tmp_path / "m").units.names == ours.units.names


# -- command line and bad input ---------------------------------------------------------------------------------------


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["ngram", *map(str, args)])
    if isinstance(result.exception, KamertonError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_from_the_command_line(train: Path, held: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "t.txt.gz"
    zipped.write_bytes(gzip.compress(train.read_bytes()))
    code, said = run("train", zipped, "--order", 3, "--output", tmp_path / "m")
    assert code == 0, said
    assert "order 3: " in said
    code, said = run("eval", tmp_path / "m", held, "--json")
    assert json.loads(said)["perplexity"] == pytest.approx(model(train).score(batches(lines([held]))).perplexity)
    code, said = run("eval", tmp_path / "m", held, "--documents")
    assert code == 2
    assert "words cannot write the ends of lines in documents; count bytes" in said
    assert run("correct", tmp_path / "m", "teh cat sees a dog")[1].strip() == "the cat sees a dog"
    assert "follows" in run("complete", tmp_path / "m", "the cat fo")[1]
    assert len(run("sample", tmp_path / "m", "--lines", 3)[1].splitlines()) == 3
    assert run("export", tmp_path / "m", "--output", tmp_path / "m.arpa")[0] == 0
    assert (tmp_path / "m.arpa").read_text().startswith("\\data\\\nngram 1=")


def test_bad_input_is_one_line(train: Path, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.txt", tmp_path / "broken.txt.gz"
    empty.write_text("\n\n")
    broken.write_bytes(gzip.compress(train.read_bytes())[:200])
    sound = tmp_path / "sound"
    model(train).save(sound)
    for args, says in [
        (("train", empty, "--output", tmp_path / "m"), "there is no text in it; give files with lines of text"),
        (("train", broken, "--output", tmp_path / "m"), "cannot be read: Compressed file ended"),
        (("train", empty, "--tokens", "bytes", "--output", tmp_path / "m"), "there is no text in it"),
        (("train", train, "--tokens", tmp_path, "--output", tmp_path / "m"), "no tokenizer"),
        (
            ("train", train, "--tokens", tmp_path / "t", "--output", tmp_path / "m"),
            "/t: no such folder; check the path",
        ),
        (("eval", tmp_path, train), "is no n-gram model: ngram.json is not there"),
        (("eval", sound, empty), "empty.txt: there is no text in it; give files with lines of text"),
        (("eval", sound, empty, "--json"), "empty.txt: there is no text in it"),
    ]:
        code, said = run(*args)
        assert code == 2
        assert says in said
        assert "\n" not in said.strip()


def test_long_lines_and_wrong_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamerton.text.lines.LONGEST", 1000)
    path = tmp_path / "t.txt"
    path.write_bytes(b"a b " * 600 + b"\n\xff\xfe b a\n")
    ours = model(path)
    assert ours.notes[0] == "2 lines of more than a megabyte were cut into several sentences"
    assert ours.notes[1].startswith("2 characters are not UTF-8: each was read as �")
    assert ours.units.number("a") != UNK
    kept = estimate([path], open_units("bytes"), 2)
    assert kept.notes[1].startswith("2 characters are not UTF-8: their bytes are kept")
    ours.save(tmp_path / "m")
    assert "note: 2 characters are not UTF-8: each was read as �" in run("eval", tmp_path / "m", path)[1]
    assert json.loads(run("eval", tmp_path / "m", path, "--json")[1])["notes"] == ours.notes[:2]


def test_a_long_line_is_cut_before_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the bound falls: letters of two, three and four bytes, and bytes that are none."""
    path, wrong = tmp_path / "t.txt", b"\xbf" * 70 + b"\xe4\xb8" * 40 + b"\xf0"
    for content in ("яблоко" * 40, "今天我们" * 40, "a🙂" * 60, "\ufeffя" + "яб" * 90):
        path.write_text(content, encoding="utf-8")
        for longest in range(20, 30):
            monkeypatch.setattr("kamerton.text.lines.LONGEST", longest)
            seen = Seen()
            parts = list(lines([path], seen))
            assert b"".join(parts).decode() == content.removeprefix("\ufeff")
            assert all(part.decode() and len(part) <= longest for part in parts)
            assert (seen.cut, seen.broken) == (len(parts) - 1, 0)
    path.write_bytes(wrong)
    assert b"".join(lines([path])) == wrong


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.txt.gz", "t.txt.zst"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0", "is a PNG image, no text; leave it out"),
        ("Ёж идёт\nпо лесу домой\n".encode("utf-16"), "looks like UTF-16, not UTF-8; convert it to UTF-8: iconv -f UTF-16 -t"),
        ("one line\nand two\n".encode("utf-16-be"), "looks like UTF-16, not UTF-8; convert it to UTF-8: iconv -f UTF-16BE"),
        (b"a text\nwith \0 in it\n", "is not text (it has zero bytes); leave it out, or convert it to UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_utf8_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    if name.endswith("jsonl"):
        content = content.replace(b"a text\n", b'{"text": "a"}\n').replace(b"\r\n\x1a\n", b"")
    if name.endswith("zst"):
        content = pytest.importorskip("zstandard").compress(content)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(KamertonError) as caught:
        list(lines([path]))
    assert f"{path}: {says}" in str(caught.value)
    if name != "t.jsonl":
        with pytest.raises(KamertonError, match=str(path)):
            list(documents([path]))

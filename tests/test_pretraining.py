"""Pretraining: the loss against transformers' own, documents kept apart, resuming, what is left, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kamerton as kt
import tiny
from kamerton.base.model import CausalModel
from kamerton.base.presets import PRESETS, Shape, build
from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.objectives.expert_balance import Balance
from kamerton.objectives.packed_contexts import PackedContexts, Stream
from kamerton.pretraining.page import sentences
from kamerton.pretraining.pieces import batches, can_be_cut, cut
from kamerton.pretraining.run import pretrain
from kamerton.pretraining.tokens import byte_tokenizer, hold_out_end, read_corpus, split_documents
from kamerton.text.tokenizers import train as train_tokenizer
from kamerton.training.checkpoint import checkpoints
from kamerton.training.loop import Settings
from kamerton.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

TEXT = "\n\n".join(f"Line {n}: " + " ".join(tiny.WORDS[(n * k) % 40] for k in range(1, 9)) for n in range(120))
SMALL = {"preset": "llama", "width": 32, "depth": 2, "heads": 2}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def recipe(texts: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": SMALL, "tokenizer": "bytes", "data": {"train": str(texts), "held_out": 0.1, "documents": "paragraph"},
        "context": 32, "budget": {"steps": 8}, "samples": {"prompts": ["Line"], "tokens": 8},
        "training": {"batch_size": 4, "validations": 4, "learning_rate": 0.01}, **changes,
    }  # fmt: skip


def stream(size: int, seed: int = 0, vocabulary: int = 50, end_every: int = 0) -> Stream:
    tokens = np.random.default_rng(seed).integers(1, vocabulary, size)
    if end_every:
        tokens[::end_every] = 0
    return Stream(tokens.astype(np.uint16), 0, size)


def model(name: str = "llama", **more: Any) -> CausalModel:
    torch.manual_seed(0)
    shape = Shape(32, 2, 2, 50, 64, **more)
    hf = build(PRESETS[name].config(shape, {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0}), "causal")
    return CausalModel(hf.eval())


# -- contexts -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_of_packed_contexts_is_transformers_own() -> None:
    m, goal = model(), PackedContexts(stream(400), None, context=24, batch_size=5, max_tokens=60)
    batches = goal.batches(3, m)
    assert len(batches) > 1
    ours = sum(float(goal.loss(m, b).total) for b in batches)
    expected = 0.0
    for b in batches:
        for row, end in zip(b.rows, np.split(b.targets, len(b.rows)), strict=True):
            ids = torch.tensor([[*row, int(end[-1])]])
            expected += float(m.hf(input_ids=ids, labels=ids).loss) * 24
    assert ours == pytest.approx(expected, rel=1e-5)
    assert sum(b.count for b in batches) == 5 * 24


@torch.no_grad()
def test_attention_within_documents_is_separate_documents() -> None:
    m, data = model(), stream(201, end_every=9)
    packed = PackedContexts(data, data, context=50, batch_size=2, within_documents=True)
    ours = sum(float(packed.loss(m, b).total) for b in packed.validation())
    tokens, expected = data.tokens.astype(np.int64).tolist(), 0.0
    # windows of 50 cut documents too: each piece that a window holds is a text of its own, up to its end token
    for start in range(0, 200, 50):
        window = tokens[start : start + 51]
        cuts = sorted({0, *(i for i, t in enumerate(window[:-1]) if t == 0)})
        for a, b in zip(cuts, [*cuts[1:], len(window) - 1], strict=True):
            ids = torch.tensor([window[a : b + 1]])
            expected += float(m.hf(input_ids=ids, labels=ids).loss) * (b - a)
    assert ours == pytest.approx(expected, rel=1e-5)
    across = PackedContexts(data, data, context=50, batch_size=2)
    assert sum(float(across.loss(m, b).total) for b in across.validation()) != pytest.approx(ours, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(30, 300), context=st.integers(2, 29), stride=st.integers(1, 29), within=st.booleans())
def test_every_token_but_the_first_is_a_target_once_whatever_the_stride(
    size: int, context: int, stride: int, within: bool
) -> None:
    data = stream(size, end_every=7)
    goal = PackedContexts(data, data, context=context, batch_size=3, within_documents=within)
    packs = goal.windows(data, min(stride, context))
    counted = np.concatenate([p.targets[p.weights > 0] for p in packs])
    assert np.array_equal(counted, data.tokens[1:])
    for p in packs:
        assert sum(map(len, p.rows)) == len(p.targets)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(60, 400), context=st.integers(3, 20), batch=st.integers(1, 6))
def test_an_epoch_reads_every_piece_once(size: int, context: int, batch: int) -> None:
    data = Stream(np.arange(size), -1, size)
    goal = PackedContexts(data, None, context=context, batch_size=batch)
    steps = goal.pieces // goal.batch_size
    first = [row[0] for s in range(steps) for b in goal.batches(s, None) for row in b.rows]  # type: ignore[arg-type]
    assert len(set(first)) == len(first) == steps * goal.batch_size
    assert all(start % context == 0 for start in first)


def test_later_epochs_cut_the_stream_elsewhere() -> None:
    goal = PackedContexts(Stream(np.arange(1000), -1, 1000), None, context=10, batch_size=goal_batch(1000, 10))
    starts = [{row[0] % 10 for b in goal.batches(e, None) for row in b.rows} for e in range(4)]  # type: ignore[arg-type]
    assert len(set(map(frozenset, starts))) > 1


def goal_batch(size: int, context: int) -> int:
    return (size - 1) // context


# -- experts --------------------------------------------------------------------------------------------------------


def test_the_balance_is_transformers_own_and_reaches_the_routers() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    m = model("moe", experts=4)
    data = stream(200)
    balance = Balance(m.hf)
    with balance.watch() as seen:
        m.forward([data.tokens[:30].tolist()])
    value, metrics = balance.loss(seen)
    each = [load_balancing_loss_func((layer,), 4, 2) for layer in seen]
    torch.testing.assert_close(value, torch.stack(each).mean())
    assert len(seen) == 2
    counts = [torch.bincount(layer.topk(2, dim=-1).indices.flatten(), minlength=4) / 60 for layer in seen]
    assert metrics["busiest_expert"] == pytest.approx(max(float(c.max()) for c in counts))
    assert metrics["idlest_expert"] == pytest.approx(min(float(c.min()) for c in counts))
    goal = PackedContexts(data, None, context=16, batch_size=3, balance=0.5)
    plain = PackedContexts(data, None, context=16, batch_size=3)
    batch = goal.batches(0, m)[0]
    loss, without = goal.loss(m, batch), plain.loss(m, batch)
    share = loss.metrics["balance_loss"] / batch.count
    assert float(loss.total.detach() - without.total.detach()) == pytest.approx(0.5 * share * batch.count, rel=1e-3)
    with torch.no_grad():  # validation is the plain loss
        assert float(goal.loss(m, batch).total) == pytest.approx(float(without.total.detach()), rel=1e-5)


# -- schedules ------------------------------------------------------------------------------------------------------


def test_schedules_are_the_papers() -> None:
    peak, steps = 512**-0.5 * 4000**-0.5, 4000
    original = Settings(learning_rate=peak, schedule="inverse-sqrt", warmup_steps=steps)
    for step in (1, 100, 4000, 20000):
        paper = 512**-0.5 * min(step**-0.5, step * steps**-1.5)
        assert learning_rate(original, 0.5, step - 1) == pytest.approx(paper)
    stable = Settings(learning_rate=1.0, schedule="warmup-stable-decay", warmup=0.1, decay=0.2, floor=0.1)
    values = [learning_rate(stable, share, 9) for share in (0.05, 0.1, 0.5, 0.8, 0.9, 1.0)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.55, 0.1])
    cosine = Settings(learning_rate=1.0, warmup=0.1, floor=0.1)
    assert learning_rate(cosine, 0.55, 9) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(Settings(learning_rate=1.0, schedule="constant", warmup=0.0), 0.9, 9) == 1.0


# -- corpora --------------------------------------------------------------------------------------------------------


def test_a_corpus_is_all_of_its_documents_and_comes_from_disk_the_second_time(tmp_path: Path, texts: Path) -> None:
    words = byte_tokenizer()
    made = [read_corpus(words, 0, tmp_path / "tokens", texts, 0.1, "paragraph") for _ in range(2)]
    one = made[0]
    parts = {d for d in TEXT.split("\n\n")}
    for data in (one.train, one.held_out):
        assert data is not None
        ids = np.split(np.asarray(data.tokens), np.flatnonzero(data.tokens == 0))[1:]
        read = [words.decode(p[1:], skip_special_tokens=False) for p in ids if len(p) > 1]
        assert sum(len(r.encode()) for r in read) == data.bytes
        assert parts >= set(read)
        parts -= set(read)
    assert not parts
    assert one.documents == (len(TEXT.split("\n\n")) - one.documents[1], one.documents[1])
    assert 4 <= one.documents[1] <= 24
    assert np.array_equal(made[1].train.tokens, one.train.tokens)
    texts.write_text(TEXT + "\n\nmore", encoding="utf-8")
    again = read_corpus(words, 0, tmp_path / "tokens", texts, 0.1, "paragraph")
    assert sum(again.documents) == sum(one.documents) + 1


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Tokenizers of bytes: without merges, and with words that were learned, digits apart or not."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "t.txt").write_text(TEXT + " it's we'll 2024 don't … Zürich  \n\n", encoding="utf-8")
    made = [
        train_tokenizer([folder / "t.txt"], "byte-bpe", 320, folder / str(digits), split_digits=digits, chat_template=t)
        for digits, t in ((False, None), (True, "chatml"))
    ]
    return [byte_tokenizer(), *made]


_WHITE = " \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u3000"
_PARTS = st.one_of(
    st.text(), st.text(alphabet=_WHITE, min_size=1, max_size=4), st.text(alphabet="aé12_.'’s!你🙂\u0301" + _WHITE),
    st.sampled_from(["it's ", "<|endoftext|>", " <|im_end|>\n", "<|end|> ", "line\n\n  line ", " 've", "a \n b"]),
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(text=st.lists(_PARTS, max_size=12).map("".join), least=st.integers(1, 9))
def test_tokens_of_pieces_are_those_of_the_whole_text(byte_level: list[Any], text: str, least: int) -> None:
    parts = list(cut(text, least))
    assert "".join(parts) == text
    assert all(len(part) >= least for part in parts[:-1])
    for words in byte_level:
        assert can_be_cut(words)
        ids = words([text, *parts], add_special_tokens=False)["input_ids"]
        assert [i for own in ids[1:] for i in own] == ids[0]


def test_other_tokenizers_read_whole_documents(tmp_path: Path, texts: Path) -> None:
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    for kind in ("bpe", "wordpiece", "unigram", "words"):
        assert not can_be_cut(train_tokenizer([texts], kind, 400, tmp_path / kind))
    for change in ("added", "normalizer", "prefix", "whole"):
        words = byte_tokenizer()
        backend = words.backend_tokenizer
        if change == "added":
            words.add_tokens([AddedToken("two words", normalized=False)])
        elif change == "normalizer":
            backend.normalizer = normalizers.NFC()
        else:
            how = {"add_prefix_space": True} if change == "prefix" else {"add_prefix_space": False, "use_regex": False}
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(**how)
        assert not can_be_cut(words), change


def test_long_documents_are_read_in_pieces_and_batches_of_bytes(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = byte_tokenizer()
    whole = read_corpus(words, 0, tmp_path / "whole", texts, 0.1, "file")
    batch = list(batches([("é " * 500, False), ("b", True)], True, size=100))
    assert [[len(p.text.encode()) for p in some] for some in batch] == [[1500, 1]] or len(batch) == 2
    assert [(p.held, p.last) for some in batch for p in some] == [(False, True), (True, True)]
    monkeypatch.setattr("kamerton.pretraining.pieces.cut.__defaults__", (50,))
    monkeypatch.setattr("kamerton.pretraining.pieces.PIECE", 50)
    monkeypatch.setattr("kamerton.pretraining.pieces.batches.__defaults__", (200,))
    seen = list[int]()

    def spied(texts: list[str], **how: Any) -> Any:
        seen.append(sum(map(len, texts)))
        return type(words).__call__(words, texts, **how)

    class Spy(type(words)):  # type: ignore[misc]
        def __call__(self, *given: Any, **how: Any) -> Any:
            return spied(*given, **how)

    spy = byte_tokenizer()
    spy.__class__ = Spy
    parts = read_corpus(spy, 0, tmp_path / "parts", texts, 0.1, "file")
    assert parts.digest == whole.digest
    assert parts.documents == whole.documents
    assert parts.train.bytes == whole.train.bytes
    assert len(seen) > 10
    assert max(seen) < 300


@settings(deadline=None)
@given(st.text(alphabet="ab\n", min_size=1, max_size=200), st.floats(0.01, 0.9))
def test_the_end_of_a_single_document_is_held_out_from_a_line_on(text: str, share: float) -> None:
    train, held = hold_out_end(text, share)
    assert train + held == text
    assert not held or train.endswith("\n") or "\n" not in text[: len(text) - round(len(text) * share)]


@given(st.integers(2, 60), st.floats(0.01, 0.5))
def test_some_documents_are_held_out_and_never_all(count: int, share: float) -> None:
    marked = list(split_documents(iter([str(i) for i in range(count)]), share))
    assert [text for text, _ in marked] == [str(i) for i in range(count)]
    assert 0 < sum(held for _, held in marked) < count


# -- whole runs -----------------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


RUNS: dict[str, dict[str, Any]] = {
    "llama": {},
    "muon": {"training": {"batch_size": 4, "validations": 4, "learning_rate": 0.01, "optimiser": "muon"}},
    "averaged": {"training": {"batch_size": 4, "validations": 4, "learning_rate": 0.01, "average": 0.9}},
    "moe": {"model": {**SMALL, "preset": "moe", "experts": 4}},
    "lstm": {"model": {"preset": "lstm", "width": 32, "dropout": 0.1}},
    "bert": {"model": {**SMALL, "preset": "bert"}},
    "within documents": {"attention": "documents", "model": {**SMALL, "preset": "gpt2", "dropout": 0.1}},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_was_stopped_ends_with_the_same_weights_bit_for_bit(kind: str, texts: Path, tmp_path: Path) -> None:
    given_ = recipe(texts, **RUNS[kind])
    straight = pretrain(given_, output=tmp_path / "straight")
    for stop in (3, 6):
        assert pretrain(given_, output=tmp_path / "stopped", stop_after=stop) is None
        assert checkpoints(tmp_path / "stopped" / "fit")[0].name == f"step-{stop:06d}"
    stopped = pretrain(given_, output=tmp_path / "stopped")
    assert straight is not None
    assert stopped is not None
    a, b = weights(straight.folder), weights(stopped.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert drop(stopped.results["curve"]) == drop(straight.results["curve"])
    samples = (
        [json.loads(line) for line in (stopped.folder / "samples.jsonl").read_text().splitlines()]
        if kind != "bert"
        else []
    )
    assert [row["step"] for row in samples] == ([2, 4, 6, 8] if kind != "bert" else [])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_other_words_of_the_same_length_are_another_corpus(kind: str, texts: Path, tmp_path: Path) -> None:
    """A text of which two letters were exchanged has the counts of the old one; no checkpoint of that is gone on from."""
    own = tmp_path / "own.txt"
    content = (texts if texts.is_file() else next(f for f in texts.rglob("*") if f.is_file())).read_text()
    given_, changed = recipe(own, **RUNS[kind]), content.translate(str.maketrans("et", "te"))
    own.write_text(content)
    assert pretrain(given_, output=tmp_path / "out", stop_after=6) is None
    own.write_text(changed)
    straight, gone_on = pretrain(given_, output=tmp_path / "new"), pretrain(given_, output=tmp_path / "out")
    assert straight is not None
    assert gone_on is not None
    a, b = weights(straight.folder), weights(gone_on.folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_of_packed_texts_is_the_same_corpus_and_what_is_not_read_is_said(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": TEXT}).encode() + b"\n"))
    plain = pretrain(recipe(texts), output=tmp_path / "plain")
    for name in ("notes.pdf", "table.csv", ".hidden"):
        (folder / name).write_text("x")
    packed = pretrain(recipe(folder), output=tmp_path / "out")
    again = pretrain(recipe(folder), output=tmp_path / "out")
    assert plain is not None
    assert packed is not None
    assert again is not None
    note = f"2 files were not read (.csv, .pdf): texts are .txt, .md, .jsonl, packed or not; folder {folder}"
    assert packed.metrics == plain.metrics
    assert (packed.results["notes"].count(note), again.results["notes"].count(note)) == (1, 1)


def test_what_is_left_is_a_model_folder_and_a_base(texts: Path, tmp_path: Path) -> None:
    made = pretrain(recipe(texts, budget={"steps": 30}), output=tmp_path / "out")
    assert made is not None
    held = [row["bits_per_byte"] for row in made.results["curve"] if "bits_per_byte" in row]
    assert held[-1] < held[0] - 0.3
    hf = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    words = transformers.AutoTokenizer.from_pretrained(made.folder)
    corpus = read_corpus(byte_tokenizer(), 0, made.folder / "tokens", texts, 0.1, "paragraph").held_out
    assert corpus is not None
    # bits per byte from transformers alone: windows of the context side by side, the last one a whole one too
    tokens, nats = torch.as_tensor(corpus.tokens.astype(np.int64)), 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 32):
            begin = min(start, len(tokens) - 33)
            window = tokens[begin : start + 33][None]
            told = hf(input_ids=window[:, :-1]).logits[0].log_softmax(-1).gather(1, window[0, 1:, None])
            nats += float(told[start - begin :].sum())
    assert made.metrics["bits_per_byte"] == pytest.approx(-nats / math.log(2) / corpus.bytes, rel=1e-4)
    assert made.metrics["bits_per_byte_half_overlap"] < made.metrics["bits_per_byte"]
    assert made.metrics["perplexity"] == pytest.approx(math.exp(-nats / (len(tokens) - 1)), rel=1e-4)
    assert words.decode(words("Zürich 你好")["input_ids"]) == "Zürich 你好"
    adapted = kt.load(made.folder)
    assert adapted.base.info.architecture == "LlamaForCausalLM"
    tuned = tiny.fit(adapted.base, "lora", tmp_path / "fit", learning_rate=1e-2, limit=31)
    assert tuned.record.tokens
    assert {p.suffix for p in made.folder.iterdir() if p.is_file()} <= {".json", ".jsonl", ".safetensors", ".html", ""}
    page = made.report.read_text()
    assert "bits per byte" in page
    assert "<script" not in page
    going_on = pretrain(
        {k: v for k, v in recipe(texts).items() if k not in ("model", "tokenizer")} | {"base": str(made.folder)},
        output=tmp_path / "further",
    )
    assert going_on is not None
    first = next(row["bits_per_byte"] for row in going_on.results["curve"] if "bits_per_byte" in row)
    assert first < held[0]


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("words", "", "held-out documents are not what their tokens give back"),
        ("words", " quite unheard", "% of the held-out tokens stand for text that the tokenizer does not know"),
        ("wordpiece", "", "held-out documents are not what their tokens give back"),
        ("bpe", " ✓", "% of the held-out tokens stand for text that the tokenizer does not know"),
        ("bpe", "\nline", "% of the held-out tokens stand for text that the tokenizer does not know"), ("bpe", "", None), ("unigram", " ✓", None), ("byte-bpe", " ✓", None),
    ],
)  # fmt: skip
def test_bits_per_byte_are_given_only_where_the_held_out_text_comes_back(
    kind: str, more: str, why: str | None, texts: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held.txt"
    held.write_text("\n\n".join(TEXT.split("\n\n")[-9:]) + more, encoding="utf-8")
    train_tokenizer([texts], kind, 400, tmp_path / kind)
    data = {"train": str(texts), "held_out": str(held), "documents": "paragraph"}
    made = pretrain(recipe(texts, tokenizer=str(tmp_path / kind), data=data), output=tmp_path / "out")
    assert made is not None
    given_ = {"bits_per_byte", "bits_per_byte_half_overlap"}
    assert made.metrics["perplexity"] > 1
    assert made.metrics.keys() >= given_ if why is None else not made.metrics.keys() & given_
    assert any("bits_per_byte" in row for row in made.results["curve"]) == (why is None)
    notes = [note for note in made.results["notes"] if note.startswith("bits per byte are not given: ")]
    assert len(notes) == (why is not None)
    assert why is None or re.search(why, notes[0])
    said = sentences(made.results)
    assert ("bits per byte," in said[1] or "bits per byte (" in said[1]) == (why is None)
    assert "perplexity" in said[1]


def test_text_on_a_page_is_escaped(texts: Path, tmp_path: Path) -> None:
    texts.write_text("<b>&\n\n" * 200 + TEXT, encoding="utf-8")
    made = pretrain(recipe(texts, samples={"prompts": ["<script>x</script>"], "tokens": 4}), output=tmp_path / "out")
    assert made is not None
    assert "<script>" not in made.report.read_text()


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"preset": "lama"}}, "model.preset: unknown preset 'lama'; did you mean llama"),
        ({"model": {"preset": "llama", "size": "big"}}, "model.size: 'big' is not a size"),
        ({"model": {**SMALL, "heads": 5}}, "model.heads: 5 heads do not divide 32"),
        ({"model": {"preset": "llava", "size": "1m"}}, "training on images is not supported"),
        ({"model": {**SMALL, "config": {"hiden_act": 1}}}, "LlamaConfig has no field 'hiden_act'"),
        ({"model": {**SMALL, "config": {"vocab_size": "many"}}}, "model.config.vocab_size: cannot be 'many'"),
        ({"model": {"preset": "lstm", "width": 32, "config": {"vocab_size": "many"}}}, "'many' is no whole number"),
        ({"model": {**SMALL, "preset": "gpt2", "config": {"n_positions": 31}}},
         "model.config.n_positions: 31 positions are too few: the context is 32; leave it out, or give at least 32, or"),
        ({"model": {**SMALL, "preset": "gpt2", "config": {"max_position_embeddings": 31}}},
         "model.config.max_position_embeddings: 31 positions are too few"),
        ({"model": {**SMALL, "preset": "gpt", "config": {"n_positions": 31}}}, "31 positions are too few"),
        ({"model": {**SMALL, "preset": "bert", "config": {"max_position_embeddings": 31}}}, "31 positions are too few"),
        ({"model": {**SMALL, "config": {"max_position_embeddings": 31}}}, "31 positions are too few"),
        ({"model": {**SMALL, "config": {"vocab_size": 100}}},
         "model.config.vocab_size: 100 tokens are too few: the tokenizer has 261; leave it out, or give at least 261"),
        ({"model": {"preset": "lstm", "width": 32, "config": {"vocab_size": 100}}}, "100 tokens are too few"),
        ({"objective": "masked"}, "objective: llama cannot learn masked"),
        ({"tokenizer": "nowhere/at/all"}, "tokenizer: nowhere/at/all: no such folder; check the path"),
        ({"tokenizer": None}, "a new model needs a tokenizer"),
        ({"base": "demo"}, "give one of the two"),
        ({"context": 100_000}, "fewer than one context"),
        ({"data": {"train": "gone.txt"}}, "no such file or folder"),
        ({"data": {"train": ["a", "b"]}}, "pairs of files are for translation"),
        ({"budget": {}}, "the budget has no limit"),
        ({"training": {"schedule": "linear"}}, "'linear' is not known here"),
        ({"training": {"batch_size": 0}}, "must be greater than 0"),
        ({"learning_rate": 1}, "unknown field 'learning_rate'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(changes: dict[str, Any], says: str, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(KamertonError, match=says) as caught:
        pretrain(recipe(texts, **changes), output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "fit").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfe\x00", "is not UTF-8"), (b"", "has no text"), (b" \n\n \n", "has no text|no text is left"), (b"one short line", "no text is left|fewer than one context")],
)  # fmt: skip
def test_bad_texts_are_one_line(content: bytes, says: str, texts: Path, tmp_path: Path) -> None:
    texts.write_bytes(content)
    with pytest.raises(KamertonError, match=says):
        pretrain(recipe(texts), output=tmp_path / "out")


def test_the_command_names_file_line_and_field(texts: Path, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(texts, context=0)), encoding="utf-8")
    result = CliRunner().invoke(app, ["pretrain", str(path)])
    assert isinstance(result.exception, KamertonError)
    assert f"{path}:" in str(result.exception)
    assert "context: must be greater than 0" in str(result.exception)
    done = CliRunner().invoke(app, ["pretrain", str(path), "--set", "context=16", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "bits per byte" in done.output
    assert f"next: kamerton chat {tmp_path / 'out'}" in done.output.replace("\n", "")


def test_the_next_step_is_one_that_the_architecture_can(texts: Path, tmp_path: Path) -> None:
    made = {
        name: pretrain(
            recipe(texts, model={**SMALL, "preset": name}, budget={"steps": 1}, samples=None), output=tmp_path / name
        )
        for name in ("gpt", "gpt2", "bert")
    }
    next_ = {name: one.next_step for name, one in made.items() if one is not None}
    assert next_["gpt2"] == f"kamerton chat {tmp_path / 'gpt2'}"
    assert kt.load(tmp_path / "gpt2").base.info.architecture == "GPT2LMHeadModel"
    assert next_["bert"] is None
    with pytest.raises(KamertonError, match="through packs"):
        kt.load(tmp_path / "gpt")
    load, _, why = (next_["gpt"] or "").partition(", for ")
    assert why == "no other command takes gpt"
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt")
    written = eval(load, {"transformers": transformers}).generate(
        **words("Line", return_tensors="pt"), max_new_tokens=4
    )
    assert written.shape[1] == 8

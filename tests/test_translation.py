"""Translation from scratch: smoothed labels, pairs of files, beams, and a small language that is learned."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from kamerton.base.encoder_decoder import EncoderDecoderModel, model_for
from kamerton.base.presets import PRESETS, Shape, build
from kamerton.errors import KamertonError
from kamerton.objectives.translation import Translation
from kamerton.pretraining.run import pretrain
from kamerton.pretraining.tokens import byte_tokenizer
from kamerton.pretraining.translation import encode, read_pairs, translate

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """A language whose words are letters and whose translation is the capitals, the other way round."""
    rng = random.Random(seed)
    made = ["".join(rng.choices("abcdef", k=rng.randint(2, 5))) for _ in range(count)]
    return [(text, text.upper()[::-1]) for text in made]


def write(folder: Path, rows: list[tuple[str, str]], name: str = "train") -> list[str]:
    for i, side in enumerate(("source.gz", "target")):
        text = "".join(row[i] + "\n" for row in rows).encode()
        (folder / f"{name}.{side}").write_bytes(gzip.compress(text) if side.endswith("gz") else text)
    return [str(folder / f"{name}.{side}") for side in ("source.gz", "target")]


@pytest.mark.parametrize("name", ["transformer", "lstm-attention"])
def test_the_smoothed_loss_is_torchs_own(name: str) -> None:
    preset = PRESETS[name]
    torch.manual_seed(0)
    config = preset.config(Shape(32, 2, 2, 40, 30), {"eos_token_id": 1, "pad_token_id": 0})
    for field in ("dropout", "attention_dropout"):
        setattr(config, field, 0.0)
    hf = build(config, preset.kind).train()
    model = model_for(hf)
    rows: Any = [((5, 6, 7, 1), (8, 9, 1)), ((4, 1), (7, 7, 3, 2, 1))]
    goal = Translation(rows, rows, smoothing=0.1, batch_size=2, seed=0)
    (batch,) = goal.batches(0, model)
    loss = goal.loss(model, batch)
    labels = torch.tensor([[8, 9, 1, -100, -100], [7, 7, 3, 2, 1]])
    read = torch.cat([torch.zeros(2, 1, dtype=torch.long), labels[:, :-1].clamp(min=0)], 1)
    source = torch.tensor([[5, 6, 7, 1], [4, 1, 0, 0]])
    logits = hf(input_ids=source, attention_mask=(source > 0).long(), decoder_input_ids=read).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-4)
    loss.total.backward()
    assert all(p.grad is not None for p in hf.parameters() if p.requires_grad)
    hf.eval()  # what is validated is the plain loss
    with torch.no_grad():
        plain = float(goal.loss(model, batch).total)
    assert plain == pytest.approx(loss.metrics["nll"], rel=1e-4)


def test_pairs_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    rows = [("ab", "BA"), ("", "X"), ("c", " "), ("abc" * 9, "CBA"), ("d", "D")]
    names = write(tmp_path, rows)
    assert read_pairs((Path(names[0]), Path(names[1]))) == rows
    kept, notes = encode(byte_tokenizer(), 0, rows, 20)
    assert [len(a) for a, _ in kept] == [3, 2]
    assert all(a[-1] == b[-1] == 0 for a, b in kept)
    assert notes == [
        "2 pairs have an empty side and are left out",
        "1 pairs are longer than 20 tokens and are left out",
    ]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-6]), "cannot be read"),
        (lambda p: p.write_bytes(gzip.compress(b"a\nb\n")), "has 2 lines, train.target has 3"),
        (lambda p: p.write_bytes(gzip.compress(b"\xff\xfe\n" * 3)), "is not UTF-8"),
        (lambda p: p.write_bytes(b"plain"), "cannot be read"),
        (lambda p: p.unlink(), "no such file"),
    ],
)  # fmt: skip
def test_broken_files_are_one_line(damage: Any, says: str, tmp_path: Path) -> None:
    names = write(tmp_path, pairs(3))
    damage(tmp_path / "train.source.gz")
    with pytest.raises(KamertonError, match=says) as caught:
        read_pairs((Path(names[0]), Path(names[1])))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_batches_of_different_lengths_translate_as_each_alone() -> None:
    preset, words = PRESETS["transformer"], byte_tokenizer()
    torch.manual_seed(1)
    hf = build(
        preset.config(Shape(32, 1, 2, len(words), 40), {"eos_token_id": 0, "pad_token_id": 1}), preset.kind
    ).eval()
    sources = ["abc", "a", "abcdefgh"]
    for beams in (1, 3):
        together = translate(hf, words, 0, sources, beams=beams, context=20)
        # padded to one length, so that each may write as much
        assert len(together) == 3
        assert together[2] == translate(hf, words, 0, sources[2:], beams=beams, context=20)[0]


def test_a_small_language_is_learned_and_saved(tmp_path: Path) -> None:
    rows = pairs(600)
    given = {
        "model": {"preset": "transformer", "width": 48, "depth": 1, "heads": 2, "dropout": 0.0}, "tokenizer": "bytes",
        "data": {"train": write(tmp_path, rows), "held_out": 0.1, "test": write(tmp_path, pairs(40, 1), "test")},
        "context": 16, "budget": {"steps": 250}, "samples": {"beams": 2},
        "training": {"batch_size": 32, "learning_rate": 0.005, "warmup_steps": 40, "validations": 3},
    }  # fmt: skip
    made = pretrain(given, output=tmp_path / "out")
    assert made is not None
    held = [row["validation_loss"] for row in made.results["curve"] if "validation_loss" in row]
    assert held[-1] < 0.3 < held[0]
    assert made.results["settings"]["betas"] == [0.9, 0.98]
    assert made.results["settings"]["schedule"] == "inverse-sqrt"
    assert {"bleu", "bleu_greedy"} <= made.metrics.keys()
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(made.folder)
    assert isinstance(model_for(hf), EncoderDecoderModel)
    learned = translate(hf.eval(), byte_tokenizer(), 0, [a for a, _ in pairs(60, 5)], beams=2, context=16)
    right = sum(x == b for x, (_, b) in zip(learned, pairs(60, 5), strict=True))
    assert right > 20, f"{right} of 60"
    assert tiny.load_base(made.folder, dtype="float32").info.architecture == "MarianMTModel"

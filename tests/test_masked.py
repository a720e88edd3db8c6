"""BERT's objectives: shares of what is spoiled, whole words, pairs, and the loss against transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.base.masked_model import MaskedModel
from kamerton.base.presets import PRESETS, Shape, build
from kamerton.objectives.masked import Masked, Signs, signs_of, spoil
from kamerton.objectives.packed_contexts import Stream
from kamerton.pretraining.tokens import byte_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

V = 60
SIGNS = Signs(1, 2, 3, 4, np.arange(5, V), np.arange(V) % 3 == 0)


def stream(size: int = 4000, seed: int = 0) -> Stream:
    tokens = np.random.default_rng(seed).integers(5, V, size).astype(np.uint16)
    tokens[::97] = 0
    return Stream(tokens, 0, size)


def model() -> MaskedModel:
    torch.manual_seed(0)
    preset = PRESETS["bert"]
    return MaskedModel(build(preset.config(Shape(32, 2, 2, V, 64), {"pad_token_id": 4}), preset.kind).eval())


@pytest.mark.parametrize("whole", [False, True])
def test_shares_are_those_of_the_paper(whole: bool) -> None:
    """15% are picked; of them 80% become the mask, 10% another token, 10% stay. Within four standard deviations."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([[2], rng.integers(5, V, 20_000), [3]])
    spoiled, chosen = spoil(ids, rng, SIGNS, 0.15, whole_words=whole)
    n = len(chosen)
    assert abs(n / 20_000 - 0.15) < 0.001
    masked = (spoiled[chosen] == 1).mean()
    kept = (spoiled[chosen] == ids[chosen]).mean()
    swapped = 1 - masked - kept
    deviation = lambda p: 4 * (p * (1 - p) / n) ** 0.5  # noqa: E731
    same = 0.1 / (V - 5)  # a random token may be the one that stood there
    assert abs(masked - 0.8) < deviation(0.8)
    assert abs(kept - 0.1 - same) < deviation(0.1)
    assert abs(swapped - 0.1 + same) < deviation(0.1)
    untouched = np.setdiff1d(np.arange(len(ids)), chosen)
    assert np.array_equal(spoiled[untouched], ids[untouched])
    drawn = spoiled[chosen][(spoiled[chosen] != 1) & (spoiled[chosen] != ids[chosen])]
    assert np.isin(drawn, SIGNS.ordinary).all()
    assert len(set(drawn.tolist())) > 40


@settings(deadline=None, max_examples=80)
@given(ids=st.lists(st.integers(2, V - 1), min_size=1, max_size=60), seed=st.integers(0, 99), whole=st.booleans())
def test_special_tokens_are_never_picked_and_words_stay_whole(ids: list[int], seed: int, whole: bool) -> None:
    row = np.array(ids)
    spoiled, chosen = spoil(row, np.random.default_rng(seed), SIGNS, 0.15, whole_words=whole)
    special = {2, 3, 4}
    assert not special & set(row[chosen].tolist())
    assert (len(chosen) > 0) == bool(set(ids) - special)
    assert len(spoiled) == len(row)
    if not whole:
        return
    words: list[list[int]] = []  # by hand: a word is a head and what goes on behind it
    for place, token in enumerate(ids):
        if token in special:
            words.append([])
        elif SIGNS.begins[token] or not words or not words[-1]:
            words.append([place])
        else:
            words[-1].append(place)
    picked = set(chosen.tolist())
    assert all(not set(word) & picked or set(word) <= picked for word in words)


def test_words_are_found_in_each_kind_of_vocabulary() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    names = {
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        [" ".join(tiny.WORDS)],
        trainers.WordPieceTrainer(vocab_size=90, special_tokens=list(names.values()), show_progress=False),
    )
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    signs = signs_of(words)
    ids = words("garden mountain")["input_ids"]
    pieces = words.convert_ids_to_tokens(ids)
    assert len(pieces) > 2
    assert [bool(signs.begins[i]) for i in ids] == [not p.startswith("##") for p in pieces]
    plain = byte_tokenizer()
    signs = signs_of(plain)
    assert [bool(signs.begins[i]) for i in plain("ab c")["input_ids"]] == [False, False, True, False]
    assert not set(signs.ordinary.tolist()) & set(plain.all_special_ids)


@torch.no_grad()
@pytest.mark.parametrize("pairs", [True, False])
def test_the_loss_is_transformers_own(pairs: bool) -> None:
    m, goal = model(), Masked(stream(), None, SIGNS, context=32, batch_size=6, next_sentence=pairs)
    (batch,) = goal.batches(0, m)
    ours = goal.loss(m, batch)
    labels = torch.full(batch.ids.shape, -100)
    labels[batch.where] = torch.as_tensor(batch.targets)
    mask = (torch.arange(batch.ids.shape[1]) < torch.as_tensor(batch.lengths)[:, None]).long()
    given_: dict[str, Any] = {"next_sentence_label": torch.as_tensor(batch.follows)} if pairs else {}
    out = m.hf(
        input_ids=torch.as_tensor(batch.ids), attention_mask=mask, token_type_ids=torch.as_tensor(batch.segments),
        labels=labels, **given_,
    )  # fmt: skip
    if pairs:
        assert float(ours.total) / batch.count == pytest.approx(float(out.loss), rel=1e-5)
    logits = out.prediction_logits[torch.as_tensor(batch.where[0]), torch.as_tensor(batch.where[1])]
    own = torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch.targets))
    assert ours.metrics["masked_loss"] / batch.count == pytest.approx(float(own), rel=1e-5)
    if not pairs:
        assert float(ours.total) / batch.count == pytest.approx(float(own), rel=1e-5)


def test_half_of_the_pairs_belong_together_and_are_what_follows() -> None:
    data = stream(30_000, 3)
    goal = Masked(data, None, SIGNS, context=48, batch_size=1)
    text = data.tokens[data.tokens != 0].astype(np.int64)
    joined = text.tobytes()
    away = 0
    for i in range(300):
        rng = np.random.default_rng([7, i])
        ids, second, apart, chosen, targets = goal.sequence(data, int(rng.integers(29_000)), rng)
        whole = ids.copy()
        whole[chosen] = targets
        assert whole[0] == 2
        assert whole[-1] == whole[second - 1] == 3
        a, b = whole[1 : second - 1], whole[second:-1]
        assert (whole == 3).sum() == 2
        found = joined.find(np.concatenate([a, b]).tobytes()) >= 0
        assert found != bool(apart)
        away += apart
        assert len(ids) <= 48
    assert 110 < away < 190


def test_validation_is_the_same_every_time_and_training_is_not() -> None:
    goal = Masked(stream(), stream(500, 5), SIGNS, context=32, batch_size=4)
    one, two = goal.validation(), goal.validation()
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(one, two, strict=True))
    m: Any = None
    a, b = goal.batches(0, m)[0], goal.batches(0, m)[0]
    assert np.array_equal(a.ids, b.ids), "a pure function of the step"
    assert not np.array_equal(a.targets, goal.batches(1, m)[0].targets)

"""Recurrent models against torch's modules run by hand, behind packs, caches and trees; state carried; saved and loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import tiny
from kamerton.base import load_base
from kamerton.base.attention import RowCache
from kamerton.base.encoder_decoder import RecurrentEncoderDecoder, model_for
from kamerton.base.presets import PRESETS, Shape, build
from kamerton.base.recurrent_model import RecurrentModel
from kamerton.errors import KamertonError
from kamerton.inference import Sampling
from kamerton.inference.engine import Engine
from kamerton.objectives.packed_contexts import Stream
from kamerton.objectives.truncated import Truncated
from kamerton.rendering import Renderer
from kamerton.tasks.example import conversation

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

CELLS = ("rnn", "lstm", "gru")
V = 40


def made(name: str, width: int = 24, vocabulary: int = V) -> Any:
    torch.manual_seed(0)
    shape = Shape(width, 2, 1, vocabulary, 64)
    return build(PRESETS[name].config(shape, {"eos_token_id": 0, "pad_token_id": 0}), PRESETS[name].kind).eval()


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> RecurrentModel:
    return RecurrentModel(made(request.param))


def by_hand(hf: Any, ids: list[int]) -> torch.Tensor:
    """(T, V) logits from one cell of torch at a time."""
    kind = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[hf.config.cell]
    h, depth = hf.config.hidden_size, hf.config.num_hidden_layers
    cells = []
    for n in range(depth):
        cell = kind(h, h)
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, part).data = getattr(hf.layers, f"{part}_l{n}").data
        cells.append(cell)
    states: list[Any] = [None] * depth
    out = []
    for token in ids:
        x = hf.embedding.weight[token][None]
        for n, cell in enumerate(cells):
            states[n] = cell(x, states[n])
            x = states[n][0] if isinstance(states[n], tuple) else states[n]
        out.append((x @ hf.embedding.weight.T)[0])
    return torch.stack(out)


@torch.no_grad()
def test_logits_are_those_of_torchs_cells_by_hand(model: RecurrentModel) -> None:
    ids = torch.randint(0, V, (13,)).tolist()
    expected = by_hand(model.hf, ids)
    torch.testing.assert_close(model.hf(torch.tensor([ids])).logits[0], expected)
    packed = model.forward([ids[5:], ids[5:9]], prefix=ids[:5])
    torch.testing.assert_close(model.output(torch.cat([packed.prefix, packed.rows[:8]])), expected)
    torch.testing.assert_close(model.output(packed.rows[8:]), expected[5:9])


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(model: RecurrentModel) -> None:
    ids = torch.randint(1, V, (1, 7))
    alone = model.hf(ids).logits[0]
    for left in (True, False):
        pad = torch.zeros(1, 4, dtype=torch.long)
        both = [torch.cat([pad, ids] if left else [ids, pad], 1), torch.randint(1, V, (1, 11))]
        mask = torch.ones(2, 11, dtype=torch.long)
        mask[0, : 4 if left else None] = 0 if left else 1
        if not left:
            mask[0, 7:] = 0
        out = model.hf(torch.cat(both), attention_mask=mask).logits[0]
        torch.testing.assert_close(out[4:] if left else out[:7], alone)


@torch.no_grad()
def test_generate_carries_the_state_and_beams_find_what_search_by_hand_finds(model: RecurrentModel) -> None:
    hf = model.hf
    ids = torch.tensor([[3, 9, 4]])
    greedy = hf.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    by_steps = ids
    for _ in range(6):
        by_steps = torch.cat([by_steps, hf(by_steps).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(greedy, by_steps)
    beam = hf.generate(ids, max_new_tokens=2, num_beams=V, do_sample=False, eos_token_id=None, pad_token_id=0)
    # as many beams as tokens: exhaustive over two steps
    first = hf(ids).logits[0, -1].log_softmax(-1)
    pairs = (
        hf(torch.cat([ids.expand(V, -1), torch.arange(V)[:, None]], 1)).logits[:, -1].log_softmax(-1) + first[:, None]
    )
    assert beam[0, 3:].tolist() == list(np.unravel_index(int(pairs.argmax()), (V, V)))


@torch.no_grad()
def test_a_cache_goes_on_where_a_row_ended(model: RecurrentModel) -> None:
    ids = torch.randint(0, V, (12,)).tolist()
    whole = model.forward([ids]).rows
    shared = model.prefill(ids[:3])
    assert shared.length == 3
    cache = RowCache(3, 10)
    model.forward([ids[3:8], ids[3:5]], shared=shared, cache=cache)
    assert cache.lengths.tolist() == [5, 2, 0]
    cache.copy(0, 2, 5)
    more = model.forward([[ids[8]], [ids[5]], [ids[8]]], shared=shared, cache=cache).rows
    torch.testing.assert_close(more, whole[[8, 5, 8]])
    cache.move(2, 1)  # the last row takes another's place
    again = model.forward([[ids[9]], [ids[9]]], shared=shared, cache=cache).rows
    torch.testing.assert_close(again, whole[[9, 9]])
    cache.lengths[0] = 5  # back to where the prompt ended
    torch.testing.assert_close(model.forward([[ids[8]]], shared=shared, cache=cache, slots=[0]).rows, whole[[8]])


@torch.no_grad()
def test_answers_and_scores_are_those_of_plain_passes(model: RecurrentModel) -> None:
    """Continuations of one prompt are scored as a tree; sampling at temperature 0 is argmax."""
    hf = made(model.config.cell, vocabulary=400)
    words = tiny.tokenizer()
    engine = Engine(RecurrentModel(hf), Renderer(words))
    asked = [conversation([("user", text)]) for text in ("red stone", "the river and the stone")]
    choices = ["red", "red and blue", "red and green", "garden"]
    scores = engine.score(asked, [choices, choices])
    for one, row in zip(asked, scores, strict=True):
        prompt = engine.renderer.prompt(one)
        for text, value in zip(choices, row, strict=True):
            answer = engine.renderer.answer(text)
            logits = hf(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            expected = sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(answer))
            assert value == pytest.approx(expected, abs=1e-3)
    answers = engine.generate(asked, Sampling(max_tokens=7, n=2))
    for i, one in enumerate(asked):
        ids = engine.renderer.prompt(one)
        plain = hf.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False, pad_token_id=0)[0, len(ids) :]
        kept = [t for t in plain.tolist() if t not in engine.renderer.end_ids]
        for answer in answers[2 * i : 2 * i + 2]:
            assert [t for t in answer.tokens if t not in engine.renderer.end_ids] == kept


# -- truncated back-propagation -------------------------------------------------------------------------------------


def stream(size: int, seed: int = 0) -> Stream:
    tokens = np.random.default_rng(seed).integers(1, V, size).astype(np.uint16)
    tokens[0] = tokens[-1] = 0
    return Stream(tokens, 0, size)


def test_the_state_is_carried_and_the_gradient_ends_with_the_step(model: RecurrentModel) -> None:
    """Two steps are one long pass whose state is cut off from the gradient in its middle."""
    goal = Truncated(stream(101), None, context=10, batch_size=2)
    assert goal.steps == 5
    hf = model.hf.train()
    first, second = goal.batches(0, model)[0], goal.batches(1, model)[0]
    assert first.fresh
    assert not second.fresh
    assert np.array_equal(first.ids[:, -1], second.ids[:, 0]), "a stream goes on where it ended"
    hf.zero_grad()
    goal.loss(model, first).total.backward()
    hf.zero_grad()
    loss = goal.loss(model, second).total
    loss.backward()
    ours = {n: p.grad.clone() for n, p in hf.named_parameters()}

    def by_torch() -> torch.Tensor:
        ids = torch.as_tensor(first.ids[:, :-1])
        with torch.no_grad():
            _, state = hf.layers(hf.embedding(ids))
        out, _ = hf.layers(hf.embedding(torch.as_tensor(second.ids[:, :-1])), state)
        logits = out @ hf.embedding.weight.T
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.as_tensor(second.ids[:, 1:]).flatten(), reduction="sum"
        )

    hf.zero_grad()
    expected = by_torch()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in hf.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad)


def test_every_token_of_an_epoch_is_a_target_once_and_validation_reads_all(model: RecurrentModel) -> None:
    data = stream(403)
    goal = Truncated(data, stream(3000, 1), context=10, batch_size=4)
    seen = np.concatenate([goal.batches(s, model)[0].ids[:, 1:].flatten() for s in range(goal.steps)])
    assert len(seen) == 400
    assert np.array_equal(np.sort(seen), np.sort(data.tokens[1:401]))
    one = sum(float(goal.loss(model, b).total) for b in goal.strips(goal.held_out, 1))
    ids = torch.as_tensor(goal.held_out.tokens.astype(np.int64))
    with torch.no_grad():
        plain = model.hf(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None]).sum()
    assert one == pytest.approx(-float(plain), rel=1e-5)
    assert sum(b.count for b in goal.validation()) == len(goal.held_out) - 1
    assert goal._state is None, "validation leaves the carried state alone"


# -- the encoder–decoder with attention -----------------------------------------------------------------------------


@torch.no_grad()
def test_attention_by_hand() -> None:
    """One step of the decoder, the encoder in both directions, and the mean by additive scores, written out."""
    hf = made("lstm-attention")
    source = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 3, 2, 4]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    logits = hf(input_ids=source, attention_mask=mask, decoder_input_ids=torch.tensor([[0, 11], [0, 12]])).logits
    for row, n in ((0, 3), (1, 5)):
        h, _ = hf.encoder.layers(hf.embedding(source[row : row + 1, :n]))
        d = hf.decoder
        states = torch.tanh(d.start(h[0].mean(0))).view(2, 2, -1)
        hidden, cell, mean = list(states[0]), list(states[1]), torch.zeros(24)
        for t, token in enumerate((0, 11 + row)):
            x = torch.cat([hf.embedding.weight[token], mean])
            for i, lstm in enumerate(d.cells):
                hidden[i], cell[i] = lstm(x, (hidden[i], cell[i]))
                x = hidden[i]
            scores = torch.stack(
                [(d.energy.weight[0] * torch.tanh(d.query.weight @ x + d.key(one))).sum() for one in h[0]]
            )
            mean = scores.softmax(0) @ h[0]
            out = torch.tanh(d.join(torch.cat([x, mean])))
            torch.testing.assert_close(logits[row, t], out @ hf.embedding.weight.T)


@torch.no_grad()
def test_the_encoder_decoder_writes_by_steps_what_it_writes_at_once(tmp_path: Path) -> None:
    hf = made("lstm-attention")
    hf.save_pretrained(tmp_path)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source = torch.tensor([[5, 6, 7, 0], [8, 9, 3, 2]])
    mask = (source > 0).long()
    made_ids = again.generate(
        source, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    by_steps = torch.zeros(2, 1, dtype=torch.long)
    for _ in range(6):
        logits = hf(input_ids=source, attention_mask=mask, decoder_input_ids=by_steps).logits
        by_steps = torch.cat([by_steps, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made_ids, by_steps)
    beams = again.generate(source, attention_mask=mask, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0)
    assert beams.shape[0] == 2
    model = model_for(again)
    assert isinstance(model, RecurrentEncoderDecoder)
    memory, cache = model.encode([[5, 6, 7], [8, 9, 3, 2]]), model.fresh(2)
    steps = [model.decode(by_steps[:, t : t + 1], memory, cache) for t in range(4)]
    torch.testing.assert_close(torch.cat(steps, 1), model.decode(by_steps[:, :4], memory))


# -- as bases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CELLS, "lstm-attention"])
def test_a_saved_model_is_a_base_and_is_tuned(name: str, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    words.save_pretrained(tmp_path / "base")
    made(name, vocabulary=len(words)).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", dtype="float32")
    assert base.model.max_length is None
    adapted = tiny.fit(base, "full", tmp_path / "fit", learning_rate=1e-2)
    held_out = [row["validation_loss"] for row in adapted.record.curve if "validation_loss" in row]
    assert held_out[-1] < held_out[0]
    adapted.save(tmp_path / "saved")
    from kamerton.methods import load_adapted

    again = load_adapted(tmp_path / "saved", base)
    asked = [e.messages for e in tiny.colour_task().test[:2]]
    assert again.score(asked, [["red", "blue"]] * 2) == adapted.score(asked, [["red", "blue"]] * 2)


@pytest.mark.parametrize("name", ["lstm", "lstm-attention"])
@pytest.mark.parametrize("method", ["prefix-tuning", "adapter", "ia3", "prompt-tuning"])
def test_what_a_state_cannot_be_tuned_by_is_refused_in_one_line(name: str, method: str, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    words.save_pretrained(tmp_path / "base")
    made(name, vocabulary=len(words)).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", dtype="float32")
    if method == "prompt-tuning":  # soft tokens are read like others
        tiny.fit(base, method, tmp_path / "fit", learning_rate=1e-2)
        return
    with pytest.raises(KamertonError) as caught:
        tiny.fit(base, method, tmp_path / "fit", learning_rate=1e-2)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_importing_kamertons_bases_is_all_that_loading_wants(tmp_path: Path) -> None:
    made("gru").save_pretrained(tmp_path)
    code = (
        "import transformers, kamerton.base\n"
        f"hf = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, use_safetensors=True)\n"
        "print(type(hf).__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "RecurrentForCausalLM"
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}

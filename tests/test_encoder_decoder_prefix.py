"""Trained keys and values in front of an encoder–decoder's decoder, against peft and transformers' own cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import architectures
import tiny
from kamerton import api
from kamerton.base import Base, EncoderDecoderModel, Front, load_base
from kamerton.comparison.run import compare
from kamerton.errors import KamertonError
from kamerton.inference import Engine, Sampling
from kamerton.methods import load_adapted
from kamerton.objectives.supervised import Supervised
from kamerton.rendering import Rendered
from kamerton.tasks.example import Conversation, conversation
from kamerton.training import Budget
from kamerton.training.batches import make_batch
from kamerton.training.checkpoint import trained_weights
from kamerton.tuning import Tuned
from kamerton.tuning.encoders import fold
from kamerton.tuning.layer_keys import file_layers, slots
from kamerton.tuning.prefix import Prefix, PrefixOptions
from kamerton.tuning.starts import STARTS

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ALL = sorted(architectures.ENCODER_DECODERS)
TWO = ("t5", "bart")
WAYS = ("scale", "mlp", "none")
RATES = {"scale": 0.3, "mlp": 0.01, "none": 0.3}
TEXTS = ["Why?", "A much longer question, with a clause or two, about nothing.", "ab", "x y z", "Name three rivers."]


def attach(base: Base, **options: Any) -> Tuned:
    chosen = PrefixOptions(**{"tokens": 20, "hidden": 16, **options})
    return Prefix.attach(base, chosen, tiny.colour_task(), 0)


def rows_of(base: Base, count: int = 6) -> list[Rendered]:
    return [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:count]]


def trained(base: Base, steps: int = 3, **options: Any) -> Tuned:
    """A prefix after a few optimiser steps."""
    tuned = attach(base, **options)
    rate = RATES[options.get("reparameterise", "scale")]
    optimiser = torch.optim.Adam([p for p in tuned.module.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        (-tuned.model.target_log_probs(make_batch(rows_of(base))).mean()).backward()
        optimiser.step()
    return tuned


def theirs(base: Base, folder: Path) -> Any:
    """transformers' own model of the base with the saved adapter, loaded by peft alone."""
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(base.info.source, dtype=torch.float32).eval()
    return peft.PeftModel.from_pretrained(hf, str(folder)).eval()


def peft_logits(model: Any, base: Base, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """(n, V) predictions of an answer's tokens by peft, one prompt at a time."""
    start = base.model.start  # type: ignore[attr-defined]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([list(prompt)]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            decoder_input_ids=torch.tensor([[*start, *answer[:-1]]]),
        )  # fmt: skip
    return out.logits[0, len(start) - 1 :].float()


def ours(tuned: Tuned, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    model = tuned.model
    assert isinstance(model, EncoderDecoderModel)
    with torch.no_grad():
        read = torch.tensor([[*model.start, *answer[:-1]]])
        return model.output(model.decode(read, model.encode([prompt]))[0, len(model.start) - 1 :])


def asked(*texts: str) -> list[Conversation]:
    return [conversation([("system", "Be brief."), ("user", text)]) for text in texts]


# -- peft's file ------------------------------------------------------------------------------------------------------


def test_every_layer_of_a_decoder_has_a_place_of_its_own_in_the_file() -> None:
    for layers in range(1, 49):
        count = file_layers(layers)
        # as peft cuts it: all layers twice over, four pieces for each layer, of which the first two are taken
        pieces = [(layer, part) for layer in range(count) for part in "kv"] * 2
        taken = [pieces[4 * i : 4 * i + 2] for i in range(layers)]
        assert taken == [[(i, "k"), (i, "v")] for i in slots(layers)]
        assert len(set(slots(layers))) == layers
        assert count - layers in (0, 1)


def test_left_to_itself_peft_would_read_half_of_the_file(tmp_path: Path) -> None:
    """Why the sizes are said: where this fails, peft has changed, and the file's layout has to follow."""
    base = load_base(tiny.save_encoder_decoder(tmp_path, "bart", layers=2), dtype="float32")
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(base.reload().model.hf, config)
    model(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[0, 7]])).logits.pow(2).sum().backward()
    first, second = model.prompt_encoder["default"].embedding.weight.grad.chunk(2, dim=1)
    assert float(first.abs().max()) > 0
    assert float(second.abs().max()) == 0


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "scale") for name in ALL), *((n, w) for n in TWO for w in WAYS[1:])]
)
def test_peft_alone_gives_the_same_logits(
    name: str, way: str, tiny_base: Callable[[str], Base], tmp_path: Path
) -> None:
    base = tiny_base(name)
    tuned = trained(base, reparameterise=way)
    before = {n: p.clone() for n, p in base.model.hf.state_dict().items()}
    for folder, folded in ((tmp_path / "trained", False), (tmp_path / "folded", True)):
        if folded:
            fold(tuned.peft)
        tuned.save(folder)
        model, loaded = theirs(base, folder), Prefix.load(base, folder)
        moved = 0.0
        for r in rows_of(base, 4):
            prompt, answer = r.tokens[: r.prompt_length], r.tokens[r.prompt_length :]
            expected = peft_logits(model, base, prompt, answer)
            torch.testing.assert_close(ours(tuned, prompt, answer), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours(loaded, prompt, answer), expected, rtol=1e-4, atol=1e-4)
            plain = ours(Tuned(base.model, nn.Module()), prompt, answer)
            moved = max(moved, float((plain - expected).abs().max()))
        assert moved > 0.1
    assert all(torch.equal(p, before[n]) for n, p in tuned.model.hf.state_dict().items())


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("kind", TWO)
def test_any_number_of_layers(kind: str, layers: int, tmp_path: Path) -> None:
    """An even number leaves a place in the file that holds zeros and that nobody reads."""
    base = load_base(tiny.save_encoder_decoder(tmp_path / "base", kind, layers=layers), dtype="float32")
    tuned = trained(base)
    assert tuned.trainable_parameters == 20 * layers * 2 * 48, "each layer's keys and values, and no more"
    tuned.save(tmp_path / "adapter")
    model = theirs(base, tmp_path / "adapter")
    for r in rows_of(base, 2):
        prompt, answer = r.tokens[: r.prompt_length], r.tokens[r.prompt_length :]
        expected = peft_logits(model, base, prompt, answer)
        torch.testing.assert_close(ours(tuned, prompt, answer), expected, rtol=1e-4, atol=1e-4)
    (weight,) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    by_layer = weight.unflatten(1, (file_layers(layers), -1)).abs().amax((0, 2))
    empty = set(range(file_layers(layers))) - set(slots(layers))
    assert [i for i, size in enumerate(by_layer.tolist()) if size == 0] == sorted(empty)


@pytest.mark.parametrize("name", ["t5", "mt5", "bart"])
def test_loss_and_gradient_are_those_of_peft(name: str, tiny_base: Callable[[str], Base]) -> None:
    """Through padded batches of rows of different lengths, of which some share their beginnings."""
    base = tiny_base(name)
    rows = rows_of(base)
    assert len({len(r.tokens) - r.prompt_length for r in rows}) > 1
    assert len({r.prompt_length for r in rows}) > 1
    tuned = attach(base, reparameterise="none")
    ((_, value),) = trained_weights(tuned.module).items()
    value += torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    config, order = tuned.peft.peft_config["default"], slots(base.model.decoder_layers)  # type: ignore[attr-defined]
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(base.info.source, dtype=torch.float32).eval()
    model = peft.get_peft_model(
        hf, peft.PrefixTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20, num_layers=config.num_layers, token_dim=config.token_dim,
            num_attention_heads=config.num_attention_heads,
        ),
    )  # fmt: skip
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(tuned.peft.get_prompt_embedding_to_save("default"))
    start = base.model.start  # type: ignore[attr-defined]

    def pad(lists: list[list[int]], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(x) for x in lists], batch_first=True, padding_value=value)

    read = pad([[*start, *r.tokens[r.prompt_length : -1]] for r in rows], 0)
    prompts = [list(r.tokens[: r.prompt_length]) for r in rows]
    out = model(
        input_ids=pad(prompts, 0), attention_mask=pad([[1] * len(p) for p in prompts], 0), decoder_input_ids=read,
        decoder_attention_mask=torch.ones_like(read),
        labels=pad([[*([-100] * (len(start) - 1)), *r.tokens[r.prompt_length :]] for r in rows], -100),
    )  # fmt: skip
    out.loss.backward()
    expected = weight.grad.unflatten(1, (config.num_layers, -1))[:, order].flatten(1)
    for share in (True, False):
        tuned.module.zero_grad(set_to_none=True)
        batch = make_batch(rows, share=share)
        loss = Supervised.loss(object.__new__(Supervised), tuned.model, batch).total / batch.count
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(out.loss), rel=1e-5)
        (found,) = [p.grad for p in tuned.module.parameters() if p.grad is not None]
        assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))
        assert bool((found.unflatten(1, (len(order), -1)).abs().amax((0, 2)) > 0).all())


# -- where it starts and where it stands ------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["examples", "task", "vocabulary"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "pegasus"])
def test_it_starts_from_what_the_decoder_computes(
    name: str, way: str, init: str, tiny_base: Callable[[str], Base]
) -> None:
    """By transformers' own pass: the encoder reads the text, and the decoder writes it."""
    base = tiny_base(name)
    keys = attach(base, reparameterise=way, init=init).model.front().keys
    text = STARTS[init](base, tiny.colour_task(), 20, 0).tolist()
    read = torch.tensor([[*base.model.start, *text][:20]])  # type: ignore[attr-defined]
    with torch.no_grad():
        out = base.model.hf(input_ids=torch.tensor([text]), decoder_input_ids=read, use_cache=True)
    expected = [(x.keys[0], x.values[0]) for x in out.past_key_values.self_attention_cache.layers]
    assert keys is not None
    assert len(keys) == len(expected) == 3
    for pair, own in zip(keys, expected, strict=True):
        torch.testing.assert_close(pair, own, rtol=1e-4, atol=1e-4)


def test_a_random_start_has_the_size_of_real_keys(tiny_base: Callable[[str], Base]) -> None:
    for name in TWO:
        base = tiny_base(name)
        fronts = [attach(base, init=init).model.front().keys for init in ("random", "vocabulary")]
        assert fronts[0] is not None
        assert fronts[1] is not None
        for random, real in zip(*fronts, strict=True):
            for a, b in zip(random, real, strict=True):
                assert float(a.std()) == pytest.approx(float(b[:, 2:].pow(2).mean().sqrt()), rel=0.2)
        again = Prefix.attach(base, PrefixOptions(tokens=20, init="random"), tiny.colour_task(), 1).model.front().keys
        assert again is not None
        assert not torch.equal(again[0][0], fronts[0][0][0])


@pytest.mark.parametrize("name", ALL)
def test_it_takes_positions_of_the_decoder(name: str, tiny_base: Callable[[str], Base]) -> None:
    """Tokens of which the decoder has keys and values in front are predicted from as by transformers, which reads them
    in one piece: relative and learned positions go on behind them."""
    base = tiny_base(name)
    own = base.model
    assert isinstance(own, EncoderDecoderModel)
    prompts, written = [[10, 11, 12, 2], [14, 2]], [*own.start, 30, 31, 32, 33, 34, 35, 36, 37]
    with torch.no_grad():
        for prompt in prompts:
            out = own.hf(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([written]))
            cache = out.past_key_values.self_attention_cache
            keys = [(x.keys[0, :, :6], x.values[0, :, :6]) for x in cache.layers]
            keyed = EncoderDecoderModel(own.hf, front=lambda keys=keys: Front(keys=keys))
            hidden = keyed.decode(torch.tensor([written[6:]]), keyed.encode([prompt]))
            torch.testing.assert_close(keyed.output(hidden[0]), out.logits[0, 6:], rtol=1e-4, atol=2e-4)
            assert keyed.soft_tokens == 6


# -- answers and scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "room"), [*((name, 8192) for name in ALL), ("t5", 150), ("bart", 150)])
def test_greedy_answers_are_those_of_peft(
    name: str, room: int, tiny_base: Callable[[str], Base], tmp_path: Path
) -> None:
    """With a cache whose rows are chosen and repeated, prompts of different lengths together; by peft's logits for the
    tokens that were written, and by its own `generate`."""
    base = tiny_base(name)
    tuned = trained(base, init="random")
    tuned.save(tmp_path)
    model = theirs(base, tmp_path)
    ends = {*base.renderer.end_ids, 40, 50, 60}  # three more tokens end an answer, so that rows leave
    base.renderer.end_ids, kept = tuple(sorted(ends)), base.renderer.end_ids
    try:
        conversations = asked(*TEXTS, "ab")
        engine = Engine(tuned.model, base.renderer, max_batch_tokens=room)
        answers = engine.generate(conversations, Sampling(max_tokens=20))
        assert len({a.tokens for a in answers}) >= 3
        start = base.model.start  # type: ignore[attr-defined]
        for one, found in zip(conversations, answers, strict=True):
            prompt = base.renderer.prompt(one)
            predicted = peft_logits(model, base, prompt, found.tokens)
            assert predicted.argmax(-1).tolist() == list(found.tokens)
            expected = predicted.log_softmax(-1).gather(1, torch.tensor(found.tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-3, rtol=1e-3)
            assert found.prompt_tokens == len(prompt) + 20
            alone = Engine(tuned.model, base.renderer).generate([one], Sampling(max_tokens=20))
            assert alone[0].tokens == found.tokens
            out = model.generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False, num_beams=1, eos_token_id=sorted(ends), max_new_tokens=20 + len(start) - 1,
            )  # fmt: skip
            assert out[0, len(start) :].tolist() == list(found.tokens)
    finally:
        base.renderer.end_ids = kept


@pytest.mark.parametrize("name", TWO)
def test_samples_do_not_depend_on_the_batch(name: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    tuned = trained(base)
    sampling = Sampling(max_tokens=9, temperature=1.5, n=3, seed=3)
    conversations = asked(*TEXTS)
    together = Engine(tuned.model, base.renderer).generate(conversations, sampling)
    assert len({a.tokens for a in together}) > len(TEXTS)
    small = Engine(tuned.model, base.renderer, max_batch_tokens=120).generate(conversations[::-1], sampling)
    for i in range(len(TEXTS)):
        j = len(TEXTS) - 1 - i
        assert [a.tokens for a in small[3 * j : 3 * j + 3]] == [a.tokens for a in together[3 * i : 3 * i + 3]]


@pytest.mark.parametrize("room", [8192, 110])
@pytest.mark.parametrize("name", TWO)
def test_scores_and_ranks_are_those_of_peft(
    name: str, room: int, tiny_base: Callable[[str], Base], tmp_path: Path
) -> None:
    base = tiny_base(name)
    tuned = trained(base)
    tuned.save(tmp_path)
    model = theirs(base, tmp_path)
    engine = Engine(tuned.model, base.renderer, max_batch_tokens=room)
    conversations, choices = (
        asked(*TEXTS),
        [["red", "green", "redder", "", "red"], ["a"], ["yes", "no"], ["b"], ["x", "yy"]],
    )
    scores = engine.score(conversations, choices)
    for one, texts, found in zip(conversations, choices, scores, strict=True):
        prompt, expected = base.renderer.prompt(one), []
        for answer in map(base.renderer.answer, texts):
            predicted = peft_logits(model, base, prompt, answer).log_softmax(-1)
            expected.append(float(predicted.gather(1, torch.tensor(answer)[:, None]).sum()))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert engine.rank(conversations, choices) == [int(np.argmax(found)) for found in scores]
    prompts = [base.renderer.prompt(c) for c in conversations]
    first = engine.next_log_probs(prompts)
    for prompt, found in zip(prompts, first, strict=True):
        torch.testing.assert_close(
            found, peft_logits(model, base, prompt, [5])[0].log_softmax(-1), atol=1e-3, rtol=1e-3
        )


def test_what_it_computes_is_counted(tiny_base: Callable[[str], Base]) -> None:
    """The prefix is asked for with every prompt and is never computed."""
    base = tiny_base("t5")
    plain, keyed = Engine(base.model, base.renderer), Engine(attach(base).model, base.renderer)
    conversations = asked(*TEXTS)
    for engine in (plain, keyed):
        engine.score(conversations, [["red"]] * 5)
        engine.next_log_probs([base.renderer.prompt(c) for c in conversations])
    assert keyed.usage.computed_tokens == plain.usage.computed_tokens
    assert keyed.usage.asked_tokens == plain.usage.asked_tokens + 2 * 5 * 20


def test_answers_leave_room_for_the_prefix(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("bart")  # 160 positions, two start tokens
    tuned = attach(base)
    model = tuned.model
    assert model.answer_limit(5) == model.answer_limit(160) == 160 - 20 - 1
    assert model.answer_limit(161) == -1
    found = Engine(model, base.renderer).generate(asked("ab"), Sampling(max_tokens=500))[0]
    assert len(found.tokens) <= 139
    assert model.example_limit(20) == 139
    longest = base.renderer.example(asked("ab")[0], "y" * 500, limit=139)
    assert longest.cut
    assert torch.isfinite(model.target_log_probs(make_batch([longest]))).all()
    plain = base.renderer.example(asked("ab")[0], "y" * 500, limit=base.model.example_limit(0))
    assert torch.isfinite(base.model.target_log_probs(make_batch([plain]))).all()
    with pytest.raises(KamertonError, match="160 soft tokens leave no room"):
        tiny.fit(base, "prefix-tuning", Path(), tokens=160)


# -- whole methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prefix-tuning", {"learning_rate": 0.3}), ("p-tuning-v2", {"learning_rate": 0.1}),
        ("prefix-tuning", {"learning_rate": 0.01, "reparameterise": "mlp", "hidden": 32}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", TWO)
def test_it_learns_and_comes_back_from_disk(kind: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = load_base(tiny.save_encoder_decoder(tmp_path / "base", kind), dtype="float32")
    adapted = tiny.fit(base, name, tmp_path / "fit", budget=Budget(steps=25), tokens=20, **options)
    curve = adapted.record.curve
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", base)
    conversations = [e.messages for e in tiny.colour_task().test]
    choices = [list(tiny.COLOURS)] * len(conversations)
    scores = adapted.score(conversations, choices)
    assert again.score(conversations, choices) == scores
    assert tiny.fit(base, "zero-shot", tmp_path).score(conversations, choices) != scores
    assert adapted.choose(conversations[:3], choices[:3], Sampling())[0].text in tiny.COLOURS


@pytest.mark.slow
def test_a_comparison_from_beginning_to_end(tmp_path: Path) -> None:
    base = tiny.save_encoder_decoder(tmp_path / "bart", "bart")
    methods = (
        "  - prefix-tuning: {tokens: 4, learning_rate: 0.1}\n  - p-tuning-v2: {tokens: 4}\n"
        "  - few-shot: {shots: 1, over: {prefix-tuning: {tokens: 4, learning_rate: 0.1}}}"
    )
    recipe = tiny.write_recipe(tmp_path, base, methods, seeds="[0]", budget="{steps: 6}")
    result = compare(recipe, output=tmp_path / "run", workers=1)
    assert {row["label"] for row in result.results["verdict"]["rows"]} == {"prefix-tuning", "p-tuning-v2", "few-shot"}
    adapted = api.load(result.adapter("p-tuning-v2"))
    said = api.evaluate(adapted, recipe)
    written = (result.adapter("p-tuning-v2").parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert said.answers == [json.loads(line)["answer"] for line in written]

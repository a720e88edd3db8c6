"""Encoder–decoder bases against transformers: rendering, loss and gradient, answers, scores, costs, and whole methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import architectures
import tiny
from kamerton import api
from kamerton.base import Base, CausalModel, EncoderDecoderModel, Front, load_base
from kamerton.base.encoder_decoder import probe
from kamerton.base.quantise import settle
from kamerton.base.work import Work, flops
from kamerton.comparison.run import compare
from kamerton.errors import KamertonError, ModelError, RecipeError
from kamerton.evaluation.answering import answer
from kamerton.evaluation.forgetting import bits_per_byte, kl, reference
from kamerton.inference import Engine, Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.defined import check_defined
from kamerton.methods.method import Adapted
from kamerton.objectives.supervised import Supervised
from kamerton.rendering import Rendered
from kamerton.tasks.example import Conversation, Message, conversation
from kamerton.training import Budget
from kamerton.training.batches import make_batch
from kamerton.training.checkpoint import trained_weights
from kamerton.tuning import Tuned, get_parameterisation
from test_costs import counted

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ALL = sorted(architectures.ENCODER_DECODERS)
TWO = ("t5", "bart")
INJECTED = ("lora", "qlora", "ia3", "adapter")
KINDS = (*INJECTED, "prompt-tuning", "p-tuning", "full")
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"tokens": 20, "reparameterise": "none"}, "p-tuning": {"tokens": 20, "init": "random"},
    "adapter": {"width": 6},
}  # fmt: skip
TEXTS = ["Why?", "A much longer question, with a clause or two, about nothing.", "ab", "x y z", "Name three rivers."]


def asked(*texts: str, system: str | None = "Be brief.") -> list[Conversation]:
    head = [("system", system)] if system is not None else []
    return [conversation([*head, ("user", text)]) for text in texts]  # type: ignore[list-item]


def logits(base: Base, prompt: Sequence[int], answer: Sequence[int], soft: Tensor | None = None) -> Tensor:
    """(n, V) predictions of an answer's tokens by transformers itself, one prompt at a time."""
    start = base.model.start  # type: ignore[attr-defined]
    given: dict[str, Any] = {"input_ids": torch.tensor([list(prompt)])}
    if soft is not None:
        given = {"inputs_embeds": torch.cat([soft, base.model.hf.get_input_embeddings()(given["input_ids"][0])])[None]}
    with torch.no_grad():
        out = base.model.hf(**given, decoder_input_ids=torch.tensor([[*start, *answer[:-1]]]), use_cache=False)
    return out.logits[0, len(start) - 1 :].float()


def log_probs(base: Base, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    return logits(base, prompt, answer).log_softmax(-1).gather(1, torch.tensor(list(answer))[:, None])[:, 0]


# -- loading and rendering --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_architectures_load_and_are_computed_in_parts_as_a_whole(name: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)  # loading probes 16 tokens
    assert isinstance(base.model, EncoderDecoderModel)
    assert probe(base.model, base.renderer.raw("seven rivers and a market")) < 2e-3
    assert base.model.max_length == (None if "t5" in name else 160)


def test_the_probe_finds_wrong_computation(tiny_base: Callable[[str], Base], monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: padding that is attended to, an output layer without its bias or scale."""
    for name in TWO:
        base = tiny_base(name)
        tokens = base.renderer.raw("seven rivers and a market")
        right = EncoderDecoderModel.encode

        def blind(self: EncoderDecoderModel, prompts: Any, right: Any = right) -> Any:
            memory = right(self, prompts)
            return replace(memory, mask=torch.ones_like(memory.mask))

        with monkeypatch.context() as patch:
            patch.setattr(EncoderDecoderModel, "encode", blind)
            assert probe(base.model, tokens) > 0.05  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(EncoderDecoderModel, "output", lambda self, hidden: self.hf.lm_head(hidden))
            assert probe(base.model, tokens) > 0.05  # type: ignore[arg-type]


def test_a_model_whose_work_cannot_be_counted_is_refused(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamerton.base.encoder_decoder.encoder_decoder_parts", lambda hf: ({"encoder": 0}, {}, {"encoder": 0, "decoder": 1}))  # fmt: skip
    with pytest.raises(ModelError, match=r"cannot be computed in parts.*not found by their names"):
        load_base(tiny_folder("t5"), dtype="float32")


def test_the_encoder_reads_plain_text_and_the_decoder_writes_the_answer(tiny_base: Callable[[str], Base]) -> None:
    talk = conversation([("system", "One word."), ("user", "sky?"), ("assistant", "blue"), ("user", "grass?")])
    for name, before in (("t5", []), ("bart", [1])):
        renderer = tiny_base(name).renderer
        assert renderer.text(talk) == "One word.\nsky?\nblue\ngrass?"
        plain = renderer.tokenizer("One word.\nsky?\nblue\ngrass?", add_special_tokens=False)["input_ids"]
        assert renderer.prompt(talk) == [*before, *plain, 2]
        green = renderer.tokenizer("green", add_special_tokens=False)["input_ids"]
        rendered = renderer.example(talk, "green")
        assert rendered.tokens == (*renderer.prompt(talk), *green, 2)
        assert rendered.weights == (0.0,) * len(renderer.prompt(talk)) + (1.0,) * (len(green) + 1)
        assert renderer.split("abcdef") == ([*before, *renderer.answer("abc", end=False), 2], renderer.answer("def", end=False))  # fmt: skip


def test_prompt_and_answer_are_cut_apart(tiny_base: Callable[[str], Base]) -> None:
    """Each of the two has all the positions for itself."""
    base = tiny_base("bart")
    talk = asked("w" * 300)[0]
    both = base.renderer.example(talk, "y" * 150, limit=160)
    assert both.cut
    assert both.prompt_length <= 160
    assert len(both.tokens) - both.prompt_length == 151
    assert base.renderer.example(asked("w")[0], "y" * 200, limit=160).tokens[-1] != base.renderer.end_id
    adapted = tiny.fit(base, "zero-shot", Path())
    short, cut = adapted.shorten(talk, 150)
    assert cut
    assert 155 <= len(base.renderer.prompt(short)) <= 160
    assert len(adapted.generate([short], Sampling(max_tokens=500))[0].tokens) <= 160 - len(base.model.start) + 1  # type: ignore[attr-defined]
    with pytest.raises(KamertonError, match="160 positions"):
        adapted.generate([talk], Sampling())
    with pytest.raises(KamertonError, match="160 positions"):
        adapted.score([short], [["y" * 170]])


def test_another_renderer_has_another_fingerprint(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    own = load_base(tiny_folder("t5"), dtype="float32").renderer.fingerprint
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{{ eos_token }}")
    other = load_base(tiny_folder("t5"), dtype="float32", chat_template=template).renderer
    assert other.fingerprint != own
    assert other.text(asked("q", system=None)[0]) == "user: q </s>"
    assert other.prompt(asked("q", system=None)[0]).count(2) == 1


# -- loss and gradient ------------------------------------------------------------------------------------------------


def attach(base: Base, kind: str, **options: Any) -> Tuned:
    parameterisation = get_parameterisation(kind)
    return parameterisation.attach(base, parameterisation.options(**options), tiny.colour_task(), 0)


def theirs(base: Base, tuned: Tuned, kind: str, rows: Sequence[Rendered]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient by transformers and peft: a model loaded anew, `model(input_ids, labels=…)` on padded rows."""
    import peft

    hf = plain(base, kind)
    model: Any = hf
    if kind in ("lora", "qlora"):
        config: Any = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")
        model = peft.get_peft_model(hf, config)
    elif kind == "prompt-tuning":
        config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20, num_transformer_submodules=1)
        model = peft.get_peft_model(hf, config)
    elif kind == "p-tuning":
        config = peft.PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20, num_transformer_submodules=1)
        model = peft.get_peft_model(hf, config)
    elif kind == "ia3":
        outputs, last = (["k", "v"], "wo") if hf.config.model_type != "bart" else (["k_proj", "v_proj"], "fc2")
        config = peft.IA3Config(
            target_modules=[*outputs, last], feedforward_modules=[last], task_type="SEQ_2_SEQ_LM"
        )  # fmt: skip
        model = peft.get_peft_model(hf, config)
    own = trained_weights(tuned.module)
    named = hook_adapters(hf, own) if kind == "adapter" else dict(model.named_parameters())
    assert kind == "full" or {n for n, p in named.items() if p.requires_grad} == set(own)
    with torch.no_grad():
        for name, value in own.items():
            named[name].copy_(value)
    forced = list(base.model.start[1:])  # type: ignore[attr-defined]
    prompts = [list(r.tokens[: r.prompt_length]) for r in rows]
    labels = [[*([-100] * len(forced)), *r.tokens[r.prompt_length :]] for r in rows]
    read = [[base.model.start[0], *forced, *r.tokens[r.prompt_length : -1]] for r in rows]  # type: ignore[attr-defined]

    def pad(lists: list[list[int]], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(x) for x in lists], batch_first=True, padding_value=value)

    mask = pad([[1] * len(p) for p in prompts], 0)
    # where a first token is forced it is given, and carries no loss
    given = {"decoder_input_ids": pad(read, 0)} if forced else {}
    out = model(input_ids=pad(prompts, 0), attention_mask=mask, labels=pad(labels, -100), **given)
    out.loss.backward()
    return float(out.loss.detach()), {n: p.grad for n, p in named.items() if p.grad is not None}


def plain(base: Base, kind: str) -> Any:
    """transformers' own model of the base, in 4 bits for `qlora`."""
    made = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        base.info.source, dtype=torch.float32, **tiny.four_bits(kind)
    )
    if kind == "qlora":
        settle(made)  # bitsandbytes cannot repack matrices as narrow as these for bfloat16 instructions
    return made.eval()


def hook_adapters(hf: Any, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Houlsby's adapters as hooks: h + U relu(D h) behind the last layer of every attention and MLP."""
    made = {n: torch.zeros_like(v, requires_grad=True) for n, v in own.items()}
    last = ("out_proj", "fc2") if hf.config.model_type == "bart" else ("Attention.o", "DenseReluDense.wo")

    def hook(name: str) -> Callable[[Any, Any, Tensor], Tensor]:
        dw, db, uw, ub = (
            made[f"base_model.model.{name}.bottleneck_{w}.default.{p}"]
            for w, p in (("down", "weight"), ("down", "bias"), ("up", "weight"), ("up", "bias"))
        )
        linear = nn.functional.linear
        return lambda module, args, h: h + linear(linear(h, dw, db).relu(), uw, ub)

    for name, module in hf.named_modules():
        if name.endswith(last):
            module.register_forward_hook(hook(name))
    return made


def told(tuned: Tuned | Base, rows: Sequence[Rendered]) -> Tensor:
    """Log-probabilities of the answers' tokens, one row after another."""
    with torch.no_grad():
        return tuned.model.target_log_probs(make_batch(rows))


def rows_of(base: Base, count: int = 6) -> list[Rendered]:
    return [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:count]]


@pytest.mark.parametrize("kind", INJECTED)
@pytest.mark.parametrize("name", TWO)
def test_what_is_injected_starts_as_the_base(name: str, kind: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    start = base.reload(quantise="nf4") if kind == "qlora" else base
    tuned = attach(base, kind, **OPTIONS.get(kind, {}))
    tuned.module.eval()
    assert torch.equal(told(tuned, rows_of(base)), told(start, rows_of(base)))
    for value in trained_weights(tuned.module).values():
        value += torch.randn(value.shape) * 0.1
    assert not torch.allclose(told(tuned, rows_of(base)), told(start, rows_of(base)), atol=1e-2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
@pytest.mark.parametrize("name", TWO)
def test_peft_loads_what_was_saved(name: str, kind: str, tiny_base: Callable[[str], Base], tmp_path: Path) -> None:
    """With peft's own function and transformers' own forward pass; and so do we."""
    import peft

    base = tiny_base(name)
    tuned = attach(base, kind, **OPTIONS.get(kind, {}))
    for value in trained_weights(tuned.module).values():
        value += torch.randn(value.shape) * 0.05
    tuned.module.eval()
    tuned.save(tmp_path)
    model = peft.PeftModel.from_pretrained(plain(base, kind), str(tmp_path)).eval()
    rows = rows_of(base, 4)
    loaded = get_parameterisation(kind).load(base, tmp_path)
    torch.testing.assert_close(told(loaded, rows), told(tuned, rows), rtol=1e-5, atol=1e-5)
    start, expected = base.model.start, []  # type: ignore[attr-defined]
    for r in rows:
        prompt, answer_ = r.tokens[: r.prompt_length], r.tokens[r.prompt_length :]
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                decoder_input_ids=torch.tensor([[*start, *answer_[:-1]]]),
            )  # fmt: skip
        own = out.logits[0, len(start) - 1 :].log_softmax(-1)
        expected.append(own.gather(1, torch.tensor(answer_)[:, None])[:, 0])
    torch.testing.assert_close(told(tuned, rows), torch.cat(expected), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "kind", ["prefix-tuning", "p-tuning-v2", *(kind for kind in KINDS if kind not in ("full", "prompt-tuning"))]
)
def test_what_is_not_trained_keeps_its_bits(kind: str, words_base: Base, tmp_path: Path) -> None:
    adapted = tiny.fit(words_base, kind, tmp_path / "fit", budget=Budget(steps=3), learning_rate=0.05)
    start = words_base.reload(quantise="nf4") if kind == "qlora" else words_base
    own = {**dict(start.model.hf.named_parameters()), **dict(start.model.hf.named_buffers())}
    hf = adapted.engine.model.hf
    found = {n.replace(".base_layer.", "."): v for n, v in (*hf.named_parameters(), *hf.named_buffers())}
    assert own.keys() <= found.keys()
    assert all(torch.equal(found[key], value) for key, value in own.items())
    come_back(adapted, words_base, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["t5", "mt5", "bart"])
def test_loss_and_gradient_are_those_of_transformers(name: str, kind: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    task = tiny.colour_task()
    rows = [base.renderer.example(e.messages, e.answers[0]) for e in task.train[:6]]
    assert len({len(r.tokens) - r.prompt_length for r in rows}) > 1, "answers of different lengths"
    tuned = attach(base, kind, **OPTIONS.get(kind, {}))
    generator = torch.Generator().manual_seed(1)
    for value in trained_weights(tuned.module).values():
        value += torch.randn(value.shape, generator=generator) * 0.02
    expected_loss, expected = theirs(base, tuned, kind, rows)
    scale = max(float(g.abs().max()) for g in expected.values())
    for share in (True, False):
        batch = make_batch(rows, share=share)
        assert bool(batch.prefix) == share
        tuned.module.zero_grad(set_to_none=True)
        loss = Supervised.loss(object.__new__(Supervised), tuned.model, batch).total / batch.count
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-5)
        found = {n: p.grad for n, p in tuned.module.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for parameter, grad in expected.items():
            assert float((found[parameter] - grad).abs().max()) <= 2e-5 * max(1.0, scale), parameter


def test_a_target_inside_a_prompt_is_refused(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("t5")
    batch = make_batch([Rendered((5, 6, 7, 2), (0.0, 0.0, 1.0, 1.0))])
    wrong = replace(batch, positions=batch.positions - 1)
    with pytest.raises(ValueError, match="inside a prompt"):
        base.model.target_log_probs(wrong)


@given(st.lists(st.tuples(st.integers(1, 7), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5)), min_size=1, max_size=4), st.booleans())  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_target_log_probs_follow_any_weights(rows: list[tuple[int, list[float]]], share: bool) -> None:
    """Weights of any kind behind the first target, prompts of any length, prefixes shared or not."""
    base = _base("bart")
    rendered = []
    for n, weights in rows:
        tokens = [10 + i for i in range(n)] + [30 + i for i in range(len(weights) + 1)]
        rendered.append(Rendered(tuple(tokens), (0.0,) * n + (1.0, *weights)))
    batch = make_batch(rendered, share=share)
    with torch.no_grad():
        found = base.model.target_log_probs(batch)
    expected = []
    for r in rendered:
        values = log_probs(base, r.tokens[: r.prompt_length], r.tokens[r.prompt_length :])
        expected += [v for v, w in zip(values.tolist(), r.weights[r.prompt_length :], strict=True) if w]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4, rtol=1e-4)


_bases: dict[str, Base] = {}


def _base(name: str) -> Base:
    """A tiny base where fixtures cannot go (hypothesis)."""
    if name not in _bases:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            architectures.save(name, Path(folder))
            _bases[name] = load_base(folder, dtype="float32")
    return _bases[name]


# -- answers and scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "room"), [*((name, 8192) for name in ALL), ("t5", 100), ("bart", 100)])
def test_greedy_answers_equal_transformers(name: str, room: int, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    # the byte tokenizer has few words, so an end token would be rare: three more tokens end an answer
    ends = {*base.renderer.end_ids, 40, 50, 60}
    base.renderer.end_ids, kept = tuple(sorted(ends)), base.renderer.end_ids
    try:
        conversations = asked(*TEXTS, "ab")
        answers = Engine(base.model, base.renderer, max_batch_tokens=room).generate(
            conversations, Sampling(max_tokens=20)
        )
        start = base.model.start  # type: ignore[attr-defined]
        for one, found in zip(conversations, answers, strict=True):
            out = base.model.hf.generate(
                torch.tensor([base.renderer.prompt(one)]), do_sample=False, num_beams=1, eos_token_id=sorted(ends),
                max_new_tokens=20 + len(start) - 1, use_cache=False,
            )  # fmt: skip
            assert list(found.tokens) == out[0, len(start) :].tolist()
            expected = log_probs(base, base.renderer.prompt(one), found.tokens)
            torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-3, rtol=1e-3)
            assert found.prompt_tokens == len(base.renderer.prompt(one))
    finally:
        base.renderer.end_ids = kept


def test_answers_differ_from_question_to_question(tiny_base: Callable[[str], Base]) -> None:
    """Or the test above would show little."""
    for name in ALL:
        base = tiny_base(name)
        answers = Engine(base.model, base.renderer).generate(asked(*TEXTS), Sampling(max_tokens=20))
        assert len({a.tokens for a in answers}) >= 3, name


@pytest.mark.parametrize("name", TWO)
def test_samples_do_not_depend_on_the_batch(name: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    sampling = Sampling(max_tokens=9, temperature=1.5, top_k=40, top_p=0.95, min_p=0.001, n=3, seed=3)
    conversations = asked(*TEXTS)
    together = Engine(base.model, base.renderer).generate(conversations, sampling)
    assert len({a.tokens for a in together}) == 3 * len(TEXTS)
    small = Engine(base.model, base.renderer, max_batch_tokens=60).generate(conversations[::-1], sampling)
    for i in range(len(TEXTS)):
        j = len(TEXTS) - 1 - i
        assert [a.tokens for a in small[3 * j : 3 * j + 3]] == [a.tokens for a in together[3 * i : 3 * i + 3]]
        alone = Engine(base.model, base.renderer).generate([conversations[i]], sampling)
        assert [a.tokens for a in alone] == [a.tokens for a in together[3 * i : 3 * i + 3]]
    twice = Engine(base.model, base.renderer).generate(asked("a", "a"), sampling)
    longer = Engine(base.model, base.renderer).generate(asked("a"), replace(sampling, n=6))
    assert [a.tokens for a in twice] == [a.tokens for a in longer]


def test_streams_and_stop_strings(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("t5")
    engine = Engine(base.model, base.renderer)
    one = asked(TEXTS[1])[0]
    sampling = Sampling(max_tokens=30, temperature=1.0, seed=2)
    whole = engine.generate([one], sampling)[0]
    assert "".join(engine.stream(one, sampling)) == whole.text
    stop = whole.text[5:7]
    stopped = engine.generate([one], replace(sampling, stop=(stop,)))[0]
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish == "stop"


@pytest.mark.parametrize("room", [8192, 90])
@pytest.mark.parametrize("name", TWO)
def test_scores_equal_transformers_and_the_best_is_the_greatest(
    name: str, room: int, tiny_base: Callable[[str], Base]
) -> None:
    base = tiny_base(name)
    engine = Engine(base.model, base.renderer, max_batch_tokens=room)
    choices = [["red", "green", "redder", "", "red"], ["a"], [], ["yes", "no"], ["b", "bb"]]
    conversations = asked(*TEXTS[:3], TEXTS[0], TEXTS[0])
    seen: list[tuple[int, int]] = []
    scores = engine.score(conversations, choices, progress=lambda *at: seen.append(at))
    for one, texts, found in zip(conversations, choices, scores, strict=True):
        prompt = base.renderer.prompt(one)
        expected = [float(log_probs(base, prompt, base.renderer.answer(text)).sum()) for text in texts]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert seen[-1] == (5, 5)
    kept = [i for i, texts in enumerate(choices) if texts]
    best = engine.rank([conversations[i] for i in kept], [choices[i] for i in kept])
    assert best == [int(np.argmax(scores[i])) for i in kept]


def test_each_distinct_prompt_is_read_once(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("t5")
    model = base.model
    conversations = asked("ab", "cd", "ab", "a longer one")
    distinct = {tuple(base.renderer.prompt(c)) for c in conversations}
    for room in (8192, 50):
        engine = Engine(model, base.renderer, max_batch_tokens=room)
        before = model.work.copy()
        engine.generate(conversations, Sampling(max_tokens=5, temperature=1.0, n=4))
        engine.score(conversations, [["red", "green", "blue"]] * 4)
        # read one at a time in the small room, so without padding
        assert (model.work - before).encoder_pairs == 2 * sum(len(p) ** 2 for p in distinct)
        assert engine.usage.computed_tokens < engine.usage.asked_tokens


def test_soft_tokens_stand_before_the_encoder(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("bart")
    soft = torch.randn(3, 32)
    model = EncoderDecoderModel(base.model.hf, front=lambda: Front(embeddings=soft))
    conversations = asked(*TEXTS)
    answers = Engine(model, base.renderer).generate(conversations, Sampling(max_tokens=8))
    for one, found in zip(conversations, answers, strict=True):
        assert found.prompt_tokens == len(base.renderer.prompt(one)) + 3
        predicted = logits(base, base.renderer.prompt(one), found.tokens, soft)
        assert predicted.argmax(-1).tolist() == list(found.tokens)


def test_tokens_of_given_continuations(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("t5")
    prompts = [[10, 11, 2], [12, 2], [10, 11, 2]]
    continuations = [[30, 31, 32], [33], [30, 34]]
    found = Engine(base.model, base.renderer).token_log_probs(prompts, continuations)
    for prompt, continuation, values in zip(prompts, continuations, found, strict=True):
        torch.testing.assert_close(values, log_probs(base, prompt, continuation), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_states_of_texts_and_what_comes_next(name: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    rows = [[10, 11, 12, 13, 2], [14, 2], [15, 16, 2]]
    hf = base.model.hf
    with torch.no_grad():
        states, hidden = base.model.states(rows), base.model.next_hidden(rows)
        for row, found, predicting in zip(rows, states, hidden, strict=True):
            ids = torch.tensor([row])
            whole = hf.get_encoder() if base.model.encoder_decoder else hf.model
            torch.testing.assert_close(found, whole(input_ids=ids).last_hidden_state[0], atol=1e-4, rtol=1e-4)
            own = logits(base, row, [5])[0] if base.model.encoder_decoder else hf(ids).logits[0, -1]
            torch.testing.assert_close(base.model.output(predicting[None])[0], own, atol=1e-3, rtol=1e-3)


# -- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO)
def test_flops_are_those_that_torch_counts(name: str, tmp_path: Path) -> None:
    base = load_base(tiny.save_encoder_decoder(tmp_path / name, name, layers=4), dtype="float32")
    task = tiny.colour_task()
    rows = [base.renderer.example(e.messages, e.answers[0]) for e in task.train[:4]]

    def linear(work: Work, hf: Any) -> float:
        return flops(replace(work, pairs=0, grad_pairs=0, encoder_pairs=0, grad_encoder_pairs=0), hf)

    def check(run: Callable[[], Any], model: Any, share: float) -> None:
        model.hf.set_attn_implementation("eager")  # PyTorch counts nothing of the CPU's attention kernel
        before = model.work.copy()
        found, attention = counted(run)
        work = model.work - before
        assert linear(work, model.hf) == pytest.approx(found, rel=0.05)
        pairs = flops(work, model.hf) - linear(work, model.hf)
        assert share * attention <= pairs <= 1.05 * attention, "what is seen of padded squares"

    with torch.no_grad():
        check(lambda: base.model.target_log_probs(make_batch(rows)), base.model, 0.5)
    for kind in ("lora", "prompt-tuning", "prefix-tuning", "full"):
        tuned = attach(base, kind)
        batch = make_batch(rows)
        check(lambda: tuned.model.target_log_probs(batch).sum().backward(), tuned.model, 0.5)  # noqa: B023
        assert tuned.model.work.grad_tokens == tuned.model.work.tokens == len(rows) * max(len(r.tokens) - r.prompt_length for r in rows)  # fmt: skip
    engine = Engine(base.model, base.renderer)
    conversations = [e.messages for e in task.test[:4]]
    check(lambda: engine.generate(conversations, Sampling(max_tokens=9)), base.model, 0.5)
    check(lambda: engine.score(conversations, [list(tiny.COLOURS)] * 4), base.model, 0.5)


# -- whole methods ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(tiny.save_encoder_decoder(tmp_path_factory.mktemp("base") / "t5", "t5"), dtype="float32")


def right(adapted: Adapted) -> float:
    test = tiny.colour_task().test
    said = answer(adapted, test, Sampling(max_tokens=6)).texts
    return sum(text == e.answers[0] for text, e in zip(said, test, strict=True)) / len(test)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("full", {"learning_rate": 3e-3}, 45),
        ("lora", {"learning_rate": 1e-2}, 50),
        ("few-shot", {"over": {"full": {"learning_rate": 3e-3}}, "shots": 1}, 50),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_methods_learn_and_come_back_from_disk(
    name: str, options: dict[str, Any], steps: int, words_base: Base, tmp_path: Path
) -> None:
    before = right(tiny.fit(words_base, "zero-shot", tmp_path))
    adapted = tiny.fit(words_base, name, tmp_path / "fit", budget=Budget(steps=steps), **options)
    curve = [row["loss"] for row in adapted.record.curve]
    assert np.mean(curve[-5:]) < 0.4 * np.mean(curve[:2])
    assert right(adapted) > before + 0.3
    come_back(adapted, words_base, tmp_path)


def test_prompt_tuning_learns_and_comes_back_from_disk(words_base: Base, tmp_path: Path) -> None:
    """On a random model soft tokens alone find no answers; they do find which tokens are likelier."""
    adapted = tiny.fit(
        words_base, "prompt-tuning", tmp_path / "fit", budget=Budget(steps=15), learning_rate=0.3, tokens=20
    )
    curve = adapted.record.curve
    assert curve[-1]["loss"] < 0.85 * curve[0]["loss"]
    assert adapted.record.trainable_parameters == 20 * 48, "the decoder has no soft tokens of its own"
    come_back(adapted, words_base, tmp_path)


def come_back(adapted: Adapted, base: Base, folder: Path) -> None:
    adapted.save(folder / "saved")
    again = load_adapted(folder / "saved", base)
    conversations = [e.messages for e in tiny.colour_task().test]
    choices = [list(tiny.COLOURS)] * len(conversations)
    assert again.score(conversations, choices) == adapted.score(conversations, choices)
    untouched = tiny.fit(base, "zero-shot", folder)
    assert again.score(conversations, choices) != untouched.score(conversations, choices)


def test_forgetting(words_base: Base, tiny_base: Callable[[str], Base]) -> None:
    text = "Letters and music in the garden. " * 8
    engine = Engine(words_base.model, words_base.renderer)
    ref = reference(engine, text, 3, answer_tokens=8)
    given, rest = words_base.renderer.split(text)
    nats = -float(log_probs(words_base, given, rest).sum())
    size = len(words_base.renderer.decode(rest).encode())
    assert ref.bits_per_byte == pytest.approx(nats / np.log(2) / size, rel=1e-4)
    asked_ = [(Message("user", prompt),) for prompt in ref.prompts]
    assert kl(engine, asked_, ref) == pytest.approx(0, abs=1e-5)
    changed = words_base.reload()
    with torch.no_grad():
        for p in changed.model.hf.parameters():
            p += 0.02 * torch.randn_like(p)
    assert abs(kl(Engine(changed.model, changed.renderer), asked_, ref)) > 1e-4
    llama = tiny_base("llama")
    tokens = llama.renderer.raw("abc")
    assert llama.renderer.split("abc") == (tokens[:1], tokens[1:])
    assert bits_per_byte(Engine(llama.model, llama.renderer), ["abcdef"]) > 0


def test_a_comparison_from_beginning_to_end(tmp_path: Path) -> None:
    base = tiny.save_encoder_decoder(tmp_path / "bart", "bart")
    methods = "  - zero-shot\n  - few-shot: {shots: 2}\n  - lora: {learning_rate: 0.01}\n  - prompt-tuning: {tokens: 4, learning_rate: 0.1}"
    recipe = tiny.write_recipe(tmp_path, base, methods, seeds="[0]", budget="{steps: 6}")
    result = compare(recipe, output=tmp_path / "run", workers=1)
    rows = {row["label"]: row for row in result.results["verdict"]["rows"]}
    assert set(rows) == {"zero-shot", "few-shot", "lora", "prompt-tuning"}
    adapted = api.load(result.adapter("prompt-tuning"))
    said = api.evaluate(adapted, recipe)
    written = (result.adapter("prompt-tuning").parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert said.answers == [json.loads(line)["answer"] for line in written]
    assert isinstance(api.load(base).engine.model, EncoderDecoderModel)


def test_methods_that_are_not_defined_say_so(
    words_base: Base, small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamerton.tuning.lora.Lora.encoder_decoder", False)
    message = (
        r"lora is not defined for an encoder–decoder base \(T5ForConditionalGeneration\); use .*prompt-tuning.*full"
    )
    with pytest.raises(RecipeError, match=message) as caught:
        tiny.fit(words_base, "lora", tmp_path)
    assert "\n" not in str(caught.value)
    for options in ({"over": "lora"}, {"over": {"few-shot": {"over": "lora"}}}):
        method = get_method("few-shot")
        with pytest.raises(RecipeError, match=message):
            check_defined(words_base, method, parse_options(method, options))
    method = get_method("lora")
    check_defined(small_base, method, parse_options(method, {}))
    recipe = tiny.write_recipe(tmp_path, words_base.info.source, "  - zero-shot\n  - lora: {rank: 2}")
    with pytest.raises(RecipeError, match=rf"colours.yaml:\d+.*{message}"):
        compare(recipe, output=tmp_path / "run")
    with pytest.raises(RecipeError, match=message):
        api.tune(recipe, "lora", output=tmp_path / "lora")
    monkeypatch.undo()
    monkeypatch.setattr(Supervised, "encoder_decoder", False)
    with pytest.raises(RecipeError, match="lora with objective supervised is not defined"):
        tiny.fit(words_base, "lora", tmp_path)


def test_causal_models_give_target_log_probs_too(small_base: Base) -> None:
    rows = [small_base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:3]]
    assert isinstance(small_base.model, CausalModel)
    found = small_base.model.target_log_probs(make_batch(rows))
    expected = []
    for r in sorted(rows, key=lambda r: rows.index(r)):
        log = small_base.model.hf(torch.tensor([r.tokens])).logits[0].log_softmax(-1)
        expected += [float(log[i - 1, t]) for i, (t, w) in enumerate(zip(r.tokens, r.weights, strict=True)) if w]
    np.testing.assert_allclose(found.tolist(), expected, atol=1e-4)

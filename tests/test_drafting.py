"""Layers without the modules around them, and a rough copy's guesses: the answers are those of the model itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kamerton.base import Base, CausalModel, load_base
from kamerton.base import model as model_module
from kamerton.base.draft import Draft
from kamerton.base.lean import lean, own_projections
from kamerton.inference import Answer, Engine, Sampling, drafting
from kamerton.inference.runner import BatchedEngine, Runner
from kamerton.tasks.example import Conversation, conversation
from kamerton.tuning.lora import Lora, LoraOptions
from tiny import colour_task

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = ["What is the capital of France?", "Write a story about a lighthouse and bread in the year 1507."]
LONG = Sampling(max_tokens=24)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess from the first token on."""
    monkeypatch.setattr(drafting, "WORTH_IT", 0)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("demo", dtype="float32", verify=False)


def asked(text: str) -> Conversation:
    return conversation([("user", text)])


def alone(engine: Engine, sampling: Sampling) -> list[Answer]:
    return [engine.generate([asked(text)], sampling)[0] for text in ASKED]


def without_guesses(engine: Engine, sampling: Sampling) -> list[Answer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting.Drafting, "draft", lambda _: None)
        return alone(engine, sampling)


def same(ours: list[Answer], theirs: list[Answer]) -> None:
    assert [(a.tokens, a.finish, a.text) for a in ours] == [(a.tokens, a.finish, a.text) for a in theirs]
    assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-4) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(params=["greedy", "sampled", "filtered", "stopped"])
def sampling(request: pytest.FixtureRequest) -> Sampling:
    return {
        "greedy": LONG,
        "sampled": dataclasses.replace(LONG, temperature=1.0, seed=3),
        "filtered": dataclasses.replace(LONG, temperature=0.8, top_p=0.9, seed=5),
        "stopped": dataclasses.replace(LONG, stop=("the",)),
    }[request.param]


def test_guessed_answers_are_the_models_own(base: Base, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, sampled, filtered and stopped; and guesses are kept, so that fewer passes are made."""
    engine = Engine(base.model, base.renderer)
    own = without_guesses(engine, sampling)
    kept: list[int] = []
    plain = drafting.Drafting.tokens

    def seen(self: drafting.Drafting, *given: object) -> object:
        found = plain(self, *given)  # type: ignore[arg-type]
        kept.append(len(found[1]))
        return found

    monkeypatch.setattr(drafting.Drafting, "tokens", seen)
    same(alone(engine, sampling), own)
    assert sum(kept) / len(kept) > 2


def test_guesses_that_are_never_right_change_nothing(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that says the opposite: the answers stay, and guessing is given up."""
    engine = Engine(base.model, base.renderer)
    own = without_guesses(engine, LONG)
    output, calls = Draft.output, [0]

    def wrong(self: Draft, hidden: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return -output(self, hidden)

    monkeypatch.setattr(Draft, "output", wrong)
    same(alone(engine, LONG), own)
    assert 0 < calls[0] <= 3 * (drafting.MOST_AHEAD + 4)


def test_a_trained_adapter_and_a_running_batch(base: Base) -> None:
    """LoRA is merged into the copy, and into a new one when it changes; a batch with one answer guesses as well."""
    tuned = Lora.attach(base.reload(dtype="float32"), LoraOptions.model_validate({"rank": 4}), colour_task(), 0)
    generator = torch.Generator().manual_seed(0)
    engine = Engine(tuned.model, base.renderer)
    before: list[Answer] = []
    for size in (0.02, 0.06):
        for name, weight in tuned.module.named_parameters():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * size
        own = without_guesses(engine, LONG)
        assert [a.tokens for a in own] != [a.tokens for a in before]
        same(alone(engine, LONG), own)
        before = own
    runner = Runner()
    runner.start()
    try:
        same(alone(BatchedEngine(engine, runner), LONG), own)
    finally:
        runner.close()


def test_a_draft_is_of_weights_that_stay(base: Base) -> None:
    with pytest.raises(RuntimeError, match="inference"):
        base.model.draft()
    with base.model.inference():
        first = base.model.draft()
        assert first is not None
        assert base.model.draft() is first
    with base.model.inference():
        assert base.model.draft() is first
        assert first.output(torch.zeros(1, 576, dtype=torch.bfloat16)).shape == (1, 49152)


SHAPES = {
    "llama": {}, "mistral": {"sliding_window": 5}, "qwen2": {}, "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16}, "gpt2": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_lean_layers_give_what_the_modules_give(kind: str) -> None:
    """Bit for bit the same order of operations up to rounding; families that are not LLaMA's go through their modules."""
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **SHAPES[kind]}
    shape |= (
        {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64} if kind != "gpt2" else {}
    )
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).eval()
    with torch.no_grad():
        for weight in hf.parameters():  # norms that are all ones would hide their use
            weight.add_(torch.randn_like(weight) * 0.1)
    model = CausalModel(hf)
    made = lean(model._backbone(), own_projections)
    assert (made is None) == (kind in ("gemma2", "gpt2"))
    rows, front = [[5, 6, 7, 8, 9, 10, 11, 12], [3, 4]], [50, 51, 52]

    def states() -> torch.Tensor:
        with torch.no_grad(), model.inference():
            return model.forward(rows, prefix=front).rows

    ours = states()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "lean", lambda *_: None)
        theirs = states()
    assert (ours - theirs).abs().max() < 1e-5
    layer = model._backbone().layers[0] if kind != "gpt2" else model._backbone().h[0]
    seen: list[object] = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    states()
    handle.remove()
    assert seen  # a hook is heard: the modules were gone through

"""vLLM as what decodes. What needs vLLM itself is skipped where it is not installed; there the demo model answers in
float32, and every answer and log-probability is held against the torch backend's.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import tiny
from kamerton.base import Base
from kamerton.errors import KamertonError, MissingExtra
from kamerton.exporting.for_vllm import Pool, check_runs, form_of
from kamerton.inference import Answer, Engine, Sampling
from kamerton.inference.continuous import Cancelled
from kamerton.inference.runner import BatchedEngine, Runner, Ticket
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Adapted, Run, decode_through
from kamerton.recipe import EvaluationSpec
from kamerton.tasks.example import Conversation, Message
from kamerton.training import Budget
from kamerton.tuning import get_parameterisation

pytest_plugins = ("tiny",)
there = importlib.util.find_spec("vllm") is not None
with_vllm = pytest.mark.skipif(not there, reason="vllm is not installed")

QUESTIONS: list[Conversation] = [
    (Message("user", "Name three colours of the rainbow."),),
    (Message("system", "Answer in one word."), Message("user", "What is the capital of France?")),
    (Message("user", "Write two lines about rain, and then count from one to five."),),
]
GREEDY = Sampling(max_tokens=12)
SAMPLED = Sampling(max_tokens=8, temperature=0.9, top_p=0.95, top_k=40, min_p=0.01, n=2, seed=7)
CHOICES = [["red, green", "blue", "red"], ["Paris", "London"], ["one two", "rain", "snow falls"]]


def tuned(base: Base, kind: str, spread: float, **options: Any) -> Adapted:
    """A model with something attached, whose trained numbers are moved at random so that it answers otherwise."""
    parameterisation = get_parameterisation(kind)
    chosen = parameterisation.options(**options)
    made = parameterisation.attach(base, chosen, tiny.colour_task(), 0)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.requires_grad:
                parameter.add_(spread * torch.randn(parameter.shape, generator=noise))
    return Adapted(base, made.model, method=kind, options=chosen, tuned=made)


def fitted(base: Base, name: str, **options: Any) -> Adapted:
    """A method that trains nothing, on the colours."""
    method = get_method(name)
    return method.fit(base, tiny.colour_task(), Budget(), parse_options(method, options), Run(tiny.Path()))


# -- without vLLM -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(there, reason="vllm is installed")
def test_what_is_not_installed_is_said_with_the_command() -> None:
    with pytest.raises(MissingExtra, match=r"vllm is not installed; run: pip install 'kamerton\[vllm\]'"):
        Pool()


@pytest.mark.skipif(there, reason="vllm is installed")
@pytest.mark.parametrize("command", ["eval", "compare"])
def test_commands_say_so_before_they_read_a_recipe(command: str, cli: tiny.Cli) -> None:
    target = ["demo"] if command == "eval" else []
    status, _, errors = cli(command, *target, "nowhere.yaml", "--backend", "vllm")
    assert status == 2
    assert "vllm is not installed" in errors
    status, _, errors = cli(command, *target, "nowhere.yaml", "--backend", "gpu")
    assert status == 2
    assert "no backend 'gpu'; use torch or vllm" in errors


def test_results_from_before_there_was_a_backend_stand() -> None:
    assert "backend" not in EvaluationSpec().decides()
    assert EvaluationSpec(backend="vllm").decides()["backend"] == "vllm"


def test_the_form_is_that_of_what_was_trained(small_base: Base) -> None:
    forms = {
        "lora": ("adapter", {"rank": 3}), "full": ("own", {}), "ia3": ("own", {}), "prompt-tuning": ("soft", {}),
        "prompt-generator": ("soft", {"tokens": 3, "generated": 2}), "p-tuning": ("soft", {"tokens": 3}),
    }  # fmt: skip
    for kind, (form, options) in forms.items():
        found = form_of(tuned(small_base, kind, 0.0, **options))
        assert found.kind == form, kind
        assert found.rank == options.get("rank", 0) * (kind == "lora")
    assert form_of(tuned(small_base, "lora", 0.0, dora=True)).kind == "own"
    assert form_of(fitted(small_base, "zero-shot")).kind == "base"
    assert form_of(fitted(small_base, "few-shot", shots=2)).kind == "base"


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("prefix-tuning", {"tokens": 3}, "keys and values"),
        ("prompt-generator", {"tokens": 3, "generated": 2, "into": "keys-values"}, "keys and values"),
        ("adapter", {}, "bottleneck|beside the weights"),
    ],
)
def test_what_vllm_does_not_run_is_refused_early_and_late(
    small_base: Base, kind: str, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(KamertonError, match=f"vLLM does not run {kind}: .*({why}).*; use the backend torch"):
        form_of(tuned(small_base, kind, 0.0, **options))
    name = "gan-prompt" if kind == "prompt-generator" else kind
    method = get_method(name)
    with pytest.raises(KamertonError, match="vLLM does not run"):
        check_runs(small_base, method, parse_options(method, options))


def test_encoder_decoders_are_refused(tiny_base: Any) -> None:
    base = tiny_base("t5")
    with pytest.raises(KamertonError, match="no causal transformer"):
        form_of(Adapted(base, base.model, method="zero-shot", options=get_method("zero-shot").options()))


# -- with vLLM --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(demo: Base) -> dict[str, Adapted]:
    return {
        "base": fitted(demo, "zero-shot"), "few-shot": fitted(demo, "few-shot", shots=4),
        "lora": tuned(demo, "lora", 0.03, rank=4, rslora=True), "prompt": tuned(demo, "prompt-tuning", 0.3, tokens=9),
        "generator": tuned(demo, "prompt-generator", 1.0, tokens=5, generated=3),
        "front": tuned(demo, "prompt-generator", 1.0, tokens=5, generated=3, place="front"),
        "full": tuned(demo, "full", 0.003), "dora": tuned(demo, "lora", 0.03, rank=4, dora=True),
    }  # fmt: skip


def everything(adapted: Adapted) -> dict[str, Any]:
    """What a model says and scores."""
    engine = adapted.engine
    text = engine.renderer.split("A tuning fork gives one true note. " * 5)
    return {
        "greedy": adapted.generate(QUESTIONS, GREEDY), "sampled": adapted.generate(QUESTIONS, SAMPLED),
        "stopped": adapted.generate(QUESTIONS, Sampling(max_tokens=12, stop=("a", "e"))),
        "scores": adapted.score(QUESTIONS, CHOICES), "choices": adapted.choose(QUESTIONS, CHOICES, GREEDY),
        "text": engine.token_log_probs([text[0]], [text[1]])[0],
        "next": engine.next_log_probs([engine.renderer.prompt(q) for q in QUESTIONS]),
        "streamed": "".join(adapted.stream(QUESTIONS[0], GREEDY)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def said(models: dict[str, Adapted]) -> Iterator[dict[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """By torch, and by vLLM, all models attached at once."""
    by_torch = {name: everything(adapted) for name, adapted in models.items()}
    with Pool(2048, 32) as pool:
        pool.attach(*models.values())
        yield {name: (by_torch[name], everything(adapted)) for name, adapted in models.items()}
    assert all(type(adapted.engine) is Engine for adapted in models.values())


NAMES = ("base", "few-shot", "lora", "prompt", "generator", "front", "full", "dora")


@with_vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_answers_and_log_probabilities_are_those_of_torch(name: str, said: dict[str, Any]) -> None:
    one, two = said[name]
    for kind in ("greedy", "sampled", "stopped"):
        assert [a.tokens for a in two[kind]] == [a.tokens for a in one[kind]], kind
        assert [(a.text, a.finish, a.prompt_tokens) for a in two[kind]] == [
            (a.text, a.finish, a.prompt_tokens) for a in one[kind]
        ]
        for a, b in zip(one[kind], two[kind], strict=True):
            assert b.logprobs == pytest.approx(a.logprobs, abs=2e-3)
    for a, b in zip(one["scores"], two["scores"], strict=True):
        assert b == pytest.approx(a, abs=5e-3)
    assert [a.text for a in two["choices"]] == [a.text for a in one["choices"]]
    assert two["streamed"] == one["streamed"]
    torch.testing.assert_close(two["text"], one["text"], atol=2e-3, rtol=0)
    torch.testing.assert_close(two["next"], one["next"], atol=5e-3, rtol=0)


@with_vllm
@pytest.mark.slow
def test_what_is_attached_is_what_answers(said: dict[str, Any]) -> None:
    """Parity would hold as well if both sides left an adapter out."""
    for one, two in itertools.combinations(said, 2):
        a, b = (torch.tensor([x for row in said[name][1]["scores"] for x in row]) for name in (one, two))
        assert (a - b).abs().max() > 0.1, f"{one} and {two} score alike"


@with_vllm
@pytest.mark.slow
def test_a_corrected_first_token_and_begun_answers(demo: Base) -> None:
    adapted = fitted(demo, "zero-shot")
    prefer = [adapted.renderer.answer(word)[0] for word in ("Blue", "Green", "Red")]

    def first(logits: torch.Tensor, numbers: Any) -> torch.Tensor:
        out = logits.clone()
        for row, number in enumerate(numbers):
            out[row, prefer[number]] += 1e4
        return out

    begun = [adapted.renderer.raw("Well, ")[-2:]] * 3

    def ask() -> list[list[Answer]]:
        engine = adapted.engine
        return [
            engine.generate(QUESTIONS, GREEDY, first=first), engine.generate(QUESTIONS, SAMPLED, first=first),
            engine.generate(QUESTIONS, GREEDY, begun=begun),
        ]  # fmt: skip

    one = ask()
    with Pool(2048, 32) as pool:
        pool.attach(adapted)
        two = ask()
        before = adapted.engine.usage.computed_tokens
        adapted.generate(QUESTIONS, GREEDY)
        assert adapted.engine.usage.computed_tokens > before
        with pytest.raises(KamertonError, match=r"raise evaluation\.max_batch_tokens"):
            adapted.generate([(Message("user", "word " * 2100),)], GREEDY)
        with pytest.raises(ZeroDivisionError):
            adapted.engine.generate(QUESTIONS, GREEDY, first=lambda *_: 1 / 0)
        assert [a.tokens for a in adapted.generate(QUESTIONS, GREEDY)], "it goes on after a mistake"
    for a, b in zip(one, two, strict=True):
        assert [x.tokens for x in b] == [x.tokens for x in a]
    assert [x.tokens[0] for x in one[0]] == prefer
    assert type(adapted.engine) is Engine


@with_vllm
@pytest.mark.slow
def test_requests_of_several_threads_share_a_batch_and_may_be_cancelled(demo: Base) -> None:
    adapted = fitted(demo, "zero-shot")
    kinds = [GREEDY, SAMPLED, Sampling(max_tokens=5, temperature=1.0, seed=1)]
    one = [adapted.generate(QUESTIONS, kind) for kind in kinds]
    scores = adapted.score(QUESTIONS, CHOICES)
    runner = Runner()
    heard: list[Any] = []
    with Pool(2048, 32) as pool:
        pool.attach(adapted)
        decode_through(adapted, BatchedEngine(adapted.engine, runner))
        runner.start()
        try:
            ticket = Ticket()
            prompt = adapted.renderer.prompt(QUESTIONS[0])
            long = Sampling(max_tokens=1500, temperature=1.0)
            batched: Any = adapted.engine
            runner.call(lambda: batched.ask([prompt], long, heard.append, top=3, ticket=ticket)).result()
            with ThreadPoolExecutor(4) as threads:
                said = [threads.submit(adapted.generate, QUESTIONS, kind) for kind in kinds]
                scored = threads.submit(adapted.score, QUESTIONS, CHOICES)
                two = [future.result() for future in said]
                for a, b in zip(scored.result(), scores, strict=True):
                    assert a == pytest.approx(b, abs=5e-3)
            ticket.cancel()
            adapted.generate(QUESTIONS[:1], Sampling(max_tokens=2))
            assert not batched.batch.busy
        finally:
            runner.close()
    assert isinstance(heard[-1], Cancelled)
    (token,) = heard[0]
    assert len(token.top) == 3
    assert token.top[0][1] >= token.top[1][1] >= token.top[2][1]
    for a, b in zip(one, two, strict=True):
        assert [x.tokens for x in b] == [x.tokens for x in a]

"""Continuous batching: whoever joins, leaves or is cancelled, every answer is the one that `Engine` gives alone."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.base import Base, CausalModel, load_base
from kamerton.inference import Answer, Engine, Sampling
from kamerton.inference.continuous import Batch, Cancelled, Job, Token
from kamerton.inference.engine import safe_length
from kamerton.inference.growing import GrowingText
from kamerton.inference.runner import BatchedEngine, Runner, Ticket
from kamerton.inference.turn import Turn
from kamerton.methods.method import Adapted, decode_through, is_plain
from kamerton.tasks.example import Conversation, conversation
from tiny import fit, save, save_encoder_decoder

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    made.start()
    yield made
    made.close()


def ask(words: str) -> Conversation:
    return conversation([("system", "Which colour is in the text?"), ("user", words)])


def same(ours: list[Answer], others: list[Answer]) -> None:
    """All of two answers but their log-probabilities is equal, and those are up to rounding."""
    for a, b in zip(ours, others, strict=True):
        assert (a.text, a.tokens, a.finish, a.prompt_tokens) == (b.text, b.tokens, b.finish, b.prompt_tokens)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


REQUESTS = [
    (ask("the green river 7"), Sampling(max_tokens=25)),
    (ask("bread"), Sampling(max_tokens=3, temperature=0.8, seed=1)),
    (
        ask("a white cloud and a stone on the mountain with paper " * 4),
        Sampling(max_tokens=18, top_p=0.9, temperature=1.2, seed=2, n=3),
    ),
    (ask("the green river 7"), Sampling(max_tokens=25, temperature=0.7, top_k=5, seed=3)),
    (ask("winter"), Sampling(max_tokens=30, stop=("er", "a "), n=2, temperature=1.0, seed=4)),
    (ask("red"), Sampling(max_tokens=1)),
]


def drive(batch: Batch, engine: Engine, starts: list[int], requests: list[Any] = REQUESTS) -> list[list[list[Token]]]:
    """Step a batch by hand; request i joins before step starts[i]. Returns the tokens of each answer."""
    heard: list[list[list[Token]]] = [[[] for _ in range(s.n)] for _, s in requests]
    step = 0
    while step <= max(starts) or batch.busy:
        for i, (c, sampling) in enumerate(requests):
            if starts[i] == step:
                prompts = [engine.renderer.prompt(c)]

                def told(tokens: list[Token] | Exception, i: int = i) -> None:
                    assert isinstance(tokens, list)
                    for token in tokens:
                        heard[i][token.index].append(token)

                batch.join(Job(prompts, engine._rooms(prompts, sampling), sampling, told, engine._stopping(sampling)))
        batch.step()
        step += 1
    return heard


# -- the batch ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=len(REQUESTS), max_size=len(REQUESTS)), st.sampled_from([1, 3, 64]),
       st.sampled_from([60, 400, 65536]))  # fmt: skip
def test_answers_do_not_depend_on_who_joins_when(
    small_base: Base, starts: list[int], rows: int, tokens: int
) -> None:  # fmt: skip
    assert isinstance(small_base.model, CausalModel)
    engine = Engine(small_base.model, small_base.renderer)
    batch = Batch(small_base.model, small_base.renderer.end_ids, tokens, rows)
    heard = drive(batch, engine, starts)
    for (c, sampling), answers in zip(REQUESTS, heard, strict=True):
        alone = engine.generate([c], sampling)
        assert [[t.token for t in own] for own in answers] == [list(a.tokens) for a in alone]
        assert [own[-1].finish for own in answers] == [a.finish for a in alone]
        assert not any(t.finish for own in answers for t in own[:-1])
        for own, a in zip(answers, alone, strict=True):
            np.testing.assert_allclose([t.logprob for t in own], a.logprobs, atol=1e-4)
    batch.rest()
    assert batch.cache is None


def test_the_cache_stays_within_its_bound(small_base: Base) -> None:
    assert isinstance(small_base.model, CausalModel)
    engine = Engine(small_base.model, small_base.renderer)
    batch, seen, rows = Batch(small_base.model, small_base.renderer.end_ids, 1024, 64), 0, 0
    requests = [(ask(f"river {i}"), Sampling(max_tokens=40, temperature=1.0, seed=i)) for i in range(30)]
    step = batch.step

    def watched() -> None:
        nonlocal seen, rows
        step()
        if batch.rows and batch.cache is not None:
            seen = max(seen, batch.cache.capacity * batch.cache.columns)
            rows = max(rows, len(batch.rows))

    batch.step = watched  # type: ignore[method-assign]
    drive(batch, engine, [0] * 30, requests)
    assert 4 < rows < 30
    assert seen <= 1024
    batch.rest()


def test_a_prompt_is_read_once_for_all_its_samples(small_base: Base) -> None:
    assert isinstance(small_base.model, CausalModel)
    engine = Engine(small_base.model, small_base.renderer)
    before = small_base.model.work.copy()
    batch = Batch(small_base.model, small_base.renderer.end_ids, 65536, 64)
    heard = drive(batch, engine, [0], [(ask("stone"), Sampling(max_tokens=2, n=7, temperature=1.0))])
    batch.rest()
    computed = (small_base.model.work - before).tokens
    assert computed == len(engine.renderer.prompt(ask("stone"))) + sum(len(own) - 1 for own in heard[0])


def test_top_log_probabilities_are_the_models(small_base: Base, runner: Runner) -> None:
    engine = BatchedEngine(Engine(small_base.model, small_base.renderer), runner)
    heard: list[Token] = []
    done, other_done = threading.Event(), threading.Event()

    def told(tokens: list[Token] | Exception) -> None:
        assert isinstance(tokens, list)
        heard.extend(tokens)
        if tokens[-1].finish:
            done.set()

    def other_told(tokens: list[Token] | Exception) -> None:
        assert isinstance(tokens, list)
        if tokens[-1].finish:
            other_done.set()

    prompt = engine.renderer.prompt(ask("music"))
    other = [(engine.renderer.prompt(ask("paper")), Sampling(max_tokens=9))]
    runner.call(lambda: engine.ask([other[0][0]], other[0][1], other_told)).result()
    runner.call(lambda: engine.ask([prompt], Sampling(max_tokens=6, temperature=0.9, seed=5), told, top=4)).result()
    assert done.wait(20)
    assert other_done.wait(20)  # one thread at a time computes with a model, and below it is this one
    for i, token in enumerate(heard):
        rest = [*prompt, *(t.token for t in heard[:i])]
        expected = Engine(small_base.model, small_base.renderer).next_log_probs([rest])[0]
        values, ids = expected.topk(4)
        assert [t for t, _ in token.top] == ids.tolist()
        np.testing.assert_allclose([p for _, p in token.top], values.tolist(), atol=1e-4)
        assert token.logprob == pytest.approx(float(expected[token.token]), abs=1e-4)


# -- leaving ------------------------------------------------------------------------------------------------------------


def test_a_cancelled_request_leaves_and_others_go_on(small_base: Base) -> None:
    assert isinstance(small_base.model, CausalModel)
    engine = Engine(small_base.model, small_base.renderer)
    batch = Batch(small_base.model, small_base.renderer.end_ids, 65536, 64)
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}
    jobs = []
    for i in range(3):
        sampling = Sampling(max_tokens=20, temperature=1.0, seed=i)
        prompts = [engine.renderer.prompt(ask(f"river {i}"))]
        told = lambda tokens, i=i: heard[i].extend(t.token for t in tokens)  # noqa: E731
        jobs.append(Job(prompts, [20], sampling, told, lambda _: False))
        batch.join(jobs[-1])
    for _ in range(4):
        batch.step()
    jobs[1].cancelled = True
    kept = len(heard[1])
    batch.step()
    assert len(batch.rows) == 2 and len(heard[1]) == kept  # noqa: PT018
    while batch.busy:
        batch.step()
    for i in (0, 2):
        alone = engine.generate([ask(f"river {i}")], Sampling(max_tokens=20, temperature=1.0, seed=i))
        assert heard[i] == list(alone[0].tokens)
    batch.rest()


def test_what_goes_wrong_in_a_step_is_told_and_the_thread_goes_on(small_base: Base, runner: Runner) -> None:
    engine = BatchedEngine(Engine(small_base.model, small_base.renderer), runner)

    def broken(*_: Any) -> Any:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"), runner.turn:
        engine.generate([ask("a")], Sampling(max_tokens=4), first=broken)
    assert engine.batch is not None
    step, engine.batch._advance = engine.batch._advance, None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError), runner.turn:
        engine.generate([ask("a")], Sampling(max_tokens=4))
    engine.batch._advance = step  # type: ignore[method-assign]
    with runner.turn:
        ours = engine.generate([ask("a")], Sampling(max_tokens=4))
    same(ours, Engine(small_base.model, small_base.renderer).generate([ask("a")], Sampling(max_tokens=4)))


def test_a_cancelled_ticket_ends_whoever_waits(small_base: Base, runner: Runner) -> None:
    engine = BatchedEngine(Engine(small_base.model, small_base.renderer), runner)
    ticket, ended = Ticket(), []

    def work() -> None:
        try:
            with runner.under(ticket), runner.turn:
                engine.generate([ask("a"), ask("b")], Sampling(max_tokens=400, temperature=1.0))
        except Cancelled:
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    assert engine.batch is not None
    while not engine.batch.rows:
        time.sleep(0.001)
    ticket.cancel()
    thread.join(20)
    assert ended
    for _ in range(2000):
        if not engine.batch.busy:
            break
        time.sleep(0.005)
    assert not engine.batch.busy
    with pytest.raises(Cancelled), runner.under(ticket), runner.turn:
        engine.generate([ask("a")], Sampling(max_tokens=2))


def test_closing_ends_whoever_waits(small_base: Base) -> None:
    runner = Runner()
    runner.start()
    engine = BatchedEngine(Engine(small_base.model, small_base.renderer), runner)
    with ThreadPoolExecutor(1) as pool:

        def work() -> list[Answer]:
            with runner.turn:
                return engine.generate([ask("a")], Sampling(max_tokens=450, temperature=1.0))

        waiting = pool.submit(work)
        assert engine.batch is not None
        while not engine.batch.rows and not waiting.done():
            time.sleep(0.001)
        runner.close()
        with pytest.raises(Cancelled):
            waiting.result(20)
    with pytest.raises(Cancelled):
        runner.call(lambda: 1).result(5)


# -- methods ------------------------------------------------------------------------------------------------------------

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("zero-shot", {}),
    ("few-shot", {"shots": 2, "selection": "nearest"}),
    ("prompt-tuning", {"tokens": 4, "learning_rate": 0.1}),
    ("prefix-tuning", {"tokens": 4, "learning_rate": 0.01}),
    ("prompt-generator", {"learning_rate": 0.01}),
    ("lora", {"rank": 2, "learning_rate": 0.01}),
    ("chain-of-thought", {"max_tokens": 10}),
    ("self-consistency", {"samples": 3, "over": {"chain-of-thought": {"max_tokens": 8}}}),
    ("best-of-n", {"samples": 3}),
    ("thinking-budget", {"max_tokens": 8}),
    ("calibration", {}),
]


@pytest.mark.parametrize(("name", "options"), METHODS, ids=[name for name, _ in METHODS])
def test_every_method_gives_the_same_answers_from_a_shared_batch(
    name: str, options: dict[str, Any], small_base: Base, tmp_path: Path, runner: Runner
) -> None:
    adapted = fit(small_base, name, tmp_path, **options)
    asked = [
        (ask(f"the {colour} river"), Sampling(max_tokens=12, temperature=t, seed=i, n=1 + i % 2))
        for i, (colour, t) in enumerate([("red", 0.0), ("green", 0.9), ("blue", 0.7), ("white", 0.0), ("red", 0.9)])
    ]
    alone = [adapted.generate([c], s) for c, s in asked]
    plain_engine = adapted.engine
    other = Adapted(small_base, small_base.model, method="zero-shot", options=adapted.options)
    engine, beside = BatchedEngine(plain_engine, runner), BatchedEngine(other.engine, runner)
    decode_through(adapted, engine)
    decode_through(other, beside)

    def one(request: tuple[Adapted, Conversation, Sampling]) -> list[Answer]:
        with runner.turn:
            return request[0].generate([request[1]], request[2])

    mixed = [(model, c, s) for c, s in asked for model in (adapted, other)]
    with ThreadPoolExecutor(len(mixed)) as pool:
        together = list(pool.map(one, mixed))[::2]
    for a, b in zip(together, alone, strict=True):
        same(a, b)
        assert [x.extra_tokens for x in a] == [x.extra_tokens for x in b]
        assert [set(x.details) for x in a] == [set(x.details) for x in b]


def test_which_methods_are_streamed(small_base: Base, tmp_path: Path) -> None:
    found = {name: is_plain(fit(small_base, name, tmp_path / name, **options)) for name, options in METHODS}
    assert {name for name, plain in found.items() if plain} == {
        "zero-shot", "few-shot", "prompt-tuning", "prefix-tuning", "prompt-generator", "lora"
    }  # fmt: skip


def test_an_encoder_decoder_answers_by_turns(tmp_path: Path, runner: Runner) -> None:
    base = load_base(save_encoder_decoder(tmp_path / "t5"), dtype="float32", device="cpu")
    plain = Engine(base.model, base.renderer)
    engine = BatchedEngine(plain, runner)
    assert engine.batch is None

    def one(i: int) -> list[Answer]:
        with runner.turn:
            return engine.generate([ask(f"river {i}")], Sampling(max_tokens=9, temperature=0.8, seed=i))

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(one, range(6)))
    for i, answers in enumerate(together):
        same(answers, plain.generate([ask(f"river {i}")], Sampling(max_tokens=9, temperature=0.8, seed=i)))


# -- weights in memory --------------------------------------------------------------------------------------------------


def test_models_over_one_base_hold_its_weights_once(tmp_path: Path) -> None:
    base = load_base(save(tmp_path / "base"), dtype="float32", device="cpu")
    adapted = fit(base, "lora", tmp_path / "fit", rank=2, learning_rate=0.05)
    before = adapted.generate([ask("a red stone")], Sampling(max_tokens=12))
    untouched = Engine(base.model, base.renderer).generate([ask("a red stone")], Sampling(max_tokens=12))
    own = sum(p.numel() * p.element_size() for p in base.model.hf.parameters())
    assert adapted.engine.model.share_weights(base.model) == own
    there = {p.data_ptr() for p in base.model.hf.parameters()}
    apart = [n for n, p in adapted.engine.model.hf.named_parameters() if p.data_ptr() not in there]
    assert apart
    assert all("lora_" in name for name in apart)
    same(adapted.generate([ask("a red stone")], Sampling(max_tokens=12)), before)
    same(Engine(base.model, base.renderer).generate([ask("a red stone")], Sampling(max_tokens=12)), untouched)
    assert before[0].tokens != untouched[0].tokens


def test_weights_that_were_trained_are_not_shared(tmp_path: Path) -> None:
    base = load_base(save(tmp_path / "base"), dtype="float32", device="cpu")
    adapted = fit(base, "full", tmp_path / "fit", learning_rate=0.01)
    before = {n: p.detach().clone() for n, p in adapted.engine.model.hf.named_parameters()}
    adapted.engine.model.share_weights(base.model)
    for name, parameter in adapted.engine.model.hf.named_parameters():
        assert torch.equal(parameter, before[name])


def test_packs_of_shared_weights_are_made_once(tmp_path: Path) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 packs on this processor")
    import tiny

    folder = tiny.save(tmp_path / "base")
    base = load_base(folder, dtype="bfloat16", device="cpu")
    # the tiny model's layers are below the size that is packed, so the bound is taken away
    import kamerton.base.linears as linears

    smallest, linears._SMALLEST = linears._SMALLEST, 1
    try:
        adapted = fit(base, "lora", tmp_path / "fit", rank=2, learning_rate=0.05)
        adapted.engine.model.share_weights(base.model)
        with base.model.inference(), adapted.engine.model.inference():
            ours = set(map(id, adapted.engine.model._linears.by_state().values()))  # type: ignore[union-attr]
            theirs = set(map(id, base.model._linears.by_state().values()))  # type: ignore[union-attr]
        assert theirs <= ours
        assert theirs
    finally:
        linears._SMALLEST = smallest


# -- text that grows ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 399), min_size=1, max_size=40),
    st.lists(st.sampled_from(["er", "a", " st", "�", "\n"]), max_size=2),
)
def test_pieces_are_the_text(small_base: Base, tokens: list[int], stop: list[str]) -> None:
    engine = Engine(small_base.model, small_base.renderer)
    sampling = Sampling(stop=tuple(stop))
    stopped = engine._stopping(sampling)
    end = next((i for i in range(len(tokens)) if stop and stopped(tokens[: i + 1])), len(tokens) - 1)
    tokens = tokens[: end + 1]
    growing, text = GrowingText(engine, sampling), ""
    for i, token in enumerate(tokens):
        text += growing.add(token, last=i == end)
        if i < end and "�" not in engine.renderer.decode(tokens[: i + 1]):
            whole = engine.renderer.decode(tokens[: i + 1])
            assert text == whole[: safe_length(whole, sampling.stop)]  # nothing is held back that is sure
    assert text == engine.text(tokens, sampling)


def test_pieces_of_the_demo_models_tokens_are_whole_characters(demo: Base) -> None:
    engine = Engine(demo.model, demo.renderer)
    said = "naïve 😀 Grüße, 你好 مرحبا\n\n  two  spaces"
    tokens = demo.renderer.answer(said)
    growing = GrowingText(engine, Sampling())
    pieces = [growing.add(t, last=t == tokens[-1]) for t in tokens]
    assert "".join(pieces) == said
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([p for p in pieces if p]) > 8


# -- whose turn it is ---------------------------------------------------------------------------------------------------


def test_a_turn_goes_to_who_asked_first() -> None:
    turn, order = Turn(), []
    turn.__enter__()
    threads = []
    for i in range(6):

        def work(i: int = i) -> None:
            with turn:
                order.append(i)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while len(turn._waiting) <= i:
            time.sleep(0.001)
    with turn:  # its holder does not wait for itself
        pass
    assert order == []
    with turn.given_up():
        for thread in threads:
            thread.join(10)
        assert order == list(range(6))
    assert turn.mine
    turn.__exit__()
    assert not turn.mine


def test_one_at_a_time_has_the_turn() -> None:
    turn, inside, most = Turn(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(100):
            with turn:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 1


def test_settings_are_compared_without_seed_and_length() -> None:
    jobs = [
        Job(
            [[1]],
            [1],
            dataclasses.replace(Sampling(temperature=0.5), seed=i, max_tokens=i + 1),
            lambda _: None,
            lambda _: False,
        )
        for i in range(3)
    ]
    assert len({job.key for job in jobs}) == 1

"""Generation and scoring against transformers, and their promises about batches, seeds and memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from kamerton.base import Base, CausalModel, Front, load_base
from kamerton.errors import KamertonError
from kamerton.inference import Engine, Sampling
from kamerton.inference import generate as decoding
from kamerton.inference import rank as ranking
from kamerton.inference.prefix import common_prefix, fill
from kamerton.inference.sampling import draw, filter_logits, next_tokens, stream_key, uniforms
from kamerton.inference.score import Tree
from kamerton.tasks.example import Conversation, conversation

TINY = ["llama", "qwen3", "gemma2", "gemma3", "mistral-window", "gpt2"]
TEXTS = [
    "Why?",
    "A much longer question, with a clause or two, about nothing at all.",
    "ab",
    "Name three rivers.",
    "x y z",
]
DEMO_TEXTS = [
    "What is the capital of France?",
    "Hi",
    "Translate to German: The weather is nice today, and we are going for a walk along the river with the dog.",
    "List three colours.",
    "What is 12 + 30? Answer with a number only.",
]


def asked(*texts: str, system: str | None = None) -> list[Conversation]:
    head = [("system", system)] if system is not None else []
    return [conversation([*head, ("user", text)]) for text in texts]  # type: ignore[list-item]


def engine(base: Base, **options: Any) -> Engine:
    return Engine(base.model, base.renderer, **options)


@torch.no_grad()
def greedy(base: Base, prompt: list[int], max_tokens: int) -> list[int]:
    """transformers' own greedy answer, one prompt at a time."""
    out = base.model.hf.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=max_tokens, pad_token_id=0, eos_token_id=list(base.renderer.end_ids),
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def log_probs(base: Base, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """(n,) log-probabilities of an answer's tokens by transformers itself."""
    logits = base.model.hf(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].float()
    predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return predicted.gather(1, torch.tensor(list(answer))[:, None])[:, 0]


# -- greedy ----------------------------------------------------------------------------------------------------------------


def test_greedy_answers_of_the_demo_model_equal_transformers(demo: Base) -> None:
    conversations = asked(*DEMO_TEXTS)
    conversations.append(conversation([("user", "Hi"), ("assistant", "Hello!"), ("user", "What is your name?")]))
    answers = engine(demo).generate(conversations, Sampling(max_tokens=10))
    for asked_, answer in zip(conversations, answers, strict=True):
        prompt = demo.renderer.prompt(asked_)
        assert list(answer.tokens) == greedy(demo, prompt, 10)
        assert answer.prompt_tokens == len(prompt)
        expected = log_probs(demo, prompt, answer.tokens)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-3, rtol=1e-4)
    assert {a.finish for a in answers} == {"stop", "length"}, "the questions should show both"


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("room", [8192, 150])
def test_greedy_answers_of_tiny_models_equal_transformers(
    name: str, room: int, tiny_base: Callable[[str], Base]
) -> None:
    base = tiny_base(name)
    conversations = asked(*TEXTS, system="S" * 9)
    answers = engine(base, max_batch_tokens=room).generate(conversations, Sampling(max_tokens=20))
    for asked_, answer in zip(conversations, answers, strict=True):
        assert list(answer.tokens) == greedy(base, base.renderer.prompt(asked_), 20)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_soft_prompts_and_trained_keys_stand_before_every_prompt(name: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    soft = torch.randn(3, 32)
    adapted = CausalModel(base.model.hf, front=lambda: Front(embeddings=soft))
    keys = adapted.prefill(()).keys
    keyed = CausalModel(base.model.hf, front=lambda: Front(keys=keys))
    for conversations in (asked(*TEXTS), asked("one"), asked("Q1", "R2", "S3")):
        both = [
            Engine(model, base.renderer).generate(conversations, Sampling(max_tokens=12)) for model in (adapted, keyed)
        ]
        for asked_, answer, other in zip(conversations, *both, strict=True):
            prompt = base.renderer.prompt(asked_)
            assert answer.prompt_tokens == len(prompt) + 3
            assert answer.tokens == other.tokens
            sequence = torch.cat([soft, base.model.hf.get_input_embeddings()(torch.tensor([*prompt, *answer.tokens]))])
            with torch.no_grad():
                logits = base.model.hf(inputs_embeds=sequence[None], use_cache=False).logits[0, 2 + len(prompt) : -1]
            assert logits.argmax(-1).tolist() == list(answer.tokens)
        scores = Engine(adapted, base.renderer).score(conversations, [["a", "ab"]] * len(conversations))
        others = Engine(keyed, base.renderer).score(conversations, [["a", "ab"]] * len(conversations))
        np.testing.assert_allclose(scores, others, atol=1e-4)


def test_empty_calls(tiny_base: Callable[[str], Base]) -> None:
    e = engine(tiny_base("llama"))
    assert e.generate([], Sampling()) == []
    assert e.score([], []) == []
    assert e.score(asked("a"), [[]]) == [[]]
    assert e.token_log_probs([], []) == []


# -- sampling ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [8192, 400, 100])
def test_samples_do_not_depend_on_the_batch(room: int, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    sampling = Sampling(max_tokens=9, temperature=1.0, top_k=40, top_p=0.95, n=5, seed=3)
    conversations = asked(*TEXTS)
    together = engine(base).generate(conversations, sampling)
    for i, asked_ in enumerate(conversations):
        alone = engine(base).generate([asked_], sampling)
        assert [a.tokens for a in alone] == [a.tokens for a in together[5 * i : 5 * i + 5]]
    backwards = engine(base, max_batch_tokens=room).generate(conversations[::-1], sampling)
    for i in range(5):
        assert [a.tokens for a in backwards[5 * (4 - i) : 5 * (4 - i) + 5]] == [
            a.tokens for a in together[5 * i : 5 * i + 5]
        ]
    fewer = engine(base).generate(conversations[:1], Sampling(**{**vars(sampling), "n": 2}))
    assert [a.tokens for a in fewer] == [a.tokens for a in together[:2]]


def test_samples_differ_by_seed_number_and_repetition(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    one = engine(base).generate(asked("a", "a"), Sampling(max_tokens=12, temperature=1.0, n=3, seed=0))
    two = engine(base).generate(asked("a", "a"), Sampling(max_tokens=12, temperature=1.0, n=3, seed=1))
    assert len({a.tokens for a in [*one, *two]}) == 12
    alone = engine(base).generate(asked("a"), Sampling(max_tokens=12, temperature=1.0, n=6, seed=0))
    assert [a.tokens for a in alone] == [a.tokens for a in one], "a repeated question goes on in its own samples"


def test_sampled_tokens_carry_the_log_probabilities_of_the_model_itself(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("gemma2")
    conversations = asked(*TEXTS)
    sampling = Sampling(max_tokens=12, temperature=1.7, top_k=20, top_p=0.9, min_p=0.01, n=2, seed=5)
    answers = engine(base).generate(conversations, sampling)
    for i, answer in enumerate(answers):
        expected = log_probs(base, base.renderer.prompt(conversations[i // 2]), answer.tokens)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.001},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.6, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 2.0, "top_k": 2000, "top_p": 0.999},
    ],
)
def test_filters_equal_those_of_transformers(options: dict[str, Any]) -> None:
    sampling = Sampling(**options)
    logits = torch.randn(8, 1000) * torch.tensor([0.1, 0.5, 1, 2, 3, 5, 8, 20])[:, None]
    processors = [reference.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        processors.append(reference.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p:
        processors.append(reference.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(reference.MinPLogitsWarper(sampling.min_p))
    expected = logits
    for processor in processors:
        expected = processor(None, expected)
    ours = filter_logits(logits, sampling)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("size", [7, 256, 700])
def test_draws_follow_the_distribution(size: int) -> None:
    logits = torch.randn(1, size) * 2
    logits[0, 3] = -torch.inf
    n = 60_000
    keys = np.array([stream_key(1, [5, 6], 0)] * n, dtype=np.uint64)
    noise = uniforms(keys, np.arange(n, dtype=np.uint64))
    tokens = torch.cat([draw(logits.expand(2000, -1), noise[i : i + 2000]) for i in range(0, n, 2000)])
    counts = np.bincount(tokens.numpy(), minlength=size)
    expected = logits.softmax(-1)[0].double().numpy() * n
    assert counts[3] == 0
    likely = expected > 5
    rest = (counts[~likely].sum(), expected[~likely].sum())
    f_obs = [*counts[likely], *([rest[0]] if rest[1] > 1 else [])]
    f_exp = np.array([*expected[likely], *([rest[1]] if rest[1] > 1 else [])])
    assert scipy.stats.chisquare(f_obs, f_exp * sum(f_obs) / f_exp.sum()).pvalue > 1e-4


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    noise = np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-53])
    tokens = draw(probabilities.log().expand(6, -1), noise)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]


def test_random_numbers_are_uniform_and_independent_between_streams() -> None:
    keys = np.array([stream_key(0, [i], 0) for i in range(400)], dtype=np.uint64)
    table = np.stack([uniforms(keys, np.full(400, step, dtype=np.uint64)) for step in range(100)])
    assert scipy.stats.kstest(table.ravel(), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.02
    assert len({stream_key(s, p, n) for s in range(3) for p in ([1], [2], [1, 2]) for n in range(3)}) == 27


def test_one_token_samples_follow_the_models_distribution(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    n = 4000
    answers = engine(base).generate(asked("q"), Sampling(max_tokens=1, temperature=1.0, n=n, seed=0))
    with torch.no_grad():
        logits = base.model.hf(torch.tensor([base.renderer.prompt(asked("q")[0])])).logits[0, -1]
    expected = logits.softmax(-1).double().numpy() * n
    counts = np.bincount([a.tokens[0] for a in answers], minlength=len(expected))
    likely = expected > 5
    f_exp = np.array([*expected[likely], expected[~likely].sum()])
    f_exp *= n / f_exp.sum()
    assert scipy.stats.chisquare([*counts[likely], counts[~likely].sum()], f_exp).pvalue > 1e-4


def test_each_step_draws_a_number_of_its_own(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    prompt = base.renderer.prompt(asked("q")[0])
    answers = engine(base).generate(asked("q"), Sampling(max_tokens=2, temperature=1.0, top_k=3, n=1500))
    pairs = [a.tokens for a in answers if len(a.tokens) == 2]
    first = max({p[0] for p in pairs}, key=[p[0] for p in pairs].count)
    with torch.no_grad():
        logits = base.model.hf(torch.tensor([[*prompt, first]])).logits[0, -1]
    kept = logits.topk(3)
    counts = np.array([sum(p == (first, token) for p in pairs) for token in kept.indices.tolist()])
    expected = kept.values.softmax(-1).double().numpy()
    assert scipy.stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.2}, "top_p is 1.2"),
        ({"min_p": 2}, "min_p is 2"),
        ({"stop": ("",)}, "stop is"),
        ({"n": 0}, "n is 0"),
        ({"n": True}, "n is True"),
        ({"seed": None}, "seed is None"),
    ],
)
def test_settings_outside_their_range_get_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KamertonError) as caught:
        Sampling(**options)
    assert str(caught.value).startswith(f"sampling: {words}")
    assert "; use " in str(caught.value)


# -- stopping ----------------------------------------------------------------------------------------------------------------


def test_stop_strings_cut_the_text_also_across_tokens(demo: Base) -> None:
    question = asked("List the days of the week, separated by commas.", "What is the capital of France?")
    free = engine(demo).generate(question, Sampling(max_tokens=16))
    for width in (1, 5, 12):
        start = len(free[0].text) // 3
        stop = free[0].text[start : start + width]
        first = free[0].text.find(stop)
        cut = engine(demo, max_batch_tokens=70).generate(question, Sampling(max_tokens=16, stop=("§§", stop)))
        assert cut[0].text == free[0].text[:first]
        assert cut[0].finish == "stop"
        assert cut[0].tokens == free[0].tokens[: len(cut[0].tokens)]
        assert stop in demo.renderer.decode(cut[0].tokens)
        assert stop not in demo.renderer.decode(cut[0].tokens[:-1])
        if stop not in free[1].text:
            assert (cut[1].text, cut[1].tokens) == (free[1].text, free[1].tokens)


def test_the_first_of_two_stop_strings_cuts(demo: Base) -> None:
    answer = engine(demo).generate(asked("What is the capital of France?"), Sampling(max_tokens=20, stop=("ris", "Pa")))
    assert answer[0].text == "The capital of France is "


def test_the_end_token_is_in_the_tokens_and_not_in_the_text(demo: Base) -> None:
    answer = engine(demo).generate(asked("What is the capital of France?"), Sampling(max_tokens=20))[0]
    assert answer.finish == "stop"
    assert answer.tokens[-1] == demo.renderer.end_id
    assert len(answer.logprobs) == len(answer.tokens)
    assert answer.text == "The capital of France is Paris."


def test_any_end_token_ends_an_answer(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    free = engine(base).generate(asked("abc"), Sampling(max_tokens=20))[0]
    other = load_base(base.info.source, dtype="float32")
    other.renderer.end_ids = (*other.renderer.end_ids, free.tokens[4])
    answer = engine(other).generate(asked("abc"), Sampling(max_tokens=20))[0]
    at = free.tokens.index(free.tokens[4])
    assert answer.tokens == free.tokens[: at + 1]
    assert (answer.finish, len(free.tokens)) == ("stop", 20)


def test_an_answer_ends_where_the_models_positions_end(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("gpt2")  # its positions are a table: one more would be an error
    longest = base.model.max_length
    assert longest == 512
    overhead = len(base.renderer.prompt(asked("")[0]))
    fits = asked("x" * (longest - overhead - 3), "short")
    answers = engine(base).generate(fits, Sampling(max_tokens=10))
    assert (len(answers[0].tokens), answers[0].finish) == (3, "length")
    assert len(answers[1].tokens) == 10
    with pytest.raises(KamertonError, match=r"conversation 1: its prompt has 512 tokens.*512 positions"):
        engine(base).generate([fits[1], *asked("x" * (longest - overhead))], Sampling(max_tokens=10))
    with pytest.raises(KamertonError, match="its answer needs 4"):
        engine(base).score(fits, [["abc"]] * 2)


# -- streaming ---------------------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_text_in_whole_characters(demo: Base) -> None:
    question = asked("Answer with emojis and Chinese characters only: 你好 🎉")[0]
    sampling = Sampling(max_tokens=24, temperature=1.5, seed=4, n=3)
    pieces = list(engine(demo).stream(question, sampling))
    answer = engine(demo).generate([question], Sampling(max_tokens=24, temperature=1.5, seed=4))[0]
    assert "".join(pieces) == answer.text
    assert len(pieces) > 5
    assert all(pieces)
    whole = answer.text.count("\ufffd")
    assert sum(piece.count("\ufffd") for piece in pieces) == whole


def test_a_stream_never_shows_a_stop_string_or_its_beginning(demo: Base) -> None:
    question = asked("What is the capital of France?")[0]
    pieces = list(engine(demo).stream(question, Sampling(max_tokens=20, stop=(" France is", "zzz"))))
    assert "".join(pieces) == "The capital of"


def test_a_stream_can_be_left_early(demo: Base) -> None:
    e = engine(demo)
    stream = e.stream(asked("Count to a hundred.")[0], Sampling(max_tokens=50))
    next(stream)
    stream.close()
    assert 0 < e.usage.generated_tokens < 5
    assert e.model._inferring == 0


# -- continuous batching -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), n=st.integers(1, 4), room=st.integers(20, 300),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_room_gives_the_same_answers(
    lengths: list[int], n: int, room: int, seed: int, tiny_base: Callable[[str], Base]
) -> None:
    base = tiny_base("llama")
    conversations = asked(*["q" * length + chr(65 + i) for i, length in enumerate(lengths)])
    sampling = Sampling(max_tokens=8, temperature=1.0, n=n, seed=seed, stop=("e",))
    plenty = engine(base, max_batch_tokens=10**6).generate(conversations, sampling)
    tight = engine(base, max_batch_tokens=room).generate(conversations, sampling)
    assert [(a.tokens, a.text, a.finish) for a in plenty] == [(a.tokens, a.text, a.finish) for a in tight]


def test_memory_stays_in_bounds(tiny_base: Callable[[str], Base], monkeypatch: pytest.MonkeyPatch) -> None:
    base, made = tiny_base("llama"), []
    original = decoding.RowCache

    def spy(capacity: int, columns: int) -> Any:
        made.append((capacity, columns))
        return original(capacity, columns)

    monkeypatch.setattr(decoding, "RowCache", spy)
    conversations = asked(*["x" * (3 * i) + "y" for i in range(40)], "z" * 200)
    engine(base, max_batch_tokens=600).generate(conversations, Sampling(max_tokens=5))
    assert all(capacity * columns <= 600 for capacity, columns in made)
    assert len(made) > 1, "one long prompt must not take the room of all others"
    assert max(capacity for capacity, _ in made) >= 8


def test_progress_counts_every_answer(tiny_base: Callable[[str], Base]) -> None:
    told: list[tuple[int, int]] = []
    tokens: dict[int, list[int]] = {}
    answers = engine(tiny_base("llama"), max_batch_tokens=200).generate(
        asked(*TEXTS), Sampling(max_tokens=6, n=2, temperature=1.0),
        progress=lambda done, total: told.append((done, total)),
        on_token=lambda i, token: tokens.setdefault(i, []).append(token),
    )  # fmt: skip
    assert told == [(i + 1, 10) for i in range(10)]
    assert [tuple(tokens[i]) for i in range(10)] == [a.tokens for a in answers]


# -- prefixes and batches ----------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=5))
def test_the_common_prefix_leaves_every_prompt_a_token(prompts: list[list[int]]) -> None:
    length = common_prefix(prompts)
    if len(prompts) < 2:
        assert length == 0
        return
    naive = 0
    while all(len(p) > naive + 1 for p in prompts) and len({tuple(p[: naive + 1]) for p in prompts}) == 1:
        naive += 1
    assert length == naive


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(1, 100), st.integers(0, 5))
def test_batches_take_every_row_once_and_stay_below_the_limit(lengths: list[int], limit: int, extra: int) -> None:
    lengths.sort(reverse=True)
    batches = list(fill(lengths, limit, extra))
    assert list(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + extra) <= limit


def test_a_shared_prefix_is_computed_once(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    conversations = asked(*TEXTS, system="s" * 100)
    prompts = [base.renderer.prompt(c) for c in conversations]
    shared = common_prefix(prompts)
    assert shared > 100
    e = engine(base)
    before = base.model.work.copy()
    e.generate(conversations, Sampling(max_tokens=1, n=3))
    own = sum(len(p) - shared for p in prompts)
    assert e.usage.computed_tokens == shared + own
    assert (base.model.work - before).tokens == shared + own
    assert e.usage.asked_tokens == 3 * sum(map(len, prompts))
    assert e.usage.generated_tokens == 15
    one = engine(base)
    one.generate(conversations[:1], Sampling(max_tokens=1, n=50, temperature=1.0))
    assert one.usage.computed_tokens == len(prompts[0]), "samples of one prompt share it"
    scored = engine(base)
    scored.score(conversations, [["ab", "ac", "b"]] * 5)
    assert scored.usage.computed_tokens == shared + own + 5 * 4, "the inner nodes are a, ab, ac and b"
    assert scored.usage.outputs == 5 * 5
    assert scored.usage.seconds > 0


# -- scoring -----------------------------------------------------------------------------------------------------------------

CHOICES = ["yes", "yes, please", "no", "not at all", "never", "", "ye", "🎉"]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("room", [8192, 64])
def test_scores_of_tiny_models_equal_one_by_one(name: str, room: int, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    conversations = asked(*TEXTS, system="sys")
    continuations = [CHOICES[i:] + CHOICES[: i // 2] for i in range(len(TEXTS))]
    told: list[int] = []
    scores = engine(base, max_batch_tokens=room).score(
        conversations, continuations, progress=lambda done, total: told.append(done)
    )
    assert told[-1] == len(TEXTS)
    for asked_, texts, row in zip(conversations, continuations, scores, strict=True):
        prompt = base.renderer.prompt(asked_)
        expected = [float(log_probs(base, prompt, base.renderer.answer(text)).sum()) for text in texts]
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=1e-4)


def test_scores_of_the_demo_model_equal_one_by_one(demo: Base) -> None:
    conversations = asked(*DEMO_TEXTS[:2])
    scores = engine(demo).score(conversations, [CHOICES] * 2)
    for asked_, row in zip(conversations, scores, strict=True):
        prompt = demo.renderer.prompt(asked_)
        expected = [float(log_probs(demo, prompt, demo.renderer.answer(text)).sum()) for text in CHOICES]
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=1e-4)


def test_the_best_score_of_a_greedy_answer_is_its_own(demo: Base) -> None:
    e = engine(demo)
    answer = e.generate(asked(DEMO_TEXTS[0]), Sampling(max_tokens=20))[0]
    (scores,) = e.score(asked(DEMO_TEXTS[0]), [[answer.text, "Paris", "The capital of Peru is Lima."]])
    assert scores[0] == pytest.approx(sum(answer.logprobs), abs=1e-3)
    assert scores[0] == max(scores)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(("room", "part"), [(8192, 1), (64, 1), (8192, 8)])
def test_the_choice_that_ranks_first_has_the_greatest_score(
    name: str, room: int, part: int, tiny_base: Callable[[str], Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "SMALLEST", 16)
    monkeypatch.setattr(ranking, "PART", part)  # 1: searched to the end; 8: given up early
    base = tiny_base(name)
    texts = [*TEXTS, *(f"{a}{b}" for a in "abcdefg" for b in "xyz")]
    words = ["".join(w) for w in itertools.product("abcde", repeat=3)]  # as long as one another: none wins by length
    choices = [[*words[i:], *words[:i], "abcabc", *words[:5]] for i in range(len(texts))]
    told: list[int] = []
    e = engine(base, max_batch_tokens=room)
    ranked = e.rank(asked(*texts), choices, progress=lambda done, _: told.append(done))
    scores = engine(base).score(asked(*texts), choices)
    for row, best in zip(scores, ranked, strict=True):
        assert row[best] == pytest.approx(max(row), abs=1e-4)
        assert best == row.index(row[best]), "the first of equals"
    assert told[-1] == len(texts)
    assert len({choices[i][best] for i, best in enumerate(ranked)}) >= 3
    whole = engine(base)
    whole.score(asked(*texts), choices)
    if part == 1:
        assert e.usage.outputs < whole.usage.outputs
    else:  # a search that is given up must not cost much
        assert e.usage.computed_tokens < 1.5 * whole.usage.computed_tokens
    assert e.usage.asked_tokens == whole.usage.asked_tokens


def test_ranking_needs_choices(tiny_base: Callable[[str], Base]) -> None:
    e = engine(tiny_base("llama"))
    assert e.rank([], []) == []
    assert e.rank(asked("a"), [["only"]]) == [0]
    for choices in ([], [[]]):
        with pytest.raises(ValueError, match="none of them empty"):
            e.rank(asked("a"), choices)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_token_log_probs_equal_one_by_one(name: str, tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base(name)
    generator = torch.Generator().manual_seed(0)

    def some(n: int) -> list[int]:
        return torch.randint(3, 260, (n,), generator=generator).tolist()

    prompts = [some(5), some(2), some(30), [9], some(5)]
    prompts.append(list(prompts[0]))  # two continuations of one prompt
    continuations = [some(n) for n in (4, 1, 17, 40, 6, 9)]
    values = engine(base, max_batch_tokens=60).token_log_probs(prompts, continuations)
    for prompt, continuation, row in zip(prompts, continuations, values, strict=True):
        torch.testing.assert_close(row, log_probs(base, prompt, continuation), atol=1e-3, rtol=1e-4)
        assert not row.is_inference(), "it may take part in training"
    with pytest.raises(ValueError, match="without tokens"):
        engine(base).token_log_probs([[]], [[5]])
    with pytest.raises(ValueError, match="1 prompts, 2 continuations"):
        engine(base).token_log_probs([[5]], [[5], [6]])
    with pytest.raises(ValueError, match="1 conversations, 2 sequences"):
        engine(base).score(asked("a"), [["b"], ["c"]])


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8))
def test_a_tree_holds_every_path_once(paths: list[list[int]]) -> None:
    tree = Tree(paths)
    edges = tree.edges.tolist()
    assert len(set(map(tuple, edges))) == len(edges), "an edge is computed once"
    assert [parent for parent, _ in edges] == sorted(parent for parent, _ in edges)
    inner = {tuple(p[:i]) for p in paths for i in range(1, len(p))}
    assert len(tree) == len(inner)
    for path, walk in zip(paths, tree.paths, strict=True):
        assert [edges[e][1] for e in walk] == path
        for depth, edge in enumerate(walk):
            parent = edges[edge][0]
            if depth == 0:
                assert parent == 0
            else:
                seen = tree.sees[parent - 1].nonzero().flatten().tolist()
                assert [tree.tokens[node] for node in seen] == path[:depth]
                assert tree.depths[parent - 1] == depth
    values = torch.arange(1.0, len(edges) + 1)
    assert tree.totals(values) == [sum(float(values[e]) for e in walk) for walk in tree.paths]


# -- bfloat16 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bfloat16_is_as_exact_as_transformers_is_in_it(demo: Base) -> None:
    base = demo.reload(dtype="bfloat16")
    conversations = asked(*DEMO_TEXTS)
    answers = engine(base).generate(conversations, Sampling(max_tokens=8))
    texts = ["Paris", "no idea", "Paris is a town"]
    prompts = [demo.renderer.prompt(asked_) for asked_ in conversations]
    tokens = [demo.renderer.answer(texts[i % 3]) for i in range(5)]
    scores = engine(base).token_log_probs(prompts, tokens)
    ours, theirs = [], []
    for i, prompt in enumerate(prompts):
        for values, answer in ((torch.tensor(answers[i].logprobs), answers[i].tokens), (scores[i], tokens[i])):
            exact = log_probs(demo, prompt, answer)
            ours.append((values - exact).abs())
            theirs.append((log_probs(base, prompt, answer) - exact).abs())
    assert torch.cat(ours).mean() < 1.5 * torch.cat(theirs).mean() + 0.01
    assert torch.cat(ours).max() < 1.5


def test_next_tokens_reads_bfloat16_logits() -> None:
    logits = torch.randn(4, 50).bfloat16()
    tokens, values = next_tokens(logits, Sampling(), [0] * 4, [0] * 4)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0])

"""`kamerton serve` through the client that people use, and with requests that they should not send."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from kamerton.base import Base, load_base
from kamerton.errors import KamertonError
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted
from kamerton.serving.settings import Settings
from kamerton.tasks.example import conversation
from served import ASKED, MESSAGES, TURNS, Running, running
from tiny import fit

pytest_plugins = ("tiny", "served")
pytestmark = pytest.mark.usefixtures("one_thread")


# -- the client that people use -----------------------------------------------------------------------------------------


def test_answers_are_those_of_generate(client: openai.OpenAI, expected: Callable[..., list[Any]]) -> None:
    def one(key: tuple[str, int, float]) -> Any:
        name, n, temperature = key
        return client.chat.completions.create(
            model=name, messages=MESSAGES, max_tokens=14, temperature=temperature, seed=11, n=n, logprobs=True
        )

    with ThreadPoolExecutor(len(ASKED)) as pool:  # all at once: nobody's answer depends on the others
        said = list(pool.map(one, ASKED))
    for key, answer in zip(ASKED, said, strict=True):
        alone = expected(*key)
        assert [c.message.content for c in answer.choices] == [a.text for a in alone]
        assert [c.finish_reason for c in answer.choices] == [a.finish for a in alone]
        assert answer.usage.prompt_tokens == alone[0].prompt_tokens
        assert answer.usage.completion_tokens == sum(a.generated_tokens for a in alone)
        for choice, a in zip(answer.choices, alone, strict=True):
            ours = [t.logprob for t in choice.logprobs.content]
            np.testing.assert_allclose(ours, a.logprobs[: len(ours)], atol=1e-4)
    assert len({e[0].text for key in ASKED if key[1:] == (1, 0.0) for e in [expected(*key)]}) > 3


def test_what_methods_tell_of_an_answer_is_in_the_message(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="vote", messages=MESSAGES, max_tokens=8, seed=1)
    details = answer.choices[0].message.details  # type: ignore[attr-defined]
    assert len(details["samples"]) == 3
    assert answer.choices[0].message.content in details["samples"]


@pytest.mark.parametrize("name", ["small", "vote"])
def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {
        "model": name,
        "messages": MESSAGES,
        "max_tokens": 20,
        "seed": 4,
        "n": 2,
        "temperature": 0.9,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for i in range(2):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == i]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == whole.choices[i].message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [whole.choices[i].finish_reason]
        assert len(own) > (4 if name == "small" else 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_tokens_come_as_they_are_decoded(server: Running, client: openai.OpenAI) -> None:
    """The first piece is there while the last is not decoded yet."""
    stream = client.chat.completions.create(
        model="small", messages=MESSAGES, max_tokens=60, temperature=1.0, seed=2, stream=True
    )
    pieces = iter(stream)
    next(pieces)
    assert next(pieces).choices[0].finish_reason is None
    with server.hub.runner.turn:
        batch = server.hub.models["small"].engine.batch
        assert batch is not None
        written = len(batch.rows[0].row.tokens) if batch.rows else 60
    assert written < 60
    rest = list(pieces)
    assert rest[-1].choices[0].finish_reason in ("stop", "length")


def test_stop_strings_end_an_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "small", "messages": MESSAGES, "max_tokens": 40, "seed": 7, "temperature": 1.0}
    free = client.chat.completions.create(**asked).choices[0].message.content
    assert free is not None
    word = free[5:7]
    answer = client.chat.completions.create(**asked, stop=[word, "never said"], logprobs=True).choices[0]
    assert answer.message.content == free[: free.index(word)]
    assert answer.finish_reason == "stop"
    chunks = client.chat.completions.create(**asked, stop=word, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == free[: free.index(word)]


def test_completions_go_on_from_texts(client: openai.OpenAI, small_base: Base) -> None:
    renderer = small_base.renderer
    texts = ["the green", "a stone and"]
    answer = client.completions.create(model="small", prompt=texts, max_tokens=6, temperature=0, n=2, logprobs=3)
    for i, choice in enumerate(answer.choices):
        tokens: list[int] = []
        for _ in range(6):
            row = small_base.model.forward([[*renderer.raw(texts[i // 2]), *tokens]])  # type: ignore[attr-defined]
            tokens.append(int(small_base.model.output(row.last())[0].argmax()))
            if tokens[-1] in renderer.end_ids:
                break
        assert choice.text == renderer.decode(tokens)
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        for own, top in zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs or [], strict=True):
            assert own == pytest.approx(max(top.values()), abs=1e-5)
    by_ids = client.completions.create(model="small", prompt=renderer.raw(texts[0]), max_tokens=6, temperature=0)
    assert by_ids.choices[0].text == answer.choices[0].text
    streamed = list(client.completions.create(model="small", prompt=texts, max_tokens=6, temperature=0, stream=True))
    for i in range(2):
        joined = "".join(c.choices[0].text for c in streamed if c.choices[0].index == i)
        assert joined == answer.choices[2 * i].text


def test_likeliest_tokens_come_with_their_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="lora", messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content
    said = b"".join(bytes(t.bytes or []) for t in found.content)
    assert said.decode("utf-8", "replace") == answer.choices[0].message.content
    for token in found.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(max(t.logprob for t in token.top_logprobs), abs=1e-5)


def test_a_request_without_a_seed_differs_from_the_next(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=12).choices[0].message.content
        for _ in range(4)
    }
    assert len(texts) == 4


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list().data] == ["small", "lora", "soft", "few", "vote", "chain"]
    assert client.models.retrieve("lora").owned_by == "kamerton"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_embeddings_are_those_of_the_encoder(models: dict[str, Adapted]) -> None:
    encoder = pytest.importorskip("kamerton.retrieval.encoder")
    try:
        encoder.find_encoder("minilm")
    except KamertonError:
        pytest.skip("the embedded encoder is not installed")
    texts = ["a green river", "the letter"]
    with running({"small": models["small"]}, Settings(embeddings="minilm")) as made:
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0)
        coded = client.embeddings.create(model="minilm", input=texts)  # the client asks for base64
        plain = client.embeddings.create(model="minilm", input=texts[0], encoding_format="float")
        expected = encoder.load_encoder("minilm").questions(texts)
        np.testing.assert_allclose([d.embedding for d in coded.data], expected, atol=1e-6)
        np.testing.assert_allclose(plain.data[0].embedding, expected[0], atol=1e-6)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="small", input="x")


def test_sources_are_in_the_answer(small_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    base = load_base(small_folder, dtype="float32", device="cpu")
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "rivers.txt").write_text("the green river and the stone bridge", encoding="utf-8")
    adapted = fit(base, "retrieval", tmp_path / "r", documents=str(papers), search="full-text", passages=1)
    alone = adapted.generate([conversation(TURNS)], Sampling(max_tokens=6))
    with running({"docs": adapted}) as made:
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(model="docs", messages=MESSAGES, max_tokens=6, temperature=0)
        message = answer.choices[0].message
        assert message.content == alone[0].text
        assert message.sources == alone[0].details["sources"]  # type: ignore[attr-defined]
        assert "rivers" in json.dumps(message.sources)  # type: ignore[attr-defined]
        chunks = list(client.chat.completions.create(model="docs", messages=MESSAGES, max_tokens=6, stream=True))
        assert any("rivers" in json.dumps(getattr(c.choices[0].delta, "sources", "")) for c in chunks)


def test_the_demo_model_answers_many_as_it_answers_one(demo: Base, tmp_path: Path) -> None:
    adapted = fit(demo, "zero-shot", tmp_path)
    words = ["What is the capital of France?", "Name three colours.", "Say hello.", "Why is the sky blue? Be short."]
    asked = [(word, i, 0.7 if i % 2 else 0.0) for i, word in enumerate(words)]
    alone = [
        adapted.generate(
            [conversation([("user", w)])], Sampling(max_tokens=12, temperature=t, top_p=0.9, seed=i)
        )[0].text
        for w, i, t in asked
    ]  # fmt: skip
    with running({"demo": adapted}) as made, ThreadPoolExecutor(len(asked)) as pool:
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0, timeout=120)

        def one(request: tuple[str, int, float]) -> str:
            chunks = client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": request[0]}], max_tokens=12, seed=request[1],
                temperature=request[2], top_p=0.9, stream=True,
            )  # fmt: skip
            return "".join(c.choices[0].delta.content or "" for c in chunks)

        assert list(pool.map(one, asked)) == alone
    assert "Paris" in alone[0]

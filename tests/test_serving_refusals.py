"""`kamerton serve` with requests that nobody should send, more of them than it takes, and while it stops."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from kamerton.base import load_base
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted
from kamerton.serving.settings import Limits, Settings
from kamerton.tasks.example import conversation
from served import GOOD, MESSAGES, TURNS, Running, running, wait_for
from tiny import fit

pytest_plugins = ("tiny", "served")
pytestmark = pytest.mark.usefixtures("one_thread")


# -- requests that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words", "param"),
    [
        ({"model": "gpt-9"}, "no model 'gpt-9'", "model"),
        ({"temperature": 3}, "less than or equal to 2", "temperature"),
        ({"temperature": "hot"}, "valid number", "temperature"),
        ({"n": 5}, "at most 4", "n"),
        ({"n": 1.5}, "integer", "n"),
        ({"n": True}, "integer", "n"),
        ({"max_tokens": 65}, "at most 64", "max_tokens"),
        ({"max_tokens": 0}, "greater than or equal to 1", "max_tokens"),
        ({"seed": 2**63}, "less than", "seed"),
        ({"messages": []}, "at least 1", "messages"),
        ({"messages": MESSAGES * 3}, "6 messages", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'user'", "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]}, "end with", "messages"),
        ({"messages": [{"role": "user", "content": "bell \x07"}]}, "U+0007", "messages.0.content"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "512 positions", None),
        ({"tools": [{"type": "function"}]}, "tools is not supported", "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported", "response_format"),
        ({"frequency_penalty": 1}, "frequency_penalty is not supported", "frequency_penalty"),
        ({"top_logprobs": 2}, "needs logprobs", "top_logprobs"),
        ({"model": "vote", "logprobs": True, "top_logprobs": 2}, "no alternatives", "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "are for streams", "stream_options"),
        ({"extra_body": {"colour": "red"}}, "unknown field: colour", "colour"),
        ({"stop": ["x"] * 17}, "at most 16", "stop"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_what_is_wrong(
    client: openai.OpenAI, changes: dict[str, Any], words: str, param: str | None
) -> None:
    for stream in (False, True):
        asked: dict[str, Any] = {"model": "small", "messages": MESSAGES, "max_tokens": 4, **changes}
        if not (stream and "stream_options" in changes):
            with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
                client.chat.completions.create(**asked, stream=stream)
            assert words in caught.value.message
            assert caught.value.param == param


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "few"}, "use /v1/chat/completions"),
        ({"model": "chain"}, "use /v1/chat/completions"),
        ({"prompt": ""}, "an empty prompt"),
        ({"prompt": ["a"] * 4}, "4 prompts"),
        ({"prompt": [99999]}, "a token id that the model does not have"),
        ({"prompt": [[1, -2]]}, "greater than or equal to 0"),
        ({"echo": True}, "echo is not supported"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"prompt": [1] * 600}, "512 positions"),
        ({"prompt": [1] * 500, "max_tokens": 20}, "the answer may need 20"),
    ],
)
def test_a_wrong_completion_is_told_what_is_wrong(client: openai.OpenAI, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.completions.create(**{"model": "small", "prompt": "the", "max_tokens": 4, **changes})


RAW: list[tuple[bytes, str]] = [
    (b"", "application/json"),
    (b"{", "application/json"),
    (b"null", "application/json"),
    (b"[]", "application/json"),
    (b'"text"', "application/json"),
    (json.dumps(GOOD).encode(), "text/plain"),
    (b"\xff\xfe\xfa", "application/json"),
    (b"[" * 100_000, "application/json"),
    (b'{"a":' * 20_000, "application/json"),
    (json.dumps({**GOOD, "temperature": math.nan}).encode(), "application/json"),
    (json.dumps({**GOOD, "temperature": math.inf}).encode(), "application/json"),
    (json.dumps(GOOD).encode()[:-1] + b', "top_p": 1e999}', "application/json"),
    (json.dumps(GOOD).encode()[:-1] + b', "seed": ' + b"9" * 6000 + b"}", "application/json"),
    (json.dumps(GOOD).encode()[:-1] + b', "max_tokens": 1e400}', "application/json"),
    (json.dumps({**GOOD, "model": "\ud800"}).encode(), "application/json"),
    (json.dumps({**GOOD, "\udfff": 1}).encode(), "application/json"),
    (json.dumps({**GOOD, "user": "\ud800"}).encode(), "application/json"),
    (json.dumps({**GOOD, "messages": [{"role": "user", "content": "a\ud83db"}]}).encode(), "application/json"),
    (json.dumps({**GOOD, "messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}).encode(), "application/json"),
    (json.dumps({**GOOD, "messages": [{"role": "user", "content": "a\x00b"}]}).encode(), "application/json"),
    (json.dumps({**GOOD, "stop": "\udc00"}).encode(), "application/json"),
    (json.dumps({**GOOD, "logit_bias": {"\ud800": 1}}).encode(), "application/json"),
    (json.dumps({**GOOD, "metadata": {"a": "\ud800"}}).encode(), "application/json"),
    (b'{"model": "small", "messages": [{"role": "user", "content": "raw \x01 control"}]}', "application/json"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RAW)))
def test_bodies_that_nobody_should_send(server: Running, number: int) -> None:
    body, kind = RAW[number]
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"content-type": kind}, timeout=30)
    assert 400 <= answer.status_code < 500, answer.text
    _check_error(answer)


def _check_error(answer: httpx.Response) -> None:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in answer.text


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8), st.just("\ud800"),
    st.lists(st.one_of(st.integers(-5, 500), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3), st.just([[[[]]]]), st.just("x" * 2000),
)  # fmt: skip
FIELDS = [
    "model", "messages", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "max_tokens", "stream", "logprobs",
    "top_logprobs", "stream_options", "max_completion_tokens", "user", "logit_bias", "response_format", "prompt", "echo",
    "input", "encoding_format", "dimensions", "tools", "best_of",
]  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["chat/completions", "completions", "embeddings"]),
    st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=3), st.one_of(st.none(), ODD),
)  # fmt: skip
def test_no_field_makes_the_server_fail(server: Running, path: str, odd: dict[str, Any], content: Any) -> None:
    good: dict[str, Any] = {"model": "small", "max_tokens": 2}
    good |= (
        {"messages": [{"role": "user", "content": "a" if content is None else content}]}
        if "chat" in path
        else {"prompt": "a"}
    )
    answer = httpx.post(
        f"{server.url}/v1/{path}", content=json.dumps({**good, **odd}), headers={"content-type": "application/json"},
        timeout=60,
    )  # fmt: skip
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        _check_error(answer)


def test_addresses_that_are_not_there(server: Running) -> None:
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
    ]:
        answer = httpx.request(method, server.url + path)
        assert answer.status_code == status
        _check_error(answer)
    assert httpx.get(f"{server.url}/v1/models/..%2f..%2fetc%2fpasswd").status_code == 404


# -- limits -------------------------------------------------------------------------------------------------------------


def test_too_large_a_body_is_not_read(models: dict[str, Adapted]) -> None:
    with running({"small": models["small"]}, Settings(Limits(body=2000))) as made:
        url = f"{made.url}/v1/chat/completions"
        large = json.dumps({**GOOD, "messages": [{"role": "user", "content": "x" * 3000}]}).encode()
        headers = {"content-type": "application/json"}
        for content in (large, iter([large[:1500], large[1500:]])):  # with its length told, and in pieces without
            answer = httpx.post(url, content=content, headers=headers)
            assert answer.status_code == 413
            _check_error(answer)
        assert httpx.post(url, json=GOOD, timeout=30).status_code == 200
        for length in ("-1", "99999999999999999999999999", "abc"):
            status = _raw_status(
                made, f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            )
            assert 400 <= status < 500


def _raw_status(made: Running, request: str) -> int:
    import socket

    with socket.create_connection(("127.0.0.1", int(made.url.rpartition(":")[2])), timeout=10) as sock:
        sock.sendall(request.encode())
        return int(sock.recv(100).split()[1])


def test_more_requests_than_places_are_told_to_come_back(models: dict[str, Adapted]) -> None:
    with running({"small": models["small"]}, Settings(Limits(requests=2))) as made, ThreadPoolExecutor(2) as pool:
        url = f"{made.url}/v1/chat/completions"
        with made.hub.runner.turn:  # nothing is decoded meanwhile
            waiting = [pool.submit(httpx.post, url, json=GOOD, timeout=60) for _ in range(2)]
            wait_for(lambda: made.hub.running == 2)
            refused = httpx.post(url, json=GOOD)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            _check_error(refused)
            assert httpx.get(f"{made.url}/healthz").status_code == 200
        assert [w.result().status_code for w in waiting] == [200, 200]
        wait_for(lambda: made.hub.running == 0)
        assert httpx.post(url, json=GOOD, timeout=30).status_code == 200
        # the client that people use comes back by itself
        with made.hub.runner.turn:
            waiting = [pool.submit(httpx.post, url, json=GOOD, timeout=60) for _ in range(2)]
            wait_for(lambda: made.hub.running == 2)
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=5)
        assert client.chat.completions.create(**GOOD).choices  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["small", "vote"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(
    models: dict[str, Adapted], name: str, stream: bool, long: dict[str, Any]
) -> None:
    long = {**long, "model": name, "stream": stream}
    with running({name: models[name]}) as made:
        batch = made.hub.models[name].engine.batch
        assert batch is not None
        with httpx.Client(timeout=60) as client:
            if stream and name == "small":
                with client.stream("POST", f"{made.url}/v1/chat/completions", json=long) as answer:
                    lines = answer.iter_lines()  # kept: once it is forgotten the connection closes
                    next(lines)
                    made.hub.runner.turn.__enter__()  # no further token until the server knows that the client has gone
                    assert made.hub.running == 1
                wait_for(lambda: made.hub.running == 0)
                made.hub.runner.turn.__exit__()
            else:
                with made.hub.runner.turn, pytest.raises(httpx.ReadTimeout):
                    client.post(f"{made.url}/v1/chat/completions", json=long, timeout=0.3)
        wait_for(lambda: made.hub.running == 0 and not batch.busy)
        assert batch.decoded < 300  # it was not decoded to its end
        wait_for(lambda: made.hub.measures.gone._value.get() == 1)  # type: ignore[attr-defined]
        decoded = batch.decoded
        assert (
            httpx.post(f"{made.url}/v1/chat/completions", json={**GOOD, "model": name}, timeout=60).status_code == 200
        )
        assert batch.decoded - decoded < 40  # nothing of the one that left was still decoded


def test_what_takes_too_long_is_ended(models: dict[str, Adapted], long: dict[str, Any]) -> None:
    with running({"small": models["small"]}, Settings(Limits(seconds=0.4))) as made:
        url = f"{made.url}/v1/chat/completions"
        with made.hub.runner.turn:
            late = httpx.post(url, json=GOOD, timeout=30)
        assert late.status_code == 408
        _check_error(late)
        wait_for(lambda: made.hub.running == 0)
        with httpx.stream("POST", url, json={**long, "stream": True}, timeout=30) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            with made.hub.runner.turn:
                rest = [line for line in lines if line]
        assert "error" not in first
        assert json.loads(rest[-2][6:])["error"]["code"] == "timeout"
        assert rest[-1] == "data: [DONE]"
        wait_for(lambda: made.hub.running == 0)


# -- who may ask --------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for(models: dict[str, Adapted]) -> None:
    with running({"small": models["small"]}, Settings(key="sésame", cors=("https://page.example",))) as made:
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            client.models.list()
        for header in (
            {},
            {"authorization": "sésame"},
            {"authorization": "Basic sésame"},
            {"authorization": "Bearer x"},
        ):
            answer = httpx.get(f"{made.url}/metrics", headers={k: v.encode() for k, v in header.items()})
            assert answer.status_code == 401
            _check_error(answer)
        right = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{made.url}/v1/models", headers=right).status_code == 200
        assert httpx.get(f"{made.url}/healthz").status_code == 200
        # a page of another origin asks whether it may, without a key
        asks = {"origin": "https://page.example", "access-control-request-method": "POST"}
        allowed = httpx.options(f"{made.url}/v1/chat/completions", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(f"{made.url}/v1/chat/completions", headers={**asks, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_pages_of_others_may_not_ask_unless_named(server: Running, models: dict[str, Adapted]) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers
    with running({"small": models["small"]}, Settings(hosts=("localhost", "127.0.0.1", "[::1]"))) as made:
        assert httpx.get(f"{made.url}/v1/models").status_code == 200
        assert httpx.get(f"{made.url}/v1/models", headers={"host": "[::1]:80"}).status_code == 200
        for host in ("evil.example", "localhost.evil.example:80", "", "127.0.0.1.evil.example"):
            answer = httpx.get(f"{made.url}/v1/models", headers={"host": host})
            assert answer.status_code == 403
            _check_error(answer)


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_measures_count_what_happened(models: dict[str, Adapted]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with running({"small": models["small"]}) as made:
        url = f"{made.url}/v1/chat/completions"
        answers = [httpx.post(url, json={**GOOD, "max_tokens": 5, "seed": i}, timeout=30).json() for i in range(3)]
        httpx.post(url, json={"model": "nope", "messages": MESSAGES})
        httpx.get(f"{made.url}/secret/address")
        text = httpx.get(f"{made.url}/metrics").text
        found = {
            (s.name, *sorted(s.labels.values())): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }
        assert found["kamerton_requests_total", "/v1/chat/completions", "200"] == 3
        assert found["kamerton_requests_total", "/v1/chat/completions", "404"] == 1
        assert found["kamerton_requests_total", "404", "other"] == 1
        assert "secret" not in text
        assert found["kamerton_generated_tokens_total", "small"] == sum(
            a["usage"]["completion_tokens"] for a in answers
        )
        assert found["kamerton_prompt_tokens_total", "small"] == sum(a["usage"]["prompt_tokens"] for a in answers)
        assert found["kamerton_answer_seconds_count", "small"] == 3
        assert found["kamerton_running_requests",] == 0


# -- stopping -----------------------------------------------------------------------------------------------------------


def test_streams_end_when_the_server_stops(models: dict[str, Adapted], long: dict[str, Any]) -> None:
    with running({"small": models["small"]}, Settings(Limits(grace=20))) as made:
        with httpx.stream(
            "POST", f"{made.url}/v1/chat/completions", json={**long, "stream": True}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            stopping = threading.Thread(target=made.stop)
            with made.hub.runner.turn:
                stopping.start()
                wait_for(made.hub.stopping.is_set)
            rest = [line for line in lines if line]
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] in ("stop", "length")
        assert rest[-1] == "data: [DONE]"
        stopping.join(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{made.url}/healthz")


def test_streams_that_take_longer_than_the_grace_are_told(models: dict[str, Adapted], long: dict[str, Any]) -> None:
    with running({"small": models["small"]}, Settings(Limits(grace=0.3))) as made:
        with httpx.stream(
            "POST", f"{made.url}/v1/chat/completions", json={**long, "stream": True}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            with made.hub.runner.turn:
                made.server.should_exit = True
                rest = [line for line in lines if line]
        assert json.loads(rest[-2][6:])["error"]["code"] == "stopping"
        assert rest[-1] == "data: [DONE]"


def test_a_client_that_does_not_read_loses_its_place(models: dict[str, Adapted]) -> None:
    from kamerton.inference.runner import Ticket
    from kamerton.serving import delivery
    from kamerton.serving.hub import Hub

    async def content() -> Any:
        for _ in range(3):
            yield b"data: {}\n\n"

    async def never(*_: Any) -> Any:
        await asyncio.sleep(60)

    async def go() -> tuple[int, bool]:
        hub, ticket = Hub({"small": models["small"]}, Settings()), Ticket()
        hub.take()
        late = asyncio.get_running_loop().time() - delivery.SLACK + 0.1
        stream = delivery._Stream(content(), hub, ticket, late)
        await asyncio.wait_for(stream({"type": "http", "asgi": {"spec_version": "2.4"}}, never, never), 10)
        return hub.running, ticket.cancelled

    assert asyncio.run(go()) == (0, True)


def test_an_encoder_decoder_is_served_too(tmp_path: Path) -> None:
    base = load_base(tiny.save_encoder_decoder(tmp_path / "t5"), dtype="float32", device="cpu")
    adapted = fit(base, "zero-shot", tmp_path / "z")
    alone = adapted.generate([conversation(TURNS)], Sampling(max_tokens=9, temperature=0.8, seed=3, n=2))
    with running({"t5": adapted}) as made:
        client = openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "t5", "messages": MESSAGES, "max_tokens": 9, "temperature": 0.8, "seed": 3}
        answer = client.chat.completions.create(**asked, n=2)
        assert [c.message.content for c in answer.choices] == [a.text for a in alone]
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == alone[0].text
        with pytest.raises(openai.BadRequestError, match="answers conversations"):
            client.completions.create(model="t5", prompt="a")

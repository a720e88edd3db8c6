"""`kamerton serve` with requests that nobody should send, more of them than it takes, and while it stops."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
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
from kamerton.methods.method import Adapted
from kamerton.serving.settings import Limits, Settings
from kamerton.together import load_together, split_name
from served import GOOD, MESSAGES, Running, running, wait_for
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


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
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
                    next(answer.iter_lines())
                    assert made.hub.running == 1
            else:
                with made.hub.runner.turn, pytest.raises(httpx.ReadTimeout):
                    client.post(f"{made.url}/v1/chat/completions", json=long, timeout=0.3)
        wait_for(lambda: made.hub.running == 0 and not batch.busy)
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


# -- the command --------------------------------------------------------------------------------------------------------


def test_the_command_serves_and_stops(small_folder: Path, models: dict[str, Adapted], tmp_path: Path) -> None:
    models["lora"].save(tmp_path / "tuned")
    command = [
        sys.executable,
        "-m",
        "kamerton",
        "serve",
        f"base={small_folder}",
        str(tmp_path / "tuned"),
        "--port",
        "0",
    ]
    environment = {**os.environ, "COLUMNS": "300", "KAMERTON_API_KEY": "open", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = []
        for line in iter(process.stdout.readline, ""):
            said.append(line)
            if "serving on" in line:
                break
        assert "serving on" in said[-1], (said, process.stderr.read() if process.stderr else "")
        url = said[-1].split()[2].rstrip(";")
        client = openai.OpenAI(base_url=url, api_key="open", max_retries=0)
        assert [m.id for m in client.models.list().data][:2] == ["base", "tuned"]
        stream = client.chat.completions.create(
            model="tuned", messages=MESSAGES, max_tokens=300, temperature=1, seed=5, stream=True
        )
        pieces = iter(stream)
        next(pieces)
        process.send_signal(signal.SIGTERM)
        rest = list(pieces)
        assert rest[-1].choices[0].finish_reason in ("stop", "length")
        out, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert "Traceback" not in errors
    assert "stopped" in out
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--host", "0.0.0.0"], "there is no key; give --api-key or set KAMERTON_API_KEY"),
        (["demo", "--backend", "vllm"], "wants vLLM and a GPU"),
        (["demo", "--backend", "gpu"], "no backend 'gpu'"),
        (["demo", "--api-key", "a\nb"], "the API key"),
        (["demo", "--host", "no such host", "--api-key", "k"], "cannot listen there"),
        (["nowhere/at/all", "--port", "0"], "nowhere/at/all"),
        (["demo", "a/demo", "--port", "0"], "two models are called 'demo'"),
        (["=demo", "--port", "0"], "names no model"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kamerton.cli.main import run

    monkeypatch.delenv("KAMERTON_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["kamerton", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_targets_share_their_base(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    base = load_base(folder, dtype="float32", device="cpu")
    fit(base, "lora", tmp_path / "fit", rank=2, learning_rate=0.05).save(tmp_path / "one")
    fit(base, "prompt-tuning", tmp_path / "fit2", tokens=3, learning_rate=0.1).save(tmp_path / "two")
    together = load_together([f"plain={folder}", tmp_path / "one", f"soft={tmp_path / 'two'}"])
    assert list(together) == ["plain", "one", "soft"]
    held = {p.data_ptr(): p.numel() for m in together.values() for p in m.engine.model.hf.parameters()}
    own = sum(p.numel() for p in base.model.hf.parameters())
    # on a machine where the folder's own data type is another one, the two are different bases
    if together["plain"].base.info.fingerprint == together["one"].base.info.fingerprint:
        assert sum(held.values()) < 1.3 * own
    assert together["one"].base is together["soft"].base


def test_names_of_targets(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert split_name("demo") == ("demo", "demo")
    assert split_name("runs/dates-lora/") == ("dates-lora", "runs/dates-lora/")
    assert split_name("dates=runs/x=y") == ("dates", "runs/x=y")
    assert split_name(str(tmp_path / "a=b")) == ("a=b", str(tmp_path / "a=b"))
    assert split_name("owner/model")[0] == "model"


# -- the description ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_requests_made_from_the_description_never_fail_the_server(server: Running, mode: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    checks = schemathesis.checks
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        seen += 1

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def probe(case: Any) -> None:
            answer = case.call(timeout=60)
            case.validate_response(answer, checks=[checks.not_a_server_error, checks.content_type_conformance])
            if answer.status_code >= 400 and case.method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        try:
            probe()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__ and "negate" not in str(error):
                raise
    assert seen == 7

"""`kamerton chat URL`: the same answers as from a model that is loaded here; other servers' manners; what goes wrong."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny
from kamerton.base import Base, load_base
from kamerton.chat.model import Reply, clean
from kamerton.chat.remote import RemoteModels
from kamerton.errors import KamertonError
from kamerton.inference import Sampling
from kamerton.methods.history import fit_turns
from kamerton.methods.method import Adapted
from kamerton.serving.settings import Limits, Settings
from kamerton.tasks.example import Conversation, Message, conversation
from kamerton.tasks.newest import newest_turns
from served import ASKED, TURNS, Running, running
from tiny import fit

pytest_plugins = ("tiny", "served")
pytestmark = pytest.mark.usefixtures("one_thread")


def asked_of(models: RemoteModels, asked: Conversation, sampling: Sampling) -> Reply:
    reply = Reply()

    def grown(text: str) -> None:
        reply.text += text
        reply.pieces += 1

    models.answer(asked, sampling, reply, grown, lambda _: None)
    return reply


# -- a server of ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({name for name, _, _ in ASKED}))
def test_answers_are_those_of_the_model(server: Running, expected: Any, name: str) -> None:
    models = RemoteModels(server.url, name=name)
    reply = asked_of(models, conversation(TURNS), Sampling(max_tokens=14, temperature=0.0, seed=11))
    (answer,) = expected(name, 1, 0.0)
    assert reply.text == clean(answer.text)
    assert (reply.finish, reply.answer_tokens) == (answer.finish, answer.generated_tokens)
    assert reply.prompt_tokens == answer.prompt_tokens
    if name == "chain":
        assert reply.details["reasoning"] == answer.details["reasoning"]
    if name == "vote":
        assert reply.details["samples"] == answer.details["samples"]


def test_the_prompt_and_the_models_are_the_servers(server: Running, models: dict[str, Adapted]) -> None:
    remote = RemoteModels(f"{server.url}/v1/")
    assert remote.names == list(models)
    assert (remote.name, remote.context, remote.ours) == ("small", 512, True)
    remote.name = "few"
    asked = conversation([("user", "the <|end|> river")])
    few = models["few"]
    text, _, notes = remote.prompt(asked, Sampling()).rpartition("\n")
    assert text == clean(few.renderer.text(few.prepare(asked)))
    assert notes == f"({few.prompt_tokens(asked)} tokens)"
    with pytest.raises(KamertonError, match="has no model 'smal'; did you mean small"):
        RemoteModels(server.url, name="smal")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny.save(tmp_path_factory.mktemp("narrow") / "narrow", positions=200)
    return load_base(folder, dtype="float32", device="cpu")


LONG = [Message("system", "Be brief.")]
for n in range(14):
    LONG += [Message("user", f"the green river {n}"), Message("assistant", "a white stone")]
LONG.append(Message("user", "blue"))


@pytest.mark.parametrize("ours", [True, False])
def test_the_oldest_turns_are_dropped(narrow: Base, tmp_path: Path, ours: bool) -> None:
    """As many as for a model that is loaded here; from a server that does not say how many, by its refusals."""
    alone = fit(narrow, "zero-shot", tmp_path / "z")
    kept, dropped = fit_turns(alone, tuple(LONG), 20)
    assert 2 < dropped < 14
    expected = alone.generate([kept], Sampling(max_tokens=20))[0].text
    with running({"narrow": fit(narrow, "zero-shot", tmp_path / "y")}) as server:
        models = RemoteModels(server.url)
        if not ours:
            del models._known["narrow"]["owned_by"]
        for _ in range(2):
            reply = asked_of(models, tuple(LONG), Sampling(max_tokens=20))
            assert (reply.dropped, reply.text) == (dropped, clean(expected))
        refused = server.hub.measures.text().decode()
        assert ('"/v1/chat/completions",status="400"} ' in refused) is not ours or f'400"}} {dropped}.0' in refused
        short = asked_of(models, (*LONG[:3], LONG[-1]), Sampling(max_tokens=20))
        assert short.dropped == 0, "what was dropped belongs to a longer conversation"
        with pytest.raises(KamertonError, match="the model has 200 positions"):
            asked_of(models, (Message("user", "stone " * 300),), Sampling(max_tokens=20))


def test_the_page_is_told_how_many_turns_go(narrow: Base, tmp_path: Path) -> None:
    few, alone = fit(narrow, "few-shot", tmp_path / "f", shots=2), fit(narrow, "zero-shot", tmp_path / "z")
    served = {
        "narrow": fit(narrow, "zero-shot", tmp_path / "y"),
        "few": fit(narrow, "few-shot", tmp_path / "g", shots=2),
    }
    turns = [{"role": m.role, "content": m.content} for m in LONG]
    with running(served, Settings(Limits(grace=2, messages=9, answer=64))) as server:

        def dropped(messages: list[Any], **more: Any) -> Any:
            found = httpx.post(f"{server.url}/page/fit", json={"models": ["narrow"], "messages": messages, **more})
            return found.json()

        # nine messages are four turns behind the system prompt and with it; more are not taken
        short, least = newest_turns(tuple(LONG), lambda asked: len(asked) <= 9)
        assert dropped(turns, max_tokens=20) == {"dropped": least}
        first, more = fit_turns(alone, short, 150)
        _, rest = fit_turns(few, first, 150)
        assert more > 0
        assert rest > 0, "shots take room too"
        for order in (["narrow", "few"], ["few", "narrow"]):
            assert dropped(turns, models=order, max_tokens=150) == {"dropped": least + more + rest}
        assert dropped(turns, models=["narrow"], max_tokens=150) == {"dropped": least + more}
        assert dropped(turns[-1:]) == {"dropped": 0}
        assert dropped(turns[:-1])["error"]["message"].startswith("the last message is the model's own")
        assert dropped(turns, models=["none"])["error"]["code"] == "model_not_found"
        long = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "narrow", "messages": turns})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "too_many_messages")
        other = {"origin": "https://else.where"}
        assert httpx.post(f"{server.url}/page/fit", json={}, headers=other).status_code in (400, 403)


def test_a_key(small_base: Base, tmp_path: Path) -> None:
    key = "a-long-kéy of letters"
    with running({"few": fit(small_base, "few-shot", tmp_path, shots=1)}, Settings(Limits(grace=2), key=key)) as server:
        with pytest.raises(KamertonError, match=r"no valid API key.*give --api-key or set KAMERTON_API_KEY"):
            RemoteModels(server.url, key="another")
        remote = RemoteModels(server.url, key=key)
        assert asked_of(remote, conversation(TURNS), Sampling(max_tokens=4)).answer_tokens


# -- others -------------------------------------------------------------------------------------------------------------


class Other(http.server.BaseHTTPRequestHandler):
    """A server with other manners: it counts nothing, knows fewer fields, has comments in its streams, or no streams."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]]
    streams = True
    ends = True

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.send(200, b'{"data": [{"id": "one", "max_model_len": 4096}, {"id": "two"}]}')
        elif self.path == "/moved/models":
            self.send(307, b"", location="https://else.where/v1/models")
        elif self.path == "/html/models":
            self.send(200, b"<html>hello</html>", "text/html")
        else:
            self.send(404, b"<html>no</html>", "text/html")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append(body)
        for name, words in {"stream_options": "Unrecognized request argument supplied: stream_options",
                            "max_tokens": "'max_tokens' is not supported with this model. Use 'max_completion_tokens'."}.items():  # fmt: skip
            if name in body:
                self.send(400, json.dumps({"error": {"message": words, "code": None}}).encode())
                return
        if not self.streams:
            said = {
                "choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}],
                "usage": {"completion_tokens": 3},
            }
            self.send(200, json.dumps(said).encode())
            return
        events = [{"delta": {"role": "assistant", "content": None}}, {"delta": {"reasoning_content": "hm"}},
                  {"delta": {"content": "Grüße"}}, {"delta": {"content": " \x1b[31m!"}}]  # fmt: skip
        if self.ends:
            events.append({"delta": {}, "finish_reason": "stop"})
        lines = [": comment"] + [f"data: {json.dumps({'choices': [one]}, ensure_ascii=False)}\r\n" for one in events]
        self.send(200, "\r\n".join(lines).encode(), "text/event-stream; charset=utf-8")


@contextmanager
def other(**manners: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    seen: list[dict[str, Any]] = []
    handler = type("Handler", (Other,), {"seen": seen, **manners})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}", seen
        found.shutdown()


def test_a_server_with_other_manners() -> None:
    with other() as (url, seen):
        models = RemoteModels(url)
        assert (models.names, models.name, models.context, models.ours) == (["one", "two"], "one", 4096, False)
        reply = asked_of(models, conversation([("user", "a\x00b")]), Sampling(max_tokens=9, temperature=0.5))
        assert (reply.text, reply.finish, reply.answer_tokens) == ("Grüße \ufffd[31m!", "stop", None)
        assert reply.details == {"reasoning": "hm"}
        assert len(reply.notes) == 2
        assert all("it is left out" in note for note in reply.notes)
        assert seen[-1]["max_completion_tokens"] == 9
        assert seen[-1]["messages"] == [{"role": "user", "content": "a\ufffdb"}]
        before = len(seen)
        asked_of(models, conversation([("user", "again")]), Sampling(max_tokens=9))
        assert len(seen) == before + 1, "what was refused once is not sent again"
        assert (
            json.loads(models.prompt(conversation(TURNS), Sampling()).rpartition("\n")[0])[1]["content"] == TURNS[1][1]
        )
        assert "the server renders it" in models.prompt(conversation(TURNS), Sampling())


def test_a_server_that_does_not_stream_and_one_that_breaks_off() -> None:
    with other(streams=False) as (url, _):
        reply = asked_of(RemoteModels(url), conversation([("user", "a")]), Sampling())
        assert (reply.text, reply.answer_tokens, reply.finish) == ("whole", 3, "stop")
    with other(ends=False) as (url, _):
        reply = Reply()
        with pytest.raises(KamertonError, match="the answer broke off; /retry asks again"):
            RemoteModels(url).answer(
                conversation([("user", "a")]),
                Sampling(),
                reply,
                lambda text: setattr(reply, "text", text),
                lambda _: None,
            )
        assert reply.text, "what came is kept"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none", "the server said 404 Not Found"),
        ("/html", "what answers there does not speak OpenAI's protocol"),
        ("/moved", "give the address that it names: https://else.where/v1/models"),
    ],
)
def test_what_is_no_api(path: str, says: str) -> None:
    with other() as (url, _), pytest.raises(KamertonError, match=says) as caught:
        RemoteModels(url + path)
    assert "\n" not in str(caught.value)

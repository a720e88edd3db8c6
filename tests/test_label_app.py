"""The labelling server: what it refuses, what it never says, and its limits. No request may give a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import tiny
from kamerton.errors import KamertonError
from kamerton.feedback.records import Candidate, make_item
from kamerton.feedback.store import FeedbackStore
from kamerton.serving.guard import Guard, check_host, is_loopback, same_key
from kamerton.serving.label_app import LARGEST, label_app
from kamerton.tasks.example import conversation
from tiny import Cli

pytest_plugins = ("tiny",)

KEY = "a-key-of-26-letters-0123456"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    made = FeedbackStore(tmp_path / "s.sqlite")
    made.add(
        make_item(
            conversation([("user", f"q{n}")]), [Candidate(f"{m} {n}", f"model-{m}") for m in "ab"], name=f"item-{n}"
        )
        for n in range(5)
    )
    yield made
    made.close()


def client(store: FeedbackStore, key: str | None = None, base: str = "http://localhost") -> TestClient:
    return TestClient(Guard(label_app(store, "comparison"), key=key, largest=LARGEST), base_url=base)


def start(asked: TestClient, name: str = "Anna") -> dict[str, Any]:
    found = asked.post("/api/state", json={"labeller": name})
    assert found.status_code == 200
    return dict(found.json())


GOOD = {"labeller": "Anna", "question": 1, "scores": [1, 0], "seconds": 1, "token": "0123456789"}
BAD: list[tuple[str, Any, int]] = [
    ("/api/labels", {**GOOD, "scores": [2, 0]}, 400), ("/api/labels", {**GOOD, "scores": [1]}, 400),
    ("/api/labels", {**GOOD, "scores": []}, 400), ("/api/labels", {**GOOD, "scores": ["1", 0]}, 422),
    ("/api/labels", {**GOOD, "scores": [1e999, 0]}, 422), ("/api/labels", {**GOOD, "scores": {"a": 1}}, 422),
    ("/api/labels", {**GOOD, "scores": [0] * 101}, 422), ("/api/labels", {**GOOD, "question": 10**30}, 422),
    ("/api/labels", {**GOOD, "question": 2**53}, 404), ("/api/labels", {**GOOD, "question": -1}, 422),
    ("/api/labels", {**GOOD, "question": "1"}, 422), ("/api/labels", {**GOOD, "question": True}, 422),
    ("/api/labels", {**GOOD, "question": 1.5}, 422), ("/api/labels", {**GOOD, "labeller": "Ben"}, 404),
    ("/api/labels", {**GOOD, "labeller": "\u202e"}, 400), ("/api/labels", {**GOOD, "labeller": "\x00"}, 400),
    ("/api/labels", {**GOOD, "labeller": ["Anna"]}, 422), ("/api/labels", {**GOOD, "seconds": -1}, 422),
    ("/api/labels", {**GOOD, "seconds": "1"}, 422), ("/api/labels", {**GOOD, "token": "x"}, 422),
    ("/api/labels", {**GOOD, "token": "'; DROP TABLE labels; --"}, 422), ("/api/labels", {**GOOD, "more": 1}, 422),
    ("/api/labels", {"labeller": "Anna"}, 422), ("/api/labels", [], 422), ("/api/labels", None, 422),
    ("/api/undo", {"labeller": "Anna", "label": 99}, 400), ("/api/undo", {"labeller": "Anna", "label": 2**70}, 422),
    ("/api/undo", {"labeller": "Anna"}, 422), ("/api/state", {"labeller": ""}, 422),
    ("/api/state", {"labeller": "x" * 61}, 400), ("/api/state", {"labeller": "x" * 300}, 422),
    ("/api/skipped", {"labeller": 3}, 422),
]  # fmt: skip


def test_wrong_requests_are_refused_in_one_line_and_store_nothing(store: FeedbackStore) -> None:
    with client(store) as asked:
        start(asked)
        for path, body, status in BAD:
            found = asked.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            assert found.status_code == status, (path, body, found.text)
            assert "\n" not in found.json()["error"]["message"]
        for raw in (
            b"",
            b"{",
            b"\xff\xfe",
            b'{"labeller": "\\ud800"}',
            b"[" * 60_000,
            b'{"labeller": "a' + b"\x01" + b'"}',
        ):
            found = asked.post("/api/state", content=raw, headers={"content-type": "application/json"})
            assert found.status_code == 422, raw[:40]
        assert asked.post("/api/state", content=b"labeller=Anna").status_code == 415
        assert asked.post("/api/state", json={"labeller": "x" * LARGEST}).status_code == 413
        # a body that does not say how long it is, is counted while it comes
        chunks = (b" " * 1024 for _ in range(2 * LARGEST // 1024))
        found = asked.post("/api/state", content=chunks, headers={"content-type": "application/json"})
        assert found.status_code == 413
        for path in ("/none", "/static/../guard.py", "/static/..%2f..%2fguard.py", "/static//etc/passwd", "/docs",
                     "/openapi.json", "/static/results.html.j2", "/results/x"):  # fmt: skip
            assert asked.get(path).status_code == 404, path
        assert asked.get("/api/labels").status_code == 405
        assert asked.delete("/").status_code == 405
    assert store.labels(undone=True) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from(["labeller", "question", "scores", "seconds", "token", "label"])


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/api/state", "/api/labels", "/api/undo", "/api/skipped"]), st.dictionaries(FIELDS, JSON), FIELDS
)
def test_no_body_gives_a_server_error(store: FeedbackStore, path: str, changed: dict[str, Any], dropped: str) -> None:
    body = {**GOOD, "label": 1, **changed}
    body.pop(dropped, None)
    asked = client(store)
    found = asked.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert found.status_code < 500


def test_a_label_counts_once_and_undoing_is_for_the_last_one(store: FeedbackStore) -> None:
    with client(store) as asked:
        first = start(asked)["question"]["id"]
        body = {**GOOD, "question": first}
        again = [asked.post("/api/labels", json=body) for _ in range(2)]
        assert [found.status_code for found in again] == [200, 200]
        assert again[0].json() == again[1].json()
        assert asked.post("/api/labels", json={**body, "token": "9876543210"}).status_code == 409
        second = again[0].json()["question"]["id"]
        last = asked.post("/api/labels", json={**body, "question": second, "token": "abcdefghij"}).json()["last"]
        assert asked.post("/api/undo", json={"labeller": "Anna", "label": last - 1}).status_code == 409
        for _ in range(2):
            found = asked.post("/api/undo", json={"labeller": "Anna", "label": last})
            assert (found.status_code, found.json()["done"], found.json()["question"]["id"]) == (200, 1, second)
        # another labeller can neither answer Anna's questions nor undo her labels
        start(asked, "Ben")
        assert asked.post("/api/labels", json={**body, "labeller": "Ben", "question": second}).status_code == 404
        assert asked.post("/api/undo", json={"labeller": "Ben", "label": last - 1}).status_code == 400
    assert len(store.labels()) == 1


def test_models_and_names_of_items_are_never_told(store: FeedbackStore) -> None:
    with client(store) as asked:
        said = json.dumps(start(asked)) + "".join(asked.get(path).text for path in ("/", "/static/label.js"))
        for n in range(5):
            question = start(asked)["question"]["id"]
            said += asked.post("/api/labels", json={**GOOD, "question": question, "token": f"token-{n}-00"}).text
    assert "model-" not in said
    assert "item-" not in said


def test_every_answer_has_a_strict_policy(store: FeedbackStore) -> None:
    with client(store) as asked:
        for path in ("/", "/results", "/static/label.js", "/static/page.css", "/none", "/healthz"):
            headers = asked.get(path).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in asked.get("/", headers={"origin": "http://evil.example"}).headers
        for path in ("/", "/results"):
            page = asked.get(path).text
            assert "<script>" not in page
            assert "style=" not in page
            assert "onclick" not in page
            assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
        tag = asked.get("/static/label.js").headers["etag"]
        assert asked.get("/static/label.js", headers={"if-none-match": tag}).status_code == 304


def test_without_a_key_only_this_machine_is_answered(store: FeedbackStore) -> None:
    for host, status in (
        ("localhost", 200), ("localhost:8001", 200), ("127.0.0.1:1", 200), ("[::1]:8001", 200), ("127.9.9.9", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("10.0.0.1", 403),
        ("", 403), ("[::1", 403), ("user@localhost@evil.example", 403),
    ):  # fmt: skip
        assert client(store).get("/", headers={"host": host}).status_code == status, host


def test_other_sites_cannot_send(store: FeedbackStore) -> None:
    for headers, status in (
        ({}, 200), ({"origin": "http://localhost"}, 200), ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403), ({"origin": "http://localhost:9"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403), ({"sec-fetch-site": "same-site"}, 403), ({"origin": "http://["}, 403),
    ):  # fmt: skip
        found = client(store).post("/api/state", json={"labeller": "Anna"}, headers=headers)
        assert found.status_code == status, headers


def test_the_key(store: FeedbackStore) -> None:
    asked = client(store, KEY, "http://label.example")
    ways: list[tuple[dict[str, str], int]] = [
        ({}, 401), ({"authorization": f"Bearer {KEY}"}, 200), ({"authorization": f"bearer {KEY} "}, 200),
        ({"authorization": f"Bearer {KEY}x"}, 401), ({"authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401), ({"authorization": "Bearer"}, 401), ({"cookie": f"kamerton={KEY}"}, 401),
        ({"cookie": "kamerton="}, 401), ({"cookie": "=;;;\x7f"}, 401),
    ]  # fmt: skip
    for headers, status in ways:
        for path in ("/", "/results", "/static/label.js", "/none"):
            found = asked.get(path, headers=headers)
            assert found.status_code == (404 if status == 200 and path == "/none" else status), (path, headers)
            assert KEY not in found.text
        found = asked.post("/api/state", json={"labeller": "Anna"}, headers=headers)
        assert found.status_code == status
    assert "password" in asked.get("/", headers={"accept": "text/html"}).text
    # the address with the key becomes a cookie and an address without it
    found = asked.get(f"/results?a=1&key={KEY}", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (303, "/results?a=1")
    assert KEY not in found.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=Strict"):
        assert part in found.headers["set-cookie"]
    assert asked.get("/results").status_code == 200  # with the cookie
    assert client(store, KEY[::-1], "http://label.example").get("/", headers={
        "cookie": found.headers["set-cookie"].partition(";")[0]}).status_code == 401  # fmt: skip
    assert asked.post(f"/api/state?key={KEY}", json={"labeller": "A"}, headers={"cookie": ""}).status_code == 401
    away = asked.get(f"//evil.example/?key={KEY}", follow_redirects=False)
    assert not away.headers.get("location", "/").startswith(("//", "http"))


def test_hosts_and_keys_at_the_start() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "LOCALHOST", "127.1.2.3"):
        check_host(host, None)
    for host in ("0.0.0.0", "::", "example.org", "192.168.0.1", "", "localhost.example.org"):
        assert not is_loopback(host)
        with pytest.raises(
            KamertonError, match="can be reached by others, and there is no key; give --api-key, or set"
        ):
            check_host(host, None)
        check_host(host, KEY)
    for key in ("", "short", "with a space in the key", "ключ-длинный-из-букв"):
        with pytest.raises(KamertonError, match="is no key of at least 16"):
            check_host("127.0.0.1", key)
    assert same_key(KEY, KEY)
    assert not same_key(None, KEY)
    assert not same_key("\ud800", KEY)


# -- the command


def test_mistakes_at_the_command_line(cli: Cli, tmp_path: Path) -> None:
    single, store = tmp_path / "single.jsonl", tmp_path / "s.sqlite"
    single.write_text('{"prompt": "q", "answers": ["a"]}\n')
    FeedbackStore(store).close()
    for arguments, says in (
        ((), "nothing to label; give a file of prompts and answers, or --models and --prompts"),
        ((single, "--kind", "stars"), "--kind: no kind 'stars'; use comparison, ranking, rating, thumbs"),
        ((single, "--kind", "comparison"), f"{tmp_path}/single.sqlite: nothing can be asked as comparison; give more"),
        ((single, "--models", "demo"), "--models and --prompts go together"),
        (("--models", "demo", "demo", "--prompts", single), "--models: names a model twice; name each once"),
        ((single, "--host", "0.0.0.0"), "--host 0.0.0.0: can be reached by others, and there is no key"),
        ((single, "--api-key", "short"), "--api-key: is no key of at least 16 letters"),
        ((single, "--host", "no.such.host.invalid", "--api-key", KEY), "no.such.host.invalid:8001: cannot listen:"),
        ((tmp_path / "none.jsonl",), f"{tmp_path}/none.jsonl: cannot be read: No such file or directory"),
        ((store, "--store", tmp_path / "t.sqlite"), f"{store}: is a store already; leave --store out"),
        (("--results",), "no store is named; write: kamerton label --results labels.sqlite"),
        (("--results", tmp_path / "none.sqlite"), f"{tmp_path}/none.sqlite: is not there; check the path"),
        ((single, "--output", "x.html"), "--output: is for --results; give both, or leave it out"),
    ):
        status, out, err = cli("label", *arguments)
        assert (status, err.count("\n")) == (2, 1), (arguments, out, err)
        assert err.startswith(f"error: {says}"), err
    status, _, err = cli("feedback", "export", store, "--output", tmp_path / "p.jsonl")
    assert (status, err) == (2, f"error: {store}: has no labels yet; give some with: kamerton label\n")
    status, _, err = cli("feedback", "import", single, "--into", store)
    assert (status, err) == (2, f"error: {store}: labels in a store have a labeller; name one with --labeller\n")
    status, _, err = cli("feedback", "export", "demo", "--output", tmp_path / "p.jsonl")
    assert (status, err.count("\n")) == (2, 1)


def test_results_and_preferences_from_the_command_line(cli: Cli, store: FeedbackStore, tmp_path: Path) -> None:
    for name in ("Anna", "Ben"):
        for number in range(1, 6):
            store.label(number, name, "comparison", (0, 1), (1, 0) if number > 1 else (0, 0), seconds=2)
    store.label(1, "<b>Zoe</b>", "comparison", (0, 1), None)
    status, out, _ = cli("label", "--results", store.path, "--output", tmp_path / "r.html")
    assert status == 0
    assert "model-a           10  90 %" in out
    assert "Krippendorff's alpha: 1.00" in out
    assert "Anna: 5 labels, 0 skipped, 0 undone, median 2.0 s" in out
    page = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;Zoe&lt;/b&gt;" in page
    assert "<b>Zoe" not in page
    assert "/static/" not in page
    status, out, _ = cli("feedback", "export", store.path, "--output", tmp_path / "p.jsonl")
    assert out == (
        f"{tmp_path}/p.jsonl: 4 questions with judged answers, of 10 labels\n"
        "1 questions were left out, because people found all their answers bad\n1 skipped questions were left out\n"
    )
    status, out, _ = cli(
        "feedback", "import", tmp_path / "p.jsonl", "--into", tmp_path / "t.sqlite", "--labeller", "all"
    )
    assert (status, out) == (0, f"{tmp_path}/t.sqlite: 4 labels new, 0 changed, 0 as they were\n")


# -- live sampling


@pytest.mark.usefixtures("one_thread")
def test_answers_are_sampled_live_and_gone_on_with(small_folder: Path, tmp_path: Path) -> None:
    """Two models answer while people label; stopped and started again, what is there is not sampled again."""
    from kamerton.api import load
    from kamerton.inference import Sampling
    from kamerton.serving.live import Sampler

    store = FeedbackStore(tmp_path / "live.sqlite")
    other = tiny.save(tmp_path / "other", seed=3)
    models = {"small": load(small_folder), "other": load(other)}
    prompts = [e.messages for e in tiny.colours(10, 1)]
    plan = Sampling(max_tokens=6, temperature=0.9, seed=1)
    first = Sampler(store, models, prompts[:3], plan)
    first.start()
    first._thread.join(120)
    assert first.state() == {"done": 3, "total": 3, "error": None}
    second = Sampler(store, models, prompts, plan)
    assert (second.done, second.several) == (3, True)
    with TestClient(Guard(label_app(store, "comparison", second), key=None), base_url="http://localhost") as asked:
        assert start(asked)["total"] == len([i for i in store.items() if i.answers[0].text != i.answers[1].text])
        second.start()
        second._thread.join(120)
        assert start(asked)["sampling"] == {"done": 10, "total": 10, "error": None}
    items = store.items()
    assert [item.prompt for item in items] == prompts
    for name, place in (("small", 0), ("other", 1)):
        parts = (prompts[:3], prompts[3:7], prompts[7:])  # rounding depends on what is answered together
        said = [a.text.strip() or "(empty)" for part in parts for a in models[name].generate(part, plan)]
        assert [item.answers[place].text for item in items] == said
        assert {item.answers[place].model for item in items} == {name}
    assert Sampler(store, models, prompts, plan).done == 10
    assert Sampler(store, models, prompts, Sampling(max_tokens=5, temperature=0.9, seed=1)).done == 0
    with pytest.raises(KamertonError, match="temperature 0 gives the same answer each time"):
        Sampler(store, models, prompts, Sampling(n=2))


@pytest.mark.usefixtures("one_thread")
def test_from_labels_on_the_page_to_an_aligned_model(cli: Cli, small_folder: Path, tmp_path: Path) -> None:
    """Labels through the page's own requests → export → `kamerton align` with DPO, which learns from their pairs."""
    made = FeedbackStore(tmp_path / "s.sqlite")
    examples = tiny.colours(30, 1)
    made.add(
        make_item(e.messages, [Candidate("red", "one"), Candidate("blue", "two")], name=f"e{n}")
        for n, e in enumerate(examples)
    )
    with client(made) as asked:
        while (question := start(asked)["question"]) is not None:
            scores = [float(text == "blue") for text in question["answers"]]
            found = asked.post("/api/labels", json={
                "labeller": "Anna", "question": question["id"], "scores": scores, "token": f"token-{question['id']:04}",
            })  # fmt: skip
            assert found.status_code == 200
    made.close()
    status, out, _ = cli("feedback", "export", tmp_path / "s.sqlite", "--output", tmp_path / "p.jsonl")
    assert (status, out) == (0, f"{tmp_path}/p.jsonl: 30 questions with judged answers, of 30 labels\n")
    (tmp_path / "r.yaml").write_text(
        f"task: {{data: p.jsonl, max_answer_tokens: 6}}\nbase: {{model: {small_folder}, dtype: float32}}\n"
        "methods:\n- lora: {objective: dpo, learning_rate: 0.01, validations: 2}\nbudget: {steps: 8}\n"
    )
    status, out, err = cli("align", tmp_path / "r.yaml", "--output", tmp_path / "aligned")
    assert status == 0, err
    assert (tmp_path / "aligned" / "adapter_model.safetensors").is_file()
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {row["graded"][0]["answer"] for row in rows} == {"blue"}

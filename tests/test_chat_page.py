"""The chat page in headless Chromium: streaming, side by side, judgements, the prompt, texts that stay texts, the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny
from kamerton.base import Base, load_base
from kamerton.feedback.store import FeedbackStore
from kamerton.inference import Sampling
from kamerton.methods.history import fit_turns
from kamerton.methods.method import Adapted
from kamerton.serving.api_guard import OPEN
from kamerton.serving.settings import Limits, Settings
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget
from served import TURNS, Running, running, wait_for
from tiny import fit

pytest_plugins = ("tiny", "served", "label_server")
pytestmark = pytest.mark.usefixtures("one_thread")

EVIL = "<img src=x onerror=document.title=1><script>document.title=2</script>&amp;"
KEY = "a-long-kéy of letters"


@pytest.fixture(scope="module")
def evil(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """A model that was trained to answer everything with the text above."""
    examples = tuple(Example(str(n), conversation([("user", f"say {n}")]), (EVIL,)) for n in range(8))
    task = Task("evil", examples, examples[:2], examples[:2], ("exact-match",), max_answer_tokens=120)
    return fit(
        small_base,
        "full",
        tmp_path_factory.mktemp("evil"),
        task=task,
        budget=Budget(steps=120),
        learning_rate=1e-2,
        validations=1,
    )


@pytest.fixture(scope="module")
def plain(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapted]:
    return lambda name: fit(
        small_base, name, tmp_path_factory.mktemp(name), **({"shots": 2} if name == "few-shot" else {})
    )


@pytest.fixture(scope="module")
def served(
    plain: Callable[[str], Adapted], evil: Adapted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, FeedbackStore]]:
    store = FeedbackStore(tmp_path_factory.mktemp("store") / "judged.sqlite")
    models = {"small": plain("zero-shot"), "few": plain("few-shot"), "evil": evil}
    with running(models, Settings(Limits(grace=2, answer=300)), store) as made:
        yield made, store
    store.close()


def opened(page: Any, server: Running, **fields: str) -> None:
    """The page, with settings filled in."""
    page.goto(server.url)
    page.locator("#message").wait_for()
    page.get_by_role("button", name="Settings").click()
    for name, value in {"seed": "5", "max_tokens": "20", "temperature": "0.8", **fields}.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Settings").click()


def ask(page: Any, text: str) -> list[str]:
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Answer again").wait_for()
    assert page.locator(".error:not(:empty)").all_inner_texts() == []
    return said(page)


def said(page: Any) -> list[str]:
    return page.locator("li:last-child .said").evaluate_all("all => all.map(one => one.textContent)")


def cleaned(text: str) -> str:
    """What the page shows of an answer: what no request may hold is one sign for all."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join("\ufffd" if (c < " " and c not in "\t\n") or c == "\x7f" else c for c in text)


def test_a_conversation_grows_word_by_word_and_is_kept(page: Any, served: Any, plain: Callable[[str], Adapted]) -> None:
    server, _ = served
    opened(page, server, system="Be brief.", max_tokens="60")
    page.evaluate(
        "new MutationObserver(() => { (window.grew ??= []).push(document.querySelector('.said')?.textContent.length) })"
        ".observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true})"
    )
    first = ask(page, "the green river")
    assert len(set(page.evaluate("grew"))) > 3
    alone, sampling = plain("zero-shot"), Sampling(max_tokens=60, temperature=0.8, seed=5)
    turns: list[tuple[Any, str]] = [("system", "Be brief."), ("user", "the green river")]
    answer = alone.generate([conversation(turns)], sampling)[0]
    assert first == [cleaned(answer.text)]
    page.locator("#message").fill("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    assert page.locator("li").count() == 1
    second = ask(page, "two\nlines")
    turns += [("assistant", first[0]), ("user", "two\nlines")]
    assert second == [cleaned(alone.generate([conversation(turns)], sampling)[0].text)]
    numbers = page.locator("li:first-child .numbers").inner_text()
    assert f"{answer.prompt_tokens} tokens read, {len(answer.tokens)} written" in numbers
    # what a screen reader is told, put together, is the answer
    assert "".join(second[0].split()) in "".join(page.locator("#spoken").inner_text().split())
    page.reload()
    page.get_by_role("button", name="Answer again").wait_for()
    assert said(page) == second
    assert page.locator("#system").input_value() == "Be brief."
    page.get_by_role("button", name="New", exact=True).click()
    assert page.locator("li").count() == 0
    page.get_by_role("button", name="Bring the last one back").click()
    assert said(page) == second


def test_escape_stops_an_answer_that_is_shown_as_it_grows(page: Any, served: Any, long: dict[str, Any]) -> None:
    server, _ = served
    opened(page, server, system=TURNS[0][1], max_tokens="300", temperature="1", seed=str(long["seed"]))
    for _ in range(10):  # a machine that is fast, and busy elsewhere, may be through before the key
        page.get_by_role("button", name="New", exact=True).click()
        page.locator("#message").fill(TURNS[1][1])
        page.keyboard.press("Enter")
        page.locator("li:last-child .said:not(:empty)").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Answer again").wait_for()
        if "stopped after" in page.locator("li:last-child .numbers").inner_text():
            break
    else:
        pytest.fail("no answer could be stopped while it grew")
    assert said(page) != [""]
    assert page.locator("#stop").is_hidden()
    wait_for(lambda: server.hub.running == 0)


def test_side_by_side_and_judgements_that_are_stored_and_taken_back(page: Any, served: Any) -> None:
    server, store = served
    opened(page, server, system="Be brief.", labeller="Anna")
    page.get_by_role("button", name="Side by side").click()
    left, right = ask(page, "the white stone")
    assert left != right
    answers = page.locator("li:last-child .answer")
    better = answers.nth(1).get_by_role("button", name="This one is better")
    for press, state, standing in ((1, "true", 1), (2, "false", 0), (3, "true", 1)):
        better.click()
        page.locator("#status", has_text="Stored." if standing else "Taken back.").wait_for()
        assert better.get_attribute("aria-pressed") == state
        assert len(store.labels(kind="comparison")) == standing, press
    (label,) = store.labels(kind="comparison")
    item = store.item(label.item)
    assert item is not None
    assert (label.labeller, item.source) == ("Anna", "chat")
    assert {item.answers[i].text: score for i, score in label.by_answer.items()} == {left: 0, right: 1}
    assert [a.model for a in item.answers] == ["small", "few"]
    assert item.answers[0].about == {"temperature": 0.8, "max_tokens": 20, "seed": 5}
    assert [(m.role, m.content) for m in item.prompt] == [("system", "Be brief."), ("user", "the white stone")]
    # the other one is better after all
    answers.nth(0).get_by_role("button", name="This one is better").click()
    page.locator(".answer:nth-child(1).better").wait_for()
    (label,) = store.labels(kind="comparison")
    assert {item.answers[i].text: score for i, score in label.by_answer.items()} == {left: 1, right: 0}
    better.click()
    page.locator(".answer:nth-child(2).better").wait_for()

    # the conversation goes on with the better one, in both models' prompts and in what is stored
    page.get_by_role("button", name="Side by side").click()
    (third,) = ask(page, "and the bread")
    assert page.locator(".went").all_inner_texts() == ["goes on with this one"]
    page.get_by_role("button", name="Bad answer").last.click()
    page.locator("#status", has_text="Stored.").wait_for()
    (thumb,) = store.labels(kind="thumbs")
    judged = store.item(thumb.item)
    assert judged is not None
    assert thumb.scores == (0.0,)
    assert judged.answers[0].text == third
    assert judged.prompt[2].content == right
    page.reload()
    pressed = page.get_by_role("button", name="Bad answer").last
    pressed.wait_for()
    assert pressed.get_attribute("aria-pressed") == "true"
    pressed.click()
    page.locator("#status", has_text="Taken back.").wait_for()
    assert store.labels(kind="thumbs") == []


def test_what_is_stored_is_exported(page: Any, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kamerton.cli.main import run

    server, store = served
    opened(page, server, seed="9")
    page.get_by_role("button", name="Side by side").click()
    left, right = ask(page, "a market by the river")
    page.get_by_role("button", name="This one is better").first.click()
    page.locator("#status", has_text="Stored.").wait_for()
    out = tmp_path / "pairs.jsonl"
    monkeypatch.setattr("sys.argv", ["kamerton", "feedback", "export", str(store.path), "--output", str(out)])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code in (0, None)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    graded = [[(one["answer"], one["score"]) for one in line["graded"]] for line in lines]
    assert any(sorted(pairs) == sorted([(left, 1), (right, 0)]) for pairs in graded), lines


def test_the_prompt_is_the_renderers(page: Any, served: Any, plain: Callable[[str], Adapted]) -> None:
    server, _ = served
    opened(page, server, system="Be brief.")
    page.get_by_role("button", name="Side by side").click()
    page.locator("#message").fill("the <|end|> river & <b>stone</b>")
    page.get_by_role("button", name="Prompt").click()
    page.locator("#prompts pre").nth(1).wait_for()
    shown = page.locator("#prompts pre").evaluate_all("all => all.map(one => one.textContent)")
    turns = conversation([("system", "Be brief."), ("user", "the <|end|> river & <b>stone</b>")])
    models = [plain("zero-shot"), plain("few-shot")]
    assert shown == [model.renderer.text(model.prepare(turns)) for model in models]
    assert shown[0] != shown[1]
    counts = [f"{model.prompt_tokens(turns)} tokens" for model in models]
    assert page.locator("#prompts .quiet").all_inner_texts() == counts
    page.keyboard.press("Escape")
    assert page.locator("#prompt").is_hidden()


def test_the_oldest_turns_are_left_out_and_the_page_says_where(page: Any, tmp_path: Path) -> None:
    narrow = load_base(tiny.save(tmp_path / "narrow", positions=200), dtype="float32", device="cpu")
    alone = fit(narrow, "zero-shot", tmp_path / "a")
    store = FeedbackStore(tmp_path / "judged.sqlite")
    with running({"narrow": fit(narrow, "zero-shot", tmp_path / "b")}, Settings(Limits(grace=2)), store) as server:
        opened(page, server, system="Be brief.", max_tokens="20")
        turns: list[tuple[Any, str]] = [("system", "Be brief.")]
        note = page.locator(".dropped")
        for n in range(8):
            turns.append(("user", f"the green river and the white stone {n}"))
            kept, dropped = fit_turns(alone, conversation(turns), 20)
            (answer,) = ask(page, turns[-1][1])
            assert answer == cleaned(alone.generate([kept], Sampling(max_tokens=20, temperature=0.8, seed=5))[0].text)
            turns.append(("assistant", answer))
            assert note.count() == bool(dropped)
            if dropped:
                assert page.locator("#turns > li").nth(dropped).locator(".dropped").count() == 1
        assert dropped > 1
        assert note.inner_text() == "What is above no longer fits the model's context and is not sent any more."
        # what is stored of a judgement, and what the prompt shows, is what the model was asked
        page.get_by_role("button", name="Bad answer").last.click()
        page.locator("#status", has_text="Stored.").wait_for()
        item = store.item(store.labels(kind="thumbs")[0].item)
        assert item is not None
        assert item.prompt == kept
        page.get_by_role("button", name="Prompt").click()
        page.locator("#prompts pre").wait_for()
        assert page.locator("#prompts pre").evaluate("one => one.textContent") == alone.renderer.text(kept)
        page.keyboard.press("Escape")
        page.locator("#message").fill("apple " * 300)
        page.keyboard.press("Enter")
        page.locator(".error", has_text="Not answered: the model has 200 positions").wait_for()
        page.reload()
        page.get_by_role("button", name="Answer again").wait_for()
        assert page.locator("#turns > li").count() == 9
    store.close()
    page.problems[:] = [one for one in page.problems if "400" not in one]


def test_texts_stay_texts(page: Any, served: Any) -> None:
    server, _ = served
    opened(page, server, temperature="0", max_tokens="100")
    page.locator("#model-0").select_option("evil")
    assert ask(page, "say 1") == [EVIL]
    page.locator("#system").evaluate("(one, text) => { one.value = text }", EVIL)
    ask(page, EVIL)
    assert page.locator("li:last-child .asked").inner_text() == EVIL
    page.get_by_role("button", name="Prompt").click()
    page.locator("#prompts pre").wait_for()
    assert page.locator("#prompts pre").inner_text().count("onerror") >= 3
    assert page.locator("main img, main script, dialog img, dialog script, #spoken img, #spoken script").count() == 0
    assert page.title() == "Kamerton: chat"


def test_a_key_is_asked_for_and_kept_for_the_tab(page: Any, plain: Callable[[str], Adapted]) -> None:
    with running({"small": plain("zero-shot")}, Settings(Limits(grace=2), key=KEY)) as server:
        for path in (path for path in OPEN if path != "/healthz"):
            found = httpx.get(server.url + path)
            assert found.status_code == 200
            assert "script-src 'self'" in found.headers["content-security-policy"]
        for path in ("/page/settings", "/v1/models", "/static/label.js", "/static/../app.py"):
            assert httpx.get(server.url + path).status_code == 401
        page.goto(server.url)
        field = page.get_by_label("This server wants its key")
        field.fill("another")
        page.keyboard.press("Enter")
        page.locator("#key-wrong", has_text="That is not the key.").wait_for()
        field.fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#message").wait_for()
        ask(page, "the green river")
        assert page.get_by_role("button", name="Good answer").count() == 0  # nothing is kept here
        page.reload()
        page.get_by_role("button", name="Answer again").wait_for()
        assert KEY not in json.dumps(page.evaluate("({...localStorage})"), ensure_ascii=False)
        assert page.url == f"{server.url}/"
    page.problems[:] = [one for one in page.problems if "401" not in one]


def test_what_is_not_the_pages_is_refused(served: Any) -> None:
    server, store = served
    good = {"messages": [{"role": "user", "content": "a"}], "answers": [{"model": "m", "text": "b"}], "kind": "thumbs",
            "scores": [1]}  # fmt: skip
    before = store.state()

    def send(change: dict[str, Any] | None = None, path: str = "/page/feedback", **headers: str) -> httpx.Response:
        return httpx.post(server.url + path, json={**good, **(change or {})}, headers=headers)

    for headers in ({"origin": "https://else.where"}, {"sec-fetch-site": "cross-site"}):
        assert send(**headers).json()["error"]["code"] == "cross_site"
        assert send(path="/page/prompt", **headers).status_code == 403
    for change in (
        {"scores": [0.5]}, {"scores": [1, 0]}, {"scores": None}, {"kind": "comparison"}, {"answers": good["answers"] * 2},
        {"labeller": "\u200b"}, {"labeller": ""}, {"messages": []}, {"more": 1}, {"scores": ["1"]},
        {"messages": [{"role": "assistant", "content": "a"}]}, {"answers": [{"model": "m", "text": "\x00"}]},
        {"kind": "comparison", "scores": [1, 0], "answers": good["answers"] * 2},
    ):  # fmt: skip
        assert send(change).status_code == 400, change
    assert store.state() == before
    assert send().json()["undone"] is False
    assert send({"scores": None}).json()["undone"] is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(browser: Any, served: Any, scheme: str) -> None:
    server, _ = served
    context = browser.new_context(viewport={"width": 390, "height": 780}, color_scheme=scheme)
    page = context.new_page()
    opened(page, server)
    page.get_by_role("button", name="Side by side").click()
    ask(page, "averylongwordwithoutaspace" * 10)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    assert (sum(map(int, before.strip("rgb()").split(","))) > 384) == (scheme == "light")
    page.get_by_role("button", name="Dark" if scheme == "light" else "Light").click()
    assert page.evaluate(colour) != before
    page.reload()
    page.locator("#message").wait_for()
    assert page.evaluate(colour) != before
    context.close()

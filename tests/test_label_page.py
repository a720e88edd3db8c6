"""The labelling page in headless Chromium: keyboard, undo, restarts, kills, texts that stay texts."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kamerton.feedback.records import Candidate, Kind, Label, make_item
from kamerton.feedback.store import FeedbackStore
from kamerton.tasks.example import conversation
from label_server import LabelServer, serving

pytest_plugins = ("label_server",)

EVIL = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> **and** &amp; </div>"


def filled(path: Path, items: int = 6, answers: int = 2) -> FeedbackStore:
    store = FeedbackStore(path)
    store.add(
        make_item(
            conversation([("system", "Be brief."), ("user", f"Question {n}? {EVIL}")]),
            [Candidate(f"answer {n} of {'abc'[i]} {EVIL}", f"model-{'abc'[i]}") for i in range(answers)],
            name=f"item-{n}",
        )
        for n in range(items)
    )
    return store


def enter(page: Any, url: str, name: str = "Anna") -> None:
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    page.locator("#question").wait_for()


def saved(page: Any, words: str) -> None:
    page.locator("#status", has_text=words).wait_for()


def shown(page: Any) -> tuple[str, list[str]]:
    return page.locator("#turns .user .said").inner_text(), page.locator(".answer .said").all_inner_texts()


def standing(store: FeedbackStore) -> list[Label]:
    return store.labels()


def said_of(store: FeedbackStore, label: Label) -> dict[str, float]:
    item = store.item(label.item)
    assert item is not None
    return {item.answers[i].text: score for i, score in label.by_answer.items()}


def test_labelling_by_keyboard_with_skip_and_undo(page: Any, tmp_path: Path) -> None:
    store = filled(tmp_path / "s.sqlite")
    with serving(store.path) as server:
        enter(page, server.url)
        seen = []
        for key, words, scores in (
            ("1", "A is better", (1, 0)), ("ArrowRight", "B is better", (0, 1)), ("t", "a tie", (0.5, 0.5)),
            ("4", "both bad", (0, 0)), ("s", "skipped", None),
        ):  # fmt: skip
            seen.append((shown(page), scores))
            page.keyboard.press(key)
            saved(page, f"Saved: {words}.")
            label = standing(store)[-1]
            (_, answers), _ = seen[-1]
            # what the labeller saw on the left is what got the score of the left
            assert said_of(store, label) == ({} if scores is None else dict(zip(answers, scores, strict=True)))
            assert label.seconds is None or label.seconds < 30
        assert page.locator("#count").inner_text() == "4 of 6, 1 skipped"
        page.keyboard.press("u")
        saved(page, "Undone.")
        assert shown(page) == seen[-1][0]
        page.keyboard.press("u")
        page.locator("#count", has_text="3 of 6").wait_for()
        assert shown(page) == seen[-2][0]
        assert [label.undone is not None for label in store.labels(undone=True)] == [False] * 3 + [True] * 2
        # a shortcut with a modifier is the browser's, and switched off it is nobody's
        page.keyboard.press("Control+1")
        page.keyboard.press("?")
        page.get_by_label("Shortcuts are on").uncheck()
        page.get_by_role("button", name="Close").click()
        page.keyboard.press("1")
        page.get_by_role("button", name="Both bad").click()
        saved(page, "Saved: both bad. 4 of 6")
        page.get_by_role("button", name="Skip").click()
        saved(page, "Saved: skipped")
        page.get_by_role("button", name="Tie").click()
        page.get_by_role("heading", name="That is all. Thank you!").wait_for()
        page.get_by_role("button", name="Ask what I skipped").click()
        page.locator("#question").wait_for()
        assert page.locator("#count").inner_text() == "5 of 6"
        assert page.title() == "Kamerton: label"


def test_texts_stay_texts_and_models_are_hidden(page: Any, tmp_path: Path) -> None:
    store = filled(tmp_path / "s.sqlite")
    bodies: list[str] = []
    with serving(store.path) as server:
        page.on("response", lambda got: bodies.append(got.text()) if "/api/" in got.url else None)
        enter(page, server.url, "Bobby <img src=x onerror=alert(1)>")
        question, answers = shown(page)
        assert question.endswith(EVIL)
        assert all(text.endswith(EVIL) for text in answers)
        assert page.locator("main img, main script, header img").count() == 0
        page.keyboard.press("1")
        saved(page, "Saved")
        assert len(bodies) == 2
        assert not any("model-" in body or "item-" in body for body in bodies)
        page.goto(f"{server.url}results")
        assert "Bobby <img src=x onerror=alert(1)>" in page.locator("body").inner_text()
        assert page.locator("img").count() == 0
        assert page.title() == "s.sqlite: results of labelling"


@pytest.mark.parametrize(
    ("kind", "keys", "scores"),
    [("ranking", ["2", "1", "Backspace", "3", "Enter"], (0, 2, 1)), ("rating", ["0"], (10,)), ("thumbs", ["b"], (0,))],
)
def test_other_kinds_by_keyboard(page: Any, tmp_path: Path, kind: Kind, keys: list[str], scores: tuple[float]) -> None:
    store = filled(tmp_path / "s.sqlite", answers=3)
    with serving(store.path, kind) as server:
        enter(page, server.url)
        _, answers = shown(page)
        assert len(answers) == (3 if kind == "ranking" else 1)
        for key in keys:
            page.keyboard.press(key)
        saved(page, "Saved")
        (label,) = standing(store)
        assert (label.kind, label.scores) == (kind, scores)
        assert said_of(store, label) == dict(zip(answers, scores, strict=True))


def test_a_server_that_goes_away_loses_nothing(page: Any, tmp_path: Path) -> None:
    """Stopped in the middle: the page says that nothing is saved, goes on by itself, and comes back where it was."""
    store = filled(tmp_path / "s.sqlite")
    with serving(store.path) as server:
        enter(page, server.url)
        page.keyboard.press("1")
        saved(page, "Saved: A is better. 1 of 6")
        before = shown(page)
        server.end()
        assert server.process.exitcode in (0, -signal.SIGTERM)
        page.keyboard.press("2")
        saved(page, "Not saved yet: the server does not answer. Trying again")
        page.keyboard.press("1")  # does nothing: the first one is still on its way
        assert len(standing(store)) == 1
        server.start()
        saved(page, "Saved: B is better. 2 of 6")
        assert [label.scores for label in standing(store)] == [(1.0, 0.0), (0.0, 1.0)]
        after = shown(page)
        assert after != before
        page.reload()
        page.locator("#question").wait_for()
        assert shown(page) == after
        assert page.locator("#count").inner_text() == "2 of 6"
        page.keyboard.press("u")
        saved(page, "Undone")
        assert shown(page) == before
        page.problems[:] = [one for one in page.problems if "ERR_CONNECTION_REFUSED" not in one]


def test_two_labellers_have_their_own_orders_and_progress(page: Any, browser: Any, tmp_path: Path) -> None:
    store = filled(tmp_path / "s.sqlite", items=30)
    with serving(store.path) as server:
        enter(page, server.url, "Anna")
        for n in range(5):
            page.keyboard.press("1")
            page.locator("#count", has_text=f"{n + 1} of 30").wait_for()
        other = browser.new_page()
        enter(other, server.url, "Ben")
        assert other.locator("#count").inner_text() == "0 of 30"
        orders = [
            [
                row
                for row in store.db.execute(
                    "SELECT item, shown FROM assignments WHERE labeller = ? ORDER BY place", (n,)
                )
            ]
            for n in ("Anna", "Ben")
        ]
        assert orders[0] != orders[1]
        other.close()
        page.locator("#who").click()
        page.get_by_label("Your name").fill("Ben")
        page.keyboard.press("Enter")
        page.locator("#count", has_text="0 of 30").wait_for()


def test_a_key_is_asked_for_and_kept_out_of_the_address(page: Any, tmp_path: Path) -> None:
    store, key = filled(tmp_path / "s.sqlite"), "a-long-key-of-letters"
    with serving(store.path, key=key) as server:
        page.goto(server.url)
        page.get_by_label("This server wants its key").fill("a-wrong-key-of-letters")
        page.get_by_role("button", name="Open").click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("This server wants its key").fill(key)
        page.get_by_role("button", name="Open").click()
        page.get_by_label("Your name").wait_for()
        assert page.url == server.url
        assert key not in json.dumps(page.context.cookies())
        enter(page, server.url)
        page.keyboard.press("1")
        saved(page, "Saved")
        page.goto(f"{server.url}results")
        page.get_by_role("heading", name="What people said").wait_for()
    page.problems[:] = [one for one in page.problems if "401" not in one]


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_every_acknowledged_label_is_there(page: Any, tmp_path: Path, times: int) -> None:
    """SIGKILL at random moments, while the page labels and undoes as fast as it can."""
    store, rng = filled(tmp_path / "s.sqlite", items=1500), random.Random(0)
    acknowledged: dict[str, dict[str, Any]] = {}

    def note(request: Any) -> None:
        response = request.response() if "/api/labels" in request.url or "/api/undo" in request.url else None
        if response is not None and response.status == 200:
            sent = json.loads(request.post_data)
            acknowledged[sent.get("token") or f"undo {sent['label']}"] = sent

    with serving(store.path) as server:
        page.on("requestfinished", note)
        enter(page, server.url)
        kills, stop = 0, threading.Event()

        def kill_and_start() -> None:
            nonlocal kills
            while kills < times and not stop.is_set():
                enough = len(acknowledged) + rng.randint(1, 12)
                while len(acknowledged) < enough and not stop.is_set():
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.04))  # in the middle of whatever comes next
                server.end(signal.SIGKILL)
                kills += 1
                server.start()

        killer = threading.Thread(target=kill_and_start)
        killer.start()
        end = time.monotonic() + 120
        while killer.is_alive() and time.monotonic() < end:
            page.keyboard.press(rng.choice("1234suu"))
            page.wait_for_timeout(3)
        stop.set()
        killer.join(60)
        assert kills == times
        # the last one on its way arrives, or was refused; then the page can be asked again
        page.get_by_role("button", name="Skip").click(timeout=30_000)
        page.locator("#status", has_text="Saved: skipped").wait_for()
        count = page.locator("#count").inner_text()
        server.end(signal.SIGKILL)
    rows = store.db.execute("SELECT token, id, scores, undone FROM labels").fetchall()
    there = {token: (number, scores and json.loads(scores), undone) for token, number, scores, undone in rows}
    labels = {token: sent for token, sent in acknowledged.items() if not token.startswith("undo")}
    undone = [sent["label"] for token, sent in acknowledged.items() if token.startswith("undo")]
    assert len(labels) > 4 * times
    assert len(undone) >= times / 4
    for token, sent in labels.items():
        assert token in there, f"acknowledged and lost: {sent}"
        assert there[token][1] == sent["scores"]
    by_number = {number: taken_back for number, _, taken_back in there.values()}
    assert all(by_number[number] is not None for number in undone)
    stand = [label for label in store.labels() if label.scores is not None]
    assert count.startswith(f"{len(stand)} of 1500")
    assert len({label.item for label in store.labels()}) == len(store.labels())
    page.problems.clear()  # connections that were refused while it was down
    assert isinstance(server, LabelServer)

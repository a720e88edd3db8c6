"""`kamerton report`: the live page in headless Chromium over a comparison that runs, is killed, goes on and ends."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

import tiny
from kamerton.cli.main import app as command
from kamerton.comparison import progress as progress_module
from kamerton.comparison.progress import FitProgress, RunMark, curve_points, run_of
from kamerton.comparison.report import results_without_times
from kamerton.comparison.report.live import LiveComparison
from kamerton.errors import KamertonError
from kamerton.files import read_jsonl, write_json
from kamerton.pretraining.live import LivePretraining
from kamerton.pretraining.run import pretrain
from kamerton.serving.guard import Guard
from kamerton.serving.report_app import report_app
from kamerton.serving.runner import Server
from kamerton.serving.server import listen
from kamerton.training import Progress
from served import wait_for
from synthetic_comparison import FIVE, write_comparison

pytest_plugins = ("tiny", "label_server")

EVIL = "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> **b** &amp;"
KEY = "a-key-of-26-letters-0123456"
METHODS = "- zero-shot\n- lora: {batch_size: 8, validations: 2, rank: 2, learning_rate: 0.003}"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def open_page(folder: Path, key: str | None = None) -> Iterator[str]:
    """The app on loopback, in a thread."""
    sock, server = listen("127.0.0.1", 0), Server(Guard(report_app(folder), key=key))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()


def begin(recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kamerton", "compare", str(recipe), "--output", str(output), "--workers", "1"],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def end_well(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def plain(folder: Path) -> Any:
    return results_without_times(json.loads((folder / "results.json").read_text()))


# the states of all cells, and the curve of lora as often as it changed, from before the page's own script runs
WATCH = """
window.seen = {states: new Set(), curves: new Set(), nodes: new Set()};
new MutationObserver(() => {
  for (const cell of document.querySelectorAll('.cell')) {
    window.seen.nodes.add(cell);
    window.seen.states.add(cell.className + ': ' + cell.querySelector('.state').textContent);
  }
  for (const path of document.querySelectorAll('#panels .curve.train')) window.seen.curves.add(path.getAttribute('d'));
}).observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    """Long enough that the page sees it train; the answer to one test question is a script."""
    task = tiny.colour_task()
    return tiny.write_recipe(
        tmp_path_factory.mktemp("r"), small_folder, METHODS, task=task, budget="{steps: 60}", forgetting="false"
    )


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory, browser: Any) -> dict[str, Any]:
    """A comparison that ran while a page watched it from before its beginning, and what the page saw."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    with open_page(folder) as url:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(120_000)
        page.add_init_script(WATCH)
        page.goto(url)
        page.locator("#phase.empty").wait_for()
        empty = page.locator("#summary").inner_text()
        assert not folder.exists(), "watching makes no folder"
        process = begin(recipe, folder)
        page.locator("#phase.finished").wait_for()
        end_well(process)
        page.locator("#far", has_text="Verdict").wait_for()
        page.locator("#summary", has_text="4 of 4 cells done.").wait_for()
        page.locator("#side .card").first.wait_for()
        page.wait_for_function("document.querySelectorAll('.cell .score:not(:empty)').length === 4")
        page.wait_for_function("document.querySelectorAll('#shown input').length === 2")
        seen = page.evaluate(
            "({states: [...seen.states], curves: [...seen.curves], cells: [...seen.nodes].length,"
            " verdict: document.getElementById('verdict').innerText, title: document.title})"
        )
        yield {"folder": folder, "page": page, "empty": empty, **seen}
        page.close()


def test_a_comparison_is_watched_from_before_its_beginning_to_its_verdict(straight: dict[str, Any]) -> None:
    found = json.loads((straight["folder"] / "results.json").read_text())
    assert "Nothing is in this folder yet" in straight["empty"]
    states = set(straight["states"])
    assert {"cell running: training", "cell waiting: waiting", "cell done: done"} <= states
    assert not any("failed" in state or "interrupted" in state for state in states)
    assert straight["cells"] == 4, "no row was made anew"
    assert len(straight["curves"]) >= 3, "the curve grew"
    assert found["verdict"]["sentences"][0] in straight["verdict"]
    assert straight["title"] == "colours · finished"
    scores = straight["page"].locator(".cell .score").all_inner_texts()
    own = [cell["metrics"]["exact-match"] for label in ("zero-shot", "lora") for m in found["methods"]
           if m["label"] == label for cell in m["cells"]]  # fmt: skip
    assert scores == [f"{100 * value:.1f}%" for value in own]
    assert not list(straight["folder"].rglob("progress.json"))
    assert not (straight["folder"] / "run.json").exists()


def test_answers_side_by_side_by_method_seed_and_what_is_right(straight: dict[str, Any]) -> None:
    page, folder = straight["page"], straight["folder"]
    right = {
        label: [
            row["statistics"]["exact-match"][0] for row in read_jsonl(folder / f"cells/{label}/seed-1/answers.jsonl")
        ]
        for label in ("zero-shot", "lora")
    }
    wrong = sum(value < 1 for value in right["lora"])
    differ = sum(a != b for a, b in zip(right["zero-shot"], right["lora"], strict=True))
    page.locator("select[name=seed]").select_option("1")
    for chosen, method, count in (("wrong", "lora", wrong), ("right", "lora", 16 - wrong), ("disagree", "", differ)):
        page.locator("select[name=filter]").select_option(chosen)
        if method:
            page.locator("select[name=method]").select_option(method)
        assert page.locator("#count").inner_text() == f"{count} of 16 examples"
    page.locator("select[name=filter]").select_option("all")
    assert page.locator(".card").count() == 10
    page.locator("select[name=size]").select_option("25")
    assert page.locator(".card").count() == 16
    assert page.locator(".card").first.locator(".answers .label").all_inner_texts() == ["zero-shot", "lora"]
    page.locator("#shown summary").click()
    page.locator("#shown input[value=zero-shot]").uncheck()
    assert page.locator(".card").first.locator(".answers .label").all_inner_texts() == ["lora"]
    page.locator("#shown input[value=zero-shot]").check()
    # a cell's record, by keyboard
    page.get_by_role("button", name="Record of lora, seed 1").focus()
    page.keyboard.press("Enter")
    page.locator("#about[open]").wait_for()
    record = page.locator("#about-text").inner_text()
    assert json.loads(record) == json.loads((folder / "cells/lora/seed-1/cell.json").read_text())
    page.keyboard.press("Escape")
    assert not page.locator("#about").is_visible()


@pytest.mark.slow
def test_killed_it_says_so_and_goes_on_to_the_same_results(
    straight: dict[str, Any], recipe: Path, tmp_path: Path, page: Any
) -> None:
    folder = tmp_path / "out"
    page.set_default_timeout(120_000)
    with open_page(folder) as url:
        page.goto(url)
        process = begin(recipe, folder)
        page.locator(".cell.running .what", has_text="step").wait_for()
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.locator("#phase.interrupted").wait_for()
        # its worker lives for a moment longer: the cell may be done by then
        page.locator(".cell.interrupted .what, .cell.done, .cell.waiting").first.wait_for()
        assert "It does not run now" in page.locator("#summary").inner_text()
        assert "kamerton compare" in page.locator("#command").inner_text().replace("__main__.py", "kamerton")
        again = begin(recipe, folder)
        page.locator("#phase.running").wait_for()
        assert not page.locator("#command").is_visible()
        page.locator("#phase.finished").wait_for()
        end_well(again)
    assert plain(folder) == plain(straight["folder"])
    assert not list(folder.rglob("progress.json"))


def test_what_models_and_users_wrote_stays_text(page: Any, tmp_path: Path) -> None:
    """In names, answers, errors, and in what a running cell says of itself; on the live page and in the full report."""
    mark = RunMark(tmp_path)
    mark.say(EVIL)
    write_comparison(
        tmp_path, FIVE[:4], seeds=(0, 1), examples=12, hostile=EVIL, failed=[("few-shot", 1)], missing=[("lora", 1)]
    )
    write_json(
        tmp_path / "cells/lora/seed-1/progress.json",
        {"run": mark.id, "stage": EVIL, "text": EVIL, "share": 0.5, "phase": EVIL, "started": time.time(), "curve": {}},
    )
    with open_page(tmp_path) as url:
        page.goto(url)
        page.locator(".card").first.wait_for()
        assert EVIL in page.locator("h1").inner_text()
        assert EVIL in page.locator(".cell.running .what").inner_text()
        assert EVIL in page.locator(".cell.failed .what").inner_text()
        assert any(EVIL in text for text in page.locator(".answer").all_inner_texts())
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2, "our own two"
        page.get_by_role("button", name="Record of few-shot, seed 1").click()
        page.locator("#about[open]").wait_for()
        assert "out of memory" in page.locator("#about-text").inner_text()
        assert page.title() != "hacked"
        page.goto(f"{url}report")
        page.locator(".card").first.wait_for()
        assert page.title() != "hacked"
        assert page.locator("img").count() == 0
    mark.end()


def test_on_a_phone_nothing_is_wider_than_the_window(browser: Any, tmp_path: Path) -> None:
    write_comparison(tmp_path, FIVE, seeds=(0, 1), examples=12, failed=[("few-shot", 1)])
    with open_page(tmp_path) as url:
        page = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme="dark")
        page.goto(url)
        page.locator(".card").first.wait_for()
        widths = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
        assert widths == [360, 360]
        how = page.locator(".answers .how").first.evaluate("one => [one.offsetWidth, one.parentNode.clientWidth]")
        assert how[0] == how[1], "how an answer came about has the whole line, as the answer has"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(23, 24, 22)", "dark where the system is"
        page.close()


def test_a_server_that_ends_is_missed_and_found_again(page: Any, tmp_path: Path) -> None:
    write_comparison(tmp_path, FIVE[:2], seeds=(0,), examples=8)
    with open_page(tmp_path) as url:
        page.goto(url)
        page.locator(".card").first.wait_for()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#lost", has_text="The server does not answer").wait_for()
    assert page.locator(".card").count() == 8, "what was shown stays"
    page.problems[:] = [one for one in page.problems if "ERR_CONNECTION_REFUSED" not in one]


# -- the app, without a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("the secret", encoding="utf-8")
    (tmp_path / "out" / "secret.txt").parent.mkdir()
    (tmp_path / "out" / "secret.txt").write_text("the secret", encoding="utf-8")
    write_comparison(tmp_path / "out", FIVE[:3], seeds=(0,), examples=8)
    return tmp_path / "out"


def ask(folder: Path, key: str | None = None, base: str = "http://localhost") -> TestClient:
    guarded = Guard(report_app(folder), key=key, open_paths=("/healthz",))
    return TestClient(guarded, base_url=base, follow_redirects=False)


UP = ("..", "%2e%2e", "..%2f..", "....//", "%252e%252e", "..\\", "/", "secret.txt", "out/secret.txt", "\x00", "~")


@pytest.mark.parametrize("up", UP)
def test_no_request_reaches_the_file_system(five: Path, up: str) -> None:
    asked = ask(five)
    paths = [f"/static/{up}/secret.txt", f"/static/{up}", f"/{up}/secret.txt", f"/report/{up}", f"/api/{up}"]
    for path in paths:
        found = asked.get(path.replace("\x00", "%00"))
        assert found.status_code in (200, 307, 404), path
        assert "the secret" not in found.text
        assert found.status_code != 200 or "<title>" in found.text, "where .. was taken out: one of our two pages"
    for label, seed in ((up, 0), (f"{up}/zero-shot", 0), (f"zero-shot/{up}", 0), ("zero-shot/../few-shot", 0)):
        found = asked.get("/api/cell", params={"label": label, "seed": seed})
        assert found.status_code == 404, label
    assert asked.get("/api/cell", params={"label": "zero-shot", "seed": up}).status_code == 422
    assert asked.get("/api/cell", params={"label": "zero-shot", "seed": 0}).json()["label"] == "zero-shot"


def test_who_may_ask(five: Path) -> None:
    assert ask(five, base="http://evil.example").get("/api/state").status_code == 403
    asked = ask(five, KEY)
    for path in ("/", "/api/state", "/api/answers", "/api/curves", "/report", "/results.json", "/static/report.js"):
        assert asked.get(path).status_code == 401, path
        found = asked.get(path, headers={"authorization": f"Bearer {KEY}"})
        assert found.status_code == 200, path
        assert "default-src 'none'" in found.headers["content-security-policy"]
    assert asked.get("/healthz").status_code == 200
    assert asked.post("/api/state", headers={"authorization": f"Bearer {KEY}"}).status_code == 405


@pytest.mark.parametrize("broken", ["settings.json", "race.json", "run.json", "cells/lora/seed-0/cell.json",
                                    "cells/lora/seed-0/progress.json", "cells/lora/seed-0/curve.jsonl"])  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"methods": 3}'])
def test_a_broken_file_breaks_nothing(tmp_path: Path, broken: str, content: bytes) -> None:
    write_comparison(tmp_path, FIVE[2:4], seeds=(0,), examples=4)
    (tmp_path / broken).write_bytes(content)
    asked = ask(tmp_path)
    for path in ("/api/state", "/api/curves", "/api/answers"):
        assert asked.get(path).status_code < 500, path


# -- states ------------------------------------------------------------------------------------------------------------


def states(folder: Path) -> dict[tuple[str, int], str]:
    told = LiveComparison(folder).state()
    return {(m["label"], cell["seed"]): cell["state"] for m in told["methods"] for cell in m["cells"]}


def test_states_of_cells(tmp_path: Path) -> None:
    """What failed before this run is tried again, what a race stopped is not, and another process' number is not ours."""
    write_comparison(tmp_path, FIVE[:4], seeds=(0, 1), examples=4, failed=[("few-shot", 0)],
                     missing=[("lora", 1), ("prompt-tuning", 1)])  # fmt: skip
    write_json(
        tmp_path / "race.json", {"stopped": [{"label": "prompt-tuning", "leader": "lora", "share": 0.25, "seed": 0}]}
    )
    expected = {(m[0], seed): "done" for m in FIVE[:4] for seed in (0, 1)}
    expected |= {("few-shot", 0): "failed", ("lora", 1): "waiting", ("prompt-tuning", 1): "stopped"}
    assert states(tmp_path) == expected
    assert LiveComparison(tmp_path).state()["phase"] == "interrupted"
    os.utime(tmp_path / "cells/few-shot/seed-0/cell.json", (1, 1))
    mark = RunMark(tmp_path)
    assert states(tmp_path) == expected | {("few-shot", 0): "waiting"}
    fit = FitProgress(tmp_path / "cells/lora/seed-1", mark.id, "f")
    assert states(tmp_path)["lora", 1] == "running"
    FitProgress(tmp_path / "cells/few-shot/seed-0", "an earlier run", "f")
    assert states(tmp_path)["few-shot", 0] == "waiting"
    about = json.loads((tmp_path / "run.json").read_text())
    write_json(tmp_path / "run.json", {**about, "created": about["created"] - 1000})  # its number was given away since
    assert states(tmp_path)["lora", 1] == "interrupted"
    write_json(tmp_path / "run.json", about)
    fit.end()
    assert states(tmp_path)["lora", 1] == "waiting"
    mark.end()
    assert run_of(tmp_path) == ({}, False)


def test_a_run_on_another_machine_is_known_by_its_news(tmp_path: Path) -> None:
    RunMark(tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["host"] == platform.node()
    assert run_of(tmp_path)[1]
    write_json(tmp_path / "run.json", {**about, "host": "elsewhere", "pid": 1})
    assert run_of(tmp_path)[1]
    os.utime(tmp_path / "run.json", (1, 1))
    assert not run_of(tmp_path)[1]
    write_json(tmp_path / "run.json", {**about, "pid": max(psutil.pids()) + 1000})
    assert not run_of(tmp_path)[1]


def test_a_pretraining_is_shown_too(tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "out"
    texts.write_text("\n\n".join(f"Line {n}: " + " ".join(tiny.WORDS[n % 9 :]) for n in range(120)), encoding="utf-8")
    recipe = {
        "model": {"preset": "llama", "width": 32, "depth": 2, "heads": 2}, "tokenizer": "bytes", "context": 32,
        "data": {"train": str(texts), "held_out": 0.1, "documents": "paragraph"}, "budget": {"steps": 8},
        "samples": {"prompts": ["Line"], "tokens": 8}, "training": {"batch_size": 4, "learning_rate": 0.01},
    }  # fmt: skip
    assert pretrain(recipe, output=out, stop_after=3) is None
    told = LivePretraining(out).state()
    assert (told["phase"], told["methods"][0]["cells"][0]["state"]) == ("interrupted", "interrupted")
    assert ask(out).get("/report").status_code == 404
    made = pretrain(recipe, output=out)
    assert made is not None
    asked = ask(out)
    told = asked.get("/api/state").json()
    wait_for(lambda: asked.get("/api/state").json()["verdict"] is not None)
    assert told["phase"] == "finished"
    assert "<svg" in next(iter(asked.get("/api/curves").json().values()))
    assert asked.get("/report").text == (out / "report.html").read_text()
    assert not (out / "progress.json").exists()


# -- what a fit says of itself -----------------------------------------------------------------------------------------

ROWS = st.lists(
    st.fixed_dictionaries(
        {"tokens": st.integers(0, 10**6), "loss": st.floats(-10, 10)}, optional={"validation_loss": st.floats(0, 9)}
    ),
    max_size=60,
)


@given(ROWS, st.integers(1, 20))
def test_a_thinned_curve_keeps_its_mean(rows: list[dict[str, float]], most: int) -> None:
    for key in ("loss", "validation_loss"):
        values = [row[key] for row in rows if key in row]
        found = curve_points(rows, key, most)
        assert len(found) <= most
        size = max(1, -(-len(values) // most))
        weights = [min(size, len(values) - i) for i in range(0, len(values), size)]
        assert sum(w * v for w, (_, v) in zip(weights, found, strict=True)) == pytest.approx(sum(values), abs=1e-6)


def test_points_that_are_no_numbers_are_left_out() -> None:
    rows = [{"tokens": 1, "loss": float("nan")}, {"tokens": 2, "loss": 1.0}, {"tokens": 3, "loss": float("inf")}]
    assert curve_points(rows, "loss", 10) == [(2.0, 1.0)]


def test_progress_is_written_at_a_bounded_rate_and_counts_what_was_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, writes = [100.0], []
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    own = progress_module.write_json
    monkeypatch.setattr(progress_module, "write_json", lambda *a, **k: (writes.append(clock[0]), own(*a, **k)))
    fit = FitProgress(tmp_path, "r", "f")
    curve: list[dict[str, float]] = []
    for step in range(1, 2001):
        clock[0] += 0.01
        curve.append({"tokens": 10.0 * step, "loss": 1.0 / step})
        fit.watch("training", Progress(step / 4000, step, 1.0 / step, None, 1.0, 1.0, {}, 10 * step, 0.5, "a", curve))
        fit.report("training", step / 4000, "")
    assert 15 <= len(writes) <= 22, "about once a second, of 2,000 steps in 20 seconds"
    told = json.loads((tmp_path / "progress.json").read_text())
    assert told["phase"] == "training"
    assert told["steps"] == 4000
    assert len(told["curve"]["loss"]) <= 120
    # a second candidate, and the same fit in another process after a kill: what was spent is summed over both
    again = FitProgress(tmp_path, "s", "f")
    clock[0] += 5
    again.watch("training", Progress(0.5, 1, 1.0, None, 1.0, 1.0, {}, 7, 0.5, "b", curve))
    again.report("training", 0.5, "")
    assert json.loads((tmp_path / "progress.json").read_text())["tokens"] == told["tokens"] + 7
    other = FitProgress(tmp_path, "s", "another fit")
    assert json.loads((tmp_path / "progress.json").read_text())["tokens"] == 0
    other.end()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_no_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress_module, "write_json", full)
    FitProgress(tmp_path, "r", "f").report("training", 0.5, "")
    RunMark(tmp_path).say("something")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_report_again(five: Path) -> None:
    found = CliRunner().invoke(command, ["report", str(five)])
    assert found.exit_code == 0, found.output
    assert f"report: {five / 'report.html'}" in found.output.replace("\n", "")
    assert "lora" not in found.output
    assert (five / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such comparison folder"),
        (["."], "no comparison is in this folder"),
        (["nowhere", "--serve", "--host", "0.0.0.0"], "there is no key"),
        (["nowhere", "--serve", "--host", "0.0.0.0", "--api-key", "short"], "is no key of at least 16"),
        (["file", "--serve"], "is no folder"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAMERTON_API_KEY", raising=False)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if arguments == ["."] else tmp_path)
    found = CliRunner().invoke(command, ["report", *arguments])
    assert isinstance(found.exception, KamertonError), found.output
    assert words in str(found.exception)


def test_ctrl_c_ends_the_page_and_not_with_an_error(five: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kamerton", "report", str(five), "--serve", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("open http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert rest.endswith("stopped\n")
    assert errors == ""

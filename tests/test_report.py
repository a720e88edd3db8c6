"""The report's files: complete, the same for the same cells, and safe whatever users and models write."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kamerton.comparison.report import load_comparison, results, results_without_times, write_report
from kamerton.comparison.report.answers import script_json, side_by_side
from kamerton.comparison.report.svg import cost_axis, linear, nice_ticks
from kamerton.comparison.units import fixed, quantity
from kamerton.errors import KamertonError
from synthetic_comparison import FIVE, twenty, write_comparison

HOSTILE = (
    "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><!-- --> ]]> "
    "\u2028\u2029 & ' \" {{7*7}} {% raise %} \\ $x$ %&_#{}~^ \x00"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_comparison(tmp_path_factory.mktemp("five"))
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Parser(HTMLParser):
    """Tags, attributes, text by element, and whether elements nest."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.stack and tag in ("p", "li") and self.stack[-1] != tag:
            return
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif self.stack and self.stack[-1] != "style":
            self.text.append(data)


def test_all_files_are_written_and_agree(folder: Path) -> None:
    found = json.loads((folder / "results.json").read_text())
    rows = list(csv.DictReader((folder / "results.csv").open()))
    labels = [row["label"] for row in found["verdict"]["rows"]]
    assert [row["label"] for row in rows] == labels
    assert float(rows[0]["value"]) == pytest.approx(found["verdict"]["rows"][0]["value"])
    # the mean over seeds of what the cells themselves say
    lora = next(m for m in found["methods"] if m["label"] == "lora")
    own = [cell["metrics"]["exact-match"] for cell in lora["cells"]]
    assert lora["metrics"]["exact-match"]["value"] == pytest.approx(sum(own) / 3)
    markdown, latex = (folder / "table.md").read_text(), (folder / "table.tex").read_text()
    for label in labels:
        assert f"| {label} |" in markdown
        assert f"& {label} &" in latex
    assert latex.count(r"\\") == len(labels) + 1
    assert r"\toprule" in latex
    assert not list(folder.glob(".*")), "temporary files are gone"


def test_forgetting_stands_in_every_table(folder: Path, page: str) -> None:
    """KL and the change of bits a byte as numbers that line up, not only as points."""
    found = json.loads((folder / "results.json").read_text())
    markdown, latex = (folder / "table.md").read_text().splitlines(), (folder / "table.tex").read_text()
    rows = re.search(r'<table class="forgot">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert rows is not None
    shown = re.findall(r'<th[^>]*>(.*?)</th>((?:<td class="num">.*?</td>)+)', rows[1])
    assert [name for name, _ in shown] == [row["label"] for row in found["verdict"]["rows"]]
    for name, cells in shown:
        own = next(m for m in found["methods"] if m["label"] == name)["forgetting"]
        kl, change = f"{own['kl']:.4f}", f"{own['bits_per_byte_change']:+.4f}".replace("+0.0000", "0.0000")
        assert re.findall(r">([^<>]+)</td>", cells) == [kl, change, f"{own['bits_per_byte']:.4f}"]
        (line,) = [line for line in markdown if f"| {name} |" in line]
        assert line.endswith(f"| {kl} | {change} |")
        assert re.search(rf"& {name} &.*& {kl} & {re.escape(change)} \\\\", latex)
    head = next(line for line in markdown if line.startswith("| Rank"))
    assert head.count("|") == markdown[markdown.index(head) + 1].count("|")
    spec = re.search(r"\\begin\{tabular\}\{(\w+)\}", latex)
    assert spec is not None
    assert len(spec[1]) == head.count("|") - 1


def test_numbers_of_a_column_line_up() -> None:
    assert [fixed(v) for v in (0, 0.00004, 0.0213, 12.34567, None)] == ["0.0000", "0.0000", "0.0213", "12.3457", "–"]
    signed = [fixed(v, sign=True) for v in (0.0, -0.00001, 0.01234, -0.5)]
    assert signed == ["0.0000", "0.0000", "+0.0123", "\N{MINUS SIGN}0.5000"]


def test_page_is_well_formed_self_contained_and_whole(page: str) -> None:
    parser = Parser(page)
    assert parser.stack == []
    for tag, attrs in parser.tags:
        assert tag not in ("link", "img", "iframe", "object")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("#")
    assert "http://" not in page
    assert "https://" not in page
    assert re.search(r"url\(|@import", page) is None
    ids = [attrs["id"] for _, attrs in parser.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {a["href"] for t, a in parser.tags if t == "a" and a.get("href")}
    assert all(str(anchor)[1:] in ids for anchor in anchors)
    for section in ("scores", "cost", "differences", "curves", "forgetting", "groups", "answers", "repeat"):
        assert section in ids
    text = "".join(parser.text)
    assert "No single method can be called best" in text
    assert "kamerton compare dates.yaml" in text
    assert "torch" in text
    assert "3 of 256 training examples were cut" in text


def test_findings_and_marks_are_shown_and_joined_over_seeds(folder: Path, page: str) -> None:
    found = json.loads((folder / "results.json").read_text())
    methods = {m["label"]: m for m in found["methods"]}
    assert methods["prompt-tuning"]["marks"] == ["fragile"]
    assert methods["lora"]["marks"] == methods["lora"]["findings"] == []
    phrasings, votes = methods["few-shot"]["findings"]
    assert phrasings["seeds"] == votes["seeds"] == [0, 1, 2]
    assert [row[1] for row in phrasings["rows"]] == pytest.approx([0.21, 0.1])
    assert votes["rows"] == [[1, pytest.approx(0.31)], [2, pytest.approx(0.36)], [4, pytest.approx(0.41)],
                             [8, pytest.approx(0.46)]]  # fmt: skip
    text = "".join(Parser(page).text)
    assert "mean of seeds 0, 1, 2" in text
    assert "Write it as ISO 8601." in text
    assert "fragile" in text
    assert "Day, month, year." in "".join(Parser(page).scripts), "how an answer came about"


def test_findings_that_differ_in_words_stand_apart() -> None:
    from kamerton.comparison.report.data import Cell
    from kamerton.comparison.report.findings import joined

    def cell(word: str, value: float) -> Cell:
        rows = [[1, word, value]]
        finding = {"title": "t", "columns": ["n", "which", "v"], "rows": rows, "curve": False, "note": ""}
        return Cell({"findings": [finding]}, [], {}, [])

    found = joined({0: cell("a", 1.0), 1: cell("a", 3.0), 2: cell("b", 5.0)})
    assert [(f["seeds"], f["rows"]) for f in found] == [([0, 1], [[1, "a", 2.0]]), ([2], [[1, "b", 5.0]])]


def test_content_security_policy_lets_only_our_script_run(page: str) -> None:
    import base64
    import hashlib

    policy = re.search(r"script-src 'sha256-([^']+)'", page)
    assert policy is not None
    ours = Parser(page).scripts[-1]
    assert base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode() == policy[1]
    assert "default-src 'none'" in page


def test_embedded_answers_are_the_cells_answers(folder: Path, page: str) -> None:
    data = json.loads(Parser(page).scripts[0])
    assert len(data["items"]) == 240
    assert data["judge"] == "exact-match"
    place = data["methods"].index("lora")
    run = next(r for r in data["runs"] if r["m"] == place and 1 in r["seeds"])
    lines = [json.loads(line) for line in (folder / "cells/lora/seed-1/answers.jsonl").open()]
    assert run["a"] == [line["answer"] for line in lines]
    assert run["s"] == [line["statistics"]["exact-match"][0] for line in lines]
    # a deterministic method is stored once
    zero = data["methods"].index("zero-shot")
    assert [r["seeds"] for r in data["runs"] if r["m"] == zero] == [[0, 1, 2]]
    assert data["system"] == "Write the date as YYYY-MM-DD."
    assert "c" not in data["items"][0]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    methods = [(m[0] + "<b>\"'&" if m[0] == "lora" else m[0], *m[1:]) for m in FIVE]
    write_comparison(tmp_path, methods, seeds=(0,), examples=30, hostile=HOSTILE, failed=[("full", 0)])
    path = write_report(tmp_path)
    text = path.read_bytes().decode("utf-8")
    parser = Parser(text)
    assert parser.stack == []
    assert [t for t, _ in parser.tags].count("script") == 2
    assert not any(t in ("img", "b") for t, _ in parser.tags)
    assert "{{7*7}}" in html.unescape("".join(parser.text)), "nothing was evaluated"
    data = json.loads(parser.scripts[0])
    assert data["items"][0]["q"].endswith(HOSTILE)
    assert any(HOSTILE in answer for run in data["runs"] for answer in run["a"])
    assert "\u2028" not in parser.scripts[0]
    for line in (tmp_path / "table.tex").read_text().splitlines():
        assert not re.search(r"(?<!\\)[#_]", line), "unescaped LaTeX"


def test_script_json_survives_everything() -> None:
    nasty = {"</script>": ["<!--<script>", "-->", "\u2028\u2029", "&lt;", "\x00", "\ud800", "𝄞", "\\u003c"]}
    text = script_json(nasty)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == nasty


def test_half_a_surrogate_in_an_answer_can_be_written(tmp_path: Path) -> None:
    write_comparison(tmp_path, FIVE[:2], seeds=(0,), examples=20)
    file = tmp_path / "cells/zero-shot/seed-0/answers.jsonl"
    lines = file.read_text().splitlines()
    first = json.loads(lines[0]) | {"answer": "a\ud83d b"}
    file.write_text("\n".join([json.dumps(first), *lines[1:]]))
    data = json.loads(Parser(write_report(tmp_path).read_text(encoding="utf-8")).scripts[0])
    assert any(run["a"][0] == "a\ud83d b" for run in data["runs"])


def test_results_repeat_times_aside(tmp_path: Path) -> None:
    methods = FIVE[:3]
    one = write_comparison(tmp_path / "one", methods, seeds=(0, 1), examples=60, clock=1.0)
    two = write_comparison(tmp_path / "two", methods, seeds=(0, 1), examples=60, clock=3.7)
    first, second = (results(load_comparison(f)) for f in (one, two))
    assert first != second
    assert results_without_times(first) == results_without_times(second)
    assert results(load_comparison(one)) == first
    left = json.dumps(results_without_times(first))
    assert "seconds" not in left
    assert "peak_memory" not in left
    assert "flops" in left


def test_changed_answer_changes_results(tmp_path: Path) -> None:
    """The comparison of results can fail: one answer more that is right shows."""
    write_comparison(tmp_path, FIVE[:2], seeds=(0,), examples=40)
    before = results_without_times(results(load_comparison(tmp_path)))
    file = tmp_path / "cells/zero-shot/seed-0/answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["statistics"]["exact-match"] = [1 - lines[3]["statistics"]["exact-match"][0]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert results_without_times(results(load_comparison(tmp_path))) != before


def test_unfinished_and_failed_cells(tmp_path: Path) -> None:
    write_comparison(tmp_path, examples=40, missing=[("lora", 2), ("full", 1)], failed=[("few-shot", 0)])
    text = "".join(Parser(write_report(tmp_path).read_text()).text)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cells"] == {"planned": 15, "finished": 12, "failed": 1}
    assert not found["complete"]
    assert "12 of 15 cells have finished" in text
    assert "out of memory" in text
    assert "lora has no result for seed 2" in text


def test_nothing_finished(tmp_path: Path) -> None:
    write_comparison(tmp_path, examples=5, failed=[(m[0], s) for m in FIVE for s in (0, 1, 2)])
    assert "there is nothing to report" in write_report(tmp_path).read_text()
    assert json.loads((tmp_path / "results.json").read_text())["methods"] == []
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "nothing to report" in write_report(bare).read_text()


def test_missing_settings_examples_and_costs_are_survived(tmp_path: Path) -> None:
    write_comparison(tmp_path, FIVE[:3], examples=30, seeds=(0, 1))
    (tmp_path / "settings.json").unlink()
    (tmp_path / "test.jsonl").unlink()
    for file in tmp_path.glob("cells/*/*/cell.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({k: record[k] for k in ("label", "method", "seed", "status")}))
    text = write_report(tmp_path).read_text()
    assert Parser(text).stack == []
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["methods"][0]["flops"]["fit"] is None
    assert found["verdict"]["best_for_cost"] == []


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("settings.json", "{", "settings.json: cannot be read as JSON"),
        ("settings.json", "[]", "settings.json: is not a JSON object"),
        ("test.jsonl", '{"id": "a"}\n', "test.jsonl:1: not a test example"),
        ("test.jsonl", "{}\n{oops\n", "test.jsonl"),
        ("cells/lora/seed-0/answers.jsonl", "", "a finished cell has no answers"),
        ("cells/lora/seed-0/answers.jsonl", '{"id": "test-0000", "answer": 1}\n{x', "answers.jsonl:2: broken JSON"),
        ("cells/lora/seed-0/answers.jsonl", '{"id": "other", "answer": ""}\n', "not those of test.jsonl"),
        ("cells/lora/seed-0/cell.json", '{"label": "lora"}', "no 'seed'"),
        ("cells/lora/seed-0/cell.json", "", "cannot be read as JSON"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, file: str, content: str, says: str) -> None:
    write_comparison(tmp_path, [FIVE[0], FIVE[3]], seeds=(0,), examples=10)
    (tmp_path / file).write_text(content)
    with pytest.raises(KamertonError) as error:
        write_report(tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_no_folder() -> None:
    with pytest.raises(KamertonError, match="no such comparison folder"):
        write_report("nowhere/at/all")


def test_large_answers_are_cut_with_a_word(folder: Path) -> None:
    comparison = load_comparison(folder)
    data = side_by_side(comparison, comparison.labels, limit=40_000)
    assert 0 < len(data["items"]) < 240
    assert all(len(run["a"]) == len(data["items"]) for run in data["runs"])
    assert "Only the first" in data["left_out"]
    assert len(script_json(data)) < 60_000
    assert side_by_side(comparison, comparison.labels)["left_out"] == ""


def test_twenty_methods_and_metrics_without_single_scores(tmp_path: Path) -> None:
    write_comparison(tmp_path, twenty(), examples=24, seeds=(0, 1), metrics=("macro-f1", "bleu"))
    parser = Parser(write_report(tmp_path).read_text())
    assert parser.stack == []
    data = json.loads(parser.scripts[0])
    assert data["judge"] is None
    assert data["runs"][0]["s"] is None
    assert len(data["methods"]) == 20


def test_ticks() -> None:
    assert nice_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(3, 3)
    axis = cost_axis([0, 9_000, 500_000, 134_000_000], 0, 700, quantity)
    assert axis.logarithmic
    assert axis.gap is not None
    places = [axis.place(v) for v in (0, 9_000, 500_000, 134_000_000)]
    assert places == sorted(places)
    assert places[0] < axis.gap < places[1]
    assert places[-1] <= 700
    flat = linear([5.0, 5.0], 0, 100)
    assert 0 <= flat.place(5.0) <= 100


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom(path: Path, profile: Path, hash_: str = "", width: int = 800) -> str:
    command = [
        str(BROWSER), f"--window-size={width},900",
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri() + hash_,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def shown(text: str) -> tuple[int, list[str]]:
    count = re.search(r'id="count"[^>]*>(\d+) of', text)
    assert count is not None
    return int(count[1]), re.findall(r'class="meta">(test-\d+)', text)


def oracle(folder: Path, wanted: Any) -> list[str]:
    """The examples that a filter should show, from the cells' files alone."""
    right: dict[str, dict[str, float]] = {}
    for label, *_ in FIVE:
        for line in (folder / f"cells/{label}/seed-1/answers.jsonl").open():
            found = json.loads(line)
            right.setdefault(found["id"], {})[label] = found["statistics"]["exact-match"][0]
    return [key for key, scores in right.items() if wanted(scores)]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to run the page's script in")
@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("#filter=disagree&seed=1", lambda s: len(set(s.values())) > 1),
        ("#filter=only-right&method=full&seed=1", lambda s: s["full"] == 1 and sum(s.values()) == 1),
        ("#filter=only-wrong&method=zero-shot&seed=1", lambda s: s["zero-shot"] == 0 and sum(s.values()) == 4),
        ("#filter=all-wrong&seed=1", lambda s: not sum(s.values())),
        ("#filter=nonsense&seed=1", lambda s: True),
    ],
)
def test_filters_in_a_browser(folder: Path, tmp_path: Path, state: str, wanted: Any) -> None:
    count, ids = shown(dom(folder / "report.html", tmp_path, state))
    expected = oracle(folder, wanted)
    assert count == len(expected)
    assert ids == expected[:10]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to run the page's script in")
def test_search_pages_groups_and_plots_in_a_browser(folder: Path, tmp_path: Path) -> None:
    text = dom(folder / "report.html", tmp_path, "#group=unseen&q=juillet&page=2&cost=tokens")
    tests = [json.loads(line) for line in (folder / "test.jsonl").open()]
    expected = [t["id"] for t in tests if t["group"] == "unseen" and "juillet" in t["messages"][-1]["content"]]
    count, ids = shown(text)
    assert count == len(expected)
    assert ids == expected[10:20]
    figures = re.findall(r'<figure class="quality" data-plot="(\w+)"( hidden="")?', text)
    assert [key for key, hidden in figures if not hidden] == ["tokens"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to run the page's script in")
def test_twenty_rows_are_no_wider_than_the_window(tmp_path: Path) -> None:
    """Tables that are wider scroll in themselves. Planted: a line that cannot be broken."""
    write_comparison(tmp_path / "c", twenty(), examples=24, seeds=(0, 1))
    page = write_report(tmp_path / "c").read_text()
    ruler = (
        "<script>addEventListener('load', () => { const r = document.documentElement; "
        "r.setAttribute('data-room', r.clientWidth + ' ' + r.scrollWidth); })</script></body>"
    )
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert without_policy != page
    for name, body in (("own", ""), ("planted", f'<p style="white-space: nowrap">{"x" * 400}</p>')):
        (tmp_path / f"{name}.html").write_text(without_policy.replace("</body>", body + ruler))
        for width in (500, 1300):
            measured = re.search(r'data-room="(\d+) (\d+)"', dom(tmp_path / f"{name}.html", tmp_path / "p", "", width))
            assert measured is not None
            room, taken = map(int, measured.groups())
            assert width - 20 <= room <= width
            assert (taken > room) == (name == "planted")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to run the page's script in")
def test_hostile_text_runs_nothing_in_a_browser(tmp_path: Path) -> None:
    write_comparison(tmp_path / "c", FIVE[:3], seeds=(0,), examples=30, hostile=HOSTILE)
    text = dom(write_report(tmp_path / "c"), tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
    assert title is not None
    assert title[1] != "pwned"
    assert title[1].startswith("dates&lt;/script&gt;") or title[1].startswith("dates</script>")
    assert "<img" not in text
    assert shown(text)[0] == 30

"""Documents, passages and the index: reading, cutting, search against plain computations, updates, kills."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.errors import KamertonError, MissingExtra
from kamerton.retrieval import upkeep
from kamerton.retrieval.documents import Document, DocumentError, Part, find, from_rows, read, sections
from kamerton.retrieval.hits import fuse
from kamerton.retrieval.index import PassageIndex
from kamerton.retrieval.passages import Cutting, cut, spans
from words_encoder import WordsEncoder

pytest.importorskip("lancedb")
ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("KAMERTON_DATA", ROOT.parent / "shared" / "data"))


def document(name: str, text: str, title: str = "") -> Document:
    return Document(name, title, (Part(text),))


@pytest.fixture
def index(tmp_path: Path) -> PassageIndex:
    return PassageIndex.create(tmp_path / "index", encoder=WordsEncoder(), cutting=Cutting(16, 4))


def texts(index: PassageIndex) -> set[tuple[str, str]]:
    hits, _ = index.vectors()
    return {(hit.source, hit.passage.text) for hit in hits}


# -- passages -------------------------------------------------------------------------------------------------------

WORDS = re.compile(r"\S+")


def words(text: str) -> list[tuple[int, int]]:
    return [m.span() for m in WORDS.finditer(text)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "bb", "end.", "stop!", "\n", "\n\n", " ", "  "]), max_size=200).map(" ".join),
    st.integers(2, 30),
    st.data(),
)
def test_spans_cover_the_text_and_keep_to_the_size(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    found = spans(text, Cutting(size, overlap), words)
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    for (start, end), (after, _) in itertools.pairwise(found):
        assert start < after <= end, "nothing is left out, and every span goes forward"
        assert len(words(text[after:end])) <= overlap
    assert all(len(words(text[start:end])) <= size for start, end in found)


def test_cuts_are_where_a_reader_pauses() -> None:
    text = "One two three four. Five six seven eight nine.\n\nTen eleven twelve. Thirteen fourteen."
    assert [text[a:b].strip() for a, b in spans(text, Cutting(10, 0), words)] == [
        "One two three four. Five six seven eight nine.", "Ten eleven twelve. Thirteen fourteen.",
    ]  # fmt: skip
    assert text[slice(*spans(text, Cutting(6, 0), words)[0])].strip() == "One two three four."
    # a sentence on a border stands whole in the next passage
    shared = spans(text, Cutting(10, 5), words)
    assert text[slice(*shared[1])].startswith("Five six seven eight nine.")
    # without any pause: between two tokens
    assert spans("x" * 50, Cutting(10, 0), lambda t: [(i, i + 1) for i in range(len(t))]) == [
        (i, i + 10) for i in range(0, 50, 10)
    ]


def test_passages_keep_to_headings_and_pages() -> None:
    parts = (Part("a b c", heading="First", page=1), Part("d e", heading="Second", page=2))
    passages = cut(Document("x", "Title", parts), Cutting(16, 0), words)
    assert [(p.text, p.context, p.page, p.number) for p in passages] == [
        ("a b c", "Title › First", 1, 0), ("d e", "Title › Second", 2, 1),
    ]  # fmt: skip


# -- documents ------------------------------------------------------------------------------------------------------


def pdf(*pages: str) -> bytes:
    """A PDF written by hand: one line of text a page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        kids.append(f"{len(objects) + 1} 0 R")
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} /Contents {len(objects) + 2} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(pages)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    return (
        out
        + f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(places) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF".encode()
    )


def test_markdown_is_cut_at_headings_outside_code() -> None:
    title, parts = sections(
        "intro\n\n# Guide\n\n## Set-up ##\nrun\n```bash\n# not a heading\n```\n### Deep\nx\n## Other\ny\n"
    )
    assert title == "Guide"
    assert [(p.heading, p.text) for p in parts] == [
        ("", "intro"), ("Set-up", "run\n```bash\n# not a heading\n```"), ("Set-up › Deep", "x"), ("Other", "y"),
    ]  # fmt: skip


def test_every_kind_is_read(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.txt").write_bytes("\ufeffНаш кот спит.".encode())
    (tmp_path / "b.md").write_text('---\ntitle: "The title"\n---\n# Other\nText of b.\n')
    page = (
        "<html><head><title>Hours</title><script>var secret = 1;</script></head><body><nav>Home | About</nav>"
        "<article><h1>Opening hours</h1><p>We open at nine &amp; close at five on every working day.</p></article></body></html>"
    )
    (tmp_path / "c.html").write_text(page)
    (tmp_path / "d.html.gz").write_bytes(gzip.compress(page.encode()))
    (tmp_path / "e.pdf").write_bytes(pdf("Kettles boil at noon.", "", "Second text."))
    assert read(tmp_path / "a.txt").parts[0].text == "Наш кот спит."
    assert read(tmp_path / "b.md").title == "The title"
    for name in ("c.html", "d.html.gz"):
        html = read(tmp_path / name)
        said = " ".join(p.text for p in html.parts)
        assert "nine & close" in said
        assert "secret" not in said
        assert "Opening hours" in html.title
    made = read(tmp_path / "e.pdf")
    assert [(p.text, p.page) for p in made.parts] == [("Kettles boil at noon.", 1), ("Second text.", 3)]
    assert made.title == "e"


def test_articles_are_taken_out_of_real_pages() -> None:
    """Words of what was read against the article as people marked it (article-extraction-benchmark)."""
    import json

    folder = DATA / "article_html"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set KAMERTON_DATA to the folder of data sets")
    marked = json.loads((folder / "ground-truth.json").read_text())
    scores = []
    for file in find([folder / "html"]).files[:12]:
        said = " ".join(f"{p.heading} {p.text}" for p in read(file).parts)
        own, wanted = (Counter(re.findall(r"\w+", t)) for t in (said, marked[file.name.split(".")[0]]["articleBody"]))
        scores.append(2 * (own & wanted).total() / (own.total() + wanted.total()))
    assert sum(scores) / len(scores) > 0.9


def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path: Path) -> None:
    import pypdf

    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "scan.pdf")
    writer.encrypt("secret")
    writer.write(tmp_path / "locked.pdf")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing else")
    (tmp_path / "empty.md").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("one\nnaïve".encode("latin-1"))
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "none.html").write_text("<html><body><script>1</script></body></html>")
    (tmp_path / "cut.md.gz").write_bytes(b"\x1f\x8b\x08 cut")
    says = {
        "scan.pdf": "scanned", "locked.pdf": "password", "broken.pdf": "not a PDF", "empty.md": "holds no text",
        "latin.txt": "latin.txt:2: is not UTF-8", "binary.txt": "zero bytes", "none.html": "no text",
        "cut.md.gz": "cannot be read",
    }  # fmt: skip
    for name, words_ in says.items():
        with pytest.raises(DocumentError) as caught:
            read(tmp_path / name)
        line = str(caught.value)
        assert name in line
        assert words_ in line
        assert caught.value.mend
        assert "\n" not in line
    for path in (tmp_path / "no.md", tmp_path / "cut.docx"):
        if path.suffix == ".docx":
            path.write_text("x")
        with pytest.raises(DocumentError, match="check the path" if path.suffix == ".md" else "not read"):
            find([path])


def test_folders_go_on_and_count(tmp_path: Path, index: PassageIndex) -> None:
    folder = tmp_path / "docs"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "x.md").write_text("hidden")
    (folder / "a.md").write_text("cats sleep")
    (folder / "b.md").write_text("")
    (folder / "c.png").write_bytes(b"x")
    outcome = upkeep.add(index, [folder])
    assert str(outcome) == "documents: 1 added, 0 updated, 0 unchanged, 1 passed over; 1 passages embedded"
    assert len(outcome.failed) == 1
    assert "b.md: holds no text" in outcome.failed[0]
    assert outcome.note == "left out, of other kinds: 1 .png"
    with pytest.raises(DocumentError, match=r"b\.md: holds no text"):
        upkeep.add(index, [folder / "b.md"])


def test_documents_from_rows() -> None:
    rows = [
        {"c": "x", "t": "A_b"},
        {"c": "y", "t": "A_b"},
        {"c": "x", "t": "A_b"},
        {"c": "", "t": "C"},
        {"c": "z", "t": "C"},
    ]
    documents, empty = from_rows(rows, "set", text="c", title="t")
    assert [(d.source, d.title, [p.text for p in d.parts]) for d in documents] == [
        ("set#A_b", "A b", ["x", "y"]), ("set#C", "C", ["z"]),
    ]  # fmt: skip
    assert empty == 1
    with pytest.raises(DocumentError, match=r"no column 'd'; use one of: c, t"):
        from_rows(rows, "set", text="d")


# -- search -----------------------------------------------------------------------------------------------------------

CORPUS = {
    "cats": "cats sleep long cats hunt mice", "dogs": "dogs guard house night", "mice": "mice eat cheese",
    "ships": "ships sail sea", "night": "night sea dark night long",
}  # fmt: skip


def bm25(question: str, corpus: dict[str, str], k1: float = 1.2, b: float = 0.75) -> dict[str, float]:
    """BM25 as Lucene computes it, written down plainly."""
    bags = {name: Counter(text.split()) for name, text in corpus.items()}
    mean = sum(sum(bag.values()) for bag in bags.values()) / len(bags)
    scores: dict[str, float] = {}
    for word in question.split():
        having = [name for name in bags if bags[name][word]]
        idf = math.log(1 + (len(bags) - len(having) + 0.5) / (len(having) + 0.5))
        for name in having:
            n, length = bags[name][word], sum(bags[name].values())
            scores[name] = scores.get(name, 0.0) + idf * n * (k1 + 1) / (n + k1 * (1 - b + b * length / mean))
    return scores


def test_searches_agree_with_plain_computations(index: PassageIndex) -> None:
    index.put([document(name, text) for name, text in CORPUS.items()])
    for question in ("cats", "cats mice", "cheese ships", "night dogs house"):
        vector = index.encoder.questions([question])[0]
        own = {name: float(index.encoder.questions([text])[0] @ vector) for name, text in CORPUS.items()}
        found = {h.source: h.score for h in index.search(question, 5, "vector")}
        assert found == pytest.approx(own, abs=1e-5)
        ranked = {h.source: h.score for h in index.search(question, 5, "full-text")}
        assert ranked == pytest.approx(bm25(question, CORPUS), rel=1e-4)
    assert [h.source for h in index.search('hunting mouse (AND "cats', 1, "full-text")] == ["cats"]
    assert index.search("the and is", 3, "full-text") == []  # stop words alone find nothing


def test_fusion_prefers_what_both_searches_find(index: PassageIndex) -> None:
    index.put([document(name, text) for name, text in CORPUS.items()])
    by_vector, by_words = index.by_vector(index.encoder.questions(["night sea"])[0], 5), index.by_words("night sea", 5)
    plain: dict[str, float] = {}
    for ranking in (by_vector, by_words):
        for rank, hit in enumerate(ranking, start=1):
            plain[hit.source] = plain.get(hit.source, 0) + 1 / (60 + rank)
    fused = fuse(by_vector, by_words)
    assert {h.source: h.score for h in fused} == pytest.approx(plain)
    assert [h.score for h in fused] == sorted(plain.values(), reverse=True)
    assert fused[:2] == index.search("night sea", 2, "hybrid")


# -- updates ------------------------------------------------------------------------------------------------------------


def test_an_update_replaces_one_document_and_nothing_else(index: PassageIndex) -> None:
    encoder = index.encoder
    assert isinstance(encoder, WordsEncoder)
    long = ". ".join(f"sentence number {n} of the first version" for n in range(20))
    index.put([document("it's", long), document("other", "cats sleep")])
    before = len(index)
    assert before > 4
    embedded = encoder.embedded
    changes = index.put([document("it's", "zebras graze"), document("other", "cats sleep")])
    assert (changes.added, changes.updated, changes.unchanged, changes.passages) == (0, 1, 1, 1)
    assert encoder.embedded == embedded + 1, "what did not change is not embedded again"
    assert texts(index) == {("it's", "zebras graze"), ("other", "cats sleep")}
    for how in ("vector", "full-text", "hybrid"):
        assert index.search("zebra graze zebras", 1, how)[0].source == "it's"
        assert all("version" not in h.passage.text for h in index.search("sentence of the first version", 5, how))
    # another reader, opened before, sees it too
    reader = PassageIndex.open(index.folder, WordsEncoder())
    index.put([document("other", "dogs bark")])
    assert reader.search("dogs bark", 1)[0].passage.text == "dogs bark"
    assert index.remove(["it's"]) == 1
    assert [e.source for e in reader.entries()] == ["other"]
    with pytest.raises(DocumentError, match="othr: is not in the index; did you mean other"):
        index.remove(["othr"])


def test_the_words_are_current_before_the_index_is_settled(
    index: PassageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.put([document("a", "cats sleep"), document("b", "ships sail")])
    monkeypatch.setattr(PassageIndex, "_settle", lambda self: None)  # as if killed right after the commit
    index.put([document("a", "zebras graze"), document("c", "dogs bark")])
    again = PassageIndex.open(index.folder, WordsEncoder())
    found = {word: [h.source for h in again.by_words(word, 5)] for word in ("cats", "zebras", "dogs", "ships")}
    assert found == {"cats": [], "zebras": ["a"], "dogs": ["c"], "ships": ["b"]}


def test_update_follows_files(tmp_path: Path, index: PassageIndex) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.md").write_text(f"text of {name}")
    upkeep.add(index, [folder])
    (folder / "a.md").write_text("changed text")
    (folder / "b.md").unlink()
    (folder / "d.md").write_text("new")
    outcome = upkeep.update(index)
    assert (outcome.changes.added, outcome.changes.updated, outcome.changes.unchanged) == (0, 1, 1)
    assert outcome.gone == [(folder / "b.md").as_posix()]
    outcome = upkeep.update(index, [folder], prune=True)
    assert (outcome.changes.added, outcome.pruned) == (1, 1)
    assert {t for _, t in texts(index)} == {"changed text", "text of c", "new"}
    (folder / "c.md").write_text("")  # what became unreadable keeps its old passages, and is told of
    outcome = upkeep.update(index)
    assert len(outcome.failed) == 1
    assert ("text of c") in {t for _, t in texts(index)}


WRITER = """
import sys
from kamerton.retrieval.documents import Document, Part
from kamerton.retrieval.index import PassageIndex
from words_encoder import WordsEncoder
index = PassageIndex.open(sys.argv[1], WordsEncoder())
print("ready", flush=True)
for n in range(100_000):
    text = ". ".join(f"round {n} sentence {i} of this text" for i in range(5 + n % 7 * 9))
    index.put([Document("moving", "", (Part(text),))])
"""


@pytest.mark.parametrize(
    "pauses",
    [
        pytest.param((0.65, 1.4), id="two"),
        pytest.param(tuple(0.05 + 0.137 * n % 1 for n in range(18)), id="eighteen", marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_the_old_or_the_new_document(tmp_path: Path, pauses: tuple[float, ...]) -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    versions = []
    for start in range(0, len(pauses), 3):  # a few writers at a time: they take long to start
        writers = []
        numbers = range(start, min(start + 3, len(pauses)))
        for n in numbers:
            index = PassageIndex.create(tmp_path / f"index-{n}", encoder=WordsEncoder(), cutting=Cutting(16, 0))
            index.put([document("still", "ships sail"), document("moving", "the first text")])
            command = [sys.executable, "-c", WRITER, str(index.folder)]
            writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        for pause, writer in zip(pauses[start : start + 3], writers, strict=True):
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        versions += [whole(tmp_path / f"index-{n}") for n in numbers]
    assert any(version > 0 for version in versions), "writers were killed while they wrote"


def whole(folder: Path) -> int:
    """Check that an index holds one version of its document, and answers and takes changes; which one it is."""
    index = PassageIndex.open(folder, WordsEncoder())
    hits = [h for h in index.vectors()[0] if h.source == "moving"]
    rounds = {re.match(r"round (\d+)|the first text", h.passage.text).group(1) for h in hits}  # type: ignore[union-attr]
    assert len(rounds) == 1, "passages of one version only"
    (version,) = rounds
    if version is not None:
        text = ". ".join(f"round {version} sentence {i} of this text" for i in range(5 + int(version) % 7 * 9))
        expected = cut(document("moving", text), Cutting(16, 0), words)
        assert [h.passage.text for h in hits] == [p.text for p in expected], "all of them"
        assert index.search(f"round {version} sentence", 1, "full-text")[0].source == "moving"
    assert index.search("ships sail", 1)[0].source == "still"
    index.put([document("moving", "zebras graze")])
    assert texts(index) == {("still", "ships sail"), ("moving", "zebras graze")}
    return -1 if version is None else int(version)


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(tmp_path: Path, index: PassageIndex) -> None:
    with pytest.raises(DocumentError, match="made by the encoder words, not by another; name the encoder"):
        PassageIndex.open(index.folder, WordsEncoder("another"))
    with pytest.raises(DocumentError, match=r"no index is here.*kamerton index add"):
        PassageIndex.open(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DocumentError, match="is no index; name a new folder"):
        PassageIndex.create(tmp_path / "full", encoder=WordsEncoder())
    for cutting in (Cutting(500, 10), Cutting(100, 90), Cutting(4, 0)):
        with pytest.raises(DocumentError, match="cannot be cut"):
            PassageIndex.create(tmp_path / "x", encoder=WordsEncoder(), cutting=cutting)
    with pytest.raises(DocumentError, match="did you mean Russian"):
        PassageIndex.create(tmp_path / "x", encoder=WordsEncoder(), language="russan")
    assert not (tmp_path / "x").exists()
    for content in ("{", '{"format": 9}', "[]", '{"format": 1}'):
        (index.folder / "index.json").write_text(content)
        with pytest.raises(KamertonError, match="build"):
            PassageIndex.open(index.folder)


def test_a_missing_library_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text("<p>text</p>")
    (tmp_path / "a.pdf").write_bytes(pdf("text"))
    for library, use in (
        ("lancedb", lambda: PassageIndex.create(tmp_path / "y", encoder=WordsEncoder())),
        ("sentence_transformers", lambda: PassageIndex.create(tmp_path / "y")),
        ("trafilatura", lambda: read(tmp_path / "a.html")),
        ("pypdf", lambda: read(tmp_path / "a.pdf")),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            says = rf"{library.replace('_', '-')} is not installed; run: pip install 'kamerton\[retrieval\]'"
            with pytest.raises(MissingExtra, match=says):
                use()
    assert not (tmp_path / "y").exists()


def test_two_writers_wait_for_each_other(index: PassageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("kamerton.retrieval.index.WAIT", 0.1)
    with FileLock(index.folder / ".lock"), pytest.raises(DocumentError, match="another process is writing"):
        index.put([document("a", "b")])


def test_a_damaged_index_is_one_line_and_a_begun_one_opens(index: PassageIndex, tmp_path: Path) -> None:
    import shutil

    index.put([document("a", "cats sleep")])
    # killed between index.json and the table
    (tmp_path / "begun").mkdir()
    shutil.copy(index.folder / "index.json", tmp_path / "begun")
    begun = PassageIndex.open(tmp_path / "begun", WordsEncoder())
    assert (len(begun), begun.entries(), begun.search("cats", 3)) == (0, [], [])
    begun.put([document("a", "cats sleep")])
    assert [h.source for h in begun.search("cats", 3)] == ["a"]
    for file in (index.folder / "passages.lance" / "data").iterdir():
        file.write_bytes(b"x")
    damaged = PassageIndex.open(index.folder, WordsEncoder())
    for ask in (damaged.entries, lambda: damaged.search("cats", 3, "vector"), damaged.vectors):
        with pytest.raises(DocumentError, match=r"the index cannot be read .*; build it again"):
            ask()
    for file in (index.folder / "passages.lance" / "_versions").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(DocumentError, match=r"the index cannot be read .*; build it again"):
        PassageIndex.open(index.folder, WordsEncoder())

"""Corpora end to end: numbers that add up, readers that survive anything, resuming, workers, planted duplicates."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus_sets import document, edited, page, sentences, vocabulary, write

pytest.importorskip("datatrove")

from kamerton.corpora import build_corpus
from kamerton.errors import KamertonError, RecipeError

RNG = random.Random(5)
WORDS = vocabulary(3000, RNG)


def build(folder, sources, steps=(), output="out", **more):
    recipe = {"sources": sources, "steps": list(steps), **{k: v for k, v in more.items() if k != "workers"}}
    return build_corpus(recipe, folder / output, workers=more.get("workers", 1))


def rows(path: Path) -> list[dict]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(row) for row in data.decode().split("\n") if row]


def check_sums(corpus):
    """The report's numbers against the files that were written."""
    steps = corpus.results["steps"]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        lost = [sum(pair[i] for pair in step["rejected"].values()) for i in (0, 1)]
        assert step["in"][0] + step["added"][0] == step["out"][0] + lost[0]
        aside = rows(corpus.folder / step["rejected_file"])
        assert len(aside) == lost[0]
        assert sum(row["bytes"] for row in aside) == lost[1]
        assert Counter(row["reason"] for row in aside) == {r: pair[0] for r, pair in step["rejected"].items()}
        if following is not None:
            assert step["out"] == following["in"]
    made = rows(corpus.documents)
    assert len(made) == steps[-1]["out"][0]
    assert sum(len(row["text"].encode()) for row in made) == steps[-1]["out"][1]
    assert len({row["id"] for row in made}) == len(made)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder with every kind of file, sound and broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    folder, rng = tmp_path_factory.mktemp("raw"), random.Random(1)
    texts = [sentences(document(WORDS, 200, rng)) for _ in range(30)]
    write(folder / "a.txt", texts[0])
    write(folder / "b.txt.gz", gzip.compress(texts[1].encode()))
    write(folder / "c.txt.bz2", bz2.compress(texts[2].encode()))
    write(folder / "d.txt.xz", lzma.compress(texts[3].encode()))
    write(folder / "e.txt.zst", zstandard.compress(texts[4].encode()))
    write(folder / "page.html", page(texts[5]))
    write(folder / "named.txt", page(texts[6]))  # a page that is named as text
    write(
        folder / "lines.jsonl",
        "".join(json.dumps({"text": t, "id": f"line-{i}"}) + "\n" for i, t in enumerate(texts[7:10])),
    )
    pq.write_table(pa.table({"text": texts[10:13], "other": [1, 2, 3]}), folder / "table.parquet")
    with (folder / "crawl.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for text in texts[13:15]:
            import io

            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.0")
            body = io.BytesIO(page(text).encode())
            writer.write_record(writer.create_warc_record("http://a.test/x", "response", body, http_headers=headers))
    tei = "".join(f"<sp><speaker>Who</speaker><p>{line}</p></sp>" for line in texts[15].split("\n"))
    write(
        folder / "play.xml",
        f'<?xml version="1.0"?><TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><p>HEADER</p></teiHeader><text><body>{tei}</body></text></TEI>',
    )
    write(folder / "cyrillic.txt", ("Съешь же ещё этих мягких французских булок, да выпей чаю. " * 40).encode("cp1251"))
    write(folder / "bom.txt", texts[16].encode("utf-16"))
    # what cannot be read
    write(folder / "empty.txt", "")
    write(folder / "blank.txt", " \n\t\n")
    write(folder / "cut.txt.gz", gzip.compress(texts[17].encode())[:-200])
    write(folder / "not.parquet", texts[18])
    write(folder / "not.warc", texts[18])
    write(folder / "picture.html", b"\x89PNG\r\n\x1a\n" + bytes(100))
    write(folder / "zero.txt", b"text\0text")
    write(folder / "bad.xml", "<?xml version='1.0'?><a><b></a>")
    write(folder / "bomb.xml", '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><l>&b;</l>')
    write(
        folder / "lines2.jsonl",
        b'{"text": "good enough"}\n{"text": \n[1]\n{"no": 1}\n{"text": 5}\n{"text": "\\ud800 half"}\n\xff\xfe\xfd\n',
    )
    return folder, texts


def test_every_kind_is_read_and_everything_is_counted(raw, tmp_path):
    folder, texts = raw
    corpus = build(tmp_path, [{"path": str(folder), "domain": "all"}], ["extract", "normalise"])
    check_sums(corpus)
    made = {row["file"]: row for row in rows(corpus.documents)}
    for name, text in zip(["a.txt", "b.txt.gz", "c.txt.bz2", "d.txt.xz", "e.txt.zst"], texts, strict=False):
        assert made[name]["text"] == text
    for name, number in (("page.html", 5), ("named.txt", 6)):
        assert made[name]["text"].split() == texts[number].split()  # no menu, no footer, no tags
    by_id = {row["id"]: row for row in rows(corpus.documents)}
    assert [by_id[f"line-{i}"]["text"] for i in range(3)] == texts[7:10]
    assert {row["text"] for row in by_id.values() if row["file"] == "table.parquet"} == set(texts[10:13])
    assert sorted(r["text"].split() for r in by_id.values() if r["file"] == "crawl.warc.gz") == sorted(
        t.split() for t in texts[13:15]
    )
    assert "HEADER" not in made["play.xml"]["text"]
    assert made["play.xml"]["text"].startswith("Who\n" + texts[15].split("\n")[0] + "\n\nWho\n")
    assert made["cyrillic.txt"]["text"].startswith("Съешь же ещё")
    assert made["bom.txt"]["text"] == texts[16]
    reasons = Counter((row["file"], row["reason"]) for row in rows(corpus.folder / "rejected/00-read.jsonl"))
    assert reasons == {
        ("empty.txt", "is empty"): 1, ("blank.txt", "is empty"): 1, ("cut.txt.gz", "broken file (EOFError)"): 1,
        ("not.parquet", "is not Parquet, as its name says"): 1, ("not.warc", "is not a WARC file, as its name says"): 1,
        ("picture.html", "is a PNG image"): 1, ("zero.txt", "is not text (it has zero bytes)"): 1,
        ("bad.xml", "is not well-formed XML"): 1, ("bomb.xml", "is empty"): 1, ("lines2.jsonl", "is not JSON"): 2,
        ("lines2.jsonl", "is not a JSON object"): 1, ("lines2.jsonl", "has no field 'text'"): 1,
        ("lines2.jsonl", "field 'text' is not text"): 1,
    }  # fmt: skip


def test_a_document_of_100_mb_in_one_line_is_skipped_in_bounded_memory(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "raw" / "long.jsonl.gz"
    path.parent.mkdir()
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(b"word " * 200_000)
        file.write(b'"}\n{"text": "behind"}\n')
    code = (
        "import resource, sys; from kamerton.corpora import build_corpus; import trafilatura, pyarrow\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "c = build_corpus({'sources': sys.argv[1], 'most_bytes': 5_000_000}, sys.argv[2], workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000  # kB: the limit, a few times over, not the line
    assert [row["text"] for row in rows(tmp_path / "out/corpus.jsonl")] == ["before", "behind"]
    (aside,) = rows(tmp_path / "out/rejected/00-read.jsonl")
    assert aside["reason"] == "longer than 5,000,000 bytes"
    assert aside["bytes"] == 100_000_000 + len('{"text": ""}\n')


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=400),
        st.builds(lambda head, rest: head + rest, st.sampled_from(
            [b"\x1f\x8b\x08\x00", b"PAR1", b"WARC/1.0\r\n", b"<?xml version='1.0'?>", b"<!doctype html>", b"BZh9", b"\xfd7zXZ\0",
             b"\x28\xb5\x2f\xfd", b'{"text": "', b"<TEI>", b"\xef\xbb\xbf", b"\xff\xfe"]), st.binary(max_size=200)),
        st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
        st.binary(max_size=300).map(gzip.compress).map(lambda d: d[:-1]),
    ),
    suffix=st.sampled_from([".txt", ".html", ".xml", ".jsonl", ".parquet", ".warc", ".warc.gz", ".txt.zst", ".json", ".bin", ""]),
)  # fmt: skip
def test_no_file_stops_a_reader(tmp_path_factory, data, suffix):
    from kamerton.text.corpus.files import Input
    from kamerton.text.corpus.reading import Reader
    from kamerton.text.corpus.recipe import SourceSpec

    folder = tmp_path_factory.mktemp("fuzz")
    path = write(folder / f"file{suffix}", data)
    file = Input(path, path.name, "fuzz", len(data), 0, SourceSpec(path=(str(path),)))
    found = list(Reader(str(folder), [[file]], 100).run())
    tally = json.loads((folder / "tally/00-read/00000.json").read_text())["fuzz"]
    aside = rows(folder / "rejected/00-read/00000.jsonl")
    assert tally["in"][0] == len(found) + len(aside)
    assert tally["out"] == [len(found), sum(len(doc.text.encode()) for doc in found)]
    assert sum(pair[0] for pair in tally["rejected"].values()) == len(aside)
    assert found or aside or not data.strip() or suffix in (".jsonl", ".json") or b"WARC" in data


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Originals, edited copies of a third of them with 0 to 20% of their words edited, in shuffled files."""
    folder, rng = tmp_path_factory.mktemp("planted"), random.Random(2)
    family, texts = {}, {}
    for number in range(360):
        original = document(WORDS, rng.randint(60, 300), rng)
        texts[f"{number}"] = sentences(original)
        family[f"{number}"] = number
        for copy in range(rng.choice([0, 0, 1, 2]) if number < 240 else 0):
            name = f"{number}-{copy}"
            texts[name] = sentences(edited(original, rng.uniform(0, 0.2), WORDS, rng))
            family[name] = number
    names = list(texts)
    rng.shuffle(names)
    for part in range(6):
        body = "".join(json.dumps({"id": n, "text": texts[n]}) + "\n" for n in names[part::6])
        write(folder / f"{part}.jsonl", body)
    return folder, family


def test_near_duplicates_are_found_with_recall_and_precision(planted, tmp_path):
    folder, family = planted
    corpus = build(tmp_path, str(folder), ["near-duplicates"])
    check_sums(corpus)
    gone = rows(corpus.folder / "rejected/01-near-duplicates.jsonl")
    right = [row for row in gone if family[row["id"]] == family[row["copy_of"]]]
    wanted = len(family) - len(set(family.values()))
    assert wanted > 100
    assert len(right) / wanted >= 0.95
    assert len(right) / len(gone) >= 0.98
    order = [row["id"] for part in range(6) for row in rows(folder / f"{part}.jsonl")]
    assert all(order.index(row["copy_of"]) < order.index(row["id"]) for row in gone)


STEPS = [
    "normalise", {"exact-duplicates": {"fold": True}}, "near-duplicates", {"repeated-lines": {"documents": 2}},
    "mask", {"mix": {"weights": {"a": 1, "b": 3}, "repeat": 2}},
]  # fmt: skip


@pytest.mark.slow
def test_workers_and_interruptions_change_nothing(planted, tmp_path, monkeypatch):
    folder, _ = planted
    sources = [{"path": f"{folder}/[0-2].jsonl", "domain": "a"}, {"path": f"{folder}/[3-5].jsonl", "domain": "b"}]
    monkeypatch.setattr("kamerton.text.corpus.files.LEAST_BYTES", 1000)  # several pieces of work from small files
    one = build(tmp_path, sources, STEPS, output="one")
    check_sums(one)
    two = build(tmp_path, sources, STEPS, output="two", workers=2)
    assert two.documents.read_bytes() == one.documents.read_bytes()
    # stopped in the middle of every stage in turn
    from kamerton.text.corpus import executor

    real, calls = executor._piece, Counter()
    read = Counter()

    def failing(work):
        calls["all"] += 1
        if calls["all"] % 7 == 0:
            raise KeyboardInterrupt
        if "stage-0" in work[2]:
            read[work[3]] += 1
        real(work)

    monkeypatch.setattr(executor, "_piece", failing)
    for _ in range(200):
        try:
            three = build(tmp_path, sources, STEPS, output="three")
            break
        except KeyboardInterrupt:
            continue
    assert three.documents.read_bytes() == one.documents.read_bytes()
    assert set(read.values()) == {1}  # nothing was read twice
    for name in (step["rejected_file"] for step in one.results["steps"]):
        assert (three.folder / name).read_bytes() == (one.folder / name).read_bytes()
    assert three.results | {"seconds": 0} == one.results | {"seconds": 0}
    assert not (three.folder / "work").exists()


def test_shares_of_domains(planted, tmp_path):
    folder, _ = planted
    sources = [{"path": f"{folder}/[0-2].jsonl", "domain": "a"}, {"path": f"{folder}/[3-5].jsonl", "domain": "b"}]
    corpus = build(tmp_path, sources, [{"mix": {"weights": {"a": 1, "b": 3}, "repeat": 2}}])
    check_sums(corpus)
    assert corpus.results["domains"]["b"]["share"] == pytest.approx(0.75, abs=0.01)
    assert corpus.results["steps"][-1]["added"][0] > 0  # b alone is not enough: its documents are repeated
    small = build(tmp_path, sources, [{"mix": {"weights": {"a": 1, "b": 3}, "bytes": 50_000}}], output="small")
    assert 45_000 < small.results["steps"][-1]["out"][1] <= 50_000
    with pytest.raises(RecipeError, match="no documents of domain 'c'"):
        build(tmp_path, sources, [{"mix": {"weights": {"c": 1}}}], output="none")


def test_short_texts_are_no_near_duplicates(tmp_path):
    texts = [f"{name}:\nNo, good madam, {rest}." for name, rest in (("One", "I will not go"), ("Two", "not so"))]
    write(tmp_path / "raw/x.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    steps = [{"near-duplicates": {"similarity": 0.02, "rows": 1}}]
    assert len(rows(build(tmp_path, str(tmp_path / "raw"), steps).documents)) == 2
    steps = [{"near-duplicates": {"similarity": 0.02, "rows": 1, "fewest": 1}}]
    assert len(rows(build(tmp_path, str(tmp_path / "raw"), steps, output="short").documents)) == 1


def test_exact_duplicates_keep_the_first(tmp_path):
    texts = ["One text here.", "Another.", "One text here.", "ONE text -- here", "Another."]
    write(tmp_path / "raw/x.jsonl", "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    corpus = build(tmp_path, str(tmp_path / "raw"), ["exact-duplicates"])
    assert [row["id"] for row in rows(corpus.documents)] == ["0", "1", "3"]
    gone = rows(corpus.folder / "rejected/01-exact-duplicates.jsonl")
    assert [(row["id"], row["copy_of"]) for row in gone] == [("2", "0"), ("4", "1")]
    corpus = build(tmp_path, str(tmp_path / "raw"), [{"exact-duplicates": {"fold": True}}], output="folded")
    assert [row["id"] for row in rows(corpus.documents)] == ["0", "1"]


def test_repeated_lines_stay_in_the_first_document_only(tmp_path):
    notice = "Subscribe to our letter, it costs nothing"
    bodies = [sentences(document(WORDS, 60, RNG)) for _ in range(4)]
    texts = [f"{notice}\n{bodies[0]}", f"{bodies[1]}\n{notice}", f"{bodies[2]}\n{notice.upper()}!", notice, bodies[3]]
    write(tmp_path / "raw/x.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpus = build(tmp_path, str(tmp_path / "raw"), ["repeated-lines"])
    check_sums(corpus)
    assert [row["text"] for row in rows(corpus.documents)] == [texts[0], bodies[1], bodies[2], bodies[3]]
    none = build(tmp_path, str(tmp_path / "raw"), [{"repeated-lines": {"keep": "none"}}], output="none")
    assert [row["text"] for row in rows(none.documents)] == bodies


def test_compressed_output(raw, tmp_path):
    folder, _ = raw
    plain = build(tmp_path, str(folder), ["extract"])
    packed = build(tmp_path, str(folder), ["extract"], output="packed", compression="gzip")
    assert rows(packed.documents) == rows(plain.documents)
    check_sums(packed)
    assert "is not Parquet" in plain.report.read_text() or "bytes in" in plain.report.read_text()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"sources": "nowhere/*.txt"}, "no such files"),
        ({"sources": []}, "is empty"),
        ({"sources": "x", "steps": ["extrct"]}, "did you mean extract"),
        ({"sources": "x", "steps": [{"near-duplicates": {"band": 3}}]}, "unknown field 'band'.*did you mean bands"),
        ({"sources": "x", "steps": [{"gopher-quality": {"min_words": -1}}]}, "must be at least 0"),
        ({"sources": "x", "steps": [{"mix": {"weights": {"a": 0}}}]}, "must be greater than 0"),
        ({"sources": "x", "steps": "extract"}, "must be a list"),
        ({"sources": "x", "steps": [{"classifier": {"path": "p"}}]}, "needs one of keep and drop"),
    ],
)
def test_a_wrong_recipe_is_one_line(recipe, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message) as raised:
        build_corpus(recipe, tmp_path / "out", workers=1)
    assert "\n" not in str(raised.value)


def test_wrong_places_are_one_line(tmp_path):
    write(tmp_path / "raw/x.txt", "text")
    write(tmp_path / "full/something", "mine")
    for steps, output, message in (
        ([], "full", "holds something else"),
        ([{"classifier": {"path": str(tmp_path / "none"), "keep": "good"}}], "out", "no classifier is there"),
        ([{"word-list": str(tmp_path / "none.txt")}], "out", "word list cannot be read"),
        ([{"language": ["english"]}], "out", "no language 'english'"),
    ):
        with pytest.raises(KamertonError, match=message) as raised:
            build(tmp_path, str(tmp_path / "raw"), steps, output=output)
        assert "\n" not in str(raised.value)
    assert (tmp_path / "full/something").read_text() == "mine"


def test_the_command(raw, tmp_path):
    import subprocess
    import sys

    folder, _ = raw
    recipe = write(tmp_path / "r.yaml", f"sources: {folder}\nsteps: [extract, normalise, exact-duplicates]\n")
    command = [sys.executable, "-m", "kamerton", "corpus"]
    done = subprocess.run(
        [*command, str(recipe), "--output", str(tmp_path / "out"), "--workers", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "exact-duplicates" in done.stdout
    assert (tmp_path / "out/report.html").is_file()
    recipe.write_text(f"sources: {folder}\nsteps: [extract, normalise, exct-duplicates]\n")
    wrong = subprocess.run([*command, str(recipe)], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        f"error: {recipe}:2: steps.2: no step 'exct-duplicates'; did you mean exact-duplicates?"
    ]

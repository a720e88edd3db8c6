"""The store of feedback: what is in it after everything that can happen, and preference data out of it and into it."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.errors import KamertonError
from kamerton.feedback.assignments import answer, assign, next_assignment, progress
from kamerton.feedback.items import read_items, read_questions
from kamerton.feedback.preferences import from_store, import_labels
from kamerton.feedback.records import KINDS, Candidate, Item, Kind, check_scores, make_item, questions_of, ranked
from kamerton.feedback.results import comparisons_of, ratings_of, results_of
from kamerton.feedback.store import FeedbackStore, Outdated, is_store
from kamerton.recipe import Recipe
from kamerton.tasks import load_task
from kamerton.tasks.example import conversation
from kamerton.tasks.preferences import pairs_of

MODELS = ("one", "two", "three")


def item(number: int, answers: int = 2) -> Item:
    said = [Candidate(f"{MODELS[i]} says {number}", MODELS[i], {"tokens": i}) for i in range(answers)]
    return make_item(conversation([("user", f"question {number}")]), said, name=f"q{number}")


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(tmp_path / "labels.sqlite")


def test_items_come_back_as_they_were_and_once(store: FeedbackStore) -> None:
    items = [item(n, 3) for n in range(4)]
    assert store.add(items) == 4
    assert store.add([*items, item(9)]) == 1
    again = FeedbackStore(store.path).items()
    assert [(i.key, i.name, i.prompt, i.answers) for i in again[:4]] == [
        (i.key, i.name, i.prompt, i.answers) for i in items
    ]
    assert (store.db.execute("PRAGMA journal_mode").fetchone(), store.db.execute("PRAGMA synchronous").fetchone()) == (
        ("wal",), (2,),
    )  # fmt: skip


def test_undoing_is_written_down_and_deletes_nothing(store: FeedbackStore) -> None:
    store.add([item(1), item(2)])
    assign(store, "Anna", "comparison", seed=0)
    first = next_assignment(store, "Anna", "comparison")
    assert first is not None
    given = answer(store, first, (1, 0), seconds=2.5, token="first-token")
    assert answer(store, first, (0, 1), token="first-token") == given  # sent twice, stored once
    with pytest.raises(Outdated, match="Anna has labelled this already"):
        answer(store, first, (0, 1), token="other-token")
    second = next_assignment(store, "Anna", "comparison")
    assert second is not None
    last = answer(store, second, None)
    assert progress(store, "Anna", "comparison") == type(progress(store, "Anna", "comparison"))(1, 1, 2)
    with pytest.raises(Outdated, match="is not the last one of Anna"):
        store.undo("Anna", given.id)
    with pytest.raises(KamertonError, match="Ben has no label"):
        store.undo("Ben", last.id)
    taken_back = store.undo("Anna", last.id)
    assert taken_back.undone is not None
    assert store.undo("Anna", last.id) == taken_back
    assert next_assignment(store, "Anna", "comparison") == second
    undone = store.undo("Anna", given.id)
    assert (undone.scores, undone.seconds) == ((1.0, 0.0), 2.5)
    assert store.labels() == []
    assert [one.id for one in store.labels(undone=True)] == [given.id, last.id]
    assert store.last("Anna", "comparison") is None


def test_the_order_is_random_for_each_labeller_and_stays(store: FeedbackStore) -> None:
    store.add(item(n) for n in range(40))

    def order(name: str) -> list[tuple[int, tuple[int, ...]]]:
        rows = store.db.execute("SELECT item, shown FROM assignments WHERE labeller = ? ORDER BY place", (name,))
        return [(number, tuple(json.loads(shown))) for number, shown in rows]

    for name in ("Anna", "Ben"):
        assert assign(store, name, "comparison") == 40
        assert assign(store, name, "comparison") == 0
    anna, ben = order("Anna"), order("Ben")
    assert anna != ben
    assert sorted(i for i, _ in anna) == [i.id for i in store.items()]
    assert [i for i, _ in anna] != sorted(i for i, _ in anna)
    assert 5 < sum(shown == (0, 1) for _, shown in anna) < 35
    store.add([item(99)])
    assert assign(store, "Anna", "comparison") == 1
    assert order("Anna")[:40] == anna


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("comparison", [(0, 1), (0, 3), (1, 3)]), ("ranking", [(0, 1, 3)]), ("rating", [(0,), (1,), (3,)]),
        ("thumbs", [(0,), (1,), (3,)]),
    ],
)  # fmt: skip
def test_answers_that_are_alike_are_one(kind: Kind, expected: list[tuple[int, ...]]) -> None:
    made = make_item(conversation([("user", "q")]), [Candidate(text) for text in ("a", "b", "a ", "c")])
    assert questions_of(made, kind) == expected


def test_labels_that_a_kind_does_not_have_are_refused() -> None:
    good: list[tuple[Kind, tuple[int, ...], tuple[float, ...] | None]] = [
        ("comparison", (1, 0), (1, 0)), ("comparison", (0, 1), (0.5, 0.5)), ("comparison", (0, 1), (0, 0)),
        ("ranking", (2, 0, 1), (0, 2, 1)), ("ranking", (0, 1, 2), (1.5, 1.5, 0)), ("rating", (0,), (7,)),
        ("rating", (0,), (-0.5,)), ("thumbs", (2,), (1,)), ("thumbs", (2,), None),
    ]  # fmt: skip
    bad: list[tuple[Any, tuple[int, ...], tuple[float, ...] | None]] = [
        ("comparison", (0, 1), (1, 1)), ("comparison", (0, 1), (1,)), ("comparison", (0, 1, 2), (1, 0, 0)),
        ("comparison", (0, 0), (1, 0)), ("comparison", (0, 3), (1, 0)), ("ranking", (0, 1, 2), (2, 2, 0)),
        ("ranking", (0,), (0,)), ("rating", (0,), (float("nan"),)), ("rating", (0, 1), (1, 2)), ("thumbs", (0,), (2,)),
        ("thumbs", (-1,), (1,)), ("star", (0,), (1,)), ("comparison", (0,), None),
    ]  # fmt: skip
    for kind, shown, scores in good:
        check_scores(kind, shown, scores, 3)
    for kind, shown, scores in bad:
        with pytest.raises(KamertonError):
            check_scores(kind, shown, scores, 3)


@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_ranking_with_ties_is_one_that_is_accepted(order: list[int], with_next: list[bool]) -> None:
    groups: list[list[int]] = [[]]
    for number, together in zip(order, with_next, strict=True):
        groups = [*groups[:-1], [*groups[-1], number]] if together else [*groups, [number]]
    groups = [group for group in groups if group]
    scores = ranked(groups)
    check_scores("ranking", list(scores), list(scores.values()), 6)
    assert sum(scores.values()) == 15
    assert all(scores[a] > scores[b] for a, b in zip((g[0] for g in groups), (g[0] for g in groups[1:]), strict=False))


# other files, other programs, other processes


def test_files_of_others_are_refused_and_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    text = tmp_path / "text.sqlite"
    text.write_text("no database " * 100)
    newer = FeedbackStore(tmp_path / "newer.sqlite")
    newer.db.execute("PRAGMA user_version = 2")
    newer.close()
    for path, says in (
        (other, "is a database of another program; name a store of kamerton, or a new file"),
        (text, "cannot be used: file is not a database; name a store of kamerton, or a new file"),
        (newer.path, "is of version 2, newer than 1; update kamerton"),
        (tmp_path, "cannot be used: unable to open database file; name a store of kamerton, or a new file"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(KamertonError) as caught:
            FeedbackStore(path)
        assert str(caught.value) == f"{path}: {says}"
        assert (path.read_bytes() if path.is_file() else b"") == before
    with pytest.raises(KamertonError, match=r"none\.sqlite: is not there; check the path"):
        FeedbackStore(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()
    assert is_store(other)
    assert not is_store(text)
    assert not is_store(tmp_path / "none.sqlite")


def _label_all(path: Path, name: str, count: int, lost: Any) -> None:
    store, outdated = FeedbackStore(path), 0
    assign(store, name, "comparison")
    for _ in range(count):
        asked = next_assignment(store, name, "comparison")
        if asked is None:
            break
        try:
            answer(store, asked, (1, 0))
        except Outdated:
            outdated += 1
    lost.put(outdated)


def test_two_processes_label_at_once(tmp_path: Path) -> None:
    """Two under the same name, one under another: no label is lost, none stands twice, nobody waits in vain."""
    path = tmp_path / "labels.sqlite"
    store = FeedbackStore(path)
    store.add(item(n) for n in range(40))
    context = multiprocessing.get_context("spawn")
    lost = context.Queue()
    work = [context.Process(target=_label_all, args=(path, name, 200, lost)) for name in ("Anna", "Anna", "Ben")]
    for process in work:
        process.start()
    for process in work:
        process.join(60)
        assert process.exitcode == 0
    for name in ("Anna", "Ben"):
        assert progress(store, name, "comparison").done == 40
        mine = [label.item for label in store.labels() if label.labeller == name]
        assert sorted(mine) == sorted(set(mine)) == [i.id for i in store.items()]
    places = store.db.execute("SELECT count(*), count(DISTINCT place) FROM assignments WHERE labeller = 'Anna'")
    assert places.fetchone() == (40, 40)


def test_what_fails_in_the_middle_is_not_there(store: FeedbackStore) -> None:
    with pytest.raises(KamertonError, match="has half of a surrogate pair"):
        store.add([item(1), make_item(conversation([("user", "q")]), [Candidate("half \ud83d")])])
    with pytest.raises(TypeError):
        store.add([item(1), make_item(conversation([("user", "q")]), [Candidate("a", about={"x": object()})])])
    assert store.items() == []
    odd = make_item(conversation([("user", "q")]), [Candidate("a", about={"x": "\ud83d"})])  # a file may say so
    store.add([odd])
    assert store.items()[0].answers == odd.answers

    def label_and_fail() -> None:
        with store.writing():
            store.label(store.items()[0].id, "Anna", "thumbs", (0,), (1,))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        label_and_fail()
    assert store.labels(undone=True) == []


def test_names_are_evened_out(store: FeedbackStore) -> None:
    store.add([item(1)])
    given = store.label(1, "  Zoe\u0308   B. ", "comparison", (0, 1), (1, 0))
    assert given.labeller == "Zoë B."
    for name in ("", "   ", "a\x00b", "x" * 61, "\u202eabc", "\ud800"):
        with pytest.raises(KamertonError, match="is no name for a labeller; give one of 1 to 60"):
            store.label(1, name, "comparison", (0, 1), (1, 0))


# chats


def test_a_judgement_of_a_chat_replaces_the_one_before(store: FeedbackStore) -> None:
    prompt = conversation([("system", "be brief"), ("user", "hi")])
    a, b = Candidate("hello", "one", {"tokens": 3}), Candidate("hey", "two")
    up = store.judge(prompt, [a], "chat", "thumbs", (1,))
    down = store.judge(prompt, [a], "chat", "thumbs", (0,))
    store.judge(prompt, [a, b], "chat", "comparison", (1, 0))
    store.judge(prompt, [b, a], "chat", "comparison", (1, 0))  # the other way round: b is better now
    assert [(one.kind, one.by_answer) for one in store.labels(source="chat")] == [
        ("thumbs", {0: 0.0}), ("comparison", {0: 0.0, 1: 1.0}),
    ]  # fmt: skip
    assert len(store.labels(undone=True)) == 4
    assert store.judge(prompt, [a], "chat", "thumbs", None).id == down.id
    with pytest.raises(KamertonError, match="there is no judgement to take back"):
        store.judge(prompt, [a], "chat", "thumbs", None)
    assert up.item == down.item
    assert [len(i.answers) for i in store.items("chat")] == [1, 2]
    # what happened in a chat is not asked about, and not undone by the page
    assert assign(store, "chat", "comparison") == 0
    assert store.last("chat", "comparison") is None


# preference data


def test_labels_become_preferences_and_come_back(store: FeedbackStore, tmp_path: Path) -> None:
    store.add([item(n, 3) for n in range(3)])
    store.label(1, "Anna", "comparison", (1, 0), (1, 0))
    store.label(1, "Ben", "comparison", (0, 1), (0.5, 0.5))
    store.label(1, "Anna", "comparison", (0, 2), (0, 0))
    store.label(1, "Ben", "comparison", (1, 2), None)
    store.label(2, "Anna", "ranking", (2, 0, 1), (2, 0, 1))
    for answer_, score in ((0, 3), (1, 9)):
        store.label(3, "Anna", "rating", (answer_,), (score,))
    store.label(3, "Ben", "rating", (0,), (5,))
    store.label(3, "Ben", "thumbs", (0,), (0,))
    found = from_store(store)
    assert (found.labels, found.skipped, found.bad) == (8, 1, 2)
    assert [(j.id, [(g.answer[:3], g.score) for g in j.graded]) for j in found.judged] == [
        ("q0#0-1", [("two", 0.75), ("one", 0.25)]), ("q1", [("thr", 2.0), ("two", 1.0), ("one", 0.0)]),
        ("q2", [("two", 9.0), ("one", 4.0)]),
    ]  # fmt: skip
    assert [j.id for j in from_store(store, labellers=["Ben"]).judged] == ["q0#0-1", "q2"]
    assert [j.id for j in from_store(store, kind="ranking").judged] == ["q1"]
    with pytest.raises(KamertonError, match="has no labels of Zoe"):
        from_store(store, labellers=["Zoe"])
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(j.record()) + "\n" for j in found.judged))
    other = FeedbackStore(tmp_path / "other.sqlite")
    assert import_labels([path], other, "all").new == 7
    done = import_labels([path], other, "all")
    assert (done.new, done.changed, done.same) == (0, 0, 7)
    assert {j.key: j.graded for j in from_store(other).judged} == {j.key: j.graded for j in found.judged}


def test_a_file_that_people_filled_in_goes_into_the_items_that_are_there(store: FeedbackStore, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "q"}]
    line = {
        "id": "x",
        "prompt": prompt,
        "answers": ["a", "b"],
        "chosen": None,
        "scores": None,
        "sampled": {"model": "m"},
    }
    blank, filled = tmp_path / "blank.jsonl", tmp_path / "filled.jsonl"
    blank.write_text(json.dumps(line) + "\n")
    filled.write_text(json.dumps({**line, "chosen": 1}) + "\n" + json.dumps({**line, "prompt": "r", "id": "y"}) + "\n")
    store.add(read_items(blank).items)
    with pytest.raises(KamertonError, match=r"filled.jsonl:2: prompt is not a list of turns"):
        import_labels([filled], store, "Anna")
    assert store.labels() == []
    filled.write_text(json.dumps({**line, "chosen": 1}) + "\n")
    assert import_labels([filled], store, "Anna").new == 1
    (only,) = store.labels()
    assert (len(store.items()), only.kind, only.by_answer) == (1, "comparison", {0: 0.0, 1: 1.0})
    filled.write_text(json.dumps({**line, "chosen": 0}) + "\n")
    assert import_labels([filled], store, "Anna").changed == 1
    assert len(store.labels(undone=True)) == 2
    with pytest.raises(KamertonError, match=r"blank.jsonl: none of the 1 lines has a label"):
        import_labels([blank], store, "Anna")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0), None]), min_size=8, max_size=12))
def test_what_won_on_the_page_wins_in_the_recipe(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[float, float] | None]
) -> None:
    """Random sides → labels → export → a task's pairs: the answer that was called better is the chosen one, always."""
    if sum(one is not None and one != (0.0, 0.0) for one in said) < 4:
        return
    folder = tmp_path_factory.mktemp("t")
    store = FeedbackStore(folder / "s.sqlite")
    store.add(item(n) for n in range(len(said)))
    assign(store, "Anna", "comparison")
    expected = set()
    for scores in said:
        asked = next_assignment(store, "Anna", "comparison")
        assert asked is not None
        answer(store, asked, scores)
        if scores is not None and scores[0] != scores[1]:
            texts = [asked.item.answers[i].text for i in asked.shown]
            best = int(scores[1] > scores[0])
            expected.add((asked.item.prompt[-1].content, texts[best], texts[1 - best]))
    found = from_store(store)
    (folder / "p.jsonl").write_text("".join(json.dumps(j.record()) + "\n" for j in found.judged))
    fields = {"data": str(folder / "p.jsonl"), "split": {"validation": 1, "test": 1}}
    task = load_task(Recipe.from_dict({"task": fields, "methods": ["zero-shot"]}).task)
    examples = (*task.train, *task.validation, *task.test)
    assert {(e.messages[-1].content, p.chosen, p.rejected) for e in examples for p in pairs_of(e)} == expected
    store.close()


# results


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_best_model_wins_and_labellers_who_agree_agree(store: FeedbackStore, kind: Kind) -> None:
    """Model two beats three beats one, on random sides, by two labellers of one opinion."""
    quality = {"one": 1.0, "two": 9.0, "three": 5.0}
    store.add(item(n, 3) for n in range(12))
    for name in ("Anna", "Ben"):
        assign(store, name, kind)
        while (asked := next_assignment(store, name, kind)) is not None:
            worth = [quality[str(asked.item.answers[i].model)] for i in asked.shown]
            scores = [float(sum(other < own for other in worth)) for own in worth]
            if kind in ("rating", "thumbs"):
                scores = worth if kind == "rating" else [float(worth[0] > 4)]
            answer(store, asked, tuple(scores), seconds=1.0)
    (found,) = results_of(store, resamples=50).kinds
    assert found.alpha.value == pytest.approx(1.0)
    assert found.kappas[0][2].value == pytest.approx(1.0)
    order = [m.model for m in found.strengths.models]
    assert order[-1] == "one"
    assert kind == "thumbs" or order == ["two", "three", "one"]
    assert found.strengths.bounded == (0,)  # who wins everything has no finite score of its own
    rates = {m.model: m.rate for m in found.strengths.models}
    assert rates == (
        {"two": 0.75, "three": 0.75, "one": 0.0} if kind == "thumbs" else {"two": 1, "three": 0.5, "one": 0}
    )
    assert [(one.name, one.seconds) for one in found.labellers] == [("Anna", 1.0), ("Ben", 1.0)]
    if kind == "comparison":
        assert found.left is not None
        assert found.left[1] == 72
        assert 0.3 < found.left[0] < 0.7


def test_liking_one_model_is_no_agreement_by_chance(store: FeedbackStore) -> None:
    """Both prefer model one in nine of ten, never together by more than that: alpha sees agreement, as it should."""
    store.add(item(n) for n in range(100))
    for name, worse in (("Anna", 3), ("Ben", 7)):
        for number in range(1, 101):
            store.label(number, name, "comparison", (0, 1), (0, 1) if number % 10 == worse else (1, 0))
    found = results_of(store, resamples=50).kinds[0]
    assert found.alpha.value is not None
    assert found.alpha.value > 0.5  # 80 % agree; with the file's order as names it would be −0.1
    values = [r.value for r in ratings_of("comparison", store.labels(), {i.id: i for i in store.items()})]
    assert 60 < sum(value == 2 for value in values) < 140


def test_pairs_that_say_nothing_of_models_are_counted(store: FeedbackStore) -> None:
    prompt = conversation([("user", "q")])
    store.add([make_item(prompt, [Candidate("a", "m"), Candidate("b", "m"), Candidate("c")])])
    store.label(1, "Anna", "ranking", (0, 1, 2), (2, 1, 0))
    found, same, unknown = comparisons_of(store.labels(), {i.id: i for i in store.items()})
    assert (found, same, unknown) == ([], 1, 2)


# files of items

GOOD = [
    ({"prompt": "q", "answers": ["a", "b"]}, (None, None)),
    ({"prompt": "q", "answers": {"m": "a", "n": "b"}}, ("m", "n")),
    ({"messages": [{"role": "user", "content": "q"}], "answers": [{"text": "a", "model": "m", "x": 1}, {"answer": "b"}]},
     ("m", None)),
    ({"prompt": "q", "answers": ["a", "b"], "sampled": {"model": "m"}}, ("m", "m")),
]  # fmt: skip


@pytest.mark.parametrize(("line", "models"), GOOD)
def test_forms_of_items(tmp_path: Path, line: dict[str, Any], models: tuple[str | None, ...]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 3, **line}) + "\n")
    (found,) = read_items(tmp_path / "a.jsonl").items
    assert (found.name, found.prompt, [a.text for a in found.answers]) == (
        "3", conversation([("user", "q")]), ["a", "b"],
    )  # fmt: skip
    assert tuple(a.model for a in found.answers) == models


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "q"}', "a.jsonl:1: answers is not a list of answers"),
        ('{"prompt": "q", "answers": [1]}', "a.jsonl:1: an answer is not a text"),
        ('{"prompt": "q", "answers": [{"text": "a", "model": 3}]}', "a.jsonl:1: the model of an answer is not a name"),
        ('{"prompt": "", "answers": ["a"]}', "a.jsonl:1: prompt is not a list of turns"),
        ('{"prompt": "q", "answers": ["\\ud83d"]}', "a.jsonl:1: has half of a surrogate pair"),
        ("", "a.jsonl: has no records"),
    ],
)
def test_broken_items_are_one_line(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(KamertonError) as caught:
        read_items(tmp_path / "a.jsonl")
    assert says in str(caught.value)


def test_prompts_to_sample_for(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n two \none\n")
    assert read_questions(tmp_path / "p.txt") == [conversation([("user", text)]) for text in ("one", "two")]
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n')
    assert read_questions(tmp_path / "p.jsonl") == read_questions(tmp_path / "p.txt")
    (tmp_path / "e.txt").write_text("\n")
    with pytest.raises(KamertonError, match="has no prompts"):
        read_questions(tmp_path / "e.txt")

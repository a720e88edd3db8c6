"""Few-shot prompting: where shots come from, which are nearest, and questions that are too long."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, TaskError
from kamerton.evaluation.answering import answer
from kamerton.inference import Sampling
from kamerton.methods import get_method
from kamerton.prompting.shots import NearestShots, random_shots, with_shots
from kamerton.tasks.example import Example, Message, conversation
from kamerton.training import Budget
from tiny import QUICK, fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

TRAINED = ("prompt-tuning", "prefix-tuning", "p-tuning", "p-tuning-v2", "ia3", "adapter", "lora", "full")
GREEDY = Sampling(max_tokens=6)


def shots_in(asked: tuple[Message, ...]) -> list[str]:
    return [m.content for m in asked if m.role == "user"][:-1]


@pytest.mark.parametrize("selection", ["random", "nearest"])
def test_shots_come_from_training_with_their_answers(small_base: Base, selection: str, tmp_path: Path) -> None:
    task = tiny.colour_task()
    adapted = fit(small_base, "few-shot", tmp_path, selection=selection, shots=5)
    known = {e.messages[-1].content: e.answers[0] for e in task.train}
    for e in task.test:
        asked = adapted.prepare(e.messages)
        assert [m.role for m in asked] == ["system", *["user", "assistant"] * 5, "user"]
        assert asked[0] == e.messages[0]
        assert asked[-1] == e.messages[-1]
        pairs = list(zip(asked[1:-1:2], asked[2:-1:2], strict=True))
        assert all(known[question.content] == said.content for question, said in pairs)
        assert len({question.content for question, _ in pairs}) == 5
    assert adapted.record.notes == []
    assert get_method("few-shot").seeded(adapted.options) == (selection == "random")


def test_random_shots_are_the_seeds(small_base: Base, tmp_path: Path) -> None:
    e = tiny.colour_task().test[0]
    found = [shots_in(fit(small_base, "few-shot", tmp_path, seed=s).prepare(e.messages)) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    asked = [fit(small_base, "few-shot", tmp_path).prepare(t.messages) for t in tiny.colour_task().test]
    assert len({a[:-1] for a in asked}) == 1, "the same for every question: a prefix that all share"


def test_the_examples_budget_holds_for_shots(small_base: Base, tmp_path: Path) -> None:
    first = {e.messages[-1].content for e in tiny.colour_task().train[:6]}
    for selection in ("random", "nearest"):
        adapted = fit(small_base, "few-shot", tmp_path, budget=Budget(examples=6), selection=selection, shots=4)
        for e in tiny.colour_task().test:
            assert set(shots_in(adapted.prepare(e.messages))) <= first
    few = fit(small_base, "few-shot", tmp_path, budget=Budget(examples=2), shots=4)
    assert few.record.notes == ["only 2 training examples for 4 shots: all are used"]
    with pytest.raises(TaskError, match="needs training examples"):
        fit(small_base, "few-shot", tmp_path, task=replace(tiny.colour_task(), train=()))


def test_fewer_shots_where_the_context_is_short(tmp_path: Path) -> None:
    base = load_base(tiny.save(tmp_path / "short", positions=200), dtype="float32")
    task = tiny.colour_task()
    adapted = fit(base, "few-shot", tmp_path, shots=8)
    shots = random_shots(task.train, 8, 0)
    fewer = 0
    for e in task.test:
        asked = shots_in(adapted.prepare(e.messages))
        fitting = [n for n in range(9) if len(base.renderer.prompt(with_shots(e.messages, shots[8 - n :]))) + 32 <= 200]
        assert asked == [s.messages[-1].content for s in shots[8 - max(fitting) :]], "as many as fit, the last ones"
        fewer += len(asked) < 8
    assert fewer
    assert adapted.record.notes == [
        f"8 shots do not fit the context for {fewer} of {len(task.test)} test questions: fewer are used"
    ]
    assert all(adapted.prompt_tokens(e.messages) + 32 <= 200 for e in task.test)
    answer(adapted, task.test, GREEDY)


def test_nearest_finds_a_near_duplicate() -> None:
    pool = tiny.colour_task().train
    find = NearestShots(pool)
    for planted in pool[::7]:
        words = planted.messages[-1].content.split()
        question = conversation([("system", "Which colour is in the text?"), ("user", " ".join([*words, "indeed"]))])
        assert find(question, 4)[-1] is planted, "nearest last"
    assert len(find(pool[0].messages, 1000)) == len(pool)


def plain_ranking(pool: list[str], question: str) -> list[float]:
    """tf–idf cosine by its formulas: sublinear counts, smooth idf; words and character trigrams."""

    def features(text: str) -> Counter[str]:
        words = re.findall(r"\w+", text.casefold())
        line = " " + " ".join(words) + " "
        return Counter([("w", w) for w in words] + [("t", line[i : i + 3]) for i in range(len(line) - 2)])  # type: ignore[list-item]

    bags = [features(text) for text in pool]
    document = Counter(f for bag in bags for f in bag)

    def vector(bag: Counter[str]) -> dict[str, float]:
        v = {
            f: (1 + math.log(n)) * (math.log((1 + len(pool)) / (1 + document[f])) + 1)
            for f, n in bag.items()
            if f in document
        }
        norm = math.sqrt(sum(x * x for x in v.values())) or 1.0
        return {f: x / norm for f, x in v.items()}

    asked = vector(features(question))
    return [sum(x * asked.get(f, 0.0) for f, x in vector(bag).items()) for bag in bags]


TEXT = st.text("abc Äß.19", min_size=1, max_size=12) | st.lists(
    st.sampled_from(["cat", "dog", "fox", "Cat"]), min_size=1, max_size=8
).map(" ".join)


@settings(deadline=None, max_examples=150)
@given(st.lists(TEXT, min_size=1, max_size=8), TEXT)
def test_the_ranking_is_that_of_tf_idf(pool: list[str], question: str) -> None:
    examples = [Example(str(i), conversation([("user", text)]), ("a",)) for i, text in enumerate(pool)]
    found = NearestShots(examples)(conversation([("user", question)]), len(pool))
    expected = plain_ranking(pool, question)
    order = [int(e.id) for e in reversed(found)]
    assert sorted(order) == list(range(len(pool)))
    for a, b in itertools.pairwise(order):
        assert expected[a] > expected[b] - 1e-9
    assert expected[order[0]] == pytest.approx(max(expected))


def test_shots_stand_between_system_and_question() -> None:
    shot = Example("s", conversation([("system", "other"), ("user", "q1")]), ("a1", "a2"))
    asked = with_shots(conversation([("system", "sys"), ("user", "q")]), [shot])
    assert [(m.role, m.content) for m in asked] == [
        ("system", "sys"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q"),
    ]
    assert with_shots(conversation([("user", "q")]), []) == conversation([("user", "q")])
    pool = tiny.colour_task().train
    drawn = random_shots(pool, 10, 3)
    assert len({e.id for e in drawn}) == 10


# -- questions that are too long ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_a_question_longer_than_the_model_is_cut_and_counted(tmp_path: Path, name: str) -> None:
    """With learned positions (GPT-2), which fail hard when they run out."""
    import architectures

    architectures.save("gpt2", tmp_path / "gpt2")
    base = load_base(tmp_path / "gpt2", dtype="float32")
    assert base.model.max_length == 512
    task = tiny.colour_task()
    long = " ".join(m.content for e in task.train for m in e.messages)
    stretch = lambda e: replace(e, messages=(*e.messages[:-1], Message("user", e.messages[-1].content + " " + long)))  # noqa: E731
    task = replace(
        task, train=(*task.train[:6], stretch(task.train[6])), validation=task.validation[:2],
        test=(*task.test[:3], stretch(task.test[3])),
    )  # fmt: skip
    options = (
        {"learning_rate": 1e-3} if name in TRAINED else {"self-consistency": {"samples": 2}, **QUICK}.get(name, {})
    )
    adapted = fit(base, name, tmp_path, task=task, budget=Budget(steps=2), **options)
    said = answer(adapted, task.test, GREEDY)
    assert said.cut == 1
    prompts = QUICK["rag"]["passages"] if name == "rag" else 1  # it reads once for each passage
    assert max(said.prompt_tokens) <= (512 - 6) * prompts
    if name in TRAINED:
        assert any(note.startswith("1 of 7 training examples were cut to") for note in adapted.record.notes)


def test_soft_prompts_longer_than_the_model_are_refused(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(KamertonError, match="600 soft tokens leave no room in the model's 512 positions; use fewer"):
        fit(small_base, "prompt-tuning", tmp_path, tokens=600)

"""Wrappers over any method: what is trained is what is asked, saving and loading, mistakes in `over`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from kamerton.base import Base
from kamerton.errors import RecipeError
from kamerton.inference import Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Wrapped
from kamerton.methods.prompted import front_inside, trains
from kamerton.training import Budget
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"lora": {"learning_rate": 0.01, "rank": 2}}


def few_shot(**options: Any) -> Any:
    return parse_options(get_method("few-shot"), options)


def test_a_method_inside_is_trained_on_what_it_will_be_asked(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    lora = type(get_method("lora"))
    plain_fit = lora.fit
    monkeypatch.setattr(
        lora, "fit", lambda self, base, task, *rest: seen.append(task) or plain_fit(self, base, task, *rest)
    )
    task = tiny.colour_task()
    adapted = fit(small_base, "few-shot", tmp_path, shots=3, over=LORA)
    (asked,) = seen
    answer_of = {e.messages[-1].content: e.answers[0] for e in task.train}
    for before, after in zip((*task.train, *task.validation), (*asked.train, *asked.validation), strict=True):
        shown = [m.content for m in after.messages if m.role == "user"][:-1]
        assert len(shown) == 3
        assert before.messages[-1].content not in shown, "an example's own answer would stand in its prompt"
        assert [m.content for m in after.messages if m.role == "assistant"] == [answer_of[q] for q in shown]
        assert after.answers == before.answers
    assert asked.test == task.test
    for e in task.test[:3]:
        assert len(adapted.prepare(e.messages)) == len(e.messages) + 2 * 3
    assert adapted.record.trainable_parameters > 0
    assert adapted.record.tokens > fit(small_base, "lora", tmp_path / "alone", **LORA["lora"]).record.tokens


def test_what_is_inside_is_what_answers(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    adapted = fit(small_base, "few-shot", tmp_path, shots=2, over=LORA)
    assert isinstance(adapted, Wrapped)
    asked = [e.messages for e in task.test[:5]]
    plan = Sampling(max_tokens=5)
    prepared = [adapted.own(c) for c in asked]
    assert [a.tokens for a in adapted.generate(asked, plan)] == [
        a.tokens for a in adapted.inner.generate(prepared, plan)
    ]
    assert adapted.score(asked, [["red"]] * 5) == adapted.inner.score(prepared, [["red"]] * 5)
    plain = fit(small_base, "few-shot", tmp_path / "plain", shots=2)
    assert adapted.score(asked, [["red"]] * 5) != plain.score(asked, [["red"]] * 5)
    chosen = adapted.choose(asked, [tiny.COLOURS] * 5, replace(plan, n=2))
    assert [a.text for a in chosen[::2]] == [a.text for a in chosen[1::2]]
    scores = adapted.score(asked, [tiny.COLOURS] * 5)
    assert [a.text for a in chosen[::2]] == [tiny.COLOURS[max(range(4), key=s.__getitem__)] for s in scores]
    assert chosen[0].prompt_tokens == adapted.prompt_tokens(asked[0])


@pytest.mark.parametrize(
    "over", ["zero-shot", LORA, {"few-shot": {"shots": 1, "over": LORA}}], ids=["plain", "lora", "two"]
)
def test_saved_and_loaded_it_is_the_same(small_base: Base, over: Any, tmp_path: Path) -> None:
    adapted = fit(small_base, "few-shot", tmp_path / "fit", shots=2, over=over, budget=Budget(steps=4))
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    asked = [e.messages for e in tiny.colour_task().test[:4]]
    assert [again.prepare(c) for c in asked] == [adapted.prepare(c) for c in asked]
    assert again.score(asked, [["red", "blue"]] * 4) == adapted.score(asked, [["red", "blue"]] * 4)
    assert again.options == adapted.options


def test_over_keeps_all_options_of_what_is_inside() -> None:
    options = few_shot(over="lora")
    assert isinstance(options.over, dict)
    assert options.over["lora"]["rank"] == 16
    assert few_shot(**options.model_dump()) == options, "what is stored is read back"
    assert few_shot().over == few_shot(over="zero-shot").over == "zero-shot"
    assert trains(get_method("few-shot"), options)
    assert not trains(get_method("few-shot"), few_shot(over={"few-shot": None}))
    assert front_inside(few_shot(over={"few-shot": {"over": {"prompt-tuning": {"tokens": 7}}}})) == 7


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ("lroa", "unknown method 'lroa'; did you mean lora"),
        ({"lora": {"rnk": 2}}, "lora has no option 'rnk'; did you mean rank"),
        ({"lora": {"rank": -2}}, "lora.rank: input should be greater than 0, not -2"),
        ({"lora": {}, "full": {}}, "over names one method, not 2"),
        ({"lora": 3}, "options of lora must be a mapping"),
        ({"few-shot": {"over": "zzz"}}, "unknown method 'zzz'"),
    ],
)
def test_mistakes_in_over_are_one_line(over: Any, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        few_shot(over=over)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_soft_prompts_inside_leave_less_room_for_shots(tmp_path: Path) -> None:
    from kamerton.base import load_base

    base = load_base(tiny.save(tmp_path / "short", positions=256), dtype="float32")
    plain = fit(base, "few-shot", tmp_path / "a", shots=8)
    soft = fit(
        base, "few-shot", tmp_path / "b", shots=8, over={"prompt-tuning": {"tokens": 60, "learning_rate": 0.01}},
        budget=Budget(steps=1),
    )  # fmt: skip
    for e in tiny.colour_task().test:
        assert len(soft.prepare(e.messages)) < len(plain.prepare(e.messages))
        assert soft.prompt_tokens(e.messages) + 32 <= 256
    assert torch.isfinite(torch.tensor(soft.score([e.messages], [["red"]])[0])).all()

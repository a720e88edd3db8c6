"""Rejection sampling: what is kept, what it learns, that it goes on bit for bit, and what the report says of it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.api import merge
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, RewardError, TaskError
from kamerton.evaluation.best_of import expected_best, expected_chosen, pass_at, ranking, sizes, subsets
from kamerton.inference import Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Adapted
from kamerton.methods.rejection_findings import rejection_warnings
from kamerton.objectives import rejection_sampling
from kamerton.objectives.rejection_options import RejectionOptions
from kamerton.objectives.rejection_rounds import Round
from kamerton.objectives.rejection_sampling import RejectionSampling
from kamerton.objectives.rollouts import sample
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget, fit
from kamerton.training.loop import Settings
from kamerton.tuning import get_parameterisation

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

# -- order statistics -------------------------------------------------------------------------------------------------

rewards = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=7)


@settings(max_examples=60)
@given(rewards, st.data())
def test_the_expected_best_is_the_mean_over_all_subsets(values: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values)))
    expected = np.mean([max(part) for part in combinations(values, n)])
    assert expected_best(np.array([values]), n) == pytest.approx(expected)


@settings(max_examples=60)
@given(rewards, st.data())
def test_what_the_chosen_answer_is_worth_is_the_mean_over_all_subsets(scores: list[float], data: st.DataObject) -> None:
    k, n = len(scores), data.draw(st.integers(1, len(scores)))
    worth = data.draw(st.lists(st.integers(0, 9).map(float), min_size=k, max_size=k))
    chosen = [worth[min(part, key=lambda i: (-scores[i], i))] for part in combinations(range(k), n)]
    found = expected_chosen(np.array([scores]), np.array([worth])[:, :, None], n)
    assert found[0, 0] == pytest.approx(np.mean(chosen))


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_n_is_counted_out(right: list[bool], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(right)))
    counted = np.mean([any(part) for part in combinations(right, n)])
    assert pass_at(len(right), sum(right), n) == pytest.approx(counted)
    assert expected_best(np.array([right], dtype=float), n)[0] == pytest.approx(counted)


def test_orders_subsets_and_sizes() -> None:
    assert ranking(np.array([[1.0, 3.0, 3.0, 0.0]])).tolist() == [[3, 0, 2, 1]]
    assert [sizes(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    rng = np.random.default_rng(0)
    assert subsets(4, 2, 9, rng) == list(combinations(range(4), 2))
    drawn = subsets(20, 10, 9, rng)
    assert len(drawn) == 9
    assert all(len(set(part)) == 10 and max(part) < 20 for part in drawn)
    with pytest.raises(ValueError, match="a subset of 4 of 3"):
        expected_best(np.zeros((1, 3)), 4)


# -- what is kept -----------------------------------------------------------------------------------------------------


class Plan:
    """A reward by a table of functions of the answer; learns nothing."""

    name, range = "plan", (-math.inf, math.inf)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        return np.array([self.value(e, a) for e, a in zip(examples, answers, strict=True)], dtype=np.float64)


def objective(base: Base, reward: Any, task: Task | None = None, **options: Any) -> RejectionSampling:
    own = RejectionOptions(**{"queries": 6, "samples": 4, **options})
    return RejectionSampling(
        base, task or tiny.colour_task(), own, reward, batch_size=4, max_tokens=4096, limit=None, seed=3
    )


def letters(_: Example, answer: str) -> float:
    return float(sum(c in "aeiou" for c in answer))


def drawn(base: Base, o: RejectionSampling, numbers: Sequence[int], temperature: float, n: int, seed: int) -> Any:
    plan = Sampling(max_tokens=6, temperature=temperature, n=n, seed=seed)
    return sample(base.model, base.renderer, [(i, o.task.train[i].messages) for i in numbers], plan)


def test_the_first_of_the_best_answers_is_kept(small_base: Base) -> None:
    o = objective(small_base, Plan(letters))
    o.batches(0, small_base.model)
    numbers = rejection_sampling.order(0, 6, 48, 4)
    said = drawn(small_base, o, numbers, 1.0, 4, 3 * 1_000_003)
    expected = []
    for i in range(6):
        group = said[4 * i : 4 * i + 4]
        values = [letters(o.task.train[0], a.text) for a in group]
        expected.append(group[values.index(max(values))].rendered)
    assert o._kept == expected
    (found,) = o.rounds
    table = np.array([letters(o.task.train[0], a.text) for a in said]).reshape(6, 4)
    assert found.mean == pytest.approx(table.mean())
    assert found.best[0] == pytest.approx(table.mean())
    assert found.best[-1] == pytest.approx(table.max(1).mean())
    assert found.equal == sum(len(set(row)) == 1 for row in table.tolist())
    assert found.kept == 6
    assert found.texts[0][1:3] == [said[int(table[0].argmax())].text, table[0].max()]


def test_temperatures_share_the_answers(small_base: Base) -> None:
    o = objective(small_base, Plan(letters), samples=5, temperatures=(0.5, 2.0))
    assert o.o.parts() == [(0.5, 3), (2.0, 2)]
    seen: list[str] = []
    o.reward.value = lambda _, a: float(len(seen.append(a) or seen))  # type: ignore[attr-defined, func-returns-value]
    o.batches(0, small_base.model)
    numbers = rejection_sampling.order(0, 6, 48, 4)
    cold, hot = (drawn(small_base, o, numbers, t, n, 3 * 1_000_003 + i) for i, (t, n) in enumerate(o.o.parts()))
    assert seen[:5] == [a.text for a in (*cold[:3], *hot[:2])]


def test_sampled_tokens_are_counted_once(small_base: Base) -> None:
    o = objective(small_base, Plan(letters))
    first, second = o.batches(0, small_base.model), o.batches(1, small_base.model)
    numbers = rejection_sampling.order(0, 6, 48, 4)
    said = drawn(small_base, o, numbers, 1.0, 4, 3 * 1_000_003)
    spent = sum(len(a.said) for a in said) + sum(a.rendered.prompt_length for a in said[::4])
    assert sum(b.tokens for b in first) == spent + sum(b.batch.tokens for b in first)
    assert sum(b.tokens for b in second) == sum(b.batch.tokens for b in second)
    assert o.rounds[0].tokens == spent


def test_rounds_follow_from_passes_over_what_was_kept(small_base: Base) -> None:
    begun = []
    for passes, rounds in ((1, None), (2, None), (1, 2)):
        o = objective(small_base, Plan(letters), passes=passes, rounds=rounds)  # 6 kept, 4 in a step
        for step in range(7):
            o.batches(step, small_base.model)
        begun.append([r.step for r in o.rounds])
    assert begun == [[0, 2, 4, 6], [0, 3, 6], [0, 2]]


def test_what_is_below_least_or_equal_is_left_out_and_counted(small_base: Base) -> None:
    task = tiny.colour_task()
    known = {e.id: i for i, e in enumerate(task.train)}
    o = objective(small_base, Plan(lambda e, a: float(known[e.id] % 3) + (known[e.id] % 2) * letters(e, a) / 100),
                  least=1.0, ties="leave-out", queries=48)  # fmt: skip
    o.batches(0, small_base.model)
    (found,) = o.rounds
    assert found.below == 16  # even and odd alike: letters stay below a hundred
    assert found.equal >= 24
    assert found.kept == 48 - sum(
        i % 3 == 0 or len({letters(task.train[i], a.text) for a in group}) == 1 or i % 2 == 0
        for i, group in _groups(small_base, o)
    )
    (told, *_) = rejection_warnings(o, [], 0)
    assert f"16 left out with a best reward below 1, {found.equal} with one reward for all answers (left out)" in told


def _groups(base: Base, o: RejectionSampling) -> list[tuple[int, Any]]:
    numbers = rejection_sampling.order(0, 48, 48, 4)
    said = drawn(base, o, numbers, 1.0, 4, 3 * 1_000_003)
    return [(n, said[4 * place : 4 * place + 4]) for place, n in enumerate(numbers)]


def test_nothing_kept_is_one_line_and_later_rounds_go_on_with_what_there_was(small_base: Base) -> None:
    o = objective(small_base, Plan(letters), least=1e6)
    with pytest.raises(RewardError, match=r"^plan: no answer was kept in a pass over all 48 .*lower rejection_samp"):
        o.batches(0, small_base.model)
    assert len(o.rounds) == 8, "all questions were asked"
    o = objective(small_base, Plan(letters))
    o.batches(0, small_base.model)
    before = list(o._kept)
    o.reward.value = lambda *_: -1.0  # type: ignore[attr-defined]
    o.o = o.o.model_copy(update={"least": 0.0})
    o.batches(2, small_base.model)
    assert o._kept == before
    assert o._begun == 2
    assert [r.kept for r in o.rounds] == [6, *([0] * 8)]


@pytest.mark.parametrize(
    ("value", "says"),
    [(lambda e, _: math.nan if e.id == "colour-7" else 0.0, "reward plan: gives nan for an answer to example colour-7"),
     (lambda *_: math.inf, "reward plan: gives inf for an answer to example colour-")],
)  # fmt: skip
def test_a_reward_that_is_no_number_is_one_line(small_base: Base, value: Any, says: str) -> None:
    with pytest.raises(RewardError) as caught:
        objective(small_base, Plan(value), queries=48).batches(0, small_base.model)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_of_the_wrong_length_is_one_line(small_base: Base) -> None:
    class Short(Plan):
        def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
            return super().__call__(examples, answers)[:-1]

    with pytest.raises(RewardError, match=r"^reward plan: gives 23 values for 24 answers"):
        objective(small_base, Short(letters)).batches(0, small_base.model)


def test_answers_are_sampled_without_dropout(small_base: Base) -> None:
    kind = get_parameterisation("lora")
    tuned = kind.attach(small_base, kind.options(dropout=0.9, rank=2), tiny.colour_task(), 0)
    for p in tuned.module.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)
    found = []
    for training in (True, False):
        tuned.module.train(training)
        o = objective(small_base, Plan(letters))
        o.begin(tuned.model, tuned.module)
        o.batches(0, tuned.model)
        found.append(o._kept)
        assert all(m.training is training for m in tuned.module.modules())
    assert found[0] == found[1]


def test_mistakes_are_one_line(small_base: Base, tmp_path: Path) -> None:
    for options, says in (
        ({"temperatures": [0.0]}, "temperature 0 samples nothing"),
        ({"samples": 2, "temperatures": [1.0, 0.5, 0.2]}, "3 temperatures for 2 samples"),
        ({"ties": "drop"}, "'keep' or 'leave-out'"),
        ({"rounds": 0}, "greater than 0"),
    ):
        with pytest.raises(KamertonError) as caught:
            parse_options(get_method("lora"), {"objective": "rejection-sampling", "rejection_sampling": options})
        assert says in str(caught.value)
    task = replace(tiny.colour_task(), metrics=("macro-f1",))
    with pytest.raises(TaskError, match="macro-f1 is no mean over examples"):
        tiny.fit(small_base, "lora", tmp_path / "a", task=task, learning_rate=0.01, objective="rejection-sampling")
    with pytest.raises(TaskError, match="there are no training examples"):
        objective(small_base, Plan(letters), replace(tiny.colour_task(), train=()))


# -- learning ---------------------------------------------------------------------------------------------------------

KEY = dict(zip(("apple", "river", "stone", "cloud", "bread", "window", "garden", "letter"), tiny.COLOURS * 2,
               strict=True))  # fmt: skip
"""The right one of four colours for each word."""


def pairs(count: int, seed: int, *, start: int, right: float = 1.0) -> tuple[Example, ...]:
    rng, out = random.Random(seed), []
    for i in range(start, start + count):
        word = rng.choice(list(KEY))
        said = KEY[word] if rng.random() < right else rng.choice(tiny.COLOURS)
        out.append(Example(f"pair-{i}", conversation([("user", f"{word} {i}")]), (said,)))
    return tuple(out)


CHOICES = Task(
    "pairs", pairs(128, 5, start=2000), pairs(24, 6, start=1000), pairs(48, 7, start=3000), ("exact-match",),
    max_answer_tokens=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def guesser(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny model that was trained for a few seconds on answers of which about half are right."""
    folder = tmp_path_factory.mktemp("guesser")
    base = load_base(tiny.save(folder / "random"), dtype="float32")
    noisy = replace(CHOICES, train=pairs(256, 1, start=0, right=0.4), validation=())
    adapted = tiny.fit(base, "full", folder / "fit", task=noisy, budget=Budget(steps=200), learning_rate=3e-3,
                       batch_size=16)  # fmt: skip
    merge(adapted, folder / "merged")
    return load_base(folder / "merged", dtype="float32")


def mean_reward(model: Adapted, task: Task = CHOICES) -> float:
    """Of answers sampled at temperature 1; at most 1."""
    said = model.generate([e.messages for e in task.test], Sampling(max_tokens=3, temperature=1.0, n=8))
    return float(np.mean([a.text == task.test[i // 8].answers[0] for i, a in enumerate(said)]))


LEARN: dict[str, Any] = {"learning_rate": 5e-3, "batch_size": 16, "objective": "rejection-sampling"}
STAGE: dict[str, Any] = {"queries": 64, "samples": 8, "share": 1.0, "rate": 1.0, "validations": 2}


def test_it_finds_the_right_one_of_four(guesser: Base, tmp_path: Path) -> None:
    before = mean_reward(tiny.fit(guesser, "zero-shot", tmp_path / "z", task=CHOICES))
    adapted = tiny.fit(guesser, "lora", tmp_path / "fit", task=CHOICES, budget=Budget(steps=48), **LEARN,
                       rejection_sampling=STAGE)  # fmt: skip
    assert before < 0.65
    assert mean_reward(adapted) >= 0.9
    curve = next(f for f in adapted.record.findings if f.title == "Best reward against K")
    assert [row[0] for row in curve.rows] == list(range(1, 9))
    assert all(a[1] <= b[1] + 1e-9 and a[2] <= b[2] + 1e-9 for a, b in zip(curve.rows, curve.rows[1:], strict=False))
    rounds = next(f for f in adapted.record.findings if f.title == "Reward by round")
    assert rounds.rows[-1][1] > rounds.rows[0][1] + 0.25
    assert any(note.startswith("rejection-sampling: ") for note in adapted.record.notes)
    assert any("rejection-sampling training kept" in note for note in adapted.record.notes)
    assert {"reward", "best"} <= set(adapted.record.curve[0])
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", guesser)
    asked = [e.messages for e in CHOICES.test]
    assert again.score(asked, [tiny.COLOURS] * 48) == adapted.score(asked, [tiny.COLOURS] * 48)


def test_keeping_the_worst_answer_fails(guesser: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection_sampling, "best", lambda row: int(np.argmin(row)))
    adapted = tiny.fit(guesser, "lora", tmp_path / "fit", task=replace(CHOICES, validation=()),
                       budget=Budget(steps=48), **LEARN, rejection_sampling=STAGE)  # fmt: skip
    assert mean_reward(adapted) < 0.3


def test_it_learns_to_say_one_word(guesser: Base, tmp_path: Path) -> None:
    """The best answer to whatever is asked is one token; the model says it about every fourth time."""
    task = replace(CHOICES, **{s: tuple(replace(e, answers=("red",)) for e in getattr(CHOICES, s))
                               for s in ("train", "validation", "test")})  # fmt: skip
    adapted = tiny.fit(guesser, "full", tmp_path / "fit", task=task, budget=Budget(steps=24),
                       **{**LEARN, "learning_rate": 3e-3}, rejection_sampling={**STAGE, "least": 1.0})  # fmt: skip
    assert mean_reward(adapted, task) >= 0.9


@pytest.mark.parametrize("kind", ["prompt-tuning", "adapter", "full"])
def test_it_works_with_other_parameterisations(small_base: Base, tmp_path: Path, kind: str) -> None:
    sizes = {"tokens": 3} if kind == "prompt-tuning" else {}
    adapted = tiny.fit(small_base, kind, tmp_path, budget=Budget(steps=6), learning_rate=0.01,
                       objective="rejection-sampling", reward="token-f1",
                       rejection_sampling={"queries": 4, "samples": 2}, **sizes)  # fmt: skip
    assert [f.title for f in adapted.record.findings][-4:] == [
        "Best reward against K", "Reward by round", "Rounds", "Sampled answers",
    ]  # fmt: skip


def test_it_works_on_an_encoder_decoder(tmp_path: Path) -> None:
    base = load_base(tiny.save_encoder_decoder(tmp_path / "t5"), dtype="float32")
    adapted = tiny.fit(base, "lora", tmp_path / "fit", budget=Budget(steps=6), learning_rate=0.01,
                       objective="rejection-sampling", rejection_sampling={"queries": 4, "samples": 3})  # fmt: skip
    assert "Rounds" in [f.title for f in adapted.record.findings]


# -- going on ---------------------------------------------------------------------------------------------------------


class Learner(Plan):
    """A reward that changes with what it sees."""

    def __init__(self) -> None:
        super().__init__(lambda _, a: letters(_, a) * (1 + self.seen % 5))
        self.seen = 0

    def observe(self, examples: Sequence[Example], answers: Sequence[str], step: int) -> None:
        self.seen += len(examples) + step + len(answers[0])

    def state(self) -> dict[str, torch.Tensor]:
        return {"seen": torch.tensor([self.seen])}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.seen = int(state["seen"])


def test_stopped_anywhere_it_goes_on_bit_for_bit(small_base: Base, tmp_path: Path) -> None:
    kind, ends = get_parameterisation("lora"), []
    for stops in ((), (1, 2, 3, 4, 5)):
        folder = tmp_path / f"{len(stops)}"
        for stop in (*stops, None):
            tuned = kind.attach(small_base, kind.options(rank=2), tiny.colour_task(), 0)
            o = objective(small_base, Learner())
            o.begin(tuned.model, tuned.module)
            plan = Settings(learning_rate=0.01, validations=2, average=0.8, validate_start=True)
            result = fit(tuned.model, tuned.module, o, plan, Budget(steps=6), folder, stop_after=stop)
        weights = {n: p.detach().clone() for n, p in tuned.module.named_parameters() if p.requires_grad}
        ends.append((weights, o.state(), result.state.curve, result.validation_loss))
    one, two = ends
    assert len(json.loads(bytes(one[1]["told"].numpy()))["rounds"]) == 3
    assert all((one[0][n] == two[0][n]).all() for n in one[0])
    assert one[1].keys() == two[1].keys()
    assert int(one[1]["reward/seen"]) > 0, "a reward that learns was shown the answers"
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in end[2]] for end in ends]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1])
    assert one[3] == two[3]


def test_accumulation_leaves_the_loss_unchanged(small_base: Base) -> None:
    found = []
    for most in (4096, 40):
        o = objective(small_base, Plan(letters))
        o.max_tokens = most
        batches = o.batches(0, small_base.model)
        total = sum(float(o.loss(small_base.model, b).total.detach()) for b in batches)
        found.append((len(batches), total / sum(b.count for b in batches)))
    assert found[0][0] < found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


# -- warnings ---------------------------------------------------------------------------------------------------------

QUIET = Round(0, 32, 4, 0.4, 0.3, [0.4, 0.5, 0.55, 0.6], 0.02, 0.9, 10.0, 1.0, 32, 0, 3, 100)


@pytest.mark.parametrize(
    ("first", "last", "looks", "says"),
    [
        ({}, {"mean": 0.6}, [], None),
        ({"equal": 30}, {}, [], "30 of 32 questions have one reward each, so there was nothing to choose"),
        ({}, {"mean": 0.6, "length": 25.0}, [], "reward hacking: the reward rose from 0.4 to 0.6 while answers grew"),
        ({}, {"mean": 0.42, "length": 25.0}, [], None),
        ({}, {"length": 3.0}, [], "length collapse: answers fell from 10.0 to 3.0 tokens"),
        ({}, {"mean": 0.6}, [(0, 0.2), (9, 0.5)], "exact-match on validation became worse by 0.3"),
        ({}, {"mean": 0.6}, [(0, 0.2), (9, 0.1)], None),
        ({}, {"distinct": 0.3}, [], "answers became alike: 90% of the answers"),
        ({}, {"distinct": 0.3, "mean": 0.95}, [], None),
    ],
)
def test_warnings(
    small_base: Base, first: dict[str, Any], last: dict[str, Any], looks: list[tuple[int, float]], says: str | None
) -> None:
    o = objective(small_base, Plan(letters))
    o.reward.range = (0.0, 1.0)
    o.rounds = [Round(**{**asdict(QUIET), **first}), Round(**{**asdict(QUIET), **last, "step": 9})]
    o.looks = looks
    found = [note for note in rejection_warnings(o, [], 9) if note.startswith("warning: ")]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]

"""Methods: the search inside its budget, resuming, what stays frozen, saving and loading, few-shot, costs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.base import Base, load_base
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError, ModelError, RecipeError, TaskError
from kamerton.evaluation.answering import answer
from kamerton.inference import Sampling
from kamerton.methods import METHODS, get_method, load_adapted, parse_options
from kamerton.methods.lora import LoraMethod
from kamerton.methods.method import Adapted, Run
from kamerton.prompting.shots import NearestShots, random_shots, with_shots
from kamerton.tasks.example import Example, Message, Task, conversation
from kamerton.training import Budget
from kamerton.training.checkpoint import trained_weights

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

TRAINED = ("lora", "prompt-tuning", "full")
GREEDY = Sampling(max_tokens=6)


def fit(
    base: Base, name: str, folder: Path, *, budget: Budget = Budget(steps=8), task: Task | None = None, seed: int = 0,
    report: Any = None, method: Any = None, **options: Any,
) -> Adapted:  # fmt: skip
    chosen = method or get_method(name)
    run = Run(folder, seed)
    if report is not None:
        run.report = report
    return chosen.fit(base, task or tiny.colour_task(), budget, parse_options(chosen, options), run)


def record(adapted: Adapted) -> dict[str, Any]:
    """What a fit did, times aside."""
    out = asdict(adapted.record)
    out.pop("seconds")
    out["curve"] = [{k: v for k, v in row.items() if k != "seconds"} for row in out["curve"]]
    return out


def weights(adapted: Adapted) -> dict[str, torch.Tensor]:
    assert adapted.tuned is not None
    return {n: p.detach().clone() for n, p in adapted.tuned.module.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# -- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_answers(small_base: Base, name: str, tmp_path: Path) -> None:
    method = get_method(name)
    assert method.name == name
    assert method.summary
    assert method.trains
    assert method.paper
    assert all(field.description for field in method.options.model_fields.values()), "an option without a meaning"
    adapted = fit(small_base, name, tmp_path)
    task = tiny.colour_task()
    said = answer(adapted, task.test, GREEDY)
    assert len(said.texts) == len(task.test)
    assert said.prompt_tokens == [adapted.prompt_tokens(e.messages) for e in task.test]
    assert all(0 < n <= 6 for n in said.generated_tokens)
    ranked = answer(adapted, [replace(e, choices=tiny.COLOURS) for e in task.test], GREEDY)
    assert set(ranked.texts) <= set(tiny.COLOURS)
    scores = adapted.score([e.messages for e in task.test], [tiny.COLOURS] * len(task.test))
    assert ranked.texts == [tiny.COLOURS[max(range(4), key=row.__getitem__)] for row in scores]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lroa", {}, "unknown method 'lroa'; did you mean lora"),
        ("zzz", {}, "unknown method 'zzz'; use one of: zero-shot, few-shot"),
        ("lora", {"ranks": 8}, "lora has no option 'ranks'; did you mean rank"),
        ("zero-shot", {"x": 1}, "no option 'x'; use one of: no option"),
        ("lora", {"rank": -1}, "lora.rank: input should be greater than 0, not -1; see: kamerton methods lora"),
        ("lora", {"rank": "many"}, "valid integer"),
        ("lora", {"learning_rate": 0}, "greater than 0"),
        ("lora", {"learning_rate": math.inf}, "finite"),
        ("lora", {"dropout": 1}, "less than 1"),
        ("lora", {"objective": "dpo"}, "input should be 'supervised'"),
        ("full", {"rank": 8}, "full has no option 'rank'"),
        ("few-shot", {"shots": 0}, "greater than 0"),
        ("few-shot", {"selection": "best"}, "'random' or 'nearest'"),
        ("prompt-tuning", {"tokens": 1.5}, "valid integer"),
    ],
)
def test_wrong_methods_and_options_are_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_options(get_method(name), options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lora", "prompt-tuning"])
def test_what_is_not_trained_keeps_its_bits(small_base: Base, name: str, tmp_path: Path) -> None:
    adapted = fit(small_base, name, tmp_path, learning_rate=0.05)
    own = dict(small_base.model.hf.named_parameters())
    kept = {n: p for n, p in adapted.engine.model.hf.named_parameters() if "lora_" not in n}
    assert len(kept) == len(own)
    for name_, value in kept.items():
        assert torch.equal(value, own[name_.replace(".base_layer.", ".")]), name_
    assert adapted.record.curve[-1]["loss"] < adapted.record.curve[0]["loss"]


@pytest.mark.parametrize("name", TRAINED)
def test_training_and_asking_render_alike(small_base: Base, name: str, tmp_path: Path) -> None:
    """The tokens before the answer in training are the tokens of the question in evaluation."""
    adapted = fit(small_base, name, tmp_path, budget=Budget(steps=1), learning_rate=1e-3)
    for e in tiny.colour_task().test:
        trained = small_base.renderer.example(e.messages, e.answers[0])
        assert list(trained.tokens[: trained.prompt_length]) == adapted.renderer.prompt(adapted.prepare(e.messages))
    said = adapted.generate([e.messages for e in tiny.colour_task().test], GREEDY)
    front = len(adapted.engine.model.front())
    assert front == (20 if name == "prompt-tuning" else 0)
    assert [a.prompt_tokens - front for a in said] == [
        len(small_base.renderer.prompt(e.messages)) for e in tiny.colour_task().test
    ]


# -- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget", [Budget(steps=20), Budget(tokens=9_000), Budget(examples=200), Budget(epochs=4), Budget(steps=3)], ids=str
)
def test_the_search_stays_inside_the_budget(small_base: Base, budget: Budget, tmp_path: Path) -> None:
    adapted = fit(small_base, "lora", tmp_path, budget=budget, batch_size=8, patience=99)
    found, tried = adapted.record, get_method("lora").learning_rates  # type: ignore[attr-defined]
    assert [row["learning_rate"] for row in found.search] == list(tried)
    best = min(found.search, key=lambda row: row["validation_loss"])
    assert found.chosen == {"learning_rate": best["learning_rate"]}
    step = max(row["tokens"] - before["tokens"] for row, before in zip(found.curve[1:], found.curve, strict=False))
    step = max(step, found.curve[0]["tokens"])
    tokens = len(tiny.colour_task().train)
    mean = sum(
        len(small_base.renderer.example(e.messages, e.answers[0]).tokens) for e in tiny.colour_task().train
    ) / tokens  # fmt: skip
    limits = {"steps": 8 * mean, "tokens": 1.0, "examples": mean, "epochs": tokens * mean}
    limit = min(value * limits[name] for name, value in asdict(budget).items() if value is not None)
    assert found.tokens <= limit * 1.05 + len(tried) * step
    assert found.tokens >= 0.9 * limit, "the budget is used"
    others = [row["tokens"] for row in found.search if row is not best]
    assert found.tokens == found.curve[-1]["tokens"] + sum(others), "what the others spent counts"
    assert found.curve[-1]["learning_rate"] < 0.6 * best["learning_rate"], "the winner's schedule comes to its end"


class Crash(Exception):
    """Stands for the end of the process."""


def test_a_fit_killed_anywhere_ends_the_same(small_base: Base, tmp_path: Path) -> None:
    """In every third report of progress: in the search, between its candidates, and in the training after it."""
    budget = Budget(steps=16)
    expected = fit(small_base, "lora", tmp_path / "straight", budget=budget)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    fit(small_base, "lora", tmp_path / "counted", budget=budget, report=count)
    assert calls > 14
    for place in range(1, calls + 1, 3):
        left = place

        def crash(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Crash

        folder = tmp_path / f"killed-{place}"
        with pytest.raises(Crash):
            fit(small_base, "lora", folder, budget=budget, report=crash)
        left = 4  # and once more
        with pytest.raises(Crash):
            fit(small_base, "lora", folder, budget=budget, report=crash)
        again = fit(small_base, "lora", folder, budget=budget)
        assert record(again) == record(expected), place
        assert same(weights(again), weights(expected)), place


def test_the_decision_of_the_search_is_kept(small_base: Base, tmp_path: Path) -> None:
    """A decision that is in the folder is followed, and one of another run is not."""
    first = fit(small_base, "lora", tmp_path)
    path = tmp_path / "search.json"
    decision = json.loads(path.read_text())
    other = next(r for r in LoraMethod.learning_rates if r != decision["learning_rate"])
    path.write_text(json.dumps({**decision, "learning_rate": other}))
    assert fit(small_base, "lora", tmp_path).record.chosen == {"learning_rate": other}
    path.write_text(json.dumps({**decision, "learning_rate": other, "key": "of another run"}))
    assert fit(small_base, "lora", tmp_path).record.chosen == first.record.chosen


class Wild(LoraMethod):
    """One of its rates is far too high."""

    learning_rates = (1e30, 1e-3)


class Wilder(LoraMethod):
    """All of its rates are."""

    learning_rates = (1e30, 1e28)


def test_a_rate_that_diverges_loses_and_does_not_end_the_search(small_base: Base, tmp_path: Path) -> None:
    options = {"search_share": 0.6, "batch_size": 4}
    adapted = fit(small_base, "", tmp_path, method=Wild(), budget=Budget(steps=20), **options)
    assert adapted.record.chosen == {"learning_rate": 1e-3}
    assert [row["validation_loss"] is None for row in adapted.record.search] == [True, False]
    json.dumps(adapted.record.search, allow_nan=False)
    assert adapted.record.tokens > adapted.record.curve[-1]["tokens"]
    with pytest.raises(KamertonError, match=r"every learning rate diverged \(1e\+30, 1e\+28\); set a lower"):
        fit(small_base, "", tmp_path / "b", method=Wilder(), budget=Budget(steps=20), **options)


def test_without_validation_the_first_rate_is_taken_and_said(small_base: Base, tmp_path: Path) -> None:
    task = replace(tiny.colour_task(), validation=())
    adapted = fit(small_base, "lora", tmp_path, task=task)
    assert adapted.record.search == []
    assert adapted.record.notes == ["no validation examples to choose a learning rate on: 0.001 was taken"]


def test_a_named_rate_is_not_searched(small_base: Base, tmp_path: Path) -> None:
    adapted = fit(small_base, "lora", tmp_path, learning_rate=2e-3, patience=99)
    assert (adapted.record.search, adapted.record.chosen) == ([], {})
    assert len(adapted.record.curve) == 8


def test_seeds_differ_and_repeat(small_base: Base, tmp_path: Path) -> None:
    one = fit(small_base, "lora", tmp_path / "a", learning_rate=1e-3)
    again = fit(small_base, "lora", tmp_path / "b", learning_rate=1e-3)
    other = fit(small_base, "lora", tmp_path / "c", learning_rate=1e-3, seed=1)
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))


# -- saving and loading ---------------------------------------------------------------------------------------------

ASK = """
import json, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import tiny
from kamerton.inference import Sampling
from kamerton.methods import load_adapted
task = tiny.colour_task()
out = {}
for folder in sys.argv[2:]:
    adapted = load_adapted(folder)
    said = adapted.generate([e.messages for e in task.test], Sampling(max_tokens=6))
    scores = adapted.score([e.messages for e in task.test], [tiny.COLOURS] * len(task.test))
    out[folder] = [[list(a.tokens) for a in said], scores]
print(json.dumps(out))
"""


def test_a_new_process_answers_the_same(small_base: Base, tmp_path: Path) -> None:
    task, expected = tiny.colour_task(), {}
    for name in METHODS:
        options = {"selection": "nearest"} if name == "few-shot" else {}
        adapted = fit(small_base, name, tmp_path / "fit" / name, **options)
        adapted.save(tmp_path / name)
        said = adapted.generate([e.messages for e in task.test], GREEDY)
        scores = adapted.score([e.messages for e in task.test], [tiny.COLOURS] * len(task.test))
        expected[str(tmp_path / name)] = [[list(a.tokens) for a in said], scores]
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(Path(__file__).parent), *expected], capture_output=True, text=True, timeout=120,
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_data_type_chosen_automatically_is_saved_as_chosen(small_folder: Path, tmp_path: Path) -> None:
    base = load_base(small_folder, dtype="auto")
    fit(base, "zero-shot", tmp_path).save(tmp_path)
    assert json.loads((tmp_path / "kamerton.json").read_text())["base"]["dtype"] == base.info.dtype != "auto"


@pytest.fixture
def saved(small_base: Base, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    fit(small_base, "lora", tmp_path / "fit", budget=Budget(steps=1), learning_rate=1e-3).save(folder)
    return folder


EDITS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "another base": (r"made for another base", lambda a: {**a, "base_fingerprint": "0" * 64}),
    "another renderer": (r"made for another renderer", lambda a: {**a, "renderer_fingerprint": "0" * 64}),
    "unknown method": (r"unknown method 'lroa'", lambda a: {**a, "method": "lroa"}),
    "unknown option": (r"lora has no option 'x'", lambda a: {**a, "options": {"x": 1}}),
    "no base": (r"has no 'base'", lambda a: {k: v for k, v in a.items() if k != "base"}),
    "no fingerprint": (r"has no 'base_fingerprint'", lambda a: {k: v for k, v in a.items() if k != "base_fingerprint"}),
    "a list": (r"cannot be read", lambda a: [a]),
    "options in words": (r"cannot be read|option", lambda a: {**a, "options": "none"}),
    "a base that is gone": (r"no such model folder", lambda a: {**a, "base": {**a["base"], "name": "/no/such/model"}}),
}


@pytest.mark.parametrize("edit", EDITS, ids=[name.replace(" ", "-") for name in EDITS])
def test_a_changed_record_is_one_line(small_base: Base, saved: Path, edit: str) -> None:
    path = saved / "kamerton.json"
    says, change = EDITS[edit]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=says) as caught:
        load_adapted(saved, None if edit == "a base that is gone" else small_base)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line
    assert edit == "a base that is gone" or line.startswith(str(path))


def test_a_folder_that_is_none(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(ModelError, match=r"no kamerton\.json here; give the folder"):
        load_adapted(tmp_path)
    (saved / "kamerton.json").write_text('{"method": "lo')
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapted(saved)


def test_another_base_or_template_is_refused(saved: Path, tmp_path: Path, small_folder: Path) -> None:
    other = load_base(tiny.save(tmp_path / "other", seed=5), dtype="float32")
    with pytest.raises(ModelError, match="another base"):
        load_adapted(saved, other)
    template = tmp_path / "t.jinja"
    template.write_text(tiny.TEMPLATE.replace("<|end|>", "<|end|> "))
    with pytest.raises(ModelError, match="another renderer"):
        load_adapted(saved, load_base(small_folder, dtype="float32", chat_template=template))
    with pytest.raises(ModelError, match="another base"):
        load_adapted(saved, load_base(small_folder, dtype="bfloat16"))
    assert load_adapted(saved).method == "lora"


# -- few-shot -------------------------------------------------------------------------------------------------------


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


TEXT = st.text("abc Äß.19", min_size=1, max_size=12)


@settings(deadline=None, max_examples=80)
@given(st.lists(TEXT, min_size=1, max_size=8), TEXT)
def test_the_ranking_is_that_of_tf_idf(pool: list[str], question: str) -> None:
    examples = [Example(str(i), conversation([("user", text)]), ("a",)) for i, text in enumerate(pool)]
    found = NearestShots(examples)(conversation([("user", question)]), len(pool))
    expected = plain_ranking(pool, question)
    order = [int(e.id) for e in reversed(found)]
    assert sorted(order) == list(range(len(pool)))
    for a, b in zip(order, order[1:], strict=False):
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


@pytest.mark.parametrize("name", METHODS)
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
    adapted = fit(
        base, name, tmp_path, task=task, budget=Budget(steps=2), **({"learning_rate": 1e-3} if name in TRAINED else {})
    )
    said = answer(adapted, task.test, GREEDY)
    assert said.cut == 1
    assert max(said.prompt_tokens) <= 512 - 6
    if name in TRAINED:
        assert any(note.startswith("1 of 7 training examples were cut to") for note in adapted.record.notes)


def test_soft_prompts_longer_than_the_model_are_refused(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(KamertonError, match="600 soft tokens leave no room in the model's 512 positions; use fewer"):
        fit(small_base, "prompt-tuning", tmp_path, tokens=600)


# -- costs ----------------------------------------------------------------------------------------------------------

LINEAR = ("mm", "addmm", "linear", "_mm")


def counted(run: Callable[[], Any]) -> tuple[float, float]:
    """PyTorch's own count of what ran: (products with weights, products of attention)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    linear = attention = 0.0
    for op, count in counter.get_flop_counts()["Global"].items():
        kind = str(op).split(".")[1]
        if kind in LINEAR:
            linear += count
        else:
            assert kind in ("bmm", "baddbmm") or "attention" in kind, kind
            attention += count
    return linear, attention


def check_flops(base: Base, folder: Path, tolerance: float) -> None:
    """Attention is compared apart: we count the pairs that are seen, a kernel may compute the whole square."""

    def linear(work: Work, hf: Any) -> float:
        return flops(replace(work, pairs=0, grad_pairs=0), hf)

    examples = [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:4]]
    rows = [r.tokens for r in examples]
    tokens = sum(map(len, rows))

    # forward
    model = base.model
    before = model.work.copy()
    with torch.no_grad():
        found, _ = counted(lambda: model.output(model.forward(rows).rows))
    work = model.work - before
    assert linear(work, model.hf) == pytest.approx(found, rel=tolerance)
    assert (work.tokens, work.outputs) == (tokens, tokens)
    assert work.pairs == sum(len(r) * (len(r) + 1) // 2 for r in rows)

    # a training step
    for name in ("lora", "full"):
        method = get_method(name)
        tuned = method.parameterisation.attach(base, parse_options(method, {}), tiny.colour_task(), 0)  # type: ignore[attr-defined]
        from kamerton.objectives.supervised import Supervised
        from kamerton.training.batches import make_batch

        batch = make_batch(examples, share=False)

        def step(tuned: Any = tuned, batch: Any = batch) -> None:
            Supervised.loss(object.__new__(Supervised), tuned.model, batch).total.backward()

        found, attention = counted(step)
        work = tuned.model.work
        assert work.grad_tokens == work.tokens == tokens
        assert linear(work, tuned.model.hf) == pytest.approx(found, rel=tolerance), name
        pairs = flops(work, tuned.model.hf) - linear(work, tuned.model.hf)
        assert 0.25 * attention <= pairs <= 1.05 * attention, "a triangle of a padded square"
        del tuned

    # generation
    adapted = fit(base, "zero-shot", folder)
    before = model.work.copy()
    answers: list[Any] = []
    asked = [e.messages for e in tiny.colour_task().test[:4]]
    found, _ = counted(lambda: answers.extend(adapted.generate(asked, Sampling(max_tokens=12))))
    work = model.work - before
    assert linear(work, model.hf) == pytest.approx(found, rel=tolerance)
    written = sum(len(a.tokens) for a in answers)
    assert work.outputs == written
    prompts = [len(base.renderer.prompt(c)) for c in asked]
    assert max(prompts) + written - len(asked) <= work.tokens <= sum(prompts) + written - len(asked)


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    base = load_base(tiny.save(tmp_path / "deep", layers=8), dtype="float32")
    check_flops(base, tmp_path, 0.05)


def test_flops_of_the_demo_model(demo: Base, tmp_path: Path) -> None:
    check_flops(demo, tmp_path, 0.05)

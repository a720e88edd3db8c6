"""Methods that decide how a model is asked: what they choose, what they answer, what they refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import RecipeError, TaskError
from kamerton.evaluation.answering import answer, judge, values
from kamerton.inference import Answer, Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.calibration import Calibrated
from kamerton.methods.few_shot import FewShot
from kamerton.methods.method import Adapted, FitRecord, Wrapped
from kamerton.methods.zero_shot import ZeroShot, ZeroShotOptions
from kamerton.prompting.voting import ballot
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = Sampling(max_tokens=6)
LORA = {"lora": {"learning_rate": 0.01, "rank": 2}}
MARKER = "The answer is"


def changed(task: Task, change: Callable[[Example], Example], *splits: str) -> Task:
    return replace(task, **{s: tuple(map(change, getattr(task, s))) for s in splits or ("train", "validation", "test")})


def closed() -> Task:
    return changed(tiny.colour_task(), lambda e: replace(e, choices=tuple(tiny.COLOURS)))


def solved(task: Task | None = None) -> Task:
    return changed(
        task or tiny.colour_task(), lambda e: replace(e, reasoning=f"it was {e.answers[0]}"), "train", "validation"
    )


@pytest.fixture(scope="module")
def long_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(tiny.save(tmp_path_factory.mktemp("long"), positions=1024), dtype="float32")


class Planted(Adapted):
    """An untouched base but for what is said: a plan that a test knows."""

    def __init__(self, base: Base, say: Callable[[Conversation], str]) -> None:
        super().__init__(base, base.model, method="zero-shot", options=ZeroShotOptions())
        self.say = say

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, **_: Any) -> list[Answer]:  # noqa: ARG002
        return [Answer(self.say(self.prepare(c)), (1,), (0.0,), "stop", 1) for c in conversations]

    def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]], **_: Any
    ) -> list[list[float]]:
        said = [self.say(self.prepare(c)) for c in conversations]
        return [[0.0 if x == s else -2.0 for x in row] for s, row in zip(said, continuations, strict=True)]


def plant(monkeypatch: pytest.MonkeyPatch, say: Callable[[Conversation], str]) -> None:
    """Let zero-shot answer by a plan."""
    monkeypatch.setattr(ZeroShot, "fit", lambda self, base, *_: Planted(base, say))


def key_of(task: Task) -> dict[str, str]:
    return {e.messages[-1].content: e.answers[0] for s in (task.train, task.validation, task.test) for e in s}


# -- few-shot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["embeddings", "diverse", "balanced"])
def test_selections_show_training_examples(small_base: Base, selection: str, tmp_path: Path) -> None:
    task = closed()
    key = {e.messages[-1].content: e.answers[0] for e in task.train}
    adapted = fit(small_base, "few-shot", tmp_path, task=task, selection=selection, shots=4)
    prompts = set()
    for e in task.test:
        asked = adapted.prepare(e.messages)
        pairs = list(zip(asked[1:-1:2], asked[2:-1:2], strict=True))
        assert len(pairs) == 4
        assert all(key[q.content] == a.content for q, a in pairs)
        if selection == "balanced":
            assert {a.content for _, a in pairs} == set(tiny.COLOURS)
        prompts.add(asked[:-1])
    assert (len(prompts) == 1) == (selection != "embeddings")
    assert get_method("few-shot").seeded(adapted.options) == (selection != "embeddings")
    if selection != "balanced":
        assert adapted.record.flops > 0, "what encoding costs is counted"
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    assert [again.prepare(e.messages) for e in task.test] == [adapted.prepare(e.messages) for e in task.test]


def test_nearest_last_turns_the_same_shots_for_each_question(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    drawn = fit(small_base, "few-shot", tmp_path / "a", shots=6)
    turned = fit(small_base, "few-shot", tmp_path / "b", shots=6, order="nearest-last")
    planted = replace(task.test[0], messages=drawn.prepare(task.test[0].messages)[5:6])  # asks what the third shot asks
    asked = turned.prepare(planted.messages)
    assert asked[-3].content == planted.messages[0].content
    for e in task.test:
        a, b = drawn.prepare(e.messages)[1:-1], turned.prepare(e.messages)[1:-1]
        assert Counter(zip(a[::2], a[1::2], strict=True)) == Counter(zip(b[::2], b[1::2], strict=True))


@pytest.mark.parametrize("entropy", ["global", "local"])
def test_the_search_finds_a_planted_order(
    small_base: Base, entropy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = closed()
    plain = fit(small_base, "few-shot", tmp_path / "plain", task=task, shots=3)
    shown = [m.content for m in plain.prepare(task.test[0].messages) if m.role == "user"][:-1]
    best = [shown[2], shown[0], shown[1]]
    number = {e.messages[-1].content: i for i, e in enumerate(task.validation)}

    def say(asked: Conversation) -> str:
        """In the best order each question gets another label, or none that is sure; else always the same."""
        if [m.content for m in asked if m.role == "user"][:-1] != best:
            return "red"
        return tiny.COLOURS[number.get(asked[-1].content, 0) % 4] if entropy == "global" else "none of them"

    plant(monkeypatch, say)
    found = fit(small_base, "few-shot", tmp_path / "f", task=task, shots=3, order="searched", entropy=entropy)
    assert [m.content for m in found.prepare(task.test[0].messages) if m.role == "user"][:-1] == best
    assert found.record.chosen == {"order": [2, 0, 1]}
    (finding,) = found.record.findings
    assert len(finding.rows) == 6
    assert finding.rows[0] == ("3 1 2", pytest.approx(np.log(4), abs=0.05))


def test_what_a_search_costs_is_counted_and_answers_are_not_read(small_base: Base, tmp_path: Path) -> None:
    task = closed()
    options: dict[str, Any] = {"shots": 3, "order": "searched", "orders": 4, "probes": 8}
    found = fit(small_base, "few-shot", tmp_path / "a", task=task, **options)
    assert found.record.flops > 0
    assert found.record.seconds > 0
    assert len(found.record.findings[0].rows) == 4
    blind = replace(task, validation=tuple(replace(e, answers=("white",)) for e in task.validation))
    again = fit(small_base, "few-shot", tmp_path / "b", task=blind, **options)
    assert again.record.chosen == found.record.chosen
    assert again.record.findings == found.record.findings


# -- prompt search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["zero-shot", {"few-shot": {"shots": 2}}], ids=["plain", "shots"])
def test_a_planted_phrasing_is_found_and_the_method_is_fragile(
    small_base: Base, over: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen = tiny.colour_task(), []
    key = key_of(task)

    def say(asked: Conversation) -> str:
        seen.append(asked)
        inside = asked[-1].content.removeprefix("Input: ").removesuffix("\nOutput:")
        return key[inside] if inside != asked[-1].content else "no"

    plant(monkeypatch, say)
    found = fit(small_base, "prompt-search", tmp_path, over=over)
    assert found.record.chosen == {"phrasing": "input and output"}
    assert found.record.marks == ["fragile"]
    (finding,) = found.record.findings
    assert finding.rows[0][:2] == ("input and output", 1.0)
    assert len(finding.rows) == 10
    assert "p = " in finding.note
    said = answer(found, task.test, GREEDY)
    assert said.texts == [e.answers[0] for e in task.test]
    asked = found.prepare(task.test[0].messages)
    turns = [m.content for m in asked if m.role == "user"]
    assert len(turns) == (1 if over == "zero-shot" else 3)
    assert all(t.startswith("Input: ") for t in turns), "shots are phrased as the question is"
    found.save(tmp_path / "saved")
    assert load_adapted(tmp_path / "saved", small_base).prepare(task.test[0].messages) == asked


def test_noise_is_no_fragility(small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are right or wrong by chance under each phrasing: the spread is noise."""
    task = tiny.colour_task(48, 60, 4)
    key, rng = key_of(task), np.random.default_rng(0)
    plant(monkeypatch, lambda asked: key.get(asked[-1].content, "red") if rng.random() < 0.5 else "no")
    options = {"phrasings": [f"Take number {i}." for i in range(6)]}
    marks = [fit(small_base, "prompt-search", tmp_path / str(i), task=task, **options).record.marks for i in range(8)]
    assert sum(map(len, marks)) <= 2, marks


def test_a_trained_method_is_trained_once_on_the_first_phrasing(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    lora = type(get_method("lora"))
    plain_fit = lora.fit
    monkeypatch.setattr(
        lora, "fit", lambda self, base, task, *rest: seen.append(task) or plain_fit(self, base, task, *rest)
    )
    phrasings = [{"question": "Q {question}"}, "Say the colour."]
    found = fit(small_base, "prompt-search", tmp_path, over=LORA, phrasings=phrasings, budget=Budget(steps=2))
    assert len(seen) == 1
    assert all(e.messages[-1].content.startswith("Q ") for e in (*seen[0].train, *seen[0].validation))
    assert [row["phrasing"] for row in found.record.search[-2:]] == ["phrasing 1", "phrasing 2"]
    assert found.record.trainable_parameters > 0


# -- chain of thought -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [0, 2])
def test_training_answers_are_the_solution_the_marker_and_the_answer(
    long_base: Base, shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    lora = type(get_method("lora"))
    plain_fit = lora.fit
    monkeypatch.setattr(
        lora, "fit", lambda self, base, task, *rest: seen.append(task) or plain_fit(self, base, task, *rest)
    )
    task = solved(closed())
    bare = replace(task.train[0], reasoning=None)
    task = replace(task, train=(bare, *task.train[1:]))
    adapted = fit(
        long_base,
        "chain-of-thought",
        tmp_path,
        task=task,
        shots=shots,
        max_tokens=10,
        over=LORA,
        budget=Budget(steps=2),
    )
    (asked,) = seen
    assert asked.max_answer_tokens == task.max_answer_tokens + 10
    assert [e.id for e in asked.train] == [e.id for e in task.train[1:]]
    for before, after in zip((*task.train[1:], *task.validation), (*asked.train, *asked.validation), strict=True):
        assert after.answers == (f"it was {before.answers[0]}\n{MARKER} {before.answers[0]}",)
        assert after.choices == ()
        shown = [m.content for m in after.messages if m.role == "assistant"]
        assert len(shown) == shots
        assert all(MARKER in s and s.startswith("it was ") for s in shown)
        assert before.messages[-1].content not in [m.content for m in after.messages[:-1]]
        assert ("step by step" in after.messages[-1].content) == (shots == 0)
    assert adapted.record.notes[0] == "1 of 48 training examples have no worked solution and are not used"
    for e in task.test[:3]:  # asked as it was trained
        assert ("step by step" in adapted.prepare(e.messages)[-1].content) == (shots == 0)


def test_shots_inside_show_worked_solutions_too(long_base: Base, tmp_path: Path) -> None:
    over = {"few-shot": {"shots": 2, "selection": "nearest"}}
    adapted = fit(long_base, "chain-of-thought", tmp_path, task=solved(), over=over)
    asked = adapted.prepare(tiny.colour_task().test[0].messages)
    assert [m.content.partition("\n")[2][: len(MARKER)] for m in asked if m.role == "assistant"] == [MARKER] * 2
    assert all("step by step" in m.content for m in asked if m.role == "user")


def test_chain_and_answer_are_told_apart(small_base: Base, tmp_path: Path) -> None:
    """Every token is counted once, in the chain or in the answer, whatever the text."""
    adapted = fit(small_base, "chain-of-thought", tmp_path, max_tokens=20, marker="e")
    asked = [e.messages for e in tiny.colour_task().test]
    plan = Sampling(max_tokens=6, temperature=1.0, n=3, seed=2)
    said = adapted.generate(asked, plan)
    assert isinstance(adapted, Wrapped)
    raw = adapted.inner.generate([adapted.own(c) for c in asked], replace(plan, max_tokens=26))
    found = Counter(a.details["found"] for a in said)
    assert set(found) == {"marker", "last line"}, found
    for a, whole in zip(said, raw, strict=True):
        assert a.generated_tokens == len(whole.tokens)
        assert a.tokens == whole.tokens[a.extra_tokens :]
        assert a.logprobs == whole.logprobs[a.extra_tokens :]
        assert a.text in whole.text
        assert whole.text.startswith(a.details["reasoning"])
        assert a.details["log_prob"] == pytest.approx(np.mean(whole.logprobs))
        assert a.prompt_tokens == whole.prompt_tokens
    assert len(said) == 3 * len(asked)
    assert max(a.generated_tokens for a in said) <= 26


def test_choices_are_ranked_behind_the_chain(small_base: Base, tmp_path: Path) -> None:
    task = closed()
    adapted = fit(small_base, "chain-of-thought", tmp_path, task=task, max_tokens=12)
    assert isinstance(adapted, Wrapped)
    asked = [e.messages for e in task.test]
    plan = Sampling(max_tokens=6, n=2, temperature=1.0)
    said = adapted.choose(asked, [tiny.COLOURS] * len(asked), plan)
    chains = adapted.inner.generate([adapted.own(c) for c in asked], replace(plan, max_tokens=18))
    for i, (a, chain) in enumerate(zip(said, chains, strict=True)):
        own = adapted.own(asked[i // 2])
        assert a.details["reasoning"] == chain.text.rstrip()
        prompt = small_base.renderer.prompt(own)
        logp = []
        for colour in tiny.COLOURS:
            tail = small_base.renderer.answer(f"{chain.text.strip()}\n{MARKER} {colour}")
            with torch.no_grad():
                p = small_base.model.hf(torch.tensor([[*prompt, *tail]])).logits[0].log_softmax(-1)
            logp.append(sum(float(p[len(prompt) + k - 1, t]) for k, t in enumerate(tail)))
        assert logp[tiny.COLOURS.index(a.text)] > max(logp) - 1e-3
        assert (a.tokens, a.extra_tokens) == ((), len(chain.tokens))
    (finding,) = adapted.findings(task.test, said[::2])
    assert finding.rows == (("ranked", len(task.test)),)


def test_fewer_worked_solutions_where_they_do_not_fit(tmp_path: Path) -> None:
    base = load_base(tiny.save(tmp_path / "short", positions=300), dtype="float32")
    adapted = fit(base, "chain-of-thought", tmp_path, task=solved(), shots=8, max_tokens=40)
    assert "8 worked solutions do not fit the context for 16 of 16 test questions: fewer are used" in (
        adapted.record.notes
    )
    for e in tiny.colour_task().test:
        assert adapted.prompt_tokens(e.messages) + 40 + 32 <= 300
    said = answer(adapted, tiny.colour_task().test, GREEDY)
    assert said.cut == 0


def test_what_is_added_around_a_long_question_is_counted(tmp_path: Path) -> None:
    base = load_base(tiny.save(tmp_path / "short", positions=200), dtype="float32")
    long = " ".join(e.messages[-1].content for e in tiny.colour_task().train)
    task = changed(
        tiny.colour_task(), lambda e: replace(e, messages=(e.messages[0], replace(e.messages[1], content=long)))
    )
    for number, (name, options) in enumerate(
        (
            ("chain-of-thought", {"max_tokens": 40, "trigger": long[:150]}),
            (
                "chain-of-thought",
                {
                    "max_tokens": 40,
                    "over": {"prompt-search": {"phrasings": [{"question": long[:150] + " {question}"}]}},
                },
            ),
            ("prompt-search", {"phrasings": [{"question": long[:200] + " {question}"}]}),
        )
    ):
        adapted = fit(base, name, tmp_path / str(number), task=task, **options)
        said = answer(adapted, task.test, GREEDY)
        assert said.cut == len(task.test)
        room = 6 + (40 if name == "chain-of-thought" else 0)
        assert 0 < max(said.prompt_tokens) <= 200 - room
        assert max(said.generated_tokens) <= room


# -- self-consistency -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed_choices", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_votes_are_those_of_the_samples_inside(
    small_base: Base, closed_choices: bool, weighted: bool, tmp_path: Path
) -> None:
    task = closed() if closed_choices else tiny.colour_task()
    over = {"chain-of-thought": {"max_tokens": 5, "marker": "e"}}
    adapted = fit(
        small_base, "self-consistency", tmp_path, task=task, over=over, samples=5, weighted=weighted, temperature=0.5,
        top_p=0.8,
    )  # fmt: skip
    assert isinstance(adapted, Wrapped)
    said = answer(adapted, task.test, replace(GREEDY, max_tokens=2, seed=3))
    plan = Sampling(max_tokens=2, n=5, temperature=0.5, top_p=0.8, seed=3)
    asked = [e.messages for e in task.test]
    inner = (
        adapted.inner.choose(asked, [e.choices for e in task.test], plan)
        if closed_choices else adapted.inner.generate(asked, plan)
    )  # fmt: skip
    for i, one in enumerate(said.answers):
        group = inner[5 * i : 5 * i + 5]
        assert one.details["samples"] == [a.text for a in group]
        total: dict[str, float] = {}
        for a in group:
            share = float(np.exp(a.details["log_prob"])) if weighted else 1.0
            name = ballot(a.text, False)
            if name is not None:
                total[name] = total.get(name, 0.0) + share
        if total:
            assert total[str(ballot(one.text, False))] == pytest.approx(max(total.values()))
        assert one.generated_tokens == sum(a.generated_tokens for a in group)
    curve = adapted.findings(task.test, said.answers)[-1]
    assert curve.curve
    assert [row[0] for row in curve.rows] == [1, 2, 4, 5]
    metric = task.metrics[0]
    assert curve.rows[-1][1] == pytest.approx(values(judge(said.texts, task.test, [metric]), task.test)[metric])
    singles = [values(judge([a.text for a in inner[k::5]], task.test, [metric]), task.test)[metric] for k in range(5)]
    assert curve.rows[0][1] == pytest.approx(np.mean(singles))


def test_voting_helps_where_the_right_answer_is_the_likeliest(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is right with probability 0.6 on every question: the curve rises with the votes."""
    task = replace(tiny.colour_task(48, 12, 120), metrics=("numeric",))
    task = changed(task, lambda e: replace(e, answers=(str(len(e.messages[-1].content)),)))
    rng = np.random.default_rng(0)

    def generate(self: Planted, conversations: Sequence[Conversation], sampling: Sampling, **_: Any) -> list[Answer]:  # noqa: ARG001
        texts = [
            f"{len(c[-1].content)}.0" if rng.random() < 0.6 else str(rng.integers(9))
            for c in conversations for _ in range(sampling.n)
        ]  # fmt: skip
        return [Answer(t, (1,), (0.0,), "stop", 1) for t in texts]

    monkeypatch.setattr(Planted, "generate", generate)
    plant(monkeypatch, str)
    adapted = fit(small_base, "self-consistency", tmp_path, task=task, over="zero-shot", samples=16)
    said = answer(adapted, task.test, GREEDY)
    scores = [row[1] for row in adapted.findings(task.test, said.answers)[-1].rows]
    assert scores == sorted(scores)
    samples = [[float(t) == len(e.messages[-1].content) for t in a.details["samples"]]
               for e, a in zip(task.test, said.answers, strict=True)]  # fmt: skip
    assert scores[0] == pytest.approx(np.mean(samples)), "all samples tell what one vote is worth"
    assert scores[0] == pytest.approx(0.6, abs=0.06)
    assert scores[-1] > 0.97


# -- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["diagonal", "identity"])
def test_generations_begin_as_transformers_says(small_base: Base, variant: str, tmp_path: Path) -> None:
    """The corrected first token, and greedy decoding behind it, by plain transformers calls."""
    task = tiny.colour_task()
    adapted = fit(small_base, "calibration", tmp_path, variant=variant, over={"few-shot": {"shots": 3}}, questions=2)
    hf, renderer = small_base.model.hf, small_base.renderer

    def next_p(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return hf(torch.tensor([ids])).logits[0, -1].softmax(-1)

    said = adapted.generate([e.messages for e in task.test[:6]], GREEDY)
    plain = adapted.inner.generate([e.messages for e in task.test[:6]], GREEDY)  # type: ignore[attr-defined]
    assert [a.tokens[0] for a in said] != [a.tokens[0] for a in plain]
    for e, a in zip(task.test, said, strict=False):
        asked = adapted.prepare(e.messages)
        p_cf = torch.stack([
            next_p(renderer.prompt((*asked[:-1], replace(asked[-1], content=text)))) for text in ("N/A", "[MASK]", "")
        ]).mean(0)  # fmt: skip
        ids = renderer.prompt(asked)
        p = next_p(ids)
        corrected = p / p_cf.clamp(min=1e-3) if variant == "diagonal" else p - p_cf
        assert corrected[a.tokens[0]] > corrected.max() - 1e-6
        assert a.logprobs[0] == pytest.approx(float(p[a.tokens[0]].log()), abs=1e-4), "the model's own"
        for k, token in enumerate(a.tokens[1:], 1):
            p = next_p([*ids, *a.tokens[:k]])
            assert p[token] > p.max() - 1e-6


def test_choices_are_calibrated_as_the_paper_says(small_base: Base, tmp_path: Path) -> None:
    task = closed()
    asked = [e.messages for e in task.test]
    for by in ("choice", "first-token"):
        adapted = fit(small_base, "calibration", tmp_path / by, task=task, by=by, over={"few-shot": {"shots": 3}},
                      questions=2)  # fmt: skip
        assert isinstance(adapted, Calibrated)
        said = adapted.choose(asked, [tiny.COLOURS] * len(asked), replace(GREEDY, n=2))
        assert [a.text for a in said[::2]] == [a.text for a in said[1::2]]
        engine = adapted.engine

        def p(c: Conversation, by: str = by, engine: Any = engine) -> np.ndarray:
            if by == "choice":
                logp = np.array(engine.score([c], [tiny.COLOURS])[0])
            else:
                firsts = [[small_base.renderer.answer(x)[0]] for x in tiny.COLOURS]
                logp = np.array([float(x) for x in engine.token_log_probs([engine.renderer.prompt(c)] * 4, firsts)])
            return np.exp(logp - np.logaddexp.reduce(logp))

        differ = 0
        for c, a in zip(asked, said[::2], strict=True):
            prepared = adapted.prepare(c)
            p_cf = np.mean([p((*prepared[:-1], replace(prepared[-1], content=t))) for t in ("N/A", "[MASK]", "")], 0)
            own = p(prepared)
            assert own[tiny.COLOURS.index(a.text)] / p_cf[tiny.COLOURS.index(a.text)] > max(own / p_cf) * (1 - 1e-4)
            differ += own.argmax() != (own / p_cf).argmax()
        assert differ, "calibration changes something"


@pytest.mark.parametrize("by", ["choice", "first-token"])
def test_batch_calibration_takes_the_mean_over_validation_questions(small_base: Base, by: str, tmp_path: Path) -> None:
    task = closed()
    adapted = fit(small_base, "calibration", tmp_path, task=task, by=by, inputs="validation", questions=7,
                  over={"few-shot": {"shots": 3}}, orders=0, phrasings=0)  # fmt: skip
    assert adapted.record.findings == []
    asked = [e.messages for e in task.test]
    said = [a.text for a in adapted.choose(asked, [tiny.COLOURS] * len(asked), GREEDY)]

    def p(c: Conversation) -> np.ndarray:
        prompt = small_base.renderer.prompt(adapted.prepare(c))
        if by == "choice":
            logp = np.array(adapted.score([c], [tiny.COLOURS])[0])
        else:
            all_logp = adapted.engine.next_log_probs([prompt])[0]
            logp = np.array([float(all_logp[small_base.renderer.answer(x)[0]]) for x in tiny.COLOURS])
        return np.exp(logp - np.logaddexp.reduce(logp))

    mean = np.mean([p(e.messages) for e in task.validation[:7]], axis=0)
    for c, text in zip(asked, said, strict=True):
        ratio = p(c) / mean
        assert ratio[tiny.COLOURS.index(text)] > ratio.max() * (1 - 1e-4)


def test_next_tokens_are_those_of_transformers(small_base: Base) -> None:
    from kamerton.inference import Engine

    for batch in (64, 8192):
        engine = Engine(small_base.model, small_base.renderer, max_batch_tokens=batch)
        prompts = [small_base.renderer.prompt(e.messages) for e in tiny.colour_task().test]
        found = engine.next_log_probs([*prompts, prompts[0]])
        for ids, row in zip([*prompts, prompts[0]], found, strict=True):
            with torch.no_grad():
                expected = small_base.model.hf(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_a_bias_planted_in_the_model_is_undone(tmp_path: Path) -> None:
    """An output layer that favours one label by a constant: calibrated answers are those without it."""
    task = closed()
    base = load_base(tiny.save(tmp_path / "base"), dtype="float32")
    asked, choices = [e.messages for e in task.test], [tiny.COLOURS] * len(task.test)
    options = {"by": "first-token", "inputs": ("N/A",), "over": {"few-shot": {"shots": 2}}, "questions": 2}
    adapted = fit(base, "calibration", tmp_path / "fit", task=task, **options)
    before = [a.text for a in adapted.choose(asked, choices, GREEDY)]
    assert len(set(before)) > 1
    head = base.model.hf.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[base.renderer.answer("white")[0]] = 25.0
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
    fresh = fit(base, "calibration", tmp_path / "biased", task=task, **options)
    firsts = [[base.renderer.answer(x)[0]] for x in tiny.COLOURS]
    prompt = base.renderer.prompt(fresh.prepare(asked[0]))
    found = [float(x) for x in fresh.engine.token_log_probs([prompt] * 4, firsts)]
    assert max(range(4), key=found.__getitem__) == tiny.COLOURS.index("white"), "the bias is in the model"
    assert [a.text for a in fresh.choose(asked, choices, GREEDY)] == before


def test_calibration_is_tried_out_on_orders_and_phrasings(small_base: Base, tmp_path: Path) -> None:
    task = closed()
    adapted = fit(
        small_base, "calibration", tmp_path, task=task, over={"few-shot": {"shots": 3}}, orders=4, questions=8
    )
    (finding,) = adapted.record.findings
    assert [row[:2] for row in finding.rows] == [
        ("4 orders of the shots", "before"), ("4 orders of the shots", "after"), ("4 phrasings", "before"),
        ("4 phrasings", "after"),
    ]  # fmt: skip
    rng = np.random.default_rng([0, 25])
    assert isinstance(adapted, Wrapped)
    pool = adapted.inner.state["pool"][:3]
    scores = []
    for _ in range(4):
        state = {**adapted.inner.state, "pool": [pool[i] for i in rng.permutation(3)]}
        model = FewShot().wrap(adapted.inner.inner, adapted.inner.options, state)  # type: ignore[arg-type, attr-defined]
        texts = answer(model, task.validation[:8], GREEDY).texts
        scores.append(np.mean([t == e.answers[0] for t, e in zip(texts, task.validation, strict=False)]))
    assert finding.rows[0][2:] == pytest.approx((np.mean(scores), np.std(scores, ddof=1), min(scores), max(scores)))
    assert adapted.record.flops > 0
    shared = fit(small_base, "calibration", tmp_path / "z", task=task, over="zero-shot", questions=2)
    assert [row[0] for row in shared.record.findings[0].rows] == ["4 phrasings"] * 2


def test_a_first_token_correction_is_asked_once_for_each_answer(small_base: Base) -> None:
    """The door in the decoder: called for first tokens only, with the numbers of the prompts, whatever the batch."""
    from kamerton.inference import Engine

    engine = Engine(small_base.model, small_base.renderer, max_batch_tokens=300)
    asked = [e.messages for e in tiny.colour_task().test]
    forced = [100 + i for i in range(len(asked))]
    calls: Counter[int] = Counter()

    def first(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        calls.update(numbers)
        out = torch.full_like(logits, -50.0)
        out[range(len(numbers)), [forced[i] for i in numbers]] = 0.0
        return out

    said = engine.generate(asked, Sampling(max_tokens=5, n=3, temperature=1.0), first=first)
    assert [a.tokens[0] for a in said] == [t for t in forced for _ in range(3)]
    assert calls == dict.fromkeys(range(len(asked)), 3)
    log_p = engine.next_log_probs([small_base.renderer.prompt(c) for c in asked])
    for i, a in enumerate(said):
        assert a.logprobs[0] == pytest.approx(float(log_p[i // 3, a.tokens[0]]), abs=1e-4)


# -- what cannot work is one line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("few-shot", {"selection": "nearest", "order": "searched"}, "few-shot.order: selection nearest picks other"),
        ("few-shot", {"order": "searched", "over": "chain-of-thought"}, "cannot stand over chain-of-thought"),
        ("few-shot", {"encoder": "bert"}, "unknown encoder 'bert'; use one of: base, minilm, a hub id"),
        ("chain-of-thought", {"over": "calibration"}, "chain-of-thought cannot stand over calibration"),
        (
            "chain-of-thought",
            {"over": {"few-shot": {"over": "self-consistency"}}},
            "cannot stand over self-consistency",
        ),
        ("calibration", {"over": "chain-of-thought"}, "calibration cannot stand over chain-of-thought"),
        ("prompt-search", {"phrasings": []}, "phrasings is empty"),
        ("prompt-search", {"phrasings": [{"question": "x"}]}, "phrasing 1, question: a phrasing's question must hold"),
        ("prompt-search", {"phrasings": ["a", {"sytem": "x"}]}, "phrasing 2, sytem: Extra inputs are not permitted"),
        ("self-consistency", {"samples": 1}, "greater than 1"),
        ("calibration", {"variant": "square"}, "'diagonal' or 'identity'"),
    ],
)
def test_mistakes_in_options_are_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_options(get_method(name), options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def _shared(task: Task) -> Task:
    return changed(task, lambda e: replace(e, choices=(*e.choices, e.choices[0] + "dish")))


@pytest.mark.parametrize(
    ("name", "options", "task", "says"),
    [
        ("few-shot", {"selection": "balanced"}, tiny.colour_task, "no choices that all its examples share"),
        ("few-shot", {"order": "searched"}, tiny.colour_task, "validation questions with choices"),
        ("few-shot", {"order": "searched"}, lambda: replace(closed(), validation=()), "give a validation split"),
        ("prompt-search", {}, lambda: replace(closed(), validation=()), "give a validation split"),
        ("chain-of-thought", {"shots": 2}, tiny.colour_task, "(2 shots) needs training examples with a worked solution"),
        ("chain-of-thought", {"over": LORA}, tiny.colour_task, "(over lora) needs training examples with a worked"),
        ("chain-of-thought", {"over": "few-shot"}, tiny.colour_task, "columns: reasoning"),
        ("self-consistency", {"over": "few-shot"}, closed, "use self-consistency over chain-of-thought"),
        ("calibration", {"inputs": "validation"}, lambda: replace(closed(), validation=()), "give a validation split"),
        ("calibration", {"by": "first-token"}, lambda: _shared(closed()), "begin with the same token"),
    ],
)  # fmt: skip
def test_tasks_that_do_not_fit_are_one_line(
    small_base: Base, name: str, options: dict[str, Any], task: Callable[[], Task], says: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError) as caught:
        fit(small_base, name, tmp_path, task=task(), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# -- combinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("few-shot", {"shots": 2, "selection": "balanced", "order": "searched", "orders": 3, "over": LORA}),
        ("self-consistency", {"samples": 2, "over": {"chain-of-thought": {"max_tokens": 5, "shots": 1, "over": LORA}}}),
        ("self-consistency", {"samples": 2, "over": {"chain-of-thought": {
            "max_tokens": 5, "over": {"few-shot": {"shots": 1, "selection": "embeddings"}}}}}),
        ("calibration", {"questions": 3, "over": {"prompt-search": {"questions": 3, "over": {"few-shot": {"shots": 1}}}}}),
        ("prompt-search", {
            "questions": 3, "phrasings": ["Which?", "What?"], "over": {"calibration": {"questions": 2, "orders": 2}}}),
    ],
    ids=["shots-lora", "votes-chain-lora", "votes-chain-shots", "calibration-phrasing", "phrasing-calibration"],
)  # fmt: skip
def test_combinations_answer_alike_when_saved_and_loaded(
    long_base: Base, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    task = solved(closed())
    adapted = fit(long_base, name, tmp_path, task=task, budget=Budget(steps=3), **options)
    said = answer(adapted, task.test, GREEDY)
    adapted.save(tmp_path / "saved")
    again = answer(load_adapted(tmp_path / "saved", long_base), task.test, GREEDY)
    assert said.answers == again.answers
    assert set(said.texts) <= set(tiny.COLOURS)
    conversation = task.test[0].messages
    assert "".join(adapted.stream(conversation, GREEDY))
    assert isinstance(adapted.record, FitRecord)

"""Thinking budgets and test-time scaling: what is forced, what is measured, the files and the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamerton as kt
import tiny
from kamerton.api import merge
from kamerton.assessment.scaling import ANY, ONE, SUBSETS, VOTE, scaling
from kamerton.assessment.scaling_page import lines, scaling_page, sentences
from kamerton.assessment.scaling_settings import ScalingSettings, budgets
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, ModelError, TaskError
from kamerton.evaluation.answering import answer
from kamerton.inference import Answer, Sampling
from kamerton.methods import load_adapted
from kamerton.methods.method import Adapted
from kamerton.methods.thinking_budget import Forced
from kamerton.methods.zero_shot import ZeroShotOptions
from kamerton.prompting.thinking import BEFORE, BEHIND, CLOSE, Forcing, think
from kamerton.prompting.voting import vote
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget
from tiny import Cli, fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = Sampling(max_tokens=4)
HOT = Sampling(max_tokens=4, temperature=1.0, n=3, seed=1)


def silent(*_: object) -> None:
    """A report that nobody reads."""


def thoughtful(e: Example) -> Example:
    return replace(e, reasoning=f"it was {e.answers[0]}")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny model that learnt in a few seconds to think "it was <colour>" between tags, and to answer."""
    folder = tmp_path_factory.mktemp("thinker")
    base = load_base(tiny.save(folder / "random"), dtype="float32")
    task = tiny.colour_task()
    task = replace(task, train=tuple(map(thoughtful, task.train)), validation=())
    adapted = fit(base, "thinking-budget", folder / "fit", task=task, budget=Budget(steps=150), max_tokens=12,
                  over={"full": {"learning_rate": 3e-3}})  # fmt: skip
    assert isinstance(adapted, Forced)
    merge(adapted.inner, folder / "merged")
    return load_base(folder / "merged", dtype="float32")


def asked(count: int = 8) -> list[Conversation]:
    return [e.messages for e in tiny.colour_task().test[:count]]


# -- forcing ----------------------------------------------------------------------------------------------------------


def test_an_answer_goes_on_from_what_it_has_begun_with(small_base: Base) -> None:
    """Greedy: half of an answer given, the other half is what the whole one had; and log-probabilities agree."""
    engine = fit(small_base, "zero-shot", Path()).engine
    whole = engine.generate(asked(), replace(GREEDY, max_tokens=8))
    rest = engine.generate(asked(), GREEDY, begun=[a.tokens[:4] for a in whole])
    for a, b in zip(whole, rest, strict=True):
        assert b.tokens == a.tokens[4:]
        assert b.logprobs == pytest.approx(a.logprobs[4:], abs=1e-4)


@pytest.mark.parametrize("budget", [1, 7])
@pytest.mark.parametrize("again", [0, 3])
def test_a_thought_has_at_most_its_budget_and_is_closed(small_base: Base, budget: int, again: int) -> None:
    """A random model never closes a thought: it is cut at the budget, to the token, and the tag is put behind it."""
    engine = fit(small_base, "zero-shot", Path()).engine
    found = think(engine, asked(), HOT, Forcing(budget, again))
    assert len(found) == 24
    assert all(len(t.tokens) == budget for t in found if t.closed == "budget")
    assert all(len(t.tokens) <= budget for t in found)
    assert sum(t.closed == "budget" for t in found) > 20
    for t in found:
        assert CLOSE in small_base.renderer.decode(t.closing)
    # the thought is what the model says behind the opening tag, as it says it
    begin = small_base.renderer.answer(BEFORE, end=False)
    said = engine.generate(asked(), replace(HOT, max_tokens=budget), begun=[begin] * 8)
    assert [t.tokens for t in found if t.closed == "budget"] == [
        list(a.tokens) for a, t in zip(said, found, strict=True) if t.closed == "budget"
    ]


def test_a_thought_that_closes_itself_is_left_as_it_is(thinker: Base) -> None:
    engine = fit(thinker, "zero-shot", Path()).engine
    found = think(engine, asked(), GREEDY, Forcing(30))
    decode = thinker.renderer.decode
    assert {t.closed for t in found} == {"model"}
    for t in found:
        assert re.fullmatch(r"it was \w+\n?", decode(t.tokens))
        assert decode([*t.tokens, *t.closing]).endswith(CLOSE)
        assert t.sampled == len(t.tokens) + len(t.closing)


def test_going_on_puts_wait_behind_a_thought_and_heeds_the_budget(thinker: Base) -> None:
    engine, decode = fit(thinker, "zero-shot", Path()).engine, thinker.renderer.decode
    once = think(engine, asked(), GREEDY, Forcing(40))
    more = think(engine, asked(), GREEDY, Forcing(40, 2))
    assert {t.continued for t in more} == {2}
    for a, b in zip(once, more, strict=True):
        assert b.tokens[: len(a.tokens)] == a.tokens
        assert decode(b.tokens).count("\nWait,") == 2
        assert len(b.tokens) <= 40
    wait = len(thinker.renderer.answer("\nWait,", end=False))
    tight = len(once[0].tokens) + wait
    assert {t.continued for t in think(engine, asked(1), GREEDY, Forcing(tight, 2))} == {0}, "no room behind Wait"
    (t,) = think(engine, asked(1), GREEDY, Forcing(tight + 2, 2))
    assert len(t.tokens) <= tight + 2
    assert t.continued == 1


def test_no_budget_is_no_thought(small_base: Base) -> None:
    engine = fit(small_base, "zero-shot", Path()).engine
    found = think(engine, asked(2), HOT, Forcing(0))
    assert [(t.tokens, small_base.renderer.decode(t.closing), t.sampled) for t in found] == [([], BEHIND, 0)] * 6


def test_a_part_of_the_tag_is_no_thought(small_base: Base) -> None:
    from kamerton.prompting.thinking import Thought, _add

    renderer = small_base.renderer
    tokens = renderer.answer("it was red</thi", end=False)
    t = Thought()
    _add(t, Answer("it was red</thi", tuple(tokens), (0.0,) * len(tokens), "length", 1), renderer, 99)
    assert renderer.decode(t.tokens) == "it was red"
    assert t.closing == []


@pytest.mark.parametrize("over", ["zero-shot", {"few-shot": {"shots": 1}}])
def test_the_answer_comes_behind_the_closed_thought(thinker: Base, over: Any, tmp_path: Path) -> None:
    adapted = fit(thinker, "thinking-budget", tmp_path, max_tokens=3, over=over)
    engine, renderer = adapted.engine, thinker.renderer
    for c, a in zip(asked(4), adapted.generate(asked(4), GREEDY), strict=True):
        prompt = renderer.prompt(adapted.prepare(c))
        thought = a.details["thought"]
        assert a.details["thought_tokens"] <= 3
        begun = renderer.answer(BEFORE, end=False)
        (again,) = engine.generate([adapted.prepare(c)], replace(GREEDY, max_tokens=3), begun=[begun])
        tail = [*again.tokens, *renderer.answer(BEHIND, end=False)]
        (rest,) = engine.generate([adapted.prepare(c)], GREEDY, begun=[[*begun, *tail]])
        assert a.tokens == rest.tokens
        assert thought == renderer.decode(again.tokens).strip()
        assert a.prompt_tokens == len(prompt)
        assert a.generated_tokens == len(rest.tokens) + 3
        both = [*again.logprobs, *rest.logprobs]
        assert a.details["log_prob"] == pytest.approx(np.mean(both), abs=1e-4)


def test_choices_are_ranked_behind_the_thought(thinker: Base, tmp_path: Path) -> None:
    adapted = fit(thinker, "thinking-budget", tmp_path, max_tokens=12)
    task = tiny.colour_task()
    closed = [replace(e, choices=tuple(tiny.COLOURS)) for e in task.test]
    said = answer(adapted, closed, GREEDY)
    thoughts = [a.details["thought"].split()[-1] for a in said.answers]
    assert np.mean([a == b for a, b in zip(said.texts, thoughts, strict=True)]) > 0.8, "it answers what it thought"
    (finding,) = adapted.findings(closed, said.answers)
    assert finding.rows == (("the model", 16),)


def test_it_is_saved_and_loaded(thinker: Base, tmp_path: Path) -> None:
    adapted = fit(thinker, "thinking-budget", tmp_path, max_tokens=6, continuations=1)
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", thinker)
    assert again.generate(asked(), HOT) == adapted.generate(asked(), HOT)
    assert "".join(adapted.stream(asked()[0], GREEDY)) == adapted.generate(asked(1), GREEDY)[0].text


def test_what_cannot_work_is_one_line(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"over lora\) needs training examples with a worked solution"):
        fit(small_base, "thinking-budget", tmp_path / "a", over={"lora": {"learning_rate": 0.01}})
    with pytest.raises(KamertonError, match="thinking-budget cannot stand over chain-of-thought"):
        fit(small_base, "thinking-budget", tmp_path / "b", over="chain-of-thought")
    base = load_base(tiny.save_encoder_decoder(tmp_path / "t5"), dtype="float32")
    with pytest.raises(ModelError, match="thinking-budget is not defined for an encoder–decoder base"):
        fit(base, "thinking-budget", tmp_path / "c")


# -- scaling ----------------------------------------------------------------------------------------------------------


class Planted(Adapted):
    """Says what a test knows: the k-th sample to a question; greedy: the first."""

    def __init__(self, base: Base, say: Callable[[Conversation, int], tuple[str, float]]) -> None:
        super().__init__(base, base.model, method="zero-shot", options=ZeroShotOptions())
        self.say = say

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, **_: Any) -> list[Answer]:
        said = [self.say(c, k) for c in conversations for k in range(sampling.n)]
        return [Answer(text, (1, 2, 3), (p,) * 3, "stop", 7) for text, p in said]


TASK = tiny.colour_task()
NUMBER = {e.messages[-1].content: i for i, e in enumerate(TASK.test)}


def planned(c: Conversation, k: int) -> tuple[str, float]:
    """Question i: samples that are right by a pattern; wrong ones differ or agree; log-probabilities by a pattern."""
    i = NUMBER[c[-1].content]
    right = TASK.test[i].answers[0]
    return (right if (i + k) % 3 == 0 else f"wrong {(i * k) % 2}"), -float((i * 7 + k * 5) % 6)


def measured(base: Base, task: Task = TASK, **more: Any) -> dict[str, Any]:
    settings = ScalingSettings(**{"samples": 6, **more})
    return scaling(Planted(base, planned), task, "test", GREEDY, settings, silent)[0]


def test_curves_are_those_of_all_subsets(small_base: Base) -> None:
    curves = measured(small_base)["curves"]
    texts = [[planned(e.messages, k) for k in range(6)] for e in TASK.test]
    for place, n in enumerate((1, 2, 4, 6)):
        voted, best, possible = [], [], []
        for e, row in zip(TASK.test, texts, strict=True):
            for part in combinations(range(6), n):
                own = [row[k] for k in part]
                voted.append(own[vote([t for t, _ in own], [1.0] * n).winner][0] == e.answers[0])
                best.append(own[max(range(n), key=lambda j: (own[j][1], -j))][0] == e.answers[0])
                possible.append(any(t == e.answers[0] for t, _ in own))
        for name, found in ((VOTE, voted), ("best of n by log-probability", best), (ANY, possible)):
            point = curves[name][place]
            assert point["at"] == n
            assert point["tokens"] == pytest.approx(3 * n)
            assert point["value"] == pytest.approx(np.mean(found)), (name, n)
            assert point["low"] <= point["value"] <= point["high"]
    (one,) = curves[ONE]
    assert one["value"] == pytest.approx(
        np.mean([row[0][0] == e.answers[0] for e, row in zip(TASK.test, texts, strict=True)])
    )
    assert one["tokens"] == 3


def test_votes_of_many_samples_are_averaged_over_drawn_subsets(small_base: Base) -> None:
    drawn = measured(small_base, samples=12)["curves"][VOTE]
    assert SUBSETS < 495, "of 4 of 12 there are more"
    exact = []
    for e in TASK.test:
        row = [planned(e.messages, k)[0] for k in range(12)]
        exact.append(np.mean([
            row[p[vote([row[k] for k in p], [1.0] * 4).winner]] == e.answers[0] for p in combinations(range(12), 4)
        ]))  # fmt: skip
    assert drawn[2]["value"] == pytest.approx(np.mean(exact), abs=0.06)


def test_what_is_gained_is_told_apart(small_base: Base) -> None:
    """A model whose likeliest sample is always right, and whose votes are always wrong."""

    def say(c: Conversation, k: int) -> tuple[str, float]:
        i = NUMBER[c[-1].content]
        return (TASK.test[i].answers[0], -0.1) if k == 1 else ("wrong", -1.0)

    result = scaling(Planted(small_base, say), TASK, "test", GREEDY, ScalingSettings(samples=8), silent)[0]
    gains = {g["curve"]: g for g in result["gains"]}
    best = gains["best of n by log-probability"]
    assert (best["before"], best["after"]) == pytest.approx((1 / 8, 1.0))
    assert best["p_holm"] < 0.01
    told = sentences(result)
    start = "Best of n by log-probability: 8 answers are better than 1 (exact-match 12.5 → 100.0%; +87.5 points"
    assert any(text.startswith(start) and "p < 0.001" in text for text in told)
    assert gains[VOTE]["after"] == 0
    assert any(text.startswith("Majority vote: 8 answers are worse than 1") for text in told)
    assert f"{VOTE}\n" in "\n".join(lines(result))


def test_a_reward_that_reads_references_is_refused(small_base: Base) -> None:
    with pytest.raises(KamertonError, match=r"^--reward: token-f1 compares with the accepted answers"):
        measured(small_base, rewards=("token-f1",))


def test_thinking_budgets_are_measured(thinker: Base, tmp_path: Path) -> None:
    adapted = fit(thinker, "thinking-budget", tmp_path, max_tokens=16, continuations=1)
    result = scaling(adapted, TASK, "test", GREEDY, ScalingSettings(samples=2), silent)[0]
    curve = result["curves"]["thinking budget"]
    assert [p["at"] for p in curve] == [0, 2, 4, 8, 16]
    assert [p["tokens"] for p in curve] == sorted(p["tokens"] for p in curve)
    whole = answer(fit(thinker, "thinking-budget", tmp_path / "b", max_tokens=16), TASK.test, GREEDY)
    right = np.mean([t == e.answers[0] for t, e in zip(whole.texts, TASK.test, strict=True)])
    assert curve[-1]["value"] == pytest.approx(right)
    assert curve[-1]["tokens"] == pytest.approx(np.mean(whole.generated_tokens))
    assert "thinking budget, going on up to 1 times" in result["curves"]
    # a method without thought, asked for budgets
    plain = fit(thinker, "zero-shot", tmp_path / "z")
    other = scaling(plain, TASK, "test", GREEDY, ScalingSettings(samples=2, budgets=(0, 16)), silent)[0]
    assert other["curves"]["thinking budget"][-1]["value"] == pytest.approx(right)
    assert any("no thinking budget of its own" in note for note in other["notes"])


def test_votes_and_choices_of_the_method_are_taken_off(small_base: Base, tmp_path: Path) -> None:
    plain = fit(small_base, "zero-shot", tmp_path / "z")
    voting = fit(small_base, "self-consistency", tmp_path / "v", over={"best-of-n": {"samples": 2}}, samples=2)
    settings = ScalingSettings(samples=3)
    one, two = (scaling(m, TASK, "test", GREEDY, settings, silent)[0] for m in (plain, voting))
    assert one["curves"] == two["curves"]
    assert len(two["notes"]) == 2


def test_closed_sets_are_sampled_only_behind_thought(small_base: Base, tmp_path: Path) -> None:
    closed = tuple(replace(e, choices=tuple(tiny.COLOURS)) for e in TASK.test)
    with pytest.raises(TaskError, match="choices are ranked without thought"):
        measured(small_base, replace(TASK, test=closed))
    result = measured(small_base, replace(TASK, test=(*closed[:6], *TASK.test[6:])))
    assert result["questions"] == 10
    assert any("6 of 16 questions have a closed set" in note for note in result["notes"])
    chain = fit(small_base, "chain-of-thought", tmp_path, max_tokens=4)
    found = scaling(chain, replace(TASK, test=closed), "test", GREEDY, ScalingSettings(samples=2), silent)
    assert found[0]["questions"] == 16
    assert all(text in tiny.COLOURS for row in found[1] for text in row["answers"])
    with pytest.raises(TaskError, match="cannot stand around a chain of thought"):
        scaling(chain, TASK, "test", GREEDY, ScalingSettings(samples=2, budgets=(4,)), silent)


def test_metrics_that_are_no_mean_have_no_upper_bound(small_base: Base) -> None:
    curves = measured(small_base, replace(TASK, metrics=("macro-f1",)))["curves"]
    assert ANY not in curves
    assert len(curves[VOTE]) == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"samples": 1}, "--samples: samples is 1"), ({"temperature": 0.0}, "--temperature: temperature is 0"),
     ({"budgets": (4, 4)}, "--budgets: budgets 4, 4 do not do"), ({"continuations": -1}, "--continuations: contin")],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(KamertonError) as caught:
        ScalingSettings(**settings)
    assert str(caught.value).startswith(says)


def test_budgets_are_read_in_rising_order() -> None:
    assert budgets("64,0,32") == (0, 32, 64)
    with pytest.raises(KamertonError, match="no list of whole numbers"):
        budgets("a few")


def test_the_page_holds_everything_and_escapes_texts(small_base: Base, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r", small_base.info.source, "- zero-shot")
    found = kt.scaling(Planted(small_base, planned), recipe, output=tmp_path / "out",
                       settings=kt.ScalingSettings(samples=4), command="<b>")  # fmt: skip
    page = found.report.read_text(encoding="utf-8")
    assert page == scaling_page(found.results)
    assert "http" not in re.sub(r"<meta http-equiv[^>]+>", "", page)
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert page.count('class="front"') == 2
    assert all(f">{name}</th>" in page for name in found.results["curves"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [e.id for e in TASK.test] or len(rows) == 16
    assert len(rows[0]["answers"]) == 4
    assert str(found) == "\n".join(found.sentences)


def test_the_command(cli: Cli, small_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, small_folder, "- zero-shot")
    out = tmp_path / "out"
    status, said, error = cli(
        "eval", small_folder, recipe, "--scaling", "--samples", "2", "--budgets", "4,0", "--output", out
    )
    assert status == 0, error
    assert "thinking budget" in said
    assert "budget 4" in said
    assert f"page: {out / 'scaling.html'}" in said
    assert json.loads((out / "scaling.json").read_text())["settings"]["budgets"] == [0, 4]
    for more, says in (
        (["--temperature", "1"], "--temperature is for --scaling; add --scaling"),
        (["--fidelity", "--budgets", "3"], "--budgets is for --scaling"),
        (["--scaling", "--judge"], "--judge is for --fidelity"),
        (["--scaling", "--fidelity"], "--fidelity and --scaling are two measurements"),
        (["--scaling", "--reward", "exact-match", "--output", tmp_path / "a"], "--reward: exact-match compares with"),
        (["--scaling", "--continuations", "1", "--output", tmp_path / "b"], "--continuations: the method has no"),
    ):
        status, _, error = cli("eval", small_folder, recipe, *more)
        assert status == 2
        assert says in error
        assert error.strip().count("\n") == 0

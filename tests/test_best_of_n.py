"""Best of n: what is chosen, by what, that nothing chooses by the references, and the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, RewardError, TaskError
from kamerton.evaluation.answering import answer
from kamerton.inference import Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.best_of_n import Choosing
from kamerton.prompting.choosing import reads_references
from kamerton.rewards.metric import MetricReward
from kamerton.tasks.example import Example, Task
from kamerton.training import Budget
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = Sampling(max_tokens=6)
SEEN = Sampling(max_tokens=6, temperature=0.7, n=5)


class Letters:
    """More vowels are better; the questions it was asked about are kept."""

    name, range, needs_references = "letters", (0.0, 100.0), False

    def __init__(self) -> None:
        self.examples: list[Example] = []

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        self.examples += examples
        return np.array([sum(c in "aeiou" for c in a) for a in answers], dtype=np.float64)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    """A reward that reads no references, under the name `letters` of recipes."""
    made, own = Letters(), tiny_build()
    monkeypatch.setattr(
        "kamerton.prompting.choosing.build_reward",
        lambda spec, base, task: made if spec == "letters" else own(spec, base, task),
    )
    return made


def tiny_build() -> Any:
    from kamerton.rewards import build_reward

    return build_reward


def closed() -> Task:
    task = tiny.colour_task()
    return replace(task, test=tuple(replace(e, choices=tuple(tiny.COLOURS)) for e in task.test))


def test_the_likeliest_sample_is_given(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    plain = fit(small_base, "zero-shot", tmp_path / "z")
    adapted = fit(small_base, "best-of-n", tmp_path / "b", samples=5)
    asked = [e.messages for e in task.test]
    samples, given = plain.generate(asked, SEEN), adapted.generate(asked, GREEDY)
    places = []
    for i, a in enumerate(given):
        own = samples[5 * i : 5 * i + 5]
        by_hand = [sum(s.logprobs) / len(s.tokens) for s in own]
        best = max(range(5), key=by_hand.__getitem__)
        places.append(best)
        assert a.tokens == own[best].tokens
        assert a.details["samples"] == [s.text for s in own]
        assert a.details["scores"] == pytest.approx(by_hand)
        assert a.generated_tokens == sum(len(s.tokens) for s in own)
    assert len(set(places)) > 2
    assert get_method("best-of-n").seeded(adapted.options)
    assert next(iter(adapted.stream(asked[0], GREEDY))) == given[0].text


def test_a_reward_chooses_and_is_told_no_answers(small_base: Base, tmp_path: Path, letters: Letters) -> None:
    task = tiny.colour_task()
    adapted = fit(small_base, "best-of-n", tmp_path, samples=5, reward="letters")
    samples = fit(small_base, "zero-shot", tmp_path / "z").generate([e.messages for e in task.test], SEEN)
    given = adapted.generate([e.messages for e in task.test], GREEDY)
    for i, a in enumerate(given):
        counts = [sum(c in "aeiou" for c in s.text) for s in samples[5 * i : 5 * i + 5]]
        assert a.text == samples[5 * i + counts.index(max(counts))].text, "of equal ones the first"
    assert [e.messages for e in letters.examples[::5]] == [e.messages for e in task.test]
    assert all(e.answers == () for e in letters.examples)
    two = adapted.generate([task.test[0].messages], replace(GREEDY, n=2))
    assert len(two) == 2
    assert len(two[0].details["samples"]) == 5


@pytest.mark.usefixtures("letters")
def test_the_curve_is_the_mean_over_all_subsets(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    adapted = fit(small_base, "best-of-n", tmp_path, samples=5, reward="letters")
    said = adapted.generate([e.messages for e in task.test], GREEDY)
    # references that some samples hit, so that there is something to see
    told = [
        replace(e, answers=(a.details["samples"][i % 5],)) for i, (e, a) in enumerate(zip(task.test, said, strict=True))
    ]
    (curve,) = adapted.findings(told, said)
    assert curve.curve
    assert curve.columns == ("answers", "exact-match", "best possible")
    for n, value, possible in curve.rows:
        right, best = [], []
        for e, a in zip(told, said, strict=True):
            texts, scores = a.details["samples"], a.details["scores"]
            for part in combinations(range(5), n):
                right.append(texts[max(part, key=lambda k: (scores[k], -k))] == e.answers[0])
                best.append(any(texts[k] == e.answers[0] for k in part))
        assert (value, possible) == pytest.approx((np.mean(right), np.mean(best)))
    assert [row[0] for row in curve.rows] == [1, 2, 4, 5]
    assert curve.rows[-1][2] == 1


@pytest.mark.parametrize("over", ["zero-shot", {"lora": {"learning_rate": 0.01, "rank": 2}}, "thinking-budget"])
def test_saved_and_loaded_it_answers_the_same(small_base: Base, tmp_path: Path, over: Any) -> None:
    over = {"thinking-budget": {"max_tokens": 5}} if over == "thinking-budget" else over
    adapted = fit(small_base, "best-of-n", tmp_path / "f", samples=3, over=over, budget=Budget(steps=3))
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    asked = [e.messages for e in tiny.colour_task().test]
    assert again.generate(asked, GREEDY) == adapted.generate(asked, GREEDY)


def test_choices_need_a_chain_and_are_chosen_by_it(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="nothing to sample where choices are ranked without a chain"):
        fit(small_base, "best-of-n", tmp_path / "a", task=closed())
    inner = {"chain-of-thought": {"max_tokens": 5}}
    adapted = fit(small_base, "best-of-n", tmp_path / "b", task=closed(), samples=4, over=inner)
    assert isinstance(adapted, Choosing)
    task = closed()
    said = answer(adapted, task.test, GREEDY).answers
    plan = replace(GREEDY, n=4, temperature=0.7)
    chains = adapted.inner.choose([e.messages for e in task.test], [e.choices for e in task.test], plan)
    for i, a in enumerate(said):
        own = chains[4 * i : 4 * i + 4]
        best = max(own, key=lambda c: c.details["log_prob"])
        assert (a.text, a.details["reasoning"]) == (best.text, best.details["reasoning"])


# -- nothing chooses by the references --------------------------------------------------------------------------------


def test_a_reward_says_for_itself_that_it_reads_no_references() -> None:
    class Silent:
        name, range = "silent", (0.0, 1.0)

        def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:  # noqa: ARG002
            return np.zeros(len(answers))

    assert reads_references(Silent())
    assert reads_references(MetricReward("exact-match", tiny.colour_task()))
    assert not reads_references(Letters())


def test_a_metric_is_refused_at_the_recipes_line(small_base: Base, small_folder: Path, tmp_path: Path) -> None:
    import kamerton as kt

    with pytest.raises(KamertonError) as caught:
        fit(small_base, "best-of-n", tmp_path / "a", reward="token-f1")
    assert "best-of-n.reward: token-f1 compares with the accepted answers, which nobody has at inference" in str(
        caught.value
    )
    assert "use log-probability, or a reward that reads the answer alone" in str(caught.value)
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, "- best-of-n: {samples: 2, reward: exact-match}")
    with pytest.raises(KamertonError, match=r"colours\.yaml:\d+: .*exact-match compares with the accepted answers"):
        kt.compare(recipe, output=tmp_path / "out", progress=False)


def test_a_reward_without_a_number_is_one_line(small_base: Base, tmp_path: Path, letters: Letters) -> None:
    adapted = fit(small_base, "best-of-n", tmp_path, samples=2, reward="letters")
    type(letters).__call__ = lambda self, examples, answers: np.full(len(answers), np.nan)  # type: ignore[method-assign]
    try:
        with pytest.raises(RewardError, match="letters: gives nan for an answer to example conversation 0"):
            adapted.generate([tiny.colour_task().test[0].messages], GREEDY)
    finally:
        type(letters).__call__ = CALL  # type: ignore[method-assign]


CALL = Letters.__call__


@pytest.mark.parametrize(
    ("options", "says"),
    [({"samples": 1}, "greater than 1"), ({"over": "nothing"}, "unknown method 'nothing'"),
     ({"temperature": 0}, "greater than 0")],
)  # fmt: skip
def test_mistakes_in_options_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(KamertonError) as caught:
        parse_options(get_method("best-of-n"), options)
    assert says in str(caught.value)


def test_it_works_on_an_encoder_decoder(tmp_path: Path) -> None:
    base = load_base(tiny.save_encoder_decoder(tmp_path / "t5"), dtype="float32")
    adapted = fit(base, "best-of-n", tmp_path / "f", samples=3)
    (said,) = adapted.generate([tiny.colour_task().test[0].messages], GREEDY)
    assert len(said.details["samples"]) == 3

"""The verdict: ranks, groups, costs, and sentences that say no more than the data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kamerton.comparison.units import Scale, duration, listing, p_value, plain, quantity
from kamerton.comparison.verdict import ANSWERS, Verdict, decide


class Accuracy:
    name = "accuracy"
    higher_is_better = True
    range = (0.0, 1.0)

    def aggregate(self, sums: np.ndarray, count: Any) -> np.ndarray:
        return sums[..., 0] / count


class Loss(Accuracy):
    name = "loss"
    higher_is_better = False
    range = (0.0, np.inf)


def scores(rng: np.random.Generator, p: float, *, n: int = 300, seeds: int = 3, spread: float = 0.0) -> dict[int, Any]:
    return {s: (rng.random((n, 1)) < p + spread * (s - 1)).astype(float) for s in range(seeds)}


def cell(fit: float, evaluate: float, kl: float | None = 0.0) -> dict[str, Any]:
    forgetting = None if kl is None else {"kl": kl, "bits_per_byte": 1.0 + kl, "bits_per_byte_base": 1.0}
    return {"flops": {"fit": fit, "evaluate": evaluate}, "forgetting": forgetting}


@pytest.fixture
def verdict() -> Verdict:
    rng = np.random.default_rng(0)
    found = {
        "low": scores(rng, 0.1),
        "middle": scores(rng, 0.45),
        "good": scores(rng, 0.83),
        "good-too": scores(rng, 0.84),
    }
    cells = {
        "low": [cell(0, 3e9)],
        "middle": [cell(0, 3e10)],
        "good": [cell(9e12, 3e9, 0.2)],
        "good-too": [cell(2e12, 3e9, 0.3)],
    }
    return decide(found, Accuracy(), cells, planned_seeds=[0, 1, 2], resamples=1000)


def test_ranks_and_groups(verdict: Verdict) -> None:
    assert {row.label: row.rank for row in verdict.rows} == {"good": 1, "good-too": 1, "middle": 3, "low": 4}
    assert set(verdict.best) == {"good", "good-too"}
    assert set(verdict.row("low").worse_than) == {"middle", "good", "good-too"}
    assert verdict.best_for_cost == ("good-too",)
    assert verdict.forgets_least == ("good",)
    values = [row.value for row in verdict.rows]
    assert values == sorted(values, reverse=True)


def test_cost_counts_fitting_and_a_thousand_answers(verdict: Verdict) -> None:
    assert verdict.row("good").cost_flops == pytest.approx(9e12 + ANSWERS * 3e9 / 300)
    assert set(verdict.pareto) >= {"low", "middle", "good-too"}
    assert ("good" in verdict.pareto) == (verdict.row("good").value > verdict.row("good-too").value)


def test_no_leader_is_named_where_nothing_is_decided(verdict: Verdict) -> None:
    assert verdict.sentence.startswith("No single method can be called best")
    assert "is best" not in verdict.sentence
    assert "80% power" in verdict.sentence or "too little" in verdict.sentence
    pair = verdict.pair("good", "good-too")
    assert not pair.decided
    assert pair.better is None
    assert pair.low < 0 < pair.high


def test_a_clear_leader_is_named() -> None:
    rng = np.random.default_rng(1)
    found = decide({"a": scores(rng, 0.9), "b": scores(rng, 0.4)}, Accuracy(), {}, resamples=1000)
    assert found.sentence.startswith("a is best (accuracy 89.7%, 95% interval")
    assert found.best == ("a",)
    assert found.pair("b", "a").better == "a"
    assert found.pair("b", "a").difference == pytest.approx(-found.pair("a", "b").difference)
    assert found.best_for_cost == ()  # not measured: not guessed
    assert "FLOP" not in found.sentence


def test_lower_can_be_better() -> None:
    rng = np.random.default_rng(2)
    data = {m: {s: rng.gamma(4, c, (200, 1)) for s in range(3)} for m, c in (("high", 0.6), ("low", 0.3))}
    found = decide(data, Loss(), {}, resamples=1000)
    assert found.best == ("low",)
    assert [row.label for row in found.rows] == ["low", "high"]
    assert found.pair("high", "low").difference > 0


def test_probably_worse_is_neither_leader_nor_recommended() -> None:
    """Beaten before, but not after, the correction: not told apart, and not the cheap recommendation either."""
    n = 300
    base = np.zeros((n, 1))
    base[:150] = 1
    slightly = base.copy()
    slightly[150:164] = 1
    slightly[:4] = 0  # 14 won, 4 lost: p = 0.03
    others = {f"x{i}": base.copy() for i in range(3)}
    cells = {label: [cell(1.0 if label != "top" else 1e15, 1.0)] for label in ["top", *others]}
    found = decide({"top": {0: slightly}, **{k: {0: v} for k, v in others.items()}}, Accuracy(), cells, resamples=500)
    assert all(row.rank == 1 for row in found.rows)
    assert found.contenders == ("top",)
    assert found.best_for_cost == ("top",)
    assert found.sentence.startswith("top is probably best")
    assert "after the correction for 6 comparisons" in found.sentence


def test_one_seed_is_said() -> None:
    rng = np.random.default_rng(3)
    found = decide({"a": scores(rng, 0.9, seeds=1), "b": scores(rng, 0.4, seeds=1)}, Accuracy(), {}, resamples=500)
    assert all(pair.conditional for pair in found.pairs)
    assert "one seed only" in found.sentence


def test_failed_cells_are_compared_on_common_seeds_and_that_is_said() -> None:
    rng = np.random.default_rng(4)
    a, b = scores(rng, 0.9), scores(rng, 0.4)
    del b[1]
    found = decide({"a": a, "b": b, "c": {}}, Accuracy(), {}, planned_seeds=[0, 1, 2], resamples=500)
    assert found.pair("a", "b").seeds == (0, 2)
    assert any("b has no result for seed 1" in note and "seed 0 and 2" in note for note in found.notes)
    assert "c" not in [row.label for row in found.rows]


def test_seeds_that_differ_ask_for_more_seeds() -> None:
    rng = np.random.default_rng(5)
    found = decide(
        {"a": scores(rng, 0.66, spread=0.1), "b": scores(rng, 0.5, spread=0.08)}, Accuracy(), {}, resamples=1000
    )
    pair = found.pair("a", "b")
    assert not pair.decided
    assert pair.more_examples is None
    assert pair.plan is not None
    assert "seeds for each method" in found.sentence


def test_empty_and_single() -> None:
    assert decide({}, Accuracy(), {}).sentence == "No cell has finished yet."
    one = decide({"a": scores(np.random.default_rng(0), 0.5)}, Accuracy(), {}, resamples=200)
    assert "nothing to compare" in one.sentence


def test_equal_scores() -> None:
    same = scores(np.random.default_rng(0), 0.5)
    found = decide({"a": same, "b": same}, Accuracy(), {}, resamples=200)
    assert "have the same score" in found.sentence
    assert found.pair("a", "b").p == 1.0


def test_verdict_is_json(verdict: Verdict) -> None:
    again = json.loads(json.dumps(verdict.to_dict()))
    assert again["best"] == list(verdict.best)
    assert again["sentence"] == verdict.sentence
    assert len(again["pairs"]) == 6


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (quantity(460_800), "461 k"),
        (quantity(0), "0"),
        (quantity(999_700), "1.00 M"),
        (quantity(1.5e9, "B"), "1.50 GB"),
        (quantity(None), "–"),
        (quantity(-2500), "−2.50 k"),
        (plain(9216), "9216"),
        (duration(0.041), "41 ms"),
        (duration(0), "0 s"),
        (duration(200.4), "3 min 20 s"),
        (duration(7500), "2 h 5 min"),
        (duration(59.7), "1 min"),
        (p_value(0.00001), "< 0.001"),
        (p_value(0.0312), "0.031"),
        (listing(["a", "b", "c"]), "a, b and c"),
        (Scale("x", 0, 1).score(0.8312), "83.1%"),
        (Scale("x", 0, 1).points(-0.004), "−0.4 points"),
        (Scale("x", 0, 1).signed(-0.00001), "0.0"),
        (Scale("bleu", 0, 100).score(27.34), "27.3"),
        (Scale("matthews", -1, 1).score(-0.51), "−0.510"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == expected

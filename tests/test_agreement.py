"""Agreement of labellers and strengths of models, against independent implementations."""

from __future__ import annotations

import warnings

import choix
import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from kamerton.feedback.agreement import Level, Rating, cohen_kappa, krippendorff_alpha, pairs_of_labellers
from kamerton.feedback.bradley_terry import Comparison, fit, has_maximum, strengths, wilson

TABLES = st.integers(2, 5).flatmap(
    lambda labellers: st.lists(
        st.lists(st.sampled_from([None, 1, 2, 3, 5, 10]), min_size=labellers, max_size=labellers),
        min_size=2,
        max_size=25,
    )
)
"""Units × labellers, with values that are not given and steps of different size."""


def ratings(table: list[list[int | None]], units_of_an_item: int = 1) -> list[Rating]:
    return [
        Rating(unit // units_of_an_item, unit, f"l{labeller}", float(value))
        for unit, row in enumerate(table) for labeller, value in enumerate(row) if value is not None
    ]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(TABLES, st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_that_of_krippendorffs_package(table: list[list[int | None]], level: Level) -> None:
    data = np.array([[np.nan if v is None else v for v in row] for row in table], dtype=float).T
    judged = data[:, (~np.isnan(data)).sum(0) > 1]
    assume(len(np.unique(judged[~np.isnan(judged)])) > 1)
    expected = krippendorff.alpha(data, level_of_measurement=level)
    found = krippendorff_alpha(ratings(table), level, resamples=2)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert (found.units, found.values) == (judged.shape[1], (~np.isnan(judged)).sum())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=40),
    st.sampled_from([None, "linear", "quadratic"]),
)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[int, int]], weights: str | None) -> None:
    a, b = zip(*pairs, strict=True)
    values = sorted({*a, *b})
    assume(len(values) > 1)
    # scikit-learn weighs by rank, we by distance: the same where no value is left out
    assume(weights is None or values == list(range(values[0], values[-1] + 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(a, b, weights=weights)
    found = cohen_kappa(ratings([list(pair) for pair in pairs]), "l0", "l1", weights=weights, resamples=2)
    if np.isnan(expected):
        assert found.value is None
    else:
        assert found.value == pytest.approx(expected, abs=1e-9)


def test_agreement_that_is_not_defined() -> None:
    same = krippendorff_alpha(ratings([[1, 1], [1, 1]]))
    assert (same.value, same.low, same.units) == (None, None, 2)
    assert krippendorff_alpha(ratings([[1, None], [None, 2]])).units == 0
    assert krippendorff_alpha([]).value is None
    assert cohen_kappa(ratings([[1, 1], [1, 1]]), "l0", "l1").value is None
    one = krippendorff_alpha([Rating("i", n, who, v) for n in (1, 2, 3) for who, v in (("a", n % 2), ("b", n % 2))])
    assert (one.value, one.low, one.high) == (1.0, None, None)
    assert pairs_of_labellers(ratings([[1, 1, None], [None, 2, None], [None, None, 1]])) == [("l0", "l1")]


def test_the_interval_is_one_over_items_and_not_over_units() -> None:
    """Ten questions about an item that all went the same way are one piece of evidence, not ten."""
    rng = np.random.default_rng(0)
    table = [list(map(int, rng.integers(1, 3, 2))) for _ in range(30)]
    many = [row for row in table for _ in range(10)]
    single = krippendorff_alpha(ratings(table), resamples=2000)
    clustered = krippendorff_alpha(ratings(many, 10), resamples=2000)
    apart = krippendorff_alpha(ratings(many), resamples=2000)
    assert single.low is not None
    assert single.high is not None
    assert clustered.low == pytest.approx(single.low, abs=0.05)
    assert clustered.high == pytest.approx(single.high, abs=0.05)
    assert apart.low is not None
    assert apart.high is not None
    assert apart.high - apart.low < 0.5 * (single.high - single.low)


# Bradley–Terry

WINS = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 12).map(lambda n: n / 2), min_size=size, max_size=size), min_size=size, max_size=size
    )
)


@settings(deadline=None, max_examples=60)
@given(WINS)
def test_scores_are_those_of_choix_and_explain_the_wins(table: list[list[float]]) -> None:
    wins = np.array(table)
    np.fill_diagonal(wins, 0)
    assume(has_maximum(wins))
    found = fit(wins[None])[0]
    assert found.mean() == pytest.approx(0, abs=1e-9)
    # at the maximum every model is expected to win as often as it did
    expected = ((wins + wins.T) / (1 + np.exp(found[None, :] - found[:, None]))).sum(1)
    assert expected == pytest.approx(wins.sum(1), abs=1e-6)
    theirs = choix.opt_pairwise(len(wins), _pairs(wins), alpha=0.0, method="Newton-CG", tol=1e-9)
    assert found == pytest.approx(theirs - np.mean(theirs), abs=1e-3)


def _pairs(wins: np.ndarray) -> list[tuple[int, int]]:
    """Halves as whole wins: twice as many of everything has the same maximum."""
    return [(i, j) for i in range(len(wins)) for j in range(len(wins)) for _ in range(int(2 * wins[i, j]))]


@settings(deadline=None, max_examples=40)
@given(WINS)
def test_whether_there_is_a_maximum_is_what_the_likelihood_does(table: list[list[float]]) -> None:
    """Without one, some direction of scores never lowers it: one part of the models never lost to the others."""
    wins = np.array(table)
    np.fill_diagonal(wins, 0)
    size = len(wins)
    parts = [[i for i in range(size) if number >> i & 1] for number in range(1, 2**size - 1)]
    never_lost = any(wins[np.ix_([i for i in range(size) if i not in part], part)].sum() == 0 for part in parts)
    assert has_maximum(wins) == (not never_lost)


def test_order_and_names_change_nothing() -> None:
    rng = np.random.default_rng(1)
    drawn = [(int(n), *rng.choice(4, 2, replace=False), rng.choice([0.0, 0.5, 1.0])) for n in range(60)]
    names = ["a", "b", "c", "d"]
    one = strengths([Comparison(n, names[a], names[b], w) for n, a, b, w in drawn], resamples=200)
    other = strengths([Comparison(n, names[b], names[a], 1 - w) for n, a, b, w in drawn], resamples=200)
    renamed = strengths([Comparison(n, names[3 - a], names[3 - b], w) for n, a, b, w in drawn], resamples=200)
    by_name = {m.model: m for m in one.models}
    for m in other.models:
        assert m.score == pytest.approx(by_name[m.model].score, abs=1e-8)
        assert (m.wins, m.losses, m.rate) == (by_name[m.model].wins, by_name[m.model].losses, by_name[m.model].rate)
    for m in renamed.models:
        same = by_name[names[3 - names.index(m.model)]]
        assert (m.score, m.low, m.high) == pytest.approx((same.score, same.low, same.high), abs=1e-8)
    assert sum(m.wins - m.losses for m in one.models) == 0


def test_models_that_nothing_connects_fall_into_groups() -> None:
    found = strengths([
        Comparison(1, "a", "b", 1.0), Comparison(2, "a", "b", 1.0), Comparison(3, "a", "b", 0.0),
        Comparison(4, "c", "d", 1.0), Comparison(5, "c", "d", 1.0),
    ])  # fmt: skip
    assert found.groups == 2
    assert [(m.model, m.group) for m in found.models] == [("a", 0), ("b", 0), ("c", 1), ("d", 1)]
    a, b, c, d = found.models
    assert a.score - b.score == pytest.approx(np.log(2))  # two of three
    assert found.bounded == (1,)
    # c won both: the tie that each is given against a model of score 0 keeps the scores finite
    assert c.score == pytest.approx(fit(np.array([[[0.0, 2.0], [0.0, 0.0]]]), prior=1.0)[0, 0])
    assert 0.5 < c.score < 2
    assert d.score == pytest.approx(-c.score)
    assert (c.rate, c.rate_high) == (1.0, 1.0)
    assert c.rate_low == pytest.approx(wilson(1.0, 2)[0])


def test_no_comparisons_and_one_item() -> None:
    assert strengths([]).models == ()
    (first, second) = strengths([Comparison(1, "a", "b", 1.0)]).models
    assert (first.model, first.low, first.high) == ("a", None, None)
    assert first.score > second.score


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """200 sets of 90 items, each judged by two labellers who tend to agree: 95 % intervals of a known score."""
    truth, rng, inside = np.array([-0.8, 0.1, 0.7]), np.random.default_rng(0), 0
    for _ in range(200):
        made = []
        for item in range(90):
            a, b = rng.choice(3, 2, replace=False)
            won = float(rng.random() < 1 / (1 + np.exp(truth[b] - truth[a])))
            again = won if rng.random() < 0.6 else float(rng.random() < 1 / (1 + np.exp(truth[b] - truth[a])))
            made += [Comparison(item, "abc"[a], "abc"[b], one) for one in (won, again)]
        found = {m.model: m for m in strengths(made, resamples=300).models}
        inside += found["c"].low <= truth[2] - truth.mean() <= found["c"].high
    assert 0.90 <= inside / 200 <= 0.99

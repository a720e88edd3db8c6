"""Figures of sampled answers: formulas against computations by hand and other programs, planted faults, properties."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.evaluation import clusters, confidence, diversity, mauve
from kamerton.evaluation.figures import Averaged, Figure, Mean, difference, interval, jackknifed, mean, ratio
from kamerton.evaluation.frontier import Point, compare_frontiers, verdict
from kamerton.evaluation.metrics import get_metric
from kamerton.tasks.example import Example, Message

WORDS = diversity.words()
TEXT = st.lists(st.sampled_from("the cat sat on a mat while dogs ran".split()), min_size=1, max_size=9).map(" ".join)
SETS = st.lists(st.lists(TEXT, min_size=2, max_size=4), min_size=2, max_size=5)


# -- self-BLEU ------------------------------------------------------------------------------------------------------


def sacrebleu_corpus(hypotheses: list[str], references: list[list[str]]) -> float:
    """sacrebleu's corpus score with effective order, from its own counts of each sentence."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    length, wanted, counts, totals = 0, 0, np.zeros(4, int), np.zeros(4, int)
    for hypothesis, own in zip(hypotheses, references, strict=True):
        found = bleu.sentence_score(hypothesis, own)
        length, wanted = length + found.sys_len, wanted + found.ref_len
        counts, totals = counts + found.counts, totals + found.totals
    return BLEU.compute_bleu(
        counts.tolist(), totals.tolist(), length, wanted, smooth_method="exp", effective_order=True
    ).score


@given(SETS)
def test_self_bleu_within_is_sacrebleus_of_each_sample_against_the_others(sets: list[list[str]]) -> None:
    hypotheses = [text for texts in sets for text in texts]
    others = [[*texts[:i], *texts[i + 1 :]] for texts in sets for i in range(len(texts))]
    found = diversity.self_bleu(sets, WORDS)
    assert found is not None
    assert found.value == pytest.approx(sacrebleu_corpus(hypotheses, others), abs=1e-9)


@given(st.lists(TEXT, min_size=2, max_size=8))
def test_self_bleu_across_is_sacrebleus_with_all_others_as_references(texts: list[str]) -> None:
    found = diversity.self_bleu_across(texts, WORDS)
    assert found is not None
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    assert found.value == pytest.approx(sacrebleu_corpus(texts, others), abs=1e-9)


@pytest.mark.parametrize("text", ["yes", "one two", "2024-05-06", "a longer answer with more than four words"])
def test_a_collapsed_model_has_self_bleu_100(text: str) -> None:
    """Also where answers are shorter than four tokens, of which plain BLEU makes 0."""
    for found in (diversity.self_bleu([[text] * 3] * 5, WORDS), diversity.self_bleu_across([text] * 5, WORDS)):
        assert found is not None
        assert found.value == pytest.approx(100)
        assert interval(found).high == pytest.approx(100)


def test_collapse_within_and_across_questions_are_told_apart() -> None:
    sure = [[f"answer number {i} of {i * i} things"] * 3 for i in range(12)]
    within, across = diversity.self_bleu(sure, WORDS), diversity.self_bleu_across([s[0] for s in sure], WORDS)
    assert within is not None
    assert within.value == pytest.approx(100)
    assert across is not None
    assert across.value < 70
    assert diversity.self_bleu([["one"], ["two"]], WORDS) is None
    assert diversity.self_bleu_across(["one"], WORDS) is None


def test_answers_without_a_word_are_no_accident() -> None:
    for texts in (["", ""], ["", "a b"]):
        for found in (diversity.self_bleu([texts], WORDS), diversity.self_bleu_across(texts, WORDS)):
            assert found is not None
            assert 0 <= found.value <= 100
    assert diversity.distinct([["", ""]], 1, WORDS) is None
    assert diversity.distinct_across(["", ""], 1, WORDS) is None


# -- distinct n-grams, precision, recall, length ----------------------------------------------------------------------


def test_distinct_by_hand() -> None:
    sets = [["a b a", "a b"], ["c", "d d d"]]
    # question 1: a ×3, b ×2; question 2: c, d ×3: 4 distinct of 9; bigrams: ab ×2, ba; dd ×2: 3 of 5
    one, two = diversity.distinct(sets, 1, WORDS), diversity.distinct(sets, 2, WORDS)
    assert one is not None
    assert one.value == pytest.approx(4 / 9)
    assert two is not None
    assert two.value == pytest.approx(3 / 5)
    across = diversity.distinct_across(["a b a", "c b"], 1, WORDS)  # a, b, c of 5
    assert across is not None
    assert across.value == pytest.approx(3 / 5)


@given(st.lists(TEXT, min_size=3, max_size=7), st.integers(1, 2))
def test_distinct_across_jackknife_is_that_of_leaving_texts_out(texts: list[str], n: int) -> None:
    def plain(some: list[str]) -> float | None:
        grams = [g for text in some for g in zip(*(text.split()[i:] for i in range(n)), strict=False)]
        return len(set(grams)) / len(grams) if grams else None

    found, value = diversity.distinct_across(texts, n, WORDS), plain(texts)
    if value is None:
        assert found is None
        return
    assert found is not None
    left = [value if (w := plain([*texts[:i], *texts[i + 1 :]])) is None else w for i in range(len(texts))]
    assert found.value == pytest.approx(value)
    spread = np.std(found.statistics[:, 0], ddof=1) / math.sqrt(len(texts))  # of the mean of pseudo-values
    jackknife = math.sqrt((len(texts) - 1) / len(texts) * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert spread == pytest.approx(jackknife)


def test_precision_and_recall_by_hand() -> None:
    samples, wanted = [["a b c", "a x"], ["q"]], [["a b d"], ["q r", "s"]]
    # unigrams: of a b c a x the references have a b a; of q q: 4 of 6. References: a b of a b d, q of q r s: 3 of 6
    precision, recall = diversity.precision(samples, wanted, 1, WORDS), diversity.recall(samples, wanted, 1, WORDS)
    assert precision is not None
    assert precision.value == pytest.approx(4 / 6)
    assert recall is not None
    assert recall.value == pytest.approx(3 / 6)
    two = diversity.precision(samples, wanted, 2, WORDS)  # ab, bc, ax: ab
    assert two is not None
    assert two.value == pytest.approx(1 / 3)
    assert diversity.precision(samples, wanted, 5, WORDS) is None


def test_an_answer_to_another_question_is_not_precise() -> None:
    right = [[f"{w} {w}{w}"] for w in "abcdefgh"]
    wrong = right[1:] + right[:1]
    same, moved = diversity.precision(right, right, 1, WORDS), diversity.precision(wrong, right, 1, WORDS)
    assert same is not None
    assert same.value == 1
    assert moved is not None
    assert moved.value == 0


def test_lengths_and_ends() -> None:
    tokens = np.array([[4, 6], [10, 10]])
    assert diversity.length(tokens).value == pytest.approx(7.5)
    over = diversity.length_ratio(tokens, [5, 20])
    assert over is not None
    assert over.value == pytest.approx(15 / 25)
    assert diversity.ended(np.array([[True, False], [True, True]])).value == pytest.approx(0.75)


@settings(max_examples=30)
@given(SETS, st.randoms(use_true_random=False))
def test_bounds_and_order_of_questions_and_samples(sets: list[list[str]], random: object) -> None:
    moved = [random.sample(texts, len(texts)) for texts in random.sample(sets, len(sets))]  # type: ignore[attr-defined]
    for make, high in (
        (lambda s: diversity.self_bleu(s, WORDS), 100), (lambda s: diversity.distinct(s, 1, WORDS), 1),
        (lambda s: diversity.distinct(s, 2, WORDS), 1), (lambda s: diversity.precision(s, s, 1, WORDS), 1),
    ):  # fmt: skip
        one, two = make(sets), make(moved)
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert one.value == pytest.approx(two.value, abs=1e-9)
            assert -1e-9 <= one.value <= high + 1e-9


# -- MAUVE ------------------------------------------------------------------------------------------------------------


def mauve_by_hand(p: list[float], q: list[float], c: float = 5.0) -> float:
    """The paper's definition, term by term, in plain Python."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    points = [(1.0, 0.0)]
    for k in range(25):
        w = 1e-6 + k * (1 - 2e-6) / 24
        r = [w * x + (1 - w) * y for x, y in zip(p, q, strict=True)]
        points.append((math.exp(-c * kl(q, r)), math.exp(-c * kl(p, r))))
    points.append((0.0, 1.0))
    return sum((a - b) * (y + z) / 2 for (a, y), (b, z) in pairwise(points))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.5], [0.5, 0.5]), ([0.9, 0.1], [0.1, 0.9]), ([1, 0, 0], [0.2, 0.3, 0.5]), ([0.25] * 4, [1, 0, 0, 0]),
        ([0.7, 0.2, 0.1], [0.6, 0.3, 0.1]),
    ],
)  # fmt: skip
def test_mauve_of_hand_made_distributions(p: list[float], q: list[float]) -> None:
    assert float(mauve.mauve(np.array(p), np.array(q))) == pytest.approx(mauve_by_hand(p, q), abs=1e-12)


def test_mauve_of_two_points_in_closed_form() -> None:
    """Disjoint: KL(q | r_w) = −log(1 − w), so the curve is ((1 − w)^c, w^c) and the area c B(c, c + 1) = 1/252 for c = 5."""
    fine = mauve.area(mauve.curve(np.array([1.0, 0.0]), np.array([0.0, 1.0]), weights=4000))
    assert float(fine) == pytest.approx(5 * math.gamma(5) * math.gamma(6) / math.gamma(11), rel=1e-3)
    assert float(mauve.mauve(np.array([0.3, 0.7]), np.array([0.3, 0.7]))) == pytest.approx(1, abs=1e-6)


def test_mauve_is_that_of_the_authors() -> None:
    package = pytest.importorskip("mauve", reason="the authors' package mauve-text is not installed")
    from mauve.compute_mauve import compute_area_under_curve, get_divergence_curve_for_multinomials

    assert package is not None
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.full(12, 0.4), size=2)
        points = get_divergence_curve_for_multinomials(p, q, np.linspace(1e-6, 1 - 1e-6, 25), 5)
        x, y = points.T
        theirs = 0.5 * (
            compute_area_under_curve(*points[np.argsort(x)].T) + compute_area_under_curve(y[np.argsort(y)], x[np.argsort(y)])
        )  # fmt: skip
        assert float(mauve.mauve(p, q)) == pytest.approx(float(theirs), abs=1e-9)


HISTOGRAM = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda x: sum(x) > 0.01)


@given(HISTOGRAM, HISTOGRAM, st.permutations(range(4)))
def test_mauve_is_bounded_symmetric_and_knows_no_order_of_buckets(
    p: list[float], q: list[float], order: list[int]
) -> None:
    a, b = np.array(p) / sum(p), np.array(q) / sum(q)
    value = float(mauve.mauve(a, b))
    assert 0 < value <= 1 + 1e-9
    assert float(mauve.mauve(b, a)) == pytest.approx(value, abs=1e-9)
    assert float(mauve.mauve(a[order], b[order])) == pytest.approx(value, abs=1e-9)


def cloud(centres: list[int], rng: np.random.Generator) -> np.ndarray:
    """Features near unit vectors, one of eight directions each."""
    return np.eye(8)[centres] + 0.03 * rng.standard_normal((len(centres), 8))


def mauve_of(references: np.ndarray, samples: np.ndarray, buckets: int = 8) -> Figure:
    both = np.concatenate([references, samples])
    split = clusters.quantiser(both, np.ones(len(both)), buckets)
    n = split.buckets
    rows = [mauve.histograms([[label] for label in split(own)], n) for own in (references, samples)]
    return mauve.figure(*rows)


def test_a_model_equal_to_the_references_and_a_collapsed_one() -> None:
    rng = np.random.default_rng(1)
    kinds = list(rng.integers(0, 8, 160))
    equal = mauve_of(cloud(kinds, rng), cloud(kinds, rng))
    collapsed = mauve_of(cloud(kinds, rng), cloud([3] * 160, rng))
    shifted = mauve_of(cloud([k % 4 for k in kinds], rng), cloud([4 + k % 4 for k in kinds], rng))
    partial = mauve_of(cloud(kinds, rng), cloud([k % 5 for k in kinds], rng))
    assert equal.value > 0.99
    assert collapsed.value < 0.15
    assert shifted.value < 0.03
    assert collapsed.value < partial.value < equal.value
    found = interval(equal)
    assert 0 <= found.low <= equal.value <= found.high <= 1
    assert interval(collapsed).high < found.low


def test_an_interval_near_one_is_no_wider_than_its_bootstrap() -> None:
    """Two samples of one distribution over four buckets: near 1, and not down to 0."""
    rng = np.random.default_rng(4)
    found = mauve.figure(*(np.eye(4)[rng.integers(0, 4, 60)] for _ in range(2)))
    draws = [found.take(list(rng.integers(0, 60, 60))).value for _ in range(400)]
    got = interval(found)
    assert 0.9 < found.value <= 1
    assert got.low == pytest.approx(found.value - 2 * np.std(draws), abs=0.03)
    assert got.high <= 1


def test_weights_stand_for_repeated_points() -> None:
    rng = np.random.default_rng(2)
    points, times = rng.standard_normal((12, 5)), rng.integers(1, 5, 12)
    plain = clusters.quantiser(np.repeat(points, times, 0), np.ones(int(times.sum())), 4, starts=20)
    weighted = clusters.quantiser(points, times, 4, starts=20)
    assert np.allclose(np.abs(plain.components @ weighted.components.T), np.eye(len(plain.components)), atol=1e-8)
    pairs = lambda labels: labels[:, None] == labels[None]  # noqa: E731
    assert (pairs(plain(points)) == pairs(weighted(points))).all()


def test_clusters_are_found_and_reproducible() -> None:
    rng = np.random.default_rng(3)
    kinds = np.repeat(np.arange(8), 20)
    points = cloud(list(kinds), rng)
    split = clusters.quantiser(points, np.ones(160), 8, seed=5)
    labels = split(points)
    assert all(len(set(labels[kinds == k])) == 1 for k in range(8))
    assert len(set(labels)) == 8
    assert (labels == clusters.quantiser(points, np.ones(160), 8, seed=5)(points)).all()
    few = clusters.quantiser(np.ones((30, 4)), np.ones(30), 5)  # all points the same: one bucket
    assert few.buckets == 1


# -- calibration ------------------------------------------------------------------------------------------------------


def test_ece_by_hand() -> None:
    sure, right = np.array([0.95, 0.85, 0.15, 0.05]), np.array([1.0, 0.0, 0.0, 0.0])
    # two bins of equal mass: {.05, .15}: sure 0.1, right 0; {.85, .95}: sure 0.9, right 0.5
    assert confidence.ece(sure, right, 2).value == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)
    assert confidence.ece(sure, right, 10, adaptive=False).value == pytest.approx((0.05 + 0.85 + 0.15 + 0.05) / 4)
    assert confidence.brier(sure, right).value == pytest.approx((0.05**2 + 0.85**2 + 0.15**2 + 0.05**2) / 4)
    shown = confidence.diagram(confidence.ece(sure, right, 2))
    assert shown == [
        {"confidence": pytest.approx(0.1), "correct": 0.0, "answers": 2},
        {"confidence": pytest.approx(0.9), "correct": 0.5, "answers": 2},
    ]


def test_ece_tells_a_calibrated_model_from_an_overconfident_one() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(600)
    calibrated = confidence.ece(sure, (rng.random(600) < sure).astype(float))
    over = confidence.ece(np.sqrt(sure), (rng.random(600) < sure).astype(float))
    floor = confidence.floor(sure)
    assert 0.5 * floor < calibrated.value < 2 * floor
    assert interval(over).low > 2 * floor
    assert confidence.floor(np.ones(50)) == 0


def test_confidences_that_repeat_make_fewer_bins() -> None:
    sure, right = np.array([0.5] * 6 + [1.0] * 4), np.array([1, 0, 1, 0, 1, 0, 1, 1, 1, 1.0])
    found = confidence.ece(sure, right, 10)
    assert found.value == pytest.approx(0)
    assert [row["answers"] for row in confidence.diagram(found)] == [6, 4]
    assert confidence.ece(np.ones(4), np.array([1, 1, 1, 0.0])).value == pytest.approx(0.25)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30), st.randoms(use_true_random=False)
)
def test_ece_bounds(rows: list[tuple[float, float]], random: object) -> None:
    sure, right = np.array(rows).T
    for adaptive in (True, False):
        value = confidence.ece(sure, right, 5, adaptive=adaptive).value
        # bins pool: no less than the difference of the means, no more than that of single answers
        assert abs(sure.mean() - right.mean()) - 1e-9 <= value <= np.abs(sure - right).mean() + 1e-9
        moved = np.array(random.sample(rows, len(rows))).T  # type: ignore[attr-defined]
        assert confidence.ece(*moved, 5, adaptive=adaptive).value == pytest.approx(value, abs=1e-9)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(80)
    first, second = mean(hard + 0.02 + 0.001 * rng.standard_normal(80)), mean(hard)
    found = difference(first, second)
    assert found.value == pytest.approx(0.02, abs=1e-3)
    assert found.p < 0.01
    assert interval(first).high - interval(first).low > 5 * (found.high - found.low)


def test_a_metric_over_several_answers_is_that_of_all_of_them() -> None:
    examples = [Example(str(i), (Message("user", "q"),), (f"the {w} cat sat down",)) for i, w in enumerate("abc")]
    samples = [["the a cat sat down", "a cat"], ["the cat sat", "no"], ["the c cat sat down now", "the c cat"]]
    for name in ("bleu", "exact-match"):
        metric = get_metric(name, examples)
        rows = sum(metric.statistics([s[j] for s in samples], examples) for j in range(2))
        flat = metric.statistics([s[j] for j in range(2) for s in samples], examples * 2)
        value = Figure(Averaged(metric, 2), np.asarray(rows)).value
        assert value == pytest.approx(float(metric.aggregate(flat.sum(0), 6.0)))
        assert name == "bleu" or value == pytest.approx(1 / 6)


def test_ratio_without_a_denominator() -> None:
    assert ratio([0, 0], [0, 0]) is None
    found = ratio([1, 0], [2, 0])
    assert found is not None
    assert found.value == 0.5
    assert jackknifed(0.4, [0.3, 0.5, 0.4], low=0, high=1).value == pytest.approx(0.4)


# -- the frontier -----------------------------------------------------------------------------------------------------


def curve(
    quality: float,
    temperatures: tuple[float, ...],
    rng: np.random.Generator,
    n: int = 150,
    hard: np.ndarray | None = None,
) -> list[Point]:
    """A model whose quality falls as its diversity rises: q = quality − 0.4 d / 100, d = 60 T."""
    out = []
    base = rng.standard_normal(n) * 0.05 if hard is None else hard
    for t in temperatures:
        diverse = 60 * t
        q = quality - 0.4 * diverse / 100 + base + rng.standard_normal(n) * 0.02
        out.append(Point(t, mean(q), Figure(Mean(), (100 - diverse + rng.standard_normal(n))[:, None])))
    return out


def test_a_lower_temperature_is_no_gain() -> None:
    """The planted case: the first model is the second one, sharpened; at equal temperature it looks far better."""
    rng = np.random.default_rng(0)
    hard = rng.standard_normal(150) * 0.05
    second = curve(0.8, (0.3, 0.5, 0.7, 0.9, 1.1), rng, hard=hard)
    sharp = [
        Point(t, p.quality, p.diversity)
        for t, p in zip((0.5, 0.7, 0.9), curve(0.8, (0.35, 0.55, 0.75), rng, hard=hard), strict=True)
    ]
    gain = compare_frontiers(sharp, second)
    assert all(value > 0.02 and p < 0.01 for _, value, _, _, p in gain.same)
    assert gain.value is not None
    assert abs(gain.value) < 0.01
    assert gain.p is not None
    assert gain.p > 0.05
    told = verdict(gain, ("new", "old"))
    assert "no difference beyond noise" in told
    assert "at another temperature old is not told apart from it" in told


def test_a_real_gain_is_found_at_equal_diversity() -> None:
    rng = np.random.default_rng(1)
    hard = rng.standard_normal(150) * 0.05
    temperatures = (0.4, 0.6, 0.8, 1.0)
    gain = compare_frontiers(curve(0.83, temperatures, rng, hard=hard), curve(0.8, temperatures, rng, hard=hard))
    assert gain.value == pytest.approx(0.03, abs=0.01)
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low > 0
    assert gain.low < gain.value < gain.high
    assert "a gain that old does not reach by another temperature" in verdict(gain, ("new", "old"))
    worse = compare_frontiers(
        curve(0.83, temperatures, np.random.default_rng(1)), curve(0.8, temperatures, np.random.default_rng(2)), higher_is_better=False
    )  # fmt: skip
    assert worse.value is not None
    assert worse.value < 0
    assert len(gain.levels) == 3
    assert all(low < value < high for _, value, low, high in gain.levels)


def test_curves_that_share_no_diversity() -> None:
    rng = np.random.default_rng(2)
    gain = compare_frontiers(curve(0.9, (0.1, 0.2), rng), curve(0.8, (1.0, 1.2), rng))
    assert gain.shared is None
    assert gain.value is None
    assert gain.without == 1
    assert "share no range of diversity" in verdict(gain, ("new", "old"))
    with pytest.raises(ValueError):
        compare_frontiers(curve(0.9, (0.1,), rng, n=10), curve(0.9, (0.1,), rng, n=11))


def test_interpolation_by_hand() -> None:
    """Noise-free straight lines: q = 0.9 − d / 100 against q = 0.8 − d / 100; shared from 20 to 30."""

    def line(top: float, diverse: list[float]) -> list[Point]:
        return [
            Point(i, mean(np.full(5, top - d / 100)), Figure(Mean(), np.full((5, 1), 100 - d)))
            for i, d in enumerate(diverse)
        ]

    gain = compare_frontiers(line(0.9, [30, 10]), line(0.8, [20, 50]))
    assert gain.shared == (20.0, 30.0)
    assert gain.value == pytest.approx(0.1)
    assert gain.without == 0


def test_coverage_of_the_frontiers_interval() -> None:
    """Of equal models, about one in twenty is told apart; 60 repetitions: at most 8 (p < 0.01 for more)."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(60):
        hard = rng.standard_normal(60) * 0.05
        a, b = (curve(0.8, (0.4, 0.7, 1.0), rng, 60, hard) for _ in range(2))
        gain = compare_frontiers(a, b, resamples=200)
        assert gain.low is not None
        assert gain.high is not None
        wrong += not gain.low <= 0 <= gain.high
    assert wrong <= 8

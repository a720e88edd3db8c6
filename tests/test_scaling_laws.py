"""Scaling laws: fits find planted numbers, optima are minima, intervals cover."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit, minimize_scalar

from kamerton.errors import KamertonError
from kamerton.pretraining.scaling import law as laws
from kamerton.pretraining.scaling.analysis import analyse
from kamerton.pretraining.scaling.bootstrap import interval, losses_again, refitted
from kamerton.pretraining.scaling.law import BOTH, BOTH_KAPLAN, OF_SIZE, OF_SIZE_KAPLAN, OF_TOKENS, Fit, fit
from kamerton.pretraining.scaling.optimum import between, closed, exponents, optimum
from kamerton.pretraining.scaling.page import page, sentences, span, warnings
from kamerton.pretraining.scaling.profiles import power, profiles

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

CHINCHILLA = {"E": 1.69, "A": 406.4, "α": 0.34, "B": 410.7, "β": 0.28}


def grid(sizes: int = 5, tokens: int = 5) -> tuple[np.ndarray, np.ndarray]:
    n, d = np.meshgrid(np.logspace(7.6, 10.2, sizes), np.logspace(9.6, 11.6, tokens))
    return n.ravel(), d.ravel()


def chinchilla(n: Any, d: Any, x: dict[str, float] = CHINCHILLA) -> Any:
    return x["E"] + x["A"] / n ** x["α"] + x["B"] / d ** x["β"]


def planted(x: dict[str, float] = CHINCHILLA) -> Fit:
    theta = [math.log(x["E"]), math.log(x["A"]), x["α"], math.log(x["B"]), x["β"]]
    return Fit(BOTH, np.array(theta), np.zeros(1))


# -- fits -----------------------------------------------------------------------------------------------------------


def test_the_published_coefficients_are_found_again() -> None:
    n, d = grid()
    found = fit(BOTH, n, d, chinchilla(n, d))
    assert found.numbers == pytest.approx(CHINCHILLA, rel=1e-4)
    assert exponents(found) == pytest.approx((0.28 / 0.62, 0.34 / 0.62), rel=1e-4)
    assert found.loss(70e9, 1.4e12) == pytest.approx(chinchilla(70e9, 1.4e12), rel=1e-5)


@settings(deadline=None, max_examples=12)
@given(
    offset=st.floats(0.2, 0.8), first=st.floats(0.25, 0.75), alpha=st.floats(0.15, 0.8), beta=st.floats(0.15, 0.8),
    center=st.tuples(st.floats(5, 9), st.floats(6, 11)), seed=st.integers(0, 1000),
)  # fmt: skip
def test_planted_numbers_are_found_under_noise(
    offset: float, first: float, alpha: float, beta: float, center: tuple[float, float], seed: int
) -> None:
    """Shares of the loss at the middle of the grid are planted: offset, and how the rest is split."""
    n, d = (10.0 ** (c + v) for c, v in zip(center, np.meshgrid(*[np.linspace(-1.2, 1.2, 6)] * 2), strict=True))
    rest, level = 1 - offset, 3.0
    x = {"E": level * offset, "A": level * rest * first * 10 ** (center[0] * alpha), "α": alpha,
         "B": level * rest * (1 - first) * 10 ** (center[1] * beta), "β": beta}  # fmt: skip
    noise = np.random.default_rng(seed).normal(size=n.size) * 1e-4
    clean = chinchilla(n.ravel(), d.ravel(), x)
    found = fit(BOTH, n.ravel(), d.ravel(), clean * np.exp(noise))
    assert found.numbers["α"] == pytest.approx(alpha, rel=0.05, abs=0.01)
    assert found.numbers["β"] == pytest.approx(beta, rel=0.05, abs=0.01)
    assert found.numbers["E"] == pytest.approx(x["E"], rel=0.05, abs=0.02)
    assert found.loss(n.ravel(), d.ravel()) == pytest.approx(clean, rel=3e-4)


def test_a_few_bad_runs_do_not_move_the_fit_as_they_move_least_squares() -> None:
    n, d = grid(6, 6)
    y = chinchilla(n, d)
    y[[3, 17]] *= 1.2
    robust = fit(BOTH, n, d, y)
    wide = fit(BOTH, n, d, y, delta=10.0)  # everything in the square part
    assert robust.numbers == pytest.approx(CHINCHILLA, rel=0.02)
    assert abs(wide.numbers["E"] - 1.69) > 0.02


def test_least_squares_agree_with_curve_fit() -> None:
    """With a δ beyond all residuals the objective is least squares of log L: scipy's own fit finds the same."""
    n, d = grid(6, 5)
    y = chinchilla(n, d) * np.exp(np.random.default_rng(3).normal(size=n.size) * 0.002)

    def of(points: Any, e: float, a: float, alpha: float, b: float, beta: float) -> Any:
        return np.log(np.exp(e) + np.exp(a - alpha * points[0]) + np.exp(b - beta * points[1]))

    start_at = [0.5, 6.0, 0.3, 6.0, 0.3]
    theirs, _ = curve_fit(of, np.stack([np.log(n), np.log(d)]), np.log(y), start_at, maxfev=20000)
    ours = fit(BOTH, n, d, y, delta=1.0)
    assert ours.theta == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize(
    ("law", "loss", "numbers"),
    [
        (OF_SIZE, lambda n, d: 2 + 400 / n**0.3, {"E": 2, "A": 400, "α": 0.3}),
        (OF_SIZE_KAPLAN, lambda n, d: (8.8e13 / n) ** 0.076, {"A": 8.8e13**0.076, "α": 0.076}),
        (OF_TOKENS, lambda n, d: 1.5 + 4000 / d**0.4, {"E": 1.5, "B": 4000, "β": 0.4}),
        (BOTH_KAPLAN, lambda n, d: ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103,
         {"Nc": 6.4e13, "Dc": 1.8e13, "αN": 0.076, "αD": 0.103}),
    ],
)  # fmt: skip
def test_the_other_laws_find_planted_numbers(
    law: laws.Law, loss: Callable[..., Any], numbers: dict[str, float]
) -> None:
    n, d = grid()
    found = fit(law, n, d, loss(n, d))
    assert found.numbers == pytest.approx(numbers, rel=1e-3)
    assert found.error < 1e-6


@pytest.mark.parametrize("law", [BOTH, BOTH_KAPLAN, OF_SIZE, OF_TOKENS, OF_SIZE_KAPLAN])
def test_gradients_are_differences(law: laws.Law) -> None:
    random = np.random.default_rng(0)
    theta, n, d = np.array(law.starts()[3]), random.normal(size=6), random.normal(size=6)
    steps = np.eye(len(theta)) * 1e-6
    numeric = [(law.log_loss(theta + h, n, d)[0] - law.log_loss(theta - h, n, d)[0]) / 2e-6 for h in steps]
    assert law.log_loss(theta, n, d)[1] == pytest.approx(np.stack(numeric, axis=1), abs=1e-7)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(KamertonError, match="4 runs are too few"):
        fit(BOTH, [1e6] * 4, [1e7] * 4, [3.0] * 4)


# -- optima ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    alpha=st.floats(0.1, 0.9), beta=st.floats(0.1, 0.9), a=st.floats(1, 8), b=st.floats(1, 8), flops=st.floats(15, 26)
)  # fmt: skip
def test_the_closed_form_is_the_minimum(alpha: float, beta: float, a: float, b: float, flops: float) -> None:
    x = {"E": 1.0, "A": 10**a, "α": alpha, "B": 10**b, "β": beta}
    of, c = planted(x), 10**flops
    formula = closed(of, c)
    assume(1e2 < formula.size < 1e14)
    assert 6 * formula.size * formula.tokens == pytest.approx(c, rel=1e-9)
    searched = optimum(of, c)
    assert math.log(searched.size) == pytest.approx(math.log(formula.size), abs=0.01)
    # and a third way, which knows neither
    log = math.log
    own = minimize_scalar(
        lambda v: x["A"] / math.exp(v) ** alpha + x["B"] / (c / 6 / math.exp(v)) ** beta,
        bounds=(log(formula.size) - 3, log(formula.size) + 3), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert own.x == pytest.approx(log(formula.size), abs=1e-3)


def test_chinchillas_budget_gives_the_size_that_its_coefficients_imply() -> None:
    """By these coefficients 5.76e23 FLOPs are best spent on 40 billion parameters (Hoffmann et al. 2022, figure 4)."""
    best = closed(planted(), 5.76e23)
    assert best.size == pytest.approx(40e9, rel=0.25)


def test_a_cost_that_grows_otherwise_moves_the_optimum() -> None:
    of, sizes = planted(), np.logspace(6, 12, 30)
    same = between(sizes, 6 * sizes)
    assert optimum(of, 1e21, same).size == pytest.approx(closed(of, 1e21).size, rel=0.01)
    dearer = between(sizes, 6 * sizes**1.2)  # large models cost more than their parameters
    assert optimum(of, 1e21, dearer).size < 0.7 * closed(of, 1e21).size
    assert between([10.0, 100.0], [1.0, 10.0])(np.array([1000.0, 1.0])) == pytest.approx([100.0, 0.1])


def test_isoflop_profiles_find_the_optimum_of_a_law() -> None:
    of, levels = planted(), (1e19, 1e20, 1e21)
    n, c = (v.ravel() for v in np.meshgrid(np.logspace(-0.4, 0.4, 5), levels))
    n = n * np.array([closed(of, v).size for v in c])
    found = profiles(n, c, chinchilla(n, c / 6 / n))
    assert [p.flops for p in found] == pytest.approx(levels)
    for p in found:
        assert p.best == pytest.approx(closed(of, p.flops).size, rel=0.1)
        assert not p.read
    line = power(found)
    assert line is not None
    assert line[0] == pytest.approx(0.28 / 0.62, abs=0.02)


def test_profiles_are_read_off_between_runs_where_none_cost_the_same() -> None:
    of = planted()
    n, d = (v.ravel() for v in np.meshgrid(np.logspace(8, 9.5, 6), np.logspace(9, 11.5, 8)))
    found = profiles(n, 6 * n * d, chinchilla(n, d))
    assert len(found) == 5
    assert all(p.read for p in found)
    inside = [p for p in found if p.best is not None]
    assert inside
    for p in inside:
        assert p.best == pytest.approx(closed(of, p.flops).size, rel=0.35)
    # a falling line has no lowest point among its sizes
    (edge,) = profiles([1e8, 2e8, 4e8], [1e18] * 3, [4.0, 3.5, 3.0])
    assert edge.best is None
    assert edge.loss is None


# -- intervals ------------------------------------------------------------------------------------------------------


def test_replicates_have_the_noise_of_the_runs() -> None:
    n, d = grid(8, 8)
    y = chinchilla(n, d) * np.exp(np.random.default_rng(0).normal(size=n.size) * 0.004)
    of = fit(BOTH, n, d, y)
    again = losses_again(of, y, 300, 0)
    assert np.log(again / of.loss(n, d)).std() == pytest.approx(0.004, rel=0.2)
    assert np.array_equal(again, losses_again(of, y, 300, 0))
    with pytest.raises(ValueError, match="nothing about the noise"):
        losses_again(fit(BOTH, n[:5], d[:5], y[:5]), y[:5], 10, 0)


@pytest.mark.slow
def test_intervals_cover_at_about_their_level() -> None:
    n, d = grid(5, 4)
    inside, best = {"a": 0, "loss": 0}, closed(planted(), 1e22)
    for seed in range(40):
        y = chinchilla(n, d) * np.exp(np.random.default_rng(seed).normal(size=n.size) * 0.003)
        of = fit(BOTH, n, d, y)
        fits = refitted(of, n, d, losses_again(of, y, 40, seed))
        a = interval(exponents(of)[0], [exponents(f)[0] for f in fits])
        loss = interval(0.0, [f.loss(best.size, best.tokens) for f in fits])
        inside["a"] += a["low"] <= 0.28 / 0.62 <= a["high"]
        inside["loss"] += loss["low"] <= best.loss <= loss["high"]
    assert all(34 <= count <= 40 for count in inside.values()), inside


# -- grids that say little ------------------------------------------------------------------------------------------


def told_of(loss: Callable[[float, float], float], sizes: int = 3) -> dict[str, Any]:
    """What is written of a grid with such losses, as JSON holds it."""
    rows = [
        {"size": f"{n:g}", "parameters": n, "non_embedding": n, "seed": 0, "flops_per_token": 6 * n, "tokens": d,
         "flops": 6 * n * d, "loss": loss(n, d), "epochs": 1.0, "seconds": 1.0, "bits_per_byte": None, "law": None,
         "error": None, "width": 8, "depth": 1, "learning_rate": 0.1}
        for n in (1e5, 3e5, 1e6)[:sizes] for d in (2e5, 4e5, 8e5)
    ]  # fmt: skip
    models = [(n, 6 * n) for n in np.logspace(4, 8, 9)]
    found = analyse(rows, "non-embedding", models, 20, 0, lambda *_: None)
    spent = dict.fromkeys(("tokens", "seconds", "flops", "tokens_alone", "seconds_alone", "flops_alone"), 1.0)
    more = {"name": "grid", "recipe": "", "preset": "llama", "count": "non-embedding", "bootstrap": 20, "context": 8,
            "data": {"tokens": 9}, "runs": rows, "spent": spent, "suggestion": None, "notes": [], "kamerton": "0"}  # fmt: skip
    told: dict[str, Any] = json.loads(json.dumps({**found.told, **more}, allow_nan=False))
    return told


@pytest.mark.parametrize(
    ("loss", "flat"),
    [
        (lambda n, d: 2 + 100 / d**0.4, ["size"]), (lambda n, d: 2 + 100 / d**0.4 + 1e-7 * n, ["size"]),
        (lambda n, d: 2 + 100 / n**0.4, ["tokens"]), (lambda n, d: 3.0, ["size", "tokens"]), (chinchilla, []),
    ],
)  # fmt: skip
def test_a_grid_in_which_nothing_is_gained_says_so(loss: Callable[[float, float], float], flat: list[str]) -> None:
    told = told_of(loss)
    assert [name for name, gain in told["gains"].items() if gain["nothing"]] == flat
    said = " ".join(sentences(told))
    assert ("size brings nothing that can be told in this grid: from 100 K to 1 M" in said) == ("size" in flat)
    assert ("tokens bring nothing that can be told in this grid: from 200 K to 800 K" in said) == ("tokens" in flat)
    assert ("the best size grows" in said) == (not flat)
    assert bool(told["optimum"]) == (not flat)
    assert "<svg" in page(told)
    endless = told["fits"][BOTH_KAPLAN.name]["numbers"]["Nc"]["value"] is None
    assert endless == ("size" in flat)
    assert any("Nc of L(N, D), Kaplan is larger than numbers can be" in w for w in warnings(told)) == endless


def test_intervals_that_reach_beyond_numbers_are_open() -> None:
    assert interval(math.inf, [math.inf] * 40) == {"value": None, "low": None, "high": None}
    half = interval(2.0, [1.0, math.nan, 2.0, *[math.inf] * 20])
    assert half["high"] is None
    assert half["low"] == pytest.approx(1.525)
    assert span(half) == "[1.53, ∞]"

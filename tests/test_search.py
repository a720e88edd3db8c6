"""The search for hyperparameters: what is drawn, how the budget is shared, what is chosen, resuming at any rung."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from kamerton.base import Base
from kamerton.errors import KamertonError
from kamerton.methods import METHODS, get_method, load_adapted, parse_options
from kamerton.methods.lora import LoraMethod
from kamerton.methods.method import Adapted
from kamerton.methods.search import ETA, Halving, draw, label, space_of, survivors
from kamerton.training import Budget
from tiny import fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = {"learning_rate": (1e-3, 3e-4, 3e-3), "rank": (16, 4, 64), "batch_size": (16, 8)}


def record(adapted: Adapted) -> dict[str, Any]:
    """What a fit did, times aside."""
    out = asdict(adapted.record)
    out.pop("seconds")
    out["curve"] = [{k: v for k, v in row.items() if k != "seconds"} for row in out["curve"]]
    return out


def weights(adapted: Adapted) -> dict[str, torch.Tensor]:
    assert adapted.tuned is not None
    return {n: p.detach().clone() for n, p in adapted.tuned.module.named_parameters()}


# -- candidates -----------------------------------------------------------------------------------------------------


def test_defaults_come_first_then_learning_rates_then_the_rest() -> None:
    drawn = draw(SPACE, {}, 99, seed=0)
    assert drawn[0] == {"learning_rate": 1e-3, "rank": 16, "batch_size": 16}
    assert [v["learning_rate"] for v in drawn[:3]] == list(SPACE["learning_rate"])
    assert all((v["rank"], v["batch_size"]) == (16, 16) for v in drawn[:3])
    assert len(drawn) == 18
    assert len({json.dumps(v) for v in drawn}) == 18, "every setting once"


@given(st.integers(0, 10_000), st.integers(1, 30), st.sets(st.sampled_from(sorted(SPACE))))
def test_draws_are_repeated_and_keep_what_is_fixed(seed: int, count: int, names: set[str]) -> None:
    fixed = {name: {"learning_rate": 0.5, "rank": 7, "batch_size": 3}[name] for name in names}
    drawn = draw(SPACE, fixed, count, seed)
    assert drawn == draw(SPACE, fixed, count, seed)
    room = math.prod(len(values) for name, values in SPACE.items() if name not in names)
    assert len(drawn) == min(count, room)
    assert all(values[name] == fixed[name] for values in drawn for name in names)
    assert drawn == draw(SPACE, fixed, 99, seed)[:count], "more candidates are the same ones and others"


def test_by_default_the_learning_rates_alone_are_tried() -> None:
    assert len(draw(SPACE, {}, None, 0)) == 3
    assert draw(SPACE, {"learning_rate": 0.1}, None, 0) == [{"learning_rate": 0.1, "rank": 16, "batch_size": 16}]


def test_seeds_draw_different_settings_beyond_the_learning_rates() -> None:
    assert len({json.dumps(draw(SPACE, {}, 6, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("name", METHODS)
def test_the_first_value_of_a_space_is_the_default(name: str) -> None:
    method = get_method(name)
    for option, values in space_of(method).items():
        default = method.options.model_fields[option].default
        assert option == "learning_rate" or values[0] == default
        assert len(set(values)) == len(values)
        for value in values:
            parse_options(method, {option: value})


class OnlyRates(LoraMethod):
    """As methods were written before there were spaces."""

    learning_rates = (2e-3, 1e-3)


class Narrow(OnlyRates):
    """A space over rates."""

    space = {"learning_rate": (5e-3,), "rank": (16, 2)}  # noqa: RUF012


def test_the_nearest_declaration_holds() -> None:
    assert space_of(OnlyRates()) == {"learning_rate": (2e-3, 1e-3)}
    assert space_of(Narrow()) == {"learning_rate": (5e-3,), "rank": (16, 2)}
    assert space_of(get_method("zero-shot")) == {}


def test_folders_of_candidates_do_not_collide() -> None:
    drawn = draw({**SPACE, "targets": ("all-linear", ["q_proj", "v_proj"], ["q_proj"])}, {}, 999, 0)
    names = [label(values, drawn[0]) for values in drawn]
    assert len(set(names)) == len(drawn)
    assert names[0] == "learning-rate-0.001"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_") for name in names)


# -- rungs ----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.floats(0.05, 0.9))
def test_rungs_cost_the_same_and_together_the_share(count: int, share: float) -> None:
    halving = Halving(count, share)
    sizes, horizon = halving.sizes, 1 - halving.others
    assert sizes[0] == count
    assert all(b == math.ceil(a / ETA) for a, b in itertools.pairwise(sizes))
    ends = [until * horizon for until in halving.untils]
    costs = [size * (end - start) for size, end, start in zip(sizes, ends, [0.0, *ends], strict=False)]
    assert costs == pytest.approx([share / len(sizes)] * len(sizes))
    assert halving.others + ends[-1] == pytest.approx(share), "the winner's own part is in it"
    assert 0 < halving.untils[-1] < 1


def test_three_candidates_share_as_before() -> None:
    """One rung, the numbers of the search over three learning rates to the last bit."""
    halving, share, n = Halving(3, 0.3), 0.3, 3
    assert halving.sizes == [3]
    assert halving.others == share * (n - 1) / n
    assert halving.untils == [share / n / (1 - share * (n - 1) / n)]


def test_ties_go_to_the_earlier_candidate() -> None:
    assert survivors([2.0, 1.0, 1.0, 3.0, 1.0], 2) == [1, 2]
    assert survivors([math.inf, 2.0, 1.0], 2) == [1, 2]


# -- the search in a fit --------------------------------------------------------------------------------------------

WIDE = {"candidates": 7, "batch_size": 8, "patience": 99, "search_share": 0.5}


def test_a_wide_search_stays_inside_the_budget_and_attaches_what_it_chose(small_base: Base, tmp_path: Path) -> None:
    adapted = fit(small_base, "lora", tmp_path / "fit", budget=Budget(steps=80), **WIDE)
    found = adapted.record
    assert len(found.search) == 7
    assert all("batch_size" not in row for row in found.search), "the recipe gives it"
    assert sorted(row["rung"] for row in found.search) == [1, 1, 1, 1, 2, 2, 2]
    assert set(found.chosen) == {"learning_rate", "rank"}
    last = [row for row in found.search if row["rung"] == 2]
    best = min(last, key=lambda row: row["validation_loss"])
    assert found.chosen == {name: best[name] for name in found.chosen}
    first = max((row for row in found.search if row["rung"] == 1), key=lambda row: row["validation_loss"])
    assert first["tokens"] < best["tokens"]
    mean = found.curve[-1]["tokens"] / found.curve[-1]["step"]
    assert found.tokens <= (80 + 10) * mean, "each rung of each candidate ends with a whole step"
    assert found.tokens == found.curve[-1]["tokens"] + sum(r["tokens"] for r in found.search if r is not best)
    assert adapted.options.rank == found.chosen["rank"]
    assert adapted.options.learning_rate is None, "asked for: a search"
    ranks = {p.shape[0] for n, p in weights(adapted).items() if "lora_A" in n}
    assert ranks == {found.chosen["rank"]}
    (table,) = found.findings
    assert [row[-1] for row in table.rows].count("yes") == 1
    adapted.save(tmp_path / "saved")
    asked = [e.messages for e in tiny.colour_task().test]
    said = [list(tiny.COLOURS)] * len(asked)
    assert load_adapted(tmp_path / "saved", small_base).score(asked, said) == adapted.score(asked, said)


def test_soft_tokens_are_searched_with_room_for_each(small_base: Base, tmp_path: Path) -> None:
    adapted = fit(small_base, "prompt-tuning", tmp_path, budget=Budget(steps=30), candidates=6, batch_size=8)
    assert len(adapted.engine.model.front()) == adapted.record.chosen["tokens"]
    assert {row["tokens"] for row in adapted.record.search} != {20}


class Crash(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_wide_search_killed_anywhere_ends_the_same(small_base: Base, tmp_path: Path) -> None:
    budget, options = Budget(steps=24), {**WIDE, "candidates": 5, "rank": 4}
    options["batch_size"] = 4
    options = {k: v for k, v in options.items() if k != "rank"}
    expected = fit(small_base, "lora", tmp_path / "straight", budget=budget, **options)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    fit(small_base, "lora", tmp_path / "counted", budget=budget, report=count, **options)
    assert calls > 20
    for place in (2, 6, 9, 12, 14, 17, calls - 1):
        left = place

        def crash(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Crash

        folder = tmp_path / f"killed-{place}"
        with pytest.raises(Crash):
            fit(small_base, "lora", folder, budget=budget, report=crash, **options)
        again = fit(small_base, "lora", folder, budget=budget, **options)
        assert record(again) == record(expected), place
        assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), weights(expected).values(), strict=True))


class Wild(LoraMethod):
    """Half of its settings are hopeless."""

    space = {"learning_rate": (1e30, 1e-3), "rank": (16, 4)}  # noqa: RUF012


class Wilder(LoraMethod):
    """All of them are."""

    space = {"learning_rate": (1e30, 1e28), "rank": (16, 4)}  # noqa: RUF012


def test_settings_that_diverge_lose(small_base: Base, tmp_path: Path) -> None:
    options = {"search_share": 0.6, "batch_size": 4, "candidates": 4}
    found = fit(small_base, "", tmp_path, method=Wild(), budget=Budget(steps=24), **options).record
    assert found.chosen["learning_rate"] == 1e-3
    assert sum(row["validation_loss"] is None for row in found.search) == 2
    with pytest.raises(
        KamertonError, match=r"every candidate diverged \(learning rate 1e\+30, rank 16; .*; set a lower"
    ):
        fit(small_base, "", tmp_path / "b", method=Wilder(), budget=Budget(steps=24), **options)


# -- pausing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [0.01, 0.3, 0.77])
def test_a_fit_that_pauses_ends_as_if_it_had_not(small_base: Base, until: float, tmp_path: Path) -> None:
    """Whatever the share: in the search (it is ended first) or at a step where nothing is validated."""
    from kamerton.methods.method import Run

    method, task, budget = get_method("lora"), tiny.colour_task(), Budget(steps=16)
    options = parse_options(method, {"validations": 3})
    straight = method.fit(small_base, task, budget, options, Run(tmp_path / "a"))
    paused = method.fit(small_base, task, budget, options, Run(tmp_path / "b", until=until))
    assert not paused.record.finished
    assert straight.record.finished
    assert 0 < paused.record.tokens < straight.record.tokens
    again = method.fit(small_base, task, budget, options, Run(tmp_path / "b"))
    assert record(again) == record(straight)

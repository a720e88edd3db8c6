"""Grids of pretrainings: what runs share, resuming, extending, what is left, what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tiny
from kamerton.base.presets import Shape, build, get_preset, parameters
from kamerton.base.work import flops as counted_flops
from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.pretraining.goals import goal_of
from kamerton.pretraining.models import settings as training_settings
from kamerton.pretraining.models import start
from kamerton.pretraining.run import pretrain
from kamerton.pretraining.scaling.grid import (
    cost,
    models,
    non_embedding,
    own_recipe,
    runs,
    step_tokens,
    warmup_steps,
    within,
)
from kamerton.pretraining.scaling.law import BOTH, BOTH_KAPLAN, OF_SIZE_KAPLAN
from kamerton.pretraining.scaling.page import lines, page
from kamerton.pretraining.scaling.run import ScalingLaws, scaling_laws
from kamerton.pretraining.scaling.suggest import _speed
from kamerton.recipe_pretrain import as_pretrain_recipe
from kamerton.training import Budget
from kamerton.training import fit as train

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

# -- grids ----------------------------------------------------------------------------------------------------------

TEXT = "\n\n".join(f"Line {n}: " + " ".join(tiny.WORDS[(n * k) % 40] for k in range(1, 9)) for n in range(120))
GRID = {"sizes": ["43k", "190k", "380k"], "tokens": [400, 800, 1600], "bootstrap": 20}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def recipe(texts: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"preset": "llama"}, "tokenizer": "bytes",
        "data": {"train": str(texts), "held_out": 0.1, "documents": "paragraph"},
        "context": 16, "training": {"batch_size": 2, "learning_rate": 0.01}, "scaling": GRID, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> ScalingLaws:
    return scaling_laws(recipe(texts), output=tmp_path_factory.mktemp("grid") / "grid", flops=1e10)


def results(folder: Path) -> dict[tuple[str, int], Any]:
    rows = [json.loads(p.read_text()) for p in folder.glob("runs/*/*/*/run.json")]
    return {(r["size"], r["tokens"]): r["loss"] for r in rows}


def _no(*_: Any) -> None:
    """Nobody watches."""


def test_a_grid_leaves_its_runs_fits_page_and_a_suggestion(made: ScalingLaws) -> None:
    found = made.results
    assert len(found["runs"]) == 9
    by = {(r["size"], r["tokens"]): r for r in found["runs"]}
    assert len(by) == 9
    for size in GRID["sizes"]:  # type: ignore[attr-defined]
        losses = [r["loss"] for (s, _), r in sorted(by.items()) if s == size]
        assert losses == sorted(losses, reverse=True)  # more tokens, less loss
    assert set(found["fits"]) >= {BOTH.name, BOTH_KAPLAN.name, OF_SIZE_KAPLAN.name}
    for row in found["runs"]:
        law = found["fits"][BOTH.name]["numbers"]
        x = {name: value["value"] for name, value in law.items()}
        powers = x["A"] / row["non_embedding"] ** x["α"] + x["B"] / row["tokens"] ** x["β"]
        assert row["law"] == pytest.approx(x["E"] + powers, rel=1e-6)
        assert row["flops"] == pytest.approx(row["flops_per_token"] * row["tokens"])
        assert row["bits_per_byte"] > row["loss"]  # a token is about a byte, and end tokens are counted
    said = found["suggestion"]
    assert said["flops"] == pytest.approx(1e10)
    assert f"--set model.size={said['parameters']}" in said["command"]
    text = made.report.read_text()
    assert "<script" not in text
    assert text.count("<svg") >= 4
    assert made.sentences[0].startswith("size brings nothing")  # larger models are worse on so few tokens
    assert "1 T" not in "".join(lines(found))
    assert page(found) == text


def test_runs_that_share_a_stable_part_are_the_runs_alone_bit_for_bit(
    made: ScalingLaws, texts: Path, tmp_path: Path
) -> None:
    own = as_pretrain_recipe(recipe(texts))
    sized, _ = models(own)
    every = runs(own, sized)
    warmup = warmup_steps(own, every)
    losses = {(r["size"], r["tokens"]): r["loss"] for r in made.results["runs"]}
    for run in (every[0], every[-1]):
        alone = pretrain(own_recipe(own, run, warmup), output=tmp_path / "alone")
        assert alone is not None
        assert alone.metrics["loss"] == losses[run.sized.name, alone.results["tokens"]]
    shared = [r["shared"]["tokens"] for r in made.results["runs"]]
    # a step of 32 tokens before the last fifth begins
    assert set(shared) == {288, 608, 1248}


def test_the_cost_of_a_grid_is_what_was_trained(made: ScalingLaws, texts: Path) -> None:
    own = as_pretrain_recipe(recipe(texts))
    sized, _ = models(own)
    every = runs(own, sized)
    assert made.results["spent"]["flops"] == pytest.approx(cost(own, every), rel=0.03)
    alone = sum(r.flops for r in every)
    assert made.results["spent"]["flops_alone"] == pytest.approx(alone, rel=0.03)
    assert made.results["spent"]["flops"] < 0.75 * alone
    # without branches nothing is shared
    plain = own.model_copy(update={"training": own.training.model_copy(update={"schedule": "cosine"})})
    assert cost(plain, every) == pytest.approx(alone)


def test_counts_are_those_of_the_models_that_are_trained(texts: Path, tmp_path: Path) -> None:
    own = as_pretrain_recipe(recipe(texts))
    sized, _ = models(own)
    run = runs(own, sized)[0]
    alone = own_recipe(own, run, 1)
    begun = start(alone)
    assert parameters(begun.model.hf) == run.sized.parameters
    inside = sum(
        p.numel() for name, p in begun.model.hf.named_parameters() if "embed" not in name and "lm_head" not in name
    )
    assert non_embedding(begun.model.hf) == inside == run.sized.non_embedding
    goal = goal_of(alone, begun, tmp_path, _no)
    goal.objective.held_out = None  # training alone
    train(
        begun.model,
        begun.model.hf,
        goal.objective,
        training_settings(alone, begun),
        Budget(tokens=320),
        tmp_path / "fit",
    )
    assert counted_flops(begun.model.work, begun.model.hf) == pytest.approx(320 * run.sized.flops, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "lstm", "moe"])
def test_non_embedding_parameters_of_other_presets(name: str) -> None:
    preset = get_preset(name)
    hf = build(preset.config(Shape(32, 2, 2, 50, 16, experts=4), {}), "causal", meta=True)
    vocabulary = {id(p): p.numel() for p in (hf.get_input_embeddings().weight, hf.get_output_embeddings().weight)}
    positions = sum(p.numel() for n, p in hf.named_parameters() if "wpe" in n)
    assert non_embedding(hf) == parameters(hf) - sum(vocabulary.values()) - positions


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_grid_that_is_stopped_anywhere_ends_the_same(made: ScalingLaws, texts: Path, tmp_path: Path) -> None:
    """Stopped at many places in turn, each time behind where it was stopped before; then more token counts."""
    steps, done, again = [0, 0], 0, None  # since the last stop, and in all
    small = recipe(texts, scaling={"sizes": ["43k", "190k"], "tokens": [400, 800]})

    def report(stage: str, share: float, _: str) -> None:
        assert 0 <= share <= 1
        if stage == "training":
            steps[:] = steps[0] + 1, steps[1] + 1
            if steps[0] > 16:
                raise Stopped

    while again is None:
        steps[0] = 0
        try:
            again = scaling_laws(small, output=tmp_path / "grid", report=report)
        except Stopped:
            now = len(list(tmp_path.glob("grid/runs/*/*/*/run.json")))
            assert now >= done
            done = now
    assert steps[1] > 16 * 3
    losses = {(r["size"], r["tokens"]): r["loss"] for r in made.results["runs"]}
    assert results(tmp_path / "grid") == {k: v for k, v in losses.items() if k[0] != "380k" and k[1] <= 800}
    assert not list(tmp_path.rglob("stable"))
    assert not list(tmp_path.rglob("fit"))
    # a token count between, and one beyond: they go on from what is kept, and are the runs alone
    steps[:] = -(10**6), 0
    wider = recipe(texts, scaling={"sizes": ["43k", "190k"], "tokens": [400, 600, 1200]})
    scaling_laws(wider, output=tmp_path / "grid", report=report)
    # of both sizes 288 to 448 and 608 to 928 tokens and a decay from each, in steps of 32; 400 is not trained again
    assert steps[1] == 2 * (5 + 5 + 10 + 9)
    own = as_pretrain_recipe(wider)
    every = runs(own, models(own)[0])
    for run in (r for r in every if r.tokens > 400 and r.sized.name == "43k"):
        alone = pretrain(own_recipe(own, run, warmup_steps(own, every)), output=tmp_path / "alone")
        assert alone is not None
        assert results(tmp_path / "grid")["43k", alone.results["tokens"]] == alone.metrics["loss"]


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_trained_anew(texts: Path, tmp_path: Path) -> None:
    small = {"sizes": ["43k", "190k"], "tokens": [400, 640], "bootstrap": 20}
    first = scaling_laws(recipe(texts, scaling=small), output=tmp_path / "grid")
    other = {"batch_size": 2, "learning_rate": 0.003}
    second = scaling_laws(recipe(texts, scaling=small, training=other), output=tmp_path / "grid")
    fresh = scaling_laws(recipe(texts, scaling=small, training=other), output=tmp_path / "fresh")
    of = lambda s: [r["loss"] for r in s.results["runs"]]  # noqa: E731
    assert of(second) == of(fresh) != of(first)
    assert any("too few for L(N, D)" in s for s in first.sentences)


def test_equal_compute_seeds_and_a_budget(texts: Path) -> None:
    asked = {"sizes": ["43k", "190k"], "flops": [2e9, "4e9"], "seeds": 2}
    own = as_pretrain_recipe(recipe(texts, scaling=asked))
    sized, _ = models(own)
    every = runs(own, sized)
    assert len(every) == 8
    assert {r.seed for r in every} == {0, 1}
    for flops in (2e9, 4e9):
        near = [r for r in every if abs(r.flops / flops - 1) < 0.05]
        assert {r.sized.name for r in near} == {"43k", "190k"}
        assert all(r.tokens % step_tokens(own) == 0 for r in near)
    limited = as_pretrain_recipe(recipe(texts, scaling={**asked, "budget": {"flops": 6e9}}))
    kept, notes = within(limited, every)
    assert 0 < len(kept) < 8
    assert cost(limited, kept) <= 6e9
    assert cost(limited, [*kept, next(r for r in every if r not in kept)]) > 6e9
    assert f"{8 - len(kept)} of 8 runs are left out" in notes[0]


def test_a_speed_between_measured_ones_lies_between() -> None:
    measured = [(1e6, 1000.0), (4e6, 400.0)]  # 1e9 and 1.6e9 FLOPs a second
    assert _speed(1e6, measured) == pytest.approx(1000)
    assert _speed(2e6, measured) == pytest.approx(math.sqrt(1e9 * 1.6e9) / 2e6)
    assert _speed(4e7, measured) == pytest.approx(40)


# -- what is refused, and the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scaling": None, "budget": {"tokens": 400}}, "scaling: is missing, so there is no grid"),
        ({"scaling": None}, "the budget is missing"),
        ({"scaling": {"sizes": ["43k"], "tokens": [400]}}, "scaling.sizes"),
        ({"scaling": {"sizes": ["43k", "190k"]}}, "a grid needs token counts"),
        ({"scaling": {**GRID, "sizes": ["43k", "43k"]}}, "sizes names a value twice"),
        ({"scaling": {**GRID, "sizes": ["43k", "50k"]}}, "scaling.sizes.1: 43k and 50k are one shape"),
        ({"scaling": {**GRID, "sizes": ["43k", "big"]}}, "scaling.sizes.1: 'big' is not a size"),
        ({"scaling": {**GRID, "sizes": ["1k", "43k"]}}, "scaling.sizes.0: no llama has as few as 1,000"),
        ({"scaling": {**GRID, "tokens": ["many"]}}, "'many' is not a number"),
        ({"scaling": {**GRID, "tokens": [100]}}, "scaling.tokens.0: 43k would learn from 100 tokens"),
        ({"scaling": {**GRID, "flops": [1e6]}}, "scaling.flops.0: "),
        ({"scaling": {**GRID, "budget": {"flops": 10}}}, "scaling.budget.flops: no run fits"),
        ({"scaling": {**GRID, "count": "some"}}, "scaling.count"),
        ({"model": {"preset": "llama", "width": 32}}, "scaling.sizes choose the shapes"),
        ({"model": {"preset": "bert"}}, "scaling laws are of causal models"),
        ({"data": {"train": "texts.txt", "held_out": False}}, "data.held_out: scaling laws are of the loss on held-out"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(changes: dict[str, Any], says: str, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(KamertonError, match=re.escape(says)) as caught:
        scaling_laws({**recipe(texts), **changes}, output=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_budgets_that_are_none(texts: Path, tmp_path: Path) -> None:
    for asked, says in (({"flops": -1.0}, "no budget"), ({"flops": 1.0, "minutes": 1.0}, "FLOPs or minutes")):
        with pytest.raises(KamertonError, match=says):
            scaling_laws(recipe(texts), output=tmp_path / "out", **asked)  # type: ignore[arg-type]
    with pytest.raises(KamertonError, match="budget: is missing"):
        pretrain(recipe(texts), output=tmp_path / "out")


@pytest.mark.parametrize(
    "scaling",
    [{**GRID, "sizes": ["43k", "190k"]}, {**GRID, "tokens": [400, 800]}, {**GRID, "budget": {"flops": 2.5e8}}],
)  # fmt: skip
def test_a_suggestion_is_refused_before_training_where_no_law_can_be_fitted(
    scaling: dict[str, Any], texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(KamertonError, match=r"scaling: \d runs hold no law .* train at least three sizes") as caught:
        scaling_laws(recipe(texts, scaling=scaling), output=tmp_path / "out", flops=1e10)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_results_and_page_are_written_before_a_suggestion_that_fails(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise KamertonError("no speed")

    monkeypatch.setattr("kamerton.pretraining.scaling.run.speeds", fails)
    small = {"sizes": ["43k", "190k", "380k"], "tokens": [320, 400, 480], "bootstrap": 20}
    with pytest.raises(KamertonError, match="no speed"):
        scaling_laws(recipe(texts, scaling=small), output=tmp_path / "out", minutes=1.0)
    assert len(json.loads((tmp_path / "out" / "scaling.json").read_text())["runs"]) == 9
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_the_command(made: ScalingLaws, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamerton.pretraining.scaling.suggest.SECONDS", 0.3)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(texts)), encoding="utf-8")
    done = CliRunner().invoke(app, ["scaling", str(path), "--output", str(made.folder), "--minutes", "0.5"])
    assert done.exit_code == 0, done.output
    assert "for 30\N{NO-BREAK SPACE}s: " in done.output
    assert f"next: kamerton pretrain {path} --set model.size=" in done.output.replace("\n", "")
    assert "page:" in done.output
    told = json.loads((made.folder / "scaling.json").read_text())["suggestion"]
    assert 0 < told["seconds"] == pytest.approx(30, rel=1e-6)
    path.write_text("base: demo\ntask: dates\nmethods: [lora]\n", encoding="utf-8")
    wrong = CliRunner().invoke(app, ["scaling", str(path)])
    assert isinstance(wrong.exception, KamertonError)
    assert "is the recipe of a comparison" in str(wrong.exception)

"""Races: what a look stops and what it leaves alone, error rates by simulation, a race from end to end, resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from kamerton.comparison.looks import Standing, look
from kamerton.comparison.report import write_report
from kamerton.comparison.report.results import results_without_times
from kamerton.comparison.run import Comparison, Watcher, compare
from kamerton.comparison.sentences import race_sentence
from kamerton.comparison.store import Cell
from kamerton.comparison.units import Scale
from kamerton.comparison.verdict import Stopped
from kamerton.errors import KamertonError, RecipeError
from kamerton.evaluation.metrics import get_metric
from kamerton.recipe import Recipe, load_recipe
from kamerton.tasks.example import Task
from synthetic_comparison import twenty, write_comparison

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ACCURACY = get_metric("accuracy", None)


def scores(p: float, *, n: int = 200, seeds: int = 1) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(int(1000 * p))
    return {s: (rng.random((n, 1)) < p).astype(float) for s in range(seeds)}


def stopped(standings: list[Standing], alpha: float = 0.0125, **options: Any) -> dict[str, str]:
    options = {"seed_deviation": 0.02, "resamples": 2000, **options}
    return {b.label: b.leader for b in look(standings, ACCURACY, alpha=alpha, **options)}


# -- looks ----------------------------------------------------------------------------------------------------------


def test_what_is_clearly_behind_is_stopped_and_what_is_not_is_left() -> None:
    field = [Standing("good", scores(0.8)), Standing("near", scores(0.76)), Standing("far", scores(0.4))]
    assert stopped(field) == {"far": "good"}
    assert stopped(field[:2]) == {}
    assert stopped(field[:1]) == {}


def test_a_method_in_training_is_compared_with_those_in_training() -> None:
    """One that is finished may be far ahead of one that has only begun; that says nothing of where it will end."""
    done, begun, slow = (
        Standing("few-shot", scores(0.6)),
        Standing("a", scores(0.3), True),
        Standing("b", scores(0.05), True),
    )
    assert stopped([done, begun, slow]) == {"b": "a"}
    assert stopped([done, begun]) == {}
    assert stopped([replace(done, scores=scores(0.02)), begun]) == {"few-shot": "a"}, "what is finished gains nothing"


def test_a_loss_is_better_when_lower() -> None:
    class Loss:
        name, higher_is_better, range = "loss", False, (0.0, np.inf)

        def aggregate(self, sums: np.ndarray, count: Any) -> np.ndarray:
            return sums[..., 0] / count

    rng = np.random.default_rng(0)
    field = [Standing(name, {0: rng.gamma(4, mean / 4, (200, 1))}) for name, mean in (("a", 1.0), ("b", 3.0))]
    assert [b.label for b in look(field, Loss(), alpha=0.01, seed_deviation=0.02)] == ["b"]


def test_an_assumed_deviation_between_seeds_holds_a_verdict_back() -> None:
    """Significant for this one run, and within what another seed may change."""
    field = [Standing("a", scores(0.70, n=4000)), Standing("b", scores(0.65, n=4000))]
    assert stopped(field, seed_deviation=0.0) == {"b": "a"}
    assert stopped(field) == {}
    fixed = [replace(s, seeded=False) for s in field]
    assert stopped(fixed) == {"b": "a"}, "where seeds change nothing, none is assumed"


def test_what_methods_will_still_gain_is_not_known() -> None:
    """While both train, a gap must be beyond what curves may still make up; once both are finished it need not."""
    field = [Standing("a", scores(0.6), True), Standing("b", scores(0.4), True)]
    assert stopped(field) == {"b": "a"}
    assert stopped(field, curve_deviation=0.1) == {}
    assert stopped([replace(s, training=False) for s in field], curve_deviation=0.1) == {"b": "a"}
    hopeless = [field[0], Standing("b", scores(0.05), True)]
    assert stopped(hopeless, curve_deviation=0.1) == {"b": "a"}


def test_seeds_that_agree_outweigh_the_assumption() -> None:
    few = [Standing(name, scores(p, n=2000, seeds=1)) for name, p in (("a", 0.72), ("b", 0.62))]
    many = [Standing(name, scores(p, n=2000, seeds=6)) for name, p in (("a", 0.72), ("b", 0.62))]
    assert stopped(few, seed_deviation=0.04) == {}
    assert stopped(many, seed_deviation=0.04) == {"b": "a"}


def test_more_methods_need_more_evidence() -> None:
    """Holm's correction: a pair that would do alone does not among twenty."""
    rng = np.random.default_rng(3)
    top = (rng.random((200, 1)) < 0.7).astype(float)
    worse = top.copy()
    worse[np.flatnonzero(top)[:15]] = 0.0
    field = [Standing("top", {0: top}, seeded=False), Standing("worse", {0: worse}, seeded=False)]
    assert "worse" in stopped(field)
    others = [Standing(f"o{i}", {0: top.copy()}, seeded=False) for i in range(400)]
    for i, other in enumerate(others):
        other.scores[0][np.flatnonzero(top)[i % 100]] = 0.0
    assert "worse" not in stopped([*field, *others])


# -- error rates ----------------------------------------------------------------------------------------------------


def _racing() -> Any:
    import importlib.util
    import sys

    path = Path(__file__).parents[1] / "benchmarks" / "racing.py"
    spec = importlib.util.spec_from_file_location("racing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["racing"] = module
    spec.loader.exec_module(module)
    return module


def test_the_best_is_rarely_stopped_and_much_is_saved() -> None:
    """The simulation of docs/racing.md with fewer trials; seeds deviate twice as much as assumed in the third."""
    racing = _racing()
    for name, bound in (("one ahead", 0.05), ("three alike", 0.05), ("unlucky seeds", 0.08)):
        out = racing.trials(racing.FIELDS[name], 25, resamples=300)
        assert out.best_stopped <= bound, name
    assert racing.trials(racing.FIELDS["one ahead"], 10, resamples=300).cost < 0.4


# -- end to end -----------------------------------------------------------------------------------------------------

FAST = "batch_size: 8, validations: 2"
METHODS = (
    "- zero-shot\n"
    f"- full: {{{FAST}, learning_rate: 0.01}}\n"
    f"- full: {{label: slow, {FAST}, learning_rate: 1.0e-7}}\n"
    f"- lora: {{label: slower, {FAST}, learning_rate: 1.0e-8}}\n"
)


def easy_task() -> Task:
    """The answer is always the same, which a tiny random model learns in some twenty steps."""

    def always(examples: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(replace(e, answers=("red",)) for e in examples)

    task = tiny.colour_task(48, 40, 24)
    return replace(task, train=always(task.train), validation=always(task.validation), test=always(task.test))


class Log(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[str, int, dict[str, Any]]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            self.events.append((cell.label, cell.seed, event))

    def kinds(self, kind: str) -> set[tuple[str, int]]:
        return {(label, seed) for label, seed, event in self.events if event["event"] == kind}


def plain(folder: Path) -> Any:
    return results_without_times(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def raced(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Log, Comparison]:
    folder = tmp_path_factory.mktemp("race")
    recipe = tiny.write_recipe(
        folder / "r", small_folder, METHODS, seeds="[0, 1]", budget="{steps: 24}", forgetting="false", task=easy_task()
    )
    log = Log()
    done = compare(load_recipe(recipe), output=folder / "out", workers=1, race=True, watcher=log)
    return recipe, folder / "out", log, done


def test_a_race_stops_what_is_behind_and_says_so(raced: tuple[Path, Path, Log, Comparison]) -> None:
    _, folder, log, done = raced
    verdict = done.results["verdict"]
    assert [row["label"] for row in verdict["rows"]] == ["full"]
    out = {s["label"]: s for s in verdict["stopped"]}
    assert set(out) == {"zero-shot", "slow", "slower"}
    assert all(s["leader"] == "full" and s["leader_value"] > s["value"] for s in out.values())
    assert all(s["p"] < s0["alpha"] for s, s0 in zip(verdict["stopped"], done.results["race"]["stopped"], strict=True))
    assert "full is best" in done.sentence
    assert "stopped early and not ranked" in done.sentence
    assert done.results["complete"] is True
    assert log.kinds("done") == {("full", 0), ("full", 1)}
    assert {("slow", 1), ("slower", 1)} <= log.kinds("dropped")
    assert any(line.startswith("stopped: slow after") for line in log.lines)
    html = (folder / "report.html").read_text()
    assert "Stopped by the race" in html
    flops = done.results["race"]["flops"]
    assert 0 < flops["spent"] < 0.75 * flops["full"]


def test_the_test_set_is_read_by_finished_cells_only(raced: tuple[Path, Path, Log, Comparison]) -> None:
    _, folder, _, _ = raced
    assert {str(p.relative_to(folder)) for p in folder.glob("cells/*/*/answers.jsonl")} == {
        "cells/full/seed-0/answers.jsonl", "cells/full/seed-1/answers.jsonl",
    }  # fmt: skip
    for path in folder.glob("cells/*/*/race-*.json"):
        assert len(json.loads(path.read_text())["statistics"]) == 40, "validation questions, and no others"


def test_looks_that_cost_more_than_they_may_are_left_out(
    raced: tuple[Path, Path, Log, Comparison], small_folder: Path, tmp_path: Path
) -> None:
    """One method shows what a look costs; then none is taken before the end of a seed, and that look stops the same."""
    methods = METHODS.replace("- zero-shot\n", "")
    recipe = tiny.write_recipe(
        tmp_path / "r", small_folder, methods + "race: {look_cost: 0.0}\n", seeds="[0, 1]", budget="{steps: 24}",
        forgetting="false", task=easy_task(),
    )  # fmt: skip
    log = Log()
    done = compare(load_recipe(recipe), output=tmp_path / "out", workers=1, watcher=log)
    assert {str(p.relative_to(tmp_path / "out/cells")) for p in (tmp_path / "out").glob("cells/*/*/race-0.*.json")} == {
        "full/seed-0/race-0.25.json"
    }
    assert any(line.startswith("no looks at 25%, 50% of training: to answer 40 validation") for line in log.lines)
    assert done.results["race"]["looks_in_training"] is False
    assert {(s["label"], s["share"]) for s in done.results["race"]["stopped"]} == {("slow", 1.0), ("slower", 1.0)}
    cell = "cells/full/seed-1/answers.jsonl"
    assert (tmp_path / "out" / cell).read_text() == (raced[1] / cell).read_text()


def test_run_again_it_does_nothing_and_killed_anywhere_it_ends_the_same(
    raced: tuple[Path, Path, Log, Comparison], tmp_path: Path
) -> None:
    recipe, folder, _, _ = raced
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    log = Log()
    compare(load_recipe(recipe), output=again, workers=1, race=True, watcher=log)
    assert log.kinds("done") == log.kinds("scouted") == set()
    assert plain(again) == plain(folder)
    # as after a kill in the middle of a look: some answers are there, others and the decisions are not
    for name in ("race.json", "cells/slow/seed-0/race-0.5.json", "cells/full/seed-1/cell.json"):
        (again / name).unlink(missing_ok=True)
    compare(load_recipe(recipe), output=again, workers=1, race=True)
    assert plain(again) == plain(folder)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_killed_between_rounds_it_ends_the_same(raced: tuple[Path, Path, Log, Comparison], tmp_path: Path) -> None:
    class Stop(Log):
        def event(self, cell: Cell, event: dict[str, Any]) -> None:
            super().event(cell, event)
            if len(self.events) >= 6:
                raise Killed

    recipe, folder, _, _ = raced
    with pytest.raises(Killed):
        compare(load_recipe(recipe), output=tmp_path / "out", workers=1, race=True, watcher=Stop())
    assert not (tmp_path / "out/results.json").exists()
    compare(load_recipe(recipe), output=tmp_path / "out", workers=1, race=True)
    assert plain(tmp_path / "out") == plain(folder)


@pytest.mark.slow
def test_without_race_the_rest_is_run_and_what_was_raced_is_as_if_it_had_not_been(
    raced: tuple[Path, Path, Log, Comparison], tmp_path: Path
) -> None:
    """The stopped go on from where they stood, and every cell equals that of a comparison that never raced."""
    recipe, folder, _, _ = raced
    shutil.copytree(folder, tmp_path / "on")
    on = compare(load_recipe(recipe), output=tmp_path / "on", workers=1)
    assert not (tmp_path / "on/race.json").exists()
    assert on.results["race"] is None
    straight = compare(load_recipe(recipe), output=tmp_path / "straight", workers=1)
    assert {row["label"] for row in on.results["verdict"]["rows"]} == {"zero-shot", "full", "slow", "slower"}
    assert plain(tmp_path / "on") == plain(tmp_path / "straight")
    assert straight.results["verdict"]["best"] == ["full"], "the race named the same"


def test_a_race_without_validation_is_one_line(small_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict({"task": "dates", "base": str(small_folder), "methods": ["zero-shot"], "race": True})
    task = replace(easy_task(), validation=())
    with pytest.raises(KamertonError, match="a race is decided on validation examples, and there are none; give"):
        compare(recipe, task=task, output=tmp_path)


@pytest.mark.parametrize(
    ("race", "says"),
    [("{shares: [0.5, 0.25]}", "shares must rise"), ("{shares: [1.5]}", "less than 1"), ("{alphas: 1}", "did you mean alpha"),
     ("{alpha: 0}", "greater than 0")],
)  # fmt: skip
def test_wrong_race_settings_are_one_line(tmp_path: Path, race: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"task: dates\nmethods: [zero-shot]\nrace: {race}\n")
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:3: race")


# -- the report -----------------------------------------------------------------------------------------------------


def test_a_report_of_twenty_of_which_most_were_stopped(tmp_path: Path) -> None:
    """Stopped methods are not ranked, though some of them have finished cells; the report is complete and short."""
    labels = [row[0] for row in twenty()]
    out = labels[:3] + labels[11:]
    missing = [(label, s) for label in out for s in ((0, 1, 2) if label in labels[11:] else (1, 2))]
    folder = write_comparison(tmp_path, twenty(), missing=missing)
    stops = [
        {
            "label": label, "leader": "full", "seed": 0, "share": 0.25 if label in labels[11:] else 1.0, "seeds": 1,
            "value": 0.1, "leader_value": 0.8, "examples": 96, "p": 1e-5, "alpha": 0.0125,
        }
        for label in out
    ]  # fmt: skip
    (folder / "race.json").write_text(json.dumps({"stopped": stops, "flops": {"spent": 3.0, "full": 10.0}}))
    write_report(folder)
    found = json.loads((folder / "results.json").read_text())
    assert found["complete"] is True
    assert {row["label"] for row in found["verdict"]["rows"]} == set(labels) - set(out)
    assert len(found["verdict"]["stopped"]) == len(out)
    html = (folder / "report.html").read_text()
    assert "about 30% of the compute" in html
    assert "9 more were clearly behind" in found["verdict"]["sentence"]
    assert len(found["verdict"]["sentence"]) < 900


def test_the_sentence_names_the_best_of_many() -> None:
    stops = [Stopped(f"m{i}", "top", 0, 0.5, 1, i / 100, 0.9, 96, 0.001) for i in range(12)]
    said = race_sentence(stops, Scale("accuracy", 0.0, 1.0))
    assert "m11 (at 50% of its training: 11.0%, top 90.0%)" in said
    assert "9 more were clearly behind" in said
    one = race_sentence([replace(stops[0], share=1.0, seeds=2)], Scale("accuracy", 0.0, 1.0))
    assert "m0 (after 2 seeds: 0.0%, top 90.0%) was clearly behind" in one

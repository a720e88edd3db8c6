"""What the report shows of an adversarial stage: samples as training goes on, figures, warnings that fire when due."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from kamerton.base import Base, load_base
from kamerton.comparison.report.data import Cell
from kamerton.comparison.report.findings import _shown, joined
from kamerton.comparison.run import compare
from kamerton.errors import KamertonError
from kamerton.evaluation.answering import judge
from kamerton.methods.stage_figures import Shape, gain, reference_shape, shape
from kamerton.methods.stage_findings import LONGEST, POINTS, stage_findings
from kamerton.methods.stage_warnings import collapse, hacking, length, memorising, stage_warnings
from kamerton.objectives.adversarial import Adversarial
from kamerton.objectives.adversarial_options import AdversarialOptions
from kamerton.objectives.looks import SAMPLES, Look, Looks
from kamerton.tasks.example import Task
from kamerton.training import Budget, fit
from kamerton.training.loop import Settings
from kamerton.tuning import get_parameterisation

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4, "learning_rate": 0.02}
STAGE: dict[str, Any] = {"warmup_steps": 2, "rank": 4, "validations": 2, "queries": 2, "group": 2}
TITLES = [
    "Adversarial stage: AUC", "Adversarial stage", "Self-BLEU of samples", "Distinct n-grams and length of samples",
    "Samples as training goes on", "Reward and metric", "What convinces the discriminator",
]  # fmt: skip


def started(base: Base, task: Task | None = None, kind: str = "prompt-generator", **options: Any) -> Any:
    task = task or tiny.colour_task()
    parameterisation = get_parameterisation(kind)
    sizes = {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4} if kind == "prompt-generator" else {}
    tuned = parameterisation.attach(base, parameterisation.options(**sizes), task, 0)
    objective = Adversarial(
        base, task, AdversarialOptions(**{"warmup_steps": 2, "rank": 4, **options}), batch_size=6, max_tokens=4096,
        limit=None, seed=0,
    )  # fmt: skip
    objective.begin(tuned.model, tuned.module)
    return objective, tuned


def looks_of(base: Base, said: list[list[list[str]]], task: Task | None = None) -> Looks:
    """Looks at which a planted model said these texts: for each look (Q, S)."""
    looks = Looks(base.renderer, task or tiny.colour_task(), limit=None, seed=0, score=None)
    for step, texts in enumerate(said):
        tokens = [[base.renderer.answer(text) for text in row] for row in texts]
        looks.taken.append(Look(10 * step, texts, tokens, [[True] * len(row) for row in texts]))
    return looks


# -- looks ------------------------------------------------------------------------------------------------------------


def test_a_look_samples_the_same_questions_with_the_same_numbers(small_base: Base) -> None:
    """What differs between looks is the model: without a change nothing does, and the global random state is kept."""
    objective, tuned = started(small_base)
    tuned.module.eval()
    before = torch.random.get_rng_state()
    objective.look(0, tuned.model)
    objective.look(5, tuned.model)
    assert (torch.random.get_rng_state() == before).all()
    one, two = objective.looks.taken
    assert one.texts == two.texts
    assert one.scores == two.scores == two.start_scores
    assert len(one.texts) == len(tiny.colour_task().validation) == 12
    assert {len(row) for row in one.texts} == {SAMPLES}
    assert any(a != b for a, b in one.texts), "two samples of one question"
    with torch.no_grad():
        for p in tuned.module.parameters():
            if p.requires_grad:
                p += 0.5
    objective.look(9, tuned.model)
    assert objective.looks.taken[2].texts != one.texts
    assert objective.looks.taken[2].start_scores == one.scores, "the same judges give the start the same scores"
    objective.look(9, tuned.model)
    assert [look.step for look in objective.looks.taken] == [0, 5, 9]


def test_scores_are_those_of_judges_that_never_saw_the_reference(small_base: Base) -> None:
    """By hand: of a training question by one judge, of a validation question by both."""
    task = tiny.colour_task()
    for held_out in (True, False):
        objective, tuned = started(small_base, task if held_out else replace(task, validation=()))
        tuned.module.eval()
        objective.look(0, tuned.model)
        looks = objective.looks
        assert looks.held_out == held_out
        for i, (row, owner) in enumerate(zip(looks.references, looks._owners, strict=True)):
            (features,) = objective._read([row])
            tokens = torch.tensor(row.tokens[row.prompt_length :])
            judges = objective.judges
            by = judges.judges if held_out else [judges.judge_of(int(objective._fold[owner]))]
            alone = torch.zeros(len(tokens))
            with torch.no_grad():
                expected = np.mean([float(d.of_tokens(d.contexts(features, alone), tokens).mean()) for d in by])
            assert looks.taken[0].reference_scores[i] == pytest.approx(expected, rel=1e-5)


def test_looks_come_back_from_a_checkpoint_bit_for_bit(small_base: Base, tmp_path: Path) -> None:
    """Stopped after every step, with and without validation examples: the same looks and the same findings."""
    task = tiny.colour_task()
    for name, data in (("validated", task), ("not", replace(task, validation=()))):
        ends = []
        for stops in ((), (1, 2, 3)):
            for stop in (*stops, None):
                objective, tuned = started(small_base, data)
                plan = Settings(learning_rate=0.05, validations=2, average=0.5, validate_start=True)
                result = fit(tuned.model, tuned.module, objective, plan, Budget(steps=4),
                             tmp_path / name / f"{len(stops)}", stop_after=stop)  # fmt: skip
            found = [asdict(f) for f in stage_findings(objective, result.state.curve)]
            ends.append(([asdict(look) for look in objective.looks.taken], found))
        assert ends[0] == ends[1]
        assert [look["step"] for look in ends[0][0]] == [0, 2, 4]
        assert bool(ends[0][0][0]["statistics"]) == (name == "validated")


def test_looks_leave_training_as_it_was(small_base: Base, tmp_path: Path) -> None:
    """They only watch: with them switched off the trained weights are the same."""
    ends = []
    for off in (False, True):
        objective, tuned = started(small_base, path="both", queries=2, group=2)
        if off:
            objective.look = lambda *_: None
        plan = Settings(learning_rate=0.05, validations=2, average=0.5, validate_start=True)
        fit(tuned.model, tuned.module, objective, plan, Budget(steps=4), tmp_path / f"{off}")
        ends.append([p.detach().clone() for p in tuned.module.parameters() if p.requires_grad])
    assert all((a == b).all() for a, b in zip(*ends, strict=True))


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_the_method_shows_all_of_it(small_base: Base, tmp_path: Path) -> None:
    task = replace(tiny.colour_task(), validation=())
    adapted = tiny.fit(small_base, "gan-prompt", tmp_path, task=task, budget=Budget(steps=10), **SMALL,
                       adversarial=STAGE)  # fmt: skip
    found = {f.title: f for f in adapted.record.findings}
    assert [t for t in found if t in TITLES] == TITLES
    assert found["Adversarial stage: AUC"].levels == (("band, low", 0.6), ("band, high", 0.9))
    samples = found["Samples as training goes on"]
    assert samples.texts
    assert [row[0] for row in samples.rows] == ["question", "reference", "start", "step 2", "step 4"]
    assert samples.rows[1][1:] == tuple(task.train[i].answers[0] for i in (0, 12, 24, 36))
    assert "there are no validation examples" in samples.note
    assert [row[0] for row in found["Self-BLEU of samples"].rows] == [0, 2, 4]
    words = [row[0] for row in found["What convinces the discriminator"].rows]
    assert words[0] == "most convincing sampled answer"
    assert words[-1] == "least convincing reference"
    assert len(words) == 9
    assert not [note for note in adapted.record.notes if "warning" in note]


def test_the_control_without_the_signal_has_no_scores(small_base: Base, tmp_path: Path) -> None:
    adapted = tiny.fit(small_base, "gan-prompt", tmp_path, budget=Budget(steps=10), **SMALL,
                       adversarial={**STAGE, "weight": 0})  # fmt: skip
    titles = [f.title for f in adapted.record.findings]
    assert "Samples as training goes on" in titles
    assert not {"Adversarial stage: AUC", "Reward and metric", "What convinces the discriminator"} & set(titles)


def test_answers_are_put_in_order_of_their_score(small_base: Base) -> None:
    objective, _ = started(small_base)
    looks = looks_of(small_base, [[[f"a{i}", f"b{i}"] for i in range(12)]])
    (look,) = looks.taken
    look.scores = [[float(i), float(-i - 1)] for i in range(12)]
    look.start_scores, look.reference_scores = look.scores, [float((i * 5) % 12) for i in range(12)]
    objective.looks = looks
    table = next(f for f in stage_findings(objective, []) if f.title == "What convinces the discriminator")
    assert [row[2] for row in table.rows[:6]] == ["a11", "a10", "a9", "b11", "b10", "b9"]
    assert [row[3] for row in table.rows] == [11, 10, 9, -12, -11, -10, 0, 1, 2]
    look.texts[0][0] = "x" * (LONGEST + 1)
    shown = next(f for f in stage_findings(objective, []) if f.title == "Samples as training goes on")
    assert shown.rows[2][1] == "x" * LONGEST + " …"
    assert f"more than {LONGEST} characters are cut" in shown.note


def test_long_curves_are_means_of_neighbours(small_base: Base) -> None:
    objective, _ = started(small_base)
    curve = [{"step": i + 1, "auc": float(i % 2), "trained_auc": 0.5, "trust": 1.0} for i in range(4 * POINTS)]
    (auc,) = [f for f in stage_findings(objective, curve) if f.title.endswith("AUC")]
    assert len(auc.rows) == POINTS
    assert {row[1] for row in auc.rows} == {0.5}
    assert auc.rows[-1][0] == 4 * POINTS


def test_curves_show_levels_gaps_and_means_over_seeds() -> None:
    def cell(value: float | None) -> Cell:
        rows = [[0, None, 1.0], [1, value, 2.0], [2, 0.5, 3.0]]
        return Cell({"findings": [{"title": "<t>", "columns": ["step", "a", "b"], "rows": rows, "curve": True,
                                   "note": "", "levels": [["band & edge", value or 0.0]]}]}, [], {}, [])  # fmt: skip

    (one,) = joined({0: cell(None), 1: cell(0.2)})
    assert one["rows"] == [[0, None, 1.0], [1, 0.2, 2.0], [2, 0.5, 3.0]]
    assert one["levels"] == [["band & edge", 0.1]]
    drawn = str(_shown(one)["svg"])
    assert drawn.count('class="level"') == 1
    assert "band &amp; edge" in drawn
    assert "<t>" not in drawn


def test_the_report_of_a_comparison_shows_samples(small_folder: Path, tmp_path: Path) -> None:
    """End to end, with questions and references that are markup."""
    task = tiny.colour_task()
    hostile = "<script>alert(1)</script>\nred"
    task = replace(task, validation=tuple(replace(e, answers=(hostile,)) for e in task.validation))
    recipe = tiny.write_recipe(
        tmp_path, small_folder,
        "  - gan-prompt: {learning_rate: 0.02, tokens: 6, generated: 3, rank: 4, key_size: 4, adversarial: "
        "{warmup_steps: 2, rank: 4, validations: 2}}", seeds="[0]", budget="{steps: 8}", task=task,
    )  # fmt: skip
    page = compare(recipe, output=tmp_path / "out", workers=1).report.read_text(encoding="utf-8")
    assert all(f"<strong>{title}</strong>" in page for title in TITLES)
    assert '<figure class="texts">' in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\nred" in page
    assert "<script>alert(1)" not in page
    assert "band, low" in page
    assert "warning: " not in page


# -- warnings ---------------------------------------------------------------------------------------------------------

OTHERS = [f"{a} {b} {c}" for a, b, c in zip(tiny.WORDS, tiny.WORDS[9:], tiny.WORDS[17:], strict=False)]


def sentences(count: int, start: int = 0) -> list[list[str]]:
    return [[OTHERS[(start + 2 * i + k) % len(OTHERS)] for k in range(SAMPLES)] for i in range(count)]


def long_task() -> Task:
    task = tiny.colour_task()
    answers = [(OTHERS[(7 * i) % len(OTHERS)],) for i in range(12)]
    return replace(task, validation=tuple(replace(e, answers=a) for e, a in zip(task.validation, answers, strict=True)))


def warned(base: Base, said: list[list[list[str]]], kept: int = 10) -> list[str]:
    objective, _ = started(base, long_task())
    objective.looks = looks_of(base, said, long_task())
    return stage_warnings(objective, [{"auc": 0.7, "trained_auc": 0.72}], kept)


def test_a_planted_collapse_is_warned_of_and_a_healthy_run_is_not(small_base: Base) -> None:
    same = [["apple river stone", "apple river cloud"]] * 12
    assert warned(small_base, [sentences(12), sentences(12, 5)]) == []
    (line,) = warned(small_base, [sentences(12), same])
    assert line.startswith("warning: mode collapse")
    assert "adversarial.kl" in line
    assert "kept" not in line
    (line,) = warned(small_base, [sentences(12), same], kept=0)
    assert "the weights that are kept are those of the start" in line
    # what the start did already, the stage did not do
    assert warned(small_base, [same, same]) == []


def test_collapse_needs_both_measures_where_both_can_tell() -> None:
    fine = Shape(across=20.0, distinct_1=0.8, distinct_2=0.9)
    assert collapse(fine, fine, replace(fine, across=60.0, distinct_2=0.3))
    assert not collapse(fine, fine, replace(fine, across=60.0, distinct_2=0.6))
    assert not collapse(fine, fine, replace(fine, across=30.0, distinct_2=0.3))
    # answers that became single words have hardly any 2-grams, and those are distinct
    assert collapse(fine, fine, replace(fine, across=60.0, distinct_1=0.2, distinct_2=1.0))
    # labels: references repeat by themselves, and distinct-1 decides alone
    labels = Shape(across=100.0, distinct_1=0.25)
    assert collapse(labels, labels, replace(labels, distinct_1=0.0625))
    assert not collapse(labels, labels, replace(labels, distinct_1=0.1875))
    assert not collapse(Shape(), Shape(), Shape())


def test_length_is_warned_of_in_both_directions(small_base: Base) -> None:
    (short,) = warned(small_base, [sentences(12), [[text.split()[0][:1] for text in row] for row in sentences(12)]])
    assert "length collapse" in short
    (long,) = warned(small_base, [sentences(12), [[f"{text} {text} {OTHERS[3]}" for text in row]
                                                  for row in sentences(12)]])  # fmt: skip
    assert "running on" in long
    assert length(Shape(length=2.3, ended=0.0), Shape(length=2.3, ended=0.0)) == []
    assert "30% end inside" in length(Shape(length=1.0, ended=0.9), Shape(length=1.1, ended=0.3))[0]


def test_a_planted_memoriser_is_warned_of() -> None:
    early = [{"auc": 0.5, "trained_auc": 0.99}] * 30
    (line,) = memorising([*early, *[{"auc": 0.6, "trained_auc": 0.9}] * 10])
    assert "memorises" in line
    assert "adversarial.decay" in line
    assert memorising([*early, *[{"auc": 0.8, "trained_auc": 0.85}] * 10]) == []
    assert memorising([]) == []


def test_reward_hacking_is_warned_of_where_both_moved_beyond_chance(small_base: Base) -> None:
    task = tiny.colour_task()
    right, wrong = [e.answers[0] for e in task.validation], ["window"] * 12

    def told(reward: float, before: list[str], after: list[str]) -> list[str]:
        looks = looks_of(small_base, [sentences(12), sentences(12, 5)])
        for look, greedy in zip(looks.taken, (before, after), strict=True):
            look.statistics = judge(greedy, task.validation, ["exact-match"])["exact-match"].tolist()
        noise = np.random.default_rng(0).normal(0, 0.1, (12, 2))
        looks.taken[0].scores = looks.taken[0].start_scores = looks.taken[1].start_scores = [[0.0, 0.0]] * 12
        looks.taken[1].scores = (noise + reward).tolist()
        return hacking(looks)

    (line,) = told(1.0, right, wrong)
    assert "reward hacking" in line
    assert "exact-match on validation went from 1 to 0" in line
    assert told(1.0, right, right) == []
    assert told(1.0, wrong, right) == []
    assert told(-1.0, right, wrong) == []
    assert told(1.0, right, [*right[:11], "window"]) == [], "one answer of twelve is chance"


def test_a_generator_that_is_paid_for_one_word_collapses_and_is_warned_of(small_base: Base, tmp_path: Path) -> None:
    """The whole way: a judge that likes one token, rollouts without an anchor, and the figures that come of it."""
    objective, tuned = started(
        small_base, long_task(), kind="full", path="rollouts", anchor=0.0, kl=0.0, correction=False, controller=False,
        warmup_steps=0, group=8, queries=4,
    )  # fmt: skip
    liked = small_base.renderer.answer("red")[0]
    objective.judges.tokens = lambda features, tokens, fold: (tokens == liked).float()
    plan = Settings(learning_rate=0.005, validations=1, patience=9, validate_start=True)
    result = fit(tuned.model, tuned.module, objective, plan, Budget(steps=40), tmp_path)
    first, last = objective.looks.taken
    assert gain(last).value > 0.5  # type: ignore[union-attr]
    now, start = shape(objective.looks, last), shape(objective.looks, first)
    assert now.distinct_1 < 0.5 * start.distinct_1  # type: ignore[operator]
    assert reference_shape(objective.looks).length == 1.0
    found = stage_warnings(objective, result.state.curve, -1)
    assert any("mode collapse" in line for line in found), (start, now)


@pytest.mark.parametrize("kind", ["lora", "full", "gan-prompt"])
def test_a_base_in_bfloat16_is_sampled_as_it_is_trained(small_folder: Path, tmp_path: Path, kind: str) -> None:
    """Trained weights are float32 beside a base in bfloat16, in sampling as in the loss; at first nothing diverges."""
    half = load_base(small_folder, dtype="bfloat16", device="cpu")
    sizes = SMALL if kind == "gan-prompt" else {"learning_rate": 0.01}
    adapted = tiny.fit(half, kind, tmp_path, budget=Budget(steps=10), objective="adversarial",
                       adversarial={**STAGE, "path": "both"}, **sizes)  # fmt: skip
    assert "Samples as training goes on" in [f.title for f in adapted.record.findings]
    first = next(row for row in adapted.record.curve if "kl" in row)
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wild", [{"rate": 1e30}, {"rate": 1e38, "path": "rollouts"}, {"discriminator_rate": 3e9}])
def test_numbers_that_explode_are_one_line_and_the_start_is_kept(
    small_base: Base, tmp_path: Path, wild: dict[str, Any]
) -> None:
    """In either network: what is kept on disk is the supervised start, bit for bit."""
    plain = tiny.fit(small_base, "prompt-generator", tmp_path / "plain", budget=Budget(steps=6), **SMALL)
    with pytest.raises(KamertonError, match="not a number") as caught:
        tiny.fit(small_base, "gan-prompt", tmp_path / "wild", budget=Budget(steps=10), **SMALL,
                 adversarial={**STAGE, **wild})  # fmt: skip
    assert "\n" not in str(caught.value)
    assert "lower adversarial.rate or adversarial.discriminator_rate" in str(caught.value)
    kept = load_file(tmp_path / "wild" / "adversarial" / "best.safetensors")
    assert plain.tuned is not None
    own = dict(plain.tuned.module.named_parameters())
    assert all((own[name] == value).all() for name, value in kept.items())


def test_answers_of_one_token_are_noted(small_base: Base) -> None:
    task = tiny.colour_task()
    letters = replace(task, train=tuple(replace(e, answers=("ab"[i % 2],)) for i, e in enumerate(task.train)))
    objective, _ = started(small_base, letters, path="rollouts")
    assert any("one token long" in note for note in objective.notes)
    assert started(small_base, letters)[0].notes == []
    assert started(small_base, path="rollouts")[0].notes == []

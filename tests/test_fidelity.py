"""`kamerton eval --fidelity`: features, judges, probes, files and page, on tiny models and once on the demo model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kamerton as kt
import tiny
from kamerton.assessment import judge, probes
from kamerton.assessment.features import features, mauve_figures
from kamerton.assessment.judge import JudgeOptions, Said, halves, judged
from kamerton.assessment.page import page
from kamerton.assessment.samples import draw
from kamerton.assessment.settings import FidelitySettings, temperatures
from kamerton.base import Base
from kamerton.evaluation import diversity
from kamerton.evaluation.answering import answer
from kamerton.evaluation.figures import Mean, interval
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Sampling
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Adapted, Run
from kamerton.prompting.phrasings import PHRASINGS
from kamerton.tasks.example import Example, Message
from kamerton.training import Budget
from tiny import Cli

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Sampling(max_tokens=6, n=3, seed=1)
ONE = replace(PLAN, n=1)
SMALL = FidelitySettings(temperatures=(0.7, 1.0), samples=3, phrasings=2, bins=4)
LORA = "- lora: {learning_rate: 0.01, batch_size: 8, validations: 2}"


def untouched(base: Base) -> Adapted:
    method = get_method("zero-shot")
    return method.fit(base, tiny.colour_task(), Budget(), parse_options(method, {}), Run(Path()))


def silent(*_: object) -> None:
    """A report that nobody reads."""


# -- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_reproducible_and_of_the_models_own_distribution(small_base: Base) -> None:
    model, examples = untouched(small_base), tiny.colour_task().test
    one, again = draw(model, examples, 1.0, PLAN), draw(model, examples, 1.0, replace(PLAN, top_k=1, top_p=0.1))
    assert one.texts == again.texts
    assert draw(model, examples, 1.0, replace(PLAN, seed=2)).texts != one.texts
    scored = model.engine.token_log_probs(
        [small_base.renderer.prompt(examples[0].messages)],
        [model.generate([examples[0].messages], replace(PLAN, temperature=1.0))[0].tokens],
    )
    assert one.nats[0, 0] == pytest.approx(-float(scored[0].sum()), abs=1e-4)
    greedy = draw(model, examples, 0.0, PLAN)
    assert all(len(texts) == 3 and len(set(texts)) == 1 for texts in greedy.texts)
    assert greedy.tokens.shape == greedy.ended.shape == (16, 3)


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_are_means_of_a_plain_forward_pass(small_base: Base) -> None:
    import transformers

    texts = ["red", "blue table by the garden", "", "green green"]
    found = features(small_base, texts, max_tokens=8)
    hf = transformers.AutoModel.from_pretrained(small_base.info.source, dtype=torch.float32).eval()
    prompt = small_base.renderer.prompt((Message("user", ""),))
    for text, row in zip(texts, found, strict=True):
        said = small_base.renderer.answer(text)
        with torch.no_grad():
            states = hf(torch.tensor([[*prompt, *said]])).last_hidden_state[0]
        assert np.allclose(row, states[-len(said) :].mean(0).numpy(), atol=1e-4)


def test_mauve_sees_what_is_said_and_not_to_which_question(small_base: Base) -> None:
    """Planted: right answers given to other questions (n-grams see it, MAUVE does not), and one answer for all."""
    examples = tiny.colours(80, 7)
    wanted = [[e.answers[0]] for e in examples]
    order = np.random.default_rng(0).permutation(80)
    sets = {"same": wanted, "moved": [wanted[i] for i in order], "collapsed": [["red"]] * 80}
    found, level, buckets = mauve_figures(
        small_base, wanted, sets, [w[0] for w in wanted], max_tokens=4096, seed=0
    )  # fmt: skip
    assert found["same"].value == pytest.approx(1, abs=1e-6)
    assert found["moved"].value == pytest.approx(1, abs=1e-6)
    assert found["collapsed"].value < 0.5
    assert level is not None
    assert level.value == pytest.approx(1, abs=1e-6)
    assert buckets == 4, "as many as there are different answers"
    split = diversity.words()
    same, moved = (diversity.precision(sets[key], wanted, 1, split) for key in ("same", "moved"))
    assert same is not None
    assert moved is not None
    assert same.value == 1
    assert interval(moved).high < 0.5


# -- the judge --------------------------------------------------------------------------------------------------------


def test_halves_are_of_questions_and_by_seed() -> None:
    examples = tiny.colours(20, 1)
    double = [*examples, *(replace(e, id=e.id + "b") for e in examples)]
    half = halves(double, 0)
    assert (half[:20] == half[20:]).all()
    assert half[:20].sum() == 10
    assert (halves(double, 0) == half).all()
    assert (halves(double, 1) != half).any()
    with pytest.raises(kt.KamertonError, match=r"^7 questions are too few .*; give at least 8"):
        halves(tiny.colours(7, 1), 0)


def test_a_judge_never_reads_what_it_was_trained_on(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[set[str]] = []
    read: list[set[str]] = []
    own = judge._read

    def watch(model: Adapted, examples: Any, said: Any, rows: Any, out: Any) -> None:
        read.append({examples[i].id for i in rows})
        own(model, examples, said, rows, out)

    make = judge._judge

    def made(base: Base, task: Any, learn: Any, *rest: Any) -> Adapted:
        learned.append({e.id for e in learn})
        return make(base, task, learn, *rest)

    monkeypatch.setattr(judge, "_read", watch)
    monkeypatch.setattr(judge, "_judge", made)
    examples = tiny.colours(40, 5)
    said = [[Said(e.answers[0]), Said("small table"), Said("", False), Said(e.answers[0], False)] for e in examples]
    options = JudgeOptions(epochs=12, learning_rate=0.01)
    given = (small_base, tiny.colour_task(), examples, said, tmp_path, options, 0, silent)
    rows = judged(*given)
    assert all(not a & b for a, b in zip(learned, read, strict=True))
    assert set.union(*read) == {e.id for e in examples}
    right, wrong, nothing, open_ended = np.stack(rows).mean(0)
    assert right[0] < wrong[0], "a judge finds references likelier than what nobody says"
    assert nothing.tolist() == [0, 0]
    assert open_ended[1] == right[1] - 1
    assert open_ended[0] < right[0]
    # kept judges are used again, and give the same
    monkeypatch.setattr(get_method("lora").__class__, "fit", lambda *_: pytest.fail("trained again"))
    assert np.allclose(np.stack(judged(*given)), np.stack(rows), atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["judge-0", "judge-1"]


def test_changed_references_make_new_judges(small_base: Base, tmp_path: Path) -> None:
    examples, options = tiny.colours(10, 5), JudgeOptions(epochs=1)
    said = [[Said(e.answers[0])] for e in examples]
    rest = (tmp_path, options, 0, silent)
    judged(small_base, tiny.colour_task(), examples, said, *rest)
    first = (tmp_path / "judge-0" / "judge.json").read_text()
    other = [replace(e, answers=("white",)) for e in examples]
    judged(small_base, tiny.colour_task(), other, said, *rest)
    assert (tmp_path / "judge-0" / "judge.json").read_text() != first


# -- without samples --------------------------------------------------------------------------------------------------


def test_forward_cross_entropy_is_that_of_score(small_base: Base) -> None:
    model, examples = untouched(small_base), [replace(e, answers=("red", "blue table")) for e in tiny.colours(4, 0)]
    found = probes.forward(model, examples)
    scores = np.array(model.score([e.messages for e in examples], [e.answers for e in examples]))
    tokens = np.mean([len(small_base.renderer.answer(a)) for a in ("red", "blue table")])
    assert found["forward"].value == pytest.approx(-scores.mean())
    assert found["forward_token"].value == pytest.approx(-scores.mean() / tokens)


def test_confidences_of_closed_sets_and_of_generated_answers(small_base: Base) -> None:
    model, task = untouched(small_base), tiny.colour_task()
    closed = [replace(e, choices=tiny.COLOURS) for e in task.test[:6]]
    examples = [*closed, *task.test[6:12]]
    said = answer(model, examples, ONE)
    (ranked, whole, each), notes = probes.confidences(model, examples, said, "exact-match", 6)
    scores = np.array(model.score([e.messages for e in closed], [e.choices for e in closed]))
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert np.allclose(ranked.confidence, p.max(1))
    assert ranked.correct.tolist() == [
        float(tiny.COLOURS[i] in e.answers) for i, e in zip(p.argmax(1), closed, strict=True)
    ]
    assert np.allclose(whole.confidence, [np.exp(sum(a.logprobs)) for a in said.answers[6:]])
    assert (each.confidence >= whole.confidence - 1e-9).all()
    assert any("exact-match" in note for note in notes)
    graded, notes = probes.confidences(model, task.test, answer(model, task.test, ONE), "bleu", 6)
    assert len(graded) == 2
    assert any("token-f1" in note for note in notes)


def test_phrasings_mean_worst_and_spread(small_base: Base) -> None:
    model, task = untouched(small_base), tiny.colour_task()
    tried = list(PHRASINGS[:3])
    found = probes.phrased(model, task.test, "token-f1", tried, ONE, 0, silent)
    metric = get_metric("token-f1")
    scores = []
    for one in tried:
        texts = [model.generate([one(e.messages)], ONE)[0].text for e in task.test]
        scores.append(float(metric.statistics(texts, task.test).mean()))
    each = [figure.value for figure in found.each.values()]
    assert each == pytest.approx(scores)
    mean, worst, spread = (figure.value for figure in found.figures.values())
    assert (mean, worst, spread) == pytest.approx((np.mean(scores), min(scores), max(scores) - min(scores)))
    assert 0 < found.p <= 1


def test_worst_phrasing_goes_with_the_metrics_direction() -> None:
    """Three phrasings of two questions by hand: means 0.5, 1 and 0."""
    sums, mean_of = np.array([1.0, 2.0, 0.0]), Mean((0.0, 1.0))
    for how, higher, wanted in (
        ("mean", True, 0.5), ("worst", True, 0.0), ("worst", False, 1.0), ("spread", True, 1.0), ("spread", False, 1.0),
    ):  # fmt: skip
        assert float(probes.OverPhrasings(mean_of, 3, how, higher).aggregate(sums, 2.0)) == wanted


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("fidelity"), small_folder, LORA, seeds="[0]")


@pytest.fixture(scope="module")
def tuned(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "a <b>"
    kt.tune(recipe, "lora", output=folder)
    return folder


def test_two_models_are_compared_and_the_same_again(
    recipe: Path, tuned: Path, small_folder: Path, tmp_path: Path
) -> None:
    settings = replace(SMALL, judge=True, judge_options=JudgeOptions(epochs=1))
    stages: list[str] = []
    given: dict[str, Any] = {"against": small_folder, "settings": settings}
    found = kt.fidelity(tuned, recipe, output=tmp_path / "a", report=lambda stage, *_: stages.append(stage), **given)
    assert {p.name for p in (tmp_path / "a").iterdir()} >= {
        "fidelity.json",
        "fidelity.html",
        "samples.jsonl",
        "judge-0",
    }
    assert len(set(stages)) > 8
    r = found.results
    assert list(r["models"]) == ["a <b>", small_folder.name]
    for model in r["models"].values():
        for group in ("answers", "calibration", "phrasings", "each phrasing", "forgetting", "T=0.7", "T=1"):
            assert model["figures"][group], group
        for own in model["figures"].values():
            for name, figure in own.items():
                assert figure["low"] <= figure["value"] <= figure["high"], name
        figures = model["figures"]["T=1"]
        assert {"exact-match", "token-f1", "self_bleu", "mauve", "reverse", "entropy"} <= set(figures)
        assert "entropy" not in model["figures"]["T=0.7"]
    assert r["models"][small_folder.name]["figures"]["forgetting"]["kl"]["value"] == 0
    assert r["models"]["a <b>"]["figures"]["forgetting"]["kl"]["value"] != 0
    assert set(r["references"]) >= {"mauve", "reverse", "self_bleu_across", "length"}
    assert r["frontier"]["gain"]["same"][0][0] == 0.7
    for group in r["differences"].values():
        for d in group.values():
            assert d["p"] <= d["p_holm"] <= 1
            assert d["low"] <= d["value"] <= d["high"]
    rows = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 16
    assert all(len(row["answers"]) == 3 for row in rows)
    again = kt.fidelity(tuned, recipe, output=tmp_path / "b", **given)
    assert (tmp_path / "b" / "samples.jsonl").read_text() == (tmp_path / "a" / "samples.jsonl").read_text()
    for label, model in again.results["models"].items():
        assert model["figures"] == r["models"][label]["figures"]
    assert again.results["differences"] == r["differences"]
    assert again.results["frontier"] == r["frontier"]


def test_the_page_stands_alone_and_escapes(recipe: Path, tuned: Path, tmp_path: Path) -> None:
    found = kt.fidelity(tuned, recipe, output=tmp_path, settings=replace(SMALL, phrasings=0))
    text = found.report.read_text()
    assert "a &lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert text.count("<svg") >= 4
    assert "phrasings" not in found.results["models"]["a <b>"]["figures"]
    planted = json.loads(json.dumps(found.results))
    planted["examples"][0]["samples"]["a <b>"][0] = "<script>alert(1)</script>"
    planted["references"]["self_bleu_across"] = {"value": 1.0, "low": 1.0, "high": 1.0, "better": ""}
    for group in planted["models"]["a <b>"]["figures"].values():
        for name in ("self_bleu_across", "ended"):
            if name in group:
                group[name] = {"value": 0.5, "low": 0.4, "high": 0.6, "better": ""}
    planted["models"]["a <b>"]["figures"]["T=1"]["self_bleu_across"]["low"] = 90.0
    shown = page(planted)
    assert "<script>" not in shown
    assert "a sign of mode collapse" in shown
    assert "only 50% of the samples end" in shown.lower()


def test_a_closed_set_has_no_samples(small_folder: Path, tmp_path: Path) -> None:
    def close(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(e, choices=tiny.COLOURS) for e in examples)

    task = tiny.colour_task()
    task = replace(task, train=close(task.train), validation=close(task.validation), test=close(task.test))
    recipe = {"task": "dates", "base": {"model": str(small_folder), "dtype": "float32"}, "methods": ["zero-shot"],
              "forgetting": False}  # fmt: skip
    found = kt.fidelity(small_folder, recipe, task=task, output=tmp_path, settings=SMALL)
    figures = found.results["models"][small_folder.name]["figures"]
    assert not any(name.startswith("T=") for name in figures)
    assert "ece: choices" in figures["calibration"]
    assert any("16 of 16 questions have a closed set" in note for note in found.results["notes"])
    assert found.report.is_file()


def test_an_encoder_decoder_is_measured_too(tmp_path: Path) -> None:
    folder = tiny.save_encoder_decoder(tmp_path / "t5")
    recipe = tiny.write_recipe(tmp_path / "recipe", folder, "- zero-shot", seeds="[0]")
    found = kt.fidelity(folder, recipe, output=tmp_path / "out", settings=replace(SMALL, phrasings=0))
    figures = found.results["models"]["t5"]["figures"]["T=1"]
    assert {"mauve", "self_bleu", "length"} <= set(figures)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(cli: Cli, recipe: Path, tuned: Path, tmp_path: Path) -> None:
    status, out, err = cli(
        "eval", tuned, recipe, "--fidelity", "--frontier", "0.7,1.0", "--samples", 2, "--phrasings", 0, "--output",
        tmp_path, "--set", "forgetting=false",
    )  # fmt: skip
    assert status == 0, err
    assert "MAUVE  " in out
    assert "samples at temperature 0.7" in out
    assert f"page: {tmp_path / 'fidelity.html'}" in out
    assert "--frontier 0.7,1.0" in json.loads((tmp_path / "fidelity.json").read_text())["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--samples", 4), "--samples is for --fidelity; add --fidelity, or leave --samples out"),
        (("--judge",), "--judge is for --fidelity"),
        (("--fidelity", "--frontier", "hot"), "--frontier: 'hot' is no list of numbers; write 0.5,0.7,1.0"),
        (("--fidelity", "--frontier", "1,1"), "--frontier: temperatures 1, 1 do not do"),
        (("--fidelity", "--frontier", "-1"), "--frontier: temperatures -1 do not do"),
        (("--fidelity", "--frontier", "nan"), "--frontier: temperatures nan do not do"),
        (("--fidelity", "--samples", 1), "--samples: samples is 1; use 2 or more"),
        (("--fidelity", "--judge", "--split", "train"), "a judge has to be trained on references that the model was not"),
        (("--fidelity", "--against", "nowhere"), "nowhere"),
        (("--fidelity", "--split", "dev"), "no split 'dev'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    cli: Cli, recipe: Path, tuned: Path, tmp_path: Path, arguments: tuple[Any, ...], message: str
) -> None:
    output = ("--output", tmp_path) if "--fidelity" in arguments else ()
    status, _, err = cli("eval", tuned, recipe, *arguments, *output)
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_temperatures_are_read() -> None:
    assert temperatures("0.5, 1,0") == (0.5, 1.0, 0.0)


# -- the real model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_model_on_dates(demo: Base, tmp_path: Path) -> None:
    """A real model end to end, judges included; its untouched samples are far from the references and say so."""
    recipe = {
        "task": {"embedded": "dates", "max_answer_tokens": 14, "limit": {"train": 8, "validation": 4, "test": 8}},
        "base": "demo",
        "methods": ["zero-shot"], "forgetting": False,
    }  # fmt: skip
    settings = FidelitySettings(
        temperatures=(0.7, 1.0), samples=2, judge=True, judge_options=JudgeOptions(epochs=2), phrasings=0
    )
    found = kt.fidelity(kt.load("demo", base=demo), recipe, output=tmp_path, settings=settings)
    model, references = found.results["models"]["zero-shot"]["figures"], found.results["references"]
    assert references["reverse"]["high"] < model["T=1"]["reverse"]["low"]
    assert references["reverse"]["value"] < model["answers"]["forward"]["value"], "the judge has learnt something"
    assert model["T=0.7"]["reverse"]["value"] < model["T=1"]["reverse"]["value"], "colder is likelier"
    assert found.report.stat().st_size < 300_000

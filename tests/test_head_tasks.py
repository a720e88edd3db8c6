"""What encoders read of task files, and the metrics of their tasks, against independent implementations."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from kamerton.base.task_head import head_of, texts_of
from kamerton.errors import KamertonError, TaskError
from kamerton.evaluation.metrics import evaluate, get_metric
from kamerton.evaluation.rank_metrics import leave_one_out
from kamerton.recipe import Recipe, load_recipe
from kamerton.tasks import Task, load_task
from kamerton.tasks.example import Example, Message

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("KAMERTON_DATA") or ROOT.parent / "shared/data")


def tagged(tags: list[str]) -> Example:
    return Example("1", (Message("user", "x"),), (" ".join(tags),), words=tuple("x" for _ in tags))


def answers(*values: str) -> list[Example]:
    return [Example(str(i), (Message("user", "x"),), (value,)) for i, value in enumerate(values)]


# -- metrics -----------------------------------------------------------------------------------------------------------

_KINDS = ("per", "loc")
_TAGS = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in _KINDS)]
_SENTENCES = st.lists(st.integers(1, 7).flatmap(lambda n: st.tuples(
    st.lists(st.sampled_from(_TAGS), min_size=n, max_size=n), st.lists(st.sampled_from(_TAGS), min_size=n, max_size=n)
)), min_size=1, max_size=5)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(pairs=_SENTENCES)
def test_entity_f1_is_seqevals(pairs: list[tuple[list[str], list[str]]]) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = seqeval.f1_score([t for t, _ in pairs], [g for _, g in pairs])
        right = seqeval.accuracy_score([t for t, _ in pairs], [g for _, g in pairs])
    examples, said = [tagged(t) for t, _ in pairs], [" ".join(g) for _, g in pairs]
    assert evaluate(get_metric("entity-f1"), said, examples) == pytest.approx(wanted)
    assert evaluate(get_metric("tag-accuracy"), said, examples) == pytest.approx(right)


@pytest.mark.parametrize(("name", "scheme", "letters"), [("iob2", "IOB2", "BI"), ("iobes", "IOBES", "BIES")])
def test_strict_entity_f1_is_seqevals(name: str, scheme: str, letters: str) -> None:
    metrics, schemes = pytest.importorskip("seqeval.metrics"), pytest.importorskip("seqeval.scheme")
    rng = np.random.default_rng(0)
    tags = ["O", *(f"{letter}-{kind}" for letter in letters for kind in _KINDS)]
    differs = 0
    for _ in range(100):
        true, given_ = ([str(t) for t in rng.choice(tags, size=6)] for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = metrics.f1_score([true], [given_], mode="strict", scheme=getattr(schemes, scheme))
        assert evaluate(get_metric(f"entity-f1:{name}"), [" ".join(given_)], [tagged(true)]) == pytest.approx(wanted), (
            true,
            given_,
        )
        differs += wanted != evaluate(get_metric("entity-f1"), [" ".join(given_)], [tagged(true)])
    assert differs > 20  # being strict makes a difference


def test_answers_with_too_few_or_too_many_tags_are_filled_or_cut() -> None:
    examples = [tagged(["B-a", "I-a", "O"])]
    assert evaluate(get_metric("entity-f1"), ["B-a I-a"], examples) == 1
    assert evaluate(get_metric("entity-f1"), ["B-a I-a O B-a"], examples) == 1
    assert evaluate(get_metric("tag-accuracy"), [""], examples) == pytest.approx(1 / 3)
    with pytest.raises(TaskError, match="unknown scheme 'iob3' of entity-f1; did you mean"):
        get_metric("entity-f1:iob3")


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=30))
def test_spearman_is_scipys_whole_and_without_each(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(v, dtype=float) for v in zip(*pairs, strict=True))

    def scipys(a: Any, b: Any) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(spearmanr(a, b).statistic)
        return 0.0 if np.isnan(value) else value

    examples = answers(*(str(v) for v in y))
    assert evaluate(get_metric("spearman"), [str(v) for v in x], examples) == pytest.approx(scipys(x, y), abs=1e-9)
    without = [scipys(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    np.testing.assert_allclose(leave_one_out(x, y), without, atol=1e-9)


def test_spearmans_interval_is_as_wide_as_a_bootstrap_that_ranks_anew() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    statistics = get_metric("spearman").statistics([str(v) for v in x], answers(*(str(v) for v in y)))[:, 0]
    picked = rng.integers(0, 200, size=(1500, 200))
    linear = statistics[picked].mean(1).std()
    anew = np.std([spearmanr(x[p], y[p]).statistic for p in picked])
    assert 0.85 < linear / anew < 1.15


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_f1_of_a_class_is_scikit_learns(pairs: list[tuple[bool, bool]]) -> None:
    name = {True: "yes", False: "no"}
    examples = [Example(str(i), (Message("user", "x"),), (name[t],), ("yes", "no")) for i, (t, _) in enumerate(pairs)]
    metric = get_metric("f1:yes", examples)
    wanted = f1_score([t for t, _ in pairs], [g for _, g in pairs], pos_label=True, zero_division=0.0)
    assert evaluate(metric, [name[g] for _, g in pairs], examples) == pytest.approx(wanted)
    with pytest.raises(TaskError, match="'maybe' is no class of the task; write f1:CLASS, one of: no, yes"):
        get_metric("f1:maybe", examples)
    with pytest.raises(TaskError, match="needs the class that it counts"):
        get_metric("f1", examples)


_WORDS = st.lists(st.sampled_from(["the", "a", "cat", "cat.", "Dog", "an", "1,000", "no answer", ""]), max_size=4).map(
    " ".join
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.lists(_WORDS, min_size=1, max_size=3), _WORDS), min_size=1, max_size=6))
def test_span_metrics_are_the_official_scripts(rows: list[tuple[list[str], str]]) -> None:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    examples = [Example(str(i), (Message("user", "x"),), tuple(texts)) for i, (texts, _) in enumerate(rows)]
    said = [text for _, text in rows]
    wanted = squad(
        [{"prediction_text": text, "id": str(i)} for i, text in enumerate(said)],
        [{"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": str(i)} for i, (texts, _) in enumerate(rows)],
    )  # fmt: skip
    assert 100 * evaluate(get_metric("squad-em"), said, examples) == pytest.approx(
        float(wanted["exact_match"]), abs=1e-3
    )
    assert 100 * evaluate(get_metric("token-f1"), said, examples) == pytest.approx(float(wanted["f1"]), abs=1e-3)


def test_no_answer_shares_nothing_with_an_answer_as_in_squad_2() -> None:
    """Rajpurkar et al. 2018: where one side is no answer, 1 if both are, else 0; else as in version 1.1."""
    texts = ["no answer", "No answer.", "answer the phone", "no", "the phone"]
    for given_, wanted in itertools.product(texts, repeat=2):
        examples = [Example("0", (Message("user", "x"),), (wanted,))]
        none = [text.lower().strip(".") == "no answer" for text in (given_, wanted)]
        for name in ("token-f1", "squad-em"):
            plain = evaluate(get_metric(name), [given_], examples)
            expected = float(all(none)) if any(none) else plain
            assert evaluate(get_metric(f"{name}:no answer"), [given_], examples) == expected, (given_, wanted)
    plain = evaluate(
        get_metric("token-f1"), ["answer the phone"], [Example("0", (Message("user", "x"),), ("no answer",))]
    )
    assert plain == pytest.approx(0.5)  # which is why the text has to be named
    with pytest.raises(TaskError, match="has no words"):
        get_metric("token-f1:the")


# -- tasks -------------------------------------------------------------------------------------------------------------


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def loaded(folder: Path, *rows: dict[str, Any], name: str = "d.jsonl", text: str = "", **spec: Any) -> Task:
    (folder / name).write_text(text or lines(*rows), encoding="utf-8")
    given_ = {"data": str(folder / name), "split": {"validation": 1, "test": 1}, **spec}
    return load_task(Recipe.from_dict({"task": given_, "methods": ["majority"]}).task)


def every(made: Task) -> list[Example]:
    return sorted((*made.train, *made.validation, *made.test), key=lambda e: e.messages[-1].content)


def test_segments_are_the_templates_fields_or_those_that_are_named(tmp_path: Path) -> None:
    rows = [{"a": f"first {i}", "b": f"second {i}", "c": "third", "label": "yn"[i % 2]} for i in range(8)]
    made = every(loaded(tmp_path, *rows, template="{b} | {a}", columns={"label": "label"}))
    assert [texts_of(e) for e in made] == [(f"second {i}", f"first {i}") for i in range(8)]
    named = every(loaded(tmp_path, *rows, template="{b} | {a}", segments=["a", "b"], columns={"label": "label"}))
    assert texts_of(named[0]) == ("first 0", "second 0")
    three = every(loaded(tmp_path, *rows, template="{a} {b} {c}", columns={"label": "label"}))
    assert texts_of(three[0]) == ("first 0", "second 0 third")
    with pytest.raises(TaskError, match=r"task.segments.1: no field or column 'd'"):
        loaded(tmp_path, *rows, template="{a}", segments=["a", "d"], columns={"label": "label"})
    with pytest.raises(TaskError, match="more than two"):
        loaded(tmp_path, *rows, template="{a}", segments=["a", "b", "c"], columns={"label": "label"})
    # what is said in front for causal models is not read by an encoder
    plain = [{"text": f"t {i}", "label": "yn"[i % 2]} for i in range(8)]
    instructed = every(loaded(tmp_path, *plain, instruction="Say y or n.", instruct_in="user"))
    assert texts_of(instructed[0]) == ("t 0",)
    assert "Say" in instructed[0].messages[-1].content
    assert every(loaded(tmp_path, *plain))[0].segments == ()


def test_heads_are_found_from_examples(tmp_path: Path) -> None:
    assert head_of(loaded(tmp_path, *[{"text": f"t {i}", "label": "ny"[i % 2]} for i in range(9)]), 0).labels == (
        "n",
        "y",
    )
    numbers = loaded(tmp_path, *[{"prompt": f"t {i}", "completion": f"{i}.5"} for i in range(9)])
    assert head_of(numbers, 0).kind == "regression"
    choice = [{"question": f"q {i}", "choices": [f"a{i}", f"b{i}"], "answer": i % 2} for i in range(9)]
    assert head_of(loaded(tmp_path, *choice), 0).kind == "choice"
    with pytest.raises(TaskError, match="free text"):
        head_of(loaded(tmp_path, *[{"prompt": f"t {i}", "completion": f"word {i}"} for i in range(9)]), 0)


def squad_file(*qas: dict[str, Any], context: str = "Ada wrote it. Ada lives in Oslo.") -> str:
    listed = [{"id": str(i), "question": f"who {i}", **qa} for i, qa in enumerate(qas)]
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": listed}]}]})


def test_spans_are_read_from_offsets_and_found_without_them(tmp_path: Path) -> None:
    second = {
        "answers": [
            {"text": "Ada", "answer_start": 14},
            {"text": "Ada", "answer_start": 0},
            {"text": "Oslo", "answer_start": 27},
        ]
    }
    made = every(loaded(
        tmp_path, name="s.json", text=squad_file(second, {"answers": []}, {"answers": [{"text": "it", "answer_start": 10}]}),
        reader="squad", columns={"answer": "answers"}, empty_answer="none",
    ))  # fmt: skip
    assert [(e.answers, e.spans) for e in made] == [(("Ada", "Oslo"), (14, 27)), (("none",), ()), (("it",), (10,))]
    assert made[0].segments == ("who 0", "Ada wrote it. Ada lives in Oslo.")
    plain = [
        {"question": f"q {i}", "context": "Ada wrote none.", "answer": a}
        for i, a in enumerate(["wrote", "none", "elsewhere"])
    ]
    assert [e.spans for e in every(loaded(tmp_path, *plain))] == [(4,), (10,), ()]
    # the text that stands for "no answer" is no span because the context happens to have it
    assert [e.spans for e in every(loaded(tmp_path, *plain, empty_answer="none"))] == [(4,), (), ()]
    hub = [
        {"question": f"q {i}", "context": "Ada, Ada", "answers": {"text": ["Ada"], "answer_start": [5]}}
        for i in range(3)
    ]
    assert {e.spans for e in every(loaded(tmp_path, *hub))} == {(5,)}


CONLL = "-DOCSTART- -X- O\n\nAda NNP B-per\nwrites VBZ O\n\nin IN O\nOslo NNP B-loc\n \nA DT O\n"


def test_conll_columns_are_sentences(tmp_path: Path) -> None:
    made = every(loaded(tmp_path, name="d.conll", text=CONLL))
    assert [(e.words, e.answers[0]) for e in made] == [
        (("A",), "O"), (("Ada", "writes"), "B-per O"), (("in", "Oslo"), "O B-loc"),
    ]  # fmt: skip
    assert made[0].id == "d.conll:9"
    assert head_of(loaded(tmp_path, name="d.conll", text=CONLL), 0).labels[0] == "O"
    parts = every(loaded(tmp_path, name="d.conll", text=CONLL, columns={"tokens": "tokens", "tags": "1"}, shape="tags"))
    assert parts[1].answers == ("NNP VBZ",)


@pytest.mark.parametrize(("spec", "text", "message"), [
    ({}, "Ada B-per\nwrites\n", r"d.conll:2: has 1 columns where 2 columns are needed: 'writes'; give each word one tag"),
    ({"labels": ["O", "B-per"]}, CONLL, r"d.conll:6: tag 'B-loc' is not among the given ones; use one of them, or add"),
])  # fmt: skip
def test_broken_tags_are_refused_at_their_line(tmp_path: Path, spec: dict[str, Any], text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        loaded(tmp_path, name="d.conll", text=text, **spec)


@pytest.mark.parametrize(("rows", "spec", "message"), [
    ([{"tokens": ["a", "b"], "tags": ["O"]}] * 3, {}, r"d.jsonl:1: has 2 words and 1 tags; give each word one tag"),
    ([{"tokens": [], "tags": []}] * 3, {}, "d.jsonl:1: has no words"),
    ([{"tokens": ["a"], "tags": [""]}] * 3, {}, "d.jsonl:1: the word 'a' has no tag"),
    ([{"question": "q", "context": "Ada lives", "answers": {"text": ["lives"], "answer_start": [3]}}], {},
     "d.jsonl:1: the answer 'lives' is not at character 3 of its context, where ' live' is; mend answer_start"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "z"}], {"labels": ["x", "y"]},
     "d.jsonl:3: label 'z' is not among the given ones"),
    ([{"text": "a", "label": ""}, {"text": "b", "label": "y"}, {"text": "c", "label": "z"}], {}, "d.jsonl:1: the label is empty"),
])  # fmt: skip
def test_bad_records_are_one_line(tmp_path: Path, rows: list[Any], spec: dict[str, Any], message: str) -> None:
    with pytest.raises(KamertonError, match=message) as error:
        loaded(tmp_path, *rows, **spec)
    assert "\n" not in str(error.value)


SETS: dict[str, tuple[str, str]] = {
    "sst2": ("sst2", "classification"), "cola": ("cola", "classification"), "rte": ("cb_rte_superglue", "classification"),
    "stsb": ("stsb", "regression"), "codah": ("codah", "choice"), "squad": ("squad2_cs224n", "span"),
    "wnut17": ("wnut17", "tagging"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_read_for_their_heads(name: str) -> None:
    folder, kind = SETS[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"no data in {DATA / folder}")
    made = load_task(load_recipe(ROOT / f"examples/encoder/{name}.yaml", data=DATA / folder).task)
    head = head_of(made, 0)
    assert head.kind == kind
    assert len(made.test) >= 200
    if kind == "span":
        for example in made.test:
            for text, start in zip(example.answers, example.spans, strict=False):
                assert example.segments[1][start : start + len(text)] == text
        assert head.no_answer == "no answer"
        assert 0.3 < np.mean([not e.spans for e in made.test]) < 0.7


def test_every_recipe_for_encoders_is_valid() -> None:
    for file in sorted((ROOT / "examples/encoder").glob("*.yaml")):
        recipe = load_recipe(file)
        assert recipe.methods[0].name == "majority"
        assert recipe.task.data is not None
        assert recipe.task.data.local


def test_a_causal_model_can_be_asked_for_tags(tiny_base: Any, tmp_path: Path) -> None:
    from kamerton.evaluation.answering import answer
    from kamerton.inference import Sampling
    from kamerton.methods import get_method, parse_options
    from kamerton.methods.method import Run
    from kamerton.training import Budget

    made = loaded(tmp_path, name="d.conll", text=CONLL, instruction="Tag each word.")
    zero = get_method("zero-shot")
    said = answer(
        zero.fit(tiny_base("llama"), made, Budget(), parse_options(zero, {}), Run(tmp_path)),
        made.test,
        Sampling(max_tokens=4),
    )
    assert len(said.texts) == 1
    assert 0 <= evaluate(get_metric("entity-f1"), said.texts, made.test) <= 1

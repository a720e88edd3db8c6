"""Metrics against independent implementations, and the contract that statistics add up."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from kamerton.errors import TaskError
from kamerton.evaluation.metrics import Metric, evaluate, get_metric, metric_names, task_metrics
from kamerton.evaluation.value_metrics import last_number
from kamerton.recipe import Recipe
from kamerton.tasks import Example, Task
from kamerton.tasks.example import conversation

WORDS = ["the", "a", "cat", "dog", "sat", "on", "red", "mat,", "and", "it", "was", "3", "o'clock.", "It's", "Good"]


def example(*answers: str, choices: Sequence[str] = (), number: int = 0) -> Example:
    return Example(str(number), conversation([("user", "q")]), tuple(answers), tuple(choices))


def sentence(rng: random.Random, low: int = 0, high: int = 14) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def sample(name: str, seed: int, size: int) -> tuple[list[str], list[Example]]:
    """Random answers and examples that suit a metric."""
    rng = random.Random(seed)
    answers, examples = [], []
    for number in range(size):
        if name in ("accuracy", "f1:one", "macro-f1", "matthews", "exact-match"):
            classes = ["one", "two", "three"]
            examples.append(example(rng.choice(classes), choices=classes, number=number))
            answers.append(rng.choice([*classes, "four", "One."]))
        elif name in ("numeric", "pearson"):
            value = rng.randint(-5, 5)
            examples.append(example(str(value), number=number))
            answers.append(rng.choice([str(value), str(rng.randint(-5, 5)), "none", f"it is {value}."]))
        elif name.startswith("json"):
            value = {key: rng.choice(["x", 1, ["y", "z"]]) for key in rng.sample("abcd", rng.randint(1, 4))}
            examples.append(example(json.dumps(value), number=number))
            given_value = {**value, rng.choice("abcde"): rng.choice(["x", 1])}
            answers.append(rng.choice([json.dumps(given_value), json.dumps(value), "{", "[]"]))
        elif name == "date-fields":
            examples.append(example("2024-03-12", number=number))
            answers.append(rng.choice(["2024-03-12", "2024-12-03", "March", "it is 1999-03-12"]))
        else:
            references = [sentence(rng, 1) for _ in range(rng.randint(1, 3))]
            examples.append(example(*references, number=number))
            answers.append(rng.choice([references[-1], sentence(rng)]))
    return answers, examples


# of a correlation of ranks every part depends on the whole (tests/test_head_tasks.py)
@pytest.mark.parametrize("name", ["f1:one" if n == "f1" else n for n in metric_names() if n != "spearman"])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 25))
def test_contract(name: str, seed: int, size: int) -> None:
    """Shapes, range, additivity over parts, integer weights as repetition, and batches in any leading shape."""
    answers, examples = sample(name, seed, size)
    metric: Metric = get_metric(name, examples)
    assert metric.name == name
    table = metric.statistics(answers, examples)
    assert table.shape[0] == size
    assert table.dtype == np.float64
    low, high = metric.range
    value = evaluate(metric, answers, examples)
    assert low - 1e-9 <= value <= high + 1e-9
    half = size // 2
    parts = [metric.statistics(answers[:half], examples[:half]), metric.statistics(answers[half:], examples[half:])]
    np.testing.assert_array_equal(np.concatenate([part for part in parts if len(part)]), table)
    weights = np.random.default_rng(seed).integers(0, 3, (4, 5, size)).astype(float)
    weights[..., 0] += 1
    values = metric.aggregate(weights @ table, weights.sum(-1))
    assert values.shape == (4, 5)
    repeated = np.repeat(np.arange(size), weights[2, 3].astype(int))
    again = evaluate(metric, [answers[i] for i in repeated], [examples[i] for i in repeated])
    assert values[2, 3] == pytest.approx(again, abs=1e-9)


@pytest.mark.parametrize(
    "name", ["f1:one" if n == "f1" else n for n in metric_names() if n not in ("pearson", "spearman")]
)
def test_the_reference_itself_is_perfect(name: str) -> None:
    _, examples = sample(name, 5, 30)
    metric = get_metric(name, examples)
    references = [e.answers[0] for e in examples]
    if name == "rouge-2":  # a single word has no pair to match
        examples = [e for e in examples if len(e.answers[0].split()) > 2]
        references = [e.answers[0] for e in examples]
    assert evaluate(metric, references, examples) == pytest.approx(metric.range[1])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 3))
def test_bleu_is_sacrebleus(seed: int, size: int, references: int) -> None:
    rng = random.Random(seed)
    examples = [example(*(sentence(rng, 1) for _ in range(references))) for _ in range(size)]
    answers = [rng.choice([e.answers[0], sentence(rng), e.answers[-1] + " " + sentence(rng)]) for e in examples]
    streams = [[e.answers[k] for e in examples] for k in range(references)]
    assert evaluate(get_metric("bleu"), answers, examples) == pytest.approx(
        sacrebleu.corpus_bleu(answers, streams).score, abs=1e-9
    )


def test_bleu_with_a_tokenizer() -> None:
    answers, examples = ["我喜欢红猫和狗"], [example("我喜欢红猫和鱼")]
    wanted = sacrebleu.corpus_bleu(answers, [[examples[0].answers[0]]], tokenize="zh").score
    assert wanted > 0
    assert evaluate(get_metric("bleu:zh"), answers, examples) == pytest.approx(wanted)


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(codec="ascii"), max_size=60), st.text(st.characters(codec="ascii"), min_size=1, max_size=60)
)
def test_rouge_is_rouge_scores_on_ascii(answer: str, reference: str) -> None:
    for name, key in (("rouge-1", "rouge1"), ("rouge-2", "rouge2"), ("rouge-l", "rougeL")):
        wanted = RougeScorer([key]).score(reference, answer)[key].fmeasure
        assert evaluate(get_metric(name), [answer], [example(reference)]) == pytest.approx(wanted)


def test_rouge_reads_other_scripts() -> None:
    # rouge-score's own tokenizer keeps ASCII alone and gives 0 here
    assert evaluate(get_metric("rouge-l"), ["Красный кот спит"], [example("красный кот сидит")]) == pytest.approx(2 / 3)
    assert evaluate(get_metric("rouge-1"), ["赤い猫"], [example("赤い犬")]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "references", "em", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("a tower in Paris", ["the Eiffel Tower", "tower"], 0, 2 * 1 / (3 + 1)),
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 1),
        ("x x y", ["x z"], 0, 2 * 1 / 5),
    ],
)
def test_squad(answer: str, references: list[str], em: float, f1: float) -> None:
    """By hand, after SQuAD's evaluation script."""
    assert evaluate(get_metric("squad-em"), [answer], [example(*references)]) == em
    assert evaluate(get_metric("token-f1"), [answer], [example(*references)]) == pytest.approx(f1)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_classes_by_their_definitions(pairs: list[tuple[int, int]]) -> None:
    """Macro F1 from precision and recall, Matthews' R_K as a correlation of one-hot tables."""
    choices = ["c0", "c1", "c2", "c3"]
    examples = [example(f"c{true}", choices=choices) for true, _ in pairs]
    answers = [f"c{given}" for _, given in pairs]  # c4 is outside
    f1 = []
    for c in range(4):
        hits = sum(t == g == c for t, g in pairs)
        answered, true = sum(g == c for _, g in pairs), sum(t == c for t, _ in pairs)
        if answered or true:
            precision, recall = hits / max(answered, 1), hits / max(true, 1)
            f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert evaluate(get_metric("macro-f1", examples), answers, examples) == pytest.approx(np.mean(f1))
    x, y = np.eye(5)[[g for _, g in pairs]], np.eye(5)[[t for t, _ in pairs]]
    x, y = x - x.mean(0), y - y.mean(0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    wanted = (x * y).sum() / spread if spread > 1e-9 else 0.0
    assert evaluate(get_metric("matthews", examples), answers, examples) == pytest.approx(wanted, abs=1e-9)
    right = np.mean([t == g for t, g in pairs])
    assert evaluate(get_metric("accuracy"), answers, examples) == pytest.approx(right)


def test_binary_matthews_by_the_book() -> None:
    pairs = [(1, 1)] * 30 + [(0, 0)] * 40 + [(1, 0)] * 12 + [(0, 1)] * 7
    examples = [example(str(t), choices=["0", "1"]) for t, _ in pairs]
    tp, tn, fn, fp = 30, 40, 12, 7
    wanted = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert evaluate(get_metric("matthews", examples), [str(g) for _, g in pairs], examples) == pytest.approx(wanted)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=40))
def test_pearson_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    value = evaluate(get_metric("pearson"), [str(v) for v in x], [example(str(v)) for v in y])
    wanted = stats.pearsonr(x, y).statistic if len(set(x)) > 1 and len(set(y)) > 1 else 0.0
    assert value == pytest.approx(wanted, abs=1e-9)


def test_pearson_without_a_number_says_nothing() -> None:
    examples = [example(str(v)) for v in (0, 1, 2, 3, 4)]
    metric = get_metric("pearson", examples)
    assert evaluate(metric, ["?"] * 5, examples) == 0
    assert evaluate(metric, ["0", "1", "?", "3", "4"], examples) == pytest.approx(1)  # 2 is the mean


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", 18), ("$1,234.50 in all", 1234.5), ("-3", -3), ("−3", -3), ("5-3", 3), ("x=-3", -3),
        ("1e-3", 0.001), ("3/4", 0.75), ("12 or 7", 7), ("none", None), ("1\u202f000", 1000), (".5", 0.5), ("a1b", 1),
        ("1,2,3", 3), ("10%", 10), ("2024-03-12", 12),
    ],
)  # fmt: skip
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_numeric_tolerance() -> None:
    e = [example("200")]
    assert evaluate(get_metric("numeric"), ["so 200.00"], e) == 1
    assert evaluate(get_metric("numeric"), ["201"], e) == 0
    assert evaluate(get_metric("numeric:0.01"), ["201"], e) == 1
    assert get_metric("numeric:0.01").name == "numeric:0.01"
    with pytest.raises(TaskError, match="'-1' is not a tolerance"):
        get_metric("numeric:-1")


@pytest.mark.parametrize(
    ("answer", "f1", "exact"),
    [
        ('{"intent": "Play", "artist": "Tea", "year": 1990}', 1, 1),
        (' {"year": 1990.0, "artist": "  TEA", "intent": "play"}\n', 1, 1),
        ('{"intent": "Play", "artist": "Tea", "year": "1990"}', 2 / 3, 0),
        ('{"intent": "Play"}', 2 * 1 / 4, 0),
        ('{"intent": "Play", "artist": "Tea", "year": 1990, "x": true}', 2 * 3 / 7, 0),
        ('```json\n{"intent": "Play"}\n```', 0, 0),
        ('{"intent": "Play"', 0, 0),
        ("NaN", 0, 0),
        ("[" * 100_000, 0, 0),
    ],
)
def test_json(answer: str, f1: float, exact: float) -> None:
    e = [example('{"intent": "Play", "artist": "Tea", "year": 1990}')]
    assert evaluate(get_metric("json-f1"), [answer], e) == pytest.approx(f1)
    assert evaluate(get_metric("json-exact"), [answer], e) == exact


def test_json_lists_and_micro_average() -> None:
    e = [example('{"a": ["x", "y"]}'), example('{"a": "x", "b": {"c": true}}')]
    given_answers = ['{"a": ["y", "x"]}', '{"a": "x", "b": {"c": 1}}']
    assert evaluate(get_metric("json-f1"), given_answers, e) == pytest.approx(2 * 3 / (4 + 4))
    assert evaluate(get_metric("json-exact"), given_answers, e) == 0


def test_json_takes_the_closest_of_several_references() -> None:
    e = [example('{"a": 1, "b": 2, "c": 3}', '{"a": 1}', '{"z": 1}')]
    assert evaluate(get_metric("json-f1"), ['{"a": 1, "x": 0}'], e) == pytest.approx(2 / 3)


def test_exact_match_and_accuracy() -> None:
    for answer, em, acc in (("  PARIS ", 1, 1), ("Ｐaris", 1, 1), ("Paris.", 0, 1), ('"paris"', 0, 1), ("Pari", 0, 0)):
        assert evaluate(get_metric("exact-match"), [answer], [example("Rome", "Paris")]) == em
        assert evaluate(get_metric("accuracy"), [answer], [example("Rome", "Paris")]) == acc


def test_functions_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "def length(answer, example):\n    return len(answer) / 10\n"
        "def pair(answer, example):\n    return [len(answer), len(example.answers[0])]\n"
        "pair.aggregate = lambda sums, count: sums[..., 0] / sums[..., 1]\npair.range = (0, 9)\n"
        "def bare(answer, example):\n    return [1, 2]\n"
        "def broken(answer, example):\n    return 1 / 0\n"
        "def infinite(answer, example):\n    return float('nan')\n"
    )
    e = [example("abcd"), example("ab")]
    file = str(tmp_path / "own_metrics.py")
    assert evaluate(get_metric(f"{file}:length"), ["abc", "a"], e) == pytest.approx(0.2)
    metric = get_metric(f"{file}:pair")
    assert evaluate(metric, ["abc", "abc"], e) == 1
    assert metric.range == (0, 9)
    monkeypatch.chdir(tmp_path)
    assert evaluate(get_metric("own_metrics:length"), ["abc", "a"], e) == pytest.approx(0.2)
    for name, words in (("bare", "no aggregate"), ("broken", "ZeroDivisionError"), ("infinite", "nan")):
        with pytest.raises(TaskError, match=words):
            get_metric(f"{file}:{name}").statistics(["a", "b"], e)
    with pytest.raises(TaskError, match="did you mean length"):
        get_metric(f"{file}:lenght")
    with pytest.raises(TaskError, match="no such file"):
        get_metric("nothing.py:f")
    with pytest.raises(TaskError, match="cannot import"):
        get_metric("no_such_package_at_all.x:f")


def test_unknown_metrics_name_the_closest_and_the_line() -> None:
    with pytest.raises(TaskError, match="unknown metric 'acuracy'; did you mean accuracy"):
        get_metric("acuracy")
    fields = {"data": {"path": "x"}, "metrics": ["accuracy", "bleu:no"]}
    spec = Recipe.from_dict({"task": fields, "methods": ["lora"]}).task
    task = Task("t", (), (), (example("a"),), ("accuracy", "bleu:no"))
    with pytest.raises(TaskError, match=r"task\.metrics\.1: unknown tokenizer 'no' of bleu"):
        task_metrics(task, spec)
    assert [m.name for m in task_metrics(Task("t", (), (), (example("a"),), ("accuracy", "bleu")))] == [
        "accuracy",
        "bleu",
    ]

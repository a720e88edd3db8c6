"""Encoders with heads against transformers' own losses, answers and files; windows and words as properties; whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_encoders
from kamerton import api
from kamerton.base import Base, EncoderModel, Head, load_base
from kamerton.base.task_head import head_of
from kamerton.errors import KamertonError, ModelError, RecipeError, TaskError
from kamerton.evaluation.answering import answer, judge, values
from kamerton.inference import Sampling
from kamerton.inference.head_answers import IGNORED, read, target
from kamerton.inference.head_rows import Encoded, Row, Rows, padded
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.defined import check_defined, check_fits
from kamerton.methods.encoder import headed
from kamerton.methods.method import Run
from kamerton.objectives.head import HeadLoss
from kamerton.tasks.example import Example, Message, Task, example_from, record_of
from kamerton.training import Budget

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CONTEXT = "Ada lives in the old town by the river. Boris works in Oslo, far north of Paris and Rome."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_encoders.save(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def bases(folders: Callable[[str], Path]) -> Callable[[str], Base]:
    made: dict[str, Base] = {}

    def load(kind: str) -> Base:
        if kind not in made:
            made[kind] = load_base(folders(kind), dtype="float32")
        return made[kind]

    return load


def asked(number: int, *segments: str, answers: tuple[str, ...] = ("x",), **fields: Any) -> Example:
    messages = (Message("user", "\n\n".join(segments)),)
    return Example(str(number), messages, answers, segments=tuple(segments), **fields)


def task_of(kind: str) -> Task:
    """A small task for a head that can be learned from single words."""
    places, colours = ("Oslo", "Paris", "Rome"), ("red", "blue", "green")
    made = []
    for i in range(60):
        place, colour = places[i % 3], colours[i // 3 % 3]
        text = f"the {colour} house stands in {place}"
        if kind == "classification":
            made.append(asked(i, text, "where is it", answers=(place,), choices=places))
        elif kind == "regression":
            made.append(asked(i, text, answers=(f"{i % 3}.0",)))
        elif kind == "choice":
            listed = ["is near", f"was {place}", f"was {colour}"]
            choices = tuple(listed[(n + i) % 3] for n in range(3))
            made.append(asked(i, text, "the house", answers=("is near",), choices=choices))
        elif kind == "span":
            none = i % 5 == 0
            context = f"Ada lives near. {text}."
            found = {"answers": ("no answer",)} if none else {"answers": (place,), "spans": (context.index(place),)}
            made.append(asked(i, "who is it" if none else "where is it", context, **found))
        else:
            words = tuple(text.split())
            tags = " ".join("B-place" if w in places else "I-colour" if w in colours else "O" for w in words)
            made.append(Example(str(i), (Message("user", text),), (tags,), words=words))
    metric = {"regression": "pearson", "span": "token-f1", "tagging": "entity-f1"}.get(kind, "accuracy")
    return Task(kind, tuple(made[:36]), tuple(made[36:44]), tuple(made[44:]), (metric,))


HEADS = ("classification", "regression", "choice", "span", "tagging")


# -- bases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny_encoders.KINDS)
def test_encoders_load_with_the_published_weights_and_a_head_of_their_own(bases: Any, folders: Any, kind: str) -> None:
    base = bases(kind)
    assert isinstance(base.model, EncoderModel)
    published = transformers.AutoModel.from_pretrained(folders(kind), dtype=torch.float32)
    made = load_base(folders(kind), dtype="float32", head=Head("span", seed=3))
    own = made.model.hf.base_model.state_dict()
    for name, weight in published.state_dict().items():
        if ".pooler." not in f".{name}":
            torch.testing.assert_close(own[name], weight, rtol=0, atol=0)
    assert made.info.fingerprint == base.info.fingerprint == load_base(folders(kind), dtype="float32").info.fingerprint
    again, other = (load_base(folders(kind), dtype="float32", head=Head("span", seed=s)) for s in (3, 4))
    assert torch.equal(again.model.hf.qa_outputs.weight, made.model.hf.qa_outputs.weight)
    assert not torch.equal(other.model.hf.qa_outputs.weight, made.model.hf.qa_outputs.weight)


def test_positions_of_roberta_begin_behind_its_padding(bases: Any) -> None:
    assert [bases(kind).model.max_length for kind in ("bert", "roberta", "distilbert")] == [130, 128, 130]
    ids = [5] * 128
    bases("roberta").model.states([ids])
    with pytest.raises((IndexError, RuntimeError)):
        bases("roberta").model.states([[*ids, 5]])


# -- losses against transformers' own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny_encoders.KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradient_are_those_of_transformers(bases: Any, kind: str, head: str) -> None:
    task, base = task_of(head), bases(kind)
    made = headed(base, head_of(task, 0)).reload(dtype="float32")
    model, tokenizer = made.model, base.renderer.tokenizer
    rows = Rows(tokenizer, made.request["head"], limit=32, window=32, stride=8)
    objective = HeadLoss(
        made.request["head"], rows, task.train[:6], (), batch_size=6, max_tokens=40, pad_id=tokenizer.pad_token_id
    )
    batches = objective.batches(0, model)
    assert len(batches) > 1
    model.hf.requires_grad_(True)
    total = sum(objective.loss(model, b).total for b in batches)
    count = sum(b.count for b in batches)
    (total / count).backward()
    ours = {n: p.grad.clone() for n, p in model.hf.named_parameters() if p.grad is not None}
    model.hf.zero_grad()
    # transformers' own: example by example, its own labels, weighted by what each counts for
    theirs, weight = torch.zeros(()), 0.0
    for example in task.train[:6]:
        encoded = rows.example(example)
        wanted: Any = target(made.request["head"], example, encoded)
        if head == "choice":
            one = padded(encoded.rows, tokenizer.pad_token_id)
            inputs = {"input_ids": one.ids[None], "attention_mask": one.mask[None]}
            if one.types is not None:
                inputs["token_type_ids"] = one.types[None]
            theirs, weight = theirs + model.hf(**inputs, labels=torch.tensor([wanted])).loss, weight + 1
            continue
        for place, row in enumerate(encoded.rows):
            one = padded([row], tokenizer.pad_token_id)
            inputs = {"input_ids": one.ids, "attention_mask": one.mask}
            if one.types is not None:
                inputs["token_type_ids"] = one.types
            if head == "span":
                start, end = wanted[place]
                labels, n = {"start_positions": torch.tensor([start]), "end_positions": torch.tensor([end])}, 1
            elif head == "tagging":
                labels, n = {"labels": torch.tensor([wanted[place]])}, sum(t != IGNORED for t in wanted[place])
            else:
                labels, n = {"labels": torch.tensor([wanted])}, 1
            theirs, weight = theirs + n * model.hf(**inputs, **labels).loss, weight + n
    assert weight == count
    torch.testing.assert_close(total.detach(), theirs.detach(), rtol=1e-4, atol=1e-4)
    (theirs / weight).backward()
    for name, parameter in model.hf.named_parameters():
        if name in ours:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-5)


# -- windows and words -------------------------------------------------------------------------------------------------

_TEXT = st.text(alphabet=st.sampled_from("abc ABC é .,?!'0129\n东 "), min_size=1, max_size=160).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(context=_TEXT, question=st.text(alphabet="abc ?", max_size=120), kind=st.sampled_from(("bert", "roberta")),
       window=st.integers(16, 40), stride=st.integers(0, 30), data=st.data())  # fmt: skip
def test_every_short_answer_is_whole_in_a_window_and_comes_back_exactly(
    tokenizers: Any, context: str, question: str, kind: str, window: int, stride: int, data: Any
) -> None:
    tokenizer = tokenizers(kind)
    rows = Rows(tokenizer, Head("span"), limit=window, window=window, stride=stride)
    encoded = rows.example(asked(0, question, context))
    places = {p for row in encoded.rows for p in row.spans if p is not None}
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert places == {tuple(p) for p in whole if p[1] > p[0]}  # every token of the context is in some window
    assert all(len(row.ids) <= window for row in encoded.rows)
    # an answer of at most as many tokens as windows share is whole in one, and its tokens give its text
    shared = (
        min(len({*a.spans} & {*b.spans} - {None}) for a, b in zip(encoded.rows, encoded.rows[1:], strict=False))
        if len(encoded.rows) > 1
        else 999
    )
    tokens = sorted(places)
    if not tokens or not shared:
        return
    first = data.draw(st.integers(0, len(tokens) - 1))
    last = min(first + data.draw(st.integers(0, min(shared, 8) - 1)), len(tokens) - 1)
    begin, stop = tokens[first][0], tokens[last][1]
    text = context[begin:stop]
    if not text.strip() or text != text.strip():
        return
    example = replace(asked(0, question, context, answers=(text,)), spans=(begin,))
    wanted: Any = target(Head("span"), example, encoded)
    assert wanted is not None
    for row, (a, b) in zip(encoded.rows, wanted, strict=True):
        if (a, b) != (0, 0):
            scores = torch.zeros(len(row.ids), 2)
            scores[a, 0] = scores[b, 1] = 9.0
            others = [torch.zeros(len(r.ids), 2) for r in encoded.rows]
            logits = [scores if r is row else o for r, o in zip(encoded.rows, others, strict=True)]
            assert read(Head("span"), example, encoded, logits).text == text


@pytest.fixture(scope="module")
def tokenizers() -> Callable[[str], Any]:
    made: dict[str, Any] = {}
    return lambda kind: made.setdefault(kind, tiny_encoders.tokenizer(kind))


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(alphabet="abcXYZ東é'-0", min_size=1, max_size=9), min_size=1, max_size=30),
       kind=st.sampled_from(("bert", "roberta")), limit=st.integers(12, 40), stride=st.integers(0, 12))  # fmt: skip
def test_every_word_has_one_first_token_in_a_window_that_holds_it(
    tokenizers: Any, words: list[str], kind: str, limit: int, stride: int
) -> None:
    tokenizer = tokenizers(kind)
    head = Head("tagging", ("O", "B-x"))
    rows = Rows(tokenizer, head, limit=limit, stride=stride)
    example = Example("0", (Message("user", " ".join(words)),), (" ".join(["O"] * len(words)),), words=tuple(words))
    encoded = rows.example(example)
    for row in encoded.rows:
        numbers = [n for n in row.words if n >= 0]
        assert numbers == sorted(set(numbers))  # once each, in their order
    # a sentence of one window: the same words as transformers finds them for a list of words
    if len(encoded.rows) == 1 and kind == "bert":
        theirs = tokenizer(list(words), is_split_into_words=True)
        found = theirs.word_ids()
        first = [w if w is not None and w not in found[:i] else -1 for i, w in enumerate(found)]
        assert list(encoded.rows[0].words) == first
        assert list(encoded.rows[0].ids) == theirs["input_ids"]
    covered = {n for row in encoded.rows for n in row.words if n >= 0}
    kept = {i for i, w in enumerate(words) if tokenizer(w, add_special_tokens=False)["input_ids"]}
    assert covered == kept
    # the tag of a word is the one of its token, whichever window it is read from
    marked = sorted(covered)[::2]
    logits = []
    for row in encoded.rows:
        scores = torch.zeros(len(row.ids), 2)
        scores[:, 0] = 1.0
        for place, word in enumerate(row.words):
            if word in marked:
                scores[place, 1] = 2.0
        logits.append(scores)
    tags = read(head, example, encoded, logits).text.split()
    assert [i for i, tag in enumerate(tags) if tag == "B-x"] == marked
    assert len(tags) == len(words)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    longest=st.integers(1, 6),
    windows=st.integers(1, 3),
    threshold=st.sampled_from((0.0, 1.5, -2.0)),
)
def test_the_best_span_is_that_of_a_search_over_all_of_them(
    seed: int, longest: int, windows: int, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    context, rows = "abcdefghijklmnop", []
    for w in range(windows):
        spans = [None, None, *((w * 4 + i, w * 4 + i + 1) for i in range(6)), None]
        rows.append(Row(tuple(range(9)), spans=tuple(spans)))
    logits = [torch.tensor(rng.normal(size=(9, 2)), dtype=torch.float32) for _ in rows]
    example = asked(0, "q", context)
    best, text = -1e9, ""
    for row, scores in zip(rows, logits, strict=True):
        for s in range(9):
            for e in range(s, min(9, s + longest)):
                if row.spans[s] and row.spans[e] and float(scores[s, 0] + scores[e, 1]) > best:
                    best, text = float(scores[s, 0] + scores[e, 1]), context[row.spans[s][0] : row.spans[e][1]]
    encoded = Encoded(tuple(rows))
    assert read(Head("span"), example, encoded, logits, longest=longest).text == text
    nothing = min(float(x[0].sum()) for x in logits)
    said = read(Head("span", no_answer="none"), example, encoded, logits, longest=longest, threshold=threshold).text
    assert said == ("none" if nothing - best > threshold else text)


# -- whole methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_methods_learn_save_and_load_with_the_same_answers(bases: Any, tmp_path: Path, method: str, head: str) -> None:
    base, task = bases("bert"), task_of(head)
    made = get_method(method)
    rate = {"full": 2e-3, "lora": 1e-2}[method]
    options = parse_options(made, {"learning_rate": rate, "validations": 4, "patience": 9})
    check_defined(base, made, options)
    check_fits(base, task, made, options)
    adapted = made.fit(base, task, Budget(epochs=16), options, Run(tmp_path / "fit"))
    said = answer(adapted, task.test, Sampling())
    metrics = values(judge(said.texts, task.test, task.metrics), task.test)
    assert metrics[task.metrics[0]] > 0.8, (metrics, said.texts)
    assert adapted.record.flops > 0
    assert adapted.record.trainable_parameters > 0
    adapted.save(tmp_path / "saved")
    loaded = load_adapted(tmp_path / "saved", base)
    assert answer(loaded, task.test, Sampling()).texts == said.texts
    if method == "full":  # nothing of ours is needed to use it
        name = type(adapted.engine.model.hf).__name__
        hf = getattr(transformers, name).from_pretrained(tmp_path / "saved").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
        if head == "classification":
            inputs = tokenizer(*task.test[0].segments, return_tensors="pt")
            assert hf.config.id2label[int(hf(**inputs).logits.argmax())] == said.texts[0]
        if head == "tagging":
            inputs = tokenizer(list(task.test[0].words), is_split_into_words=True, return_tensors="pt")
            firsts = [inputs.word_ids().index(w) for w in range(len(task.test[0].words))]
            ids = hf(**inputs).logits[0].argmax(1)[firsts].tolist()
            assert " ".join(hf.config.id2label[i] for i in ids) == said.texts[0]


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "deberta-v2"])
def test_other_encoders_learn_with_lora_and_their_whole_heads_are_saved(bases: Any, tmp_path: Path, kind: str) -> None:
    base, task = bases(kind), task_of("classification")
    made = get_method("lora")
    options = parse_options(made, {"learning_rate": 1e-2})
    adapted = made.fit(base, task, Budget(steps=8), options, Run(tmp_path / "fit"))
    adapted.save(tmp_path / "saved")
    loaded = load_adapted(tmp_path / "saved", base)
    examples = task.test[:6]
    assert (
        answer(loaded, examples, Sampling()).answers[0].details
        == answer(adapted, examples, Sampling()).answers[0].details
    )


def test_head_trains_nothing_but_the_head(bases: Any, tmp_path: Path) -> None:
    base, task = bases("bert"), task_of("classification")
    made = get_method("head")
    adapted = made.fit(base, task, Budget(steps=5), parse_options(made, {"learning_rate": 1e-2}), Run(tmp_path))
    before, after = base.model.hf.state_dict(), adapted.engine.model.hf.base_model.state_dict()
    own = [n for n in after if "pooler" not in n]
    assert all(torch.equal(before[n], after[n]) for n in own)
    # the folder has no pooler (it was saved under a head for masked words), so that one is new and is trained
    assert adapted.record.trainable_parameters == 32 * 3 + 3 + 32 * 32 + 32
    frozen = get_method("full")
    options = parse_options(frozen, {"learning_rate": 1e-3, "freeze_layers": 1})
    half = frozen.fit(
        base, task, Budget(steps=2), options, Run(tmp_path / "half")
    ).engine.model.hf.base_model.state_dict()
    moved = {n for n in own if not torch.equal(before[n], half[n])}
    assert any("layer.1." in n for n in moved)
    assert not any("layer.0." in n or "word_embeddings" in n for n in moved)


def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(bases: Any, tmp_path: Path) -> None:
    base, task, made = bases("bert"), task_of("span"), get_method("full")
    options = parse_options(made, {"learning_rate": 1e-3})
    whole = made.fit(base, task, Budget(steps=8), options, Run(tmp_path / "a"))
    made.fit(base, task, Budget(steps=8), options, Run(tmp_path / "b", until=0.5))
    rest = made.fit(base, task, Budget(steps=8), options, Run(tmp_path / "b"))
    for a, b in zip(whole.engine.model.hf.parameters(), rest.engine.model.hf.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_validation_answer_that_is_no_number_is_left_out_of_a_regression(bases: Any) -> None:
    task, base = task_of("regression"), bases("bert")
    first, *others = task.validation
    task = replace(task, validation=(replace(first, answers=("not known",)), *others))
    made = headed(base, head_of(task, 0))
    objective = HeadLoss.build(made, task, parse_options(get_method("full"), {"batch_size": 4}), limit=32, seed=0)
    assert sum(b.examples for b in objective.validation()) == len(others)
    assert objective.notes == [f"1 of {len(others) + 1} validation examples were left out: they have no target"]


def test_conversations_are_answered_too(bases: Any, tmp_path: Path) -> None:
    base, task, made = bases("bert"), task_of("span"), get_method("full")
    options = parse_options(made, {"learning_rate": 1e-3})
    adapted = made.fit(base, task, Budget(steps=4), options, Run(tmp_path))
    question, context = task.test[1].segments
    talk = (Message("user", f"{context}\n\n{question}"),)
    (one,) = adapted.generate([talk], Sampling())
    assert one.text == answer(adapted, task.test[1:2], Sampling()).texts[0] == "".join(adapted.stream(talk, Sampling()))
    with pytest.raises(KamertonError, match="put an empty line between"):
        adapted.generate([(Message("user", "no pair"),)], Sampling())


def write(folder: Path, **changes: Any) -> Path:
    rows = [
        {"text": f"the {c} house {i} stands in {p}", "label": p} for i in range(20) for c in ("red", "blue")
        for p in ("Oslo", "Rome")
    ]  # fmt: skip
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "task": {"data": "task.jsonl", "split": {"validation": 12, "test": 24}},
        "base": {"model": str(tiny_encoders.save(folder / "base")), "dtype": "float32"},
        "methods": ["majority", {"full": {"learning_rate": 2e-3}}], "seeds": 2,
        "budget": {"epochs": 8}, **changes,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_a_comparison_of_methods_on_an_encoder_ends_with_a_verdict_and_resumes(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    first = api.compare(recipe, output=tmp_path / "run", workers=1, progress=False)
    rows = {row["label"]: row for row in first.results["verdict"]["rows"]}
    assert not first.failed
    assert first.results["verdict"]["best"][0] == "full"
    assert rows["full"]["value"] > 0.9 > 0.7 > rows["majority"]["value"]
    cell = tmp_path / "run/cells/full/seed-1/cell.json"
    before, kept = cell.read_text(), (tmp_path / "run/cells/full/seed-0/cell.json").stat().st_mtime_ns
    cell.unlink()
    api.compare(recipe, output=tmp_path / "run", workers=1, progress=False)
    assert json.loads(cell.read_text())["metrics"] == json.loads(before)["metrics"]
    assert (tmp_path / "run/cells/full/seed-0/cell.json").stat().st_mtime_ns == kept
    model = api.load(tmp_path / "run")
    best = first.adapter("full").parent / "cell.json"
    assert api.evaluate(model, recipe).metrics["accuracy"] == json.loads(best.read_text())["metrics"]["accuracy"]


def test_the_majority_says_what_training_examples_say_most(bases: Any, tmp_path: Path) -> None:
    made = get_method("majority")
    for head, wanted in (("regression", "1.0000"), ("tagging", "O"), ("classification", "Oslo"), ("span", "no answer")):
        task = task_of(head)
        if head == "span":
            task = replace(task, train=(*task.train, *[e for e in task.train if not e.spans]))
        adapted = made.fit(bases("bert"), task, Budget(), parse_options(made, {}), Run(tmp_path))
        texts = answer(adapted, task.test, Sampling()).texts
        assert set(" ".join(texts).split()) == set(wanted.split()) if head == "tagging" else set(texts) == {wanted}
        adapted.save(tmp_path / head)
        assert answer(load_adapted(tmp_path / head, bases("bert")), task.test, Sampling()).texts == texts


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_an_encoder_cannot_do_is_refused(bases: Any, folders: Any, tiny_base: Any, tmp_path: Path) -> None:
    base, task = bases("bert"), task_of("classification")
    for name in ("zero-shot", "few-shot", "prompt-tuning", "prefix-tuning"):
        made = get_method(name)
        with pytest.raises(
            RecipeError,
            match=r"not defined for an encoder base \(Bert.*; use a causal base, or one of: majority, lora, full, head",
        ):
            check_defined(base, made, parse_options(made, {}))
    lora = get_method("lora")
    with pytest.raises(RecipeError, match="with objective dpo is not defined"):
        check_defined(base, lora, parse_options(lora, {"objective": "dpo"}))
    free = replace(
        task, train=tuple(replace(e, choices=(), answers=(f"text {e.id}",), segments=()) for e in task.train)
    )
    with pytest.raises(TaskError, match="free text, which an encoder does not write"):
        check_fits(base, free, lora, parse_options(lora, {}))
    with pytest.raises(ModelError, match="no MultipleChoice head for"):
        load_base(_without_choice(tmp_path), head=Head("choice"))
    with pytest.raises(KamertonError, match="answers nothing without a trained head"):
        api.load(folders("bert"))
    causal, head = tiny_base("llama"), get_method("head")
    with pytest.raises(RecipeError, match="only an encoder is given a head"):
        check_fits(causal, task, head, parse_options(head, {}))
    with pytest.raises(RecipeError, match="gets no head"):
        check_fits(causal, task, lora, parse_options(lora, {"head": {"stride": 8}}))


def _without_choice(folder: Path) -> Path:
    made = tiny_encoders.tokenizer("bert")
    config = transformers.AutoConfig.for_model(
        "esm", vocab_size=len(made), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        pad_token_id=0, max_position_embeddings=64, mask_token_id=4,
    )  # fmt: skip
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def test_records_keep_what_encoders_read() -> None:
    for head in HEADS:
        for example in task_of(head).test:
            assert example_from(json.loads(json.dumps(record_of(example)))) == example
    plain = Example("1", (Message("user", "a"),), ("b",))
    assert set(record_of(plain)) == {"id", "messages", "answers", "choices", "reasoning", "group"}

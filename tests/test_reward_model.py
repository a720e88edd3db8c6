"""Reward models: losses against TRL's and by hand, learning, the saved folder in plain transformers, the report."""

from __future__ import annotations

import itertools
import json
import re
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
from torch import Tensor, nn

import kamerton as kt
import tiny
from judged_words import judged, words_task
from kamerton.assessment.reward_accuracy import measure
from kamerton.assessment.reward_page import reward_page
from kamerton.base import Base, load_base
from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.inference.reward_model import RewardModel
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Run
from kamerton.methods.reward_model import classifier, padding, save_reward_model, train_reward_model
from kamerton.objectives import reward_modeling
from kamerton.objectives.reward_modeling import (
    Judgement,
    Judgements,
    RewardModeling,
    RewardOptions,
    ScalarHead,
    in_order,
    judgement_batches,
    judgements,
    plackett_luce,
)
from kamerton.reward_models import evaluate_reward_model
from kamerton.tasks.example import Example, Graded, Message, Task
from kamerton.training import Budget, fit
from kamerton.training.loop import Settings
from kamerton.tuning import get_parameterisation

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = words_task(24, 8, 8)


def started(base: Base, kind: str = "full", *, task: Task = SMALL, max_tokens: int = 4096, seed: int = 3,
            **options: Any) -> tuple[RewardModeling, Any, nn.ModuleDict]:  # fmt: skip
    """An objective with a model and a head that have an opinion already."""
    parameterisation = get_parameterisation(kind)
    tuned = parameterisation.attach(base, parameterisation.options(), task, 0)
    head = ScalarHead(base.model.config.hidden_size)
    torch.manual_seed(seed)
    nn.init.normal_(head.score.weight, std=0.3)
    objective = RewardModeling(base.renderer, task.train, task.validation, head, RewardOptions(**options),
                               batch_size=6, max_tokens=max_tokens, limit=None, seed=0)  # fmt: skip
    return objective, tuned, nn.ModuleDict({"model": tuned.module, "head": head})


def loss_and_gradient(objective: RewardModeling, tuned: Any, module: nn.Module, batches: Any
                      ) -> tuple[float, dict[str, Tensor]]:  # fmt: skip
    count, total = sum(b.count for b in batches), 0.0
    for batch in batches:
        loss = objective.loss(tuned.model, batch).total / count
        loss.backward()
        total += float(loss.detach())
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return total, found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():  # rounding is that of the largest among the summands
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradient / size, other[name] / size, atol=1e-5, rtol=1e-4, msg=name)


def with_margins(task: Task) -> Task:
    return replace(task, train=tuple(replace(e, margin=0.1 * i) for i, e in enumerate(task.train)))


# -- against TRL, and by hand -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_trainer(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's RewardTrainer on the tiny model with a head; its import takes long."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    model = classifier(small_base.reload().model.hf, small_base, ScalarHead(48))
    model.requires_grad_(True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_base.info.source)
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    arguments = RewardConfig(output_dir=str(tmp_path_factory.mktemp("trl")), report_to=[], use_cpu=True, bf16=False,
                             gradient_checkpointing=False)  # fmt: skip
    rows = [{"prompt": "a", "chosen": " red", "rejected": " blue"}]
    return RewardTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.mark.parametrize("options", [{}, {"margin": True}, {"centre": 0.05}])
def test_loss_and_gradient_are_those_of_trl(small_base: Base, trl_trainer: Any, options: dict[str, Any]) -> None:
    task = with_margins(SMALL) if "margin" in options else SMALL
    objective, tuned, module = started(small_base, task=task, **options)
    tuned.model.hf.get_input_embeddings().padding_idx = None  # transformers gives the base's padding no gradient
    batches = objective.batches(1, tuned.model)
    ours, gradient = loss_and_gradient(objective, tuned, module, batches)
    members = [m for b in batches for m in b.members]
    rows = [m.rows[0] for m in members] + [m.rows[1] for m in members]
    ids = torch.full((len(rows), max(len(r.tokens) for r in rows)), padding(small_base))
    mask = torch.zeros_like(ids)
    for i, r in enumerate(rows):
        ids[i, : len(r.tokens)], mask[i, : len(r.tokens)] = torch.tensor(r.tokens), 1
    theirs = trl_trainer.model
    with torch.no_grad():
        for name, own in theirs.base_model.named_parameters():
            given = tuned.model.hf.base_model.get_parameter(name)
            own[: len(given)] = given  # the embeddings have a token more, for padding
        theirs.score.weight.copy_(objective.head.score.weight)
    theirs.zero_grad()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "margin" in options:
        inputs["margin"] = torch.tensor([m.margin for m in members])
        assert len(set(inputs["margin"].tolist())) == 6
    trl_trainer.args.center_rewards_coefficient = options.get("centre")
    loss = trl_trainer.compute_loss(theirs, inputs)
    loss.backward()
    assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
    known = {re.sub(r"^model\.", "model.model.", n).replace("score.", "head.score.", 1): p.grad
             for n, p in theirs.named_parameters() if p.grad is not None}  # fmt: skip
    assert_same(gradient, {n: g[: len(gradient[n])] for n, g in known.items()})


rewards = st.lists(st.floats(-3, 3), min_size=2, max_size=5)


@settings(max_examples=40)
@given(rewards, st.randoms())
def test_a_ranking_is_picked_one_after_another(values: list[float], rng: Any) -> None:
    """Plackett–Luce by hand, in any order of the answers; of two answers it is the loss of a pair."""
    k = len(values)
    order = rng.sample(range(k), k)
    found = float(plackett_luce(torch.tensor(values, dtype=torch.float64), [float(order[i]) for i in range(k)]))
    best_first = sorted(range(k), key=lambda i: -order[i])
    chance = 1.0
    for place, i in enumerate(best_first):
        chance *= np.exp(values[i]) / sum(np.exp(values[j]) for j in best_first[place:])
    assert found == pytest.approx(-np.log(chance), abs=1e-9)
    if k == 2:
        better, worse = (values[i] for i in best_first)
        assert found == pytest.approx(
            float(reward_modeling.pairwise(torch.tensor(better), torch.tensor(worse))), abs=1e-6
        )


def test_the_chances_of_all_rankings_add_up_to_one() -> None:
    values = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    total = sum(np.exp(-float(plackett_luce(values, order))) for order in itertools.permutations([0.0, 1.0, 2.0, 3.0]))
    assert total == pytest.approx(1.0)


def test_answers_with_equal_scores_are_not_held_against_each_other() -> None:
    values = torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)
    alone = [float(reward_modeling.pairwise(values[i], values[2])) for i in (0, 1)]
    assert float(plackett_luce(values, [2.0, 2.0, 1.0])) == pytest.approx(sum(alone))


def test_thumbs_are_judged_one_by_one(small_base: Base) -> None:
    objective, tuned, _ = started(small_base)
    up, down = (replace(e, graded=(Graded(e.graded[0].answer, score),))
                for e, score in zip(SMALL.train[:2], (1.0, 0.0), strict=True))  # fmt: skip
    found, notes = judgements(small_base.renderer, [up, down], None, "training")
    assert [m.scores for m in found] == [(1.0,), (0.0,)]
    assert notes == []
    (batch,) = judgement_batches(found, 4096)
    values = objective.head(reward_modeling.last_hidden(tuned.model, batch.batch)).tolist()
    by_hand = sum(np.log1p(np.exp(v * (1 - 2 * m.scores[0]))) for m, v in zip(batch.members, values, strict=True))
    assert float(objective.loss(tuned.model, batch).total.detach()) == pytest.approx(by_hand, abs=1e-5)
    odd = replace(up, graded=(Graded("red", 7.0),))
    tie = replace(up, graded=(Graded("red", 1.0), Graded("blue", 1.0)))
    bare = replace(up, graded=())
    found, notes = judgements(small_base.renderer, [odd, tie, bare, SMALL.train[0]], None, "training")
    assert len(found) == 1
    assert notes[0] == "1 of 4 training examples have no judged answers"
    assert notes[1].startswith("2 of 4 training examples were left out: equal scores, or one answer whose score is")


def test_scales_of_thumbs(small_base: Base) -> None:
    """Up and down as 1 and 0 or as 1 and −1; several thumbs as their mean, with the loss of their mixture."""
    e = SMALL.train[0]
    for scores, shares in (((1.0, -1.0), (1.0, 0.0)), ((1.0, 0.0, 0.75), (1.0, 0.0, 0.75)), ((4.0, 1.0), ())):
        examples = [replace(e, graded=(Graded("red", s),)) for s in scores]
        found, _ = judgements(small_base.renderer, examples, None, "training")
        assert tuple(m.scores[0] for m in found) == shares
    mixed = reward_modeling.judgement_loss(torch.tensor([0.7]), Judgement((), (0.75,)), RewardOptions())
    assert float(mixed) == pytest.approx(0.75 * np.log1p(np.exp(-0.7)) + 0.25 * np.log1p(np.exp(0.7)))


def test_what_is_too_long_is_cut_and_its_end_is_kept(small_base: Base) -> None:
    long = " ".join(tiny.WORDS)
    e = replace(SMALL.train[0], graded=(Graded("red", 1.0), Graded(long, 0.0)))
    (m,), notes = judgements(small_base.renderer, [e], 40, "training")
    assert [len(r.tokens) for r in m.rows][1] == 40
    assert len(m.rows[0].tokens) <= 40
    whole = small_base.renderer.conversation([*e.messages, Message("assistant", long)])
    assert list(m.rows[1].tokens) == whole[-40:]
    assert notes[0].endswith("training answers were cut to 40 tokens")


def test_pairs_in_order_are_counted() -> None:
    assert in_order(np.array([3.0, 1.0, 2.0]), (3.0, 2.0, 1.0)) == (2.0, 3)
    assert in_order(np.array([1.0, 1.0]), (2.0, 1.0)) == (0.5, 1)
    assert in_order(np.array([0.0, 5.0, -1.0]), (1.0, 1.0, 0.0)) == (2.0, 2)
    assert in_order(np.array([-2.0]), (0.2,)) == (1.0, 1)


# -- what must not change anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [2, 4])
def test_passes_and_order_leave_the_loss(small_base: Base, answers: int) -> None:
    task = words_task(12, 4, 4, answers=answers, gap=1)
    found = []
    for max_tokens in (8192, 1):
        objective, tuned, module = started(small_base, task=task, max_tokens=max_tokens)
        batches = objective.batches(0, tuned.model)
        assert len(batches) == (1 if max_tokens > 1 else 6)
        found.append(loss_and_gradient(objective, tuned, module, batches))
    (whole,) = started(small_base, task=task, max_tokens=8192)[0].batches(0, tuned.model)
    turned: list[Judgements] = judgement_batches([m for m in whole.members[::-1]], 8192)
    found.append(loss_and_gradient(objective, tuned, module, turned))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        assert_same(gradient, found[0][1])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_stopped_anywhere_it_goes_on_bit_for_bit(small_base: Base, tmp_path: Path, kind: str) -> None:
    ends = []
    for stops in ((), (1, 2, 3, 4)):
        for stop in (*stops, None):
            objective, tuned, module = started(small_base, kind)
            result = fit(tuned.model, module, objective, Settings(learning_rate=0.01, validations=2), Budget(steps=5),
                         tmp_path / f"{len(stops)}", stop_after=stop)  # fmt: skip
        weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
        curve = [{k: v for k, v in row.items() if k != "seconds"} for row in result.state.curve]
        ends.append((weights, curve, result.validation_loss))
    assert all((ends[0][0][n] == ends[1][0][n]).all() for n in ends[0][0])
    assert ends[0][1:] == ends[1][1:]


# -- learning ---------------------------------------------------------------------------------------------------------


def trained(
    base: Base, folder: Path, kind: str = "full", task: Task | None = None, steps: int = 60, rate: float = 3e-3,
    **reward: Any,
) -> tuple[RewardModel, Any]:  # fmt: skip
    method = get_method(kind)
    options = parse_options(method, {"learning_rate": rate, "batch_size": 16})
    return train_reward_model(base, task or words_task(), method, options, RewardOptions(**reward),  # type: ignore[arg-type]
                              Budget(steps=steps), Run(folder / "fit"))  # fmt: skip


@pytest.mark.parametrize(("kind", "answers"), [("full", 2), ("lora", 2), ("full", 3)])
def test_a_rule_is_learned(small_base: Base, tmp_path: Path, kind: str, answers: int) -> None:
    """95% of pairs that it never saw."""
    task = words_task(400, answers=answers)
    model, record = trained(small_base, tmp_path, kind, task, 60 if kind == "full" else 100)
    found = measure(model, task, "test")
    assert found["accuracy"]["value"] >= 0.95
    assert found["calibration"]["ece"] < 0.15
    assert found["pairs"] == 60 * answers * (answers - 1) // 2
    assert record.curve[0]["loss"] == pytest.approx(np.log(2) if answers == 2 else np.log(6), abs=1e-5)  # no opinion


@pytest.mark.parametrize("answers", [2, 3])
def test_with_the_sign_turned_it_would_not_learn(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    right = reward_modeling.judgement_loss
    monkeypatch.setattr(reward_modeling, "judgement_loss", lambda rewards, *rest: right(-rewards, *rest))
    task = words_task(answers=answers, gap=2)
    model, _ = trained(small_base, tmp_path, task=task, steps=40)
    assert measure(model, task, "test")["accuracy"]["value"] < 0.2


def test_thumbs_alone_teach_the_rule(small_base: Base, tmp_path: Path) -> None:
    def thumbs(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            replace(e, graded=(Graded(e.graded[i % 2].answer, 1.0 - i % 2),)) for i, e in enumerate(examples)
        )  # fmt: skip

    task = words_task(400)
    alone = replace(task, train=thumbs(task.train), validation=thumbs(task.validation))
    model, _ = trained(small_base, tmp_path, task=alone, steps=120, rate=2e-3)
    assert measure(model, task, "test")["accuracy"]["value"] >= 0.85


# -- the folder -------------------------------------------------------------------------------------------------------


def in_plain_transformers(folder: Path, examples: tuple[Example, ...], *, side: str = "right") -> list[float]:
    """Scores of all graded answers as somebody without us computes them: template, padding, one batch."""
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    texts = []
    for e in examples:
        for g in e.graded:
            turns = [*({"role": m.role, "content": m.content} for m in e.messages),
                     {"role": "assistant", "content": g.answer}]  # fmt: skip
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    assert not bool(batch["attention_mask"].all()), "nothing was padded"
    with torch.no_grad():
        out: list[float] = hf(**batch).logits[:, 0].tolist()
    return out


def ours(model: RewardModel, examples: tuple[Example, ...]) -> list[float]:
    return model.score([e.messages for e in examples for _ in e.graded], [g.answer for e in examples for g in e.graded])


def saved(base: Base, folder: Path, kind: str = "full", **more: Any) -> RewardModel:
    model, record = trained(base, folder, kind, steps=6, **more)
    save_reward_model(model, base, record, {"method": kind}, folder)
    return model


@pytest.mark.parametrize("kind", ["full", "lora", "ia3"])
def test_plain_transformers_gives_the_same_scores(small_base: Base, tmp_path: Path, kind: str) -> None:
    model = saved(small_base, tmp_path, kind)
    expected = ours(model, SMALL.test)
    assert np.std(expected) > 0.01
    assert ours(RewardModel.load(tmp_path), SMALL.test) == pytest.approx(expected, abs=1e-6)
    assert in_plain_transformers(tmp_path, SMALL.test) == pytest.approx(expected, abs=1e-5)
    assert in_plain_transformers(tmp_path, SMALL.test, side="left") == pytest.approx(expected, abs=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert len(config["id2label"]) == 1
    # all of its tokens have a meaning in the template: one more was made
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|padding|>"
    assert config["pad_token_id"] == len(small_base.renderer.tokenizer) == config["vocab_size"] - 1
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert {p.suffix for p in tmp_path.iterdir() if p.name.startswith(("model", "pytorch"))} == {".safetensors"}
    # one after another, and a pair at a time: what stands beside an answer changes nothing
    alone = [model.score([e.messages], [g.answer])[0] for e in SMALL.test for g in e.graded]
    assert alone == pytest.approx(expected, abs=1e-5)


def test_padding_is_a_token_that_no_conversation_holds(tmp_path: Path) -> None:
    """The tokenizer's own if it is free; else another that is. Both for a base without a template."""
    found = {}
    for name, pad in (("shared", "<|end|>"), ("own", "<|pad|>")):
        folder = tiny.save(tmp_path / name)
        words = transformers.AutoTokenizer.from_pretrained(folder)
        words.chat_template = None
        if pad != "<|end|>":  # in the place of a token that it has, so that the embeddings hold it
            data = json.loads((folder / "tokenizer.json").read_text().replace("<|system|>", pad))
            (folder / "tokenizer.json").write_text(json.dumps(data))
            settings = (folder / "tokenizer_config.json").read_text().replace("<|system|>", pad)
            (folder / "tokenizer_config.json").write_text(
                json.dumps({**json.loads(settings), "pad_token": pad, "bos_token": "<|user|>"})
            )
        (folder / "chat_template.jinja").unlink()
        base = load_base(folder, dtype="float32", device="cpu")
        assert base.renderer.plain
        model = saved(base, tmp_path / f"reward-{name}")
        found[name] = transformers.AutoTokenizer.from_pretrained(tmp_path / f"reward-{name}").pad_token
        assert in_plain_transformers(tmp_path / f"reward-{name}", SMALL.test) == pytest.approx(
            ours(model, SMALL.test), abs=1e-5
        )
    assert found == {"shared": "<|system|>", "own": "<|pad|>"}  # without a template that one is free


def test_it_is_computed_in_bfloat16_where_the_base_is(small_folder: Path, tmp_path: Path) -> None:
    base = load_base(small_folder, dtype="bfloat16", device="cpu")
    model = saved(base, tmp_path)
    loaded = RewardModel.load(tmp_path)
    assert loaded.hf.dtype == torch.bfloat16
    assert ours(loaded, SMALL.test) == pytest.approx(ours(model, SMALL.test), abs=1e-6)
    assert in_plain_transformers(tmp_path, SMALL.test) == pytest.approx(ours(model, SMALL.test), abs=0.05)


# -- from a supervised fine-tune, the commands, the report ------------------------------------------------------------


def write_judged(folder: Path, base: Path | str, methods: str, task: Task = SMALL, **more: Any) -> Path:
    return tiny.write_recipe(folder, base, methods, task=task, seeds="[0]", **more)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_starts_from_a_supervised_fine_tune(small_base: Base, tmp_path: Path, kind: str) -> None:
    recipe = write_judged(tmp_path / "recipe", small_base.info.source, f"- {kind}: {{learning_rate: 0.02}}")
    tuned = kt.tune(str(recipe), output=tmp_path / "sft", task=SMALL)
    from kamerton.reward_models import train_reward_model as train

    made = train(str(recipe), "lora", output=tmp_path / "reward", start=tmp_path / "sft", task=SMALL,
                 options={"learning_rate": 1e-12, "batch_size": 8})  # fmt: skip
    assert not (tmp_path / "reward" / "start").exists()
    # a rate that moves nothing: the backbone is the fine-tune's
    rows = [list(r.tokens) for r in (small_base.renderer.example(e.messages, "red") for e in SMALL.test[:3])]
    with torch.no_grad():
        one, two = (m.states(rows) for m in (tuned.engine.model, made.model._model))
        base = small_base.model.states(rows)
    for a, b, c in zip(one, two, base, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert float((a - c).abs().max()) > 0.01
    about = json.loads((tmp_path / "reward" / "reward.json").read_text())
    assert about["start"] == str(tmp_path / "sft")
    assert about["fit"]["curve"][0]["step"] == 1


def test_the_report_counts_what_it_says(small_base: Base, tmp_path: Path) -> None:
    """A model that is made up: rewards that are known, figures by hand."""
    model, _ = trained(small_base, tmp_path, steps=1)
    known = iter([2.0, 1.0, 0.0, 1.0, 3.0, 3.0])
    task = Task("known", (), (), judged(3, 0), ("token-f1",))
    model.score = lambda *_, **__: list(known)  # type: ignore[method-assign]
    found = measure(model, task, "test")
    assert found["accuracy"]["value"] == pytest.approx(1.5 / 3)
    gaps = np.array([1.0, -1.0, 0.0])
    assert found["log_loss"] == pytest.approx(np.log1p(np.exp(-gaps)).mean())
    sure = 1 / (1 + np.exp(-np.abs(gaps)))
    assert found["calibration"]["brier"] == pytest.approx(((sure - [1.0, 0.0, 0.5]) ** 2).mean())
    assert found["scores"]["chosen"]["mean"] == pytest.approx(5 / 3)
    assert found["scores"]["rejected"]["median"] == pytest.approx(1.0)
    assert sum(found["histogram"]["chosen"]) == sum(found["histogram"]["rejected"]) == 3
    (wrong,) = found["wrong"]
    assert wrong["rewards"] == [0.0, 1.0]
    wrong["chosen"] = "<script>alert(1)</script>"
    page = reward_page({**found, "model": "known", "kamerton": "0"})
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "50.0% of pairs in the right order" in page
    assert "cannot be told from tossing a coin" in page
    assert not re.search(r"(src|href)=", page)


@pytest.fixture
def cli() -> Callable[..., tuple[int, str]]:
    from typer.testing import CliRunner

    def call(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        return done.exit_code, f"{done.output}{done.exception or ''}"

    return call


@pytest.fixture
def judged_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes whose task has judged answers, whatever their files hold."""
    monkeypatch.setattr("kamerton.reward_models.load_task", lambda _: SMALL)


@pytest.mark.usefixtures("judged_task")
def test_the_commands(small_folder: Path, tmp_path: Path, cli: Callable[..., tuple[int, str]]) -> None:
    recipe, folder = write_judged(tmp_path, small_folder, "- lora: {learning_rate: 0.01}"), tmp_path / "out"
    status, said = cli("reward", "train", recipe, "--output", folder, "--option", "rank=4", "--centre", 0.01)
    assert status == 0, said
    assert f"next: kamerton reward eval {folder} {recipe}" in said
    assert json.loads((folder / "reward.json").read_text())["reward"] == {"margin": True, "centre": 0.01}
    status, said = cli("reward", "eval", folder, recipe)
    assert status == 0, said
    assert re.search(r"accuracy +\d\.\d+ +\(0\.\d+ to [01]\.\d+, 8 pairs\)", said)
    assert "cut" not in said
    assert (folder / "reward-test.html").is_file()
    file = tmp_path / "answers.jsonl"
    e = SMALL.test[0]
    turns = [{"role": m.role, "content": m.content} for m in e.messages]
    rows = [{"prompt": "x y", "answer": "red"}, {"messages": turns, "answer": e.graded[0].answer, "id": 7},
            {"messages": [*turns, {"role": "assistant", "content": e.graded[0].answer}]}]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    status, said = cli("reward", "score", folder, file, "--output", tmp_path / "scored.jsonl")
    assert status == 0, said
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "reward"} for row in scored] == rows
    assert scored[1]["reward"] == pytest.approx(scored[2]["reward"], abs=1e-6)
    assert scored[1]["reward"] == pytest.approx(ours(RewardModel.load(folder), (e,))[0], abs=1e-5)
    file.write_text('{"prompt": "x"}\n')
    assert "answers.jsonl:1: has no prompt and answer" in cli("reward", "score", folder, file)[1]
    file.write_text("\n")
    assert "has no lines" in cli("reward", "score", folder, file)[1]


@pytest.mark.usefixtures("judged_task")
def test_bad_input_is_one_line(
    small_folder: Path, tmp_path: Path, cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_judged(tmp_path, small_folder, "- prompt-tuning\n- lora")
    assert "name one: prompt-tuning, lora" in cli("reward", "train", recipe)[1]
    said = cli("reward", "train", recipe, "prompt-tuning")[1]
    assert "no reward model is made by prompt-tuning: it is saved as plain weights" in said
    assert "use one of: full, lora, qlora, ia3" in said
    assert (
        "no config.json here; give a folder that kamerton reward train wrote"
        in cli("reward", "eval", tmp_path, recipe)[1]
    )
    with pytest.raises(KamertonError, match=r"weights are missing, the first is score\.weight"):
        RewardModel.load(one_label(small_folder, tmp_path / "bare"))
    with pytest.raises(KamertonError, match="is a model with 2 labels, not a causal reward model"):
        RewardModel.load(small_folder)
    with pytest.raises(KamertonError, match="no split 'tests'"):
        evaluate_reward_model(tmp_path, str(recipe), split="tests")
    monkeypatch.setattr("kamerton.reward_models.load_task", lambda _: tiny.colour_task())
    assert "no training example has judged answers; give preference data" in cli("reward", "train", recipe, "lora")[1]
    t5 = tiny.save_encoder_decoder(tmp_path / "t5")
    said = cli("reward", "train", write_judged(tmp_path / "t", t5, "- lora"))[1]
    assert "a reward model" in said
    assert "encoder–decoder" in said


def one_label(source: Path, folder: Path) -> Path:
    """A causal model's folder that says it is a classifier with one label, and has no head."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 1}))
    return folder


def test_a_judgement_counts_its_tokens(small_base: Base) -> None:
    (m,), _ = judgements(small_base.renderer, SMALL.train[:1], None, "training")
    assert isinstance(m, Judgement)
    assert m.tokens == sum(len(r.tokens) for r in m.rows)

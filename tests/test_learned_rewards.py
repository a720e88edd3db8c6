"""Rewards that are models: a reward model against transformers' own forward pass, a judge whose verdicts are known
because its weights were set by hand, and a discriminator that learns beside what it judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, ModelError, RewardError
from kamerton.rewards import build_reward, get_reward
from kamerton.rewards.judge import Judge
from kamerton.rewards.judge_prompts import GRADE, RUBRIC, filled, to_grade
from kamerton.rewards.reward import Learning, flops_of, notes_of
from kamerton.rewards.total import Total
from kamerton.tasks.example import Example, Message, conversation
from kamerton.training.objective import Stateful

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

# -- reward models ----------------------------------------------------------------------------------------------------


def save_classifier(
    folder: Path, *, labels: int = 1, pad: int | None = 0, template: str | None = tiny.TEMPLATE
) -> Path:
    """A random Llama with a classification head, written by transformers alone."""
    import transformers

    words = tiny.tokenizer()
    words.chat_template, words.padding_side = template, "left"
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.1, vocab_size=len(words), bos_token_id=None, eos_token_id=0,
        pad_token_id=pad, num_labels=labels,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    return folder


EXAMPLES = tiny.colour_task().train[:6]
ANSWERS = ["red", "the green river of the market", "", "blue " * 20, "white stone", "apple\nbread"]


@pytest.mark.parametrize("pad", [0, 7, None])
def test_reward_models_score_as_transformers_does(small_base: Base, tmp_path: Path, pad: int | None) -> None:
    """Each conversation alone, written by the model's own template, through transformers' own forward pass."""
    import transformers

    folder = save_classifier(tmp_path / "rm", pad=pad)
    model = build_reward({"reward-model": str(folder)}, small_base, tiny.colour_task())
    values = model(EXAMPLES, ANSWERS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for example, answer, value in zip(EXAMPLES, ANSWERS, values, strict=True):
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        turns.append({"role": "assistant", "content": answer})
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            alone = hf(input_ids=ids).logits[0, 0]
        torch.testing.assert_close(value, float(alone), atol=1e-5, rtol=1e-5)
    assert values.dtype == np.float64
    assert np.ptp(values) > 0.01
    assert hf.config.pad_token_id == model.hf.config.pad_token_id == pad


@pytest.mark.parametrize("pad", [0, 7, None])
def test_a_score_does_not_depend_on_the_batch(small_base: Base, tmp_path: Path, pad: int | None) -> None:
    model = build_reward(
        {"reward-model": str(save_classifier(tmp_path / "rm", pad=pad))}, small_base, tiny.colour_task()
    )
    whole = model(EXAMPLES, ANSWERS)
    alone = [float(model([e], [a])[0]) for e, a in zip(EXAMPLES, ANSWERS, strict=True)]
    np.testing.assert_allclose(whole, alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(EXAMPLES))
    again = model([EXAMPLES[i] for i in order], [ANSWERS[i] for i in order])
    np.testing.assert_allclose(again, whole[order], atol=1e-5)
    assert model([], []).shape == (0,)


def test_a_model_without_padding_reads_the_last_token_whatever_it_is(small_base: Base, tmp_path: Path) -> None:
    import transformers

    folder = save_classifier(tmp_path / "rm", pad=None)
    model = build_reward({"reward-model": str(folder)}, small_base, tiny.colour_task())
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [[5, 6, 0], [7], [8, 9, 3, 1], [4, 0, 0, 2]]
    with torch.no_grad():
        alone = [float(hf(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
    np.testing.assert_allclose(model.scores(rows), alone, atol=1e-5)


def test_conversations_that_are_too_long_are_cut_and_counted(small_base: Base, tmp_path: Path) -> None:
    model = build_reward({"reward-model": str(save_classifier(tmp_path / "rm"))}, small_base, tiny.colour_task())
    long = Example("long", conversation([("system", "Say."), ("user", "stone " * 300)]), ("red",))
    assert model([long, EXAMPLES[0]], ["red", "red"]).shape == (2,)
    assert notes_of(model) == ["reward reward-model: 1 of 2 conversations were cut to 128 tokens"]
    again = build_reward({"reward-model": str(tmp_path / "rm")}, small_base, tiny.colour_task())
    again.restore(model.state())
    assert notes_of(again) == notes_of(model)
    rows = [model.tokens(long.messages, "red"), model.tokens(EXAMPLES[0].messages, "blue " * 300)]
    assert [len(row) for row in rows] == [pytest.approx(128, abs=4), 128]
    assert all(len(row) <= 128 for row in rows)
    kept = model._renderer.tokenizer.decode(rows[0])
    assert "<|system|>Say." in kept
    assert kept.endswith("<|assistant|>red<|end|>\n")


def test_without_a_template_the_bases_renderer_writes_if_the_tokenizer_is_the_same(
    small_base: Base, tmp_path: Path
) -> None:
    task, folder = tiny.colour_task(), save_classifier(tmp_path / "rm", template=None)
    model = build_reward({"reward-model": str(folder)}, small_base, task)
    messages, renderer = EXAMPLES[0].messages, small_base.renderer
    assert model.tokens(messages, "red") == [*renderer.prompt(messages), *renderer.answer("red")]
    file = folder / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    vocabulary["added_tokens"].append({**vocabulary["added_tokens"][-1], "id": 401, "content": "<|other|>"})
    file.write_text(json.dumps(vocabulary))
    for step in ("check", "build"):
        kind = get_reward("reward-model")
        with pytest.raises(ModelError) as caught:
            getattr(kind, step)(small_base, task, kind.options(model=str(folder)))  # type: ignore[call-arg]
        assert str(caught.value) == (
            f"{folder}: it has another tokenizer than small and no chat template to write a conversation by; set "
            "chat_template in its tokenizer_config.json"
        )


def test_what_is_no_reward_model_is_one_line(small_base: Base, small_folder: Path, tmp_path: Path) -> None:
    task, kind = tiny.colour_task(), get_reward("reward-model")
    two = save_classifier(tmp_path / "two", labels=2)
    pickled = shutil.copytree(save_classifier(tmp_path / "rm"), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    headless = shutil.copytree(small_folder, tmp_path / "headless")
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(
        json.dumps({**config, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}})
    )
    code = shutil.copytree(tmp_path / "rm", tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (code / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    (code / "own.py").write_text("raise SystemExit('code was run')\n")
    for folder, line in (
        (two, "it has 2 labels, and a reward model has one; name a model that was trained as a reward model"),
        (pickled, "the weights are pickled (pytorch_model.bin), which can run code when they are read; convert them to "
         "safetensors"),
        (headless, "it is no reward model: 1 weights are missing, the first is score.weight; name a model with a trained "
         "reward head"),
    ):  # fmt: skip
        with pytest.raises(ModelError) as caught:
            kind.build(small_base, task, kind.options(model=str(folder)))  # type: ignore[call-arg]
        assert str(caught.value) == f"{folder}: {line}"
    with pytest.raises(
        ModelError, match=r"code: the reward model cannot be loaded \(ValueError: .*\); check its files"
    ):
        kind.check(small_base, task, kind.options(model=str(code)))  # type: ignore[call-arg]


# -- judges -----------------------------------------------------------------------------------------------------------


def save_judge(
    folder: Path, logits: dict[str, float], *, taste: float = 0.0, good: str = " stone", bad: str = " cloud"
) -> Path:
    """A Llama whose verdicts are known, as its weights are set by hand.

    The logit of each token in `logits` is the same after every text, and that of all others is 0. With a `taste`, its
    one attention head looks mostly at what stands late in the text, and what it finds (`good` counts up, `bad` down)
    is added to the logit of "B" and taken off that of "A": it likes the better answer in whatever order.
    """
    import transformers

    words = tiny.tokenizer()
    width, head = 8, 4
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=head, max_position_embeddings=4096, vocab_size=len(words), bos_token_id=None, eos_token_id=0,
        pad_token_id=0, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        ids = {text: words(text, add_special_tokens=False)["input_ids"] for text in (good, bad, *logits)}
        assert all(len(found) == 1 for found in ids.values()), ids
        embedding, layer = model.model.embed_tokens.weight, model.model.layers[0]
        embedding[:, 0] = 1.0
        embedding[ids[good][0], 1], embedding[ids[bad][0], 1] = 1.0, -1.0
        # the second pair of a head's numbers turns by 1 / 1000 a token: what is far away counts less
        layer.self_attn.q_proj.weight[1, 0] = layer.self_attn.k_proj.weight[1, 0] = 2.0
        layer.self_attn.v_proj.weight[0, 1] = 1.0
        layer.self_attn.o_proj.weight[2, 0] = taste
        for text, logit in logits.items():
            model.lm_head.weight[ids[text][0], 0] = logit / width**0.5
        model.lm_head.weight[words("A")["input_ids"][0], 2] = -5.0
        model.lm_head.weight[words("B")["input_ids"][0], 2] = 5.0
    model.save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    return folder


def judge(folder: Path, **options: Any) -> Judge:
    base = load_base(folder, dtype="float32", device="cpu", verify=False)
    kind = get_reward("judge")
    return Judge(base, kind.options(**options))  # type: ignore[arg-type]


GOOD = ["the stone of stone", "a stone on a stone", "stone in stone of stone"]
BAD = ["the cloud of cloud", "a cloud on a cloud", "cloud in cloud of cloud"]
QUESTIONS = [
    Example(f"q{n}", conversation([("user", f"Say it, {n}.")]), ("red",)) for n in range(len(GOOD))
]  # fmt: skip


def test_a_judge_of_taste_says_the_same_in_both_orders(tmp_path: Path) -> None:
    """Its verdict is put back in the order in which the answers were given."""
    one = judge(save_judge(tmp_path / "judge", {"A": 12.0, "B": 12.0, "C": 8.0}, taste=4000.0))
    for first, second, verdict in ((GOOD, BAD, 1), (BAD, GOOD, -1)):
        found = one.compare(QUESTIONS, first, second)
        assert found.verdicts.tolist() == [verdict] * 3
        assert found.orders.tolist() == [[verdict, verdict]] * 3
        assert (found.order_bias, found.ties, found.shown_first) == (0, 0, 0.5)
        assert ((found.preference - 0.5) * verdict > 0.1).all()
    same = one.compare(QUESTIONS, GOOD, GOOD)
    np.testing.assert_allclose(same.preference, 0.5, atol=1e-6)
    assert notes_of(one) == [
        "judge judge: 9 pairs compared in both orders; the verdict changes with the order for 33%, 3 ties, 0 off the "
        "format, 0 prompts cut to fit"
    ]


@pytest.mark.parametrize("place", ["A", "B"])
def test_a_judge_that_likes_a_place_is_found_out(tmp_path: Path, place: str) -> None:
    logits = {**dict.fromkeys("ABC", 10.0), place: 12.0}
    one = judge(save_judge(tmp_path / "judge", logits))
    found = one.compare(QUESTIONS, GOOD, BAD)
    liked = 1 if place == "A" else -1
    assert found.orders.tolist() == [[liked, -liked]] * 3
    assert found.verdicts.tolist() == [0, 0, 0]
    assert (found.order_bias, found.ties, found.shown_first) == (1, 1, float(place == "A"))
    np.testing.assert_allclose(found.preference, 0.5, atol=1e-6)  # the mean of both orders
    assert not found.off.any()


def test_a_judge_of_ties(tmp_path: Path) -> None:
    one = judge(save_judge(tmp_path / "judge", {"A": 9.0, "B": 9.0, "C": 12.0}))
    found = one.compare(QUESTIONS, GOOD, BAD)
    assert (found.verdicts.tolist(), found.order_bias, found.ties) == ([0, 0, 0], 0, 1)
    assert one.compare([], [], []).order_bias == 0


def test_grades_are_expectations_over_the_judges_own_probabilities(tmp_path: Path) -> None:
    """Against transformers' own forward pass: 10 is a 1 and then a 0, and 1 is a 1 and then none."""
    import transformers

    logits = {str(d): 8.0 + (0.3 * d) % 1.7 for d in range(10)} | {"1": 11.0, "2": 10.5, "3": 10.8}
    folder = save_judge(tmp_path / "judge", logits)
    one = judge(folder)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def following(text: str) -> dict[str, float]:
        with torch.no_grad():
            p = hf(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double().softmax(-1)
        return {d: float(p[tokenizer(d)["input_ids"][0]]) for d in map(str, range(10))}

    start = one._engine.renderer.text(to_grade(GRADE, QUESTIONS[0], "red", RUBRIC, 1, 10)) + "Grade: "
    p, after = following(start), following(start + "1")
    mass = {grade: p[str(grade)] for grade in range(2, 10)} | {1: p["1"] * (1 - after["0"]), 10: p["1"] * after["0"]}
    total = sum(mass.values())
    assert total > 0.5
    expected = sum(grade * m for grade, m in mass.items()) / total
    np.testing.assert_allclose(one.grades(QUESTIONS[:1], ["red"]), [expected], rtol=1e-5)
    np.testing.assert_allclose(one(QUESTIONS[:1], ["red"]), [(expected - 1) / 9], rtol=1e-5)
    assert one(QUESTIONS[:2], ["<think>red", "red"]).tolist() == [0, pytest.approx((expected - 1) / 9)]
    assert notes_of(one) == ["judge judge: 3 answers graded, 0 of them off the format, 0 cut to fit"]
    few = judge(folder, lowest=1, highest=3)
    mean = (p["1"] + 2 * p["2"] + 3 * p["3"]) / (p["1"] + p["2"] + p["3"])
    np.testing.assert_allclose(few.grades(QUESTIONS[:1], ["red"]), [mean], rtol=1e-5)


def test_a_judge_that_answers_off_its_format_is_counted_or_refused(tmp_path: Path) -> None:
    one = judge(save_judge(tmp_path / "judge", {"A": 12.0, "B": 12.0, "7": 2.0}))
    one.compare(QUESTIONS, GOOD, BAD)
    with pytest.raises(RewardError) as caught:
        one(QUESTIONS, GOOD)
    assert str(caught.value) == (
        "reward judge: judge is off its format each time (3 answers graded, the first to example q0); name another model, or "
        "another grade_prompt"
    )
    silent = judge(save_judge(tmp_path / "silent", {"7": 12.0}))
    assert silent.grades(QUESTIONS, GOOD) == pytest.approx([7, 7, 7], abs=0.1)
    with pytest.raises(RewardError) as caught:
        silent.compare(QUESTIONS, GOOD, BAD)
    assert str(caught.value) == (
        "reward judge: silent is off its format each time (3 pairs compared, the first to example q0); name another model, "
        "or another compare_prompt"
    )
    # good answers take the probability of digits away: some are off, and they are counted
    mixed = judge(save_judge(tmp_path / "mixed", {"5": 7.0}, taste=400.0), grade_prompt="{answer}")
    mixed.grades(QUESTIONS, ["red", GOOD[0], "blue"])
    assert notes_of(mixed) == ["judge mixed: 3 answers graded, 1 of them off the format, 0 cut to fit"]
    again = judge(tmp_path / "mixed")
    again.restore(mixed.state())
    assert notes_of(again) == notes_of(mixed)


def test_the_base_is_its_own_judge_or_another_model_is(small_base: Base, tmp_path: Path) -> None:
    folder = save_judge(tmp_path / "judge", {"9": 12.0})
    task = tiny.colour_task()
    other = build_reward({"judge": {"model": str(folder)}}, small_base, task)
    assert other(EXAMPLES[:2], ["red", "blue"]) == pytest.approx([8 / 9, 8 / 9], abs=0.02)
    own = build_reward("judge", small_base, task)
    assert own._engine.model is small_base.model
    with pytest.raises(
        KamertonError, match=r"small is off its format each time \(2 answers graded, the first to example colour-0\)"
    ):
        own(EXAMPLES[:2], ["red", "blue"])


def test_an_encoder_decoder_can_be_a_judge(tmp_path: Path) -> None:
    """What it would say behind "Grade: ", by transformers' own forward pass."""
    import transformers

    folder = tiny.save_encoder_decoder(tmp_path / "t5")
    one = judge(folder, lowest=2, highest=3)
    conversations = [to_grade("{question}{answer}", QUESTIONS[0], "red", RUBRIC, 2, 3)]
    mass, cut = one._masses(conversations, "Grade: ", ["2", "3"])
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    renderer = one._engine.renderer
    with torch.no_grad():
        start = torch.tensor([[0, *renderer.answer("Grade: ", end=False)]])
        logits = hf(input_ids=torch.tensor([renderer.prompt(conversations[0])]), decoder_input_ids=start).logits[0, -1]
    p = logits.double().softmax(-1)[[renderer.answer(d, end=False)[0] for d in "23"]]
    np.testing.assert_allclose(mass, [p.numpy()], rtol=1e-4)
    assert cut == 0


def test_prompts_are_filled_in_one_pass() -> None:
    asked = Example("q", conversation([("system", "Be {rubric}."), ("user", "{answer}?")]), ("42",))
    (turn,) = to_grade("{rubric}|{question}|{answer}|{reference}|{lowest}-{highest}", asked, "{question}", "R", 1, 5)
    assert turn == Message("user", "R|system: Be {rubric}.\nuser: {answer}?|{question}|42|1-5")
    assert filled("{a} {b}", a="{b}") == "{b} {b}"


# -- discriminators ---------------------------------------------------------------------------------------------------


def batches(steps: int, task: Any) -> list[tuple[list[Example], list[str]]]:
    """What a policy would say that always says the same."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(steps):
        picked = [task.train[i] for i in rng.integers(len(task.train), size=8)]
        out.append((picked, ["window" for _ in picked]))
    return out


def bits(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What decides what happens next; what it took is no part of it, since a resumed run reads references again."""
    left = {name: value for name, value in state.items() if not name.endswith("flops")}
    return {name: (value.shape, value.dtype, value.clone().numpy().tobytes()) for name, value in left.items()}


@pytest.mark.parametrize("kind", ["factored", "attention"])
def test_a_discriminator_learns_to_tell_references_from_rollouts(small_base: Base, kind: str) -> None:
    """On questions that it never saw too; before it has learned anything, it says nothing."""
    task = tiny.colour_task()
    reward = build_reward({"discriminator": {"discriminator": kind, "rate": 0.01}}, small_base, task)
    assert isinstance(reward, Learning)
    assert isinstance(reward, Stateful)
    before = torch.get_rng_state()
    assert reward(task.train[:2], ["red", "window"]).tolist() == [0, 0]
    for step, (examples, answers) in enumerate(batches(25, task)):
        reward(examples, answers)
        reward.observe(examples, answers, step)
    asked = task.test
    real, fake = reward(asked, [e.answers[0] for e in asked]), reward(asked, ["window"] * len(asked))
    assert (real > fake).mean() > 0.9
    assert real.mean() - fake.mean() > 1
    assert reward.judges.control.held_out > 0.85
    assert "AUC of 0." in notes_of(reward)[0]
    assert torch.equal(before, torch.get_rng_state())  # the policy's random numbers are its own


@pytest.mark.parametrize("kind", ["factored", "attention"])
def test_a_discriminator_resumes_bit_for_bit(small_base: Base, kind: str) -> None:
    task, spec = tiny.colour_task(), {"discriminator": {"discriminator": kind, "replay": 24}}
    told = batches(6, task)
    whole = build_reward(spec, small_base, task)
    values = []
    for step, (examples, answers) in enumerate(told):
        values.append(whole(examples, answers))
        whole.observe(examples, answers, step)
    first = build_reward(spec, small_base, task)
    for step, (examples, answers) in enumerate(told[:3]):
        first(examples, answers)
        first.observe(examples, answers, step)
    second = build_reward(spec, small_base, task)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for step, (examples, answers) in list(enumerate(told))[3:]:
        assert second(examples, answers).tobytes() == values[step].tobytes()
        second.observe(examples, answers, step)
    assert bits(second.state()) == bits(whole.state())
    other = build_reward({"discriminator": {"discriminator": kind, "seed": 1}}, small_base, task)
    assert bits(other.state()) != bits(build_reward(spec, small_base, task).state())


def test_what_rewards_compute_is_counted(small_base: Base, tmp_path: Path) -> None:
    """By PyTorch's own counter, and over a stop; the policy's own work is not in it."""
    from torch.utils.flop_counter import FlopCounterMode

    task = tiny.colour_task()
    asked, answers = task.train[:6], [e.answers[0] for e in task.train[:6]]
    before = small_base.model.work.copy()
    grader = save_judge(tmp_path / "judge", {str(d): 11.0 for d in range(10)})
    for spec in ({"reward-model": str(save_classifier(tmp_path / "rm"))}, {"judge": {"model": str(grader)}}):
        reward = build_reward(spec, small_base, task)
        assert flops_of(reward) == 0
        with FlopCounterMode(display=False) as counter:
            reward(asked, answers)
        # the counter does not see this kernel's attention: a tenth of the classifier's, most of a judge of width 8
        share = counter.get_total_flops() / flops_of(reward)
        assert (0.85 if "reward-model" in spec else 0.15) < share <= 1
        again = build_reward(spec, small_base, task)
        again.restore(reward.state())  # type: ignore[attr-defined]
        assert flops_of(again) == flops_of(reward)
        total = build_reward([spec, "exact"], small_base, task)
        total(asked, answers)
        assert flops_of(total) == pytest.approx(flops_of(reward))
    assert small_base.model.work == before
    assert flops_of(build_reward("exact", small_base, task)) == 0
    learner = build_reward("discriminator", small_base, task)
    learner(asked, answers)
    once = flops_of(learner)
    learner(asked, answers)
    assert flops_of(learner) == once > 0, "the last call's features are remembered"


def test_a_discriminator_inside_a_sum_learns_and_resumes(small_base: Base) -> None:
    task, spec = tiny.colour_task(), ["exact", {"discriminator": {}, "weight": 0.5}]
    total = build_reward(spec, small_base, task)
    assert isinstance(total, Total)
    assert isinstance(total, Learning)
    for step, (examples, answers) in enumerate(batches(4, task)):
        total(examples, answers)
        total.observe(examples, answers, step)
    again = build_reward(spec, small_base, task)
    again.restore(total.state())
    assert bits(again.state()) == bits(total.state())
    assert all(name.startswith("1/") for name in total.state())
    answers = [e.answers[0] for e in EXAMPLES]
    np.testing.assert_array_equal(again(EXAMPLES, answers), total(EXAMPLES, answers))
    assert notes_of(total) == notes_of(again) != []
    parts = total.parts(EXAMPLES, answers)
    np.testing.assert_allclose(parts["exact"] + 0.5 * parts["discriminator"], total(EXAMPLES, answers))


def test_a_sum_of_scores_and_a_reference_judged_by_who_never_saw_it(small_base: Base) -> None:
    task = tiny.colour_task()
    mean, total = (
        build_reward({"discriminator": {"aggregate": a, "controller": False}}, small_base, task)
        for a in ("mean", "sum")
    )
    answers = ["red", "the river", "a green stone on the market"]
    tokens = [len(small_base.renderer.answer(answer)) for answer in answers]
    np.testing.assert_allclose(mean(EXAMPLES[:3], answers) * tokens, total(EXAMPLES[:3], answers), rtol=1e-5)
    assert len({mean._fold_of(e) for e in task.train}) == 2
    small = build_reward("discriminator", small_base, tiny.colour_task(train=5))
    assert small.folds == 1
    assert "one judges what it was trained on" in notes_of(small)[0]

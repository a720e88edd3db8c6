"""Parameterisations: loss and gradient against peft with transformers' forward, where they start, what they save."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import architectures
import tiny
from kamerton.base import Base, load_base
from kamerton.base.quantise import settle
from kamerton.errors import KamertonError, ModelError, RecipeError, TaskError
from kamerton.rendering import Rendered
from kamerton.tasks.example import Task
from kamerton.training.batches import make_batch
from kamerton.training.checkpoint import trained_weights
from kamerton.tuning import PARAMETERISATIONS, Tuned, get_parameterisation
from kamerton.tuning.encoders import fold
from kamerton.tuning.starts import example_tokens

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("lora", "dora", "qlora", "prompt-tuning", "prefix-tuning", "p-tuning", "ia3", "adapter", "full")
PROMPTS = ("prompt-tuning", "prefix-tuning", "p-tuning")
INJECTED = ("lora", "ia3", "adapter")
THROUGH_PEFT = (*INJECTED, *PROMPTS)
ARCHITECTURES = ("llama", "qwen2", "gemma2", "gpt2")
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"tokens": 20, "reparameterise": "none"},
    "prefix-tuning": {"tokens": 20, "reparameterise": "none"},
    "p-tuning": {"tokens": 20, "init": "random"},
    "adapter": {"width": 6},
}
"""What makes a parameterisation one that peft has too."""


def attach(base: Base, kind: str, task: Task | None = None, seed: int = 0, **options: Any) -> Tuned:
    if kind == "dora":
        kind, options = "lora", {**options, "dora": True}
    parameterisation = get_parameterisation(kind)
    chosen = parameterisation.options(**{**OPTIONS.get(kind, {}), **options})
    return parameterisation.attach(base, chosen, task or tiny.colour_task(), seed)


def stir(tuned: Tuned, size: float) -> None:
    """Trained weights away from where they start (LoRA's B is zero there, so that A would have no gradient)."""
    generator = torch.Generator().manual_seed(1)
    for value in trained_weights(tuned.module).values():
        value += torch.randn(value.shape, generator=generator) * size


def rendered(base: Base, count: int) -> list[Rendered]:
    return [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:count]]


def ours(tuned: Tuned, examples: Sequence[Rendered], *, share: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over the targets and its gradient, through packs."""
    from kamerton.objectives.supervised import Supervised

    batch = make_batch(examples, share=share)
    assert bool(batch.prefix) == share
    tuned.module.zero_grad(set_to_none=True)
    # the formula alone: it reads nothing of the objective
    loss = Supervised.loss(object.__new__(Supervised), tuned.model, batch).total / batch.count
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in tuned.module.named_parameters() if p.grad is not None}


def theirs(
    base: Base, tuned: Tuned, kind: str, examples: Sequence[Rendered], attention: str, dtype: torch.dtype
) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by transformers and peft: a model loaded anew, a padded batch, an attention mask, cross entropy."""
    import peft

    hf = transformers.AutoModelForCausalLM.from_pretrained(
        base.info.source, dtype=dtype, attn_implementation=attention, **tiny.four_bits(kind, dtype)
    ).eval()
    if kind == "qlora":
        settle(hf)
    model: Any = hf
    if kind in ("lora", "dora", "qlora"):
        config: Any = peft.LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=kind == "dora"
        )
        model = peft.get_peft_model(hf, config)
    elif kind in PROMPTS:
        made = {"prompt-tuning": peft.PromptTuningConfig, "prefix-tuning": peft.PrefixTuningConfig}
        config = made.get(kind, peft.PromptEncoderConfig)(task_type="CAUSAL_LM", num_virtual_tokens=20)
        model = peft.get_peft_model(hf, config)
    elif kind == "ia3":
        gpt2 = hf.config.model_type == "gpt2"
        last = "mlp.c_proj" if gpt2 else "down_proj"
        config = peft.IA3Config(
            target_modules=["c_attn", last] if gpt2 else ["k_proj", "v_proj", last], feedforward_modules=[last],
            fan_in_fan_out=gpt2, task_type="CAUSAL_LM",
        )  # fmt: skip
        model = peft.get_peft_model(hf, config)
    own = trained_weights(tuned.module)
    named = hook_adapters(hf, own) if kind == "adapter" else dict(model.named_parameters())
    assert kind == "full" or {n for n, p in named.items() if p.requires_grad} == set(own)
    with torch.no_grad():
        for name, value in own.items():
            named[name].copy_(value)
    longest = max(len(r.tokens) for r in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for row, r in enumerate(examples):
        tokens[row, : len(r.tokens)] = torch.tensor(r.tokens)
        mask[row, : len(r.tokens)] = 1
        for place, weight in enumerate(r.weights):
            if weight:
                labels[row, place] = r.tokens[place]
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, -longest:]  # soft tokens stand before
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in named.items() if p.grad is not None}


def hook_adapters(hf: Any, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Houlsby's adapters written down once more, as hooks: h + U relu(D h) behind attention's and MLP's last layer."""
    made = {n: torch.zeros_like(v, requires_grad=True) for n, v in own.items()}
    last = ("attn.c_proj", "mlp.c_proj") if hf.config.model_type == "gpt2" else ("self_attn.o_proj", "mlp.down_proj")

    def hook(name: str) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        dw, db, uw, ub = (
            made[f"base_model.model.{name}.bottleneck_{w}.default.{p}"]
            for w, p in (("down", "weight"), ("down", "bias"), ("up", "weight"), ("up", "bias"))
        )
        return lambda _module, _inputs, h: h + torch.relu(h @ dw.T + db) @ uw.T + ub

    placed = [n for n, _ in hf.named_modules() if n.endswith(last)]
    assert len(made) == 4 * len(placed) == 8 * hf.config.num_hidden_layers
    for name in placed:
        hf.get_submodule(name).register_forward_hook(hook(name))
    hf.requires_grad_(False)
    return made


def compare(
    base: Base, kind: str, examples: Sequence[Rendered], attention: str, size: float, dtype: torch.dtype = torch.float32
) -> None:
    tuned = attach(base, kind)
    stir(tuned, size)
    assert len({len(r.tokens) for r in examples}) > 1, "rows of different lengths, so that there is padding"
    expected_loss, expected = theirs(base, tuned, kind, examples, attention, dtype)
    scale = max(float(g.abs().max()) for g in expected.values())
    for share in (True, False):
        loss, found = ours(tuned, examples, share=share)
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            worst = float((found[name] - grad).abs().max())
            assert worst <= 1e-5 * max(1.0, scale), f"{name} (share {share}): off by {worst:.2g} of {scale:.2g}"
        assert min(float(g.abs().max()) for g in found.values()) > 0 or kind == "full"


# -- loss and gradient ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_transformers(small_base: Base, kind: str, attention: str) -> None:
    compare(small_base, kind, rendered(small_base, 6), attention, 0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradient_of_other_architectures(tiny_base: Callable[[str], Base], name: str, kind: str) -> None:
    base = tiny_base(name)
    compare(base, kind, rendered(base, 5), "eager", 0.02)


@pytest.mark.parametrize("kind", ["lora", "prompt-tuning", pytest.param("prefix-tuning", marks=pytest.mark.slow)])
def test_loss_and_gradient_on_the_demo_model(demo: Base, kind: str) -> None:
    """Against float64: in float32 transformers' own kinds of attention differ from it by as much as is allowed here."""
    compare(demo, kind, rendered(demo, 3), "eager", 0.01, torch.float64)


@pytest.mark.slow
def test_loss_and_gradient_of_all_weights_of_the_demo_model(demo: Base) -> None:
    compare(demo, "full", rendered(demo, 3), "eager", 0.0, torch.float64)


def test_the_comparison_can_fail(small_base: Base) -> None:
    """A loss that forgets the end token is another loss."""
    examples = rendered(small_base, 6)
    short = [Rendered(r.tokens, (*r.weights[:-1], 0.0)) for r in examples]
    tuned = attach(small_base, "lora")
    loss, _ = theirs(small_base, tuned, "lora", examples, "sdpa", torch.float32)
    assert ours(tuned, short, share=True)[0] != pytest.approx(loss, abs=1e-3)


# -- where they start -----------------------------------------------------------------------------------------------


def logits(tuned_or_base: Any, examples: Sequence[Rendered]) -> torch.Tensor:
    with torch.no_grad():
        hidden = tuned_or_base.model.forward([r.tokens for r in examples])
        return tuned_or_base.model.output(hidden.rows)


def test_qlora_starts_as_the_quantised_base(small_base: Base, small_folder: Path) -> None:
    tuned, examples = attach(small_base, "qlora"), rendered(small_base, 4)
    quantised = load_base(small_folder, dtype="float32", quantise="nf4")
    assert torch.equal(logits(tuned, examples), logits(quantised, examples))
    assert torch.equal(logits(attach(quantised, "lora"), examples), logits(quantised, examples))
    assert not torch.allclose(logits(tuned, examples), logits(small_base, examples), atol=1e-2)


def test_dora_starts_as_the_base_up_to_rounding(small_base: Base) -> None:
    examples = rendered(small_base, 4)
    for options in ({}, {"rank": 3, "rslora": True}):
        found = logits(attach(small_base, "dora", **options), examples)
        torch.testing.assert_close(found, logits(small_base, examples), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lora", {}),
        ("lora", {"rslora": True, "rank": 3, "alpha": 7.0}),
        ("lora", {"dropout": 0.5}),
        ("ia3", {}),
        ("adapter", {}),
        ("adapter", {"placement": "pfeiffer", "activation": "gelu", "dropout": 0.5}),
    ],
    ids=str,
)
def test_what_is_injected_starts_as_the_base(small_base: Base, kind: str, options: dict[str, Any]) -> None:
    tuned = attach(small_base, kind, **options)
    tuned.module.eval()
    examples = rendered(small_base, 4)
    assert torch.equal(logits(tuned, examples), logits(small_base, examples))
    stir(tuned, 0.1)
    assert not torch.allclose(logits(tuned, examples), logits(small_base, examples), atol=1e-2)


@pytest.mark.parametrize("name", ["small", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("prompt-tuning", {"reparameterise": "none"}),
        ("prompt-tuning", {"reparameterise": "scale"}),
        ("p-tuning", {"encoder": "mlp"}),
        ("p-tuning", {"encoder": "lstm"}),
        ("prefix-tuning", {"reparameterise": "none"}),
        ("prefix-tuning", {"reparameterise": "scale"}),
        ("prefix-tuning", {"reparameterise": "mlp"}),
    ],
    ids=str,
)
def test_a_prompt_starts_as_its_text(
    small_base: Base, tiny_base: Callable[[str], Base], name: str, kind: str, options: dict[str, Any]
) -> None:
    """At step 0 the model answers as if the instruction and the solved examples stood before every row, by
    transformers' own forward pass."""
    base = small_base if name == "small" else tiny_base(name)
    tuned = attach(base, kind, tokens=90, init="examples", seed=3, **options)
    text = example_tokens(base, tiny.colour_task(), 90, 3).tolist()
    for r in rendered(base, 3):
        with torch.no_grad():
            expected = base.model.hf(input_ids=torch.tensor([[*text, *r.tokens]])).logits[0, 90:]
        torch.testing.assert_close(logits(tuned, [r]), expected, rtol=1e-4, atol=2e-4)


def test_solved_examples_stand_as_in_a_prompt(small_base: Base) -> None:
    task = tiny.colour_task()
    text = small_base.renderer.tokenizer.decode(example_tokens(small_base, task, 120, 0))
    system = task.train[0].messages[0].content
    assert text.startswith(f"<|system|>{system}<|end|>\n<|user|>")
    shown = [
        e for e in task.train if f"<|user|>{e.messages[1].content}<|end|>\n<|assistant|>{e.answers[0]}<|end|>\n" in text
    ]
    assert len(shown) >= 2
    assert text.endswith(f"<|assistant|>{shown[-1].answers[0]}<|end|>\n") or len(shown) > 2
    one = Task("t", task.train[:1], (), (), ("exact-match",))
    assert len(example_tokens(small_base, one, 300, 0)) == 300, "few examples are shown again"
    assert len(example_tokens(small_base, task, 3, 0)) == 3
    with pytest.raises(TaskError, match="needs training examples"):
        example_tokens(small_base, Task("t", (), (), task.test, ("exact-match",)), 20, 0)


def test_solved_examples_without_a_template_or_a_system_message(tmp_path: Path) -> None:
    """A base may bring no template, and a template may refuse a system message, which then stands in the first
    question."""
    architectures.save("llama", tmp_path / "plain", template=None)
    plain = load_base(tmp_path / "plain", dtype="float32")
    task = tiny.colour_task()
    system = task.train[0].messages[0].content
    ids = example_tokens(plain, task, 200, 0)
    asked = plain.renderer.prompt(task.test[0].messages)
    head = len(f"{system}\n\nUser: ")  # bytes are tokens
    assert ids[:head].tolist() == asked[:head]
    assert plain.renderer.decode(ids).count(system) == 1
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    refusing = load_base(tmp_path / "plain", dtype="float32", chat_template=template)
    text = refusing.renderer.tokenizer.decode(example_tokens(refusing, task, 200, 0))
    assert text.startswith(f"[user]{system}\n\n")
    assert text.count(system) == 1
    bare = Task("t", tuple(replace(e, messages=e.messages[1:]) for e in task.train), (), (), ("exact-match",))
    assert len(example_tokens(refusing, bare, 150, 0)) == 150


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_that_start_from_labels(small_base: Base, kind: str) -> None:
    task = tiny.colour_task()
    with pytest.raises(RecipeError, match="'colours' has no class labels to start from; use init: examples") as caught:
        attach(small_base, kind, task, init="labels")
    assert "\n" not in str(caught.value)
    choices = replace(task, train=tuple(replace(e, choices=tiny.COLOURS) for e in task.train))
    assert attach(small_base, kind, choices, init="labels").trainable_parameters > 0
    with pytest.raises(RecipeError, match="4 class labels do not fit into 2 soft tokens; set tokens: 4"):
        attach(small_base, kind, choices, init="labels", tokens=2)
    ids = [i for c in tiny.COLOURS for i in small_base.renderer.tokenizer(c, add_special_tokens=False)["input_ids"]]
    soft = attach(small_base, "prompt-tuning", choices, init="labels").model.front().embeddings
    assert soft is not None
    assert torch.equal(soft[: len(ids)], small_base.model.hf.get_input_embeddings().weight[ids])


def test_full_starts_as_the_base_and_in_float32(small_base: Base) -> None:
    tuned = attach(small_base, "full")
    examples = rendered(small_base, 4)
    assert torch.equal(logits(tuned, examples), logits(small_base, examples))
    half = attach(small_base.reload(dtype="bfloat16"), "full")
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    assert tuned.trainable_parameters == small_base.info.parameters


def test_frozen_embeddings_are_not_trained(small_base: Base) -> None:
    tuned = attach(small_base, "full", freeze_embeddings=True)
    embeddings = small_base.model.hf.get_input_embeddings().weight.numel()
    assert tuned.trainable_parameters == small_base.info.parameters - embeddings
    ours(tuned, rendered(small_base, 4), share=True)
    torch.optim.SGD(tuned.module.parameters(), lr=0.1).step()
    before = dict(small_base.model.hf.named_parameters())
    moved = {n for n, p in tuned.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == before.keys() - {"model.embed_tokens.weight"}


def words_of(base: Base, task: Task) -> set[int]:
    """The tokens of a task's training texts."""
    texts = [text for e in task.train for text in (*(m.content for m in e.messages), e.answers[0])]
    return {i for text in texts for i in base.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]}


@pytest.mark.parametrize("init", ["examples", "task", "vocabulary"])
def test_soft_prompts_start_as_words(small_base: Base, init: str) -> None:
    tuned = attach(small_base, "prompt-tuning", tokens=12, init=init)
    soft = tuned.model.front().embeddings
    assert soft is not None
    assert soft.shape == (12, 48)
    table = small_base.model.hf.get_input_embeddings().weight
    distance = torch.cdist(soft.detach(), table).min(1)
    assert float(distance.values.max()) < 1e-3  # cdist rounds
    if init == "task":
        assert set(distance.indices.tolist()) <= words_of(small_base, tiny.colour_task())


@pytest.mark.parametrize("init", ["examples", "task"])
def test_more_soft_tokens_than_the_task_has_words(small_base: Base, init: str) -> None:
    """Its only example stands there over and over, or its words do."""
    task = Task("t", tiny.colour_task().train[:1], (), (), ("exact-match",))
    tuned = attach(small_base, "prompt-tuning", task, tokens=200, init=init)
    assert tuned.trainable_parameters == 200 * 48
    table = small_base.model.hf.get_input_embeddings().weight
    distance = torch.cdist(tuned.model.front().embeddings.detach(), table).min(1)
    assert float(distance.values.max()) < 1e-3
    words, ids = words_of(small_base, task), distance.indices.tolist()
    assert len(words) < 100
    if init == "task":
        assert set(ids) <= words
        assert len(set(ids)) > 0.8 * len(words), "not one word over and over"
    else:
        assert small_base.renderer.decode(ids).count(task.train[0].messages[-1].content) > 1


@pytest.mark.parametrize("kind", ["lora", "qlora", "prompt-tuning", "prefix-tuning", "p-tuning", "adapter"])
def test_the_seed_decides_the_start(small_base: Base, kind: str) -> None:
    options = {"tokens": 60} if kind in PROMPTS else {}

    def start(seed: int) -> dict[str, torch.Tensor]:
        return trained_weights(attach(small_base, kind, seed=seed, **options).module)

    one, again, other = start(1), start(1), start(2)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_the_base_is_not_changed_by_what_is_attached(small_base: Base) -> None:
    before = dict(small_base.reload().model.hf.named_parameters())  # from disk
    for kind in KINDS:
        stir(attach(small_base, kind), 0.1)
    after = dict(small_base.model.hf.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_lora_targets(small_base: Base) -> None:
    tuned = attach(small_base, "lora", targets=["q_proj"], rank=2)
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trained_weights(tuned.module)} == {"q_proj"}
    assert tuned.trainable_parameters == 2 * 2 * (48 + 48)
    assert attach(small_base, "lora", targets="q_proj", rank=2).trainable_parameters == tuned.trainable_parameters
    assert attach(small_base, "lora", targets=r".*\.[qo]_proj", rank=2).trainable_parameters == 4 * 2 * (48 + 48)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_porj"], "'q_porj' matches no layer of LlamaForCausalLM; use some of: q_proj, "),
        (["q_proj", "gate"], "'gate' matches no layer of LlamaForCausalLM; use some of: gate_proj, "),  # peft takes it
        ("down_prj", "'down_prj' matches no layer of LlamaForCausalLM; use some of: down_proj, "),
        (["self_attn"], "'self_attn' matches no layer"),
        (["q_porj", "v_proj", "down_prj"], "'q_porj', 'down_prj' match no layer of LlamaForCausalLM; use some of: "),
        (
            ["layers.1.mlp.down_porj"],
            "'layers.1.mlp.down_porj' matches no layer of LlamaForCausalLM; use some of: mlp.down_proj, ",
        ),
        (r".*\.[xy]_proj", r"'.*\.[xy]_proj' matches no layer"),
        ("*_proj", "'*_proj' matches no layer"),  # no regular expression
        ([], "an empty list matches no layer"),
        (["input_layernorm"], "peft cannot put LoRA on"),
    ],
    ids=str,
)
def test_wrong_targets_are_one_line_with_the_close_names_first(small_base: Base, targets: Any, says: str) -> None:
    for kind in ("lora", "qlora"):
        with pytest.raises(RecipeError) as caught:
            attach(small_base, kind, targets=targets)
        line = str(caught.value)
        assert line.startswith(f"{kind}.targets: {says}"), line
        assert "\n" not in line
        assert "all-linear" in line
        assert all(name in line for name in ("q_proj", "v_proj", "up_proj"))


def test_dora_on_a_row_of_zeros_is_refused(small_base: Base) -> None:
    """The output layer is tied to embeddings whose padding row is zero: its direction would be 0 / 0."""
    with pytest.raises(RecipeError, match=r"lora\.targets: lm_head has a row of zeros.*; leave it out"):
        attach(small_base, "dora", targets=["lm_head"])


def test_dora_rows_have_the_length_of_their_magnitude(small_base: Base) -> None:
    """What the paper says: W' = m (W + s B A) / ‖W + s B A‖ by rows, written out beside peft's layer."""
    tuned = attach(small_base, "dora", rank=4, alpha=6)
    stir(tuned, 0.2)
    name = "model.layers.1.mlp.up_proj"
    layer = small_base.model.hf.get_submodule(name)
    own = {n.partition(f"{name}.")[2]: p for n, p in trained_weights(tuned.module).items() if f".{name}." in n}
    a, b = own["lora_A.default.weight"], own["lora_B.default.weight"]
    summed = layer.weight + 6 / 4 * b @ a
    weight = own["lora_magnitude_vector.default.weight"][:, None] * summed / summed.norm(dim=1, keepdim=True)
    x = torch.randn(5, 48)
    found = tuned.model.hf.get_submodule(name)(x)
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_dora_measures_its_rows_once_while_it_answers(small_base: Base) -> None:
    """The cached lengths belong to the weights of that stretch, and give the same numbers as without."""
    tuned = attach(small_base, "dora")
    tuned.module.eval()
    examples = rendered(small_base, 3)
    for size in (0.1, 0.1):
        stir(tuned, size)
        expected = logits(tuned, examples)
        with tuned.model.inference():
            assert torch.equal(logits(tuned, examples), expected)
            assert torch.equal(logits(tuned, examples), expected)


@pytest.mark.parametrize("option", ["ia3.targets", "ia3.feedforward", "adapter.targets"])
@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["v_proj", "down_porj"], "'down_porj' matches no linear layer of LlamaForCausalLM; use some of: down_proj, "),
        (
            ["mlp.down_porj"],
            "'mlp.down_porj' matches no linear layer of LlamaForCausalLM; use some of: mlp.down_proj, ",
        ),
        (["zzz"], "'zzz' matches no linear layer of LlamaForCausalLM; use some of: down_proj, gate_proj, k_proj, "),
        (["input_layernorm"], "'input_layernorm' matches no linear layer"),  # a layer, but not a linear one
        (["lm_head"], "'lm_head' matches no linear layer"),
        (["zzz", "q_porj"], "'zzz', 'q_porj' match no linear layer of LlamaForCausalLM; use some of: q_proj, "),
    ],
    ids=str,
)
def test_wrong_linear_targets_are_one_line_with_the_close_names_first(
    small_base: Base, option: str, targets: list[str], says: str
) -> None:
    kind, _, name = option.partition(".")
    with pytest.raises(RecipeError) as caught:
        attach(small_base, kind, **{name: targets})
    line = str(caught.value)
    assert line.startswith(f"{option}: {says}"), line
    assert "\n" not in line
    assert "all-linear" not in line, "only LoRA takes it"
    assert all(name in line for name in ("q_proj", "v_proj", "up_proj"))


def test_no_targets_at_all_are_refused(small_base: Base) -> None:
    with pytest.raises(RecipeError, match=r"^adapter\.targets: an empty list matches no linear layer.*; use some of: "):
        attach(small_base, "adapter", targets=[])
    with pytest.raises(RecipeError, match=r"^ia3\.targets: nothing is multiplied; name at least one layer$"):
        attach(small_base, "ia3", targets=[], feedforward=[])


@pytest.mark.parametrize("kind", ["ia3", "adapter"])
def test_linear_targets(small_base: Base, tiny_base: Callable[[str], Base], kind: str) -> None:
    with pytest.raises(RecipeError, match=r"use some of: c_attn, c_fc, c_proj$"):
        attach(tiny_base("gpt2"), kind, targets=["zzz"])
    tuned = attach(small_base, kind, targets=["v_proj"], **({"feedforward": []} if kind == "ia3" else {}))
    assert {
        n.split(f".{tuned.peft.base_model.prefix}")[0].rpartition(".")[2] for n in trained_weights(tuned.module)
    } == {"v_proj"}


@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES))
@pytest.mark.parametrize("kind", ["ia3", "adapter"])
def test_every_architecture_has_its_targets(tiny_base: Callable[[str], Base], kind: str, name: str) -> None:
    """In every layer: keys and values and the MLP's hidden units; attention's and the MLP's last projection."""
    base = tiny_base(name)
    tuned = attach(base, kind)
    config = base.model.config
    fused = 1 if name in ("gpt2", "phi3") else 2
    per_layer = fused + 1 if kind == "ia3" else 2 * 4
    assert len(trained_weights(tuned.module)) == per_layer * config.num_hidden_layers
    heads, width = getattr(config, "num_key_value_heads", config.num_attention_heads), getattr(config, "head_dim", 8)
    if kind == "ia3" and fused == 2:
        assert tuned.trainable_parameters == config.num_hidden_layers * (2 * heads * width + config.intermediate_size)


def test_unknown_parameterisation() -> None:
    with pytest.raises(RecipeError, match="unknown parameterisation 'lroa'; use one of: lora"):
        get_parameterisation("lroa")
    assert all(get_parameterisation(name).name == name for name in PARAMETERISATIONS)


# -- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(small_base: Base, kind: str, tmp_path: Path) -> None:
    tuned = attach(small_base, kind)
    stir(tuned, 0.1)
    tuned.module.eval()
    tuned.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    examples = rendered(small_base, 4)
    loaded = get_parameterisation("lora" if kind == "dora" else kind).load(small_base, tmp_path)
    assert torch.equal(logits(loaded, examples), logits(tuned, examples))


@pytest.mark.parametrize("kind", [*THROUGH_PEFT, "dora", "qlora"])
def test_peft_loads_what_was_saved(small_base: Base, kind: str, tmp_path: Path) -> None:
    """With peft's own function and transformers' own forward pass."""
    import peft

    tuned = attach(small_base, kind)
    stir(tuned, 0.1)
    tuned.module.eval()
    tuned.save(tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        small_base.info.source, dtype=torch.float32, **tiny.four_bits(kind)
    )
    if kind == "qlora":
        settle(hf)
    model = peft.PeftModel.from_pretrained(hf, str(tmp_path)).eval()
    for r in rendered(small_base, 4):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([r.tokens])).logits[0, -len(r.tokens) :]
        torch.testing.assert_close(logits(tuned, [r]), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("prompt-tuning", {"reparameterise": "scale"}),
        ("p-tuning", {"init": "examples", "encoder": "mlp"}),
        ("p-tuning", {"init": "examples", "encoder": "lstm", "dropout": 0.2}),
        ("p-tuning", {"init": "random", "encoder": "lstm", "layers": 1, "hidden": 8}),
        ("prefix-tuning", {"reparameterise": "scale"}),
        ("prefix-tuning", {"reparameterise": "mlp", "hidden": 16}),
        ("prefix-tuning", {"reparameterise": "mlp", "init": "random"}),
    ],
    ids=str,
)
def test_prompts_out_of_an_encoder_are_plain_prompts(
    small_base: Base, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Their gradient is peft's gradient of the plain prompt, taken through the encoder; what is saved is the plain
    prompt, before folding and after."""
    tuned = attach(small_base, kind, **options)
    stir(tuned, 0.05)
    tuned.module.eval()
    examples = rendered(small_base, 4)
    encoder = tuned.peft.prompt_encoder["default"]
    plain = encoder(torch.arange(20))
    plain_kind = "prefix-tuning" if kind == "prefix-tuning" else "prompt-tuning"
    stand_in = attach(small_base, plain_kind)
    with torch.no_grad():
        stand_in.peft.prompt_encoder["default"].embedding.weight.copy_(plain)
    expected_loss, expected = theirs(small_base, stand_in, plain_kind, examples, "eager", torch.float32)
    loss, found = ours(tuned, examples, share=True)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    tuned.module.zero_grad(set_to_none=True)
    encoder(torch.arange(20)).backward(expected["prompt_encoder.default.embedding.weight"])
    for name, parameter in tuned.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    before = logits(tuned, examples)
    tuned.save(tmp_path / "unfolded")
    fold(tuned.peft)
    torch.testing.assert_close(logits(tuned, examples), before, rtol=1e-5, atol=1e-5)
    before = logits(tuned, examples)
    tuned.save(tmp_path / "folded")
    one, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("unfolded", "folded"))
    assert one.keys() == other.keys() == {"prompt_embeddings"}
    assert torch.equal(one["prompt_embeddings"], other["prompt_embeddings"])
    assert torch.equal(logits(get_parameterisation(kind).load(small_base, tmp_path / "folded"), examples), before)


def test_peft_switches_between_bottleneck_adapters(small_base: Base, tmp_path: Path) -> None:
    """Two adapters of different widths and placements in one model: added, loaded, switched, off, deleted."""
    import peft

    from kamerton.tuning.bottleneck import BottleneckConfig, BottleneckLayer

    folders = {}
    expected = {}
    examples = rendered(small_base, 3)
    for name, options in (("one", {}), ("two", {"width": 3, "placement": "pfeiffer", "activation": "tanh"})):
        tuned = attach(small_base, "adapter", seed=len(name) + len(options), **options)
        stir(tuned, 0.2)
        tuned.module.eval()
        tuned.save(tmp_path / name)
        folders[name], expected[name] = str(tmp_path / name), logits(tuned, examples)
    fresh = small_base.reload()
    model = peft.PeftModel.from_pretrained(fresh.model.hf, folders["one"], adapter_name="one")
    model.load_adapter(folders["two"], adapter_name="two")
    model.add_adapter("new", BottleneckConfig(task_type="CAUSAL_LM", target_modules=["up_proj"]))
    model.eval()
    for name in ("two", "one", "two"):
        model.set_adapter(name)
        assert torch.equal(logits(fresh, examples), expected[name]), name
    with model.disable_adapter():
        assert torch.equal(logits(fresh, examples), logits(small_base, examples))
    model.set_adapter("new")
    assert torch.equal(logits(fresh, examples), logits(small_base, examples)), "a new one starts as the base"
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".new." in n for n in trained)
    model.base_model.set_adapter(["one", "two"])
    both = logits(fresh, examples)
    assert not any(torch.allclose(both, e, atol=1e-3) for e in expected.values())
    model.set_adapter("one")
    model.delete_adapter("two")
    model.save_pretrained(str(tmp_path / "again"), selected_adapters=["one"])
    again, before = (load_file(tmp_path / p / "adapter_model.safetensors") for p in ("again/one", "one"))
    assert again.keys() == before.keys()
    assert all(torch.equal(again[n], before[n]) for n in before)
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    assert isinstance(fresh.model.hf.get_submodule("model.layers.0.mlp.down_proj"), BottleneckLayer)


def test_peft_loads_bottleneck_adapters_in_a_new_process(small_base: Base, tmp_path: Path) -> None:
    """peft's own function, after one import."""
    tuned = attach(small_base, "adapter")
    stir(tuned, 0.2)
    tuned.save(tmp_path)
    r = rendered(small_base, 1)[0]
    script = (
        "import sys, torch, transformers, peft\nimport kamerton.tuning.bottleneck\n"
        "hf = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "model = peft.PeftModel.from_pretrained(hf, sys.argv[2]).eval()\n"
        "print(float(model(input_ids=torch.tensor([eval(sys.argv[3])])).logits.double().abs().sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(small_base.info.source), str(tmp_path), str(list(r.tokens))],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tuned.module.eval()
    assert float(done.stdout.split()[-1]) == pytest.approx(float(logits(tuned, [r]).double().abs().sum()), rel=1e-5)


def test_transformers_loads_what_full_saved(small_base: Base, tmp_path: Path) -> None:
    tuned = attach(small_base, "full")
    stir(tuned, 0.05)
    tuned.save(tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for r in rendered(small_base, 4):
        with torch.no_grad():
            expected = hf(input_ids=torch.tensor([r.tokens])).logits[0]
        torch.testing.assert_close(logits(tuned, [r]), expected, rtol=1e-5, atol=2e-5)


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def drop_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


def add_tensor(path: Path) -> None:
    save_file({**load_file(path), "base_model.model.nothing.weight": torch.zeros(2)}, path, metadata={"format": "pt"})


def reshape_tensor(path: Path) -> None:
    save_file({n: torch.cat([t, t]) for n, t in load_file(path).items()}, path, metadata={"format": "pt"})


BREAK: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no weights": ("no adapter_model.safetensors", lambda d: (d / "adapter_model.safetensors").unlink()),
    "pickled weights": (
        "no adapter_model.safetensors",
        lambda d: (d / "adapter_model.safetensors").rename(d / "adapter_model.bin"),
    ),
    "no config": ("no adapter_config.json", lambda d: (d / "adapter_config.json").unlink()),
    "config of nothing": ("cannot be loaded", lambda d: (d / "adapter_config.json").write_text("{}")),
    "config cut": ("cannot be loaded", lambda d: (d / "adapter_config.json").write_text('{"peft_type": "LO')),
    "weights cut": ("cannot be loaded", lambda d: cut_file(d / "adapter_model.safetensors")),
    "a weight missing": (r"1 are missing|KeyError", lambda d: drop_tensor(d / "adapter_model.safetensors")),
    "a weight too many": ("1 are unknown", lambda d: add_tensor(d / "adapter_model.safetensors")),
    "other shapes": ("cannot be loaded", lambda d: reshape_tensor(d / "adapter_model.safetensors")),
}


@pytest.mark.parametrize("kind", ["lora", "prompt-tuning", "prefix-tuning", "adapter"])
@pytest.mark.parametrize("fault", BREAK, ids=[name.replace(" ", "-") for name in BREAK])
def test_a_broken_adapter_is_one_line(small_base: Base, kind: str, fault: str, tmp_path: Path) -> None:
    attach(small_base, kind).save(tmp_path)
    says, plant = BREAK[fault]
    plant(tmp_path)
    with pytest.raises(ModelError, match=says) as caught:
        get_parameterisation(kind).load(small_base, tmp_path)
    line = str(caught.value)
    assert line.startswith(str(tmp_path))
    assert "\n" not in line
    assert "; tune the method again" in line


@pytest.mark.parametrize("fault", ["cut", "gone", "config", "missing"])
def test_a_broken_folder_of_all_weights_is_one_line(small_base: Base, fault: str, tmp_path: Path) -> None:
    attach(small_base, "full").save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    {
        "cut": lambda: cut_file(weights),
        "gone": weights.unlink,
        "config": lambda: config.write_text("{}"),
        "missing": lambda: drop_tensor(weights),
    }[fault]()
    with pytest.raises(KamertonError) as caught:
        get_parameterisation("full").load(small_base, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_adapters_of_another_base_are_refused(
    small_base: Base, tiny_base: Callable[[str], Base], tmp_path: Path
) -> None:
    attach(small_base, "lora").save(tmp_path)
    with pytest.raises(ModelError):
        get_parameterisation("lora").load(tiny_base("gpt2"), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"

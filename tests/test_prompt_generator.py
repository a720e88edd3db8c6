"""Soft tokens made of the query: packs against plain forwards, generation, saving, and what stays as it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from kamerton.base import Base
from kamerton.base.inserts import FRONT, Inserts
from kamerton.base.model import CausalModel
from kamerton.base.passes import Front
from kamerton.inference import Engine, Sampling
from kamerton.inference.features import Features
from kamerton.inference.score import Scorer, Tree
from kamerton.rendering import Rendered
from kamerton.training.batches import make_batch
from kamerton.training.checkpoint import trained_weights
from kamerton.tuning import Tuned, get_parameterisation

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


def of_prompt(hidden: int, count: int = 3) -> Any:
    """Soft tokens that depend on every token of a prompt and on their order."""

    def make(prompts: Sequence[Sequence[int]]) -> Tensor:
        rows = []
        for prompt in prompts:
            seed = sum((i + 1) * t for i, t in enumerate(prompt)) % 100_003
            rows.append(torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)

    return make


def with_inserts(base: Base, tail: int, soft: int = 0) -> CausalModel:
    hidden = base.model.config.hidden_size
    front = torch.randn(soft, hidden, generator=torch.Generator().manual_seed(5))
    return CausalModel(
        base.model.hf, (lambda: Front(embeddings=front)) if soft else None,
        inserts=Inserts(3, tail, of_prompt(hidden)),
    )  # fmt: skip


def plain_logits(model: CausalModel, prompt: Sequence[int], rest: Sequence[int]) -> Tensor:
    """(prompt + rest, V) logits of transformers' own forward pass over embeddings put together by hand."""
    assert model.inserts is not None
    embed = model.hf.get_input_embeddings()
    place = max(0, len(prompt) - model.inserts.tail)
    front = model.front().embeddings
    parts = [] if front is None else [front]
    tokens = torch.tensor([*prompt, *rest])
    soft = model.inserts.make([prompt])[0]
    parts += [embed(tokens[:place]), soft, embed(tokens[place:])]
    logits = model.hf(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
    logits = logits[0 if front is None else len(front) :]
    return torch.cat([logits[:place], logits[place + len(soft) :]])


TAILS = (1, 4, FRONT)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("soft", [0, 5])
@pytest.mark.parametrize("share", [True, False])
def test_targets_are_those_of_a_plain_forward(small_base: Base, tail: int, soft: int, share: bool) -> None:
    model = with_inserts(small_base, tail, soft)
    rendered = [small_base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:5]]
    batch = make_batch(rendered, share=share)
    with torch.no_grad():
        ours = model.target_log_probs(batch)
        theirs = []
        for r in rendered:
            n = r.prompt_length
            logits = plain_logits(model, r.tokens[:n], r.tokens[n:]).log_softmax(-1)
            theirs.append(logits[n - 1 : -1].gather(1, torch.tensor(r.tokens[n:])[:, None])[:, 0])
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("same", [True, False])
def test_answers_are_those_of_a_plain_loop(small_base: Base, tail: int, same: bool) -> None:
    model = with_inserts(small_base, tail, soft=2)
    examples = tiny.colour_task().test[:6]
    asked = [examples[0].messages if same else e.messages for e in examples]
    answers = Engine(model, small_base.renderer, max_batch_tokens=120).generate(asked, Sampling(max_tokens=9))
    for messages, answer in zip(asked, answers, strict=True):
        prompt, said = small_base.renderer.prompt(messages), []
        while len(said) < 9 and (not said or said[-1] not in small_base.renderer.end_ids):
            with torch.no_grad():
                said.append(int(plain_logits(model, prompt, said)[-1].argmax()))
        assert list(answer.tokens) == said


def test_samples_are_the_same_alone_and_together(small_base: Base) -> None:
    model = with_inserts(small_base, 2)
    asked = [e.messages for e in tiny.colour_task().test[:5]]
    sampling = Sampling(max_tokens=7, temperature=1.0, n=3, seed=4)
    together = Engine(model, small_base.renderer).generate(asked, sampling)
    alone = [a for m in asked for a in Engine(model, small_base.renderer, max_batch_tokens=40).generate([m], sampling)]
    assert [a.tokens for a in together] == [a.tokens for a in alone]


@pytest.mark.parametrize("tail", TAILS)
def test_scores_of_trees_are_those_of_a_plain_forward(small_base: Base, tail: int) -> None:
    model = with_inserts(small_base, tail, soft=1)
    prompts = [small_base.renderer.prompt(e.messages) for e in tiny.colour_task().test[:4]]
    continuations = [[5, 6, 7], [5, 6, 9], [5, 8], [11]]
    tree = Tree(continuations)
    found = Scorer(model, 4096).edges(prompts, [tree] * len(prompts))
    for prompt, edges in zip(prompts, found, strict=True):
        expected = []
        for c in continuations:
            with torch.no_grad():
                logits = plain_logits(model, prompt, c).log_softmax(-1)[len(prompt) - 1 : -1]
            expected.append(float(logits.gather(1, torch.tensor(c)[:, None]).sum()))
        assert tree.totals(edges) == pytest.approx(expected, abs=1e-4)


def test_ranking_finds_the_choice_that_scores_best(small_base: Base) -> None:
    model = with_inserts(small_base, 3)
    engine = Engine(model, small_base.renderer)
    asked = [e.messages for e in tiny.colour_task().test[:6]]
    choices = [["red", "green", "blue", "black and white", "black and blue"]] * len(asked)
    scores = engine.score(asked, choices)
    assert engine.rank(asked, choices) == [row.index(max(row)) for row in scores]


def test_features_are_the_states_of_a_plain_forward_and_are_kept(small_base: Base) -> None:
    features = Features(small_base.model.hf, middle=0.5)
    rows = [[1, 2, 3, 4, 5], [1, 2, 9], [1, 2, 3, 4, 5]]
    found = features(rows, [0, 1, 0])
    out = small_base.model.hf(input_ids=torch.tensor([rows[1]]), output_hidden_states=True)
    states = torch.cat([out.hidden_states[1][0], out.hidden_states[-1][0]], dim=1)  # of two layers, and the last norm
    halves = [torch.nn.functional.layer_norm(h, h.shape[-1:]) for h in states.chunk(2, dim=1)]
    torch.testing.assert_close(found[1], torch.cat(halves, 1)[1:], atol=1e-5, rtol=1e-5)
    assert features.computed == 2
    features(rows)
    assert features.computed == 3  # of the second row another part was kept


# -- the generator ----------------------------------------------------------------------------------------------------


def attach(base: Base, seed: int = 0, **options: Any) -> Tuned:
    kind = get_parameterisation("prompt-generator")
    chosen = kind.options(**{"tokens": 6, "generated": 3, "rank": 4, "key_size": 4, **options})
    return kind.attach(base, chosen, tiny.colour_task(), seed)


def stir(tuned: Tuned) -> None:
    generator = torch.Generator().manual_seed(1)
    for value in trained_weights(tuned.module).values():
        value += torch.randn(value.shape, generator=generator) * 0.3


def losses(tuned: Tuned, base: Base) -> Tensor:
    rendered = [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:4]]
    tuned.module.eval()
    with torch.no_grad():
        return tuned.model.target_log_probs(make_batch(rendered))


@pytest.mark.parametrize("place", ["end", "front"])
def test_at_the_start_it_is_prompt_tuning(small_base: Base, place: str) -> None:
    """Other queries make the same soft tokens, those of the start; once it has moved they make other ones."""
    tuned = attach(small_base, place=place)
    prompts = [small_base.renderer.prompt(e.messages) for e in tiny.colour_task().test[:3]]
    assert tuned.model.inserts is not None
    with torch.no_grad():
        made = tuned.model.inserts.make(prompts)
        network = tuned.peft.base_model.network
        assert (made == network.start[6:]).all()
        assert (tuned.model.front().embeddings == network.start[:6]).all()
        stir(tuned)
        moved = tuned.model.inserts.make(prompts)
    assert (moved[0] - moved[1]).abs().max() > 0.01


@pytest.mark.parametrize("into", ["tokens", "keys-values"])
def test_every_number_of_it_learns_and_nothing_else(small_base: Base, into: str) -> None:
    tuned = attach(small_base, noise=2, into=into)
    stir(tuned)
    before = {n: p.detach().clone() for n, p in tuned.model.hf.named_parameters()}
    rendered = [small_base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:4]]
    tuned.module.train()
    (-tuned.model.target_log_probs(make_batch(rendered)).sum()).backward()
    gradients = {n: p.grad for n, p in tuned.module.named_parameters() if p.requires_grad}
    assert all(g is not None and bool(g.abs().max() > 0) for g in gradients.values()), gradients.keys()
    assert all(p.grad is None and (p == before[n]).all() for n, p in tuned.model.hf.named_parameters())


# -- keys and values in every layer -----------------------------------------------------------------------------------

PLACES = ("end", "front")


def examples(base: Base) -> list[Rendered]:
    return [base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:5]]


def scores_of_targets(tuned: Tuned, base: Base, share: bool = True) -> Tensor:
    rendered = examples(base)
    return tuned.model.target_log_probs(make_batch(rendered, share=share))


def by_peft(tuned: Tuned, prompt: Sequence[int], rest: Sequence[int]) -> Tensor:
    """(rest, V) log-probabilities behind a prompt of transformers' own passes over its own cache."""
    logits = tuned.peft(input_ids=torch.tensor([[*prompt, *rest]])).logits[0]
    return logits[len(prompt) - 1 :].log_softmax(-1)


def test_with_keys_it_starts_as_prefix_tuning(small_base: Base) -> None:
    """In front of everything, 6 + 3 pairs are the prefix of 9 that starts from the same numbers: loss and answers."""
    tuned = attach(small_base, place="front", into="keys-values")
    kind = get_parameterisation("prefix-tuning")
    prefix = kind.attach(small_base, kind.options(tokens=9, init="task"), tiny.colour_task(), 0)
    network = tuned.peft.base_model.network
    with torch.no_grad():
        prefix.peft.prompt_encoder["default"].embedding.weight.copy_(network.start)
        ours, theirs = (scores_of_targets(t, small_base) for t in (tuned, prefix))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    asked = [e.messages for e in tiny.colour_task().test[:6]]
    choices = [["red", "green", "blue", "black and white", "black and blue"]] * len(asked)
    engines = [Engine(t.model, small_base.renderer) for t in (tuned, prefix)]
    said = [[a.tokens for a in e.generate(asked, Sampling(max_tokens=8))] for e in engines]
    assert said[0] == said[1]
    for one, two in zip(*(e.score(asked, choices) for e in engines), strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    # the static part of the start is what prefix tuning itself starts from
    own = kind.attach(small_base, kind.options(tokens=6), tiny.colour_task(), 0)
    weight = own.peft.prompt_encoder["default"].embedding.weight
    torch.testing.assert_close(network.start[:6], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("share", [True, False])
def test_with_keys_packs_are_transformers_own_passes(small_base: Base, place: str, share: bool) -> None:
    """Log-probabilities and gradients of every trained number, rows packed behind what they share or row by row."""
    compare(small_base, place, share)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["mistral-window", "qwen3", "gemma2", "gpt2"])
def test_with_keys_other_architectures_are_right_too(tiny_base: Callable[[str], Base], name: str, place: str) -> None:
    """Sliding windows, soft caps, normalised keys, absolute positions, as many key heads as heads."""
    compare(tiny_base(name), place, True)


def compare(base: Base, place: str, share: bool) -> None:
    tuned = attach(base, place=place, into="keys-values")
    stir(tuned)
    rendered = examples(base)
    parameters = [p for p in tuned.module.parameters() if p.requires_grad]
    ours = scores_of_targets(tuned, base, share)
    gradients = torch.autograd.grad(ours.sum(), parameters, allow_unused=True)
    rows = [(r.tokens[: r.prompt_length], r.tokens[r.prompt_length :]) for r in rendered]
    theirs = torch.cat([by_peft(tuned, p, a)[:-1].gather(1, torch.tensor(a)[:, None])[:, 0] for p, a in rows])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(theirs.sum(), parameters, allow_unused=True)
    for one, two in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("same", [True, False])
def test_with_keys_answers_are_those_of_a_plain_loop(small_base: Base, place: str, same: bool) -> None:
    tuned = attach(small_base, place=place, into="keys-values")
    stir(tuned)
    tuned.module.eval()
    examples = tiny.colour_task().test[:6]
    asked = [examples[0].messages if same else e.messages for e in examples]
    engine = Engine(tuned.model, small_base.renderer, max_batch_tokens=120)
    for messages, answer in zip(asked, engine.generate(asked, Sampling(max_tokens=9)), strict=True):
        prompt, said = small_base.renderer.prompt(messages), []
        while len(said) < 9 and (not said or said[-1] not in small_base.renderer.end_ids):
            with torch.no_grad():
                said.append(int(by_peft(tuned, prompt, said)[-1].argmax()))
        assert list(answer.tokens) == said
    sampling = Sampling(max_tokens=7, temperature=1.0, n=3, seed=4)
    together = Engine(tuned.model, small_base.renderer).generate(asked, sampling)
    if not same:
        alone = [a for m in asked for a in engine.generate([m], sampling)]
        assert [a.tokens for a in together] == [a.tokens for a in alone]


@pytest.mark.parametrize("place", PLACES)
def test_with_keys_a_row_is_scored_the_same_beside_others(small_base: Base, place: str) -> None:
    """Trees of choices behind several prompts against one continuation of one prompt after another."""
    tuned = attach(small_base, place=place, into="keys-values")
    stir(tuned)
    tuned.module.eval()
    engine = Engine(tuned.model, small_base.renderer)
    asked = [e.messages for e in tiny.colour_task().test[:4]]
    choices = ["red", "green", "black and white", "black and blue", "black"]
    together = engine.score(asked, [choices] * len(asked))
    for messages, row in zip(asked, together, strict=True):
        prompt = small_base.renderer.prompt(messages)
        for text, value in zip(choices, row, strict=True):
            tokens = small_base.renderer.answer(text)
            with torch.no_grad():
                log_p = by_peft(tuned, prompt, tokens)[:-1].gather(1, torch.tensor(tokens)[:, None])
            assert value == pytest.approx(float(log_p.sum()), abs=1e-4)
            assert value == pytest.approx(engine.score([messages], [[text]])[0][0], abs=1e-4)
    assert engine.rank(asked, [choices] * len(asked)) == [row.index(max(row)) for row in together]


def test_with_keys_other_queries_get_other_pairs_once_it_moves(small_base: Base) -> None:
    tuned = attach(small_base, into="keys-values")
    prompts = [small_base.renderer.prompt(e.messages) for e in tiny.colour_task().test[:2]]
    assert tuned.model.inserts is not None
    with torch.no_grad():
        first = tuned.model.inserts.make(prompts)
        stir(tuned)
        moved = tuned.model.inserts.make(prompts)
    assert len(first) == small_base.model.config.num_hidden_layers
    assert all((x[0] == x[1]).all() for pair in first for x in pair)
    assert all((x[0] - x[1]).abs().max() > 1e-3 for pair in moved for x in pair)


def test_peft_loads_it_in_a_new_process(small_base: Base, tmp_path: Path) -> None:
    """Both places and both kinds, one process for all of them."""
    rendered = [small_base.renderer.example(e.messages, e.answers[0]) for e in tiny.colour_task().train[:4]]
    (tmp_path / "rows.txt").write_text(repr([list(r.tokens) for r in rendered]))
    kinds = {f"{place} {into}": (place, into) for place in ("end", "front") for into in ("tokens", "keys-values")}
    ours = {}
    for name, (place, into) in kinds.items():
        tuned = attach(small_base, place=place, into=into)
        stir(tuned)
        tuned.save(tmp_path / name)
        loaded = get_parameterisation("prompt-generator").load(small_base, tmp_path / name)
        ours[name] = losses(tuned, small_base)
        torch.testing.assert_close(losses(loaded, small_base), ours[name], atol=0, rtol=0)
    program = f"""
import torch, ast
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
import kamerton.tuning.generator
folder = Path({str(tmp_path)!r})
rows = ast.literal_eval((folder / "rows.txt").read_text())
longest = max(map(len, rows))
ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
for name in {list(kinds)!r}:
    base = AutoModelForCausalLM.from_pretrained({str(small_base.request["name"])!r}, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / name).eval()
    with torch.no_grad():
        log_p = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    with model.disable_adapter(), torch.no_grad():
        off = model(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(off, base(input_ids=ids, attention_mask=mask).logits)
    torch.save(log_p, folder / f"{{name}}.pt")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    for name in kinds:
        theirs = torch.load(tmp_path / f"{name}.pt")
        expected = []
        for i, r in enumerate(rendered):
            n = r.prompt_length
            expected.append(theirs[i, n - 1 : len(r.tokens) - 1].gather(1, torch.tensor(r.tokens[n:])[:, None])[:, 0])
        # a batch's rows are sorted nowhere here: make_batch keeps their order
        torch.testing.assert_close(ours[name], torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_noise_belongs_to_a_prompt_when_asked_and_is_new_in_training(small_base: Base) -> None:
    tuned = attach(small_base, noise=4)
    stir(tuned)
    prompt = [small_base.renderer.prompt(tiny.colour_task().test[0].messages)]
    assert tuned.model.inserts is not None
    make = tuned.model.inserts.make
    tuned.module.eval()
    with torch.no_grad():
        assert (make(prompt) == make(prompt)).all()
        tuned.module.train()
        assert (make(prompt) != make(prompt)).any()

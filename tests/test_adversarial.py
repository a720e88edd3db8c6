"""The discriminator, the two paths of its signal, the stage behind a supervised start, and what it keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from kamerton.base import Base
from kamerton.errors import KamertonError
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Run
from kamerton.objectives.adversarial import DISCRIMINATORS, Adversarial
from kamerton.objectives.adversarial_options import AdversarialOptions
from kamerton.objectives.rollouts import advantages, to_go
from kamerton.rewards.attention import KEY_SIZE, Attentive
from kamerton.rewards.discriminator import Control, CrossFitted, auc
from kamerton.rewards.factored import Factored
from kamerton.rewards.pairs import Pairs, Tokens
from kamerton.training import Budget, fit
from kamerton.training.loop import Settings
from kamerton.tuning import get_parameterisation

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

numbers = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


# -- the discriminator ------------------------------------------------------------------------------------------------


@given(numbers, numbers)
def test_auc_is_the_share_of_pairs_in_order(real: list[float], fake: list[float]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in real for b in fake]
    assert auc(torch.tensor(real), torch.tensor(fake)) == pytest.approx(sum(pairs) / len(pairs))


KINDS = (Factored, Attentive)
ROWS = torch.tensor([0, 0, 0, 0, 1, 2, 2])


def judge(rank: int = 4, seed: int = 0, kind: type[Factored] = Factored) -> Factored:
    torch.manual_seed(seed)
    return kind(10, torch.randn(20, 6), rank)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_vocabulary_is_scored_as_its_tokens_one_by_one(kind: type[Factored]) -> None:
    d = judge(kind=kind)
    contexts = d.contexts(torch.randn(7, 10), ROWS).detach()
    whole = d.of_vocabulary(contexts)
    for token in range(20):
        one = d.of_tokens(contexts, torch.full((7,), token))
        torch.testing.assert_close(whole[:, token], one.detach())


def test_the_penalty_is_the_gradient_by_the_features() -> None:
    d, features, g = judge(), torch.randn(7, 10, requires_grad=True), torch.Generator()
    tokens = torch.randint(20, (7,))
    (gradient,) = torch.autograd.grad(d.of_tokens(d.contexts(features, ROWS), tokens).sum(), features)
    torch.testing.assert_close(d.penalty(features, tokens, ROWS, g), gradient.pow(2).sum(1).mean())


def test_the_penalty_of_attention_is_that_gradient_on_average_and_can_be_learned_from() -> None:
    """Every score's own gradient by all features, one backward pass each, against random signs and one pass."""
    d, features, g = judge(kind=Attentive), torch.randn(7, 10, requires_grad=True), torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (7,))
    scores = d.of_tokens(d.contexts(features, ROWS), tokens)
    own = [torch.autograd.grad(s, features, retain_graph=True)[0].pow(2).sum() for s in scores]
    found = torch.stack([d.penalty(features, tokens, ROWS, g).detach() for _ in range(600)])
    error = float(found.std() / len(found) ** 0.5)
    assert float(found.mean()) == pytest.approx(float(torch.stack(own).mean()), abs=4 * error)
    d.penalty(features, tokens, ROWS, g).backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in d.parameters())


@pytest.mark.parametrize("kind", [Factored, Attentive])
def test_it_is_computed_in_float32_whatever_surrounds_it(kind: type[Factored]) -> None:
    """Scores and penalty under bfloat16 autocast, as on a bfloat16 base, are those without it, bit for bit."""
    d, features, tokens = judge(kind=kind), torch.randn(7, 10), torch.randint(20, (7,))
    found = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            contexts = d.contexts(features, ROWS)
            penalty = d.penalty(features, tokens, ROWS, torch.Generator().manual_seed(0))
            found.append((d.of_tokens(contexts, tokens), d.of_vocabulary(contexts), penalty))
    for plain, inside in zip(*found, strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(plain, inside)


def test_its_attention_is_that_of_pytorch() -> None:
    """Row by row through scaled_dot_product_attention; a head's numbers are added up, and the factored part to them."""
    d, features = judge(kind=Attentive), torch.randn(7, 10)
    assert isinstance(d, Attentive)
    expected = []
    for row in range(3):
        f = features[row == ROWS]
        q, k, v = (layer(f).view(len(f), d.heads, -1).transpose(0, 1) for layer in (d.query, d.key, d.value))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=KEY_SIZE**-0.5)
        expected.append(f @ d.context.weight.T + attended.sum(0))
    torch.testing.assert_close(d.contexts(features, ROWS), torch.cat(expected))


def test_a_context_holds_nothing_of_what_comes_later_or_of_other_rows() -> None:
    d, features = judge(kind=Attentive), torch.randn(7, 10)
    before = d.contexts(features, ROWS)
    changed = features.clone()
    changed[2:5] += 1.0
    same = (d.contexts(changed, ROWS) == before).all(1)
    assert same.tolist() == [True, True, False, False, False, True, True]


# -- pairs and the buffer ---------------------------------------------------------------------------------------------


def numbered(lengths: Sequence[int], first: int = 0) -> Tokens:
    """Rows of these lengths whose tokens count on and tell where they stood: 100 · row + place."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    tokens = [100 * (first + r) + place for r, n in enumerate(lengths) for place in range(n)]
    count = len(tokens)
    return Tokens(torch.arange(count * 2.0).view(count, 2), torch.tensor(tokens), torch.zeros(count),
                  torch.as_tensor(rows), torch.zeros(count))  # fmt: skip


def whole_rows(tokens: Tokens) -> list[list[int]]:
    return [tokens.tokens[tokens.rows == r].tolist() for r in tokens.rows.unique_consecutive()]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 8), st.integers(0, 25), st.integers(0, 99))
def test_rows_are_drawn_and_dropped_whole(lengths: list[int], count: int, limit: int, seed: int) -> None:
    tokens, g = numbered(lengths), torch.Generator().manual_seed(seed)
    known = [list(range(100 * r, 100 * r + n)) for r, n in enumerate(lengths)]
    drawn = whole_rows(tokens.drawn(count, g))
    assert len(drawn) == count
    assert all(row in known for row in drawn)
    kept = tokens.at_most(limit, g)
    assert len(kept) == min(limit, sum(lengths))
    left = whole_rows(kept)
    assert all(row in known for row in left[:-1])  # the last one may be a beginning
    assert all(row == known[row[0] // 100][: len(row)] for row in left)
    joined = tokens.and_then(numbered(lengths, first=50))
    assert whole_rows(joined) == [*known, *([x + 5000 for x in row] for row in known)]


def separable(count: int, seed: int) -> Pairs:
    """References whose token is decided by their context; the model's tokens are chance."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 10, generator=g)
    real = (features[:, 0] > 0).long() + 2 * (features[:, 1] > 0).long()
    fake = torch.randint(4, (count,), generator=g)
    return paired(features, real, fake, torch.arange(count))


def paired(features: Tensor, real: Tensor, fake: Tensor, rows: Tensor) -> Pairs:
    sides = (Tokens(features, tokens, rows % 2, rows, torch.zeros(len(rows))) for tokens in (real, fake))
    return Pairs(*sides)


def chance(count: int, seed: int) -> Pairs:
    """References that nothing tells from the model's tokens."""
    g = torch.Generator().manual_seed(seed)
    pairs = separable(count, seed)
    return replace(pairs, real=replace(pairs.real, tokens=torch.randint(4, (count,), generator=g)))


def told_first(count: int, seed: int, length: int = 5) -> Pairs:
    """Rows whose first position decides every later token, and says so; the model's tokens are chance.

    The later positions are chance, so that none of them tells a reference's token from another.
    """
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(count, length, 10, generator=g)
    features[:, :, 0] = -1.0
    features[:, 0, 0] = 3.0
    wanted = (features[:, 0, 1] > 0).long() + 2 * (features[:, 0, 2] > 0).long()
    real = wanted[:, None].repeat(1, length)
    fake = torch.randint(4, (count, length), generator=g)
    real[:, 0] = torch.randint(4, (count,), generator=g)  # what the first position itself shows does not count
    rows = torch.arange(count).repeat_interleave(length)
    return paired(features.flatten(0, 1), real.flatten(), fake.flatten(), rows)


def pair_of_judges(kind: type[Factored] = Factored, **more: Any) -> CrossFitted:
    return CrossFitted([judge(8, 1, kind), judge(8, 2, kind)],
                       **{"learning_rate": 1e-2, "decay": 0.0, "penalty": 0.0, **more})  # fmt: skip


def test_what_can_be_told_apart_is_learned() -> None:
    judges, g = pair_of_judges(), torch.Generator().manual_seed(0)
    for step in range(60):
        judges.train(separable(64, step), 2, g)
    for step in range(60):
        judges.watch(separable(64, 1000 + step))
    assert judges.control.held_out > 0.75


def test_attention_learns_what_no_single_position_shows() -> None:
    found = {}
    for kind in KINDS:
        judges, g = pair_of_judges(kind, penalty=0.001), torch.Generator().manual_seed(0)
        for step in range(150):
            judges.train(told_first(32, step), 1, g)
        for step in range(60):
            judges.watch(told_first(32, 1000 + step))
        found[kind] = judges.control.held_out
    assert found[Factored] == pytest.approx(0.5, abs=0.03)
    assert found[Attentive] > 0.7  # 0.8 is the most: a position of five is chance, a token of four the same one


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_buffer_only_new_answers_are_seen(kind: type[Factored]) -> None:
    judges, g = pair_of_judges(kind, replay=0), torch.Generator().manual_seed(0)
    for step in range(3):
        judges.train(told_first(8, step), 1, g)
    assert all(old is not None and not len(old) for old in judges._old)


def half_chance(count: int, seed: int) -> Pairs:
    """As `separable`, but half of the references are chance."""
    pairs, g = separable(count, seed), torch.Generator().manual_seed(seed + 77)
    swapped, other = torch.rand(count, generator=g) < 0.5, torch.randint(4, (count,), generator=g)
    return replace(pairs, real=replace(pairs.real, tokens=torch.where(swapped, other, pairs.real.tokens)))


def test_many_steps_on_a_few_references_do_not_lose_what_was_known_of_all() -> None:
    """What the controller asks for below its band; eight steps on the same eight references lose twice as much."""
    judges, g, found = pair_of_judges(replay=600), torch.Generator().manual_seed(0), []
    for size, steps, rounds in ((64, 1, 200), (8, 8, 60)):
        for step in range(rounds):
            judges.train(half_chance(size, 1000 * steps + step), steps, g)
        judges.control = Control()
        for step in range(40):
            judges.watch(half_chance(256, 50_000 + step))
        found.append(judges.control.held_out)
    before, after = found
    assert before > 0.63
    assert after > before - 0.035


def test_memorised_noise_shows_in_the_trained_auc_and_not_in_the_held_out_one() -> None:
    """The same few references over and over: each judge knows its half by heart, and knows nothing of the other."""
    judges, g, pairs = pair_of_judges(), torch.Generator().manual_seed(0), chance(24, 3)
    for _ in range(200):
        judges.train(pairs, 1, g)
    for _ in range(60):
        judges.watch(pairs)
    assert judges.control.trained > 0.85
    assert judges.control.held_out < 0.7


def test_a_judge_never_learns_from_the_half_that_it_judges() -> None:
    """Judge 1 judges fold 0: whatever fold 0 holds, judge 1 comes out of training the same."""
    ends = []
    for seed in (5, 6):
        judges, other = pair_of_judges(), separable(40, seed)
        same = separable(40, 4)
        first = same.real.folds == 0
        mixed = Pairs(*(
            replace(s, tokens=torch.where(first, o.tokens, s.tokens))
            for s, o in ((same.real, other.real), (same.fake, other.fake))
        ))  # fmt: skip
        judges.train(mixed, 3, torch.Generator().manual_seed(0))
        ends.append(judges.judge_of(0).context.weight.detach().clone())
    assert (ends[0] == ends[1]).all()


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 2.0, 5.0])
def test_scores_are_brought_to_the_odds_that_they_are_taken_for(too_sure: float) -> None:
    """A judge whose scores are a multiple of the true log-odds is divided by it; one of pure noise is not heard."""
    generator = torch.Generator().manual_seed(3)
    judges = CrossFitted([judge(rank=1) for _ in range(2)])
    with torch.no_grad():
        for one in judges.judges:  # d(c, v) = the first number of the features, times that of the token
            one.context.weight.zero_()
            one.context.weight[0, 0] = too_sure
            one.token.weight.zero_()
            one.token.weight[0, 0] = 1.0
    value = float(judges.judges[0].embedding[1, 0])
    odds = torch.randn(40_000, generator=generator)
    real = torch.rand(40_000, generator=generator) < odds.sigmoid()
    features = torch.zeros(40_000, judges.judges[0].context.in_features)
    features[:, 0] = odds / value

    def tokens(which: Tensor) -> Tokens:
        count = int(which.sum())
        return Tokens(
            features[which], torch.ones(count, dtype=torch.long), torch.arange(count) % 2, torch.arange(count),
            torch.zeros(count),
        )  # fmt: skip

    judges.watch(Pairs(tokens(real), tokens(~real)))
    assert judges.control.scale == pytest.approx(min(1.0, 1 / too_sure), abs=0.05)
    at_random = torch.rand(40_000, generator=generator) < 0.5
    noise = CrossFitted(judges.judges)
    noise.watch(Pairs(tokens(at_random), tokens(~at_random)))
    assert noise.control.scale <= 0.025


def test_the_controller_keeps_the_band() -> None:
    weak, strong = Control(held_out=0.5), Control(held_out=0.95)
    for _ in range(40):
        weak.saw(0.52, 0.9)
        strong.saw(0.99, 0.99)
    assert weak.steps == weak.most
    assert strong.steps == strong.least
    assert weak.trust == pytest.approx(0.2, abs=0.05)
    assert strong.trust == 1.0
    assert sum(strong.due() for _ in range(16)) == 2  # one step in eight
    fixed = Control(fixed=True)
    for _ in range(40):
        fixed.saw(0.5, 0.5)
    assert fixed.steps == 1.0
    assert fixed.trust == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_judges_go_on_from_their_state(kind: type[Factored]) -> None:
    one, two = (pair_of_judges(kind, penalty=0.1, replay=60) for _ in range(2))
    g = torch.Generator()
    for step in range(5):
        one.train(told_first(12, step), 2, g.manual_seed(step))
    two.restore(one.state())
    for step in range(5, 9):
        for judges in (one, two):
            judges.train(told_first(12, step), 2, g.manual_seed(step))
            judges.watch(told_first(12, step))
    for key, value in one.state().items():
        assert (value == two.state()[key]).all(), key


# -- rollouts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(0, 1))
def test_reward_to_go_is_the_discounted_sum(rewards: list[float], discount: float) -> None:
    expected = [sum(discount**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    assert to_go(np.array(rewards), discount) == pytest.approx(expected, abs=1e-9)


def test_advantages_are_relative_to_the_group() -> None:
    gains = advantages([np.array([1.0]), np.array([3.0]), np.array([5.0]), np.array([5.0])], [0, 0, 1, 1], 0.8)
    assert gains[0][0] == -gains[1][0] < 0
    assert gains[2][0] == gains[3][0] == 0


# -- the objective ----------------------------------------------------------------------------------------------------


def started(
    base: Base, kind: str = "prompt-generator", into: str = "tokens", **options: Any
) -> tuple[Adversarial, Any]:
    parameterisation = get_parameterisation(kind)
    sizes = {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4, "into": into} if kind == "prompt-generator" else {}
    tuned = parameterisation.attach(base, parameterisation.options(**sizes), tiny.colour_task(), 0)
    objective = Adversarial(
        base, tiny.colour_task(), AdversarialOptions(**{"warmup_steps": 2, "rank": 4, **options}), batch_size=6,
        max_tokens=4096, limit=None, seed=0,
    )  # fmt: skip
    objective.begin(tuned.model, tuned.module)
    return objective, tuned


@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("chunk", [512, 3])
def test_the_signal_on_references_is_the_exact_expectation(
    small_base: Base, discriminator: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: the gradient of −Σ_v π(v) d(v) by the logits is −π (d − Σ π d), wherever chunks cut the rows."""
    monkeypatch.setattr("kamerton.objectives.adversarial.OUTPUT_CHUNK", chunk)
    objective, tuned = started(small_base, anchor=0.0, kl=0.0, correction=False, controller=False,
                               discriminator=discriminator)  # fmt: skip
    (batch,) = objective.batches(0, tuned.model)
    hidden = tuned.model.target_hidden(batch.batch).detach()
    logits = tuned.model.output(hidden).float().detach().requires_grad_()
    own = tuned.model.output
    calls = iter(logits.split(chunk))
    tuned.model.output = lambda _: next(calls)  # type: ignore[method-assign]
    objective.loss(tuned.model, batch).total.backward()
    tuned.model.output = own  # type: ignore[method-assign]
    p = logits.detach().softmax(-1)
    folds = torch.as_tensor(objective._fold[batch.owners])
    d = objective.judges.vocabulary(objective.judges.contexts(batch.features, batch.rows, folds), folds)
    expected = -p * (d - (p * d).sum(-1, keepdim=True))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-4)


def test_at_the_start_the_divergence_is_nothing(small_base: Base) -> None:
    objective, tuned = started(small_base)
    (batch,) = objective.batches(0, tuned.model)
    loss = objective.loss(tuned.model, batch)
    assert abs(loss.metrics["kl"]) < 1e-3
    with torch.no_grad():
        for p in tuned.module.parameters():
            if p.requires_grad:
                p += 0.3
    (later,) = objective.batches(1, tuned.model)
    moved = objective.loss(tuned.model, later)
    # by hand, from the two distributions
    with torch.no_grad():
        now = tuned.model.output(tuned.model.target_hidden(later.batch)).log_softmax(-1)
        with objective._at_start():
            before = tuned.model.output(tuned.model.target_hidden(later.batch)).log_softmax(-1)
    assert moved.metrics["kl"] == pytest.approx(float((now.exp() * (now - before)).sum()), rel=1e-3)
    assert moved.metrics["kl"] > 0.1


def test_rollouts_move_towards_what_is_rewarded(small_base: Base) -> None:
    """A discriminator that likes one token: after some steps of the policy gradient the model says it more often."""
    objective, tuned = started(
        small_base, path="rollouts", anchor=0.0, kl=0.0, correction=False, controller=False, warmup_steps=0, group=8,
    )  # fmt: skip
    liked = small_base.renderer.answer("red")[0]
    objective.judges.tokens = lambda features, tokens, _: (tokens == liked).float()  # type: ignore[method-assign]
    optimiser = torch.optim.Adam([p for p in tuned.module.parameters() if p.requires_grad], lr=0.05)

    def chance() -> float:
        prompts = [small_base.renderer.prompt(e.messages) for e in tiny.colour_task().test]
        with torch.no_grad():
            return float(tuned.model.output(tuned.model.next_hidden(prompts)).softmax(-1)[:, liked].mean())

    before = chance()
    for step in range(25):
        batches = objective.batches(step, tuned.model)
        sum(objective.loss(tuned.model, b).total for b in batches).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert chance() > 3 * before


# -- the method -------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4, "learning_rate": 0.02}
STAGE: dict[str, Any] = {"warmup_steps": 2, "rank": 4, "validations": 2, "queries": 2, "group": 2}


@pytest.mark.parametrize(
    ("path", "discriminator", "into"),
    [("references", "factored", "tokens"), ("rollouts", "factored", "tokens"), ("both", "factored", "tokens"),
     ("both", "attention", "keys-values")],
)  # fmt: skip
def test_it_is_saved_and_loaded_and_answers_the_same(
    small_base: Base, tmp_path: Path, path: str, discriminator: str, into: str
) -> None:
    adapted = tiny.fit(small_base, "gan-prompt", tmp_path / "fit", budget=Budget(steps=10), **SMALL, into=into,
                       adversarial={**STAGE, "path": path, "discriminator": discriminator})  # fmt: skip
    assert "Adversarial stage" in [f.title for f in adapted.record.findings]
    assert any("adversarial training" in note for note in adapted.record.notes)
    adapted.save(tmp_path / "saved")
    loaded = load_adapted(tmp_path / "saved", small_base)
    asked = [e.messages for e in tiny.colour_task().test]
    answers = [["red", "blue", "green"]] * len(asked)
    assert loaded.score(asked, answers) == adapted.score(asked, answers)


@pytest.mark.parametrize("kind", ["prompt-tuning", "lora", "full"])
def test_the_objective_works_with_other_parameterisations(small_base: Base, tmp_path: Path, kind: str) -> None:
    sizes = {"tokens": 6} if kind == "prompt-tuning" else {}
    adapted = tiny.fit(small_base, kind, tmp_path, budget=Budget(steps=10), learning_rate=0.01, objective="adversarial",
                       adversarial=STAGE, **sizes)  # fmt: skip
    assert any("reward" in row for row in adapted.record.curve)


@pytest.mark.parametrize(("discriminator", "into"), [("factored", "tokens"), ("attention", "keys-values")])
def test_stopped_anywhere_it_goes_on_bit_for_bit(
    small_base: Base, tmp_path: Path, discriminator: str, into: str
) -> None:
    """Both networks, optimisers, the buffer and the average: a stage stopped at every step ends the same."""
    ends = []
    for stops in ((), (1, 2, 3, 4, 5)):
        folder = tmp_path / f"{len(stops)}"
        for stop in (*stops, None):
            objective, tuned = started(
                small_base, into=into, path="both", queries=2, group=2, discriminator=discriminator
            )
            settings = Settings(learning_rate=0.01, betas=(0.5, 0.999), validations=2, average=0.8, validate_start=True)
            result = fit(tuned.model, tuned.module, objective, settings, Budget(steps=6), folder, stop_after=stop)
        weights = {n: p.detach().clone() for n, p in tuned.module.named_parameters() if p.requires_grad}
        ends.append((weights, objective.state(), result.state.curve, result.validation_loss))
    for (name, one), two in zip(ends[0][0].items(), ends[1][0].values(), strict=True):
        assert (one == two).all(), name
    assert ends[0][1].keys() == ends[1][1].keys()
    assert all((v == ends[1][1][k]).all() for k, v in ends[0][1].items())
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in end[2]] for end in ends]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1])
    assert ends[0][3] == ends[1][3]


def test_without_a_gain_the_start_is_kept(small_base: Base, tmp_path: Path) -> None:
    """A stage that ruins the model (a planted rate) gives back the supervised start, bit for bit."""
    plain = tiny.fit(small_base, "prompt-generator", tmp_path / "plain", budget=Budget(steps=6), **SMALL)
    ruined = tiny.fit(small_base, "gan-prompt", tmp_path / "ruined", budget=Budget(steps=10), **SMALL,
                      adversarial={**STAGE, "rate": 1000.0, "average": 0.0})  # fmt: skip
    assert any("brought nothing" in note for note in ruined.record.notes)
    assert plain.tuned is not None
    assert ruined.tuned is not None
    saved = [{n: p for n, p in a.tuned.module.named_parameters() if "generator_" in n} for a in (plain, ruined)]
    assert all((saved[0][n] == saved[1][n]).all() for n in saved[0])


def test_bad_input_is_one_line(small_base: Base, tmp_path: Path) -> None:
    task = tiny.colour_task()
    same = replace(task, train=tuple(replace(e, answers=("red",)) for e in task.train))
    with pytest.raises(KamertonError, match="all reference answers are equal"):
        tiny.fit(small_base, "gan-prompt", tmp_path / "a", task=same, budget=Budget(steps=10), **SMALL)
    few = replace(task, train=task.train[:5])
    adapted = tiny.fit(small_base, "gan-prompt", tmp_path / "b", task=few, budget=Budget(steps=10), **SMALL,
                       adversarial=STAGE)  # fmt: skip
    assert any("too few for two discriminators" in note for note in adapted.record.notes)
    method = get_method("gan-prompt")
    options = parse_options(method, {**SMALL, "adversarial": {**STAGE, "discriminator_rate": 1e30}})
    with pytest.raises(KamertonError, match="discriminator's loss is not a number"):
        method.fit(small_base, task, Budget(steps=10), options, Run(tmp_path / "c"))


def test_the_ratio_is_in_the_order_of_the_answers_whatever_a_pass_holds(small_base: Base) -> None:
    """Passes are filled by length; each answer's log π/π_ref must come back to its place."""
    objective, tuned = started(small_base)
    rows = sorted(objective._rendered[:6], key=lambda r: -len(r.tokens))
    with torch.no_grad():
        for p in tuned.module.parameters():
            if p.requires_grad:
                p += 0.3
    owners = [0, 1, 0, 2, 1, 2]
    at_once = objective._ratio(tuned.model, rows, owners)
    alone = torch.cat([objective._ratio(tuned.model, [row], [0]) for row in rows])
    objective.max_tokens = max(len(r.tokens) for r in rows) + 1  # one row a pass, or two short ones
    torch.testing.assert_close(at_once, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(objective._ratio(tuned.model, rows, owners), alone, atol=1e-4, rtol=1e-4)
    assert alone.abs().max() > 0.01

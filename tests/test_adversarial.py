"""The discriminator, the two paths of its signal, the stage behind a supervised start, and what it keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from kamerton.base import Base
from kamerton.errors import KamertonError
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Run
from kamerton.objectives.adversarial import Adversarial
from kamerton.objectives.adversarial_options import AdversarialOptions
from kamerton.objectives.rollouts import advantages, to_go
from kamerton.rewards.discriminator import Control, CrossFitted, Factored, Pairs, auc
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


def judge(rank: int = 4, seed: int = 0) -> Factored:
    torch.manual_seed(seed)
    return Factored(10, torch.randn(20, 6), rank)


def test_a_whole_vocabulary_is_scored_as_its_tokens_one_by_one() -> None:
    d, features = judge(), torch.randn(5, 10)
    whole = d.of_vocabulary(features)
    for token in range(20):
        one = d.of_tokens(features, torch.full((5,), token))
        torch.testing.assert_close(whole[:, token], one.detach())


def test_the_penalty_is_the_gradient_by_the_features() -> None:
    d, features = judge(), torch.randn(7, 10, requires_grad=True)
    tokens = torch.randint(20, (7,))
    (gradient,) = torch.autograd.grad(d.of_tokens(features, tokens).sum(), features)
    torch.testing.assert_close(d.penalty(tokens), gradient.pow(2).sum(1).mean())


def separable(count: int, seed: int) -> Pairs:
    """References whose token is decided by their context; the model's tokens are chance."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 10, generator=g)
    real = (features[:, 0] > 0).long() + 2 * (features[:, 1] > 0).long()
    fake = torch.randint(4, (count,), generator=g)
    folds = torch.arange(count) % 2
    none = torch.zeros(count)
    return Pairs(features, real, folds, features, fake, folds, none, none)


def chance(count: int, seed: int) -> Pairs:
    """References that nothing tells from the model's tokens."""
    g = torch.Generator().manual_seed(seed)
    pairs = separable(count, seed)
    return replace(pairs, real=torch.randint(4, (count,), generator=g))


def pair_of_judges() -> CrossFitted:
    return CrossFitted([judge(8, 1), judge(8, 2)], learning_rate=1e-2, decay=0.0, penalty=0.0)


def test_what_can_be_told_apart_is_learned() -> None:
    judges, g = pair_of_judges(), torch.Generator().manual_seed(0)
    for step in range(60):
        judges.train(separable(64, step), 2, g)
    for step in range(60):
        judges.watch(separable(64, 1000 + step))
    assert judges.control.held_out > 0.75


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
        first = same.folds == 0
        mixed = replace(
            same, real=torch.where(first, other.real, same.real), fake=torch.where(first, other.fake, same.fake),
        )  # fmt: skip
        judges.train(mixed, 3, torch.Generator().manual_seed(0))
        ends.append(judges.judge_of(0).context.weight.detach().clone())
    assert (ends[0] == ends[1]).all()


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


def test_judges_go_on_from_their_state() -> None:
    one, two, g = pair_of_judges(), pair_of_judges(), torch.Generator()
    for step in range(5):
        one.train(separable(30, step), 2, g.manual_seed(step))
    two.restore(one.state())
    for step in range(5, 9):
        for judges in (one, two):
            judges.train(separable(30, step), 2, g.manual_seed(step))
            judges.watch(separable(30, step))
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


def started(base: Base, kind: str = "prompt-generator", **options: Any) -> tuple[Adversarial, Any]:
    parameterisation = get_parameterisation(kind)
    sizes = {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4} if kind == "prompt-generator" else {}
    tuned = parameterisation.attach(base, parameterisation.options(**sizes), tiny.colour_task(), 0)
    objective = Adversarial(
        base, tiny.colour_task(), AdversarialOptions(**{"warmup_steps": 2, "rank": 4, **options}), batch_size=6,
        max_tokens=4096, limit=None, seed=0,
    )  # fmt: skip
    objective.begin(tuned.model, tuned.module)
    return objective, tuned


def test_the_signal_on_references_is_the_exact_expectation(small_base: Base) -> None:
    """By hand: the gradient of −Σ_v π(v) d(v) by the logits is −π (d − Σ π d)."""
    objective, tuned = started(small_base, anchor=0.0, kl=0.0, correction=False, controller=False)
    (batch,) = objective.batches(0, tuned.model)
    hidden = tuned.model.target_hidden(batch.batch).detach()
    logits = tuned.model.output(hidden).float().detach().requires_grad_()
    own = tuned.model.output
    tuned.model.output = lambda _: logits  # type: ignore[method-assign]
    objective.loss(tuned.model, batch).total.backward()
    tuned.model.output = own  # type: ignore[method-assign]
    p = logits.detach().softmax(-1)
    d = objective.judges.vocabulary(batch.features, torch.as_tensor(objective._fold[batch.owners]))
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


@pytest.mark.parametrize("path", ["references", "rollouts", "both"])
def test_it_is_saved_and_loaded_and_answers_the_same(small_base: Base, tmp_path: Path, path: str) -> None:
    adapted = tiny.fit(small_base, "gan-prompt", tmp_path / "fit", budget=Budget(steps=10), **SMALL,
                       adversarial={**STAGE, "path": path})  # fmt: skip
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


def test_stopped_anywhere_it_goes_on_bit_for_bit(small_base: Base, tmp_path: Path) -> None:
    """Both networks, optimisers, the buffer and the average: a stage stopped at every step ends the same."""
    ends = []
    for stops in ((), (1, 2, 3, 4, 5)):
        folder = tmp_path / f"{len(stops)}"
        for stop in (*stops, None):
            objective, tuned = started(small_base, path="both", queries=2, group=2)
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

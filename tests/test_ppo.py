"""PPO: its parts by hand, what it learns where the best policy is known, and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import bandit
import tiny
from bandit import right, started
from kamerton.base import Base
from kamerton.methods import get_method, parse_options
from kamerton.objectives import ppo
from kamerton.objectives.advantage import generalised_advantages, whitened
from kamerton.objectives.policy_batches import policy_batches
from kamerton.objectives.ppo import Coefficient, Spread, ValueHead, value_loss
from kamerton.objectives.ppo_options import PpoOptions
from kamerton.tasks.example import Example
from kamerton.training import Budget
from test_grpo import Chance, Red, gradients, move, step_loss

pytest_plugins = ("tiny", "bandit")
pytestmark = pytest.mark.usefixtures("one_thread")

# -- advantages -------------------------------------------------------------------------------------------------------


def direct(rewards: Sequence[float], values: Sequence[float], discount: float, trace: float) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}, term by term."""
    after = [*values[1:], 0.0]
    deltas = [r + discount * v1 - v0 for r, v0, v1 in zip(rewards, values, after, strict=True)]
    return [sum((discount * trace) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_generalised_advantages_by_hand() -> None:
    rewards, values = np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.25, 0.75])
    # λ = 0: the errors of one step; λ = 1, γ = 1: what is to come less the value; between them, by pencil
    assert generalised_advantages(rewards, values, 1.0, 0.0).tolist() == [-0.25, 0.5, 0.25]
    assert generalised_advantages(rewards, values, 1.0, 1.0).tolist() == [0.5, 0.75, 0.25]
    assert generalised_advantages(rewards, values, 1.0, 0.5).tolist() == [0.0625, 0.625, 0.25]
    assert generalised_advantages(rewards, values, 0.5, 0.5) == pytest.approx([-0.328125, 0.1875, 0.25])


floats = st.floats(-3, 3)


@settings(max_examples=80)
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=10), st.floats(0, 1), st.floats(0, 1))
def test_generalised_advantages_are_the_direct_sum(
    steps: list[tuple[float, float]], discount: float, trace: float
) -> None:
    rewards, values = ([s[i] for s in steps] for i in range(2))
    found = generalised_advantages(np.array(rewards), np.array(values), discount, trace)
    assert found == pytest.approx(direct(rewards, values, discount, trace), abs=1e-9)


def test_whitened_advantages() -> None:
    found = whitened(np.array([1.0, 2.0, 6.0]))
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)
    assert whitened(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


# -- values, coefficient, spread --------------------------------------------------------------------------------------


def test_the_value_loss_is_clipped_by_hand() -> None:
    """Old value 1, clip 0.2. What has moved too far counts where it stands or at the clip, whichever is worse."""
    values = torch.tensor([1.1, 1.5, 1.5, 0.5], requires_grad=True)
    returns = torch.tensor([2.0, 2.0, 0.0, 2.0])
    loss = value_loss(values, torch.ones(4), returns, 0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.405, 0.32, 1.125, 1.125]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([-0.9, 0.0, 1.5, -1.5]))


def test_the_coefficient_follows_its_target() -> None:
    """Ziegler et al.: β (1 + 0.1 · clip(KL / target − 1, ±0.2))."""
    beta = Coefficient(0.5, 4.0)
    for kl, expected in ((4.4, 0.505), (40.0, 0.505 * 1.02), (0.0, 0.505 * 1.02 * 0.98)):
        beta.saw(kl)
        assert beta.value == pytest.approx(expected)
    fixed = Coefficient(0.5, None)
    fixed.saw(40.0)
    assert fixed.value == 0.5


@given(st.lists(st.lists(floats, min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_running_deviation_is_that_of_all_rewards(rounds: list[list[float]]) -> None:
    spread = Spread()
    for rewards in rounds:
        spread.saw(np.array(rewards))
    expected = float(np.std(np.concatenate(rounds)))
    assert spread.value == pytest.approx(expected if expected > 1e-8 else 1.0, abs=1e-6)


def test_the_value_head_starts_at_nothing_and_is_float32() -> None:
    head = ValueHead(8, 1e-3)
    assert not bool(head(torch.randn(5, 8)).any())
    torch.nn.init.normal_(head.out.weight)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(torch.ones(2, 8))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, head(torch.ones(2, 8)))


def test_the_value_head_sees_every_feature_at_one_scale() -> None:
    """What matters has a thousandth of the spread of what does not, and is found in a few steps."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 8, generator=g) * torch.tensor([1.0] * 7 + [0.001]) + 5
    returns = (hidden[:, 7] - 5) * 1000
    torch.manual_seed(0)
    head = ValueHead(8, 1e-3)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(60):
        loss = ((head(hidden) - returns) ** 2).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert float(loss.detach()) < 0.1 * float(returns.var())


# -- a round ----------------------------------------------------------------------------------------------------------


def test_a_round_by_hand(bandit_base: Base) -> None:
    """Rewards, returns and advantages of every token from their parts, and the loss from the paper's formula."""
    options: dict[str, Any] = {"queries": 6, "minibatches": 1, "kl": 0.3, "temperature": 0.8, "trace": 0.9, "clip": 0.1,
                               "discount": 0.97, "normalise": False, "value_weight": 0.5}  # fmt: skip
    objective, tuned = started(bandit_base, "ppo", reward=Chance(), **options)
    move(tuned.module, 1)
    torch.nn.init.normal_(objective.extra.out.weight, generator=torch.Generator().manual_seed(0))
    objective.batches(0, tuned.model)
    rollouts = objective._rollouts
    assert rollouts is not None
    texts = [bandit_base.renderer.decode([t for t in r.tokens[r.prompt_length :] if t]) for r in rollouts.rows]
    order = np.random.default_rng([0, 0]).permutation(12)[:6]
    scores = Chance()([objective.task.train[n] for n in order], texts)
    gains, returns = [], []
    columns = (rollouts.split(n) for n in ("old", "start", "value"))
    for score, old, start, value in zip(scores, *columns, strict=True):
        assert float((old - start).abs().max()) > 1e-3
        rewards = (-0.3 * (old - start)).double().numpy()
        rewards[-1] += score
        gains.append(direct(rewards.tolist(), value.double().tolist(), 0.97, 0.9))
        returns += [a + float(v) for a, v in zip(gains[-1], value, strict=True)]
    flat = np.concatenate(gains)
    expected = torch.tensor((flat - flat.mean()) / flat.std(), dtype=torch.float32)
    torch.testing.assert_close(rollouts.values["advantages"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        rollouts.values["returns"], torch.tensor(returns, dtype=torch.float32), atol=1e-5, rtol=1e-5
    )
    explained = 1 - np.var(flat) / np.var(returns)
    assert rollouts.metrics["explained"] == pytest.approx(explained, rel=1e-4)
    assert rollouts.metrics["kl"] == pytest.approx(
        float((rollouts.values["old"] - rollouts.values["start"]).mean()), abs=1e-6
    )
    # the policy and its critic have moved on
    move(tuned.module, 2)
    move(objective.extra, 3)
    batches = policy_batches(rollouts, range(6), 4096)
    found = step_loss(objective, tuned.model, batches)
    total = torch.zeros(())
    for row, old, gain, value, back in zip(
        rollouts.rows, *(rollouts.split(n) for n in ("old", "advantages", "value", "returns")), strict=True
    ):
        ids, p = torch.tensor([row.tokens]), row.prompt_length
        out = tuned.model.hf(ids, output_hidden_states=True)
        log_p = (out.logits[0, p - 1 : -1] / 0.8).log_softmax(-1).gather(1, ids[0, p:, None])[:, 0]
        ratio = (log_p - old).exp()
        policy_loss = -torch.min(ratio * gain, ratio.clamp(0.9, 1.1) * gain)
        v = objective.extra(out.hidden_states[-1][0, p - 1 : -1])
        near = torch.max(torch.min(v, value + 0.2), value - 0.2)
        total = total + (policy_loss + 0.5 * 0.5 * torch.max((v - back) ** 2, (near - back) ** 2)).sum()
    assert float(found.detach()) == pytest.approx(float(total.detach()) / sum(rollouts.lengths), abs=1e-5)


def test_rewards_are_divided_by_their_running_deviation(bandit_base: Base) -> None:
    """With γ = λ = 1, no penalty and values of 0, every token's return is the answer's reward over the deviation."""
    objective, tuned = started(
        bandit_base, "ppo", reward=Chance(), queries=6, minibatches=2, epochs=1, kl=0.0, trace=1.0
    )
    seen: list[float] = []
    for step in range(4):
        objective.batches(step, tuned.model)
        rollouts = objective._rollouts
        assert rollouts is not None
        if step % 2 == 0:
            scores = [float(r[-1]) for r in rollouts.split("returns")]
            assert all(float(r.std(unbiased=False)) < 1e-6 for r in rollouts.split("returns"))
            worth = np.array(scores) * objective.spread.value
            seen += worth.tolist()
            assert objective.spread.value == pytest.approx(np.std(seen), rel=1e-4)


def test_minibatches_are_every_answer_once_an_epoch(bandit_base: Base) -> None:
    objective, tuned = started(bandit_base, "ppo", queries=7, minibatches=3, epochs=2)
    steps = [objective.batches(i, tuned.model) for i in range(6)]
    parts = [objective.pick(place, 7) for place in range(6)]
    assert [sum(len(b.batch.rows) for b in step) for step in steps] == [len(p) for p in parts]
    for epoch in (parts[:3], parts[3:]):
        assert sorted(i for part in epoch for i in part) == list(range(7))
    assert parts[:3] != parts[3:]
    assert [sum(b.examples for b in step) for step in steps] == [7, 0, 0, 0, 0, 0]


def test_accumulation_and_order_leave_the_loss_unchanged(bandit_base: Base) -> None:
    objective, tuned = started(bandit_base, "ppo", reward=Chance(), queries=8, minibatches=1)
    objective.batches(0, tuned.model)
    rollouts = objective._rollouts
    assert rollouts is not None
    move(tuned.module, 1)
    move(objective.extra, 2)
    results = []
    for picked, most in ((range(8), 4096), (range(8), 1), (range(7, -1, -1), 40)):
        batches = policy_batches(rollouts, list(picked), most)
        loss = step_loss(objective, tuned.model, batches)
        loss.backward()
        results.append((len(batches), float(loss.detach()), gradients(tuned.module), gradients(objective.extra)))
    assert len({n for n, *_ in results}) == 3
    for _, loss, *own in results[1:]:
        assert loss == pytest.approx(results[0][1], abs=1e-6)
        for found, known in zip(own, results[0][2:], strict=True):
            for name, value in found.items():
                torch.testing.assert_close(value, known[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("trunk", [False, True])
def test_the_value_loss_moves_the_model_only_where_asked(bandit_base: Base, trunk: bool) -> None:
    objective, tuned = started(bandit_base, "ppo", "lora", reward=Chance(), queries=4, minibatches=1, value_trunk=trunk)
    torch.nn.init.normal_(objective.extra.out.weight)
    (batch, *_) = objective.batches(0, tuned.model)
    batch.values["advantages"].zero_()  # the policy has nothing to learn
    objective.loss(tuned.model, batch).total.backward()
    moved = any(bool(g.any()) for g in gradients(tuned.module).values())
    assert moved == trunk
    assert any(bool(g.any()) for g in gradients(objective.extra).values())


# -- learning ---------------------------------------------------------------------------------------------------------

LEARN: dict[str, Any] = {"queries": 96, "epochs": 2, "minibatches": 2, "kl": 0.0, "value_rate": 3e-3}


@pytest.mark.parametrize(("kind", "rate"), [("full", 2e-3), ("lora", 5e-3)])
def test_it_learns_what_is_right(bandit_base: Base, tmp_path: Path, kind: str, rate: float) -> None:
    """One of four answers is right, which one the question says: a quarter at the start, above 0.9 after."""
    objective, tuned = started(bandit_base, "ppo", kind, **LEARN)
    result = bandit.train(objective, tuned, tmp_path, steps=80, rate=rate)
    assert right(bandit_base, tuned.model) > 0.9
    assert np.mean([row["reward"] for row in result.state.curve[-8:]]) > 0.9
    assert result.validation_loss == 0.0


def test_the_value_head_learns_to_tell_what_will_be_rewarded(bandit_base: Base, tmp_path: Path) -> None:
    """While the policy stands still: behind a colour it is decided what the answer will get."""
    objective, tuned = started(bandit_base, "ppo", "lora", reward=Red(), **{**LEARN, "value_rate": 1e-2})
    result = bandit.train(objective, tuned, tmp_path, steps=60, rate=1e-6)
    explained = [row["explained"] for row in result.state.curve]
    assert explained[0] == pytest.approx(0.0, abs=0.02)
    assert np.mean(explained[-8:]) > 0.25


def test_with_the_sign_of_the_advantage_flipped_it_does_not(
    bandit_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "whitened", lambda a: -whitened(a))
    objective, tuned = started(bandit_base, "ppo", **LEARN)
    bandit.train(objective, tuned, tmp_path, steps=50, rate=2e-3)
    assert right(bandit_base, tuned.model) < bandit.START


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.slow
def test_the_penalty_balances_the_reward_as_it_must(bandit_base: Base, tmp_path: Path, sign: int) -> None:
    """π ∝ start · exp(r / β): with β = 1, of four answers equally likely at first, e / (e + 3).

    With the penalty's sign flipped there is no such balance.
    """
    objective, tuned = started(bandit_base, "ppo", reward=Red(), queries=96, epochs=1, minibatches=2, kl=1.0,
                               whiten=False, normalise=False, value_rate=3e-3)  # fmt: skip
    objective.beta.value *= sign
    bandit.train(objective, tuned, tmp_path, steps=80, rate=1e-3, floor=0.1)
    found = float(bandit.chances(bandit_base, tuned.model)[:, tiny.COLOURS.index("red")].mean())
    apart = abs(found - np.e / (np.e + 3))
    assert apart < 0.06 if sign > 0 else apart > 0.12


# -- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full", "prompt-tuning", "prompt-generator", "prefix-tuning"])
def test_it_works_with_every_parameterisation(small_base: Base, tmp_path: Path, kind: str) -> None:
    sizes = {
        "prompt-tuning": {"tokens": 6}, "prefix-tuning": {"tokens": 4},
        "prompt-generator": {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4},
    }.get(kind, {})  # fmt: skip
    adapted = tiny.fit(
        small_base, kind, tmp_path, budget=Budget(steps=8), learning_rate=0.01, objective="ppo", reward="token-f1",
        ppo={"queries": 4, "minibatches": 2, "epochs": 1, "validations": 1}, **sizes,
    )  # fmt: skip
    titles = [f.title for f in adapted.record.findings]
    assert titles == ["PPO: reward", "PPO: divergence and entropy", "PPO: length", "PPO: shares", "PPO: critic",
                      "Samples as training goes on", "Reward and metric"]  # fmt: skip
    assert not any("extra" in n for n, _ in adapted.tuned.module.named_parameters())  # type: ignore[union-attr]
    stage = [row for row in adapted.record.curve if "reward" in row]
    assert len(stage) == 4
    assert stage[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_value_head_learns_at_its_own_rate(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method's rates: the stage's peak times `rate` is the model's, the head's is its own."""
    seen: dict[str, float] = {}
    own = torch.optim.AdamW

    def watched(groups: Any, **more: Any) -> Any:
        seen.update({str(i): g["rate"] * more["lr"] for i, g in enumerate(groups)})
        return own(groups, **more)

    monkeypatch.setattr(torch.optim, "AdamW", watched)
    tiny.fit(small_base, "lora", tmp_path, budget=Budget(steps=2), learning_rate=0.01, objective="ppo", reward="token-f1",
             ppo={"queries": 2, "minibatches": 1, "share": 1.0, "value_rate": 0.004})  # fmt: skip
    assert sorted(seen.values()) == pytest.approx([0.004, 0.005])


def test_stopped_anywhere_it_goes_on_bit_for_bit(bandit_base: Base, tmp_path: Path) -> None:
    """Stopped after every step, between minibatches too: the same weights, critic, coefficient, curve and state."""
    ends = []
    for stops in ((), (1, 2, 3, 4, 5, 6)):
        for stop in (*stops, None):
            objective, tuned = started(bandit_base, "ppo", "lora", queries=6, minibatches=2, epochs=2, kl_target=1.0)
            result = bandit.train(objective, tuned, tmp_path / f"{len(stops)}", steps=7, rate=1e-2, stop_after=stop,
                                  validations=2, validate_start=True, average=0.5)  # fmt: skip
        trained = [*tuned.module.named_parameters(), *objective.extra.named_parameters()]
        weights = {n: p.detach().clone() for n, p in trained if p.requires_grad}
        ends.append((weights, objective.state(), result.state.curve))
    for (name, one), two in zip(ends[0][0].items(), ends[1][0].values(), strict=True):
        assert (one == two).all(), name
    assert ends[0][1].keys() == ends[1][1].keys()
    assert all((v == ends[1][1][k]).all() for k, v in ends[0][1].items())
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in end[2]] for end in ends]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1])


def test_bad_options_are_one_line() -> None:
    for options, said in (({"minibatches": 4, "queries": 3}, "4 minibatches of 3 answers"),
                          ({"kl": 0.0, "kl_target": 3.0}, "adapts a coefficient that is 0")):  # fmt: skip
        with pytest.raises(ValidationError, match=said):
            PpoOptions(**options)
    lora = get_method("lora")
    assert parse_options(lora, {"objective": "ppo", "ppo": {"kl_target": 6.0}}).ppo.kl_target == 6.0


class Answered(Chance):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        self.asked += [e.id for e in examples]
        return super().__call__(examples, answers)


def test_more_answers_than_questions_go_over_the_questions_again(bandit_base: Base) -> None:
    reward = Answered()
    objective, tuned = started(bandit_base, "ppo", reward=reward, queries=24, minibatches=1)
    objective.batches(0, tuned.model)
    assert sorted(reward.asked) == sorted(e.id for e in bandit.task().train for _ in range(2))

"""GRPO against TRL's, the temperature in its ratios, what it learns where the best policy is known, and resuming."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import bandit
import tiny
from bandit import Right, right, started
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, RewardError, TaskError
from kamerton.methods import get_method, parse_options
from kamerton.methods.defined import check_fits
from kamerton.methods.policy_findings import policy_findings, policy_warnings
from kamerton.objectives import get_objective, grpo, policy, probabilities, surrogate
from kamerton.objectives.grpo import Grpo, group_advantages
from kamerton.objectives.policy import Group
from kamerton.objectives.policy_batches import Rollouts, grouped, policy_batches
from kamerton.objectives.rollouts import Rollout
from kamerton.objectives.surrogate import clipped_surrogate, divergence
from kamerton.rendering import Rendered
from kamerton.tasks.example import Example
from kamerton.training import Budget

pytest_plugins = ("tiny", "bandit")
pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def move(module: torch.nn.Module, seed: int, by: float = 0.02) -> None:
    """Move everything that is trained a little."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        if p.requires_grad:
            p += by * torch.randn(p.shape, generator=g)


class Chance:
    """Rewards that are chance, the same for the same answer."""

    name, range = "chance", (0.0, 1.0)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        return np.array(
            [(len(e.id) * 31 + sum(map(ord, a)) * 17) % 101 / 100 for e, a in zip(examples, answers, strict=True)]
        )


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def step_loss(objective: Any, model: Any, batches: Sequence[Any]) -> torch.Tensor:
    """The loss of a step, as the loop has it."""
    return sum(objective.loss(model, b).total for b in batches) / sum(b.count for b in batches)


# -- TRL --------------------------------------------------------------------------------------------------------------


def trl_trainer(
    model: Any, base: Base, folder: Path, rollouts: Rollouts, rewards: Sequence[float], **config: Any
) -> Any:
    """TRL's trainer, whose rollouts and rewards are ours."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = rollouts.rows
    prompts = [list(r.tokens[: r.prompt_length]) for r in rows]
    said = [list(r.tokens[r.prompt_length :]) for r in rows]
    arguments = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(rows), use_cpu=True, report_to=[], bf16=False,
        gradient_checkpointing=False, steps_per_generation=1, **config,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=lambda prompts, completions, **_: list(rewards), args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * len(rows)), processing_class=base.renderer.tokenizer,
        rollout_func=lambda *_: {"prompt_ids": prompts, "completion_ids": said, "logprobs": None},
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"kl_unbiased": False}, {"loss_type": "grpo", "use_bias_correction_kl": False}),
    "grpo, DeepSeek-V3.2's divergence": ({}, {"loss_type": "grpo"}),
    "grpo without KL": ({"kl": 0.0}, {"loss_type": "grpo"}),
    "Dr. GRPO": ({"length": "constant", "deviation": False}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "bnpo": ({"length": "token"}, {"loss_type": "bnpo"}),
    "DAPO": ({"length": "token", "clip": 0.05, "clip_high": 0.1, "kl": 0.0}, {"loss_type": "dapo"}),
    "DAPO, truncated ones masked": (
        {"length": "token", "clip_high": 0.28, "truncated": "mask"},
        {"loss_type": "dapo", "mask_truncated_completions": True},
    ),
    "one inner step": ({"epochs": 1}, {"loss_type": "grpo", "num_iterations": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_trl(bandit_base: Base, tmp_path: Path, case: str) -> None:
    """Sampled at T = 0.7 by a policy that has left its start; the loss is that of a policy which has moved on."""
    own, theirs = CASES[case]
    own = {"kl": 0.1, "epochs": 2, **own}
    objective, tuned = started(
        bandit_base, "grpo", reward=Chance(), temperature=0.7, queries=6, group=4, max_answer_tokens=2, **own
    )
    move(tuned.module, 1)
    batches = objective.batches(0, tuned.model)
    rollouts = objective._rollouts
    assert rollouts is not None
    texts = [bandit_base.renderer.decode(t for t in r.tokens[r.prompt_length :] if t) for r in rollouts.rows]
    asked = [objective.task.train[n] for n in policy.order(0, 6, 12, 0) for _ in range(4)]
    rewards = Chance()(asked, texts).tolist()
    trainer = trl_trainer(
        copy.deepcopy(tuned.model.hf), bandit_base, tmp_path, rollouts, rewards, temperature=0.7, num_generations=4,
        beta=own["kl"], epsilon=own.get("clip", 0.2), epsilon_high=own.get("clip_high"), max_completion_length=2,
        **{"num_iterations": 2, **theirs},
    )  # fmt: skip
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * 24)
    expected_gains = inputs["advantages"].repeat_interleave(torch.tensor(rollouts.lengths))
    torch.testing.assert_close(rollouts.values["advantages"], expected_gains, atol=1e-5, rtol=1e-5)
    mask = inputs["completion_mask"].bool()
    for name, key in (("old", "old_per_token_logps"), ("start", "ref_per_token_logps")):
        if inputs.get(key) is not None and own.get("truncated") != "mask":
            torch.testing.assert_close(rollouts.values[name], inputs[key][mask], atol=1e-5, rtol=1e-5)
    if own["epochs"] > 1:
        batches = objective.batches(1, tuned.model)
        for module in (tuned.model.hf, trainer.model):
            move(module, 2)
    loss = step_loss(objective, tuned.model, batches)
    loss.backward()
    trainer.model.train()
    peer = trainer._compute_loss(trainer.model, inputs)
    peer.backward()
    assert float(loss) == pytest.approx(float(peer), abs=1e-5)
    ours, trl = gradients(tuned.model.hf), gradients(trainer.model)
    assert ours.keys() == trl.keys()
    assert max(float(g.abs().max()) for g in trl.values()) > 1e-3
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, trl[name], atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    if case == "DAPO":
        clipped = sum(objective.loss(tuned.model, b).metrics["clipped"] for b in batches) / sum(
            b.count for b in batches
        )
        trl_clipped = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
        assert clipped == pytest.approx(trl_clipped, abs=1e-6)
        assert 0.05 < clipped < 0.95


# -- formulas ---------------------------------------------------------------------------------------------------------


def test_the_surrogate_by_hand() -> None:
    ratio, gain = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, clipped = clipped_surrogate(ratio.log(), gain, 0.2, 0.3)
    torch.testing.assert_close(loss, torch.tensor([-1.3, 1.5, -0.5, 0.8, -2.2]))
    assert clipped.tolist() == [True, False, False, True, False]


def test_k3_is_the_divergence_on_average() -> None:
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(30, generator=g).log_softmax(0) for _ in range(2))
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=g)
    found = divergence(p[drawn], q[drawn])
    assert float(found.min()) >= 0
    assert float(found.mean()) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.02)


def test_advantages_by_hand() -> None:
    assert group_advantages(np.array([0.0, 0, 0, 1]), deviation=False).tolist() == [-0.25, -0.25, -0.25, 0.75]
    assert group_advantages(np.array([0.0, 0, 0, 1]), deviation=True) == pytest.approx(
        [-0.5, -0.5, -0.5, 1.5], abs=1e-3
    )
    assert group_advantages(np.ones(4), deviation=True).tolist() == [0, 0, 0, 0]


def test_overlong_answers_are_worth_less(small_base: Base) -> None:
    """DAPO's equation 13: nothing up to the limit less the margin, then linearly to 1."""
    objective, _ = started(small_base, "grpo", max_answer_tokens=20, overlong=8)
    assert [objective._too_long(n) for n in (5, 12, 14, 20)] == [0.0, 0.0, 0.25, 1.0]


# -- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("chunk", [512, 7])
def test_log_probabilities_at_a_temperature_are_those_of_transformers(
    small_base: Base, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, entropies and gradients; with the output layer frozen (LoRA) and trained, in one chunk and in many."""
    own = probabilities.token_log_probs
    monkeypatch.setattr(policy, "token_log_probs", lambda *a: own(*a, chunk=chunk))
    objective, tuned = started(small_base, "grpo", kind, reward=Chance(), temperature=0.7, epochs=2, queries=2, group=3)
    move(tuned.module, 1)
    batches = objective.batches(0, tuned.model)
    weights = [torch.randn(len(b.batch.targets)) for b in batches]
    found, expected = torch.zeros(()), torch.zeros(())
    for b, w in zip(batches, weights, strict=True):
        now, entropy = objective._log_probs(tuned.model, tuned.model.target_hidden(b.batch), b.batch.targets)
        torch.testing.assert_close(now.detach(), b.values["old"], atol=1e-6, rtol=1e-6)
        found = found + (w * now).sum()
        for row, prompt, n in zip(b.batch.rows, b.batch.prompts, b.batch.rows, strict=True):
            whole = torch.tensor([[*b.batch.prefix, *row]])
            start = len(b.batch.prefix) + prompt
            table = (tuned.model.hf(whole).logits[0, start - 1 : -1] / 0.7).log_softmax(-1)
            log_p = table.gather(1, whole[0, start:, None])[:, 0]
            length = len(n) - prompt
            torch.testing.assert_close(now[:length].detach(), log_p.detach(), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(entropy[:length], -(table.exp() * table).sum(1).detach(), atol=1e-5, rtol=1e-5)
            expected = expected + (w[:length] * log_p).sum()
            now, entropy, w = now[length:], entropy[length:], w[length:]
    found.backward()
    ours = gradients(tuned.module)
    expected.backward()
    assert ours
    for name, gradient in gradients(tuned.module).items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_temperature_is_in_the_ratios(small_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything has moved every ratio is 1, up to rounding; a loss that forgets T is found out."""
    objective, tuned = started(
        small_base, "grpo", reward=Chance(), temperature=0.7, epochs=2, queries=2, group=3, clip=1e-6
    )
    batches = objective.batches(0, tuned.model)
    seen: list[torch.Tensor] = []
    own = clipped_surrogate

    def watched(log_ratio: torch.Tensor, *rest: Any) -> Any:
        seen.append(log_ratio.detach())
        return own(log_ratio, *rest)

    monkeypatch.setattr(grpo, "clipped_surrogate", watched)
    for b in batches:
        objective.loss(tuned.model, b)
    assert float(torch.cat(seen).abs().max()) < 1e-5
    seen.clear()
    forgets = probabilities.token_log_probs
    monkeypatch.setattr(
        policy, "token_log_probs", lambda model, hidden, targets, _: forgets(model, hidden, targets, 1.0)
    )
    for b in batches:
        objective.loss(tuned.model, b)
    assert float(torch.cat(seen).abs().max()) > 0.1


def test_answers_are_drawn_from_the_probabilities_that_the_loss_has(bandit_base: Base) -> None:
    """How often each first token was drawn at T = 1.5, against softmax(logits / 1.5)."""
    objective, tuned = started(bandit_base, "grpo", temperature=1.5, epochs=2, queries=1, group=600)
    (batch, *more) = objective.batches(0, tuned.model)
    assert not more
    rows, old = batch.batch.rows, batch.values["old"]
    ends = np.cumsum([len(r) - p for r, p in zip(rows, batch.batch.prompts, strict=True)])
    first = old[[0, *ends[:-1].tolist()]].exp()
    tokens = np.array([r[p] for r, p in zip(rows, batch.batch.prompts, strict=True)])
    for token in set(tokens[:50]):
        share = float((tokens == token).mean())
        expected = float(first[int(np.flatnonzero(tokens == token)[0])])
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 600) ** 0.5 + 1e-3)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["answer", "token", "constant"])
def test_accumulation_padding_and_order_leave_the_loss_unchanged(small_base: Base, length: str) -> None:
    """The same answers in one pass, one by one, by groups, and in another order: one loss, one gradient."""
    objective, tuned = started(small_base, "grpo", reward=Chance(), epochs=2, queries=3, group=4, length=length)
    objective.batches(0, tuned.model)
    rollouts = objective._rollouts
    assert rollouts is not None
    move(tuned.module, 1)
    results = []
    for picked, max_tokens in ((range(12), 4096), (range(12), 1), (range(12), 60), (range(11, -1, -1), 100)):
        batches = policy_batches(rollouts, list(picked), max_tokens)
        loss = step_loss(objective, tuned.model, batches)
        loss.backward()
        metrics = [objective.loss(tuned.model, b).metrics for b in batches]
        entropy = sum(m["entropy"] for m in metrics) / sum(b.count for b in batches)
        results.append((len(batches), float(loss), entropy, gradients(tuned.module)))
    assert len({n for n, *_ in results}) > 2
    for _, loss, entropy, gradient in results[1:]:
        assert loss == pytest.approx(results[0][1], abs=1e-6)
        assert entropy == pytest.approx(results[0][2], rel=1e-5)
        for name, value in gradient.items():
            torch.testing.assert_close(value, results[0][3][name], atol=1e-6, rtol=1e-4)


def test_a_microbatch_shares_its_groups_prompt_where_that_saves_work() -> None:
    def row(prompt: int, start: int, answer: int) -> Rendered:
        return Rendered((*range(start, start + prompt), *range(900, 900 + answer)), (0.0,) * prompt + (1.0,) * answer)

    groups = [0, 0, 0, 1, 1, 1]
    long = [row(200, 0, 5), row(200, 0, 9), row(200, 0, 6), row(200, 300, 5), row(200, 300, 8), row(200, 300, 7)]
    assert grouped(long, groups, 4096) == [[0, 2, 1], [3, 5, 4]]
    short = [row(4, 20 * g, 5) for g in groups]
    assert [sorted(part) for part in grouped(short, groups, 4096)] == [[0, 1, 2, 3, 4, 5]]
    parts = grouped(long, groups, 215)  # a prompt and at most fifteen tokens of answers
    assert sorted(i for part in parts for i in part) == list(range(6))
    assert all(200 + sum(len(long[i].tokens) - 200 for i in part) <= 215 for part in parts)


def test_what_is_sampled_is_counted_once(small_base: Base) -> None:
    """Tokens of a step: those of its rows, and in the first step of a round those sampled; questions likewise."""
    objective, tuned = started(small_base, "grpo", reward=Chance(), epochs=2, queries=3, group=4)
    first, second = (objective.batches(i, tuned.model) for i in range(2))
    rollouts = objective._rollouts
    assert rollouts is not None
    rows, answers = sum(len(r.tokens) for r in rollouts.rows), sum(rollouts.lengths)
    prompts = sum(r.prompt_length for r in rollouts.rows[::4])
    assert [sum(b.tokens for b in s) for s in (first, second)] == [rows + answers + prompts, rows]
    assert [sum(b.examples for b in s) for s in (first, second)] == [3, 0]


class Sometimes:
    """Equal rewards for all questions but one thing's."""

    name, range = "sometimes", (0.0, 1.0)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        unequal = ["river" in e.messages[0].content for e in examples]
        return np.where(unequal, np.arange(len(answers)) % 2, 1.0)


def test_dynamic_sampling_leaves_equal_groups_out_and_samples_on(small_base: Base) -> None:
    objective, tuned = started(small_base, "grpo", reward=Sometimes(), queries=3, group=2, dynamic=True, tries=4)
    objective.batches(0, tuned.model)
    rollouts = objective._rollouts
    assert rollouts is not None
    # three of twelve questions have unequal rewards; with this seed they are found in three tries
    assert len(rollouts.rows) == 6
    assert rollouts.asked == 9
    assert rollouts.metrics["equal"] == pytest.approx(6 / 9)
    assert bool((rollouts.values["advantages"].abs() > 0.1).all())
    objective, tuned = started(small_base, "grpo", reward=Sometimes(), queries=3, group=2, dynamic=True, tries=1,
                               data=replace(bandit.task(), train=bandit.task().train[:3]))  # fmt: skip
    (batch, *_) = objective.batches(0, tuned.model)  # nothing but equal groups: they stand for themselves
    assert batch.count > 0
    assert not bool(batch.values["advantages"].any())


def test_truncated_answers_can_be_left_out(bandit_base: Base) -> None:
    """With room for two tokens only the shortest colour ends."""
    objective, tuned = started(
        bandit_base, "grpo", queries=6, group=4, truncated="mask", length="token", max_answer_tokens=2
    )
    batches = objective.batches(0, tuned.model)
    rollouts = objective._rollouts
    assert rollouts is not None
    assert 0 < rollouts.metrics["ended"] < 1
    kept = [r.tokens[-1] == bandit_base.renderer.end_id for r in rollouts.rows]
    assert sum(b.count for b in batches) == 2 * sum(kept)
    assert [bool(w.all()) for w in rollouts.split("weights")] == kept
    assert [bool(w.any()) for w in rollouts.split("weights")] == kept
    objective, tuned = started(
        bandit_base, "grpo", queries=2, group=4, truncated="mask", length="token", max_answer_tokens=1
    )
    (batch, *_) = objective.batches(0, tuned.model)  # none ends: the loss is 0 and its gradient too
    assert float(objective.loss(tuned.model, batch).total) == 0.0
    assert batch.count > 0


# -- learning ---------------------------------------------------------------------------------------------------------

LEARN: dict[str, Any] = {"queries": 12, "group": 8, "epochs": 2, "kl": 0.0}


def test_it_learns_what_is_right(bandit_base: Base, tmp_path: Path) -> None:
    """One of four answers is right, which one the question says: a quarter at the start, above 0.9 after."""
    assert right(bandit_base, bandit_base.model) == pytest.approx(bandit.START, abs=0.02)
    objective, tuned = started(bandit_base, "grpo", **LEARN)
    result = bandit.train(objective, tuned, tmp_path, steps=60, rate=2e-3)
    assert right(bandit_base, tuned.model) > 0.9
    assert np.mean([row["reward"] for row in result.state.curve[-8:]]) > 0.9
    assert result.validation_loss == 0.0


@pytest.mark.slow
def test_it_learns_with_lora_and_a_divergence(bandit_base: Base, tmp_path: Path) -> None:
    objective, tuned = started(bandit_base, "grpo", "lora", **{**LEARN, "kl": 0.01})
    bandit.train(objective, tuned, tmp_path, steps=60, rate=1e-2)
    assert right(bandit_base, tuned.model) > 0.9


def test_with_the_sign_of_the_advantage_flipped_it_does_not(
    bandit_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = group_advantages
    monkeypatch.setattr(grpo, "group_advantages", lambda rewards, **more: -own(rewards, **more))
    objective, tuned = started(bandit_base, "grpo", **LEARN)
    bandit.train(objective, tuned, tmp_path, steps=40, rate=2e-3)
    assert right(bandit_base, tuned.model) < bandit.START


class Red:
    """1 for red, whatever the question."""

    name, range = "red", (0.0, 1.0)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        return np.array([float(a == "red") for a in answers])


def balanced(base: Base, folder: Path, **options: Any) -> float:
    """How likely red is in the end where the divergence to the start holds it back."""
    objective, tuned = started(
        base, "grpo", reward=Red(), queries=12, group=8, kl=1.0, deviation=False, length="constant", **options
    )
    bandit.train(objective, tuned, folder, steps=60, rate=1e-3, floor=0.1)
    return float(bandit.chances(base, tuned.model)[:, tiny.COLOURS.index("red")].mean())


WORTH = 7 / 8
"""What a reward of 1 comes to in a group of 8, where the group's own mean is its baseline."""


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.slow
def test_the_divergence_balances_the_reward_as_it_must(bandit_base: Base, tmp_path: Path, unbiased: bool) -> None:
    """The best policy under reward less divergence is known. Of four answers, equally likely at first, one is rewarded.

    KL(π ‖ start): π ∝ start · exp(r). KL(start ‖ π), whose gradient k3 has by itself: π = start / (λ − r), Σ π = 1.
    """
    scale = max(np.roots([1, -1 - WORTH, 0.75 * WORTH]))  # λ
    expected = np.exp(WORTH) / (np.exp(WORTH) + 3) if unbiased else 0.25 / (scale - WORTH)
    assert balanced(bandit_base, tmp_path, kl_unbiased=unbiased) == pytest.approx(expected, abs=0.06)


@pytest.mark.slow
def test_with_the_sign_of_the_divergence_flipped_there_is_no_balance(
    bandit_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "divergence", lambda p, q: -surrogate.divergence(p, q))
    assert abs(balanced(bandit_base, tmp_path) - np.exp(WORTH) / (np.exp(WORTH) + 3)) > 0.12


# -- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full", "prompt-tuning", "prompt-generator", "prefix-tuning"])
def test_it_works_with_every_parameterisation(small_base: Base, tmp_path: Path, kind: str) -> None:
    sizes = {
        "prompt-tuning": {"tokens": 6}, "prefix-tuning": {"tokens": 4},
        "prompt-generator": {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4},
    }.get(kind, {})  # fmt: skip
    adapted = tiny.fit(small_base, kind, tmp_path, budget=Budget(steps=6), learning_rate=0.01, objective="grpo",
                       reward="token-f1", grpo={"queries": 3, "group": 3, "validations": 1}, **sizes)  # fmt: skip
    titles = [f.title for f in adapted.record.findings]
    assert titles == ["GRPO: reward", "GRPO: divergence and entropy", "GRPO: length", "GRPO: shares",
                      "Samples as training goes on", "Reward and metric"]  # fmt: skip
    assert any("supervised start" in note for note in adapted.record.notes)
    stage = [row for row in adapted.record.curve if "reward" in row]
    assert len(stage) == 3
    assert stage[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_stopped_anywhere_it_goes_on_bit_for_bit(bandit_base: Base, tmp_path: Path) -> None:
    """Stopped after every step, in the middle of a round too: the same weights, curve, looks and state."""
    ends = []
    for stops in ((), (1, 2, 3, 4, 5, 6)):
        for stop in (*stops, None):
            objective, tuned = started(bandit_base, "grpo", "lora", queries=3, group=3, epochs=3, dynamic=True, tries=2)
            result = bandit.train(objective, tuned, tmp_path / f"{len(stops)}", steps=7, rate=1e-2, stop_after=stop,
                                  validations=2, validate_start=True)  # fmt: skip
        weights = {n: p.detach().clone() for n, p in tuned.module.named_parameters() if p.requires_grad}
        ends.append((weights, objective.state(), result.state.curve))
    for (name, one), two in zip(ends[0][0].items(), ends[1][0].values(), strict=True):
        assert (one == two).all(), name
    assert ends[0][1].keys() == ends[1][1].keys()
    assert all((v == ends[1][1][k]).all() for k, v in ends[0][1].items())
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in end[2]] for end in ends]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1])


def test_rollouts_come_back_from_their_state(small_base: Base) -> None:
    objective, tuned = started(small_base, "grpo", reward=Chance(), queries=2, group=3, epochs=2)
    objective.batches(0, tuned.model)
    known = objective._rollouts
    assert known is not None
    again = Rollouts.of(known.state())
    assert again.rows == known.rows
    assert again.metrics == known.metrics
    assert (again.groups == known.groups).all()
    assert all((again.values[k] == v).all() for k, v in known.values.items())


class Learning(Right):
    """A reward that learns: it counts what it was shown."""

    def __init__(self) -> None:
        self.notes = ["it learns"]
        self.seen: list[tuple[int, int]] = []
        self.count = 0

    def observe(self, examples: Sequence[Example], answers: Sequence[str], step: int) -> None:
        assert len(examples) == len(answers)
        self.seen.append((step, len(answers)))
        self.count += len(answers)

    def state(self) -> dict[str, torch.Tensor]:
        return {"count": torch.tensor([self.count])}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.count = int(state["count"])


def test_a_reward_that_learns_is_shown_the_answers_and_kept(small_base: Base) -> None:
    objective, tuned = started(small_base, "grpo", reward=Learning(), queries=2, group=3)
    for step in range(2):
        objective.batches(step, tuned.model)
    assert objective.reward.seen == [(0, 6), (1, 6)]
    other, _ = started(small_base, "grpo", reward=Learning(), queries=2, group=3)
    other.restore(objective.state())
    assert other.reward.count == 12
    assert other.notes == ["it learns"]


def test_questions_without_a_reference_are_asked_too(small_base: Base) -> None:
    """What only bad answers are known to is no target, but a question like others; it is no part of validation."""
    whole = bandit.task()
    train = tuple(replace(e, answers=()) if i % 2 else e for i, e in enumerate(whole.train))
    data = replace(whole, train=train, validation=train)

    class Asked(Chance):
        seen: set[str] = set()  # noqa: RUF012

        def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
            self.seen |= {e.id for e in examples}
            return super().__call__(examples, answers)

    objective, tuned = started(small_base, "grpo", reward=Asked(), data=data, queries=12, group=2)
    objective.batches(0, tuned.model)
    assert Asked.seen == {e.id for e in train}
    assert [len(b.held_out) for b in objective.validation()] == [6]
    objective, tuned = started(small_base, "grpo", reward=Asked(), data=data, queries=12, group=2, keep_by="reward")
    (batch,) = objective.validation()
    assert len(batch.held_out) == 12
    objective.look(0, tuned.model)
    assert 0 <= float(objective.loss(tuned.model, batch).total) <= 12


def test_parts_of_a_reward_have_curves(small_base: Base) -> None:
    from kamerton.rewards.total import Total

    objective, tuned = started(small_base, "grpo", reward=Total([(Right(), 1.0), (Chance(), 0.5)]), queries=2, group=2)
    (batch, *_) = objective.batches(0, tuned.model)
    metrics = objective.loss(tuned.model, batch).metrics
    parts = {k: v / batch.count for k, v in metrics.items() if k.startswith("reward: ")}
    assert set(parts) == {"reward: right", "reward: chance"}
    assert parts["reward: right"] + 0.5 * parts["reward: chance"] == pytest.approx(metrics["reward"] / batch.count)
    found = policy_findings(objective, [{"step": 1, **parts}])
    assert [f.columns for f in found if f.title == "GRPO: parts of the reward"] == [("step", "right", "chance")]


def test_the_checkpoint_can_be_chosen_by_the_reward(bandit_base: Base, tmp_path: Path) -> None:
    """What is rewarded (red) is not what the metric asks for: by the metric nothing is gained, by the reward all."""
    losses = {}
    for keep_by in ("metric", "reward"):
        objective, tuned = started(bandit_base, "grpo", reward=Red(), keep_by=keep_by, **LEARN)
        losses[keep_by] = bandit.train(objective, tuned, tmp_path / keep_by, steps=24, rate=2e-3).validation_loss
    assert losses["reward"] == 0.0
    assert losses["metric"] >= 0.5, "three of four questions have another colour"
    assert objective.validates == "reward red"


# -- diagnostics ------------------------------------------------------------------------------------------------------


def curve(**lines: tuple[float, float]) -> list[dict[str, float]]:
    """Fifty steps on straight lines between two values, the last ten at the second one."""
    known = {"reward": (0.2, 0.2), "length": (20.0, 20.0), "ended": (1.0, 1.0), "entropy": (2.0, 2.0), "kl": (0.0, 0.01),
             "equal": (0.2, 0.2), **lines}  # fmt: skip
    return [{"step": i, **{k: a + (b - a) * min(i / 39, 1) for k, (a, b) in known.items()}} for i in range(50)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({}, None), ({"reward": (0.2, 0.7)}, None),
        ({"reward": (0.2, 0.7), "kl": (0.0, 2.0)}, "nats a token"), ({"kl": (0.0, 2.0)}, None),
        ({"reward": (0.2, 0.7), "length": (20.0, 60.0)}, "answers went from"), ({"length": (20.0, 60.0)}, None),
        ({"reward": (0.2, 0.7), "ended": (1.0, 0.2)}, "answers went from"),
        ({"entropy": (2.0, 0.0)}, "entropy collapse"), ({"entropy": (2.0, 0.0), "reward": (0.2, 1.0)}, None),
        ({"equal": (0.2, 1.0)}, "equal rewards"), ({"equal": (0.2, 1.0), "reward": (0.2, 1.0)}, None),
    ],
)  # fmt: skip
def test_warnings_come_when_they_are_due(small_base: Base, lines: dict[str, Any], said: str | None) -> None:
    objective, _ = started(small_base, "grpo")
    found = policy_warnings(objective, curve(**lines), -1)
    assert len(found) == (said is not None), found
    if said is not None:
        assert found[0].startswith("warning: ")
        assert said in found[0]
        assert "the weights that are kept are those of step 9" in policy_warnings(objective, curve(**lines), 9)[0]


def test_a_reward_that_works_against_the_metric_is_told(bandit_base: Base) -> None:
    """Samples are red ever more often while right answers become rarer."""
    objective, tuned = started(bandit_base, "grpo", reward=Red())
    tuned.module.eval()
    for step, statistics in ((0, np.ones((12, 1))), (10, np.zeros((12, 1)))):
        objective.look(step, tuned.model)
        objective.looks.taken[-1].statistics = statistics.tolist()
    objective.looks.task = replace(objective.task, validation=objective.task.train)
    objective.looks.taken[-1].scores = [[1.0, 1.0]] * len(objective.looks.examples)
    (line,) = policy_warnings(objective, [], -1)
    assert "exact-match on validation from 1 to 0" in line
    table = policy_findings(objective, [])[-1]
    assert table.columns == ("", "reward (red)", "exact-match")
    assert [row[0] for row in table.rows] == ["start", "step 10"]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_the_page_names_all_options_with_their_defaults(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "reinforcement-learning.md").read_text(encoding="utf-8")
    own, _, common = page.partition(f"\n## {name.upper()}\n")[2].partition("\n## Common options\n")
    told: dict[str, str] = {}
    for names, values in re.findall(r"^\| (`.+?) \| (.+?) \|", common + own.partition("\n## ")[0], re.MULTILINE):
        told |= dict(zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True))
    fields = get_objective(name).options.model_fields
    assert set(fields) - set(told) == set()
    for option in fields:
        default = fields[option].default
        assert told[option] == (f"`{default}`" if default is not None else told[option]), option
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for entry in yaml.safe_load(block)["methods"]:
        ((method, options),) = entry.items()
        parse_options(get_method(method), options)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(small_base: Base, tmp_path: Path) -> None:
    task = bandit.task()
    lora = get_method("lora")
    options = parse_options(lora, {"objective": "grpo"})
    closed = replace(task, train=tuple(replace(e, choices=tiny.COLOURS) for e in task.train))
    with pytest.raises(TaskError, match="choices are ranked"):
        check_fits(small_base, closed, lora, options)
    with pytest.raises(TaskError, match="no training examples"):
        check_fits(small_base, replace(task, train=()), lora, options)
    seq2seq = load_base(tiny.save_encoder_decoder(tmp_path / "t5"), dtype="float32", device="cpu")
    with pytest.raises(KamertonError, match="lora with objective grpo is not defined for an encoder–decoder"):
        tiny.fit(seq2seq, "lora", tmp_path / "fit", objective="grpo")

    class Broken(Right):
        def __init__(self, values: Any) -> None:
            self.values = values

        def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> Any:  # noqa: ARG002
            return self.values(len(answers))

    for values, said in ((lambda n: np.full(n, np.nan), r"reward right: gives nan for an answer to example "),
                         (lambda n: np.zeros(n - 1), r"for 6 answers")):  # fmt: skip
        objective, tuned = started(small_base, "grpo", reward=Broken(values), queries=2, group=3)
        with pytest.raises(RewardError, match=said):
            objective.batches(0, tuned.model)


def test_long_questions_are_cut_and_counted(small_base: Base) -> None:
    task = tiny.colour_task()
    tuned = bandit.attach(small_base)
    objective = Grpo(small_base, task, Grpo.options(queries=2, group=2), Right(), limit=30)
    objective.begin(tuned.model, tuned.module)
    (note,) = objective.notes
    assert "questions were cut to 24 tokens" in note
    batches = objective.batches(0, tuned.model)
    assert max(b.tokens for b in batches) > 0
    assert all(len(r.tokens) <= 30 for r in objective._rollouts.rows)  # type: ignore[union-attr]


def test_equal_groups_are_told_by_what_they_are_worth() -> None:
    answers = [Rollout(0, Rendered((1, 2), (0.0, 1.0)), "", True)] * 2
    assert Group(answers, np.array([0.5, 0.5]), np.array([0.5, 0.5])).equal
    assert not Group(answers, np.array([0.5, 0.5]), np.array([0.5, 0.2])).equal

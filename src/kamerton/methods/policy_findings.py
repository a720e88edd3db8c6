"""What the report shows of a policy gradient's stage, and what it warns of.

Curves over its steps (reward, divergence, entropy, lengths, clipping, critic), samples of the same questions as
training goes on, and their rewards beside the task's metric. Warnings compare the last fifth of the steps with the
first fifth; their thresholds are coarse on purpose. They stand in docs/reinforcement-learning.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kamerton.evaluation.answering import values
from kamerton.evaluation.figures import Figure, difference
from kamerton.evaluation.metrics import get_metric
from kamerton.methods.method import Finding
from kamerton.methods.stage_findings import sampled, thinned, when
from kamerton.objectives.looks import Looks

Curve = Sequence[dict[str, float]]

PANELS: tuple[tuple[str, dict[str, str], str], ...] = (
    (
        "reward", {"reward": "mean", "reward_spread": "spread", "group_spread": "spread in a group"},
        "Of the answers sampled for each step: the mean reward, its standard deviation over all answers, and the mean "
        "standard deviation within the answers to one question.",
    ),
    (
        "divergence and entropy", {"kl": "KL", "entropy": "entropy"},
        "In nats a token, on sampled answers at the temperature of sampling: the KL divergence to the start (no line: "
        "it is not asked for), and the entropy of the next token.",
    ),
    ("length", {"length": "tokens"}, "Mean tokens of a sampled answer, its end token included."),
    (
        "shares", {"clipped": "clipped", "equal": "equal groups", "ended": "ended"},
        "Clipped: tokens whose ratio of probabilities is beyond the clip, so that they teach nothing. Equal groups: "
        "questions whose answers all have one reward, from which GRPO learns nothing. Ended: answers that end inside "
        "the limit.",
    ),
    (
        "critic", {"explained": "explained variance", "kl_coefficient": "KL coefficient"},
        "The share of the returns' variance that the value head explains (1: all; below 0: worse than a constant), and "
        "the coefficient of the KL penalty.",
    ),
)  # fmt: skip
"""By plot: its name, its lines by metric, and how to read it."""

PART = 5
"""The first and the last of so many parts of the steps are compared."""
FAR = 1.0
"""Nats a token from the start: nothing is left of how it said things. `FAR_ANSWER`: nats an answer."""
FAR_ANSWER = 20.0
LONGER, FEWEST_TOKENS = 1.5, 8.0
"""Length over the first steps' at which answers run away, and by how many tokens at least."""
FEWER_END = 0.3
"""Fall of the share of answers that end."""
SETTLED, FELL = 0.05, 0.1
"""Nats a token, and share of the first steps' entropy, below which it has collapsed."""
NEARLY_ALL = 0.9
"""Share of the best reward from which certainty is no collapse."""
EQUAL = 0.8
"""Share of groups with equal rewards from which most answers are sampled for nothing."""


def policy_findings(objective: Any, curve: Curve) -> list[Finding]:
    """Everything that is shown of a stage: `curve` has a row for each of its steps."""
    title = objective.name.upper()
    out = []
    for name, lines, note in PANELS:
        present = [m for m in lines if any(m in row for row in curve)]
        if present:
            columns = ("step", *(lines[m] for m in present))
            out.append(Finding(f"{title}: {name}", columns, tuple(thinned(curve, present)), True, note))
    parts = [m for m in (curve[0] if curve else ()) if m.startswith("reward: ")]
    if parts:
        columns = ("step", *(m.removeprefix("reward: ") for m in parts))
        note = "The mean of each part over the sampled answers, without its weight."
        out.append(Finding(f"{title}: parts of the reward", columns, tuple(thinned(curve, parts)), True, note))
    looks: Looks = objective.looks
    return [*out, *sampled(looks), *_rewards(looks, objective.reward.name)]


def _rewards(looks: Looks, reward: str) -> list[Finding]:
    """The reward of the same questions' samples at every look, beside what the task's metric says."""
    metric, rows = looks.task.metrics[0], []
    for look in looks.taken:
        mean = float(np.mean(look.scores)) if look.scores else None
        value = values({metric: np.array(look.statistics)}, looks.task.validation)[metric] if look.statistics else None
        rows.append((when(look), mean, value))
    note = (
        f"Mean reward of samples at T = 1 of {len(looks.examples)} questions, and the metric of greedy answers to the "
        "validation questions."
    )
    return [Finding("Reward and metric", ("", f"reward ({reward})", metric), tuple(rows), note=note)] if rows else []


def policy_warnings(objective: Any, curve: Curve, kept: int) -> list[str]:
    """One line for each thing that went wrong. `kept`: the step whose weights are kept, below 0 for the last."""
    size = len(curve) // PART
    found: list[str] = []
    if size:
        first, last = (_means(part) for part in (curve[:size], curve[-size:]))
        found += hacking(objective, first, last, curve)
        found += collapse(objective, first, last)
        if last.get("equal", 0.0) > EQUAL and not good(objective, last):
            found.append(
                f"{last['equal']:.0%} of the groups have equal rewards at the end, and nothing is learned from them; "
                f"set {objective.name}.dynamic, a larger {objective.name}.group, or questions that are neither sure "
                "nor hopeless"
            )
    found += against_metric(objective)
    if found and 0 <= kept < len(curve):
        where = f"step {kept}" if kept else "the start"
        found = [f"{line} (so it is at the end; the weights that are kept are those of {where})" for line in found]
    return [f"warning: {line}" for line in found]


def hacking(objective: Any, first: dict[str, float], last: dict[str, float], curve: Curve) -> list[str]:
    """The reward has risen beyond its noise, while the divergence or the length has run away."""
    noise = np.std([row["reward"] for row in curve[-(len(curve) // PART) :]]) + 1e-9
    if last["reward"] - first["reward"] <= noise:
        return []
    rose = f"the reward rose from {first['reward']:.3g} to {last['reward']:.3g}"
    mend = f"raise {objective.name}.kl or lower {objective.name}.rate, and read the samples"
    out = []
    whole = last.get("kl", 0.0) * last["length"]
    if last.get("kl", 0.0) > FAR and whole > FAR_ANSWER:
        out.append(f"reward hacking? {rose}, {last['kl']:.2g} nats a token ({whole:.0f} an answer) from the start")
    longer = last["length"] >= LONGER * first["length"] and last["length"] - first["length"] >= FEWEST_TOKENS
    if longer or last["ended"] <= first["ended"] - FEWER_END:
        out.append(
            f"reward hacking? {rose}, and answers went from {first['length']:.0f} to {last['length']:.0f} tokens "
            f"({first['ended']:.0%} to {last['ended']:.0%} of them end inside the limit)"
        )
    return [f"{line}; {mend}" for line in out]


def collapse(objective: Any, first: dict[str, float], last: dict[str, float]) -> list[str]:
    """The policy has become certain before its answers are good."""
    if good(objective, last) or last["entropy"] > SETTLED or last["entropy"] > FELL * first["entropy"]:
        return []
    clip = " or set grpo.clip_high above grpo.clip," if objective.name == "grpo" else ""
    return [
        f"entropy collapse: {first['entropy']:.2g} nats a token at first, {last['entropy']:.2g} at the end, at a "
        f"reward of {last['reward']:.3g}: nothing new is tried; raise {objective.name}.kl,{clip} or lower "
        f"{objective.name}.rate"
    ]


def good(objective: Any, last: dict[str, float]) -> bool:
    """Whether there is hardly anything left to be learned."""
    low, best = objective.reward.range
    return bool(np.isfinite(low) and np.isfinite(best) and last["reward"] >= low + NEARLY_ALL * (best - low))


def against_metric(objective: Any) -> list[str]:
    """The samples' reward is above the start's and the metric on validation below it, beyond its 95% interval."""
    taken = objective.looks.taken
    if len(taken) < 2 or not taken[0].statistics or not taken[-1].statistics:
        return []
    name, examples = objective.task.metrics[0], objective.looks.task.validation
    metric = get_metric(name, examples)
    before, after = (Figure(metric, np.array(look.statistics)) for look in (taken[0], taken[-1]))
    moved = difference(after, before)
    worse = moved.high < 0 if metric.higher_is_better else moved.low > 0
    rewards = [float(np.mean(look.scores)) for look in (taken[0], taken[-1])]
    if not worse or rewards[1] <= rewards[0]:
        return []
    return [
        f"reward hacking: the samples' reward went from {rewards[0]:.3g} to {rewards[1]:.3g}, and {name} on validation "
        f"from {before.value:.3g} to {after.value:.3g}; raise {objective.name}.kl, or mend the reward"
    ]


def _means(rows: Curve) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

"""Rewards: what says how good an answer is. Each is one short file and one line in the table below.

`build_reward` makes one from what a recipe says: a name, a name with options, or a list of these, which are summed.
Names of metrics (`exact-match`) are rewards too: a metric that is a mean over examples judges each answer alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kamerton.base.load import Base
    from kamerton.rewards.reward import Kind, Reward
    from kamerton.tasks.example import Task

REWARDS: dict[str, str] = {
    "exact": "kamerton.rewards.exact:Exact",
    "numeric": "kamerton.rewards.numeric:Numeric",
    "choice": "kamerton.rewards.choice:Choice",
    "regex": "kamerton.rewards.regex:Regex",
    "json-schema": "kamerton.rewards.json_schema:JsonSchema",
    "format": "kamerton.rewards.format:Format",
    "length": "kamerton.rewards.length:Length",
    "metric": "kamerton.rewards.metric:MetricReward",
    "function": "kamerton.rewards.function:FunctionReward",
    "reward-model": "kamerton.rewards.reward_model:RewardModel",
    "judge": "kamerton.rewards.judge:Judge",
    "discriminator": "kamerton.rewards.discriminator_reward:DiscriminatorReward",
}


def get_reward(name: str) -> Kind:
    """A kind of reward by its name in the table."""
    module, _, attribute = REWARDS[name].partition(":")
    return getattr(import_module(module), attribute)


def build_reward(spec: Any, base: Base, task: Task) -> Reward:
    """The reward that a recipe asks for.

    Args:
        spec: `exact-match`; `{name: {option: value}}`, with a `weight` beside the name or not; a list of these, which
            are summed. None: the task's first metric.
        base: that is being trained, as it was before; judges may be it.
        task: whose examples are answered.

    Raises:
        RecipeError: there is no reward of that name, or it has no such option.
        KamertonError: it cannot be made for this base and task.
    """
    from kamerton.rewards.parse import parse_reward
    from kamerton.rewards.total import Total

    parts = parse_reward(task.metrics[0] if spec is None else spec, metric_first=spec is None)
    made = [(get_reward(part.name).build(base, task, part.options), part.weight) for part in parts]
    return made[0][0] if len(made) == 1 and made[0][1] == 1 else Total(made)


__all__ = ["REWARDS", "build_reward", "get_reward"]

"""Rewards: what says how good an answer is. Each is one short file and one line in the table below.

`build_reward` makes one from what a recipe says: a name, a name with options, or a list of these, which are summed.
Names of metrics (`exact-match`) are rewards too: a metric that is a mean over examples judges each answer alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kamerton.errors import RecipeError

if TYPE_CHECKING:
    from kamerton.base.load import Base
    from kamerton.rewards.reward import Reward
    from kamerton.tasks.example import Task

REWARDS: dict[str, str] = {
    "metric": "kamerton.rewards.metric:MetricReward",
}


def build_reward(spec: Any, base: Base, task: Task) -> Reward:  # noqa: ARG001 - rewards that are models need the base
    """The reward that a recipe asks for.

    Args:
        spec: `exact-match`; `{name: {option: value}}`; a list of these. None: the task's first metric.
        base: that is being trained, as it was before; judges may be it.
        task: whose examples are answered.

    Raises:
        RecipeError: there is no reward of that name, or it has no such option.
    """
    name = task.metrics[0] if spec is None else spec
    if not isinstance(name, str):
        raise RecipeError(f"no reward {name!r}", mend=f"use one of: {', '.join(REWARDS)}")
    return import_module("kamerton.rewards.metric").MetricReward(name, task)


__all__ = ["REWARDS", "build_reward"]

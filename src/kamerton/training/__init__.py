"""The one training loop: batches, optimiser and schedule, checkpoints, budget, distribution."""

from kamerton.training.budget import Budget
from kamerton.training.loop import Diverged, Progress, Result, Settings, fit

__all__ = ["Budget", "Diverged", "Progress", "Result", "Settings", "fit"]

"""The learning rate over a run: a linear rise, then one of four ways on.

* `cosine`: a half cosine down to the floor (Loshchilov & Hutter 2017, arXiv 1608.03983).
* `inverse-sqrt`: falls with the inverse square root of the step (Vaswani et al. 2017, arXiv 1706.03762).
* `warmup-stable-decay`: stays at the peak and falls along a line at the end (Hu et al. 2024, arXiv 2404.06395).
* `constant`: stays at the peak.

What drives it is the share of the budget that is spent, whatever the budget counts, so that a run that is limited by
seconds ends at the bottom too; a rise may be given in steps instead, as papers give it.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

Schedule = Literal["cosine", "inverse-sqrt", "warmup-stable-decay", "constant"]


class Scheduled(Protocol):
    """What of a run's settings decides the learning rate."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup(self) -> float: ...
    @property
    def warmup_steps(self) -> int | None: ...
    @property
    def decay(self) -> float: ...
    @property
    def floor(self) -> float: ...


def learning_rate(settings: Scheduled, share: float, step: int) -> float:
    """The rate of a step.

    Args:
        settings: peak, schedule, rise (a share of the budget, or steps), fall and floor (shares of the peak).
        share: of the budget that is spent before the step.
        step: steps that were made before it.
    """
    if settings.warmup_steps is not None:
        risen = (step + 1) / settings.warmup_steps
    else:
        # the first step is not wasted on a rate of zero
        risen = max(share / settings.warmup, 0.05) if settings.warmup > 0 else math.inf
    if risen < 1:
        return settings.learning_rate * risen
    if settings.schedule == "inverse-sqrt":
        return settings.learning_rate * (risen**-0.5 if math.isfinite(risen) else 1.0)
    start = 0.0 if settings.warmup_steps is not None else settings.warmup
    if settings.schedule == "cosine":
        rest = min((share - start) / max(1 - start, 1e-9), 1.0)
        fallen = 0.5 * (1 + math.cos(math.pi * rest))
    elif settings.schedule == "warmup-stable-decay":
        fallen = min(max((1 - share) / max(settings.decay, 1e-9), 0.0), 1.0)
    else:
        fallen = 1.0
    return settings.learning_rate * (settings.floor + (1 - settings.floor) * fallen)

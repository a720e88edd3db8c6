"""Best of n: several answers are sampled, and the one that a reward likes best is given.

Best-of-n sampling with a scorer as in Cobbe et al. 2021 (arXiv 2110.14168), whose scorer is a trained verifier. What
chooses must not know the right answer (`prompting/choosing.py`); the default is the model's own log-probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from kamerton.base.load import Base
from kamerton.evaluation.answering import judge
from kamerton.evaluation.best_of import best, expected_best, expected_chosen, sizes
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Answer, Sampling
from kamerton.methods.method import Adapted, Finding
from kamerton.methods.prompted import PromptingOptions, State
from kamerton.methods.several import Several, SeveralAnswers
from kamerton.prompting.choosing import LOG_PROBABILITY, answer_reward, scores_of
from kamerton.tasks.example import Conversation, Example, Task


class BestOfNOptions(PromptingOptions):
    """Options of best-of-n."""

    samples: int = Field(8, gt=1, description="n, answers to each question, of which one is given")
    temperature: float = Field(0.7, gt=0, description="of the samples")
    top_p: float = Field(1.0, gt=0, le=1, description="of the samples: the likeliest tokens that hold this much")
    reward: str | dict[str, Any] | tuple[str | dict[str, Any], ...] = Field(
        LOG_PROBABILITY, description="what chooses: the model's log-probability, or a reward that reads no references"
    )


class BestOfN(SeveralAnswers):
    """The best of several sampled answers of what is inside."""

    name = "best-of-n"
    summary = "the best of several sampled answers by a reward"
    cost = "no training; n answers are generated for each question"
    paper = "Cobbe et al. 2021, arXiv 2110.14168"
    options = BestOfNOptions

    def check(self, base: Base, task: Task, options: BestOfNOptions) -> None:
        answer_reward(options.reward, base, task.metrics[0], f"{self.name}.reward")
        super().check(base, task, options)

    def wrap(self, inner: Adapted, options: BestOfNOptions, state: State) -> Adapted:
        return Choosing(inner, options, state)


class Choosing(Several):
    """Samples answers of the model inside and gives the best one."""

    def __init__(self, inner: Adapted, options: BestOfNOptions, state: State) -> None:
        super().__init__(inner, BestOfN.name, options, state)
        self._reward = answer_reward(options.reward, inner.base, self._metric, f"{BestOfN.name}.reward")

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        said = self.inner.generate(conversations, self._sampled(sampling), progress=progress)
        return self._chosen(said, conversations, [()] * len(conversations))

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        said = self.inner.choose(conversations, choices, self._sampled(sampling), progress=progress)
        return self._chosen(said, conversations, choices)

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        """The score that fewer answers would have had, exact over all subsets of the same samples."""
        scores = np.array([a.details["scores"] for a in answers])
        statistics = np.stack(
            [judge([a.details["samples"][k] for a in answers], examples, [self._metric])[self._metric]
             for k in range(self._plan.samples)], axis=1,
        )  # fmt: skip
        metric = get_metric(self._metric, examples)
        bounded = statistics.shape[2] == 1 and metric.higher_is_better
        rows: list[tuple[float | None, ...]] = []
        for n in sizes(self._plan.samples):
            value = float(metric.aggregate(expected_chosen(scores, statistics, n).sum(0), float(len(answers))))
            rows.append((n, value, *((float(expected_best(statistics[:, :, 0], n).mean()),) if bounded else ())))
        columns = ("answers", self._metric, *(("best possible",) if bounded else ()))
        note = (
            "Expected over all subsets of n of the sampled answers. Best possible: what a reward would reach that "
            "knows the right answer."
        )
        curve = Finding("Score by number of answers", columns, tuple(rows), curve=True, note=note)
        return [*self.inner.findings(examples, answers), curve]

    def _chosen(
        self, said: list[Answer], conversations: Sequence[Conversation], choices: Sequence[Sequence[str]]
    ) -> list[Answer]:
        each = len(said) // max(len(conversations), 1)
        asked = [c for c in conversations for _ in range(each)]
        scores = scores_of(self._reward, asked, said, [c for c in choices for _ in range(each)])
        return [self._best(*group) for group in zip(self._groups(said), self._groups(scores.tolist()), strict=True)]

    def _best(self, said: list[Answer], scores: list[float]) -> Answer:
        won = said[best(scores)]
        return replace(
            won, extra_tokens=sum(a.generated_tokens for a in said) - len(won.tokens),
            details={**won.details, "samples": [a.text for a in said], "scores": scores},
        )  # fmt: skip

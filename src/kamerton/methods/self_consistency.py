"""Self-consistency: several sampled answers vote (Wang et al. 2022, arXiv 2203.11171)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from kamerton.evaluation.answering import judge, values
from kamerton.evaluation.best_of import sizes
from kamerton.inference import Answer, Sampling
from kamerton.methods.method import Adapted, Finding
from kamerton.methods.prompted import OVER, PromptingOptions, State
from kamerton.methods.several import Several, SeveralAnswers
from kamerton.prompting.extraction import NUMERIC
from kamerton.prompting.voting import vote
from kamerton.tasks.example import Conversation, Example


class SelfConsistencyOptions(PromptingOptions):
    """Options of self-consistency."""

    over: str | dict[str, Any] = Field("chain-of-thought", validate_default=True, description=OVER)
    samples: int = Field(8, gt=1, description="answers that vote on each question")
    temperature: float = Field(0.7, gt=0, description="of the samples")
    top_p: float = Field(1.0, gt=0, le=1, description="of the samples: the likeliest tokens that hold this much")
    weighted: bool = Field(False, description="votes count by probability per token instead of one each")


class SelfConsistency(SeveralAnswers):
    """A vote over sampled answers of what is inside."""

    name = "self-consistency"
    summary = "a vote over several sampled answers"
    cost = "no training; as many answers are generated as vote"
    paper = "Wang et al. 2022, arXiv 2203.11171"
    options = SelfConsistencyOptions

    def wrap(self, inner: Adapted, options: SelfConsistencyOptions, state: State) -> Adapted:
        return Voting(inner, options, state)


class Voting(Several):
    """Samples answers of the model inside and lets them vote."""

    def __init__(self, inner: Adapted, options: SelfConsistencyOptions, state: State) -> None:
        super().__init__(inner, SelfConsistency.name, options, state)
        self._numeric = self._metric.partition(":")[0] in NUMERIC

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        said = self.inner.generate(conversations, self._sampled(sampling), progress=progress)
        return self._voted(said, self._numeric)

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        said = self.inner.choose(conversations, choices, self._sampled(sampling), progress=progress)
        return self._voted(said, numeric=False)

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        """The score that fewer votes would have had, from the same samples.

        n votes are taken over the samples 1 … n, n + 1 … 2n, and so on; the scores of these turns are averaged.
        """
        rows = []
        for n in sizes(self._plan.samples):
            scores = []
            for start in range(0, self._plan.samples - n + 1, n):
                texts = [self._again(e, a, start, n) for e, a in zip(examples, answers, strict=True)]
                statistics = judge(texts, examples, [self._metric])
                scores.append(values(statistics, examples)[self._metric])
            rows.append((n, float(np.mean(scores))))
        note = "n answers vote; where there are samples for several votes of n, their mean"
        curve = Finding("Score by number of votes", ("votes", self._metric), tuple(rows), curve=True, note=note)
        return [*self.inner.findings(examples, answers), curve]

    def _voted(self, said: list[Answer], numeric: bool) -> list[Answer]:
        return [self._vote(group, numeric) for group in self._groups(said)]

    def _vote(self, said: list[Answer], numeric: bool) -> Answer:
        weights = [self._weight(a) for a in said]
        result = vote([a.text for a in said], weights, numeric=numeric)
        won = said[result.winner]
        return replace(
            won, extra_tokens=sum(a.generated_tokens for a in said) - len(won.tokens),
            details={
                **won.details, "votes": [list(g) for g in result.groups], "samples": [a.text for a in said],
                "weights": weights,
            },
        )  # fmt: skip

    def _weight(self, a: Answer) -> float:
        """1, or the probability of chain and answer per token: exp of their mean log-probability."""
        if not self._plan.weighted:
            return 1.0
        return math.exp(a.details.get("log_prob", float(np.mean(a.logprobs)) if a.logprobs else 0.0))

    def _again(self, example: Example, a: Answer, start: int, n: int) -> str:
        texts, weights = a.details["samples"][start : start + n], a.details["weights"][start : start + n]
        return str(texts[vote(texts, weights, numeric=self._numeric and not example.choices).winner])

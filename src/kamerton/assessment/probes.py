"""What is measured of a model without sampling: confidence, phrasings, forgetting, cost, likelihood of references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from kamerton.assessment.samples import references
from kamerton.base.work import flops
from kamerton.evaluation import confidence
from kamerton.evaluation.answering import Answers, answer, latency
from kamerton.evaluation.figures import Figure, mean, ratio
from kamerton.evaluation.forgetting import Reference, code_lengths, kl_terms
from kamerton.evaluation.metrics import accuracy, get_metric
from kamerton.evaluation.resampling import AdditiveMetric
from kamerton.inference import Sampling
from kamerton.methods.costs import cost_line
from kamerton.methods.method import Adapted, Method
from kamerton.prompting.phrasings import Phrasing, spread_p_value
from kamerton.tasks.example import Example, Message

Array = np.ndarray[Any, Any]
Watch = Callable[[int, int], None] | None

CHOICES, WHOLE, MEAN_TOKEN = "choices", "probability of the answer", "mean token probability"
"""Kinds of confidence."""


@dataclass(frozen=True)
class Confidence:
    """Confidences of answers, and how right they were.

    Attributes:
        name: what the confidence is. confidence, correct: (N,) between 0 and 1.
    """

    name: str
    confidence: Array
    correct: Array

    def figures(self, bins: int) -> dict[str, Figure]:
        """ECE over bins of equal mass and of equal width, and the Brier score."""
        pair = (self.confidence, self.correct)
        return {
            f"ece: {self.name}": confidence.ece(*pair, bins),
            f"ece, equal width: {self.name}": confidence.ece(*pair, bins, adaptive=False),
            f"brier: {self.name}": confidence.brier(*pair),
        }


def confidences(
    model: Adapted, examples: Sequence[Example], said: Answers, metric: str, max_tokens: int, progress: Watch = None
) -> tuple[list[Confidence], list[str]]:
    """Confidence and correctness where they are known, and what was left out.

    Of closed sets the confidence is the highest of the choices' probabilities, each the exponential of the whole
    choice's log-probability over their sum, and right is what `accuracy` calls right. Of generated answers it is the
    probability of the whole answer, and the geometric mean of its tokens'; right is the task's first metric where that
    is a mean of numbers in 0 … 1, else token F1.
    """
    found, notes = [], []
    closed = [e for e in examples if e.choices]
    if closed:
        asked = [model.shorten(e.messages, max_tokens)[0] for e in closed]
        scores = model.score(asked, [e.choices for e in closed], progress=progress)
        shares = [softmax(row) for row in scores]
        right = [accuracy(e.choices[int(s.argmax())], e) for e, s in zip(closed, shares, strict=True)]
        found.append(Confidence(CHOICES, np.array([s.max() for s in shares]), np.array(right)))
    free = [i for i, e in enumerate(examples) if not e.choices]
    known = [i for i in free if said.answers[i].logprobs]
    if len(known) < len(free):
        notes.append(f"{len(free) - len(known)} answers have no log-probabilities and are left out of calibration")
    if known:
        whole = np.array([np.exp(sum(said.answers[i].logprobs)) for i in known])
        geometric = np.array([np.exp(np.mean(said.answers[i].logprobs)) for i in known])
        correct, by = _correctness([said.texts[i] for i in known], [examples[i] for i in known], metric)
        found.append(Confidence(WHOLE, np.clip(whole, 0, 1), correct))
        found.append(Confidence(MEAN_TOKEN, np.clip(geometric, 0, 1), correct))
        notes.append(f"correctness of generated answers for calibration: {by}")
    return found, notes


def _correctness(texts: Sequence[str], examples: Sequence[Example], metric: str) -> tuple[Array, str]:
    judge = get_metric(metric, examples)
    rows = judge.statistics(texts, examples)
    if rows.shape[1] == 1 and tuple(judge.range) == (0.0, 1.0) and judge.higher_is_better:
        values = rows[:, 0]
        if ((values >= 0) & (values <= 1)).all():
            return values, metric
    return get_metric("token-f1").statistics(texts, examples)[:, 0], "token-f1"


@dataclass(frozen=True)
class OverPhrasings:
    """A metric over P phrasings from sums of all of them, (…, P · S): the mean, the worst value or best minus worst."""

    metric: AdditiveMetric
    phrasings: int
    how: str
    higher_is_better: bool = True

    @property
    def range(self) -> tuple[float, float]:
        low, high = self.metric.range
        return (0.0, high - low) if self.how == "spread" else (low, high)

    def aggregate(self, sums: Array, count: Array | float) -> Array:
        sums = np.asarray(sums, dtype=np.float64)
        each = sums.reshape(*sums.shape[:-1], self.phrasings, -1)
        values = np.asarray(self.metric.aggregate(each, np.asarray(count)))
        if self.how == "mean":
            return values.mean(-1)
        if self.how == "spread":
            return values.max(-1) - values.min(-1)
        return values.min(-1) if self.higher_is_better else values.max(-1)


@dataclass(frozen=True)
class Phrased:
    """How a score hangs on the instruction's phrasing.

    Attributes:
        figures: mean, worst and spread over phrasings; `each`: of each phrasing, by its name.
        p: how often best and worst would lie this far apart if phrasings made no difference (paired permutation).
    """

    figures: dict[str, Figure]
    each: dict[str, Figure]
    p: float


def phrased(
    model: Adapted, examples: Sequence[Example], metric: str, tried: Sequence[Phrasing], plan: Sampling, seed: int,
    progress: Callable[[int, str], None],
) -> Phrased:  # fmt: skip
    """Ask every question in each phrasing and score the answers by a metric."""
    judge = get_metric(metric, examples)
    rows = []
    for i, one in enumerate(tried):
        progress(i, one.name)
        asked = [replace(e, messages=one(e.messages)) for e in examples]
        rows.append(judge.statistics(answer(model, asked, plan).texts, examples))
    progress(len(tried), "")
    statistics = np.stack(rows)  # (P, N, S)
    flat = statistics.transpose(1, 0, 2).reshape(len(examples), -1)
    better: Any = "higher" if judge.higher_is_better else "lower"
    ways = {"mean": better, "worst": better, "spread": "lower"}
    return Phrased(
        {
            f"{metric}, {how} phrasing" if how == "worst" else f"{metric}, {how} over phrasings": Figure(
                OverPhrasings(judge, len(tried), how, judge.higher_is_better), flat, way
            )
            for how, way in ways.items()
        },
        {one.name: Figure(judge, own, better) for one, own in zip(tried, statistics, strict=True)},
        spread_p_value(statistics, judge.aggregate, seed=seed),
    )


def forgotten(model: Adapted, reference: Reference, base_lengths: Array) -> dict[str, Figure]:
    """Bits per byte of a general text above the base's, over its pieces, and KL from the base, over general prompts.

    Args:
        base_lengths: `code_lengths` of the base on the reference's pieces.
    """
    own = code_lengths(model.engine, reference.pieces)
    more = ratio(list(own[:, 0] - base_lengths[:, 0]), list(base_lengths[:, 1]), low=-np.inf, high=np.inf)
    terms = kl_terms(
        model.engine, [model.prepare((Message("user", prompt),)) for prompt in reference.prompts], reference
    )
    found = {
        "bits_per_byte_more": more,
        "kl": ratio(list(terms[:, 0]), list(terms[:, 1]), low=-np.inf, high=np.inf),
    }
    return {name: replace(figure, better="lower") for name, figure in found.items() if figure is not None}


def forward(model: Adapted, examples: Sequence[Example], progress: Watch = None) -> dict[str, Figure]:
    """The model's −log-probability of the references: nats an answer, and nats a token, end token included."""
    wanted = [references(e) for e in examples]
    tokens = [[len(model.renderer.answer(text)) for text in texts] for texts in wanted]
    asked = [model.shorten(e.messages, max(own))[0] for e, own in zip(examples, tokens, strict=True)]
    nats = [-np.mean(row) for row in model.score(asked, wanted, progress=progress)]
    return entropies("forward", nats, [float(np.mean(own)) for own in tokens])


def entropies(name: str, nats: Sequence[Any], tokens: Sequence[Any]) -> dict[str, Figure]:
    """Cross-entropy an answer and a token, from the means of each question's answers."""
    token = ratio([float(x) for x in nats], [float(x) for x in tokens], high=np.inf, better="lower")
    found = {name: mean([float(x) for x in nats], low=0.0, better="lower"), f"{name}_token": token}
    return {key: figure for key, figure in found.items() if figure is not None}


def cost(
    model: Adapted, method: Method, examples: Sequence[Example], said: Answers, work: Any, seconds: float,
    plan: Sampling,
) -> dict[str, Any]:  # fmt: skip
    """What answering took: tokens read and written, FLOPs and seconds an answer, and the latency of one alone.

    Args:
        work: what the model did for `said`, and `seconds` how long.
    """
    n = len(examples)
    return {
        "prompt_tokens": sum(said.prompt_tokens) / n, "generated_tokens": sum(said.generated_tokens) / n,
        "flops": flops(work, model.engine.model.hf) / n, "seconds": seconds / n,
        "latency_seconds": latency(model, examples, plan, 3), "training": cost_line(method),
    }  # fmt: skip

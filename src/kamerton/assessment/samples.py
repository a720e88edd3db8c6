"""Sampled answers of a model, and the figures that need nothing but their texts.

Answers are sampled from the model's own distribution at a temperature, without top-k, top-p or min-p, several to each
question with one prefill; the same seed draws the same noise at every temperature and for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kamerton.evaluation import diversity
from kamerton.evaluation.figures import Averaged, Figure, mean
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted
from kamerton.rendering import Renderer
from kamerton.tasks.example import Example

Array = np.ndarray[Any, Any]
NGRAMS = (1, 2, 3)
MOST_REFERENCES = 8
"""Accepted answers of a question that are taken as references; one that takes any wording may list hundreds."""


@dataclass(frozen=True)
class Samples:
    """Answers to N questions, n to each.

    Attributes:
        temperature: at which they were sampled.
        texts: N lists of n.
        tokens: (N, n) tokens of each, end token included.
        ended: (N, n) whether the end token came inside the limit.
        nats: (N, n) −log-probability under the model at temperature 1.
        cut: questions that were cut to fit the model.
    """

    temperature: float
    texts: list[list[str]]
    tokens: Array
    ended: Array
    nats: Array
    cut: int


def draw(
    model: Adapted, examples: Sequence[Example], temperature: float, plan: Sampling,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:  # fmt: skip
    """Sample `plan.n` answers to each question at a temperature; greedy ones are generated once and repeated."""
    asked = [model.shorten(e.messages, plan.max_tokens) for e in examples]
    n = plan.n if temperature else 1
    one = replace(plan, temperature=temperature, n=n, top_k=None, top_p=None, min_p=None)
    answers = model.generate([c for c, _ in asked], one, progress=progress)
    rows = [answers[i * n : (i + 1) * n] * (plan.n // n) for i in range(len(examples))]
    return Samples(
        temperature,
        [[a.text for a in row] for row in rows],
        np.array([[len(a.tokens) for a in row] for row in rows], dtype=np.float64),
        np.array([[a.finish == "stop" for a in row] for row in rows]),
        np.array([[-sum(a.logprobs) for a in row] for row in rows], dtype=np.float64),
        sum(cut for _, cut in asked),
    )


def references(example: Example) -> list[str]:
    """The accepted answers that are taken as references, each once."""
    return list(dict.fromkeys(example.answers))[:MOST_REFERENCES]


def tokenizer_of(metrics: Sequence[str]) -> str:
    """sacrebleu's tokenizer that the task's own BLEU asks for, "" where it has none."""
    return next((name.partition(":")[2] for name in metrics if name.partition(":")[0] == "bleu"), "")


def sample_figures(
    samples: Samples, examples: Sequence[Example], metrics: Sequence[str], renderer: Renderer, split: diversity.Words
) -> dict[str, Figure]:
    """The task's metrics of the samples, and every figure of their texts; those that are not defined are left out."""
    wanted = [references(e) for e in examples]
    n = len(samples.texts[0])
    found: dict[str, Figure | None] = {}
    for name in metrics:
        metric = get_metric(name, examples)
        rows = sum(metric.statistics([texts[j] for texts in samples.texts], examples) for j in range(n))
        better = "higher" if getattr(metric, "higher_is_better", True) else "lower"
        found[name] = Figure(Averaged(metric, n), np.asarray(rows), better)  # type: ignore[arg-type]
    found |= _texts(samples.texts, split)
    for order in NGRAMS:
        found[f"precision_{order}"] = diversity.precision(samples.texts, wanted, order, split)
        found[f"recall_{order}"] = diversity.recall(samples.texts, wanted, order, split)
    found["length"] = diversity.length(samples.tokens)
    found["length_ratio"] = diversity.length_ratio(samples.tokens, _reference_tokens(wanted, renderer).tolist())
    found["ended"] = diversity.ended(samples.ended)
    if samples.temperature == 1.0:
        found["entropy"] = mean(samples.nats.mean(1), low=0.0)
    return {name: figure for name, figure in found.items() if figure is not None}


def reference_figures(examples: Sequence[Example], renderer: Renderer, split: diversity.Words) -> dict[str, Figure]:
    """The same figures of the references, those that are defined for them."""
    wanted = [references(e) for e in examples]
    found = _texts(wanted, split)
    found["length"] = mean(_reference_tokens(wanted, renderer), low=0.0)
    return {name: figure for name, figure in found.items() if figure is not None}


def _texts(sets: list[list[str]], split: diversity.Words) -> dict[str, Figure | None]:
    first = [texts[0] for texts in sets]
    several = all(len(texts) > 1 for texts in sets)
    found: dict[str, Figure | None] = {"self_bleu": diversity.self_bleu(sets, split)}
    for order in NGRAMS:
        found[f"distinct_{order}"] = diversity.distinct(sets, order, split) if several else None
    found["self_bleu_across"] = diversity.self_bleu_across(first, split)
    for order in NGRAMS:
        found[f"distinct_{order}_across"] = diversity.distinct_across(first, order, split)
    return found


def _reference_tokens(wanted: Sequence[Sequence[str]], renderer: Renderer) -> Array:
    """(N,): tokens of a question's references, end token included, in the mean."""
    return np.array([np.mean([len(renderer.answer(text)) for text in texts]) for texts in wanted])

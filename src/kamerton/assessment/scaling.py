"""Test-time scaling: how good answers become for how many tokens, by number of samples and by thinking budget.

K answers are sampled once to each question. What fewer of them would have given is computed from the same samples:
the best of n by a reward and pass@n exactly over all subsets of n (`evaluation/best_of.py`), the majority vote over all
subsets or, where there are too many, over drawn ones. Budgets of thought are measured by answering anew, as the recipe
decodes. Intervals are bootstraps over questions, differences are paired by question, p-values are corrected together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kamerton.assessment.scaling_settings import ScalingSettings
from kamerton.base.encoder_decoder import causal
from kamerton.errors import KamertonError, TaskError
from kamerton.evaluation.answering import answer, judge
from kamerton.evaluation.best_of import expected_best, expected_chosen, sizes, subsets
from kamerton.evaluation.figures import Figure, difference, interval
from kamerton.evaluation.metrics import Metric, get_metric
from kamerton.evaluation.statistics import holm
from kamerton.inference import Answer, Sampling
from kamerton.methods.best_of_n import Choosing
from kamerton.methods.chain_of_thought import Thinking
from kamerton.methods.method import Adapted, Report, Wrapped
from kamerton.methods.self_consistency import Voting
from kamerton.methods.thinking_budget import Forced, ThinkingBudgetOptions
from kamerton.prompting.choosing import LOG_PROBABILITY, answer_reward, scores_of
from kamerton.prompting.extraction import NUMERIC
from kamerton.prompting.thinking import Forcing
from kamerton.prompting.voting import vote
from kamerton.rewards.reward import Reward
from kamerton.tasks.example import Example, Task

Array = np.ndarray[Any, Any]
VOTE, ANY, ONE = "majority vote", "any right (pass@n)", "one answer, as the recipe decodes"
SUBSETS = 64
"""Subsets of n samples over which a vote is averaged, where there are more."""


@dataclass(frozen=True)
class Sampled:
    """K answers to each of N questions.

    Attributes:
        answers: N lists of K.
        statistics: (N, K, S) of each answer under the task's first metric.
        tokens: (N,) tokens that were generated for one of them, in the mean.
    """

    answers: list[list[Answer]]
    statistics: Array
    tokens: Array


@dataclass
class Point:
    """One place of a curve: n answers or a budget, the tokens it took, and the metric's statistics of each question."""

    at: int
    tokens: float
    figure: Figure


def scaling(
    model: Adapted, task: Task, split: str, plan: Sampling, settings: ScalingSettings, report: Report
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a model.

    Args:
        plan: how one answer is decoded; samples are drawn at the settings' temperature, without filters.

    Returns:
        The result as plain values, and all samples as rows.

    Raises:
        TaskError: nothing can be sampled: all questions are ranked without thought.
    """
    notes: list[str] = []
    model = _inside(model, notes)
    examples = _sampled_questions(model, getattr(task, split), task.name, notes)
    metric = get_metric(task.metrics[0], examples)
    # what cannot be measured is refused before anything is computed
    budgets = _budgets(model, settings, notes)
    specs = dict.fromkeys((LOG_PROBABILITY, *settings.rewards))
    rewards = {f"best of n by {s}": answer_reward(s, model.base, metric.name, "--reward") for s in specs}
    curves: dict[str, list[Point]] = {}
    said = answer(model, examples, plan, progress=_watch(report, "answering"))
    if said.cut:
        notes.append(f"{said.cut} of {len(examples)} questions were cut to fit the model")
    curves[ONE] = [Point(1, float(np.mean(said.generated_tokens)), _figure(metric, said.texts, examples))]
    drawn = _sample(model, examples, metric, plan, settings, report)
    curves |= _by_samples(drawn, rewards, examples, metric, settings)
    if budgets:
        curves |= _by_budget(model, budgets, examples, metric, plan, settings, report)
    report("intervals", 0.0, "")
    rows = [
        {"id": e.id, "answers": [a.text for a in row], "tokens": [a.generated_tokens for a in row],
         "details": [a.details for a in row]}
        for e, row in zip(examples, drawn.answers, strict=True)
    ]  # fmt: skip
    low, high = metric.range
    return {
        "task": task.name, "split": split, "questions": len(examples), "metric": task.metrics[0],
        "range": [low, high], "higher_is_better": metric.higher_is_better, "settings": asdict(settings),
        "method": model.method, "base": model.base.info.name, "notes": notes,
        "prompt_tokens": float(np.mean(said.prompt_tokens)),
        "curves": {name: [_point(p, settings.seed) for p in points] for name, points in curves.items()},
        "gains": _gains(curves, settings.seed),
    }, rows  # fmt: skip


def _inside(model: Adapted, notes: list[str]) -> Adapted:
    """What is sampled: votes and choices of the method itself are taken off, for they are measured here."""
    while isinstance(model, Voting | Choosing):
        notes.append(f"what stands inside {model.method} was sampled: votes and choices are measured on it")
        model = model.inner
    return model


def _layers(model: Adapted) -> list[Adapted]:
    out = [model]
    while isinstance(out[-1], Wrapped):
        out.append(out[-1].inner)
    return out


def _sampled_questions(
    model: Adapted, examples: Sequence[Example], where: str, notes: list[str]
) -> tuple[Example, ...]:
    """The questions whose answers can differ between samples."""
    if any(isinstance(m, Thinking | Forced) for m in _layers(model)):
        return tuple(examples)
    free = tuple(e for e in examples if not e.choices)
    if not free:
        raise TaskError(
            "choices are ranked without thought, so samples do not differ", where=where,
            mend="measure chain-of-thought or thinking-budget",
        )  # fmt: skip
    if len(free) < len(examples):
        notes.append(
            f"{len(examples) - len(free)} of {len(examples)} questions have a closed set of answers that is ranked "
            "without thought: they are left out"
        )
    return free


def _watch(report: Report, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: report(stage, done / max(total, 1), f"{done} of {total}")


def _figure(metric: Metric, texts: Sequence[str], examples: Sequence[Example]) -> Figure:
    return _as_figure(metric, metric.statistics(texts, examples))


def _as_figure(metric: Metric, statistics: Array) -> Figure:
    return Figure(metric, statistics, "higher" if metric.higher_is_better else "lower")


def _sample(
    model: Adapted, examples: Sequence[Example], metric: Metric, plan: Sampling, settings: ScalingSettings,
    report: Report,
) -> Sampled:  # fmt: skip
    """K answers to each question, with one reading of it."""
    wide = replace(
        plan, n=settings.samples, temperature=settings.temperature, seed=settings.seed, top_k=None, top_p=None,
        min_p=None,
    )  # fmt: skip
    asked = [model.shorten(e.messages, plan.max_tokens)[0] for e in examples]
    watch, k = _watch(report, "sampling"), settings.samples
    found: list[list[Answer]] = [[] for _ in examples]
    for closed in (False, True):
        some = [i for i, e in enumerate(examples) if bool(e.choices) == closed]
        if not some:
            continue
        questions = [asked[i] for i in some]
        if closed:
            said = model.choose(questions, [examples[i].choices for i in some], wide, progress=watch)
        else:
            said = model.generate(questions, wide, progress=watch)
        for place, i in enumerate(some):
            found[i] = said[place * k : (place + 1) * k]
    each = [judge([row[j].text for row in found], examples, [metric.name])[metric.name] for j in range(k)]
    tokens = np.array([np.mean([a.generated_tokens for a in row]) for row in found])
    return Sampled(found, np.stack(each, axis=1), tokens)


def _by_samples(
    drawn: Sampled, rewards: Mapping[str, Reward | None], examples: Sequence[Example], metric: Metric,
    settings: ScalingSettings,
) -> dict[str, list[Point]]:  # fmt: skip
    """Curves over the number of samples."""
    at, tokens = sizes(settings.samples), float(drawn.tokens.mean())
    out = {VOTE: [Point(n, n * tokens, _as_figure(metric, votes(drawn, examples, metric.name, n, settings.seed)))
                  for n in at]}  # fmt: skip
    flat = [a for row in drawn.answers for a in row]
    asked = [e.messages for e in examples for _ in range(settings.samples)]
    choices = [e.choices for e in examples for _ in range(settings.samples)]
    for name, reward in rewards.items():
        scores = scores_of(reward, asked, flat, choices).reshape(len(examples), -1)
        out[name] = [Point(n, n * tokens, _as_figure(metric, expected_chosen(scores, drawn.statistics, n))) for n in at]
    if drawn.statistics.shape[2] == 1 and metric.higher_is_better:
        single = drawn.statistics[:, :, 0]
        out[ANY] = [Point(n, n * tokens, _as_figure(metric, expected_best(single, n)[:, None])) for n in at]
    return out


def votes(drawn: Sampled, examples: Sequence[Example], metric: str, n: int, seed: int) -> Array:
    """(N, S) statistics of the majority vote of n of the samples, in the mean over subsets of them."""
    numeric, out = metric.partition(":")[0] in NUMERIC, []
    for i, (example, row) in enumerate(zip(examples, drawn.answers, strict=True)):
        texts = [a.text for a in row]
        parts = subsets(len(texts), n, SUBSETS, np.random.default_rng([seed, n, i]))
        won = [p[vote([texts[j] for j in p], [1.0] * n, numeric=numeric and not example.choices).winner] for p in parts]
        out.append(drawn.statistics[i, won].mean(0))
    return np.stack(out)


def _budgets(model: Adapted, settings: ScalingSettings, notes: list[str]) -> tuple[int, ...]:
    """The budgets that are measured; none where none are asked for and the method has none."""
    if isinstance(model, Forced):
        return settings.budgets or tuple(sorted({model.forcing.budget * k // 8 for k in (0, 1, 2, 4, 8)}))
    if not settings.budgets:
        if settings.continuations is not None:
            raise KamertonError(
                "the method has no thinking budget, so no thought can go on", where="--continuations",
                mend="give --budgets, or measure thinking-budget",
            )  # fmt: skip
        return ()
    if any(isinstance(m, Thinking) for m in _layers(model)):
        raise TaskError(
            "a thinking budget cannot stand around a chain of thought", where="--budgets",
            mend="measure thinking-budget, or leave --budgets out",
        )  # fmt: skip
    causal(model.engine.model, "a thinking budget")
    notes.append("the method has no thinking budget of its own: its answers were begun with <think> for the budgets")
    return settings.budgets


def _by_budget(
    model: Adapted, budgets: Sequence[int], examples: Sequence[Example], metric: Metric, plan: Sampling,
    settings: ScalingSettings, report: Report,
) -> dict[str, list[Point]]:  # fmt: skip
    """Curves over the thinking budget: one for each number of times that thought may be made to go on."""
    own = model if isinstance(model, Forced) else None
    inner = own.inner if own is not None else model
    options = own.options if own is not None else ThinkingBudgetOptions.model_validate({})
    assert isinstance(options, ThinkingBudgetOptions)
    most = settings.continuations
    if most is None:
        most = own.forcing.continuations if own is not None else 0
    out: dict[str, list[Point]] = {}
    for again in range(most + 1):
        name = "thinking budget" if not again else f"thinking budget, going on up to {again} times"
        out[name] = []
        for budget in budgets:
            forced = Forced(inner, options, forcing=Forcing(budget, again, options.wait))
            said = answer(forced, examples, plan, progress=_watch(report, f"{name}: {budget} tokens"))
            figure = _figure(metric, said.texts, examples)
            out[name].append(Point(budget, float(np.mean(said.generated_tokens)), figure))
    return out


def _point(point: Point, seed: int) -> dict[str, Any]:
    found = interval(point.figure, seed=seed)
    return {"at": point.at, "tokens": point.tokens, "value": found.value, "low": found.low, "high": found.high}


def _gains(curves: Mapping[str, Sequence[Point]], seed: int) -> list[dict[str, Any]]:
    """The end of each curve against its beginning, and where on it nothing more was gained that can be told apart."""
    found = []
    for name, points in curves.items():
        if name in (ONE, ANY) or len(points) < 2:
            continue
        last = points[-1]
        moved = difference(last.figure, points[0].figure, seed=seed)
        found.append((name, points, moved))
    corrected = holm([moved.p for *_, moved in found])
    out = []
    for (name, points, moved), p in zip(found, corrected, strict=True):
        enough = next(
            p.at for p in points
            if p is points[-1] or difference(points[-1].figure, p.figure, seed=seed).p >= 0.05
        )  # fmt: skip
        out.append({
            "curve": name, "from": points[0].at, "to": points[-1].at, "before": points[0].figure.value,
            "after": points[-1].figure.value, "value": moved.value, "low": moved.low, "high": moved.high, "p": moved.p,
            "p_holm": p, "enough": enough, "tokens": [points[0].tokens, points[-1].tokens],
        })  # fmt: skip
    return out

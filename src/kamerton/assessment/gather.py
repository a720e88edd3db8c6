"""What was measured, as plain values: intervals, curves, paired differences, samples for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kamerton.assessment import probes
from kamerton.assessment.samples import Samples, references
from kamerton.assessment.settings import FidelitySettings
from kamerton.evaluation import confidence
from kamerton.evaluation.answering import Answers
from kamerton.evaluation.figures import Figure, difference, interval
from kamerton.evaluation.frontier import Gain, Point, compare_frontiers, diversity_of
from kamerton.evaluation.metrics import get_metric
from kamerton.evaluation.statistics import holm
from kamerton.methods.method import Adapted
from kamerton.tasks.example import Example, Task

Figures = dict[str, Figure]
SHOWN = 8
"""Questions whose samples stand in the result for people to read."""


@dataclass
class Subject:
    """One model and what was measured of it.

    Attributes:
        figures: by group: "answers", "calibration", "phrasings", "each phrasing", "forgetting", and "T=0.7" for samples
            at a temperature.
        samples: by temperature.
    """

    label: str
    model: Adapted
    figures: dict[str, Figures] = field(default_factory=dict)
    samples: dict[float, Samples] = field(default_factory=dict)
    greedy: Answers | None = None
    confidences: list[probes.Confidence] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def group(temperature: float) -> str:
    """The name of the figures of samples at a temperature."""
    return f"T={temperature:g}"


def _points(subject: Subject, metric: str) -> list[Point]:
    return [
        Point(t, subject.figures[group(t)][metric], subject.figures[group(t)]["self_bleu"]) for t in subject.samples
    ]


def frontier_of(
    subjects: Sequence[Subject], task: Task, free: Sequence[Example], settings: FidelitySettings
) -> dict[str, Any] | None:
    """The curve of each model, and two of them compared."""
    name = task.metrics[0]
    metric = get_metric(name, free)
    gain: Gain | None = None
    if len(subjects) == 2:
        first, second = (_points(s, name) for s in subjects)
        gain = compare_frontiers(first, second, higher_is_better=metric.higher_is_better, seed=settings.seed)
    curves: dict[str, list[dict[str, Any]]] = {}
    for s in subjects:
        curves[s.label] = []
        for point in _points(s, name):
            quality, alike = interval(point.quality, seed=settings.seed), interval(point.diversity, seed=settings.seed)
            curves[s.label].append({
                "temperature": point.temperature, "quality": [quality.value, quality.low, quality.high],
                "diversity": [float(diversity_of(x)) for x in (alike.value, alike.high, alike.low)],
            })  # fmt: skip
    return {
        "metric": name, "range": list(metric.range), "higher_is_better": metric.higher_is_better, "curves": curves,
        "gain": None if gain is None else asdict(gain),
    }  # fmt: skip


def intervals(figures: Figures, seed: int) -> dict[str, Any]:
    """Each figure's value and 95% interval."""
    out = {}
    for name, figure in figures.items():
        found = interval(figure, seed=seed)
        out[name] = {"value": found.value, "low": found.low, "high": found.high, "better": figure.better}
    return out


def gathered(subject: Subject, settings: FidelitySettings) -> dict[str, Any]:
    """Everything that was measured of a model."""
    figures = {name: intervals(own, settings.seed) for name, own in subject.figures.items()}
    reliability = []
    for one in subject.confidences:
        ece = subject.figures["calibration"][f"ece: {one.name}"]
        reliability.append({
            "name": one.name, "answers": len(one.confidence), "bins": confidence.diagram(ece),
            "floor": confidence.floor(one.confidence, settings.bins, seed=settings.seed),
            "confidence": float(one.confidence.mean()), "correct": float(one.correct.mean()),
        })  # fmt: skip
    return {**subject.about, "figures": figures, "reliability": reliability}


def differences(subjects: Sequence[Subject], seed: int) -> dict[str, dict[str, Any]]:
    """First minus second of every figure that both have; p-values corrected over all of them."""
    if len(subjects) < 2:
        return {}
    first, second = subjects
    found = []
    for name, own in first.figures.items():
        other = second.figures.get(name, {})
        for key, figure in own.items():
            if key in other and figure.statistics.shape == other[key].statistics.shape:
                found.append((name, key, figure.better, difference(figure, other[key], seed=seed)))
    corrected = holm([d.p for *_, d in found])
    out: dict[str, dict[str, Any]] = {}
    for (name, key, better, d), p in zip(found, corrected, strict=True):
        out.setdefault(name, {})[key] = {
            "value": d.value,
            "low": d.low,
            "high": d.high,
            "p": d.p,
            "p_holm": p,
            "better": better,
        }
    return out


def examples_of(subjects: Sequence[Subject], free: Sequence[Example]) -> list[dict[str, Any]]:
    """Some questions with their references and samples at the temperature nearest to 1."""
    out = []
    for i, e in enumerate(free[:SHOWN]):
        said = {}
        for s in subjects:
            t = min(s.samples, key=lambda t: (abs(t - 1), t))
            said[s.label] = s.samples[t].texts[i]
        out.append({"id": e.id, "question": e.messages[-1].content, "references": references(e), "samples": said})
    return out

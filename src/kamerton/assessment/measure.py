"""Measure one tuned model, or two on the same questions, and gather everything as plain values.

Every figure is kept with its statistics of each question, so that one piece of code gives all intervals and all paired
differences; p-values of differences are corrected together (Holm). The order of work: greedy answers and what can be
said of them; samples at each temperature; MAUVE; judges; phrasings; forgetting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kamerton.assessment import probes
from kamerton.assessment.features import mauve_figures
from kamerton.assessment.gather import (
    Figures,
    Subject,
    differences,
    examples_of,
    frontier_of,
    gathered,
    group,
    intervals,
)
from kamerton.assessment.judge import Said, judged
from kamerton.assessment.samples import draw, reference_figures, references, sample_figures, tokenizer_of
from kamerton.assessment.settings import FidelitySettings
from kamerton.errors import TaskError
from kamerton.evaluation import diversity
from kamerton.evaluation.answering import answer
from kamerton.evaluation.figures import Figure
from kamerton.evaluation.forgetting import Reference, code_lengths
from kamerton.evaluation.metrics import get_metric
from kamerton.inference import Engine, Sampling
from kamerton.methods import get_method
from kamerton.methods.method import Adapted, Report
from kamerton.prompting.phrasings import phrasings
from kamerton.tasks.example import Example, Task, answered

COARSE = 15
"""Buckets below which MAUVE tells little: sets that plainly differ share all of them."""


def assess(
    models: Mapping[str, Adapted], task: Task, split: str, plan: Sampling, settings: FidelitySettings, folder: Path,
    report: Report, forgetting: Reference | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Measure models on a split of a task.

    Args:
        models: one or two by their labels; features, judges and forgetting are those of the first one's base.
        plan: how greedy (or otherwise decoded) answers are made; samples are the model's own distribution.
        folder: where judges are kept.
        forgetting: what the base says to general text and prompts; None: not measured.

    Returns:
        The result as plain values, and all samples as rows.
    """
    examples: tuple[Example, ...] = getattr(task, split)
    subjects = [Subject(label, model) for label, model in models.items()]
    if settings.judge and split == "train":
        raise TaskError(
            "a judge has to be trained on references that the model was not", where=task.name,
            mend="take --split test, or leave --judge out",
        )  # fmt: skip
    for subject in subjects:
        _answers(subject, examples, task, plan, settings, report)
    free = [e for e in examples if not e.choices]
    result: dict[str, Any] = {"references": {}, "frontier": None}
    notes: list[str] = []
    if len(free) < len(examples):
        closed = len(examples) - len(free)
        notes.append(f"{closed} of {len(examples)} questions have a closed set of answers: no samples of them")
    rows: list[dict[str, Any]] = []
    if free:
        _sample(subjects, free, task, plan, settings, report)
        split_words = diversity.words(tokenizer_of(task.metrics))
        wanted = reference_figures(free, subjects[0].model.renderer, split_words)
        _as_distributions(subjects, wanted, free, task, settings, folder, report, notes, split)
        result["references"] = intervals(wanted, settings.seed)
        result["frontier"] = frontier_of(subjects, task, free, settings)
        rows = [
            {"model": s.label, "temperature": t, "id": e.id, "answers": texts, "ended": ended.tolist()}
            for s in subjects for t, drawn in s.samples.items()
            for e, texts, ended in zip(free, drawn.texts, drawn.ended, strict=True)
        ]  # fmt: skip
    _phrasings(subjects, examples, task, plan, settings, report, notes)
    if forgetting is not None:
        _forgetting(subjects, forgetting, report)
    report("intervals", 0.0, "")
    return {
        "task": task.name, "split": split, "questions": len(examples), "sampled_questions": len(free),
        "settings": asdict(settings), "metrics": list(task.metrics),
        "notes": notes + [f"{s.label}: {note}" if len(subjects) > 1 else note for s in subjects for note in s.notes],
        "models": {s.label: gathered(s, settings) for s in subjects},
        "differences": differences(subjects, settings.seed),
        "examples": examples_of(subjects, free),
        **result,
    }, rows  # fmt: skip


def _watch(report: Report, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: report(stage, done / max(total, 1), f"{done} of {total}")


def _answers(
    subject: Subject, examples: Sequence[Example], task: Task, plan: Sampling, settings: FidelitySettings,
    report: Report,
) -> None:  # fmt: skip
    """Answers as the recipe decodes them: metrics, calibration, cost, and the likelihood of references."""
    model, label = subject.model, subject.label
    before, start = model.engine.model.work.copy(), time.perf_counter()
    said = answer(model, examples, plan, progress=_watch(report, f"answering: {label}"))
    seconds, work = time.perf_counter() - start, model.engine.model.work - before
    subject.greedy = said
    found: Figures = {}
    for name in task.metrics:
        metric = get_metric(name, examples)
        found[name] = Figure(
            metric, metric.statistics(said.texts, examples), "higher" if metric.higher_is_better else "lower"
        )
    found |= probes.forward(model, examples, _watch(report, f"likelihood of references: {label}"))
    subject.figures["answers"] = found
    subject.confidences, told = probes.confidences(model, examples, said, task.metrics[0], plan.max_tokens)
    subject.notes += told
    subject.figures["calibration"] = {
        name: figure for one in subject.confidences for name, figure in one.figures(settings.bins).items()
    }
    if said.cut:
        subject.notes.append(f"{said.cut} of {len(examples)} questions were cut to fit the model")
    report(f"latency: {label}", 0.0, "")
    method = get_method(model.method)
    subject.about = {
        "method": model.method, "options": model.options.model_dump(mode="json"), "base": model.base.info.name,
        "cost": probes.cost(model, method, examples, said, work, seconds, plan),
    }  # fmt: skip


def _sample(
    subjects: Sequence[Subject], free: Sequence[Example], task: Task, plan: Sampling, settings: FidelitySettings,
    report: Report,
) -> None:  # fmt: skip
    """Samples at each temperature and the figures of their texts."""
    split = diversity.words(tokenizer_of(task.metrics))
    wide = replace(plan, n=settings.samples, seed=settings.seed)
    for s in subjects:
        for t in settings.temperatures:
            drawn = draw(s.model, free, t, wide, _watch(report, f"sampling: {s.label}, temperature {t:g}"))
            s.samples[t] = drawn
            s.figures[group(t)] = sample_figures(drawn, free, task.metrics, s.model.renderer, split)


def _as_distributions(
    subjects: Sequence[Subject], wanted: Figures, free: Sequence[Example], task: Task, settings: FidelitySettings,
    folder: Path, report: Report, notes: list[str], split: str,
) -> None:  # fmt: skip
    """MAUVE, and the reverse cross-entropy where a judge is asked for, put among the figures of whom they are of."""
    base = subjects[0].model.base
    texts = [references(e) for e in free]
    drawn = {(s.label, t): samples for s in subjects for t, samples in s.samples.items()}
    others = [e.answers[0] for e in answered(task.train) if not e.choices][: len(free)] if split != "train" else []
    found, level, buckets = mauve_figures(
        base, texts, {key: samples.texts for key, samples in drawn.items()}, others,
        max_tokens=settings.max_batch_tokens, seed=settings.seed, progress=_watch(report, "features of answers"),
    )  # fmt: skip
    for s in subjects:
        for t in s.samples:
            s.figures[group(t)]["mauve"] = found[s.label, t]
    if level is not None:
        wanted["mauve"] = level
    coarse = f"; so few tell little, {10 * COARSE} questions give {COARSE}" if buckets < COARSE else ""
    notes.append(f"MAUVE: {buckets} buckets{coarse}")
    if not settings.judge:
        return
    said = [
        [*(Said(text) for text in own), *(
            Said(text, bool(ended)) for samples in drawn.values()
            for text, ended in zip(samples.texts[i], samples.ended[i], strict=True)
        )] for i, own in enumerate(texts)
    ]  # fmt: skip
    rows = judged(
        base, task, free, said, folder, settings.judge_options, settings.seed, report, settings.max_batch_tokens
    )
    first = [row[: len(own)].mean(0) for row, own in zip(rows, texts, strict=True)]
    wanted |= probes.entropies("reverse", [r[0] for r in first], [r[1] for r in first])
    for place, (label, t) in enumerate(drawn):
        at = [len(own) + place * settings.samples for own in texts]
        means = [row[a : a + settings.samples].mean(0) for row, a in zip(rows, at, strict=True)]
        subject = next(s for s in subjects if s.label == label)
        subject.figures[group(t)] |= probes.entropies("reverse", [m[0] for m in means], [m[1] for m in means])


def _phrasings(
    subjects: Sequence[Subject], examples: Sequence[Example], task: Task, plan: Sampling, settings: FidelitySettings,
    report: Report, notes: list[str],
) -> None:  # fmt: skip
    tried = phrasings(None, examples[0].messages)[: settings.phrasings]
    if len(tried) < 2:
        return
    notes.append(f"phrasings: {'; '.join(one.name for one in tried)}")
    for s in subjects:
        found = probes.phrased(
            s.model, examples, task.metrics[0], tried, plan, settings.seed,
            lambda i, name, s=s: report(f"phrasings: {s.label}", i / len(tried), name),  # type: ignore[misc]
        )  # fmt: skip
        s.figures["phrasings"], s.figures["each phrasing"] = found.figures, found.each
        s.about["phrasings_p"] = found.p


def _forgetting(subjects: Sequence[Subject], reference: Reference, report: Report) -> None:
    base = subjects[0].model.base
    report("forgetting", 0.0, "the base")
    lengths = code_lengths(Engine(base.model, base.renderer), reference.pieces)
    for s in subjects:
        if s.model.base.info.fingerprint != base.info.fingerprint:
            s.notes.append("forgetting is not measured: it has another base")
            continue
        report("forgetting", 0.5, s.label)
        s.figures["forgetting"] = probes.forgotten(s.model, reference, lengths)

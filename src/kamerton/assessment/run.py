"""From loaded models and a recipe to the files: the base's part in forgetting, the measures, the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kamerton.assessment.measure import assess
from kamerton.assessment.scaling import scaling
from kamerton.assessment.scaling_page import Scaling, write_scaling
from kamerton.assessment.scaling_settings import ScalingSettings
from kamerton.assessment.settings import FidelitySettings
from kamerton.assessment.write import Fidelity, write
from kamerton.comparison.machine import kamerton_version
from kamerton.comparison.reference import general_text
from kamerton.evaluation.forgetting import reference
from kamerton.inference import Engine, Sampling
from kamerton.methods.method import Adapted, Report
from kamerton.recipe import Recipe
from kamerton.tasks.example import Task


def run_assessment(
    models: Mapping[str, Adapted], recipe: Recipe, task: Task, split: str, settings: FidelitySettings, folder: Path,
    report: Report, command: str,
) -> Fidelity:  # fmt: skip
    """Measure one or two models by their labels and write what was found into a folder.

    Args:
        recipe: gives the decoding of single answers, and what forgetting is measured on.
        command: shown on the page.
    """
    spec, measured = recipe.forgetting, None
    if spec is not None:
        report("forgetting", 0.0, "the base on general text and prompts")
        base = next(iter(models.values())).base
        engine = Engine(base.model, base.renderer, max_batch_tokens=settings.max_batch_tokens)
        measured = reference(engine, general_text(recipe, spec.text, spec.bytes), spec.prompts)
    plan = Sampling(**recipe.evaluation.sampling.model_dump(), max_tokens=task.max_answer_tokens)
    result, samples = assess(models, task, split, plan, settings, folder, report, measured)
    return write(folder, {**result, "command": command, "kamerton": kamerton_version()}, samples)


def run_scaling(
    model: Adapted, recipe: Recipe, task: Task, split: str, settings: ScalingSettings, folder: Path, report: Report,
    told: Mapping[str, str],
) -> Scaling:  # fmt: skip
    """Measure quality against tokens of a model and write what was found into a folder.

    Args:
        recipe: gives the decoding of single answers.
        told: the model's label, and the command, both shown on the page.
    """
    plan = Sampling(**recipe.evaluation.sampling.model_dump(), max_tokens=task.max_answer_tokens)
    result, samples = scaling(model, task, split, plan, settings, report)
    return write_scaling(folder, {**result, **told, "kamerton": kamerton_version()}, samples)

"""What Python users call: `compare`, `plan`; for one method `tune`, `load`, `merge`, `export`, `evaluate`, …"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kamerton import processes
from kamerton.assessment.run import run_assessment, run_scaling
from kamerton.assessment.scaling_page import Scaling
from kamerton.assessment.scaling_settings import ScalingSettings
from kamerton.assessment.settings import FidelitySettings
from kamerton.assessment.write import Fidelity
from kamerton.backends import check_backend
from kamerton.base import Base
from kamerton.comparison.run import Comparison, Watcher, check_task, recipe_base
from kamerton.comparison.run import compare as run_comparison
from kamerton.comparison.store import Store
from kamerton.errors import KamertonError
from kamerton.evaluation.answering import answer, judge, values
from kamerton.exporting.for_vllm import decoding
from kamerton.exporting.run import SHARD, Exported
from kamerton.exporting.run import export as run_export
from kamerton.inference import Sampling
from kamerton.methods import at_its_line, get_method, resolve_one
from kamerton.methods.defined import check_defined, check_fits
from kamerton.methods.merge import Merged
from kamerton.methods.merge import merge as merge_weights
from kamerton.methods.method import Adapted, Report, Run
from kamerton.methods.prompted import within
from kamerton.recipe import MethodSpec, Recipe, as_recipe
from kamerton.targets import load, load_beside
from kamerton.tasks import Task, load_task
from kamerton.tasks.example import Example, answered
from kamerton.training import Budget
from kamerton.training.checkpoint import drop_checkpoints
from kamerton.training.loop import check_trackers

if TYPE_CHECKING:
    from kamerton.comparison.planning.device import Device
    from kamerton.comparison.planning.plan import Plan


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a split.

    Attributes:
        metrics: per metric its value.
        examples, answers: what was asked and what was said.
        right: per example its score under the first metric, where that is a mean over examples; else None.
        prompt_tokens, generated_tokens: mean tokens read and written per example.
        cut: questions that had to be cut to fit the model.
    """

    metrics: dict[str, float]
    examples: tuple[Example, ...]
    answers: list[str]
    right: list[float] | None
    prompt_tokens: float
    generated_tokens: float
    cut: int = 0

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())

    def _repr_markdown_(self) -> str:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in self.metrics.items())
        return f"| metric | value |\n| --- | --- |\n{rows}"


def compare(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    output: str | Path | None = None,
    data: str | Path | None = None,
    task: Task | None = None,
    workers: int | None = None,
    race: bool | None = None,
    executor: str = "local",
    address: str | None = None,
    watcher: Watcher | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Run a comparison and write its report.

    Args:
        recipe: a recipe's path, its content as a mapping, or a `Recipe`.
        output: the folder; default: the recipe's `output`, else `runs/<name>`.
        data: a local copy of the task's data (see `load_recipe`).
        task: examples made in Python, in place of the recipe's task.
        workers: processes at a time; default: one for each two cores, as memory allows (one for a GPU).
        race: stop early what is clearly behind on validation questions; default: as the recipe says.
        executor: `local` (processes of this machine) or `ray` (tasks on a cluster).
        address: with `ray`: `HOST:PORT` or `auto`; default: `RAY_ADDRESS`, else Ray is started on this machine.
        watcher: told about progress, in place of what is printed.
        progress: whether progress is printed (on standard error); default: in a terminal and in a notebook.

    Returns:
        The comparison; failed cells are in it, they do not raise.

    Raises:
        KamertonError: the recipe, task or base is wrong, or another comparison runs in the folder.
    """
    if watcher is None and (_watched() if progress is None else progress):
        from kamerton.cli.display import Bars

        watcher = Bars()
    return run_comparison(
        recipe, output=output, data=data, task=task, workers=workers, race=race, executor=executor, address=address,
        watcher=watcher,
    )  # fmt: skip


def _watched() -> bool:
    """Whether somebody looks on: a terminal, or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def tune(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    method: str | None = None,
    *,
    output: str | Path,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    data: str | Path | None = None,
    task: Task | None = None,
    base: Base | None = None,
    report: Report | None = None,
    trackers: Sequence[str] = (),
) -> Adapted:
    """Adapt a base to a task by one method and save the result.

    Args:
        recipe: gives base, task, budget and the method's options.
        method: a label or name from the recipe, or any method's name; default: the recipe's only method.
        output: the folder that is written; a run that was stopped there goes on.
        options: options that replace the recipe's.
        seed: default: the recipe's first.
        data: a local copy of the task's data.
        task, base: objects to use in place of the recipe's.
        report: told about progress.
        trackers: names of accelerate's trackers (tensorboard, wandb, …); their files go to the output folder.

    Returns:
        The adapted model; `load(output)` reads it back.
    """
    recipe = as_recipe(recipe, data)
    check_trackers(trackers)
    spec = pick_method(recipe, method)
    chosen, parsed = resolve_one(recipe, spec, options)
    asked = recipe.task if task is None else None
    task = task or load_task(recipe.task)
    check_task(task, asked)
    base = base or recipe_base(recipe)
    budget = Budget(**recipe.budget.model_dump())
    try:
        check_defined(base, chosen, parsed)
        check_fits(base, within(task, budget), chosen, parsed)
    except KamertonError as error:
        if options or spec not in recipe.methods:  # no line of the recipe is to blame
            raise
        raise at_its_line(recipe, spec, error) from None
    folder = processes.own_folder(Path(output))
    lock = Store(folder).lock()
    try:
        run = Run(folder / "fit", recipe.seeds[0] if seed is None else seed)
        run.max_batch_tokens, run.trackers = recipe.evaluation.max_batch_tokens, tuple(trackers)
        if report is not None:
            run.report = report
        adapted = chosen.fit(base, task, budget, parsed, run)
        if processes.first():
            adapted.save(folder)
            drop_checkpoints(run.folder)  # what trackers wrote beside them stays
        processes.wait()
    finally:
        lock.release()
    return adapted


def merge(target: str | Path | Adapted, output: str | Path) -> Merged:
    """Merge what a method trained into the weights and save a model folder that transformers loads.

    Args:
        target: what `load` takes, or a loaded model.
        output: the folder to write.

    Returns:
        Where it is, and how far its logits are from the adapted model's.
    """

    return merge_weights(target if isinstance(target, Adapted) else load(target), output)


def export(
    target: str | Path | Adapted, output: str | Path, *, format: str = "safetensors", type: str | None = None,
    shard_size: str = SHARD, force: bool = False, report: Report | None = None,
) -> Exported:  # fmt: skip
    """Write a model as files that other programs load, read back by them and compared with the model.

    Args:
        target: what `load` takes, or a loaded model.
        output: the folder to write.
        format: safetensors (a model folder), peft (an adapter beside its base) or gguf (llama.cpp, Ollama).
        type: of weights: f32, f16, bf16, for gguf also q8_0; default: the base's own, for gguf f16.
        shard_size: the most that one file of safetensors holds.
        force: replace what an export wrote there before.
        report: told about progress.

    Returns:
        Where it is, and how far its logits are from the model's.
    """
    if report is not None:
        report("loading", 0.0, str(target))
    adapted = target if isinstance(target, Adapted) else load(target)
    return run_export(
        adapted, output, format=format, type=type, shard_size=shard_size, force=force, report=report,
        target="" if isinstance(target, Adapted) else str(target),
    )  # fmt: skip


def evaluate(
    target: str | Path | Adapted,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    data: str | Path | None = None,
    task: Task | None = None,
    split: str = "test",
    report: Report | None = None,
) -> Evaluation:
    """Ask a model every question of a task's split and judge the answers.

    Args:
        target: what `load` takes, or a loaded model.
        recipe: gives the task and the decoding.
        split: test, validation or train.
    """
    recipe = as_recipe(recipe, data)
    check_backend(recipe.evaluation.backend)  # before the model is loaded
    task = _split_of(recipe, task, split)
    adapted = target if isinstance(target, Adapted) else load(target)
    examples: tuple[Example, ...] = getattr(task, split)
    sampling = Sampling(**recipe.evaluation.sampling.model_dump(), max_tokens=task.max_answer_tokens)

    def progress(done: int, total: int) -> None:
        if report is not None:
            report("answering", done / total, f"{done} of {total}")

    with decoding(recipe.evaluation.backend, [adapted], tokens=recipe.evaluation.max_batch_tokens):
        said = answer(adapted, examples, sampling, progress=progress)
    statistics = judge(said.texts, examples, task.metrics)
    first = statistics[task.metrics[0]]
    return Evaluation(
        metrics=values(statistics, examples), examples=examples, answers=said.texts,
        right=first[:, 0].tolist() if first.shape[1] == 1 else None,
        prompt_tokens=sum(said.prompt_tokens) / len(examples),
        generated_tokens=sum(said.generated_tokens) / len(examples), cut=said.cut,
    )  # fmt: skip


def fidelity(
    target: str | Path | Adapted,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    output: str | Path,
    against: str | Path | Adapted | None = None,
    settings: FidelitySettings | None = None,
    data: str | Path | None = None,
    task: Task | None = None,
    split: str = "test",
    report: Report | None = None,
    command: str = "",
) -> Fidelity:
    """Compare the sampled answers of a model with the references, as distributions, and write a page about it.

    Args:
        target: what `load` takes, or a loaded model.
        recipe: gives the task, the decoding of single answers, and what forgetting is measured on.
        output: the folder that is written.
        against: another model, measured on the same questions and compared pair by pair.
        settings: what is measured, and how much of it.
        split: test, validation or train.
        command: shown on the page, for whoever wants to repeat it.

    Returns:
        What was measured, and where the page is.
    """
    recipe, settings = as_recipe(recipe, data), settings or FidelitySettings()
    settings = replace(settings, max_batch_tokens=recipe.evaluation.max_batch_tokens)
    check_backend(recipe.evaluation.backend)
    task = _split_of(recipe, task, split)
    folder = Path(output)
    lock = Store(folder).lock()
    try:
        first = target if isinstance(target, Adapted) else load(target)
        models = {_label(target, first): first}
        if against is not None:
            second = against if isinstance(against, Adapted) else load_beside(against, first.base)
            name = _label(against, second)
            models[name if name not in models else f"{name} (2)"] = second
        with decoding(recipe.evaluation.backend, models, tokens=recipe.evaluation.max_batch_tokens):
            return run_assessment(models, recipe, task, split, settings, folder, report or (lambda *_: None), command)
    finally:
        lock.release()


def scaling(
    target: str | Path | Adapted,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    output: str | Path,
    settings: ScalingSettings | None = None,
    data: str | Path | None = None,
    task: Task | None = None,
    split: str = "test",
    report: Report | None = None,
    command: str = "",
) -> Scaling:
    """Measure how good a model's answers become for how many tokens: by number of samples, and by thinking budget.

    Args:
        target: what `load` takes, or a loaded model.
        recipe: gives the task and the decoding of single answers.
        output: the folder that is written.
        settings: what is measured, and how much of it.
        split: test, validation or train.
        command: shown on the page, for whoever wants to repeat it.

    Returns:
        What was measured, and where the page is.
    """
    recipe, settings = as_recipe(recipe, data), settings or ScalingSettings()
    check_backend(recipe.evaluation.backend)
    task = _split_of(recipe, task, split)
    folder = Path(output)
    lock = Store(folder).lock()
    try:
        model = target if isinstance(target, Adapted) else load(target)
        told = {"label": _label(target, model), "command": command}
        with decoding(recipe.evaluation.backend, [model], tokens=recipe.evaluation.max_batch_tokens):
            return run_scaling(model, recipe, task, split, settings, folder, report or (lambda *_: None), told)
    finally:
        lock.release()


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    like: str | None = None,
    size: str | None = None,
    dtype: str | None = None,
    device: Device | None = None,
    answer_tokens: int | None = None,
    answers: str | Path | None = None,
    data: str | Path | None = None,
    report: Report | None = None,
) -> Plan:
    """Find out what a comparison will take: FLOPs, seconds, peak memory and devices for each method.

    Args:
        recipe: a recipe's path, its content, or a `Recipe`.
        like: a published model or a preset (`kamerton base show`) that the base is taken to be; none: the base itself.
        size: parameters of a preset, as `1.3b`.
        dtype: data type of the base; default: the recipe's, and bfloat16 for `auto` on a device that is described.
        device: what computes; none: this machine, measured on the recipe's base.
        answer_tokens: tokens of each answer; default: those of the longest reference answer.
        answers: the folder of a comparison whose answers' mean length is taken for each label that it has.
        data: a local copy of the task's data.
        report: told the stage, the share of it that is done, and a text.

    Raises:
        KamertonError: mistakes in the recipe, or a base that stand-ins are not made of.
    """
    from kamerton.comparison.planning.plan import plan as find

    return find(
        as_recipe(recipe, data), model=like, size=size, dtype=dtype, device=device, answer_tokens=answer_tokens,
        answers=None if answers is None else Path(answers), tell=report or (lambda *_: None),
    )  # fmt: skip


def _split_of(recipe: Recipe, task: Task | None, split: str) -> Task:
    """The task, once it is sure that it can be judged and that the split is there."""
    asked = recipe.task if task is None else None
    task = task or load_task(recipe.task)
    check_task(task, asked)
    if split not in ("train", "validation", "test"):
        raise KamertonError(f"no split '{split}'", mend="use test, validation or train")
    if not getattr(task, split):
        raise KamertonError(f"the {split} split is empty", where=task.name, mend="choose another split")
    # a training question whose judged answers are all bad has nothing to hold an answer to
    return replace(task, train=answered(task.train)) if split == "train" else task


def _label(target: str | Path | Adapted, adapted: Adapted) -> str:
    """A short name of a model for tables: its folder's, or its method's."""
    return adapted.method if isinstance(target, Adapted) else Path(target).name or str(target)


def pick_method(recipe: Recipe, method: str | None) -> MethodSpec:
    """A method by its label or name in the recipe, or any method; None: the recipe's only one."""
    if method is None:
        if len(recipe.methods) > 1:
            mend = f"name one: {', '.join(m.label for m in recipe.methods)}"
            raise recipe.error(("methods",), f"the recipe has {len(recipe.methods)} methods", mend=mend)
        return recipe.methods[0]
    for spec in recipe.methods:
        if spec.label == method:
            return spec
    get_method(method)
    return MethodSpec(name=method, options={}, label=method, path=("methods",))

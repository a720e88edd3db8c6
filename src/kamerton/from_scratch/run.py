"""Run the stages of a path in turn; what is finished and whose inputs did not change is not run again.

The folder has one folder for each stage, `stages/NAME.json` with what each finished stage depended on and its figures,
`results.json`, and the page `report.html`, which is written anew after every stage. A stage that was stopped goes on
where its single command would; one whose inputs changed starts from nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from kamerton.base.presets import get_preset
from kamerton.comparison.machine import kamerton_version, machine, versions
from kamerton.comparison.progress import read
from kamerton.comparison.store import Store
from kamerton.errors import KamertonError
from kamerton.files import write_json
from kamerton.from_scratch.page import write_page
from kamerton.from_scratch.recipe import FromScratch, load_from_scratch
from kamerton.from_scratch.stages import Report, Stage, stages_of, template
from kamerton.outcome import Outcome
from kamerton.pretraining.models import shape_of
from kamerton.pretraining.tokens import byte_tokenizer
from kamerton.recipe_errors import closest
from kamerton.tasks.example import fingerprint
from kamerton.training import Budget


@dataclass(frozen=True)
class Made(Outcome):
    """What a path left.

    Attributes:
        folder: of all stages.
        results: what is in `results.json`.
        ran, kept: names of stages that were run now, and of those that were finished already.
    """

    ran: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def chat(self) -> Path:
        """The folder of the tuned model, which chat, serve and transformers load."""
        return self.folder / "chat"


def from_scratch(
    recipe: str | Path | Mapping[str, Any] | FromScratch, *, output: str | Path | None = None,
    data: str | Path | None = None, overrides: Sequence[str] = (), until: str | None = None,
    workers: int | None = None, report: Report | None = None,
) -> Made:  # fmt: skip
    """Make a corpus, a tokenizer, n-gram models, networks and a chat from raw files.

    Args:
        recipe: its path, its content, or one that was read.
        output: the folder; default: the recipe's `output`, else `runs/NAME`.
        data: the folder that relative paths of raw files start from.
        overrides: fields of the recipe to set.
        until: the last stage that is run, by its name.
        workers: processes that make the corpus; default: one for each core.
        report: told the stage, the share of it that is done, and words.

    Raises:
        KamertonError: a block of the recipe, or what it names, is wrong; what was finished before is kept.
    """
    if not isinstance(recipe, FromScratch):
        recipe = load_from_scratch(recipe, output=output, data=data, overrides=overrides)
    stages = stages_of(recipe, workers)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise KamertonError(f"no stage {until!r}", where="--until", mend=closest(until, names))
    transformers.utils.logging.disable_progress_bar()
    check(recipe)
    lock = Store(recipe.folder).lock()
    try:
        return _run(recipe, stages, until, report or (lambda *_: None))
    finally:
        lock.release()


def check(recipe: FromScratch) -> None:
    """Refuse before anything is computed what would only be found in the last stages: shapes, budgets, examples.

    Raises:
        KamertonError: at the field, or at the line of the file of examples.
    """
    from kamerton.comparison.run import check_task
    from kamerton.tasks import load_task

    template(recipe)
    for name, one in recipe.models.items():
        if one.model is not None:
            vocabulary = len(byte_tokenizer()) if one.tokenizer == "bytes" else recipe.fields.tokenizer.vocab_size
            shape_of(one, get_preset(one.model.preset), vocabulary)
        if one.budget is None or Budget(**one.budget.model_dump()).unlimited:
            raise recipe.fields.error(("models", name, "budget"), "has no limit", mend="write seconds: 120")
    if recipe.tune is None:
        return
    if Budget(**recipe.tune.budget.model_dump()).unlimited:
        raise recipe.fields.error(("tune", "budget"), "has no limit", mend="write tune: {budget: {seconds: 60}}")
    if recipe.fields.turns is None:
        check_task(load_task(recipe.tune.task), recipe.tune.task)


def _run(recipe: FromScratch, stages: Sequence[Stage], until: str | None, report: Report) -> Made:
    ran: list[str] = []
    kept: list[str] = []
    done: dict[str, dict[str, Any]] = {}
    records = recipe.folder / "stages"
    for stage in stages:
        key = fingerprint([stage.name, stage.kind, stage.depends()])
        record = read(records / f"{stage.name}.json")
        if record.get("key") == key and all(file.exists() for file in stage.makes):
            kept.append(stage.name)
        else:
            record = _one(stage, key, records, report)
            ran.append(stage.name)
        done[stage.name] = record
        results = _results(recipe, stages, done)
        if stage.name in ran or not (recipe.folder / "report.html").is_file() or stage is stages[-1]:
            write_json(recipe.folder / "results.json", results)
            write_page(recipe.folder, results)
        if stage.name == until:
            break
    return Made(recipe.folder, results, tuple(ran), tuple(kept))


def _one(stage: Stage, key: str, records: Path, report: Report) -> dict[str, Any]:
    """Run a stage; what an earlier run of it left is gone on from only if it had the same inputs."""
    finished, begun = records / f"{stage.name}.json", records / f"{stage.name}.begun.json"
    if read(begun).get("key") != key:
        for folder in stage.folders:
            shutil.rmtree(folder, ignore_errors=True)
        finished.unlink(missing_ok=True)
        write_json(begun, {"key": key})
    started = time.perf_counter()
    report(stage.name, 0.0, "")
    figures = stage.run(report)
    record = {"key": key, "kind": stage.kind, "seconds": time.perf_counter() - started, "figures": figures}
    write_json(finished, record)
    begun.unlink()
    return record


def _results(recipe: FromScratch, stages: Sequence[Stage], done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": recipe.name, "recipe": recipe.fields.text, "base": recipe.base,
        "stages": [
            {"name": s.name, "kind": s.kind}
            | ({k: done[s.name][k] for k in ("seconds", "figures")} if s.name in done else {})
            for s in stages
        ],
        "kamerton": kamerton_version(), "versions": versions(), "machine": machine(),
    }  # fmt: skip

"""Run a recipe: stages of steps, resumable; then the corpus, what was rejected, and the report.

The folder: `corpus.jsonl`, `rejected/STEP.jsonl`, `report.json`, `report.html`, `recipe.yaml`. Until a run has ended
well its intermediate files are in `work/`, under a fingerprint of the recipe and its inputs: the same command goes on
where it stopped; a changed recipe starts anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from kamerton.cluster import Asked, check_executor
from kamerton.errors import KamertonError, MissingExtra, RecipeError
from kamerton.files import refusals, sweep, whole, write_json
from kamerton.locks import LOCK, take
from kamerton.outcome import Outcome
from kamerton.text.corpus.files import Input, inputs, shares
from kamerton.text.corpus.options import STEPS
from kamerton.text.corpus.recipe import CorpusRecipe, StepSpec

Watch = Callable[[str, float, str], None]
"""Told the stage, the share that is done (0 to 1), and a few words."""
VERSION = 1
"""Of what intermediate files look like."""
MEMORY = 2**30
"""Bytes that a piece of work asks for on a cluster where the recipe says nothing."""


@dataclass(frozen=True)
class Corpus(Outcome):
    """What a run made.

    Attributes:
        folder: holds all files.
        results: what is in `report.json`.
    """

    @property
    def documents(self) -> Path:
        """The file of documents, JSON lines (`id`, `text`, `domain`, …)."""
        return self.folder / self.results["documents"]


def build_corpus(
    recipe: CorpusRecipe,
    output: str | Path | None = None,
    *,
    workers: int | None = 1,
    executor: str = "local",
    address: str | None = None,
    tests: Mapping[str, Mapping[str, list[str]]] | None = None,
    watch: Watch | None = None,
) -> Corpus:
    """Make a corpus.

    Args:
        recipe: what to read and what to do with it.
        output: the folder; by default the recipe's, or `runs/NAME`.
        workers: processes, or with `ray` pieces of work at a time (None: as many as there is room for). They change
            nothing in the result.
        executor: `local` or `ray`, with the `address` of the cluster (`kamerton.cluster`).
        tests: for each step that decontaminates, by its label: the texts of each test set by name
            (`kamerton.corpora` takes them from task recipes).
        watch: told how far it is.

    Raises:
        RecipeError: a source has no files, or a step cannot be made.
        KamertonError: the folder holds something else.
        MissingExtra: a library is not installed.
    """
    try:
        from kamerton.text.corpus.executor import Pool, pool
        from kamerton.text.corpus.ray_tasks import Tasks
    except ImportError as error:
        raise MissingExtra(error.name or "datatrove", "corpus") from None
    check_executor(executor, address)
    watch = watch or (lambda *_: None)
    started = time.monotonic()
    folder = Path(output) if output is not None else Path(recipe.output or f"runs/{recipe.name}")
    if executor == "ray":
        folder = folder.resolve()  # a node need not have the current folder
    _check_folder(folder)
    files = inputs(recipe)

    def pool_for(work: Path, pieces: int) -> Pool:
        if executor == "ray":
            asked = Asked(recipe.resources.cpus or 1, memory=recipe.resources.memory or MEMORY)
            return Tasks(work, files, address, asked, workers, lambda text: watch(text, 0.0, ""))
        return pool(min(workers or 1, pieces))

    folder.mkdir(parents=True, exist_ok=True)
    lock = take(folder, "another corpus is being made in this folder", mend="name another --output")
    try:
        sweep(folder)
        with refusals(folder):
            return _build(recipe, folder, files, pool_for, tests or {}, watch, started)
    finally:
        lock.release()


def _build(
    recipe: CorpusRecipe, folder: Path, files: list[Input], workers: Callable[[Path, int], Any],
    tests: Mapping[str, Mapping[str, list[str]]], watch: Watch, started: float,
) -> Corpus:  # fmt: skip
    from kamerton.text.corpus.executor import run_stage
    from kamerton.text.corpus.reading import Reader
    from kamerton.text.corpus.step import Keep, Take

    pieces = shares(files)
    work = folder / "work" / fingerprint(recipe, files, tests)
    _clear(folder / "work", work)
    stages = _stages(recipe.steps)
    made = [_make(recipe, stages, number, work, tests) for number in range(len(stages))]
    workers_pool = workers(work, len(pieces))
    try:
        for number, steps in enumerate(made):
            stage = work / f"stage-{number}"
            head = (
                [Reader(str(stage), pieces, recipe.most_bytes)]
                if number == 0
                else [Take(str(work / f"stage-{number - 1}"))]
            )
            pipeline = [*head, *steps, Keep(str(stage))]
            before = _whole(recipe, stages, number + 1)
            if before is not None:
                pipeline.append(before.sketch(stage / "notes"))
            total = sum(f.size for f in files) if number == 0 else _documents_out(work, number - 1, recipe, stages)
            name = ", ".join(spec.name for spec in stages[number]) or "read"
            run_stage(workers_pool, pipeline, len(pieces), stage, _meter(watch, name, total))
            watch(name, 1.0, "")
            if before is not None and not (stage / "decided").exists():
                watch(before.label[3:], 0.0, "all documents at once")
                try:
                    before.decide(stage / "notes", len(pieces), workers_pool, _meter(watch, before.label[3:], 1))
                except RecipeError as error:
                    raise recipe.error(stages[number + 1][0].path, error.message, mend=error.mend) from None
                (stage / "decided").touch()
    finally:
        workers_pool.close()
    return _finish(recipe, folder, work, stages, files, len(pieces), time.monotonic() - started)


def fingerprint(recipe: CorpusRecipe, files: list[Input], tests: Mapping[str, Any]) -> str:
    """What the intermediate files depend on: the recipe, every input's place, size and time, files that steps read."""
    extra = [
        [str(path), path.stat().st_mtime_ns if path.exists() else 0]
        for spec in recipe.steps if hasattr(spec.options, "path") for path in _tree(recipe.resolve(spec.options.path))
    ]  # fmt: skip
    value = [
        VERSION, [[spec.name, spec.options.model_dump()] for spec in recipe.steps], recipe.most_bytes,
        [[str(f.path), f.domain, f.size, f.changed, f.source.model_dump()] for f in files], extra, tests,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _tree(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise KamertonError("is a file", where=folder, mend="name a folder with --output")
    if (
        folder.is_dir()
        and any(path.name != LOCK for path in folder.iterdir())
        and not ((folder / "report.json").exists() or (folder / "work").exists())
    ):
        raise KamertonError("holds something else", where=folder, mend="name a new or empty folder with --output")


def _clear(root: Path, work: Path) -> None:
    """Intermediate files of other recipes and inputs."""
    for other in root.iterdir() if root.is_dir() else ():
        if other != work and other.is_dir():
            shutil.rmtree(other)
    work.mkdir(parents=True, exist_ok=True)


def _stages(steps: Iterable[StepSpec]) -> list[list[StepSpec]]:
    """The steps, cut before each one that sees the whole corpus."""
    stages: list[list[StepSpec]] = [[]]
    for spec in steps:
        if STEPS[spec.name].whole:
            stages.append([])
        stages[-1].append(spec)
    return stages


def _class(spec: StepSpec) -> Any:
    module, _, name = STEPS[spec.name].place.partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise MissingExtra(error.name or module, "corpus") from None


def _whole(recipe: CorpusRecipe, stages: list[list[StepSpec]], number: int) -> Any:
    """The step over the whole corpus that begins a stage."""
    if number >= len(stages) or number == 0:
        return None
    spec = stages[number][0]
    return _class(spec)(spec.label, _resolved(recipe, spec))


def _resolved(recipe: CorpusRecipe, spec: StepSpec) -> Any:
    """A step's options with its path from the recipe's folder."""
    if not hasattr(spec.options, "path"):
        return spec.options
    return spec.options.model_copy(update={"path": str(recipe.resolve(spec.options.path))})


def _make(
    recipe: CorpusRecipe, stages: list[list[StepSpec]], number: int, work: Path, tests: Mapping[str, Any]
) -> list[Any]:
    """The steps of a stage."""
    stage, steps = work / f"stage-{number}", []
    for spec in stages[number]:
        if STEPS[spec.name].whole:
            steps.append(_whole(recipe, stages, number).judging(stage, work / f"stage-{number - 1}" / "notes"))
            continue
        options = _resolved(recipe, spec)
        try:
            if spec.name == "decontaminate":
                steps.append(
                    _class(spec)(str(stage), spec.label, options, tests.get(spec.label, {}), work / spec.label)
                )
            else:
                steps.append(_class(spec)(str(stage), spec.label, options))
        except MissingExtra:
            raise
        except KamertonError as error:
            raise recipe.error(spec.path, error.message, mend=error.mend) from None
    return steps


def _meter(watch: Watch, name: str, total: int) -> Callable[[int], None]:
    done = 0

    def report(amount: int) -> None:
        nonlocal done
        done += amount
        watch(name, min(done / max(total, 1), 1.0), "")

    return report


def _tally(work: Path, number: int, label: str, tasks: int) -> dict[str, Any]:
    """A step's counts over all pieces of work, by domain."""
    total: dict[str, Any] = {}
    for rank in range(tasks):
        part = json.loads((work / f"stage-{number}" / "tally" / label / f"{rank:05d}.json").read_text(encoding="utf-8"))
        for domain, counts in part.items():
            _add(total.setdefault(domain, {}), counts)
    return total


def _add(into: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for key, value in counts.items():
        if isinstance(value, Mapping):
            _add(into.setdefault(key, {}), value)
        elif isinstance(value, list):
            into[key] = [a + b for a, b in zip(into.get(key, [0] * len(value)), value, strict=True)]
        else:
            into[key] = into.get(key, 0) + value


def _documents_out(work: Path, number: int, recipe: CorpusRecipe, stages: list[list[StepSpec]]) -> int:  # noqa: ARG001
    """Documents that a finished stage let out."""
    label = stages[number][-1].label if stages[number] else "00-read"
    tasks = len(list((work / f"stage-{number}" / "tally" / label).glob("*.json")))
    return sum(counts["out"][0] for counts in _tally(work, number, label, tasks).values())


def _finish(
    recipe: CorpusRecipe,
    folder: Path,
    work: Path,
    stages: list[list[StepSpec]],
    files: list[Input],
    tasks: int,
    seconds: float,
) -> Corpus:
    """Join the pieces into the result's files, and write the report last."""
    from kamerton.text.corpus.final import corpus_lines
    from kamerton.text.corpus.report import page, summary

    packed = recipe.compression == "gzip"
    suffix = ".jsonl.gz" if packed else ".jsonl"
    steps: list[dict[str, Any]] = []
    shutil.rmtree(folder / "rejected", ignore_errors=True)
    for number, stage in enumerate(stages):
        labels = [("00-read", "read")] if number == 0 else []
        for label, name in labels + [(spec.label, spec.name) for spec in stage]:
            domains = _tally(work, number, label, tasks)
            rejected = work / f"stage-{number}" / "rejected" / label
            with whole(folder / "rejected" / f"{label}{suffix}", compressed=packed) as file:
                for rank in range(tasks):
                    with (rejected / f"{rank:05d}.jsonl").open("rb") as part:
                        shutil.copyfileobj(part, file, 1 << 20)
            steps.append(
                {"step": name, "label": label, "domains": domains, "rejected_file": f"rejected/{label}{suffix}"}
            )
    last = work / f"stage-{len(stages) - 1}"
    with whole(folder / f"corpus{suffix}", compressed=packed) as file:
        for row in corpus_lines(last, tasks):
            file.write(row)
    results = summary(recipe, steps, files, f"corpus{suffix}", seconds)
    with whole(folder / "recipe.yaml") as file:
        file.write(recipe.text.encode())
    with whole(folder / "report.html") as file:
        file.write(page(results).encode())
    write_json(folder / "report.json", results)
    shutil.rmtree(folder / "work")
    return Corpus(folder, results)

"""`compare`: methods × seeds on one task under one budget, and their verdict.

Plans the cells, runs those that are missing or changed, and writes the report. Stopped at any moment, it goes on from
its finished cells and checkpoints, and ends with the same numbers.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kamerton import processes
from kamerton.backends import check_backend
from kamerton.base import Base, load_base
from kamerton.cluster import check_executor
from kamerton.comparison.machine import kamerton_version, machine, versions
from kamerton.comparison.places import choose_executor
from kamerton.comparison.progress import RunMark, read
from kamerton.comparison.race import Race, check_race
from kamerton.comparison.ray_tasks import devices
from kamerton.comparison.reference import base_reference
from kamerton.comparison.report import write_report
from kamerton.comparison.store import Cell, Store
from kamerton.errors import KamertonError, MissingExtra, ModelError
from kamerton.evaluation.metrics import metric_files, task_metrics
from kamerton.exporting.for_vllm import check_runs
from kamerton.files import write_json, write_text
from kamerton.inference import Sampling
from kamerton.methods import at_its_line, digest, option_files, resolve
from kamerton.methods.defined import check_defined, check_fits
from kamerton.methods.prompted import within
from kamerton.methods.stages import shared_start
from kamerton.outcome import Outcome
from kamerton.recipe import RaceSpec, Recipe, TaskSpec, as_recipe
from kamerton.tasks import Task, load_task
from kamerton.tasks.example import fingerprint
from kamerton.training import Budget

RESULT_VERSION = 1
"""Raised when a change of the program changes results; cells made before are then run again."""


class Watcher:
    """Told what a comparison does. The default says nothing; the command line draws bars."""

    def line(self, text: str) -> None:
        """Something worth a line."""

    def start(self, waiting: int, finished: int) -> None:
        """How many cells there are to run, and how many are finished from before."""

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        """A cell's progress, end or failure; in a race also `scouted` (it answered so far) and `dropped`."""

    def close(self) -> None:
        """Called once at the end, however it ends."""


@dataclass(frozen=True)
class Comparison(Outcome):
    """A comparison that ran.

    Attributes:
        folder: holds everything.
        results: what is in `results.json`.
    """

    @property
    def sentence(self) -> str:
        """The verdict in a sentence."""
        verdict = self.results["verdict"]
        return str(verdict["sentence"]) if verdict else "No cell has finished, so there is nothing to compare."

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The cells that failed, each with its error."""
        return list(self.results["failed"])

    def adapter(self, label: str, seed: int | None = None) -> Path:
        """The folder of what a method trained; default: the seed with the best validation loss."""
        store = Store(self.folder)
        places = sorted((self.folder / "cells" / label).glob("seed-*/cell.json"))
        found = [read(p) for p in places]  # {} where it cannot be read: then it is no finished cell
        records = [
            r
            for r in found
            if r.get("status") == "ok" and isinstance(r.get("seed"), int) and (seed is None or r["seed"] == seed)
        ]
        # a seed whose result was copied has no folder of its own
        records = [r for r in records if (store.cell_folder(label, r["seed"]) / "adapter").is_dir()]
        if not records:
            raise KamertonError(f"no finished cell of '{label}'", where=self.folder, mend="name one of its methods")
        best = min(
            records, key=lambda r: (r.get("validation_loss") is None, float(r.get("validation_loss") or 0.0), r["seed"])
        )
        return store.cell_folder(label, best["seed"]) / "adapter"

    def __str__(self) -> str:  # the verdict in a sentence, then the table
        return (self.folder / "table.md").read_text(encoding="utf-8")

    def _repr_markdown_(self) -> str:
        return str(self)


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
) -> Comparison:
    """Run a comparison and write its report: `kamerton.compare` without its own progress bars, told to `watcher`."""
    watcher = watcher or Watcher()
    check_executor(executor, address)
    recipe, several = as_recipe(recipe, data), processes.count() > 1
    check_backend(recipe.evaluation.backend)
    if several and executor != "local":
        raise KamertonError("several processes share each cell", where="executor", mend="leave it out, or start one")
    racing = recipe.race if race is None else (recipe.race or RaceSpec()) if race else None
    methods = resolve(recipe)
    budget = Budget(**recipe.budget.model_dump())
    spec = recipe.task if task is None else None
    task = task or load_task(recipe.task)
    check_task(task, spec)
    if racing is not None:
        if several:
            raise KamertonError("a race runs in one process", mend="use --no-race, or start it alone")
        check_race(task)
    if several and workers is not None:
        raise KamertonError("several processes share each cell", where="workers", mend="leave it out")
    folder = processes.own_folder(Path(output or recipe.output or Path("runs") / recipe.name))
    store = Store(folder)
    lock = store.lock()
    mark = RunMark(folder)

    def say(text: str) -> None:
        watcher.line(text)
        mark.say(text)

    try:
        say(
            f"task {task.name}: {len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test "
            f"examples; decided by {task.metrics[0]}"
        )
        for note in task.notes:
            say(f"  {note}")
        base_request = base_options(recipe)
        before = _plan_before(store, base_request)
        here, there = base_request["device"], None
        if executor == "ray":
            here, there = devices(here, recipe.resources.gpus)
        base = recipe_base(recipe, device=here, dtype=before["base"]["dtype"] if before else base_request["dtype"])
        device = there or base.info.device
        say(f"base {base.info}" + (f"; cells compute on {device}" if device != base.info.device else ""))
        for _, method, options, place in methods:
            try:
                check_defined(base, method, options)
                check_fits(base, within(task, budget), method, options)
                if recipe.evaluation.backend == "vllm":
                    check_runs(base, method, options)
            except KamertonError as error:
                raise at_its_line(recipe, recipe.methods[place], error) from None
        if base.model.encoder and recipe.forgetting is not None:
            recipe = recipe.model_copy(update={"forgetting": None})
            watcher.line("  forgetting is not measured: an encoder gives no text a probability")
        sampling = Sampling(**recipe.evaluation.sampling.model_dump())
        settings = {
            **_settings(recipe, base, device, task, methods, budget),
            "race": racing.model_dump(mode="json") if racing else None,
        }
        common = {
            "version": RESULT_VERSION, "base": base.info.fingerprint, "renderer": base.renderer.fingerprint,
            "task": task.fingerprint, "budget": asdict(budget), "evaluation": recipe.evaluation.decides(),
            "forgetting": recipe.forgetting.model_dump() if recipe.forgetting else None, "device": device,
        }  # fmt: skip
        files = _files(recipe, task)
        if files:
            common["files"] = files
        cells = []
        for label, method, options, _ in methods:
            seeded = method.seeded(options) or sampling.temperature > 0
            for seed in recipe.seeds:
                same_as = None if seeded or seed == recipe.seeds[0] else recipe.seeds[0]
                chosen = options.model_dump()
                about = {**common, "method": method.name, "options": chosen, "seed": seed, **option_files(chosen)}
                cells.append(Cell(label, method.name, dict(options.model_dump()), seed, fingerprint(about), same_as))
        cells = _with_starts(cells, {label: shared_start(method, options) for label, method, options, _ in methods})
        store.drop_stale(cells)
        store.write_task(task)
        if recipe.text:
            write_text(folder / "recipe.yaml", recipe.text)
        for cell in cells:
            if (name := store.damaged(cell)) is not None:
                say(f"  {cell.label}, seed {cell.seed}: {name} is damaged; the cell is made again")
        todo = [c for c in cells if not store.finished(c)]

        def on_event(cell: Cell, event: dict[str, Any]) -> None:
            watcher.event(cell, event)
            if event["event"] == "done":
                store.drop_start(cell, cells)

        # sums that are split over another number of threads differ in their last bits, so this is kept too
        pool = choose_executor(
            executor, address, recipe.resources, store=store, base=base, device=device, workers=workers,
            threads=before["threads"] if before else None, on_event=on_event, tell=say,
        )  # fmt: skip
        ran: dict[str, Any] = {
            "workers": pool.workers if todo or not before else before.get("workers"), "threads": pool.threads
        }  # fmt: skip
        if several:
            ran["together"] = processes.count()
        write_json(folder / "settings.json", {**settings, "processes": ran})
        watcher.start(len([c for c in todo if c.same_as is None]), len(cells) - len(todo))
        if racing is None:
            (folder / "race.json").unlink(missing_ok=True)
        if todo:
            ref = processes.from_first(lambda: base_reference(recipe, base, store, common, say))
            write_json(folder / "plan.json", {
                "base": {**_plain(base_request), "dtype": base.info.dtype, **({"device": there} if there else {})},
                "asked": _plain(base_request),
                "budget": asdict(budget), "reference": ref.to_dict() if ref else None,
                "sampling": recipe.evaluation.sampling.model_dump(),
                "max_batch_tokens": recipe.evaluation.max_batch_tokens, "backend": recipe.evaluation.backend, **ran,
            })  # fmt: skip
            base.release()  # the workers have their own; its memory is theirs
            with pool:
                if racing is not None:
                    Race(
                        store, cells, task, racing, pool.run, say,
                        lambda cell: watcher.event(cell, {"event": "dropped"}),
                    ).run()  # fmt: skip
                else:
                    pool.run([(c, None) for c in todo if c.same_as is None])
                    for cell in todo:
                        if cell.same_as is not None:
                            store.copy_cell(cell)
        shutil.rmtree(folder / "starts", ignore_errors=True)  # of cells that failed or left a race
        mark.say("writing the report")
        report = write_report(folder)
        processes.wait()
        return Comparison(folder, json.loads(report.with_name("results.json").read_text(encoding="utf-8")))
    finally:
        watcher.close()
        mark.end()
        lock.release()


def _with_starts(cells: Sequence[Cell], starts: Mapping[str, str | None]) -> list[Cell]:
    """Cells with the start that they share with another one, by what starts of labels have in common."""
    alike = Counter((starts[cell.label], cell.seed) for cell in cells)
    return [
        replace(cell, start=f"{start[:16]}-{cell.seed}")
        if (start := starts[cell.label]) is not None and alike[start, cell.seed] > 1
        else cell
        for cell in cells
    ]


def _files(recipe: Recipe, task: Task) -> dict[str, list[str]]:
    """SHA-256 of the files that decide results beside data, methods and base: metrics of one's own, a general text."""
    text = recipe.forgetting.text if recipe.forgetting else None
    own = text is not None and text.hub is None and text.path != "embedded"
    named = {"metrics": metric_files(task), "text": [recipe.resolve(text.path)] if text is not None and own else []}
    found = {what: [digest(file) for file in files if file.is_file()] for what, files in named.items()}
    return {what: sums for what, sums in found.items() if sums}


def _plain(request: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in request.items()}


def _plan_before(store: Store, request: dict[str, Any]) -> dict[str, Any] | None:
    """The plan that this comparison was begun with, None where it is new or had another base.

    What the machine chose then (the data type for `auto`, threads) must not be chosen anew between two runs of one
    folder.
    """
    try:
        plan: dict[str, Any] = json.loads((store.folder / "plan.json").read_text(encoding="utf-8"))
        if plan["asked"] == _plain(request) and plan["base"]["dtype"] and plan["threads"] >= 1:
            return plan
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def check_task(task: Task, spec: TaskSpec | None = None) -> None:
    """Refuse a task that cannot be judged: an unknown metric, a metric that its own answers do not fit, no test set.

    Args:
        task: the task.
        spec: the recipe's part that it was read from, where there is one.
    """
    if not task.test:
        raise KamertonError(
            "the test split is empty", where=task.name, mend="give test examples, or split: {test: 0.2}"
        )
    for metric in task_metrics(task, spec):
        # found out now and not after a training
        metric.statistics([example.answers[0] for example in task.test], task.test)


def base_options(recipe: Recipe) -> dict[str, Any]:
    """What `load_base` is asked for, paths resolved."""
    spec = recipe.base
    name: str | Path = spec.model
    resolved = recipe.resolve(spec.model)
    if spec.model != "demo" and resolved.exists():
        name = resolved
    template = recipe.resolve(spec.chat_template) if spec.chat_template else None
    return {
        "name": name, "dtype": spec.dtype, "device": spec.device, "trust_remote_code": spec.trust_remote_code,
        "chat_template": template, "quantise": spec.quantise,
    }  # fmt: skip


@contextmanager
def at_base(recipe: Recipe) -> Iterator[None]:
    """Turn an error of loading the base into one at its line of the recipe."""
    try:
        yield
    except (ModelError, MissingExtra) as error:
        asked, where = base_options(recipe), error.where or ""
        fields = {"base.device": "device", "base.quantise": "quantise", str(asked["chat_template"]): "chat_template"}
        field = "quantise" if isinstance(error, MissingExtra) and asked["quantise"] else fields.get(where, "model")
        told = where.removeprefix("base: ") if field in ("model", "chat_template") else ""
        message = f"{told}: {error.message}" if told else error.message
        raise recipe.error(("base", field), message, mend=error.mend) from error


def recipe_base(recipe: Recipe, **changes: Any) -> Base:
    """Load the recipe's base, `changes` to what `load_base` is asked for apart; a mistake is one at its line."""
    with at_base(recipe):
        return load_base(**{**base_options(recipe), **changes})


def _settings(
    recipe: Recipe, base: Base, device: str, task: Task, methods: list[tuple[str, Any, Any, int]], budget: Budget
) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "recipe": recipe.text or recipe.model_dump(mode="json"),
        "base": {**{k: v for k, v in asdict(base.info).items() if k not in ("free_bytes", "reason")}, "device": device},
        "renderer_fingerprint": base.renderer.fingerprint,
        "task": {
            "name": task.name, "source": task.source, "metrics": list(task.metrics),
            "sizes": {s: len(getattr(task, s)) for s in ("train", "validation", "test")}, "notes": list(task.notes),
            "fingerprint": task.fingerprint, "max_answer_tokens": task.max_answer_tokens,
        },
        "methods": [
            {"label": label, "method": m.name, "options": o.model_dump(), "summary": m.summary}
            for label, m, o, _ in methods
        ],
        "seeds": list(recipe.seeds),
        "budget": asdict(budget),
        "evaluation": recipe.evaluation.model_dump(),
        "forgetting": recipe.forgetting.model_dump() if recipe.forgetting else None,
        "versions": versions(),
        "machine": machine(),
        "kamerton": kamerton_version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }  # fmt: skip


__all__ = ["Comparison", "Watcher", "compare"]

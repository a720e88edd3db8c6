"""One cell: adapt, read the test set once, measure, write the record. Or, in a race, only as far as a look asks."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kamerton import processes
from kamerton.base.load import Base
from kamerton.base.work import flops
from kamerton.comparison.progress import ANSWERING, MEASURING, VALIDATING
from kamerton.comparison.store import Cell, Store
from kamerton.evaluation.answering import answer, judge, latency, values
from kamerton.evaluation.forgetting import Reference, bits_per_byte, kl
from kamerton.evaluation.memory import peak_bytes, reset_peak
from kamerton.exporting.for_vllm import Pool
from kamerton.inference import Sampling
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Adapted, Run
from kamerton.tasks.example import Message, Task
from kamerton.training import Budget, Progress

Report = Callable[[str, float, str], None]
Watch = Callable[[str, Progress], None]


def run_cell(
    store: Store, cell: Cell, base: Base, task: Task, budget: Budget, reference: Reference | None,
    sampling: dict[str, Any], max_batch_tokens: int, report: Report, watch: Watch, pool: Pool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run one cell and write its files.

    Args:
        pool: where the test set is answered, and latency is measured; None: by torch. Forgetting is measured by torch.

    Returns:
        The record that was written.
    """
    folder = store.cell_folder(cell.label, cell.seed)
    method = get_method(cell.method)
    options = parse_options(method, cell.options)
    gc.collect()
    can_reset = reset_peak(base.model.device)
    torch.manual_seed(cell.seed)
    run = Run(folder / "fit", cell.seed, report, max_batch_tokens, watch=watch, starts=store.start_folder(cell))
    started = time.perf_counter()
    adapted = method.fit(base, task, budget, options, run)
    fitted = time.perf_counter()
    report(ANSWERING, 0.0, f"0 of {len(task.test)} questions")

    model = adapted.engine.model
    plan = Sampling(**sampling, max_tokens=task.max_answer_tokens, seed=cell.seed)
    with pool.answering(adapted) if pool is not None else nullcontext():
        work_before, asked = model.work.copy(), time.perf_counter()
        answers = answer(
            adapted, task.test, plan,
            progress=lambda done, total: report(ANSWERING, done / total, f"{done} of {total} questions"),
        )  # fmt: skip
        evaluated = time.perf_counter()
        evaluate_flops = flops((model.work - work_before).of_all(), model.hf)
        statistics = judge(answers.texts, task.test, task.metrics)
        report(MEASURING, 0.3, "latency and forgetting")
        delay = latency(adapted, task.test, plan)
    forgot = _forgetting(adapted, base, reference)

    adapter = folder / "adapter"
    if processes.first():
        partial = folder / ".partial-adapter"
        shutil.rmtree(partial, ignore_errors=True)
        adapted.save(partial)
        shutil.rmtree(adapter, ignore_errors=True)
        partial.rename(adapter)

    fit = adapted.record
    cut = [f"{answers.cut} of {len(task.test)} test questions were cut to fit the model"] if answers.cut else []
    n = len(task.test)
    record = {
        "label": cell.label, "method": cell.method, "seed": cell.seed, "status": "ok",
        "fingerprint": cell.fingerprint, "options": adapted.options.model_dump(), "chosen": fit.chosen,
        "search": fit.search, "metrics": values(statistics, task.test),
        "seconds": {"fit": fit.seconds or fitted - started, "evaluate": evaluated - asked},
        "tokens": {
            "trained": fit.tokens, "prompt": sum(answers.prompt_tokens),
            "generated": sum(answers.generated_tokens),
        },
        "flops": {"fit": fit.flops, "evaluate": evaluate_flops},
        "peak_memory_bytes": peak_bytes(base.model.device), "trainable_parameters": fit.trainable_parameters,
        "disk_bytes": folder_bytes(adapter),
        "latency_seconds": delay,
        "tokens_per_answer": {
            "prompt": sum(answers.prompt_tokens) / n, "generated": sum(answers.generated_tokens) / n,
        },
        "forgetting": forgot, "validation_loss": _best(fit.curve),
        "findings": [asdict(f) for f in (*fit.findings, *adapted.findings(task.test, answers.answers))],
        "marks": fit.marks,
        "notes": [
            *fit.notes, *cut, *adapted.engine.notes,
            *([] if can_reset else ["peak memory counts from the start of the process"]),
        ],
    }  # fmt: skip
    lines = [
        {
            "id": e.id, "answer": one.text, "statistics": {name: rows[i].tolist() for name, rows in statistics.items()},
            **({"details": one.details} if one.details else {}),
        }
        for i, (e, one) in enumerate(zip(task.test, answers.answers, strict=True))
    ]  # fmt: skip
    store.write_cell(cell, record, lines, fit.curve)
    shutil.rmtree(folder / "fit", ignore_errors=True)
    return record


def scout_cell(
    store: Store, cell: Cell, base: Base, task: Task, budget: Budget, share: float, sampling: dict[str, Any],
    max_batch_tokens: int, report: Report, watch: Watch, pool: Pool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a cell to a share of its schedule, answer the validation questions, and write what a look needs.

    The test set is not read. What was trained stays in the cell's folder, and `run_cell` goes on from there. A cell
    that is finished is taken as it stands.

    Returns:
        What was written.
    """
    folder = store.cell_folder(cell.label, cell.seed)
    gc.collect()
    torch.manual_seed(cell.seed)
    if store.finished(cell):
        adapted = load_adapted(folder / "adapter", base)
    else:
        run = Run(
            folder / "fit",
            cell.seed,
            report,
            max_batch_tokens,
            until=share,
            watch=watch,
            starts=store.start_folder(cell),
        )
        method = get_method(cell.method)
        adapted = method.fit(base, task, budget, parse_options(method, cell.options), run)
    model = adapted.engine.model
    plan = Sampling(**sampling, max_tokens=task.max_answer_tokens, seed=cell.seed)
    with pool.answering(adapted) if pool is not None else nullcontext():
        started, work_before = time.perf_counter(), model.work.copy()
        answers = answer(
            adapted, task.validation, plan,
            progress=lambda done, total: report(VALIDATING, done / total, f"{done} of {total} questions"),
        )  # fmt: skip
        answered = time.perf_counter()
    statistics = judge(answers.texts, task.validation, task.metrics[:1])
    fit = adapted.record
    scouted = {
        "fingerprint": cell.fingerprint, "share": share, "finished": fit.finished,
        "metrics": values(statistics, task.validation),
        "statistics": statistics[task.metrics[0]].tolist(),
        "flops": {
            "fit": fit.flops, "whole_fit": max(fit.flops, fit.expected_flops),
            "answer": flops((model.work - work_before).of_all(), model.hf),
        },
        "seconds": {"fit": fit.seconds, "answer": answered - started},
    }  # fmt: skip
    store.write_scouted(cell, share, scouted)
    return scouted


def failed_record(cell: Cell, error: str) -> dict[str, Any]:
    """The record of a cell that failed; it is run again next time."""
    return {
        "label": cell.label, "method": cell.method, "seed": cell.seed, "status": "failed",
        "fingerprint": cell.fingerprint, "options": cell.options, "error": error,
    }  # fmt: skip


def _forgetting(adapted: Adapted, base: Base, reference: Reference | None) -> dict[str, float] | None:
    """Both measures; what the reference says of the base already is not computed again for it."""
    if reference is None:
        return None
    untouched = adapted.engine.model is base.model  # whatever attaches something works on a copy of its own
    plain = [(Message("user", prompt),) for prompt in reference.prompts]
    asked = [adapted.prepare(conversation) for conversation in plain]
    return {
        "bits_per_byte": reference.bits_per_byte if untouched else bits_per_byte(adapted.engine, reference.pieces),
        "bits_per_byte_base": reference.bits_per_byte,
        "kl": 0.0 if untouched and asked == plain else kl(adapted.engine, asked, reference),
    }


def _best(curve: list[dict[str, float]]) -> float | None:
    return min((row["validation_loss"] for row in curve if "validation_loss" in row), default=None)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

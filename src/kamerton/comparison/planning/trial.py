"""One cell, run on a stand-in: what it computes there, in the numbers of the model that is stood for.

The cell is run by the same function as every other one (`comparison/cell.py`), so whatever a method does is done: its
search, validations, rollouts, votes. FLOPs come out as records have them. Beside them every pass is noted with its
tokens and with the bytes that it has to read, because a short pass is bound by memory and not by arithmetic.
"""

from __future__ import annotations

import math
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kamerton.base.growth import growth_of
from kamerton.base.load import Base
from kamerton.base.work import Work, flops, listening
from kamerton.comparison.cell import run_cell
from kamerton.comparison.planning.allocations import Allocations
from kamerton.comparison.progress import ANSWERING, MEASURING
from kamerton.comparison.store import Cell, Store
from kamerton.evaluation.forgetting import Reference
from kamerton.tasks.example import Task
from kamerton.training import Budget

PHASES = ("fit", "evaluate")


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass through the layers or through the output layer.

    Attributes:
        flops: of the wide model, those of the backward pass included where there is one; `own`: of the stand-in.
        bytes: of weights, keys and values that it reads.
        tokens: in it.
        grad: whether a backward pass follows.
    """

    flops: float
    own: float
    bytes: float
    tokens: int
    grad: bool


@dataclass
class Trial:
    """What a cell took on a stand-in.

    Attributes:
        record: of the cell; its FLOPs are the wide model's, its seconds the stand-in's.
        passes: by phase (`fit`, `evaluate`).
        steps: of the optimiser; `validations`: the validation losses among them.
        trained: numbers that are trained, of the wide model.
        memory: bytes of tensors at the peak, of the wide model; `parts`: what they are; `own_memory`: the peak of the
            stand-in's own. All 0 where they were not watched.
        busy: the share of its seconds that it had a processor; the rest others took.
    """

    record: dict[str, Any]
    passes: dict[str, list[Pass]] = field(default_factory=dict)
    steps: int = 0
    validations: int = 0
    trained: int = 0
    memory: int = 0
    own_memory: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    busy: float = 1.0


def _each(hf: Any, *, itself: bool) -> tuple[dict[str, float], dict[str, float]]:
    """FLOPs of one of each counter, and what a gradient adds to them."""
    count = lambda **work: flops(Work(**work), hf, itself=itself)  # noqa: E731
    one = {n: count(**{n: 1}) for n in ("tokens", "pairs", "outputs", "passes", "replayed", "replayed_pairs")}
    down = count(grad_tokens=1)
    more = {n: count(grad_tokens=1, **{f"grad_{n}": 1}) - down for n in ("pairs", "outputs")}
    return one, {"tokens": down, **more}


def _total(each: tuple[dict[str, float], dict[str, float]], told: dict[str, int], grad: bool) -> float:
    """FLOPs of what is told."""
    return math.fsum(value * told[n] for part in each[: 1 + grad] for n, value in part.items())


class _Shapes:
    """Linear in the counters, FLOPs of a model are known once those of one of each are."""

    def __init__(self, hf: Any) -> None:
        self.wide, self.own = _each(hf, itself=False), _each(hf, itself=True)
        grown = growth_of(hf.config)
        head = hf.get_output_embeddings()
        self.output = grown.numel(head.weight) * head.weight.element_size()
        seen, self.layers = {id(head.weight)}, 0.0
        for module in hf.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and not isinstance(module, nn.Embedding) and id(weight) not in seen:
                seen.add(id(weight))
                packed = 0.516 if getattr(weight, "quant_state", None) is not None else weight.element_size()
                self.layers += grown.numel(weight) * packed
        config = hf.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        pair = 2 * grown.heads.get(heads, heads) * grown.sizes.get(grown.head, grown.head)
        self.key = config.num_hidden_layers * pair * head.weight.element_size()

    def count(self, told: dict[str, int], grad: bool) -> Pass:
        wide, own = (_total(each, told, grad) for each in (self.wide, self.own))
        bytes_ = 0.0
        if told["tokens"] > 0:  # forward, and backward twice: for activations, and for the weights' own gradients
            bytes_ += self.layers * (3 if grad else 1) + self.key * told["keys"]
        if told["outputs"]:
            bytes_ += self.output * (2 if grad else 1)
        return Pass(wide, own, bytes_, max(told["tokens"], told["outputs"]), grad)


def run_trial(
    folder: Path, cell: Cell, base: Base, task: Task, budget: Budget, reference: Reference | None,
    sampling: dict[str, Any], max_batch_tokens: int, *, watched: bool, tell: Callable[[float], None],
) -> Trial:  # fmt: skip
    """Run a cell on a stand-in.

    Args:
        folder: for its files; removed afterwards.
        base: the stand-in.
        watched: note its passes and its tensors, which takes longer: seconds are then of no use.
        tell: told the share that is done.
    """
    shapes: weakref.WeakKeyDictionary[Any, _Shapes] = weakref.WeakKeyDictionary()
    trial, phase = Trial({}, {p: [] for p in (*PHASES, "after")}), "fit"

    def heard(work: Work, told: dict[str, int], grad: bool) -> None:
        model = getattr(work, "owner", lambda: None)()
        if model is None or not growth_of(model.hf.config).sizes:
            return  # a model of its own size beside the base: its seconds are the stand-in's own
        if model not in shapes:
            shapes[model] = _Shapes(model.hf)
            tensors.hold(model.hf)
        if told["passes"] and not (told["tokens"] or told["outputs"]):
            return
        trial.passes[phase].append(shapes[model].count(told, grad))

    def report(stage: str, share: float, text: str) -> None:  # noqa: ARG001
        nonlocal phase
        phase = {ANSWERING: "evaluate", MEASURING: "after"}.get(stage, phase)
        tell(share)

    def watch(stage: str, progress: Any) -> None:  # noqa: ARG001
        trial.steps += 1
        trial.validations += progress.validation_loss is not None

    store = Store(folder)
    tensors = Allocations(growth_of(base.model.hf.config), base.model.config.vocab_size)
    try:
        run = lambda: run_cell(  # noqa: E731
            store, cell, base, task, budget, reference, sampling, max_batch_tokens, report, watch
        )
        if watched:
            tensors.hold(base.model.hf)
            with listening(heard), tensors:
                trial.record = run()
            trial.memory, trial.own_memory, trial.parts = tensors.peak, tensors.own_peak, tensors.parts
        else:
            wall, own = time.perf_counter(), time.thread_time()
            trial.record = run()
            trial.busy = min(1.0, (time.thread_time() - own) / (time.perf_counter() - wall))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return trial

"""Training tokens a second against transformers' Trainer, on the same model and batches; FLOPs against the matrix peak.

python benchmarks/pretraining.py [--size 10m] [--context 256] [--batch 8] [--steps 6] [--turns 3]

Both start from the same weights, read the same tokens in the same batches, and step with fused AdamW; nothing is
validated, logged or saved. They take turns; the first step of each turn is warm-up. Printed: tokens a second by the
clock and of the processor (the steadier one on a machine that others use), their ratio within each turn, the loss of
the last step of both, and the share of the machine's matrix-product peak, which is measured beside every turn.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from kamerton.base.encoder_decoder import model_for
from kamerton.base.presets import PRESETS, build, parameters
from kamerton.base.sizing import fitted, read_size
from kamerton.base.work import Work, flops
from kamerton.objectives.packed_contexts import PackedContexts, Stream
from kamerton.training import Budget, Settings, fit

VOCABULARY = 4096
Turn = tuple[float, float, float]
"""Seconds by the clock, of the processor, and the last step's loss."""


def peak() -> float:
    """The best rate of a large float32 matrix product, in FLOPs a second of the processor."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    rates = []
    for _ in range(5):
        start = time.process_time()
        torch.mm(a, b)
        rates.append(2 * 1536**3 / (time.process_time() - start))
    return max(rates)


class _Clock:
    """Marks the end of the first step and of the last one."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def __call__(self, *_: Any) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def turn(self, loss: float) -> Turn:
        (w0, c0), (w1, c1) = self.marks[0], self.marks[-1]
        return w1 - w0, c1 - c0, loss


def ours(hf: Any, goal: PackedContexts, steps: int, rate: float) -> tuple[Turn, float]:
    """One turn of Kamerton's loop, and the FLOPs of a step."""
    model, clock = model_for(copy.deepcopy(hf)), _Clock()
    how = Settings(learning_rate=rate, schedule="constant", warmup=0.0, betas=(0.9, 0.95), checkpoint_seconds=1e9)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(model, model.hf, goal, how, Budget(steps=steps), Path(folder), watch=clock)
    work = flops(Work() + model.work, model.hf) / steps
    return clock.turn(result.state.curve[-1]["loss"]), work


def theirs(hf: Any, goal: PackedContexts, steps: int, rate: float) -> Turn:
    """One turn of transformers' Trainer on the same contexts in the same order."""
    rows = []
    for step in range(steps):
        for pack in goal.batches(step, None):  # type: ignore[arg-type]
            for row, target in zip(pack.rows, np.split(pack.targets, len(pack.rows)), strict=True):
                rows.append({"input_ids": torch.tensor(row), "labels": torch.tensor(target)})
    clock = _Clock()

    class Mark(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock()

    class Shifted(transformers.Trainer):  # type: ignore[misc]
        """Labels are shifted already: contexts of n tokens have n targets in both programs."""

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=goal.batch_size, max_steps=steps, learning_rate=rate,
            lr_scheduler_type="constant", optim="adamw_torch_fused", adam_beta2=0.95, weight_decay=0.0,
            max_grad_norm=1.0, logging_strategy="steps", logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_drop_last=True,
        )  # fmt: skip
        trainer = Shifted(copy.deepcopy(hf).train(), arguments, train_dataset=rows, callbacks=[Mark()])
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return clock.turn(float(losses[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="10m")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    preset = PRESETS["llama"]
    torch.manual_seed(0)
    hf = build(preset.config(fitted(preset, read_size(args.size), VOCABULARY, args.context), {}), preset.kind)
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, 400_000).astype(np.uint16)
    goal = PackedContexts(Stream(tokens, 0, len(tokens)), None, context=args.context, batch_size=args.batch)
    done = (args.steps - 1) * args.batch * args.context
    print(f"{parameters(hf):,} parameters, {args.batch} contexts of {args.context}, {torch.get_num_threads()} threads")
    walls, cpus, shares = [], [], []
    for turn in range(args.turns):
        best = peak()
        a, work = ours(hf, goal, args.steps, 1e-3)
        b = theirs(hf, goal, args.steps, 1e-3)
        best = max(best, peak())
        walls.append(b[0] / a[0])
        cpus.append(b[1] / a[1])
        used = [work * (args.steps - 1) / seconds / best for seconds in (a[1], b[1])]
        shares.append(used[0])
        print(
            f"turn {turn + 1}: kamerton {done / a[0]:,.0f} tokens/s ({done / a[1]:,.0f} of the processor), Trainer "
            f"{done / b[0]:,.0f} ({done / b[1]:,.0f}); ratio {walls[-1]:.2f} ({cpus[-1]:.2f}); loss {a[2]:.4f}, "
            f"{b[2]:.4f}; of the peak of {best / 1e9:.0f} GFLOP/s {used[0]:.0%}, {used[1]:.0%}"
        )
    for name, ratios in (("by the clock", walls), ("of the processor", cpus)):
        print(f"ratio {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"of the peak: median {statistics.median(shares):.0%}")


if __name__ == "__main__":
    main()

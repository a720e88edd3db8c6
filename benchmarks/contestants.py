"""One contestant of `peers.py` in a process of its own: reads jobs as JSON lines, answers each with a JSON line.

A job names a function of this file and its arguments; the answer holds the seconds of the timed part, what was done in
them, the peak of the process's resident memory during them, and what the other contestant's answer is checked against.
Loading, data preparation and warm-up are not timed.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from kamerton.base.load import Base, load_base
from kamerton.base.sources import dequantise
from kamerton.evaluation.memory import peak_bytes, reset_peak
from kamerton.packaged import demo_gguf
from kamerton.rendering import Renderer
from workloads import choice_questions, prompts, training_examples

RANK, RATE, BATCH = 16, 1e-3, 16
NEW_TOKENS = 64


@functools.cache
def base(dtype: str) -> Base:
    """The demo model as Kamerton loads it."""
    return load_base("demo", dtype=dtype, verify=False)  # type: ignore[arg-type]


@functools.cache
def renderer() -> Renderer:
    """Kamerton's renderer without its model: what peers are given must not cost them a second model's memory."""
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(dequantise(demo_gguf())))


@functools.cache
def hf(dtype: str) -> Any:
    """The same weights as transformers loads them."""
    from transformers import AutoModelForCausalLM

    folder = dequantise(demo_gguf())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()


@contextmanager
def measured(answer: dict[str, Any]) -> Iterator[None]:
    """Time and peak memory of a block."""
    reset_peak()
    before = psutil.Process().memory_info().rss
    start, busy = time.perf_counter(), time.process_time()
    yield
    answer["seconds"] = time.perf_counter() - start
    answer["cpu_seconds"] = time.process_time() - busy
    answer["peak_bytes"] = peak_bytes()
    answer["working_bytes"] = max(answer["peak_bytes"] - before, 0)


# -- supervised LoRA training ---------------------------------------------------------------------------------------


def train_kamerton(data: str, steps: int, warm: int, dtype: str) -> dict[str, Any]:
    """Kamerton's defaults; `warm` steps of `steps` are not counted."""
    from kamerton.objectives.supervised import Supervised
    from kamerton.tasks.example import Task
    from kamerton.training import Budget, Settings, fit
    from kamerton.tuning.lora import Lora, LoraOptions

    examples = training_examples(data, steps * BATCH)
    assert examples is not None
    own = base(dtype)
    task = Task(data, tuple(examples), (), (), ())
    tuned = Lora.attach(own, LoraOptions.model_validate({"rank": RANK}), task, 0)
    objective = Supervised(own.renderer, examples, [], batch_size=BATCH)
    settings = Settings(learning_rate=RATE, bfloat16=dtype == "bfloat16")
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, measured(answer):
        result = fit(tuned.model, tuned.module, objective, settings, Budget(steps=steps), Path(folder))
    curve = result.state.curve
    ends = [0.0, *(point["seconds"] for point in curve)]
    counts = [0, *(int(point["tokens"]) for point in curve)]
    answer.update(
        seconds=ends[-1] - ends[warm], units=counts[-1] - counts[warm], all_units=counts[-1],
        first_loss=curve[0]["loss"],
    )  # fmt: skip
    return answer


def train_trl(data: str, steps: int, warm: int, dtype: str, setting: str) -> dict[str, Any]:
    """TRL's SFTTrainer on the same tokens and the same labels.

    `setting`: `padded` (in the given order), `grouped` (by length), `padding-free` or `packed`; `+32` for 32 examples a
    step in place of 16.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from kamerton.training.batches import order

    examples = training_examples(data, steps * BATCH)
    assert examples is not None
    picked = [examples[i] for step in range(steps) for i in order(step, BATCH, len(examples), 0)]
    rendered = [renderer().example(e.messages, e.answers[0]) for e in picked]
    rows = Dataset.from_list([
        {"input_ids": list(r.tokens), "labels": [t if w else -100 for t, w in zip(r.tokens, r.weights, strict=True)]}
        for r in rendered
    ])  # fmt: skip
    mean = sum(len(r.tokens) for r in rendered) / len(rendered)
    packed = setting == "packed"
    length = 1024
    batch = max(1, round(BATCH * mean / length)) if packed else BATCH

    ends, counts = list[float](), list[int]()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=RATE, seed=0,
            bf16=dtype == "bfloat16", gradient_checkpointing=False, max_length=length if packed else None,
            packing=packed, padding_free=setting == "padding-free", completion_only_loss=True,
            train_sampling_strategy="group_by_length" if setting == "grouped" else "sequential",
            lr_scheduler_type="cosine", warmup_steps=0.1, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=hf(dtype), args=config, train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(dequantise(demo_gguf())), callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        collate = trainer.data_collator

        def counted(items: list[dict[str, Any]]) -> Any:
            counts.append(sum(len(item["input_ids"]) for item in items))
            return collate(items)

        trainer.data_collator = counted
        answer: dict[str, Any] = {}
        with measured(answer):
            start = time.perf_counter()
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ends.insert(0, start)
    answer.update(
        seconds=ends[-1] - ends[warm], units=sum(counts[warm : len(ends) - 1]), all_units=sum(counts),
        first_loss=losses[0],
    )  # fmt: skip
    return answer


# -- generation -----------------------------------------------------------------------------------------------------


def generate_kamerton(batch: int, shared: bool, dtype: str, new: int = NEW_TOKENS) -> dict[str, Any]:
    """Greedy answers of exactly `new` tokens: no token ends one."""
    from kamerton.inference import Engine, Sampling

    endless = copy.copy(base(dtype).renderer)
    endless.end_ids = ()
    engine = Engine(base(dtype).model, endless)
    conversations = prompts(batch, shared=shared)
    engine.generate(conversations[:1], Sampling(max_tokens=2))
    answer: dict[str, Any] = {}
    with measured(answer):
        answers = engine.generate(conversations, Sampling(max_tokens=new))
    return {**answer, "units": sum(len(a.tokens) for a in answers), "tokens": [list(a.tokens) for a in answers]}


def generate_transformers(batch: int, shared: bool, dtype: str, new: int = NEW_TOKENS) -> dict[str, Any]:
    """transformers' `generate`, padded on the left."""
    model = hf(dtype)
    rows = [renderer().prompt(c) for c in prompts(batch, shared=shared)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def run(count: int, part: slice) -> Any:
        with torch.inference_mode():
            return model.generate(
                ids[part], attention_mask=seen[part], max_new_tokens=count, do_sample=False, use_cache=True
            )

    run(2, slice(0, 1))
    answer: dict[str, Any] = {}
    with measured(answer):
        out = run(new, slice(None))
    return {**answer, "units": batch * new, "tokens": out[:, width:].tolist()}


# -- scores of choices ----------------------------------------------------------------------------------------------


def score_kamerton(questions: int, dtype: str) -> dict[str, Any]:
    """The log-probability of every choice of every question."""
    from kamerton.inference import Engine

    _, asked, choices = choice_questions(questions)
    engine = Engine(base(dtype).model, base(dtype).renderer)
    engine.score(asked[:1], [choices[:2]])
    answer: dict[str, Any] = {}
    with measured(answer):
        scores = engine.score(asked, [choices] * len(asked))
    return {**answer, "units": len(asked) * len(choices), "scores": scores}


def rank_kamerton(questions: int, dtype: str) -> dict[str, Any]:
    """The likeliest choice of every question."""
    from kamerton.inference import Engine

    _, asked, choices = choice_questions(questions)
    engine = Engine(base(dtype).model, base(dtype).renderer)
    engine.rank(asked[:1], [choices[:2]])
    answer: dict[str, Any] = {}
    with measured(answer):
        best = engine.rank(asked, [choices] * len(asked))
    return {**answer, "units": len(asked) * len(choices), "best": best}


@functools.cache
def _harness(dtype: str, batch: int) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dequantise(demo_gguf()))
    return HFLM(pretrained=hf(dtype), tokenizer=tokenizer, backend="causal", batch_size=batch)


def score_lm_eval(questions: int, dtype: str, batch: int) -> dict[str, Any]:
    """lm-eval's HF backend behind its tokenisation, so that it scores the very same tokens."""
    _, asked, choices = choice_questions(questions)
    harness = _harness(dtype, batch)
    requests = [(("", ""), renderer().prompt(c), renderer().answer(choice)) for c in asked for choice in choices]
    harness._loglikelihood_tokens(requests[:2], disable_tqdm=True)
    answer: dict[str, Any] = {}
    with measured(answer):
        out = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    flat = [value for value, _ in out]
    scores = [flat[i : i + len(choices)] for i in range(0, len(flat), len(choices))]
    return {**answer, "units": len(requests), "scores": scores}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (
        train_kamerton, train_trl, generate_kamerton, generate_transformers,
        score_kamerton, rank_kamerton, score_lm_eval,
    )
}  # fmt: skip


def main() -> None:
    """Answer jobs until the input ends; whatever libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.manual_seed(0)
    for line in sys.stdin:
        job = json.loads(line)
        reply = JOBS[job.pop("job")](**job)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()

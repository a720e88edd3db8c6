"""Contestants of `peers.py` that do whole things: a step of GRPO, and a comparison of ten methods."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from contestant import base, hf, measured, renderer
from grpo import Ours, share, trl_trainer
from kamerton.base.sources import dequantise
from kamerton.packaged import demo_gguf
from kamerton.tasks.dates import dates_task
from kamerton.tasks.example import Task
from workloads import training_examples

METHODS = (
    "zero-shot", "few-shot", "prompt-tuning", "p-tuning", "prefix-tuning", "lora", "dora", "rslora", "ia3", "full",
)  # fmt: skip
"""What Kamerton and peft both have."""
SOFT_METHODS = ("prompt-tuning", "p-tuning", "prefix-tuning")
RATES = {"prompt-tuning": 1e-2, "p-tuning": 1e-2, "prefix-tuning": 1e-2, "ia3": 1e-2, "full": 2e-5}
TRAIN, TEST, STEPS, BATCH, SHOTS, RANK, SOFT = 64, 64, 12, 8, 4, 16, 20


# -- a step of GRPO -------------------------------------------------------------------------------------------------


def _grpo(questions: int, group: int, new: int, dtype: str, steps: int) -> tuple[Task, argparse.Namespace]:
    examples = training_examples("gsm8k", questions) or training_examples("dates", questions)
    assert examples is not None
    task = Task("grpo", tuple(examples), (), (), ("exact-match",), max_answer_tokens=new)
    return task, argparse.Namespace(
        questions=questions, group=group, new=new, kl=0.04, dtype=dtype, max_tokens=4096, trl_rows=16, turns=steps - 1,
        steps=1,
    )  # fmt: skip


def grpo_kamerton(questions: int, group: int, new: int, dtype: str, steps: int) -> dict[str, Any]:
    """Sampling, rewards, the start's log-probabilities, loss and optimiser; the first step is not counted."""
    task, args = _grpo(questions, group, new, dtype, steps)
    ours = Ours(base(dtype), task, args)
    ours.step()
    answer: dict[str, Any] = {}
    with measured(answer):
        for _ in range(steps - 1):
            ours.step()
    return {**answer, "units": steps - 1}


def grpo_trl(questions: int, group: int, new: int, dtype: str, steps: int) -> dict[str, Any]:
    """TRL's GRPOTrainer; the first step is not counted."""
    from transformers import TrainerCallback

    task, args = _grpo(questions, group, new, dtype, steps)
    tuned = Ours(base(dtype), task, args).tuned  # where adapters stand; it is small beside the trainer's model
    ends: list[float] = []
    busy: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            busy.append(time.process_time())

    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(base(dtype), tuned, task, args, folder, Clock())
        with measured(answer):
            trainer.train()
    assert share("e") == 1.0
    return {**answer, "units": steps - 1, "seconds": ends[-1] - ends[0], "cpu_seconds": busy[-1] - busy[0]}


# -- a comparison of ten methods ------------------------------------------------------------------------------------


def compare_kamerton(dtype: str, methods: list[str] | None = None) -> dict[str, Any]:
    """`kamerton compare` with one worker: recipe to report."""
    import kamerton as kt

    names = methods or list(METHODS)
    variants = {"dora": {"dora": True}, "rslora": {"rslora": True}, "lora": {}}
    listed: list[dict[str, Any]] = []
    for name in names:
        options: dict[str, Any] = {"label": name}
        if name == "few-shot":
            options |= {"shots": SHOTS}
        elif name != "zero-shot":
            options |= {"validations": 1, "batch_size": BATCH, "learning_rate": RATES.get(name, 1e-3)}
        if name in SOFT_METHODS:
            options |= {"tokens": SOFT}
        if name in variants:
            options |= {"rank": RANK, **variants[name]}
        listed.append({"lora" if name in variants else name: options})
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "task": {"embedded": "dates", "limit": {"train": TRAIN, "validation": 8, "test": TEST}},
            "base": {"model": "demo", "dtype": dtype}, "methods": listed, "seeds": 1, "budget": {"steps": STEPS},
            "forgetting": False,
        }  # fmt: skip
        with measured(answer):
            results = kt.compare(recipe, output=Path(folder) / "run", workers=1, progress=False).results
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer["cpu_seconds"] += children.ru_utime + children.ru_stime
    answer["peak_bytes"] += children.ru_maxrss * 1024
    assert not results["failed"], results["failed"]
    scores = {m["label"]: m["metrics"]["exact-match"] for m in results["methods"]}
    return {**answer, "units": len(names), "matches": scores}


def compare_peers(dtype: str, methods: list[str] | None = None) -> dict[str, Any]:
    """TRL and peft to train, lm-eval's model to answer, one method after another, as a script would."""
    names = methods or list(METHODS)
    task = dates_task(train=TRAIN, validation=8, test=TEST)
    answer: dict[str, Any] = {}
    scores = {}
    with measured(answer):
        for name in names:
            scores[name] = _one_peer(name, task, dtype)
    return {**answer, "units": len(names), "matches": scores}


def _one_peer(name: str, task: Task, dtype: str) -> float:
    """Train one method and answer the test questions; the share of exact matches."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    model = hf.__wrapped__("float32" if name == "full" else dtype)  # a fresh one for each method
    tokenizer = AutoTokenizer.from_pretrained(dequantise(demo_gguf()))
    if name not in ("zero-shot", "few-shot"):
        model = _trained(name, model, tokenizer, task, dtype)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=16)
    requests = []
    for example in task.test:
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        if name == "few-shot":
            shots = [
                {"role": role, "content": content}
                for e in task.train[:SHOTS]
                for role, content in (("user", e.messages[-1].content), ("assistant", e.answers[0]))
            ]
            turns = [*turns[:-1], *shots, turns[-1]]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        settings = {"until": ["<|im_end|>"], "do_sample": False, "max_gen_toks": task.max_answer_tokens}
        requests.append(Instance("generate_until", {}, (prompt, settings), len(requests)))
    said = harness.generate_until(requests, disable_tqdm=True)
    right = [text.strip() in example.answers for text, example in zip(said, task.test, strict=True)]
    return 100 * sum(right) / len(right)


def _trained(name: str, model: Any, tokenizer: Any, task: Task, dtype: str) -> Any:
    from datasets import Dataset
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
    from trl import SFTConfig, SFTTrainer

    kind, soft = {"task_type": "CAUSAL_LM"}, {"task_type": "CAUSAL_LM", "num_virtual_tokens": SOFT}
    lora = {**kind, "r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"}
    configs = {
        "prompt-tuning": lambda: PromptTuningConfig(**soft), "prefix-tuning": lambda: PrefixTuningConfig(**soft),
        "p-tuning": lambda: PromptEncoderConfig(**soft, encoder_hidden_size=128), "ia3": lambda: IA3Config(**kind),
        "lora": lambda: LoraConfig(**lora), "dora": lambda: LoraConfig(**lora, use_dora=True),
        "rslora": lambda: LoraConfig(**lora, use_rslora=True), "full": lambda: None,
    }  # fmt: skip
    rendered = [renderer().example(e.messages, e.answers[0]) for e in task.train]
    rows = Dataset.from_list([
        {"input_ids": list(r.tokens), "labels": [t if w else -100 for t, w in zip(r.tokens, r.weights, strict=True)]}
        for r in rendered
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=RATES.get(name, 1e-3),
            bf16=dtype == "bfloat16", gradient_checkpointing=False, completion_only_loss=True, save_strategy="no",
            lr_scheduler_type="cosine", warmup_steps=0.1, report_to=[], disable_tqdm=True, use_cpu=True,
            dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=configs[name]()
        )
        trainer.train()
    return trainer.model.eval()

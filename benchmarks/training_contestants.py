"""Contestants of `peers.py` that train: Kamerton, TRL's SFTTrainer, and peft with the transformers Trainer.

All get the same tokens and the same loss positions in the same batches, and step with AdamW at the same rate. Each job
returns the seconds of its counted steps and the loss before the first one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from contestant import base, hf, measured, renderer
from kamerton.base.sources import dequantise
from kamerton.base.work import Work, flops
from kamerton.objectives.supervised import Supervised
from kamerton.packaged import demo_gguf
from kamerton.rendering import Rendered
from kamerton.tasks.example import Example, Task
from kamerton.training import Budget, Settings, fit
from kamerton.training.batches import order
from kamerton.tuning.full import Full, FullOptions
from kamerton.tuning.lora import Lora, LoraOptions
from kamerton.tuning.parameterisation import Tuned
from kamerton.tuning.prefix import Prefix, PrefixOptions
from kamerton.tuning.prompt import PromptOptions, PromptTuning
from workloads import training_examples

RANK, BATCH, SOFT = 16, 16, 20
RATES = {"lora": 1e-3, "full": 2e-5, "prompt-tuning": 1e-2, "prefix-tuning": 1e-2}


def _examples(data: str, count: int) -> list[Example]:
    found = training_examples(data, count)
    assert found is not None
    return found


def _tuned(method: str, own: Any, task: Task) -> Tuned:
    """The parameterisations at the settings that peft has too."""
    if method == "lora":
        return Lora.attach(own, LoraOptions.model_validate({"rank": RANK}), task, 0)
    if method == "full":
        return Full.attach(own, FullOptions(), task, 0)
    if method == "prompt-tuning":
        return PromptTuning.attach(own, PromptOptions.model_validate({"tokens": SOFT, "init": "vocabulary"}), task, 0)
    options = PrefixOptions.model_validate({"tokens": SOFT, "init": "random", "reparameterise": "none"})
    return Prefix.attach(own, options, task, 0)


def train_kamerton(data: str, steps: int, warm: int, dtype: str, method: str = "lora") -> dict[str, Any]:
    """Kamerton's defaults; `warm` steps of `steps` are not counted."""
    own = base(dtype)
    examples = _examples(data, steps * BATCH)
    tuned = _tuned(method, own, Task(data, tuple(examples), (), (), ()))
    objective = Supervised(own.renderer, examples, [], batch_size=BATCH)
    settings = Settings(learning_rate=RATES[method], bfloat16=dtype == "bfloat16")
    answer: dict[str, Any] = {}
    before = Work() + tuned.model.work
    with tempfile.TemporaryDirectory() as folder, measured(answer):
        result = fit(tuned.model, tuned.module, objective, settings, Budget(steps=steps), Path(folder))
    curve = result.state.curve
    ends = [0.0, *(point["seconds"] for point in curve)]
    counts = [0, *(int(point["tokens"]) for point in curve)]
    share = (counts[-1] - counts[warm]) / counts[-1]
    answer.update(
        seconds=ends[-1] - ends[warm], units=counts[-1] - counts[warm], all_units=counts[-1],
        first_loss=curve[0]["loss"], flops=share * flops(tuned.model.work - before, tuned.model.hf),
    )  # fmt: skip
    return answer


def _rendered(data: str, steps: int) -> list[Rendered]:
    """The examples in the order in which Kamerton meets them."""
    examples = _examples(data, steps * BATCH)
    picked = [examples[i] for step in range(steps) for i in order(step, BATCH, len(examples), 0)]
    return [renderer().example(e.messages, e.answers[0]) for e in picked]


def _row(r: Rendered) -> dict[str, list[int]]:
    return {"input_ids": list(r.tokens), "labels": [t if w else -100 for t, w in zip(r.tokens, r.weights, strict=True)]}


class _Counted:
    """A trainer's run: its steps' ends, and the tokens that its collator was given."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.trainer, self.ends, self.counts = trainer, list[float](), list[int]()
        ends, counts, collate = self.ends, self.counts, trainer.data_collator

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())

        def counted(items: list[dict[str, Any]]) -> Any:
            counts.append(sum(len(item["input_ids"]) for item in items))
            return collate(items)

        trainer.data_collator = counted
        trainer.add_callback(Clock())

    def run(self, warm: int) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        with measured(answer):
            self.ends.append(time.perf_counter())
            self.trainer.train()
        losses = [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]
        units = sum(self.counts[warm : len(self.ends) - 1])
        answer.update(
            seconds=self.ends[-1] - self.ends[warm], units=units, all_units=sum(self.counts), first_loss=losses[0]
        )
        return answer


def train_trl(data: str, steps: int, warm: int, dtype: str, setting: str, method: str = "lora") -> dict[str, Any]:
    """TRL's SFTTrainer.

    `setting`: `padded` (in the given order), `grouped` (by length), `padding-free` or `packed`.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rendered = _rendered(data, steps)
    mean = sum(len(r.tokens) for r in rendered) / len(rendered)
    packed = setting == "packed"
    length = 1024
    batch = max(1, round(BATCH * mean / length)) if packed else BATCH
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=RATES[method],
            seed=0, bf16=dtype == "bfloat16", gradient_checkpointing=False, max_length=length if packed else None,
            packing=packed, padding_free=setting == "padding-free", completion_only_loss=True,
            train_sampling_strategy="group_by_length" if setting == "grouped" else "sequential",
            lr_scheduler_type="cosine", warmup_steps=0.1, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        # what is trained stays in float32, as in Kamerton: a full fine-tuning's weights, LoRA's adapters
        model = hf("float32" if method == "full" else dtype)
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(list(map(_row, rendered))),
            processing_class=AutoTokenizer.from_pretrained(dequantise(demo_gguf())),
            peft_config=lora if method == "lora" else None,
        )  # fmt: skip
        return _Counted(trainer).run(warm)


def train_peft(data: str, steps: int, warm: int, dtype: str, method: str, setting: str) -> dict[str, Any]:
    """peft's prompt or prefix tuning with the transformers Trainer.

    `setting`: `padded` (in the given order) or `grouped` (by length).
    """
    from datasets import Dataset
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    kinds = {"prompt-tuning": PromptTuningConfig, "prefix-tuning": PrefixTuningConfig}
    config = kinds[method](task_type=TaskType.CAUSAL_LM, num_virtual_tokens=SOFT)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATES[method], seed=0,
            bf16=dtype == "bfloat16", lr_scheduler_type="cosine", warmup_steps=0.1, logging_steps=1, save_strategy="no",
            train_sampling_strategy="group_by_length" if setting == "grouped" else "sequential", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, optim="adamw_torch_fused",
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(dequantise(demo_gguf()))
        rows = Dataset.from_list(list(map(_row, _rendered(data, steps))))
        trainer = Trainer(
            get_peft_model(hf(dtype), config), arguments, train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        )  # fmt: skip
        return _Counted(trainer).run(warm)


def soft_losses(data: str, method: str) -> dict[str, Any]:
    """The loss of one batch by Kamerton and by peft's own forward pass, with the same trained numbers (float32)."""
    own = base("float32")
    examples = _examples(data, BATCH)
    tuned = _tuned(method, own, Task(data, tuple(examples), (), (), ()))
    objective = Supervised(own.renderer, examples, [], batch_size=BATCH)
    tuned.module.train()
    (batch,) = objective.batches(0, tuned.model)
    mine = float(objective.loss(tuned.model, batch).total) / batch.count
    total, count = 0.0, 0
    answer: dict[str, Any] = {"units": 1}
    with measured(answer), torch.no_grad():
        for r in _rendered(data, 1):
            row = _row(r)
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            out = tuned.peft(input_ids=ids, attention_mask=torch.ones_like(ids))
            logits = out.logits[:, -ids.shape[1] :]
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
            total, count = total + float(loss), count + int((labels[0, 1:] != -100).sum())
    return {**answer, "losses": [mine, total / count]}

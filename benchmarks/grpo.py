"""GRPO's whole step beside TRL's GRPOTrainer: sampling, rewards, log-probabilities of the start, loss, optimiser.

Both train LoRA of the same rank on the same demo model, with the same prompts, answers to a prompt and answer lengths
(no answer may end before its limit, so that both do the same work), and take turns step by step in one process: what
else the machine does falls on both alike. A ratio is taken within a turn. The first step of each is not counted. At the
end both compute their loss and its gradient on the same answers with the same weights, to show that it is one problem.

TRL gets `--trl-rows` rows in a pass (0: all of them; gradients of several passes are summed), in bfloat16 or float32 as
Kamerton, without gradient checkpointing.

Run: `python benchmarks/grpo.py` (some minutes; `--questions 2 --group 4 --new 16 --turns 1` for a quick look).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from kamerton.base import load_base
from kamerton.objectives.grpo import Grpo
from kamerton.objectives.policy_batches import Rollouts, policy_batches
from kamerton.rendering import Rendered
from kamerton.tasks.example import Example, Task
from kamerton.tuning.lora import Lora, LoraOptions
from workloads import prompts, training_examples

RANK, RATE = 16, 1e-4


class Letters:
    """A reward that any two answers differ in: the share of the letter e. TRL is given the same function."""

    name, range = "letters", (0.0, 1.0)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        return np.array([share(a) for a in answers])


def share(text: str) -> float:
    """The share of e among the letters of a text."""
    letters = [c for c in text.lower() if c.isalpha()]
    return letters.count("e") / max(len(letters), 1)


class Ours:
    """Kamerton's objective and the loop's optimiser step."""

    def __init__(self, base: Any, task: Task, args: argparse.Namespace) -> None:
        base.renderer.end_ids = ()  # no answer ends before its limit
        options = Grpo.options(queries=args.questions, group=args.group, kl=args.kl, length="token")
        self.tuned = Lora.attach(base, LoraOptions.model_validate({"rank": RANK}), task, 0)
        self.objective = Grpo(base, task, options, Letters(), max_tokens=args.max_tokens)
        self.objective.begin(self.tuned.model, self.tuned.module)
        self.tuned.module.train()
        trained = [p for p in self.tuned.module.parameters() if p.requires_grad]
        self.optimiser, self.number, self.half = (
            torch.optim.AdamW(trained, lr=RATE, fused=True),
            0,
            args.dtype != "float32",
        )

    def backward(self, batches: Sequence[Any]) -> float:
        count, total = sum(b.count for b in batches), 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                loss = self.objective.loss(self.tuned.model, batch).total / count
            loss.backward()
            total += float(loss.detach())
        return total

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.backward(self.objective.batches(self.number, self.tuned.model))
        torch.nn.utils.clip_grad_norm_(self.tuned.module.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.number += 1
        return time.perf_counter() - start

    def on(self, inputs: dict[str, Any], trained: dict[str, Any]) -> tuple[float, float]:
        """Loss and norm of its gradient with TRL's weights on TRL's answers."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.tuned.peft, trained)
        rows = []
        columns = (inputs[k].tolist() for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
        for prompt, of_prompt, said, of_said in zip(*columns, strict=True):
            before, answer = (
                [t for t, m in zip(*pair, strict=True) if m] for pair in ((prompt, of_prompt), (said, of_said))
            )
            rows.append(Rendered((*before, *answer), (0.0,) * len(before) + (1.0,) * len(answer)))
        lengths = torch.tensor([len(r.tokens) - r.prompt_length for r in rows])
        groups = np.repeat(np.arange(len(rows) // self.objective.group), self.objective.group)
        rollouts = Rollouts(rows, groups, lengths.double().numpy())
        rollouts.values = self.objective._probabilities(self.tuned.model, rollouts)
        rollouts.values |= {
            "advantages": inputs["advantages"].repeat_interleave(lengths), "weights": torch.ones(int(lengths.sum()))
        }  # fmt: skip
        loss = self.backward(policy_batches(rollouts, range(len(rows)), self.objective.max_tokens))
        return loss, norm(self.tuned.module)


def norm(module: torch.nn.Module) -> float:
    """Norm of a module's gradient, which is cleared."""
    found = [p.grad for p in module.parameters() if p.grad is not None]
    value = float(torch.stack([g.norm() for g in found]).norm())
    module.zero_grad()
    return value


def trl_trainer(base: Any, tuned: Any, task: Task, args: argparse.Namespace, folder: str, callback: Any) -> Any:
    """TRL's trainer on a copy of the base with LoRA at the same places."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    own = tuned.peft.peft_config["default"]
    lora = LoraConfig(
        r=own.r, lora_alpha=own.lora_alpha, lora_dropout=0.0, target_modules=own.target_modules, task_type="CAUSAL_LM"
    )

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        return [share(turns[0]["content"]) for turns in completions]

    rows = args.questions * args.group
    size = args.trl_rows or rows
    config = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=size, gradient_accumulation_steps=rows // size,
        steps_per_generation=rows // size, num_generations=args.group, max_completion_length=args.new, beta=args.kl,
        loss_type="dapo", learning_rate=RATE, lr_scheduler_type="constant", max_steps=args.turns * args.steps + 1,
        temperature=1.0, top_k=0, top_p=1.0, generation_kwargs={"min_new_tokens": args.new}, shuffle_dataset=False,
        bf16=args.dtype != "float32", gradient_checkpointing=False, use_cpu=True, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    turns = [{"prompt": [{"role": m.role, "content": m.content} for m in e.messages]} for e in task.train]
    fresh = base.reload(dtype="float32")
    return GRPOTrainer(
        fresh.model.hf, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(turns),
        processing_class=base.renderer.tokenizer, callbacks=[callback], peft_config=lora,
    )  # fmt: skip


def main() -> None:
    """Take the turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="gsm8k", choices=["gsm8k", "dates", "stories"], help="what is asked")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="answers to each question")
    parser.add_argument("--new", type=int, default=64, help="tokens of every answer")
    parser.add_argument("--kl", type=float, default=0.04)
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--max-tokens", type=int, default=4096, help="Kamerton: tokens in one pass")
    parser.add_argument("--trl-rows", type=int, default=0, help="TRL: rows in one pass; 0: all")
    parser.add_argument("--json", help="write the numbers here")
    args = parser.parse_args()
    from transformers import TrainerCallback

    examples = training_examples(args.data, args.questions) if args.data != "stories" else None
    if examples is None:
        asked = prompts(args.questions, shared=False)
        examples = [Example(f"{i}", messages, ("",)) for i, messages in enumerate(asked)]
    task = Task(args.data, tuple(examples), (), (), ("exact-match",), max_answer_tokens=args.new)
    base = load_base("demo", dtype=args.dtype, verify=False)
    ours = Ours(base, task, args)
    seconds: dict[str, list[float]] = {"Kamerton": [], "TRL": []}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds["TRL"].append(time.perf_counter() - self.start)
            seconds["Kamerton"].append(ours.step())
            print(f"TRL {seconds['TRL'][-1]:.2f} s, Kamerton {seconds['Kamerton'][-1]:.2f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(base, ours.tuned, task, args, folder, Turns())
        trainer.train()
        same = agreement(trainer, ours, args)
    steps = {
        name: [sum(v[i : i + args.steps]) / args.steps for i in range(1, len(v), args.steps)]
        for name, v in seconds.items()
    }
    ratios = [a / b for a, b in zip(steps["TRL"], steps["Kamerton"], strict=True)]
    lengths = [len(base.renderer.prompt(e.messages)) for e in examples]
    print(
        f"{args.questions} questions of {min(lengths)} to {max(lengths)} tokens × {args.group} answers of {args.new}, "
        f"{args.dtype}, KL {args.kl}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(same)
    print("| | seconds a step, median (range) | times as fast |\n|---|---|---|")
    for name, found in steps.items():
        times = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if name == "Kamerton" else "1"
        print(f"| {name} | {median(found):.2f} ({min(found):.2f}–{max(found):.2f}) | {times} |")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(args), "seconds": seconds, "agreement": same}, file, indent=1)


def agreement(trainer: Any, ours: Ours, args: argparse.Namespace) -> str:
    """Both losses on the answers that TRL samples now, with the weights that it has now."""
    from peft import get_peft_model_state_dict

    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = [{"prompt": e["prompt"]} for e in trainer.train_dataset for _ in range(args.group)]
    inputs = trainer._generate_and_score_completions(rows)
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    model.zero_grad()
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    theirs = (float(loss.detach()), norm(model))
    mine = ours.on(inputs, get_peft_model_state_dict(model))
    both = f"loss {mine[0]:.6f} and {theirs[0]:.6f}, norm of its gradient {mine[1]:.5f} and {theirs[1]:.5f}"
    return f"on the same answers: {both}"


if __name__ == "__main__":
    main()

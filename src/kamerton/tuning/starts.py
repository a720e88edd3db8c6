"""Token ids that trained prompts start from: solved examples as they stand in a prompt, the task's words, its labels.

Where a prompt starts decides where it ends: a few dozen optimiser steps move it only so far (Lester et al. 2021,
section 3.2; Li & Liang 2021, section 7.4). A start from solved examples is already about as good as few-shot.
"""

from __future__ import annotations

import torch

from kamerton.base.load import Base
from kamerton.errors import RecipeError, TaskError
from kamerton.inference.prefix import common_prefix
from kamerton.tasks.example import Message, Task, answered, fingerprint


def example_tokens(base: Base, task: Task, count: int, seed: int) -> torch.Tensor:
    """(count,) token ids: the instruction and the end of a row of solved examples, in the model's own template.

    The examples are drawn by the seed, without replacement as long as there are any. The instruction stands at the
    front as it does before every question; what does not fit behind it is cut off the first example.

    Raises:
        TaskError: there are no training examples.
    """
    examples = answered(task.train)
    if not examples:
        mend = "give a train split, or use init: vocabulary"
        raise TaskError("init: examples needs training examples", where=task.name, mend=mend)
    renderer = base.renderer
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    system = tuple(m for m in examples[0].messages[:1] if m.role == "system")
    questions = [renderer.prompt((*system, Message("user", text))) for text in ("a", "b")]
    head = questions[0][: common_prefix(questions)]
    turns: list[Message] = []
    ids: list[int] = []
    while len(ids) < count:
        for i in order[:8]:  # the same order over and over where the examples are few
            turns += [m for m in examples[i].messages if m.role != "system"]
            turns.append(Message("assistant", examples[i].answers[0]))
        order = order[8:] + order[:8]
        text = renderer.text((*system, *turns), generation_prompt=False)
        ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    if head and ids[0] != head[0]:  # a token that a base without a template starts with
        ids = [head[0], *ids]
    room = max(0, count - len(head))
    return torch.tensor([*head, *ids[len(ids) - room :]][:count])


def task_tokens(base: Base, task: Task, count: int, seed: int) -> torch.Tensor:
    """(count,) token ids drawn from the task's training texts, each token's chance the root of its frequency."""
    texts = [m.content for e in task.train for m in e.messages] + [e.answers[0] for e in answered(task.train)]
    ids = [i for text in texts for i in base.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]]
    if not ids:
        ids = list(range(len(base.renderer.tokenizer)))
    generator = torch.Generator().manual_seed(seed + int(fingerprint(count)[:8], 16))
    distinct, counts = torch.tensor(ids).unique(return_counts=True)
    weights = counts.double().sqrt()  # the root: common words lead, but do not crowd out the rest
    picked = torch.multinomial(weights, count, replacement=len(distinct) < count, generator=generator)
    return distinct[picked]


def vocabulary_tokens(base: Base, task: Task, count: int, seed: int) -> torch.Tensor:  # noqa: ARG001
    """(count,) token ids drawn from the whole vocabulary."""
    size = base.model.hf.get_input_embeddings().weight.shape[0]
    return torch.randint(0, size, (count,), generator=torch.Generator().manual_seed(seed))


def label_tokens(base: Base, task: Task, count: int, seed: int) -> torch.Tensor:
    """(count,) token ids of the task's class labels, one label after another, filled up with the task's words.

    Raises:
        RecipeError: the task is no choice among labels, or they need more than `count` tokens.
    """
    labels = list(dict.fromkeys(choice for e in task.train for choice in e.choices))
    if not labels:
        raise RecipeError(
            f"the task '{task.name}' has no class labels to start from", where="init", mend="use init: examples"
        )
    ids = [base.renderer.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    flat = [i for one in ids for i in one]
    if len(flat) > count:
        # every label is there with its first token, as far as that goes
        flat = [one[0] for one in ids if one]
    if len(flat) > count:
        raise RecipeError(
            f"{len(labels)} class labels do not fit into {count} soft tokens",
            where="init", mend=f"set tokens: {len(flat)} or use init: examples",
        )  # fmt: skip
    rest = count - len(flat)
    return torch.cat([torch.tensor(flat), task_tokens(base, task, rest, seed)]) if rest else torch.tensor(flat)


STARTS = {
    "examples": example_tokens, "task": task_tokens, "labels": label_tokens, "vocabulary": vocabulary_tokens,
}  # fmt: skip
"""Names of the option `init`."""


def check_start(base: Base, task: Task, init: str, count: int) -> None:
    """Refuse a start that the task does not have: solved examples, or class labels.

    Raises:
        RecipeError, TaskError: as `label_tokens` and `example_tokens`.
    """
    if init in ("examples", "labels"):
        STARTS[init](base, task, count, 0)

"""Instruction mixtures: train on several tasks, each in several phrasings, and test on tasks that were not among them.

FLAN (Wei et al. 2022, arXiv 2109.01652) and T0 (Sanh et al. 2022, arXiv 2110.08207): a model that was trained on many
tasks as instructions answers new ones better without examples. Tasks are mixed in proportion to their sizes, none of
them counting for more than `cap` examples (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2): one epoch of the
mixture is min(n, cap) examples of each task, shuffled. Unlike there, a task with more than `cap` examples is sampled
once and not anew in each epoch, so that an epoch is a fixed set of examples.

Validation examples are of the mixed tasks, never of those held out; the test set is the test splits of the held-out
tasks, whole, grouped by task and judged by the mean of each task's own first metric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from kamerton.recipe import TaskSpec
from kamerton.tasks.example import Example, SplitName, Task
from kamerton.tasks.splits import content_key, question_key, rank

Load = Callable[[TaskSpec], Task]


def mixture_task(spec: TaskSpec, load: Load) -> Task:
    """The task of a mixture.

    Args:
        spec: the recipe's task; `mixture` and `held_out` are its parts. load: reads one part.

    Raises:
        TaskError: a part cannot be read, a name is there twice, a held-out task is also trained on, or nothing is left.
    """
    loaded: dict[str, tuple[bool, Task]] = {}
    for path, part in spec.parts():
        task = load(part)
        if task.name in loaded:
            mend = "give one of them a name of its own"
            raise spec.error(path, f"the name {task.name!r} is taken by another task", mend=mend)
        loaded[task.name] = (path[0] == "held_out", _named(task))
        twin = next(
            (i for i, other in enumerate(spec.mixture) if path[0] == "held_out" and other.data == part.data), None
        )
        if twin is not None and part.data is not None:
            mend = "hold out a task of other data, or take it out of the mixture"
            raise spec.error(path, f"has the data of mixture.{twin}, so it is not unseen", mend=mend)
    mixed = {name: task for name, (out, task) in loaded.items() if not out}
    tested = {name: task for name, (out, task) in loaded.items() if out} or mixed
    notes = [f"{name}: {note}" for name, (_, task) in loaded.items() for note in task.notes]
    test = _shuffled([e for task in tested.values() for e in task.test], spec.seed)
    seen = {question_key(e) for task in tested.values() for e in task.test}
    splits: dict[SplitName, list[Example]] = {"test": test}
    for split in ("validation", "train"):
        parts = {name: getattr(task, split)[: spec.cap] for name, task in mixed.items()}
        together = [e for part in parts.values() for e in part]
        kept = [e for e in together if question_key(e) not in seen]
        if len(kept) < len(together):
            what = "test" if split == "validation" else "validation or test"
            notes.append(
                f"{split}: {len(together) - len(kept):,} examples were removed because {what} has the same question"
            )
        seen |= {question_key(e) for e in kept}
        splits[split] = _shuffled(kept, spec.seed)
        sizes = ", ".join(
            f"{len(part):,} of {len(getattr(mixed[name], split)):,} {name}" for name, part in parts.items()
        )
        notes.append(f"{split}: mixed from {sizes}")
    if spec.held_out:
        notes.append(f"test: of tasks that training does not have ({', '.join(tested)})")
    for split, examples in splits.items():
        most = getattr(spec.limit, split)
        if most is not None and most < len(examples):
            notes.append(f"{split}: a sample of {most:,} of {len(examples):,} examples is used")
            splits[split] = examples[:most]
        if not splits[split]:
            raise spec.error(("mixture",), f"{split} has no examples", mend="take other tasks, or a larger limit")
    first = {name: task.metrics[0] for name, task in {**mixed, **tested}.items()}
    return Task(
        name=spec.name or "mixture",
        train=tuple(splits["train"]), validation=tuple(splits["validation"]), test=tuple(splits["test"]),
        metrics=(_metric(first), "exact-match"),
        max_answer_tokens=spec.max_answer_tokens or max(task.max_answer_tokens for _, task in loaded.values()),
        notes=tuple(notes),
        source=", ".join(dict.fromkeys(task.source for _, task in loaded.values())),
    )  # fmt: skip


def _metric(first: dict[str, str]) -> str:
    from urllib.parse import quote

    return "by-group:" + ",".join(
        f"{quote(group, safe=' ')}={quote(name, safe=':./ ')}" for group, name in first.items()
    )


def _named(task: Task) -> Task:
    """The task with its name in the ids and as the group of its examples."""

    def put(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(replace(e, id=f"{task.name}/{e.id}", group=task.name) for e in examples)

    return replace(task, train=put(task.train), validation=put(task.validation), test=put(task.test))


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """In the order of a hash of each example's own content, so that any first part is a sample of the mixture."""
    seen: Counter[str] = Counter()
    ranked = []
    for place, example in enumerate(examples):
        key = f"{example.group}\x1d{content_key(example)}"
        ranked.append((rank(f"{key}\x1d{seen[key]}", seed, "mixture"), place))
        seen[key] += 1
    return [examples[place] for _, place in sorted(ranked)]

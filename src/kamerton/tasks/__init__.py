"""Task files in the formats that people have → examples in three splits.

`load_task` is the door: an embedded task by name, or what a recipe says about files and hub data sets.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kamerton.recipe import TaskSpec
from kamerton.recipe_errors import closest
from kamerton.tasks.example import SPLITS, Conversation, Example, Message, Task

if TYPE_CHECKING:
    from kamerton.tasks.readers import Row

__all__ = ["EMBEDDED", "Conversation", "Example", "Message", "Task", "load_task", "read_rows"]

EMBEDDED = ("dates",)


def load_task(spec: TaskSpec | str) -> Task:
    """Read a task.

    Args:
        spec: the `task` of a recipe, or the name of an embedded task.

    Returns:
        The task; every split in an order that depends only on the examples' content and the seed. Its notes say what
        was cut, removed, sampled or found.

    Raises:
        TaskError: one line with file (and line), what is wrong, and the mend.
    """
    if isinstance(spec, str):
        spec = TaskSpec(embedded=spec)
    if spec.embedded is not None:
        return _embedded(spec)
    if spec.mixture:
        from kamerton.tasks.mixture import mixture_task

        return mixture_task(spec, load_task)
    return _from_data(spec)


def _embedded(spec: TaskSpec) -> Task:
    if spec.embedded not in EMBEDDED:
        raise spec.error(
            ("embedded",), f"no embedded task {spec.embedded!r}", mend=closest(str(spec.embedded), EMBEDDED)
        )
    from kamerton.tasks.dates import dates_task

    asked = {key: value for key, value in spec.limit.model_dump().items() if value is not None}
    task = dates_task(seed=spec.seed, **asked)
    changes: dict[str, Any] = {
        "name": spec.name,
        "metrics": spec.metrics or None,
        "max_answer_tokens": spec.max_answer_tokens,
    }
    return replace(task, **{key: value for key, value in changes.items() if value is not None})


def read_rows(spec: TaskSpec) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of a recipe's data, by split, as they are in the files; and notes on what was found and mended in them.

    Raises:
        TaskError: one line with file (and line), what is wrong, and the mend.
    """
    from kamerton.tasks.readers import mended, read_files, read_hub

    data = spec.data
    assert data is not None  # TaskSpec has one of embedded and data
    notes: list[str] = []
    if data.hub is not None:
        rows = read_hub(spec, data)
    elif data.path:
        rows = {"train": read_files(spec, data.path, ("data", "path"), notes)}
    else:
        given = {"train": data.train, "validation": data.validation, "test": data.test}
        rows = {name: read_files(spec, files, ("data", name), notes) for name, files in given.items() if files}
    rows, mends = mended(rows)
    return rows, [*notes, *mends]


def _from_data(spec: TaskSpec) -> Task:
    from kamerton.tasks.shapes import METRICS, Phrased
    from kamerton.tasks.splits import Splits, clean, cut, keep_answered, limit, merge_answers, unique_ids

    data = spec.data
    assert data is not None  # TaskSpec has one of embedded and data
    rows, mends = read_rows(spec)
    if not rows.get("train"):
        raise spec.error(
            ("data",), "there is no training split", mend="name it under data: train, or splits: {train: …}"
        )

    shaper = Phrased(spec, [row for part in rows.values() for row in part])
    splits: Splits = {}
    notes = mends
    for name in SPLITS:
        if name in rows:
            splits[name], found = shaper.examples(rows[name], name)
            notes += found
    notes += cut(spec, splits)
    if spec.merge_answers:
        notes += merge_answers(splits)
    notes += keep_answered(splits)
    notes += clean(splits)
    notes += limit(splits, spec.limit, spec.seed)
    unique_ids(splits)
    for name in SPLITS:
        if not splits[name]:
            mend = "give it examples that the other splits do not have"
            raise spec.error(("data", name) if name in rows else ("split",), f"{name} has no examples", mend=mend)
    if shaper.labels:
        unseen = {a.example.answers[0] for a in splits["test"]} - {a.example.answers[0] for a in splits["train"]}
        if unseen:
            notes.append(f"test: {len(unseen)} of {len(shaper.readable)} labels have no training example")
    if spec.phrasings:
        notes.append(f"every question is put in one of {len(spec.phrasings)} phrasings, by a hash of its content")
    elif not spec.instruction and shaper.shape in ("label", "choice", "prompt", "question"):
        notes.append("the task has no instruction: an untrained model sees only the question")
    source = data.hub or ", ".join((*data.path, *data.train, *data.validation, *data.test))
    return Task(
        name=spec.name or Path(source.split(", ")[0]).stem,
        train=tuple(asked.example for asked in splits["train"]),
        validation=tuple(asked.example for asked in splits["validation"]),
        test=tuple(asked.example for asked in splits["test"]),
        metrics=tuple(_metric(spec, name) for name in spec.metrics) or METRICS[shaper.shape],
        max_answer_tokens=spec.max_answer_tokens or 64,
        notes=tuple(notes),
        source=source,
    )


def _metric(spec: TaskSpec, name: str) -> str:
    """A metric in a file is named from the recipe's folder; the rooms above do not know that folder."""
    file, colon, function = name.rpartition(":")
    return f"{spec.resolve(file)}:{function}" if colon and file.endswith(".py") else name

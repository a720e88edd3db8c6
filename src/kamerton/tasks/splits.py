"""Cutting, cleaning and limiting splits, the same way whatever the order of the file.

Every decision is by a hash of the example's own content and the seed: the same examples in another order give the same
splits, and every split comes out in hash order, so that any first part of it is a random sample (files are often sorted
by class). What was removed or found is said in notes, one line each; nothing is dropped silently.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache

from kamerton.recipe import LimitSpec, TaskSpec
from kamerton.tasks.example import SPLITS, Example, SplitName
from kamerton.tasks.shapes import Asked

Splits = dict[SplitName, list[Asked]]


def question_key(example: Example) -> str:
    """What makes two examples the same question: conversation and choices, with Unicode, case and spaces levelled."""
    text = "\x1f".join(f"{turn.role}\x1e{turn.content}" for turn in example.messages)
    return f"{_level(text)}\x1d{_choices_key(example.choices)}"


def content_key(example: Example) -> str:
    """What tells an example from others with the same question: its answers too, the judged ones with their scores."""
    key = question_key(example) + "\x1d" + "\x1f".join(example.answers)
    if example.graded:
        key += "\x1d" + "\x1f".join(f"{one.answer}\x1e{one.score!r}" for one in example.graded)
    return key


def _level(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=1024)  # tasks with labels share one tuple of choices
def _choices_key(choices: tuple[str, ...]) -> str:
    return "\x1f".join(sorted(_level(choice) for choice in choices))


def rank(key: str, seed: int, purpose: str) -> bytes:
    """What examples are put in order by: a hash of their own content."""
    return hashlib.sha256(f"{purpose}\x1f{seed}\x1f{key}".encode()).digest()


def cut(spec: TaskSpec, splits: Splits) -> list[str]:
    """Cut the splits that are not there from train, in place; returns notes.

    Examples with the same question, or with the same value of `split.by`, stay together.

    Raises:
        TaskError: the sizes do not fit the data.
    """
    missing = [name for name in SPLITS[1:] if name not in splits]
    if not missing:
        return []
    groups: dict[str, list[Asked]] = defaultdict(list)
    for asked in splits["train"]:
        groups[asked.by if spec.split.by is not None else question_key(asked.example)].append(asked)
    order = sorted(groups, key=lambda key: rank(key, spec.split.seed, "split"))
    total = len(splits["train"])
    notes = []
    for name in reversed(missing):  # test first: it stays the same where only the validation share changes
        size = getattr(spec.split, name)
        if size >= 1 and size != int(size):
            raise spec.error(("split", name), f"{size} is neither a share nor a count", mend="write 0.1 or 100")
        wanted = int(size) if size >= 1 else max(1, round(size * total))
        taken: list[Asked] = []
        while order and len(taken) < wanted:
            taken += groups[order.pop(0)]
        splits[name] = taken
        by = f", keeping each {spec.split.by} together" if spec.split.by is not None else ""
        notes.append(f"{name}: {len(taken):,} examples were cut from train by content hash{by}")
    if not order:
        mend = f"the data have {total} examples in {len(groups)} groups; take smaller shares or more data"
        raise spec.error(("split",), "leaves no training examples", mend=mend)
    splits["train"] = [asked for key in order for asked in groups[key]]
    return notes


def merge_answers(splits: Splits) -> list[str]:
    """In validation and test, the rows of one question become one example that accepts all their answers, in place."""
    notes = []
    held_out: tuple[SplitName, ...] = ("validation", "test")
    for name in held_out:
        merged: dict[str, Asked] = {}
        for asked in splits[name]:
            key = question_key(asked.example)
            if key in merged:
                first = merged[key].example
                spans = _spans(asked.example) | _spans(first)
                answers = tuple(dict.fromkeys((*first.answers, *asked.example.answers)))
                both = replace(first, answers=answers, spans=tuple(spans.get(a, -1) for a in answers) if spans else ())
                merged[key] = replace(merged[key], example=both)
            else:
                merged[key] = asked
        if len(merged) < len(splits[name]):
            notes.append(f"{name}: {len(splits[name]):,} rows are {len(merged):,} questions with several answers")
        splits[name] = list(merged.values())
    return notes


def _spans(example: Example) -> dict[str, int]:
    """Answers that stand in the context, and where."""
    return {a: s for a, s in zip(example.answers, example.spans, strict=False) if s >= 0}


def keep_answered(splits: Splits) -> list[str]:
    """Remove from validation and test, in place, the questions none of whose judged answers is good.

    There is nothing that a model's answer could be held to. In train they stay: some objectives need no reference.
    """
    notes = []
    held_out: tuple[SplitName, ...] = ("validation", "test")
    for name in held_out:
        kept = [asked for asked in splits[name] if asked.example.answers]
        removed = len(splits[name]) - len(kept)
        if removed:
            notes.append(f"{name}: {removed:,} questions were removed because none of their answers is a good one")
        splits[name] = kept
    return notes


def clean(splits: Splits) -> list[str]:
    """Remove from train what is also in validation or test, and from validation what is also in test, in place."""
    notes = []
    keys = {name: {question_key(asked.example) for asked in splits[name]} for name in SPLITS}
    rules: tuple[tuple[SplitName, tuple[SplitName, ...]], ...] = (
        ("validation", ("test",)),
        ("train", ("validation", "test")),
    )
    for name, others in rules:
        forbidden = {key for other in others for key in keys[other]}
        kept = [asked for asked in splits[name] if question_key(asked.example) not in forbidden]
        removed = len(splits[name]) - len(kept)
        if removed:
            where = " or ".join(others)
            notes.append(f"{name}: {removed:,} examples were removed because {where} has the same question")
        splits[name] = kept
    for name in SPLITS:
        answers: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for asked in splits[name]:
            answers[question_key(asked.example)].add(asked.example.answers)
        contradicting = sum(len(given) > 1 for given in answers.values())
        repeated = len(splits[name]) - len(answers)
        if repeated:
            note = f"{name}: {repeated:,} rows repeat a question of the same split and were kept"
            if contradicting:
                note += f"; {contradicting:,} questions have different answers"
            notes.append(note)
    return notes


def limit(splits: Splits, limits: LimitSpec, seed: int) -> list[str]:
    """Put every split into hash order and keep the first `limits` of each, in place."""
    notes = []
    for name in SPLITS:
        seen: Counter[str] = Counter()
        ranked: list[tuple[bytes, int, Asked]] = []
        for asked in splits[name]:
            key = content_key(asked.example)
            ranked.append((rank(f"{key}\x1d{seen[key]}", seed, "order"), len(ranked), asked))
            seen[key] += 1  # exact repetitions need ranks of their own
        ranked.sort(key=lambda item: item[:2])
        most = getattr(limits, name)
        splits[name] = [asked for _, _, asked in ranked[:most]]
        if most is not None and most < len(ranked):
            notes.append(f"{name}: a sample of {most:,} of {len(ranked):,} examples is used")
    return notes


def unique_ids(splits: Splits) -> None:
    """Make ids unique within the task, in place, by a suffix on later ones."""
    taken: set[str] = set()
    for name in SPLITS:
        for index, asked in enumerate(splits[name]):
            plain = asked.example.id
            identifier, number = plain, 2
            while identifier in taken:
                identifier, number = f"{plain}#{number}", number + 1
            taken.add(identifier)
            if identifier != plain:
                splits[name][index] = replace(asked, example=replace(asked.example, id=identifier))

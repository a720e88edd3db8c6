"""What the peers are measured on: the same examples, prompts and choices for every contestant.

Dates are made at run time. gsm8k (training on examples of very different lengths) and banking77 (77 choices) are read
from `KAMERTON_DATA`, or else from `../shared/data` beside the repository; without them gsm8k is left out, and the
choices are made up.
"""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path

from kamerton.tasks.dates import INSTRUCTION, dates_task
from kamerton.tasks.example import Conversation, Example, conversation

SHOTS = 8
_INTENT = "Name the intent of the customer's message."


def data_folder(name: str) -> Path | None:
    """The folder of a public data set, or None where it is not on this machine."""
    root = Path(os.environ.get("KAMERTON_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    return root / name if (root / name).is_dir() else None


def training_examples(name: str, count: int) -> list[Example] | None:
    """Examples of `dates` (short, one instruction for all) or `gsm8k` (60 to 400 tokens); None where absent."""
    if name == "dates":
        return list(dates_task(train=count, validation=0, test=0).train)
    folder = data_folder(name)
    if folder is None:
        return None
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [
        Example(id=f"{i}", messages=conversation([("user", row["question"])]), answers=(row["answer"],))
        for i, row in enumerate(rows)
    ]


def prompts(batch: int, *, shared: bool) -> list[Conversation]:
    """Distinct conversations to be answered: behind eight shots that all share, or with nothing but the template."""
    task = dates_task(train=SHOTS, validation=0, test=batch)
    if shared:
        turns = [("system", INSTRUCTION)]
        for example in task.train:
            turns += [("user", example.messages[-1].content), ("assistant", example.answers[0])]
        return [conversation([*turns, ("user", e.messages[-1].content)]) for e in task.test]  # type: ignore[list-item]
    rng = random.Random(0)
    starts = ["Write a story about", "Explain to a child", "List five facts about", "Describe in detail", "Compare"]
    things = ["a lighthouse", "the moon", "bread", "a tram in winter", "honey bees", "rain", "an old clock", "glass"]
    asked: list[Conversation] = []
    for i in range(batch):
        many = rng.sample(things, k=1 + i % 4)
        ask = f"{rng.choice(starts)} {' and '.join(many)} in the year {1500 + 7 * i}."
        asked.append(conversation([("user", ask)]))
    return asked


def choice_questions(count: int) -> tuple[str, list[Conversation], list[str]]:
    """Few-shot questions with one closed set of choices: (where they are from, conversations, choices)."""
    folder = data_folder("banking77")
    rng = random.Random(0)
    if folder is None:
        words = ["card", "cash", "top up", "transfer", "refund", "fee", "limit", "rate", "identity", "pin", "account"]
        ends = ["arrival", "not working", "charged", "pending", "failed", "declined", "change"]
        rows = [(f"My {word} is {end}, what now?", f"{word} {end}") for word in words for end in ends]
        rng.shuffle(rows)
        asked, shown, source = rows, rows[::-1], "made-up intents"
    else:
        shown = _read(folder / "train.csv")
        asked = _read(folder / "test.csv")
        rng.shuffle(shown)
        rng.shuffle(asked)
        source = "banking77"
    choices = sorted({label for _, label in shown})
    turns = [("system", _INTENT)]
    for text, label in shown[:SHOTS]:
        turns += [("user", text), ("assistant", label)]
    questions = [conversation([*turns, ("user", text)]) for text, _ in asked[:count]]  # type: ignore[list-item]
    return source, questions, choices


def _read(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"].replace("_", " ")) for row in csv.DictReader(file)]

"""Layouts of well-known data sets that nest their records: each a short function from text to plain records.

Target of the slot-filling layouts: one flat JSON object, `{"intent": …, slot: value, …}` in the order of the text, with
a list where a slot occurs twice. Flat, because every field then counts the same in field-level F1, and it is short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import parse_json
from kamerton.recipe import TaskSpec


def squad(text: str) -> list[dict[str, Any]]:
    """SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): one record a question, with every accepted answer once.

    Unanswerable questions have no answers: set `empty_answer` to the text that stands for that.
    """
    records = []
    for article in parse_json(text)["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                starts: dict[str, int | None] = {}
                for answer in question.get("answers", []):
                    starts.setdefault(answer["text"], answer.get("answer_start"))
                records.append(
                    {
                        "id": question["id"],
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": list(starts),
                        "answer_start": list(starts.values()),
                    }
                )
    return records


def conll_sentences(text: str, place: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Columns of words and tags (Tjong Kim Sang & De Meulder 2003): a word a line, an empty line behind a sentence.

    Columns are separated by tabs where a file has any, else by spaces; lines that begin with -DOCSTART- are left out.

    Yields:
        For each sentence `{"tokens": words of the first column, "tags": of the last, "0": …, "1": …}`, and its line.

    Raises:
        TaskError: a line has another number of columns than the first one; with `place` and the line.
    """
    separator = "\t" if "\t" in text else None
    columns: list[list[str]] = []
    width = start = 0
    for number, raw in enumerate([*text.split("\n"), ""], start=1):
        line = raw.strip("\r")
        if line.strip() and not line.startswith("-DOCSTART-"):
            cells = [cell.strip() for cell in line.strip(" ").split(separator)]
            if len(cells) < 2 or (width and len(cells) != width) or not all((cells[0], cells[-1])):
                wanted = f"{width} columns" if width else "a word and a tag"
                message = f"has {len(cells)} columns where {wanted} are needed: {line.strip()[:40]!r}"
                raise TaskError(message, where=f"{place}:{number}", mend="give each word one tag")
            width, start = len(cells), start if columns else number
            columns = columns or [[] for _ in cells]
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
        elif columns:
            numbered = {str(i): column for i, column in enumerate(columns)}
            yield {"tokens": columns[0], "tags": columns[-1], **numbered}, start
            columns = []


def squad_answerable(text: str) -> list[dict[str, Any]]:
    """As `squad`, without the questions that have no answer: for asking them without their context."""
    return [record for record in squad(text) if record["answers"]]


def snips(text: str) -> list[dict[str, Any]]:
    """The SNIPS NLU benchmark (Coucke et al. 2018): `{intent: [{"data": [{"text", "entity"?}, …]}, …]}`."""
    records = []
    for intent, utterances in parse_json(text).items():
        for utterance in utterances:
            parts = utterance["data"]
            sentence = " ".join("".join(part["text"] for part in parts).split())
            slots = [(part["entity"], " ".join(part["text"].split())) for part in parts if "entity" in part]
            records.append({"prompt": sentence, "completion": slot_json(intent, slots), "intent": intent})
    return records


def slot_json(intent: str, slots: Iterable[tuple[str, str]]) -> str:
    """An intent and its (slot, value) pairs as one flat JSON object."""
    fields: dict[str, Any] = {"intent": intent}
    for name, value in slots:
        if name not in fields:
            fields[name] = value
        else:
            fields[name] = [*(fields[name] if isinstance(fields[name], list) else [fields[name]]), value]
    return json.dumps(fields, ensure_ascii=False)


def bio_record(spec: TaskSpec, values: dict[str, Any], place: str) -> dict[str, Any]:
    """Tokens with B-/I-/O tags and an intent (`columns: {tokens, tags, intent}`) as prompt and completion."""
    names = {key: spec.columns[key].source[0] if key in spec.columns else key for key in ("tokens", "tags", "intent")}
    missing = [name for name in names.values() if name not in values]
    if missing:
        mend = f"map it in columns; the record has: {', '.join(values)}"
        raise TaskError(f"no column {missing[0]!r}", where=place, mend=mend)
    cells = (values[names["tokens"]], values[names["tags"]])
    tokens, tags = ([str(item) for item in cell] if isinstance(cell, list) else str(cell).split() for cell in cells)
    if len(tokens) != len(tags):
        message = f"has {len(tokens)} tokens and {len(tags)} tags"
        raise TaskError(message, where=place, mend="give each token one tag")
    slots: list[tuple[str, str]] = []
    previous = "O"
    for token, tag in zip(tokens, tags, strict=True):
        name = tag[2:]
        if tag.startswith("I-") and previous[2:] == name:
            slots[-1] = (name, f"{slots[-1][1]} {token}")
        elif tag != "O":
            slots.append((name, token))
        previous = tag
    return {"prompt": " ".join(tokens), "completion": slot_json(str(values[names["intent"]]), slots)}


def hh_record(spec: TaskSpec, values: dict[str, Any], place: str) -> dict[str, Any]:
    """Anthropic's hh-rlhf (Bai et al. 2022, arXiv 2204.05862): the texts of `chosen` and `rejected` as turns.

    A few conversations have two turns of one side in a row; they are one turn.
    """
    changed = dict(values)
    for key in ("chosen", "rejected"):
        name = spec.columns[key].source[0] if key in spec.columns else key
        text = values.get(name)
        if text is None:
            continue  # whoever reads the records says what is missing
        parts = _HH_TURN.split(f"\n\n{text.lstrip()}") if isinstance(text, str) else []
        if len(parts) < 3 or parts[0]:
            message = rf"{name} is not a conversation of \n\nHuman: … \n\nAssistant: … turns"
            raise TaskError(message, where=place, mend="mend the record, or leave reader: hh-rlhf out")
        turns: list[dict[str, str]] = []
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
            role = "user" if speaker == "Human" else "assistant"
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] = f"{turns[-1]['content']}\n\n{said.strip()}".strip()
            else:
                turns.append({"role": role, "content": said.strip()})
        changed[name] = turns
    return changed


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

LAYOUTS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "squad": squad, "squad-answerable": squad_answerable, "snips": snips,
}  # fmt: skip
"""Layouts of a whole file: its text → records."""

RECORDS: dict[str, Callable[[TaskSpec, dict[str, Any], str], dict[str, Any]]] = {
    "bio": bio_record, "hh-rlhf": hh_record,
}  # fmt: skip
"""Layouts of single records, in files of any format and on the hub: (task, record, place) → record."""

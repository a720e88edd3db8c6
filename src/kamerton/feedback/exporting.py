"""Answers of a model for people to label: k different ones to each question, as JSON lines.

The same model, questions and settings give the same file. It is written as it grows: a stopped export goes on where it
stood. Lines that are there, with what people wrote into them, are never changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kamerton.errors import KamertonError, TaskError
from kamerton.feedback.lines import Line, label_of, prompt_of, read_lines
from kamerton.files import write_text
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted
from kamerton.tasks.example import Example, fingerprint
from kamerton.tasks.readers import shown

CHUNK = 32
"""Questions between two writes."""
MORE = 4
"""Where answers are alike, so many times as many are sampled."""


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        written: questions in the file; `kept`: those of them that were there before; `labelled`: those with a label.
        fewer: questions whose answers were alike, so that there are fewer than were asked for.
        alike: questions that gave no two different answers; they are not in the file.
        choices: questions with choices; their answers need no judging, and they are not in the file.
        cut: questions that the model saw only in part.
    """

    written: int
    kept: int
    labelled: int
    fewer: int
    alike: int
    choices: int
    cut: int


def export(
    adapted: Adapted, examples: Sequence[Example], output: str | Path, sampling: Sampling, *,
    report: Callable[[str, float, str], None] | None = None,
) -> Exported:  # fmt: skip
    """Sample `sampling.n` different answers to each question and write them for labelling.

    Args:
        adapted: the model.
        examples: the questions; ids are unique.
        output: the file. One that is there must come from the same model and settings; what it lacks is added.
        sampling: n of at least two, a temperature above 0.
        report: told about progress.

    Raises:
        KamertonError: as `check_export`; or the file is of another model, other settings or other questions, broken, or
            changed meanwhile.
    """
    check_export(examples, sampling)
    free = [e for e in examples if not e.choices]
    path, source = Path(output), _source(adapted, sampling)
    text, lines = _there(path)
    taken = _taken(lines, source, {e.id: e for e in free})
    labelled = sum(label_of(line) is not None for line in lines)
    waiting = [e for e in free if e.id not in taken]
    written, fewer, alike, cuts = len(lines), 0, 0, 0
    for start in range(0, len(waiting), CHUNK):
        part = waiting[start : start + CHUNK]
        if report is not None:
            report("sampling", start / len(waiting), f"{start} of {len(waiting)} questions")
        answers, cut = _different(adapted, part, sampling)
        cuts += cut
        added = ""
        for example, found in zip(part, answers, strict=True):
            fewer, alike = fewer + (1 < len(found) < sampling.n), alike + (len(found) < 2)
            if len(found) > 1:
                written += 1
                added += json.dumps(_record(example, found, source), ensure_ascii=False) + "\n"
        if added:
            if _there(path)[0] != text:
                mend = "run the same command again; it goes on from there"
                raise KamertonError("was changed while answers were sampled", where=shown(path), mend=mend)
            text += added
            write_text(path, text)
    return Exported(written, len(lines), labelled, fewer, alike, len(examples) - len(free), cuts)


def check_export(examples: Sequence[Example], sampling: Sampling) -> None:
    """Refuse what would give nothing to judge, before a model is loaded.

    Raises:
        KamertonError: the settings cannot give different answers, or every question has choices.
    """
    if sampling.n < 2:
        raise KamertonError(f"{sampling.n} answers to a question cannot be compared", mend="ask for 2 or more")
    if sampling.temperature == 0:
        raise KamertonError("temperature 0 gives the same answer each time", mend="take one such as 0.8 or 1.0")
    if all(e.choices for e in examples):
        mend = "set choices: false in the task, so that answers are generated"
        raise KamertonError("every question has choices, so there is nothing to judge", mend=mend)


def _different(adapted: Adapted, examples: Sequence[Example], sampling: Sampling) -> tuple[list[list[str]], int]:
    """The first different answers to each question, up to `sampling.n`, and how many questions were cut."""
    asked = [adapted.shorten(e.messages, sampling.max_tokens) for e in examples]
    found: list[list[str]] = [[] for _ in examples]
    for times in (1, MORE):
        short = [i for i, texts in enumerate(found) if len(texts) < sampling.n]
        if not short:
            break
        # the first answers of many are those of few: sampling more changes none of them
        plan = replace(sampling, n=sampling.n * times)
        answers = adapted.generate([asked[i][0] for i in short], plan)
        for place, i in enumerate(short):
            texts = [a.text.strip() for a in answers[place * plan.n : (place + 1) * plan.n]]
            found[i] = list(dict.fromkeys(text for text in texts if text))[: sampling.n]
    return found, sum(cut for _, cut in asked)


def _record(example: Example, answers: Sequence[str], source: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": example.id, "prompt": [asdict(turn) for turn in example.messages], "answers": list(answers),
        "chosen": None, "scores": None, "sampled": source,
    }  # fmt: skip


def _there(path: Path) -> tuple[str, list[Line]]:
    """The file's text, ending with a line break, and its lines; nothing where it is not there."""
    if not path.exists():
        return "", []
    lines = read_lines(path)
    text = path.read_bytes().decode("utf-8")
    return text if not text or text.endswith("\n") else text + "\n", lines


def _taken(lines: Sequence[Line], source: dict[str, Any], known: dict[str, Example]) -> set[str]:
    """The ids of questions that are in the file.

    Raises:
        TaskError: a line is of another model, other settings, or another question by the same name.
    """
    taken = set()
    for line in lines:
        mend = "choose another --output; what is there is left as it is"
        if line.record.get("sampled") != source:
            raise TaskError("has answers of another model or other settings", where=line.place, mend=mend)
        name = str(line.record.get("id"))
        if name in known and prompt_of(line) != known[name].messages:
            raise TaskError(f"{name} is another question there", where=line.place, mend=mend)
        taken.add(name)
    return taken


def _source(adapted: Adapted, sampling: Sampling) -> dict[str, Any]:
    """Where answers come from: a fingerprint of the model, and how they were sampled."""
    settings = {name: value for name, value in asdict(sampling).items() if value not in (None, ())}
    return {"model": model_fingerprint(adapted)[:16], **settings}


@torch.no_grad()
def model_fingerprint(adapted: Adapted) -> str:
    """SHA-256 of everything that decides the answers: base, method, its state, and the trained weights."""
    weights = hashlib.sha256()
    if adapted.tuned is not None:
        for name, value in sorted(adapted.tuned.module.state_dict().items()):
            if isinstance(value, torch.Tensor):
                weights.update(name.encode())
                raw = value.detach().cpu().contiguous().reshape(-1)
                weights.update(raw.view(torch.uint8).numpy().tobytes())
    return fingerprint(
        {
            "base": adapted.base.info.fingerprint, "renderer": adapted.renderer.fingerprint, "method": adapted.method,
            "options": adapted.options.model_dump(mode="json"), "state": adapted.state, "weights": weights.hexdigest(),
        }
    )  # fmt: skip

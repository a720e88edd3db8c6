"""A judge that was trained apart: the base with LoRA on references that the evaluated model never saw, cross-fitted.

The questions of the evaluated split are parted in two halves; a judge is trained on the references of each half and
reads only what belongs to the other one. Its −log p of samples is the *reverse* cross-entropy (how plausible is what
the model says: precision), its −log p of references is what a model like itself reaches and the level to compare with;
the model's own −log p of references is the *forward* one (does the model find likely what people say: recall).

A judge of few references is a weak one: it has seen half of the split. It knows no more than the base does beyond that,
so it tells samples of two models apart, and its number is no measure of truth.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kamerton.assessment.samples import references
from kamerton.base import Base
from kamerton.errors import TaskError
from kamerton.files import write_json
from kamerton.methods import get_method, load_adapted, parse_options
from kamerton.methods.method import Adapted, Report, Run
from kamerton.tasks.example import Example, Task, fingerprint, record_of
from kamerton.training import Budget

Array = np.ndarray[Any, Any]

FEWEST = 8
"""Questions below which no judge is trained."""
HELD_OUT = 1 / 8
"""Share of a judge's questions that stop its training, where there are at least 24."""


@dataclass(frozen=True)
class JudgeOptions:
    """How judges are trained: LoRA at a fixed learning rate, over its half of the references."""

    epochs: float = 4.0
    learning_rate: float = 1e-3
    rank: int = 16
    batch_size: int = 8


@dataclass(frozen=True)
class Said:
    """A text that is judged, and whether it came to its end (else the end token is not asked for)."""

    text: str
    ended: bool = True


def halves(examples: Sequence[Example], seed: int) -> Array:
    """(N,) 0 or 1: the half of each example; equal questions are in the same one.

    Raises:
        TaskError: too few different questions.
    """
    questions = list(dict.fromkeys(e.messages for e in examples))
    if len(questions) < FEWEST:
        raise TaskError(
            f"{len(questions)} questions are too few to train a judge on one half and use it on the other",
            mend=f"give at least {FEWEST}, or leave --judge out",
        )
    order = np.random.default_rng([seed, 1988]).permutation(len(questions))
    half = {questions[i]: place % 2 for place, i in enumerate(order)}
    return np.array([half[e.messages] for e in examples])


def judged(
    base: Base, task: Task, examples: Sequence[Example], said: Sequence[Sequence[Said]], folder: Path,
    options: JudgeOptions, seed: int, report: Report, max_batch_tokens: int = 8192,
) -> list[Array]:  # fmt: skip
    """−log-probability of texts under the judge that did not see their question.

    Args:
        base: the base of the judges.
        task: whose room for answers they get.
        examples: the questions; `said`: of each the texts to judge.
        folder: where judges are kept; those that are there for the same references are used again.

    Returns:
        Of each question an (m, 2) array: nats and tokens of each text.
    """
    half = halves(examples, seed)
    out = [np.zeros((len(texts), 2)) for texts in said]
    for k in (0, 1):
        learn = [e for e, h in zip(examples, half, strict=True) if h == k]
        judge = _judge(base, task, learn, folder / f"judge-{k}", options, replace(
            Run(folder / f"fit-{k}", seed, report, max_batch_tokens)
        ), f"judge {k + 1} of 2")  # fmt: skip
        theirs = [i for i in range(len(examples)) if half[i] != k]
        report("judging", k / 2, f"judge {k + 1} of 2")
        _read(judge, examples, said, theirs, out)
        del judge  # before the next one is loaded
    report("judging", 1.0, "")
    return out


def _judge(
    base: Base, task: Task, learn: Sequence[Example], folder: Path, options: JudgeOptions, run: Run, name: str
) -> Adapted:
    key = fingerprint({
        "examples": [record_of(e) for e in learn], "options": asdict(options), "seed": run.seed,
        "base": base.info.fingerprint, "renderer": base.renderer.fingerprint,
    })  # fmt: skip
    mark = folder / "judge.json"
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")).get("key") == key:
        return load_adapted(folder, base)
    mark.unlink(missing_ok=True)
    whole = [replace(e, id=f"{e.id}#{j}", answers=(text,)) for e in learn for j, text in enumerate(references(e))]
    kept = math.ceil(len(learn) * HELD_OUT) if len(learn) >= 24 else 0
    held = {e.messages for e in learn[:kept]}
    inside = replace(
        task, name="judge", train=tuple(e for e in whole if e.messages not in held),
        validation=tuple(e for e in whole if e.messages in held), test=(),
    )  # fmt: skip
    method = get_method("lora")
    chosen = parse_options(method, {
        "learning_rate": options.learning_rate, "rank": options.rank, "batch_size": options.batch_size,
        "validations": 4,
    })  # fmt: skip
    tell: Callable[[str, float, str], None] = run.report
    run.report = lambda _, share, text: tell(f"training {name}", share, text)
    adapted = method.fit(base, inside, Budget(epochs=options.epochs), chosen, run)
    adapted.save(folder)
    write_json(mark, {"key": key, "questions": len(learn), "notes": adapted.record.notes})
    shutil.rmtree(run.folder, ignore_errors=True)
    return adapted


def _read(
    judge: Adapted, examples: Sequence[Example], said: Sequence[Sequence[Said]], rows: Sequence[int], out: list[Array]
) -> None:
    prompts, answers, places = [], [], []
    for i in rows:
        tokens = [judge.renderer.answer(one.text, end=one.ended) for one in said[i]]
        room = max(map(len, tokens), default=1)
        prompt = judge.renderer.prompt(judge.prepare(judge.shorten(examples[i].messages, room)[0]))
        for j, own in enumerate(tokens):
            if own:  # nothing was said and nothing ended
                prompts.append(prompt)
                answers.append(own)
                places.append((i, j))
    found = judge.engine.token_log_probs(prompts, answers)
    for (i, j), values in zip(places, found, strict=True):
        out[i][j] = -float(values.sum()), len(values)

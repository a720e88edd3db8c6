"""The stages of a path: what each depends on, what it does, and its figures.

A stage depends on its block of the recipe and on the content of what the stages before it wrote, not on their times: a
corpus that was made again and came out the same makes nothing behind it run again. Nothing is copied between stages;
each calls what the single command calls.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kamerton.errors import KamertonError
from kamerton.files import checksum
from kamerton.from_scratch.recipe import FromScratch, NgramSpec

Report = Callable[[str, float, str], None]
Figures = dict[str, Any]
JUDGED = 300
"""Held-out answers that the tuned model and its base are compared on, at most."""
SHOWN = 4
"""Held-out questions whose answers the page shows."""
LINE = 200
"""Units of a text that an n-gram model draws for the page."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of its folder, for people too.
        kind: corpus, text, tokenizer, ngram, model, turns, tuned or chat.
        depends: what decides its result, as JSON; asked when the stages before it are done.
        run: does it and gives its figures.
        makes: files that are there when it is done.
        folders: everything that it writes.
    """

    name: str
    kind: str
    depends: Callable[[], Any]
    run: Callable[[Report], Figures]
    makes: tuple[Path, ...]
    folders: tuple[Path, ...]


def stages_of(path: FromScratch, workers: int | None = None) -> list[Stage]:
    """The stages of a recipe, in their order.

    Args:
        workers: processes that make the corpus.
    """
    at, fields = path.folder, path.fields
    text, tokens = at / "text", at / "tokenizer"
    train, held = text / "train.jsonl", text / "held_out.jsonl"
    stages = [
        Stage("corpus", "corpus", partial(_corpus_depends, path), partial(_corpus, path, workers),
              (at / "corpus" / "report.json",), (at / "corpus",)),
        Stage("text", "text", lambda: [fields.held_out.model_dump(), checksum(_documents(at))], partial(_text, path),
              (train, held), (text,)),
        Stage("tokenizer", "tokenizer", lambda: [fields.tokenizer.model_dump(), template(path)[1], checksum(train)],
              partial(_tokenizer, path), (tokens / "tokenizer.json", tokens / "tokenizer_config.json"), (tokens,)),
    ]  # fmt: skip
    for name, spec in fields.ngrams.items():
        needs = (train, held, tokens / "tokenizer.json") if spec.tokens == "tokenizer" else (train, held)
        stages.append(
            Stage(name, "ngram", partial(_depends, spec.model_dump(exclude={"memory"}), needs),
                  partial(_ngram, path, name, spec), (at / name / "ngram.json",), (at / name,))
        )  # fmt: skip
    for name, recipe in path.models.items():
        block = recipe.model_dump(mode="json", exclude={"name", "output", "tokenizer", "data"})
        documents = recipe.data.documents
        needs = (train, held) if recipe.tokenizer == "bytes" else (train, held, tokens / "tokenizer.json")
        stages.append(
            Stage(name, "model", partial(_depends, [block, documents], needs), partial(_model, path, name),
                  (at / name / "pretraining.json", at / name / "config.json"), (at / name,))
        )  # fmt: skip
    if fields.turns is not None:
        turns = at / "turns"
        stages.append(
            Stage("turns", "turns", partial(_depends, fields.turns.model_dump(), (train, held)), partial(_turns, path),
                  tuple(turns / f"{split}.jsonl" for split in ("train", "validation", "test")), (turns,))
        )  # fmt: skip
    if path.tune is not None:
        stages += [
            Stage("tuned", "tuned", partial(_tune_depends, path), partial(_tune, path),
                  (at / "tuned" / "kamerton.json",), (at / "tuned",)),
            Stage("chat", "chat", partial(_chat_depends, path), partial(_chat, path), (at / "chat" / "config.json",),
                  (at / "chat",)),
        ]  # fmt: skip
    return stages


def _depends(block: Any, needs: Sequence[Path]) -> Any:
    return [block, *(checksum(file) for file in needs)]


# -- corpus, text, tokenizer ------------------------------------------------------------------------------------------


def _corpus_depends(path: FromScratch) -> Any:
    from kamerton.corpora import test_sets
    from kamerton.text.corpus.files import inputs
    from kamerton.text.corpus.run import fingerprint

    return [fingerprint(path.corpus, inputs(path.corpus), test_sets(path.corpus)), path.corpus.compression]


def _corpus(path: FromScratch, workers: int | None, report: Report) -> Figures:
    from kamerton.corpora import build_corpus
    from kamerton.text.corpus.report import notes, sentence

    made = build_corpus(path.corpus, path.folder / "corpus", workers=workers, watch=report)
    first, last = made.results["steps"][0], made.results["steps"][-1]
    if not last["out"][0]:
        raise path.fields.error(("corpus", "steps"), "no document is left", mend=f"see {made.report}")
    return {
        "files": made.results["files"], "read": first["in"], "kept": last["out"], "said": sentence(made.results),
        "notes": list(notes(made.results)),
    }  # fmt: skip


def _documents(folder: Path) -> Path:
    about = json.loads((folder / "corpus" / "report.json").read_text(encoding="utf-8"))
    return folder / "corpus" / str(about["documents"])


def _text(path: FromScratch, report: Report) -> Figures:
    from kamerton.from_scratch.text import divide

    spec = path.fields.held_out
    try:
        train, held = divide(
            _documents(path.folder), path.folder / "text", spec.share, spec.words, partial(report, "text")
        )
    except KamertonError as error:
        raise path.fields.error(("held_out",), error.message, mend=error.mend) from None
    return {"train": vars(train), "held_out": vars(held)}


def template(path: FromScratch) -> tuple[str, str | None]:
    """The chat template as the tokenizer takes it, and its content where it is a file's."""
    given = path.fields.tokenizer.chat_template
    if given == "chatml":
        return given, None
    file = path.fields.resolve(given)
    if not file.is_file():
        mend = "write chatml, or the name of a file with a template"
        raise path.fields.error(("tokenizer", "chat_template"), "there is no such file", mend=mend)
    content = file.read_text(encoding="utf-8")
    return content, content


def _tokenizer(path: FromScratch, report: Report) -> Figures:
    from kamerton.text.tokenizers import train
    from kamerton.text.tokenizers.compare import measure

    spec, text = path.fields.tokenizer, path.folder / "text"
    try:
        made = train(
            [text / "train.jsonl"], spec.kind, spec.vocab_size, path.folder / "tokenizer", special=spec.special,
            split_digits=spec.split_digits, chat_template=template(path)[0],
            progress=_read(report, "tokenizer", text / "train.jsonl", spec.kind),
        )  # fmt: skip
    except KamertonError as error:
        field = (error.where or "").partition(",")[0].removeprefix("--").replace("-", "_")
        where = ("tokenizer", field) if field in type(spec).model_fields else ("tokenizer",)
        raise path.fields.error(where, error.message, mend=(error.mend or "").replace("--kind ", "kind: ")) from None
    found = measure("tokenizer", made, "held out", [text / "held_out.jsonl"])
    return {
        "tokens": found.vocabulary, "bytes_per_token": found.bytes_per_token, "fertility": found.fertility,
        "unknown": found.unknown, "round_trip": found.round_trip,
        "example": [made.decode([i]) for i in made(_first_line(text / "held_out.jsonl"))["input_ids"]],
    }  # fmt: skip


def _read(report: Report, stage: str, file: Path, words: str) -> Callable[[int], None]:
    """What is told of each piece of a file that a stage reads, in bytes."""
    size, done = file.stat().st_size, 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        report(stage, min(done / size, 1.0), words)

    return progress


def _first_line(file: Path) -> str:
    from kamerton.text.lines import lines

    return max((line.decode() for _, line in zip(range(40), lines([file]), strict=False)), key=len)[:160]


# -- models -----------------------------------------------------------------------------------------------------------


def _ngram(path: FromScratch, name: str, spec: NgramSpec, report: Report) -> Figures:
    import numpy as np

    from kamerton.text.ngrams import estimate, open_units
    from kamerton.text.ngrams.counts import sentences_of

    text = path.folder / "text"
    try:
        units = open_units(spec.tokens if spec.tokens == "bytes" else str(path.folder / "tokenizer"))
        model = estimate(
            [text / "train.jsonl"], units, spec.order, spec.smoothing, memory=spec.memory << 20, whole=True,
            progress=_read(report, name, text / "train.jsonl", "counting"),
        )  # fmt: skip
    except KamertonError as error:
        raise path.fields.error(("ngrams", name), error.message, mend=error.mend) from None
    report(name, 1.0, "measuring")
    scored = model.score(sentences_of([text / "held_out.jsonl"], units, whole=True))
    # of the documents' bytes without one for each end, which is coded too: as networks are measured
    size = scored.bytes - scored.sentences
    bits = math.inf if scored.impossible or scored.unknown else -scored.log_prob / math.log(2) / size
    drawn = units.join(model.sample(np.random.default_rng(0), longest=LINE, temperature=0.8))
    model.save(path.folder / name)
    return {
        "bits_per_byte": bits if math.isfinite(bits) else None, "impossible": scored.impossible, "order": spec.order,
        "units": "bytes" if spec.tokens == "bytes" else f"{units.size - 3:,} tokens", "smoothing": spec.smoothing,
        "ngrams": sum(len(order.keys) for order in model.orders), "notes": model.notes,
        "samples": [{"prompt": "", "text": drawn}],
    }  # fmt: skip


def _model(path: FromScratch, name: str, report: Report) -> Figures:
    from kamerton.files import read_jsonl
    from kamerton.pretraining.page import write_page
    from kamerton.pretraining.run import pretrain

    folder = path.folder / name
    about = folder / "pretraining.json"
    if about.is_file():  # it was finished, and stopped before that was noted
        r = write_page(folder)
    else:
        made = pretrain(path.models[name], output=folder, report=partial(_named, report, name))
        assert made is not None
        r = made.results
    samples = folder / "samples.jsonl"
    rows = read_jsonl(samples) if samples.is_file() else []
    last = [row for row in rows if row["step"] == rows[-1]["step"]] if rows else []
    m, budget = r["metrics"], path.models[name].budget
    return {
        "bits_per_byte": m.get("bits_per_byte_half_overlap", m.get("bits_per_byte")),
        "side_by_side": m["bits_per_byte"] if "bits_per_byte_half_overlap" in m else None,
        "class": r["model"]["class"], "parameters": r["model"]["parameters"], "tokens": r["tokens"],
        "epochs": r["epochs"], "steps": r["steps"], "training_seconds": r["seconds"], "flops": r["flops"],
        "threads": r["threads"], "timed": budget is not None and budget.seconds is not None,
        "curve": [[row["seconds"], row["bits_per_byte"]] for row in r["curve"] if "bits_per_byte" in row],
        "notes": r["notes"], "samples": last,
    }  # fmt: skip


def _named(report: Report, name: str, stage: str, share: float, text: str) -> None:
    report(f"{name}: {stage}", share, text)


# -- tuning and chat --------------------------------------------------------------------------------------------------


def _turns(path: FromScratch, report: Report) -> Figures:
    from kamerton.from_scratch.turns import write_turns

    assert path.fields.turns is not None
    report("turns", 0.0, "")
    try:
        return dict(write_turns(path.folder / "text", path.folder / "turns", path.fields.turns))
    except KamertonError as error:
        raise path.fields.error(("turns",), error.message, mend=error.mend) from None


def _tune_depends(path: FromScratch) -> Any:
    from kamerton.tasks import load_task

    assert path.tune is not None
    block = path.tune.model_dump(mode="json", exclude={"name", "output", "base", "task"})
    base = path.folder / path.base
    return _depends(
        [block, path.tune.base.model_dump(exclude={"model"}), load_task(path.tune.task).fingerprint],
        (base / "model.safetensors", base / "config.json", base / "tokenizer.json"),
    )


def _tune(path: FromScratch, report: Report) -> Figures:
    from kamerton import api
    from kamerton.tasks import load_task

    assert path.tune is not None
    task = load_task(path.tune.task)
    record = api.tune(
        path.tune, output=path.folder / "tuned", task=task, report=partial(_named, report, "tuning")
    ).record
    held_out = [row["validation_loss"] for row in record.curve if "validation_loss" in row]
    return {
        "method": path.tune.methods[0].name, "examples": [len(task.train), len(task.validation), len(task.test)],
        "tokens": record.tokens, "training_seconds": record.seconds, "learning_rate": record.learning_rate,
        "validation_loss": min(held_out) if held_out else None, "notes": [*task.notes, *record.notes],
    }  # fmt: skip


def _chat_depends(path: FromScratch) -> Any:
    tuned = path.folder / "tuned"
    weights = sorted(file for file in tuned.iterdir() if file.suffix == ".safetensors")
    about = json.loads((tuned / "kamerton.json").read_text(encoding="utf-8"))
    return _depends([path.fields.chat.model_dump(), about["options"], about["base_fingerprint"]], weights)


def _chat(path: FromScratch, report: Report) -> Figures:
    from kamerton import api
    from kamerton.inference import Sampling
    from kamerton.tasks import load_task
    from kamerton.tasks.example import Message

    assert path.tune is not None
    said = path.fields.chat
    report("chat", 0.0, "merging")
    shutil.rmtree(path.folder / "chat", ignore_errors=True)
    tuned = api.load(path.folder / "tuned")
    api.merge(tuned, path.folder / "chat")
    held_out = [example for example in load_task(path.tune.task).test if example.answers]
    test = [example for example in held_out if _fits(tuned, example)]
    left_out, test = len(held_out) - len(test), test[:JUDGED]
    report("chat", 0.2, f"measuring on {len(test)} held-out answers")
    before = api.load(path.folder / path.base, base=tuned.base)
    bits = {"before": _answer_bits(before, test), "bits_per_byte": _answer_bits(tuned, test)}
    own = [tuned.shorten((Message("user", prompt),), said.tokens)[0] for prompt in said.prompts]
    shown = test[:: max(1, len(test) // SHOWN)][:SHOWN]
    asked = [*own, *(example.messages for example in shown)]
    references = [None] * len(own) + [example.answers[0] for example in shown]
    report("chat", 0.7, "answering")
    answers = tuned.generate(
        asked, Sampling(temperature=said.temperature, top_p=said.top_p, max_tokens=said.tokens, seed=said.seed)
    )
    return {
        **bits, "answers": len(test), "left_out": left_out, "temperature": said.temperature,
        "samples": [
            {"turns": [[m.role, m.content] for m in messages], "text": answer.text, "reference": reference}
            for messages, answer, reference in zip(asked, answers, references, strict=True)
        ],
    }  # fmt: skip


def _fits(adapted: Any, example: Any) -> bool:
    """Whether the model has the positions for a conversation and its answer."""
    room = adapted.engine.model.answer_limit(adapted.prompt_tokens(example.messages))
    return room is None or len(adapted.renderer.answer(example.answers[0])) <= room


def _answer_bits(adapted: Any, test: Sequence[Any]) -> float | None:
    """Code length of the reference answers, their ends included, in bits for each of their bytes."""
    size = sum(len(example.answers[0].encode()) for example in test)
    if not size:
        return None
    scores = adapted.score([example.messages for example in test], [[example.answers[0]] for example in test])
    return float(-sum(row[0] for row in scores) / math.log(2) / size)

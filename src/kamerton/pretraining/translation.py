"""Translation: pairs of files line for line, beam search, and BLEU (sacrebleu) on a test set.

Files may be gzipped. Pairs of which a side is empty or longer than the context are left out and counted. A pair reads
source, end token → target, end token.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kamerton.base.model import LanguageModel
from kamerton.errors import TaskError
from kamerton.objectives.translation import Pair, Translation
from kamerton.pretraining.goals import Goal, Metrics, Watch, summed
from kamerton.pretraining.models import Started
from kamerton.pretraining.samples import looker
from kamerton.recipe_pretrain import PretrainRecipe

SHOWN = 3
"""Held-out sources that are translated at every validation."""
ROOM = 1.5
"""A translation ends at so many times its source's tokens, and ten more."""
AT_ONCE = 64


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped or not.

    Raises:
        TaskError: it is missing, broken, or not UTF-8.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"is not UTF-8 (byte {error.start})", where=path, mend="save it as UTF-8") from None
    except FileNotFoundError:
        raise TaskError("no such file", where=path, mend="check the path") from None
    except (OSError, EOFError) as error:  # a broken gzip is either
        raise TaskError(f"cannot be read ({error})", where=path, mend="download it again") from None
    lines = text.split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def read_pairs(files: tuple[Path, Path]) -> list[tuple[str, str]]:
    """Sources and targets.

    Raises:
        TaskError: a file cannot be read, or they have different numbers of lines.
    """
    source, target = (read_lines(file) for file in files)
    if len(source) != len(target):
        raise TaskError(
            f"has {len(source):,} lines, {files[1].name} has {len(target):,}", where=files[0],
            mend="give files whose lines belong together",
        )  # fmt: skip
    return list(zip(source, target, strict=True))


def encode(tokenizer: Any, end: int, pairs: Sequence[tuple[str, str]], context: int) -> tuple[list[Pair], list[str]]:
    """Pairs as token ids with their end tokens, and notes about those that are left out."""
    if not pairs:
        return [], []
    sides = [tokenizer([pair[i] for pair in pairs], add_special_tokens=False)["input_ids"] for i in (0, 1)]
    kept, empty, long = [], 0, 0
    for (a, b), source, target in zip(pairs, *sides, strict=True):
        if not a.strip() or not b.strip():
            empty += 1
        elif max(len(source), len(target)) + 1 > context:
            long += 1
        else:
            kept.append(((*source, end), (*target, end)))
    notes = [f"{empty} pairs have an empty side and are left out"] if empty else []
    notes += [f"{long} pairs are longer than {context} tokens and are left out"] if long else []
    return kept, notes


@torch.no_grad()
def translate(
    hf: Any, tokenizer: Any, end: int, sources: Sequence[str], *, beams: int = 4, context: int = 256,
    watch: Watch | None = None,
) -> list[str]:  # fmt: skip
    """Translations by beam search, or greedily with one beam; sources longer than the context are cut."""
    pad = hf.config.pad_token_id
    rows = [[*ids[: context - 1], end] for ids in tokenizer(list(sources), add_special_tokens=False)["input_ids"]]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = [""] * len(rows)
    for start in range(0, len(rows), AT_ONCE):
        picked = order[start : start + AT_ONCE]
        longest = max(len(rows[i]) for i in picked)
        ids = torch.tensor([rows[i] + [pad] * (longest - len(rows[i])) for i in picked], device=hf.device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in picked], device=hf.device)
        made = hf.generate(
            ids, attention_mask=mask, num_beams=beams, do_sample=False, length_penalty=0.6 if beams > 1 else 1.0,
            max_new_tokens=min(context - 1, math.ceil(ROOM * longest) + 10),
        )  # fmt: skip
        for i, row in zip(picked, made.tolist(), strict=True):
            row = row[1:]
            row = row[: row.index(end)] if end in row else row
            out[i] = tokenizer.decode(row, skip_special_tokens=True)
        if watch is not None:
            watch("translating", min((start + AT_ONCE) / len(rows), 1.0), f"{beams} beams")
    return out


def translation_goal(recipe: PretrainRecipe, started: Started, folder: Path, watch: Watch) -> Goal:
    """Translation on the recipe's pairs of files."""
    data, t = recipe.data, recipe.training
    if isinstance(data.train, str):
        mend = "write train: [FILE.en, FILE.de]"
        raise recipe.error(("data", "train"), "translation wants two files, source and target", mend=mend)
    if isinstance(data.held_out, str):
        mend = "write held_out: [FILE.en, FILE.de], or a share"
        raise recipe.error(("data", "held_out"), "translation wants two files, source and target", mend=mend)

    def pairs(names: tuple[str, str]) -> list[tuple[str, str]]:
        return read_pairs((recipe.resolve(names[0]), recipe.resolve(names[1])))

    watch("reading", 0.0, "")
    texts, held_texts = pairs(data.train), []
    if isinstance(data.held_out, tuple):
        held_texts = pairs(data.held_out)
    elif data.held_out:
        cut = max(1, round(len(texts) * data.held_out))
        texts, held_texts = texts[:-cut], texts[-cut:]
    test = pairs(data.test) if data.test is not None else held_texts
    train, notes = encode(started.tokenizer, started.end, texts, started.context)
    held, more = encode(started.tokenizer, started.end, held_texts, started.context)
    if not train:
        raise TaskError("no pair is left to learn from", where=recipe.resolve(data.train[0]), mend="give more pairs")
    smoothing = t.label_smoothing if t.label_smoothing is not None else 0.1
    objective: Any = Translation(
        train, held, smoothing=smoothing, batch_size=t.batch_size, max_tokens=t.max_tokens, seed=t.seed
    )
    beams = recipe.samples.beams if recipe.samples is not None else 4

    def decode(hf: Any, sources: Sequence[str], n: int) -> list[str]:
        return translate(hf, started.tokenizer, started.end, sources, beams=n, context=started.context, watch=watch)

    def make(hf: Any) -> list[dict[str, str]]:
        shown = held_texts[:SHOWN]
        made = decode(hf, [a for a, _ in shown], 1)
        return [{"prompt": a, "text": x, "reference": b} for (a, b), x in zip(shown, made, strict=True)]

    if recipe.samples is not None and held_texts:
        objective.look = looker(folder / "samples.jsonl", make)

    def measure(model: LanguageModel) -> Metrics:
        import sacrebleu

        out: Metrics = {}
        if held:
            batches = objective.validation()
            loss = summed(objective, model, batches) / sum(b.count for b in batches)
            out |= {"loss": loss, "perplexity": math.exp(loss)}
        for name, n in (("bleu_greedy", 1), ("bleu", beams)):
            if test:
                made = decode(model.hf, [a for a, _ in test], n)
                out[name] = sacrebleu.corpus_bleu(made, [[b for _, b in test]]).score
        return out

    told = {"pairs": len(train), "held_out_pairs": len(held), "test_pairs": len(test),
            "target_tokens": sum(len(b) for _, b in train)}  # fmt: skip
    key = [told, hash_of(train), hash_of(held)]
    return Goal(objective, key, told, measure, None, [*notes, *more])


def hash_of(pairs: Sequence[Pair]) -> str:
    """A fingerprint of pairs."""
    import hashlib

    return hashlib.sha256(repr(list(pairs)).encode()).hexdigest()

"""Help with typing: the next word, the end of a word, and mistyped words put right by a noisy channel.

The noisy channel (Kernighan, Church & Gale 1990, "A Spelling Correction Program Based on a Noisy Channel Model"): what
was meant is the sentence with the largest P(meant) · P(typed | meant). P(meant) is the n-gram model's. Each word is
typed wrongly with a chance that is given, once for each edit between what was meant and what was typed (a letter more,
less, another one, or two turned round: Damerau–Levenshtein); the paper's tables of which letters are confused are left
out, since they need a collection of errors. So right words in the wrong place are put right too. The sentence is
searched from left to right, with a beam.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kamerton.errors import KamertonError
from kamerton.text.ngrams.model import NgramModel
from kamerton.text.ngrams.units import BOS, EOS, UNK

EDITS = 2
"""Edits between a word and what may have been meant, at most; one for words of up to `SHORT` letters."""
SHORT = 4
LETTERS = 30
"""A letter of a word that was never seen is one of so many, each as likely as another."""
_HALF = re.compile(r"\w(?:\w|['’-])*$")
CANDIDATES = 24
BEAM = 12


def next_units(model: NgramModel, text: str, k: int = 5) -> list[tuple[str, float]]:
    """The k most likely units behind a text, with their probabilities; `</s>` is the end of the line."""
    p = model.following([BOS, *model.units.encode(text)])
    p[UNK] = 0.0
    return [(model.units.names[i], float(p[i])) for i in _top(p, k)]


def complete(model: NgramModel, text: str, k: int = 5) -> list[tuple[str, float]]:
    """The k most likely ends of a text whose last word is half typed.

    Args:
        model: of words.
        text: its last word is what has been typed of it; behind a space, nothing has.

    Returns:
        Whole words with their probabilities among the words that begin so.

    Raises:
        KamertonError: the model is not one of words.
    """
    _words(model)
    done, half = (text, "") if not text or text[-1].isspace() else _parted(text)
    p = model.following([BOS, *model.units.encode(done)])
    fits = np.array([name.startswith(half) for name in model.units.names])
    fits[[UNK, BOS, EOS]] = False
    p = np.where(fits, p, 0.0)
    total = float(p.sum())
    return [(model.units.names[i], float(p[i]) / total) for i in _top(p, k)] if total > 0 else []


@dataclass(frozen=True)
class _Path:
    """A way through the words so far: natural logarithm of its probability, and the units."""

    score: float
    units: tuple[int, ...]
    words: tuple[str, ...]


def correct(model: NgramModel, text: str, *, errors: float = 0.02) -> list[tuple[str, str]]:
    """What was meant by a line.

    Args:
        model: of words.
        text: as it was typed.
        errors: chance of an edit in a word, between 0 and 1.

    Returns:
        Each word as typed and as meant. A word that is not known and near no known one stays.

    Raises:
        KamertonError: the model is not one of words.
    """
    _words(model)
    typed = model.units.split(text)
    paths = [_Path(0.0, (BOS,), ())]
    for word in typed:
        found = _meant(model, word, errors)
        longer = []
        for path in paths:
            p = model.following(path.units)
            for unit, name, channel in found:
                if p[unit] > 0:
                    score = path.score + math.log(p[unit]) + channel
                    longer.append(_Path(score, (*path.units, unit), (*path.words, name)))
        # two ways that end in the same units have the same future: the better one is enough
        best: dict[tuple[int, ...], _Path] = {}
        for path in sorted(longer, key=lambda x: -x.score):
            best.setdefault(path.units[-max(1, model.order - 1) :], path)
        paths = list(best.values())[:BEAM] or [
            _Path(p.score, (*p.units, model.units.number(word)), (*p.words, word)) for p in paths
        ]
    ended = max(paths, key=lambda x: x.score + math.log(max(float(model.following(x.units)[EOS]), 1e-300)))
    return list(zip(typed, ended.words, strict=True))


def _meant(model: NgramModel, word: str, errors: float) -> list[tuple[int, str, float]]:
    """Units that may have been meant by a word, what they are, and log P(typed | meant)."""
    from rapidfuzz import process
    from rapidfuzz.distance import DamerauLevenshtein

    edits = 1 if len(word) <= SHORT else EDITS
    near = process.extract(
        word, model.units.names[3:], scorer=DamerauLevenshtein.distance, score_cutoff=edits, limit=None
    )
    wrong, right = math.log(errors), math.log(1 - errors)
    out = [(i + 3, name, distance * wrong if distance else right) for name, distance, i in near]
    # of many the likely ones by themselves are tried
    logs = model.orders[0].probs
    out.sort(key=lambda x: -(x[2] + float(logs[x[0]])))
    out = out[:CANDIDATES]
    if model.units.number(word) == UNK:
        # a word that nobody has seen, and no mistake: `<unk>` says that it is one, not which
        out.append((UNK, word, right - len(word) * math.log(LETTERS)))
    return out


def _top(p: np.ndarray, k: int) -> Sequence[int]:
    best = np.argsort(-p, kind="stable")[:k]
    found: list[int] = [int(i) for i in best if p[i] > 0]
    return found


def _parted(text: str) -> tuple[str, str]:
    """All before the last word, and the last word; a sign before it ("the) is no part of it."""
    half = _HALF.search(text)
    return (text, "") if half is None else (text[: half.start()], half[0])


def _words(model: NgramModel) -> None:
    if model.units.kind != "words":
        raise KamertonError(
            f"the model is of {model.units.kind}, and only one of words can say what a word was to be",
            mend="train one with --tokens words",
        )

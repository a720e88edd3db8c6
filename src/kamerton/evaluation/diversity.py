"""How diverse sampled answers are, how long, and how much of the references' wording they share.

Two kinds of diversity are told apart, for they fail apart. *Within a question*: do several samples of one answer
differ? *Across questions*: do answers to different questions differ, or has the model one answer for all (mode
collapse)? The first is the axis of the quality–diversity frontier (`frontier.py`).

- Self-BLEU (Zhu et al. 2018, Texygen, arXiv 1802.01886): each answer's BLEU with the other answers as its references,
  here as one corpus score on sacrebleu's tokens and scale (0 to 100; 100: they are all the same).
- Distinct-n (Li et al. 2016, arXiv 1510.03055): distinct n-grams over all n-grams. It falls with the number of answers,
  so across questions it is taken of one sample and of one reference each.
- Precision and recall of n-grams, by question: the share of the samples' n-grams that some reference has, and the
  share of the references' n-grams that some sample has. More samples find more: recall is that of so many samples.

All of them are `Figure`s over questions. What is left out: diversity of meaning under other words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamerton.evaluation.figures import Figure, jackknifed, mean, ratio

Array = np.ndarray[Any, Any]
Words = Callable[[str], list[str]]
Sets = Sequence[Sequence[str]]
"""Texts by question: N lists."""

ORDERS = 4


def words(tokenizer: str = "") -> Words:
    """sacrebleu's tokens of a text; `tokenizer` is sacrebleu's name for one, "" its default (13a)."""
    from sacrebleu.metrics import BLEU

    split = BLEU(tokenize=tokenizer or None).tokenizer
    return lambda text: str(split(text.rstrip())).split()


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams of a text."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


@dataclass(frozen=True)
class EffectiveBleu:
    """Corpus BLEU over the orders that occur: answers of fewer than four tokens have no 4-grams and are scored on less.

    S = 2 + 2·4, the statistics of `text_metrics.Bleu`. The aggregate is sacrebleu's with `effective_order` and
    smoothing `exp`.
    """

    range: tuple[float, float] = (0.0, 100.0)

    def aggregate(self, sums: Array, count: Array | float) -> Array:  # noqa: ARG002 (contract)
        sums = np.asarray(sums, dtype=np.float64)
        length, wanted = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
        there = totals > 0
        smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum((matches == 0) & there, axis=-1))
        logs = np.where(there, np.log(np.where(there, smoothed / np.maximum(totals, 1e-300), 1.0)), 0.0)
        short = np.divide(wanted, length, out=np.ones_like(length), where=length > 0)
        score = 100 * np.exp(np.minimum(0.0, 1 - short) + logs.sum(-1) / np.maximum(there.sum(-1), 1))
        return np.where((matches > 0).any(-1), score, 0.0)


def _closest(length: int, others: Sequence[int]) -> int:
    return min(others, key=lambda other: (abs(other - length), other))


def _bleu_row(counts: Sequence[Counter[tuple[str, ...]]], length: int, wanted: int,
              most: Callable[[int, tuple[str, ...]], int]) -> list[float]:  # fmt: skip
    """One text's statistics; `most(order, n-gram)` is how often its references may give an n-gram."""
    matches = [sum(min(c, most(n, g)) for g, c in grams.items()) for n, grams in enumerate(counts)]
    return [length, wanted, *matches, *(sum(grams.values()) for grams in counts)]


def self_bleu(samples: Sets, split: Words) -> Figure | None:
    """Self-BLEU within questions: each sample against the other samples of its question. None for one sample each."""
    if any(len(texts) < 2 for texts in samples):
        return None
    rows = np.zeros((len(samples), 2 + 2 * ORDERS))
    for row, texts in zip(rows, samples, strict=True):
        tokens = [split(text) for text in texts]
        counts = [[ngrams(t, n) for n in range(1, ORDERS + 1)] for t in tokens]
        for i, own in enumerate(counts):
            others = [c for j, c in enumerate(counts) if j != i]
            wanted = _closest(len(tokens[i]), [len(t) for j, t in enumerate(tokens) if j != i])
            row += _bleu_row(own, len(tokens[i]), wanted, lambda n, g, o=others: max(c[n][g] for c in o))  # type: ignore[misc]
    return Figure(EffectiveBleu(), rows)


def self_bleu_across(texts: Sequence[str], split: Words) -> Figure | None:
    """Self-BLEU across questions: each question's one text against those of all other questions. None for one text.

    Linear in the number of texts: of each n-gram the two highest counts of any text are kept, so that the highest among
    the others is known. The interval holds the others fixed.
    """
    if len(texts) < 2:
        return None
    tokens = [split(text) for text in texts]
    counts = [[ngrams(t, n) for n in range(1, ORDERS + 1)] for t in tokens]
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}  # n-gram: highest count, whose it is, second highest
    for i, orders in enumerate(counts):
        for gram, count in (pair for grams in orders for pair in grams.items()):
            top, owner, second = best.get(gram, (0, -1, 0))
            best[gram] = (count, i, top) if count > top else (top, owner, max(second, count))
    lengths = Counter(map(len, tokens))
    rows = np.zeros((len(texts), 2 + 2 * ORDERS))
    for i, (row, orders) in enumerate(zip(rows, counts, strict=True)):
        own = len(tokens[i])
        others = [length for length, many in lengths.items() if many > (length == own)]
        row[:] = _bleu_row(
            orders,
            own,
            _closest(own, others),
            lambda _, g, i=i: best[g][2] if best[g][1] == i else best[g][0],  # type: ignore[misc]
        )
    return Figure(EffectiveBleu(), rows)


def distinct(samples: Sets, n: int, split: Words) -> Figure | None:
    """Distinct-n within questions: Σ distinct n-grams of a question's samples / Σ their n-grams. None without any."""
    grams = [sum((ngrams(split(text), n) for text in texts), Counter()) for texts in samples]
    return ratio([len(g) for g in grams], [sum(g.values()) for g in grams])


def distinct_across(texts: Sequence[str], n: int, split: Words) -> Figure | None:
    """Distinct-n of a set of one text for each question. None without n-grams, or for one question."""
    grams = [ngrams(split(text), n) for text in texts]
    whole: Counter[tuple[str, ...]] = sum(grams, Counter())
    total = sum(whole.values())
    if not total or len(texts) < 2:
        return None
    value, without = len(whole) / total, []
    for own in grams:
        alone = sum(whole[g] == c for g, c in own.items())  # n-grams that no other text has
        left = total - sum(own.values())
        without.append((len(whole) - alone) / left if left else value)
    return jackknifed(value, without, low=0.0, high=1.0)


def precision(samples: Sets, references: Sets, n: int, split: Words) -> Figure | None:
    """Share of the samples' n-grams that stand in some reference of the same question."""
    return _shared(samples, references, n, split)


def recall(samples: Sets, references: Sets, n: int, split: Words) -> Figure | None:
    """Share of the references' n-grams that stand in some sample of the same question."""
    return _shared(references, samples, n, split)


def _shared(texts: Sets, known: Sets, n: int, split: Words) -> Figure | None:
    over, under = [], []
    for own, other in zip(texts, known, strict=True):
        grams = sum((ngrams(split(text), n) for text in own), Counter[tuple[str, ...]]())
        there = {g for text in other for g in ngrams(split(text), n)}
        over.append(float(sum(c for g, c in grams.items() if g in there)))
        under.append(float(sum(grams.values())))
    return ratio(over, under, better="higher")


def length(tokens: Array) -> Figure:
    """Mean tokens of an answer, end token included: (N, n) of each sample."""
    return mean(np.asarray(tokens, dtype=np.float64).mean(1), low=0.0, better="reference")


def length_ratio(tokens: Array, references: Sequence[float]) -> Figure | None:
    """Tokens of the samples over tokens of the references: (N, n), and the mean of each question's references (N,)."""
    means = np.asarray(tokens, dtype=np.float64).mean(1)
    return ratio(list(means), references, high=float("inf"), better="reference")


def ended(stopped: Array) -> Figure:
    """Share of samples that end with the end token inside the limit: (N, n) booleans."""
    return mean(np.asarray(stopped, dtype=np.float64).mean(1), low=0.0, high=1.0, better="higher")

"""What the labels of a store say: who labelled how much, how far they agree, and which model is better.

Every kind of label is counted for itself. Agreement: of comparisons and thumbs as names, of rankings as an order, of
ratings as distances; kappa of rankings and ratings is weighted by squared distance. Win rates of rankings, ratings and
thumbs come from all pairs of answers that one labeller judged under one item.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from kamerton.feedback.agreement import (
    RESAMPLES,
    Agreement,
    Level,
    Rating,
    cohen_kappa,
    krippendorff_alpha,
    pairs_of_labellers,
)
from kamerton.feedback.bradley_terry import Comparison, Strengths, strengths
from kamerton.feedback.records import BAD, KINDS, TIE, Item, Kind, Label
from kamerton.feedback.store import FeedbackStore
from kamerton.tasks.example import fingerprint

LEVELS: dict[Kind, Level] = {
    "comparison": "nominal", "ranking": "ordinal", "rating": "interval", "thumbs": "nominal",
}  # fmt: skip
_WEIGHTS: dict[Kind, Literal["quadratic"] | None] = {
    "comparison": None, "ranking": "quadratic", "rating": "quadratic", "thumbs": None,
}  # fmt: skip
MOST_PAIRS = 45
"""Pairs of labellers whose kappa is computed; of more labellers alpha says it shorter."""


@dataclass(frozen=True, slots=True)
class Labeller:
    """What one labeller did: labels, skipped and undone ones, and the median of seconds a label took."""

    name: str
    labels: int
    skipped: int
    undone: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class KindResult:
    """What labels of one kind say.

    Attributes:
        labels: how many have scores.
        labellers: who gave them.
        left: of comparisons with a winner that were shown side by side, the share won by the one shown first, and how
            many those are; None where there are none.
        ties, bad: comparisons where both were equally good, and both bad.
        alpha: Krippendorff's; `level`: of which kind of values.
        kappas: Cohen's of each pair of labellers with something in common.
        strengths: of models.
        same, unknown: pairs of answers that say nothing of models: by the same model, or by one that is not named.
    """

    kind: Kind
    labels: int
    labellers: tuple[Labeller, ...]
    left: tuple[float, int] | None
    ties: int
    bad: int
    level: Level
    alpha: Agreement
    kappas: tuple[tuple[str, str, Agreement], ...]
    strengths: Strengths
    same: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Results:
    """What a store holds: items to label, answers from chats, and results of each kind that has labels."""

    items: int
    chats: int
    kinds: tuple[KindResult, ...]


def results_of(store: FeedbackStore, *, resamples: int = RESAMPLES, seed: int = 0) -> Results:
    """Everything that a store's labels say.

    Args:
        resamples, seed: of the intervals.
    """
    items = {item.id: item for item in store.items()}
    chats = sum(item.source == "chat" for item in items.values())
    every = store.labels(undone=True)
    found = []
    for kind in KINDS:
        labels = [label for label in every if label.kind == kind]
        if labels:
            found.append(_of_kind(kind, labels, items, resamples, seed))
    return Results(len(items) - chats, chats, tuple(found))


def _of_kind(kind: Kind, every: Sequence[Label], items: dict[int, Item], resamples: int, seed: int) -> KindResult:
    given = [label for label in every if label.undone is None and label.scores is not None]
    ratings = list(ratings_of(kind, given, items))
    pairs, same, unknown = comparisons_of(given, items)
    first = [label.scores[0] for label in given if kind == "comparison" and label.scores and sum(label.scores) == 1]
    first = [score for score in first if score != TIE[0]]
    kappas = [
        (a, b, cohen_kappa(ratings, a, b, weights=_WEIGHTS[kind], resamples=resamples, seed=seed))
        for a, b in pairs_of_labellers(ratings)[:MOST_PAIRS]
    ]
    return KindResult(
        kind, len(given), _labellers(every), (statistics.fmean(first), len(first)) if first else None,
        sum(label.scores == TIE for label in given) if kind == "comparison" else 0,
        sum(label.scores == BAD for label in given) if kind == "comparison" else 0,
        LEVELS[kind], krippendorff_alpha(ratings, LEVELS[kind], resamples=resamples, seed=seed), tuple(kappas),
        strengths(pairs, resamples=resamples, seed=seed), same, unknown,
    )  # fmt: skip


def _labellers(every: Sequence[Label]) -> tuple[Labeller, ...]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, list[float]] = defaultdict(list)
    for label in every:
        what = "undone" if label.undone is not None else "skipped" if label.scores is None else "labels"
        counts[label.labeller][what] += 1
        if what == "labels" and label.seconds is not None:
            seconds[label.labeller].append(label.seconds)
    return tuple(
        Labeller(
            name, found["labels"], found["skipped"], found["undone"],
            statistics.median(seconds[name]) if seconds[name] else None,
        )
        for name, found in sorted(counts.items())
    )  # fmt: skip


def ratings_of(kind: Kind, labels: Sequence[Label], items: dict[int, Item]) -> Iterator[Rating]:
    """What agreement is computed on, whatever the order in which answers were shown.

    Of a comparison the value is a name: one answer is better, the other is, a tie, both bad. Which is "one" is decided
    by a hash. If it were the first in the file, always the same model, labellers who like it would agree by "chance".
    """
    for label in labels:
        scores, answers = label.by_answer, tuple(sorted(label.shown))
        if kind == "comparison":
            if int(fingerprint([items[label.item].key, answers])[:8], 16) % 2:
                answers = answers[::-1]
            one, other = (scores[i] for i in answers)
            value = 2 * one + other if one != other else 3.0 if one else 0.0
            yield Rating(label.item, (label.item, tuple(sorted(answers))), label.labeller, value)
        else:
            for answer, score in scores.items():
                yield Rating(label.item, (label.item, answer), label.labeller, score)


def comparisons_of(labels: Sequence[Label], items: dict[int, Item]) -> tuple[list[Comparison], int, int]:
    """Pairs of models' answers, of which one is better or neither; and pairs by the same model, and by unknown ones."""
    found, same, unknown = [], 0, 0
    together: dict[tuple[object, ...], dict[int, float]] = defaultdict(dict)
    for label in labels:
        # one answer at a time was judged: all that a labeller said of an item stands side by side
        alone = label.kind in ("rating", "thumbs")
        together[(label.item, label.labeller) if alone else (label.item, label.id, "")] |= label.by_answer
    for (item, *_), scores in together.items():
        for a, b in combinations(sorted(scores), 2):
            answers = items[int(str(item))].answers
            first, second = answers[a].model, answers[b].model
            if first is None or second is None:
                unknown += 1
            elif first == second:
                same += 1
            else:
                won = 0.5 + ((scores[a] > scores[b]) - (scores[a] < scores[b])) / 2
                found.append(Comparison(item, first, second, won))
    return found, same, unknown

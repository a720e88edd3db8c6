"""Few-shot examples (Brown et al. 2020, arXiv 2005.14165): which ones stand before a question, and in which order.

`random` draws them once by the seed, the same for every question, so that they are a prefix that all questions share.
`nearest` takes for each question the training examples most like it (tf–idf over words and character trigrams),
nearest last, where a language model listens best (Liu et al. 2021, arXiv 2101.06804). `diverse` spreads the shots over
the pool by k-means++ seeding (Arthur & Vassilvitskii 2007), `balanced` gives every label the same number of shots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kamerton.tasks.example import Conversation, Example, Message


def with_shots(conversation: Conversation, shots: Sequence[Example]) -> Conversation:
    """Put solved examples between a conversation's system message and its question."""
    system = tuple(m for m in conversation[:1] if m.role == "system")
    turns: list[Message] = []
    for shot in shots:
        turns += [m for m in shot.messages if m.role != "system"]
        turns.append(Message("assistant", shot.answers[0]))
    return (*system, *turns, *conversation[len(system) :])


def random_shots(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` examples drawn without replacement by the seed."""
    picked = np.random.default_rng([seed, 20]).permutation(len(examples))[:count]
    return [examples[i] for i in picked]


def diverse_shots(examples: Sequence[Example], unit: NDArray[np.float64], count: int, seed: int) -> list[Example]:
    """`count` examples that lie far from one another: each is drawn by its squared distance to those taken before.

    Args:
        examples: the pool of N.
        unit: (N, D) vectors.
        count, seed: how many, and of the draw. Fewer come only where the pool has fewer.
    """
    rng = np.random.default_rng([seed, 21])
    taken = [int(rng.integers(len(examples)))]
    distance = np.full(len(examples), np.inf)
    while len(taken) < min(count, len(examples)):
        distance = np.minimum(distance, ((unit - unit[taken[-1]]) ** 2).sum(1))
        distance[taken] = 0.0
        free = np.setdiff1d(np.arange(len(examples)), taken)
        weight = distance[free]
        # where all that is left stands on a taken place, any of it is as good
        share = weight / weight.sum() if weight.sum() > 1e-12 else np.full(len(free), 1 / len(free))
        taken.append(int(rng.choice(free, p=share)))
    return [examples[i] for i in taken]


def balanced_shots(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """`count` examples with every label as often as every other (once more at most), and one spare of each label.

    Labels take turns in an order drawn by the seed; a label without examples left is passed over. The shots come
    shuffled.
    """
    rng = np.random.default_rng([seed, 22])
    by_label: dict[str, list[Example]] = {}
    for i in rng.permutation(len(examples)):
        by_label.setdefault(examples[i].answers[0], []).append(examples[i])
    labels = [sorted(by_label)[i] for i in rng.permutation(len(by_label))]
    taken: list[Example] = []
    while len(taken) < min(count, len(examples)):
        for label in labels:
            if by_label[label] and len(taken) < count:
                taken.append(by_label[label].pop())
    spares = [by_label[label][-1] for label in labels if by_label[label]]
    return [taken[i] for i in rng.permutation(len(taken))], spares


class NearestShots:
    """Finds the training examples most like a question, by the cosine of tf–idf vectors.

    Args:
        examples: the pool.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)
        counts = [Counter(_features(question_text(e.messages))) for e in examples]
        self._column = {f: i for i, f in enumerate(sorted({f for c in counts for f in c}))}
        seen = np.zeros(len(self._column))
        for c in counts:
            seen[[self._column[f] for f in c]] += 1
        self._idf = np.log((1 + len(counts)) / (1 + seen)) + 1
        self._matrix = self._vectors(counts)

    def __call__(self, conversation: Conversation, count: int) -> list[Example]:
        """The `count` nearest examples, nearest last; of equal ones the earlier counts as nearer."""
        query = self._vectors([Counter(_features(question_text(conversation)))])
        similarity = (self._matrix @ query.T).toarray()[:, 0]
        order = np.argsort(-similarity, kind="stable")[:count]
        return [self._examples[i] for i in order[::-1]]

    def _vectors(self, counts: Sequence[Counter[str]]) -> csr_matrix:
        rows, columns, values = [], [], []
        for row, c in enumerate(counts):
            known = {self._column[f]: n for f, n in c.items() if f in self._column}
            weights = {i: (1 + np.log(n)) * self._idf[i] for i, n in known.items()}
            norm = np.sqrt(sum(w * w for w in weights.values())) or 1.0
            rows += [row] * len(weights)
            columns += list(weights)
            values += [w / norm for w in weights.values()]
        return csr_matrix((values, (rows, columns)), shape=(len(counts), len(self._column)))


def question_text(conversation: Conversation) -> str:
    """What the user says; the system message is the same for all and tells nothing."""
    return "\n".join(m.content for m in conversation if m.role == "user")


def _features(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    padded = f" {' '.join(words)} "
    return words + [f"#{padded[i : i + 3]}" for i in range(len(padded) - 2)]

"""Few-shot examples (Brown et al. 2020, arXiv 2005.14165): which ones stand before a question, and in which order.

`random` draws them once by the seed, the same for every question, so that they are a prefix that all questions share.
`nearest` takes for each question the training examples most like it (tf–idf over words and character trigrams),
nearest last, where a language model listens best (Liu et al. 2021, arXiv 2101.06804).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
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


class NearestShots:
    """Finds the training examples most like a question, by the cosine of tf–idf vectors.

    Args:
        examples: the pool.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)
        counts = [Counter(_features(_question(e.messages))) for e in examples]
        self._column = {f: i for i, f in enumerate(sorted({f for c in counts for f in c}))}
        seen = np.zeros(len(self._column))
        for c in counts:
            seen[[self._column[f] for f in c]] += 1
        self._idf = np.log((1 + len(counts)) / (1 + seen)) + 1
        self._matrix = self._vectors(counts)

    def __call__(self, conversation: Conversation, count: int) -> list[Example]:
        """The `count` nearest examples, nearest last; of equal ones the earlier counts as nearer."""
        query = self._vectors([Counter(_features(_question(conversation)))])
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


def _question(conversation: Conversation) -> str:
    """What the user says; the system message is the same for all and tells nothing."""
    return "\n".join(m.content for m in conversation if m.role == "user")


def _features(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    padded = f" {' '.join(words)} "
    return words + [f"#{padded[i : i + 3]}" for i in range(len(padded) - 2)]

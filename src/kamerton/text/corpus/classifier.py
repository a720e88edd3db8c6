"""A linear classifier of texts over hashed n-grams of words and characters: quality, grammar, toxicity, from labels.

As fastText (Joulin et al. 2017) it hashes n-grams into a fixed number of buckets and learns one linear layer; it has no
hidden layer of embeddings, so that the problem is convex and the result does not depend on a seed: softmax regression,
L2-regularised, by L-BFGS. A folder of two files: `classifier.safetensors` (weights) and `classifier.json` (labels,
options, figures).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kamerton.errors import KamertonError
from kamerton.files import whole, write_json
from kamerton.text.corpus.hashing import grams, mix, word_hashes


@dataclass(frozen=True, slots=True)
class Features:
    """What is looked at: n-grams of words and of characters, up to these lengths (0: none), in 2**bits buckets."""

    words: int = 2
    characters: int = 5
    least_characters: int = 2
    bits: int = 18
    lower: bool = True


def buckets(text: str, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of a text (sorted) and their weights: square roots of counts, to unit length."""
    text = " ".join((text.lower() if features.lower else text).split())
    parts: list[np.ndarray] = []
    with np.errstate(over="ignore"):
        if features.words:
            words = word_hashes(text.split(" "))
            parts += grams(words, 1, features.words, 1)
        if features.characters:
            codes = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
            parts += grams(codes, features.least_characters, features.characters, 2)
        hashes = mix(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    found, counts = np.unique(hashes >> np.uint64(64 - features.bits), return_counts=True)
    weights = np.sqrt(counts)
    return found.astype(np.int64), weights / (np.linalg.norm(weights) or 1)


def _matrix(texts: Sequence[str], features: Features) -> Any:
    from scipy.sparse import csr_matrix

    rows = [buckets(text, features) for text in texts]
    ends = np.cumsum([0, *(len(found) for found, _ in rows)])
    columns = np.concatenate([found for found, _ in rows])
    values = np.concatenate([weights for _, weights in rows])
    return csr_matrix((values, columns, ends), shape=(len(texts), 1 << features.bits))


@dataclass(frozen=True)
class TextClassifier:
    """A trained classifier.

    Attributes:
        labels: K labels in order.
        features: what it looks at.
        weights: (2**bits, K), bias: (K,).
        about: how it was trained and how good it was.
    """

    labels: tuple[str, ...]
    features: Features
    weights: np.ndarray
    bias: np.ndarray
    about: dict[str, Any]

    def probabilities(self, text: str) -> np.ndarray:
        """(K,) probabilities of the labels."""
        found, weights = buckets(text, self.features)
        scores = weights @ self.weights[found] + self.bias
        scores = np.exp(scores - scores.max())
        return scores / scores.sum()

    def save(self, folder: str | Path) -> None:
        """Write both files, each whole or not at all, the description last."""
        from safetensors.numpy import save

        folder = Path(folder)
        with whole(folder / "classifier.safetensors") as file:
            file.write(save({"weights": self.weights.astype(np.float32), "bias": self.bias.astype(np.float32)}))
        write_json(
            folder / "classifier.json",
            {"labels": list(self.labels), "features": asdict(self.features), "about": self.about},
        )

    @classmethod
    def load(cls, folder: str | Path) -> TextClassifier:
        """Read a folder that `save` wrote.

        Raises:
            KamertonError: it is not there, or broken.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            about = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "classifier.safetensors")
            features = Features(**about["features"])
            labels = tuple(about["labels"])
            weights, bias = tensors["weights"], tensors["bias"]
            if weights.shape != (1 << features.bits, len(labels)) or bias.shape != (len(labels),):
                raise ValueError("shapes of weights")
        except FileNotFoundError:
            mend = "train one: kamerton corpus classifier train --help"
            raise KamertonError("no classifier is there", where=folder, mend=mend) from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise KamertonError(f"is not a classifier ({error})", where=folder, mend="train it again") from None
        return cls(labels, features, weights, bias, about["about"])


def train(
    texts: Sequence[str], labels: Sequence[str], features: Features, *, l2: float = 1.0, balanced: bool = False
) -> TextClassifier:
    """Train on texts with their labels.

    Args:
        l2: the penalty on squared weights, against the summed loss.
        balanced: weigh texts so that all labels count alike.

    Raises:
        KamertonError: there are not two labels.
    """
    return next(_path(texts, labels, features, (l2,), balanced))


def search(
    texts: Sequence[str], labels: Sequence[str], held_texts: Sequence[str], held_labels: Sequence[str],
    features: Features, *, penalties: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0), balanced: bool = False,
) -> TextClassifier:  # fmt: skip
    """The classifier whose penalty has the highest Matthews correlation on held-out texts; the largest of equals."""
    best: TextClassifier | None = None
    score = -2.0
    for made in _path(texts, labels, features, sorted(penalties, reverse=True), balanced):
        figures = measure(made, held_texts, held_labels)
        if figures["matthews"] > score:
            best, score = replace(made, about={**made.about, "validation": figures}), figures["matthews"]
    assert best is not None
    return best


def _path(
    texts: Sequence[str], labels: Sequence[str], features: Features, penalties: Sequence[float], balanced: bool
) -> Iterator[TextClassifier]:
    """A classifier for each penalty, each started from the one before."""
    from scipy.optimize import minimize

    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        message = f"all texts have the label {names[0]!r}" if names else "there are no texts"
        raise KamertonError(message, mend="give it texts of two labels")
    x = _matrix(texts, features)
    used = np.flatnonzero(np.bincount(x.indices, minlength=x.shape[1]))  # other weights stay 0
    x = x[:, used]
    y = np.searchsorted(names, labels)
    share = np.bincount(y, minlength=len(names))[y] if balanced else None
    weight = np.ones(len(y)) if share is None else len(y) / (len(names) * share)
    hot = np.zeros((len(y), len(names)))
    hot[np.arange(len(y)), y] = 1

    def loss(flat: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        w, b = flat[: -len(names)].reshape(-1, len(names)), flat[-len(names) :]
        scores = x @ w + b
        scores -= scores.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(scores).sum(axis=1, keepdims=True))
        value = float(-(weight * (scores - log_total)[np.arange(len(y)), y]).sum() + l2 / 2 * (w**2).sum())
        error = (np.exp(scores - log_total) - hot) * weight[:, None]
        return value, np.concatenate([(x.T @ error + l2 * w).ravel(), error.sum(axis=0)])

    start = np.zeros((len(used) + 1) * len(names))
    for l2 in penalties:
        best = minimize(loss, start, args=(l2,), jac=True, method="L-BFGS-B", options={"maxiter": 100})
        start = best.x
        weights = np.zeros((1 << features.bits, len(names)), np.float32)
        weights[used] = start[: -len(names)].reshape(-1, len(names))
        about = {
            "texts": len(texts), "l2": l2, "balanced": balanced, "loss": float(best.fun) / len(texts),
            "steps": int(best.nit),
        }  # fmt: skip
        yield TextClassifier(names, features, weights, start[-len(names) :].astype(np.float32), about)


def measure(classifier: TextClassifier, texts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1, Matthews correlation (of several labels: Gorodkin's), and the share of the largest label."""
    names = list(classifier.labels)
    unknown = sorted(set(labels) - set(names))
    if unknown:
        mend = f"it knows: {', '.join(names)}"
        raise KamertonError(f"the classifier does not know the label {unknown[0]!r}", mend=mend)
    table = np.zeros((len(names), len(names)))
    for text, label in zip(texts, labels, strict=True):
        table[names.index(label), int(np.argmax(classifier.probabilities(text)))] += 1
    total, right = table.sum(), np.trace(table)
    true, told = table.sum(axis=1), table.sum(axis=0)
    spread = (total**2 - told @ told) * (total**2 - true @ true)
    f1 = 2 * np.diag(table) / np.maximum(true + told, 1)
    return {
        "texts": int(total),
        "accuracy": float(right / total),
        "macro_f1": float(f1.mean()),
        "matthews": float((right * total - true @ told) / np.sqrt(spread)) if spread > 0 else 0.0,
        "largest_label": float(true.max() / total),
    }
